"""`LoMDMPipeline`, told here how `from_pretrained` loads with the package's own classes."""

from .loading import load_pipeline
from .pipeline_lomdm import LoMDMPipeline, LoMDMPipelineOutput

# The pipeline file also travels to the Hub, where this loader does not: the package tells it.
LoMDMPipeline.loader = staticmethod(load_pipeline)

__all__ = ["LoMDMPipeline", "LoMDMPipelineOutput"]
