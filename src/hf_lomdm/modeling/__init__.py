"""Configuration, process and model. These files also travel to the Hub, where they load without the package."""
