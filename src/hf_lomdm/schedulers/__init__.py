"""`LoMDMScheduler` by its former place, for one release; it is in
`hf_lomdm.modeling.scheduling_lomdm`."""

from ..modeling.scheduling_lomdm import LoMDMScheduler, LoMDMSchedulerOutput

__all__ = ["LoMDMScheduler", "LoMDMSchedulerOutput"]
