"""`LoMDMPipeline`, told here which classes `from_pretrained` builds its components of."""

from ..modeling.modeling_lomdm import LoMDMForMaskedDiffusion
from ..schedulers.scheduling_lomdm import LoMDMScheduler
from .pipeline_lomdm import LoMDMPipeline, LoMDMPipelineOutput

# The pipeline file also travels to the Hub, where it may import no sibling: the package tells it.
LoMDMPipeline.component_classes = {"model": LoMDMForMaskedDiffusion, "scheduler": LoMDMScheduler}

__all__ = ["LoMDMPipeline", "LoMDMPipelineOutput"]
