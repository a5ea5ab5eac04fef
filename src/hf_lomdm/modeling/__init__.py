"""Configuration, process and model. These files also travel to the Hub, where they load without the package.

The configuration comes at once, the model when it is used: `AutoConfig`, with which the configuration is registered, is
imported in the middle of what the model needs.
"""

import importlib

from transformers import AutoConfig

from .configuration_lomdm import LoMDMConfig

_MODELS = ("LoMDMForMaskedDiffusion", "LoMDMModel")
__all__ = ["LoMDMConfig", *_MODELS]

AutoConfig.register("lomdm", LoMDMConfig)


def __getattr__(name: str):
    if name not in _MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.modeling_lomdm"), name)
