"""One folder for the Hub from a trained model: weights once, tokenizer, scheduler, code and card."""

import copy
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..modeling.modeling_lomdm import LoMDMForMaskedDiffusion
from ..pipelines import LoMDMPipeline
from ..schedulers.scheduling_lomdm import LoMDMScheduler

AVERAGE = "ema.safetensors"  # beside the training weights in a checkpoint of the trainer


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
        model: a model, which is left as it is, or the folder of a checkpoint. In a trainer's `checkpoint-N` that has a
            moving average of the weights (`ema.safetensors`), the average is what is exported.
        output: the folder to write; it may be the folder of the checkpoint, unless that one has a moving average.
        tokenizer: default: the one in the checkpoint's folder, if there is one.
        scheduler_config: settings of `LoMDMScheduler`, such as `{"sampler": "ancestral"}`; they change those of the
            checkpoint's folder, or the default ones if it has none.
        dtype: of the exported floating-point weights; default: as they are.
        model_card: text of `README.md`; default: the one in `output`, or a line that promises nothing.
        save_options: `push_to_hub`, `repo_id`, `private`, `token`, `commit_message`, `max_shard_size` of
            `LoMDMPipeline.save_pretrained`.
    Returns:
        The path of the written folder.
    Raises:
        ValueError: as `LoMDMPipeline.save_pretrained`, if `dtype` is not a floating-point type, if the moving average
            does not fit the model, and if its checkpoint would be overwritten.
        OSError: if the checkpoint cannot be read or the folder cannot be written; nothing is half written then.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, got {dtype}. Pass for example torch.bfloat16.")
    settings = {}
    if isinstance(model, (str, os.PathLike)):
        source = _load(Path(model), Path(output), dtype)
        model, tokenizer = source.model, tokenizer or source.tokenizer
        settings = {name: value for name, value in source.scheduler.config.items() if not name.startswith("_")}
    else:
        model = model if dtype is None else copy.deepcopy(model).to(dtype)
        settings["block_size"] = model.config.block_size
    settings |= {**(scheduler_config or {}), "mask_token_id": model.config.mask_token_id}
    pipe = LoMDMPipeline(model, LoMDMScheduler(**settings), tokenizer)
    pipe.save_pretrained(output, model_card=model_card, **save_options)
    return Path(output)


def _load(folder: Path, output: Path, dtype: torch.dtype | None) -> LoMDMPipeline:
    """The pipeline of a checkpoint, with the moving average of its weights if there is one, in `dtype`."""
    average = folder / AVERAGE
    if average.is_file() and output.resolve() == folder.resolve():
        raise ValueError(
            f"output {output} is the checkpoint itself: its training weights would be replaced by their average "
            f"({AVERAGE}), and training could not resume from it. Pass another folder."
        )
    pipe = LoMDMPipeline.from_pretrained(folder)
    pipe = pipe if dtype is None else pipe.to(dtype)
    if average.is_file():
        _take_average(pipe.model, average)
    return pipe


@torch.no_grad()
def _take_average(model: LoMDMForMaskedDiffusion, path: Path) -> None:
    """Puts the averaged weights of `path` into the model; those that are not averaged were frozen."""
    weights = dict(model.named_parameters())
    for name, value in load_file(path).items():
        shape = tuple(weights[name].shape) if name in weights else None
        if shape != value.shape:
            raise ValueError(
                f"{path} holds {name} with shape {tuple(value.shape)}, the model has {shape}. "
                "Export the checkpoint that the average belongs to."
            )
        weights[name].copy_(value)
