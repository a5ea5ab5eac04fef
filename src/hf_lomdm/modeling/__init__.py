"""Configuration, process, model and scheduler; these files also travel to the Hub.

Importing them makes the Auto classes of transformers know the model, so that no remote code runs.
"""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from .configuration_lomdm import LoMDMConfig
from .modeling_lomdm import LoMDMForMaskedDiffusion, LoMDMModel

__all__ = ["LoMDMConfig", "LoMDMForMaskedDiffusion", "LoMDMModel"]

AutoConfig.register("lomdm", LoMDMConfig)
AutoModel.register(LoMDMConfig, LoMDMForMaskedDiffusion)
AutoModelForMaskedLM.register(LoMDMConfig, LoMDMForMaskedDiffusion)
