"""Configuration, process and model. These files also travel to the Hub, where they load without the package."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from .configuration_lomdm import LoMDMConfig
from .modeling_lomdm import LoMDMForMaskedDiffusion, LoMDMModel

__all__ = ["LoMDMConfig", "LoMDMForMaskedDiffusion", "LoMDMModel"]

AutoConfig.register("lomdm", LoMDMConfig)
AutoModel.register(LoMDMConfig, LoMDMForMaskedDiffusion)
AutoModelForMaskedLM.register(LoMDMConfig, LoMDMForMaskedDiffusion)
# `model.save_pretrained` and `model.push_to_hub` take the code along: what they write loads without this package.
LoMDMForMaskedDiffusion.register_for_auto_class("AutoModel")
