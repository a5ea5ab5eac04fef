"""What the scripts share: how their options are read, and what they say when they cannot go on."""
