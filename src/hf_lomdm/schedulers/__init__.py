"""`LoMDMScheduler` by its former place, for one release; it is now in `hf_lomdm.modeling`."""

from ..modeling.scheduling_lomdm import LoMDMScheduler, LoMDMSchedulerOutput

__all__ = ["LoMDMScheduler", "LoMDMSchedulerOutput"]
