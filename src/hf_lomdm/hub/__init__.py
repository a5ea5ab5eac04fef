"""From checkpoints to Hub folders."""

from .export import export_to_hub_folder

__all__ = ["export_to_hub_folder"]
