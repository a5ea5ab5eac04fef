"""One folder for the Hub from a trained model: weights once, tokenizer, scheduler, code and card."""

import copy
import os
from pathlib import Path
from typing import Any

import torch

from ..modeling.modeling_lomdm import LoMDMForMaskedDiffusion
from ..pipelines import LoMDMPipeline
from ..schedulers.scheduling_lomdm import LoMDMScheduler


def export_to_hub_folder(
    model: LoMDMForMaskedDiffusion | str | os.PathLike,
    output: str | os.PathLike,
    tokenizer: Any = None,
    scheduler_config: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    model_card: str | None = None,
    **save_options,
) -> Path:
    """Writes the Hub folder of a model, as `LoMDMPipeline.save_pretrained` lays it out, and uploads it if asked to.

    Args:
        model: a model, which is left as it is, or the folder of a checkpoint.
        output: the folder to write; it may be the folder of the checkpoint.
        tokenizer: default: the one in the checkpoint's folder, if there is one.
        scheduler_config: settings of `LoMDMScheduler`, such as `{"sampler": "ancestral"}`.
        dtype: of the exported floating-point weights; default: as they are.
        model_card: text of `README.md`; default: the one in `output`, or a line that promises nothing.
        save_options: `push_to_hub`, `repo_id`, `private`, `token`, `commit_message`, `max_shard_size` of
            `LoMDMPipeline.save_pretrained`.
    Returns:
        The path of the written folder.
    Raises:
        ValueError: as `LoMDMPipeline.save_pretrained`, and if `dtype` is not a floating-point type.
        OSError: if the checkpoint cannot be read or the folder cannot be written; nothing is half written then.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, got {dtype}. Pass for example torch.bfloat16.")
    if isinstance(model, (str, os.PathLike)):
        source = LoMDMPipeline.from_pretrained(model)
        model, tokenizer = source.model, tokenizer or source.tokenizer
    elif dtype is not None:
        model = copy.deepcopy(model)
    scheduler = LoMDMScheduler(mask_token_id=model.config.mask_token_id, **(scheduler_config or {}))
    pipe = LoMDMPipeline(model if dtype is None else model.to(dtype), scheduler, tokenizer)
    pipe.save_pretrained(output, model_card=model_card, **save_options)
    return Path(output)
