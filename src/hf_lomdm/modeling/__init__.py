"""Configuration, process and model. These files also travel to the Hub, where they load without the
package.

Importing them makes the Auto classes of transformers know the model, so that no remote code runs.
"""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from .configuration_lomdm import LoMDMConfig
from .modeling_lomdm import LoMDMForMaskedDiffusion, LoMDMModel

__all__ = ["LoMDMConfig", "LoMDMForMaskedDiffusion", "LoMDMModel"]

AutoConfig.register("lomdm", LoMDMConfig)
AutoModel.register(LoMDMConfig, LoMDMForMaskedDiffusion)
AutoModelForMaskedLM.register(LoMDMConfig, LoMDMForMaskedDiffusion)
