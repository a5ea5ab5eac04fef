"""`AutoModel` and `AutoModelForMaskedLM` know the model once this is imported; `import hf_lomdm` sees to it."""

from transformers import AutoModel, AutoModelForMaskedLM

from .configuration_lomdm import LoMDMConfig
from .modeling_lomdm import LoMDMForMaskedDiffusion

AutoModel.register(LoMDMConfig, LoMDMForMaskedDiffusion)
AutoModelForMaskedLM.register(LoMDMConfig, LoMDMForMaskedDiffusion)
