"""hf_lomdm: learnable-order masked diffusion language models with transformers and diffusers.

Public names are imported when first used; the Auto classes of transformers know the model as soon as the package is
imported.
"""

import importlib

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from .modeling.configuration_lomdm import LoMDMConfig
from .modeling.modeling_lomdm import LoMDMForMaskedDiffusion, LoMDMModel

__version__ = "0.1.0"

_LAZY = {
    "LoMDMScheduler": "schedulers.scheduling_lomdm",
    "LoMDMPipeline": "pipelines.pipeline_lomdm",
    "OrderAdapter": "adapters.order_adapter",
}
__all__ = ["LoMDMConfig", "LoMDMForMaskedDiffusion", "LoMDMModel", *_LAZY]

AutoConfig.register("lomdm", LoMDMConfig)
AutoModel.register(LoMDMConfig, LoMDMForMaskedDiffusion)
AutoModelForMaskedLM.register(LoMDMConfig, LoMDMForMaskedDiffusion)
# `model.save_pretrained` and `model.push_to_hub` take the code along: what they write loads without this package.
LoMDMForMaskedDiffusion.register_for_auto_class("AutoModel")


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
