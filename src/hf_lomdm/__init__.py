"""hf_lomdm: learnable-order masked diffusion language models with transformers and diffusers.

The model is imported at once, so that `AutoModel` knows it wherever `hf_lomdm` is imported. The
names that need more are imported when first used.
"""

import importlib

from .modeling import LoMDMConfig, LoMDMForMaskedDiffusion, LoMDMModel

__version__ = "0.1.0"

_WHEN_USED = {
    "LoMDMScheduler": "modeling.scheduling_lomdm",
    "LoMDMPipeline": "pipelines.pipeline_lomdm",
    "OrderAdapter": "adapters.order_adapter",
    "LoMDMDataCollator": "data.batches",
}
__all__ = ["LoMDMConfig", "LoMDMForMaskedDiffusion", "LoMDMModel", *_WHEN_USED]


def _make_pipeline(model: LoMDMForMaskedDiffusion):
    """What `model.generate` calls: a pipeline with the scheduler's defaults."""
    pipelines = importlib.import_module(f"{__name__}.pipelines")
    scheduling = importlib.import_module(f"{__name__}.modeling.scheduling_lomdm")
    config = model.config
    scheduler = scheduling.LoMDMScheduler(config.mask_token_id, block_size=config.block_size)
    pipe = pipelines.LoMDMPipeline(model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


LoMDMForMaskedDiffusion.make_pipeline = staticmethod(_make_pipeline)


def __getattr__(name: str):
    if name not in _WHEN_USED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_WHEN_USED[name]}")
    except AttributeError as error:  # `from hf_lomdm import name` would report a missing name
        raise ImportError(f"{name} cannot be imported: {error}") from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
