"""One folder for the Hub: weights once, tokenizer, scheduler, code and card."""

import copy
import functools
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi

from ..modeling.adapted_lomdm import read_adapted
from ..modeling.checkpoint_lomdm import Checkpoint
from ..modeling.configuration_lomdm import LoMDMConfig
from ..modeling.modeling_lomdm import LoMDMForMaskedDiffusion
from ..modeling.scheduling_lomdm import LoMDMScheduler
from ..pipelines import LoMDMPipeline
from ..pipelines.hub_folder_lomdm import check_target
from ..training import model_card as cards
from ..training.ema import AVERAGE, take_average
from ..training.uploading import explained_upload

# A model that differs in one of these is no version of the same one.
IDENTITY = ("vocab_size", "hidden_size", "num_hidden_layers", "rate_type")


def export_to_hub_folder(
    model: LoMDMForMaskedDiffusion | str | os.PathLike,
    output: str | os.PathLike,
    tokenizer: Any = None,
    scheduler_config: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    model_card: str | None = None,
    base_name: str | None = None,
    **save_options,
) -> Path:
    """Writes the Hub folder of a model (`LoMDMPipeline.save_pretrained`) and may upload it.

    Args:
        model: a model, which is left as it is, or the folder of a checkpoint. In a trainer's
            `checkpoint-N` that has a moving average of the weights (`ema.safetensors`), the average
            is what is exported.
        output: the folder to write; it may be the folder of the checkpoint, unless that one has a
            moving average.
        tokenizer: default: the one in the checkpoint's folder, if there is one.
        scheduler_config: settings of `LoMDMScheduler`, such as `{"sampler": "ancestral"}`; they
            change those of the checkpoint's folder, or the default ones if it has none.
        dtype: of the exported floating-point weights; default: as they are.
        model_card: text of `README.md`; default: the card that somebody wrote for `output` or for
            the checkpoint; else one from the checkpoint's `training_record.json`, with a picture of
            the order if matplotlib is there; else a line that promises nothing.
        base_name: of the folder of an adapter, which is written without the weights of its base:
            where users find these; default where the run did.
        save_options: `push_to_hub`, `repo_id`, `private`, `token`, `commit_message`,
            `max_shard_size` of `LoMDMPipeline.save_pretrained`.
    Returns:
        The path of the written folder.
    Raises:
        ValueError: as `LoMDMPipeline.save_pretrained`, if `dtype` is not a floating-point type, if
            the moving average does not fit the model, and if its checkpoint or a model of another
            size or kind would be overwritten.
        OSError: if the checkpoint cannot be read or the folder cannot be written; nothing is half
            written then.
        ConnectionError: if the upload fails (an `OSError` too): the folder is complete, the
            repository as it was, and the same call again completes it.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(
            f"dtype must be a floating-point type, got {dtype}. Pass for example torch.bfloat16."
        )
    settings, output = {}, Path(output)
    record, picture = None, False
    if isinstance(model, (str, os.PathLike)):
        folder = Path(model)
        record = cards.TrainingRecord.load(folder)
        model_card = _hand_written(folder, output) if model_card is None else model_card
        source = _load(folder, output, dtype)
        model, tokenizer = source.model, tokenizer or source.tokenizer
        _leave_base_out(model, folder, base_name)
        stored = source.scheduler.config.items()
        settings = {name: value for name, value in stored if not name.startswith("_")}
    else:
        model = model if dtype is None else copy.deepcopy(model).to(dtype)
        settings["block_size"] = model.config.block_size
    _check_replaced(output, model.config)
    settings |= {**(scheduler_config or {}), "mask_token_id": model.config.mask_token_id}
    pipe = LoMDMPipeline(model, LoMDMScheduler(**settings), tokenizer)
    by_hand = model_card is not None or cards.is_written_by_hand(output / "README.md")
    if record is not None and not by_hand:
        name, picture = save_options.get("repo_id") or output.resolve().name, cards.can_draw(pipe)
        about = cards.describe_diffusion(model.config)
        model_card = cards.model_card(name, about, record, picture=picture)
    repo_id = save_options.get("repo_id") or output.name
    with explained_upload(f"{output} is written, but was not uploaded to {repo_id}"):
        pipe.save_pretrained(output, model_card=model_card, **save_options)
        if record is not None:
            _add_record(pipe, output, record, picture)
            if save_options.get("push_to_hub"):
                _upload_record(output, save_options)
    return output


def _check_replaced(output: Path, config: LoMDMConfig) -> None:
    """Refuses to replace a model that is not a version of this one."""
    check_target(output, config.model_type)
    if not (output / "config.json").is_file():
        return
    there, ours = LoMDMConfig.get_config_dict(output)[0], config.to_dict()
    for name in IDENTITY:
        if name in there and there[name] != ours.get(name):
            raise ValueError(
                f"output {output} holds another model, with {name}={there[name]!r}, not "
                f"{ours.get(name)!r}, which would be replaced. Pass another folder."
            )


def _leave_base_out(model: LoMDMForMaskedDiffusion, folder: Path, base_name: str | None) -> None:
    """Lets a model of an adapter's folder save what that folder holds, and name its base."""
    named = LoMDMConfig.get_config_dict(folder)[0].get("base")
    if named is None:
        if base_name is not None:
            raise ValueError(
                f"base_name={base_name!r} has no effect: {folder} holds whole weights. Leave it "
                "out, or export the folder of the adapter."
            )
        return
    weights = read_adapted(Checkpoint(folder, {}))
    if model.dtype != model.config.dtype:
        weights = {key: value.to(model.dtype) for key, value in weights.items()}
    model.config.base = named if base_name is None else {**named, "name": base_name}
    # its own weights are whole ones
    model.save_pretrained = functools.partial(model.save_pretrained, state_dict=weights)


def _add_record(
    pipe: LoMDMPipeline, output: Path, record: cards.TrainingRecord, picture: bool
) -> None:
    record.save(output)
    if picture:
        cards.draw_picture(pipe, output / cards.PICTURE_FILE)


def _upload_record(output: Path, options: dict[str, Any]) -> None:
    """Uploads record and picture, which belong to the card and not to the pipeline."""
    api, names = HfApi(token=options.get("token")), [cards.RECORD_FILE, cards.PICTURE_FILE]
    api.upload_folder(
        repo_id=options.get("repo_id") or output.name, folder_path=output, allow_patterns=names
    )


def _hand_written(source: Path, output: Path) -> str | None:
    """The card that somebody wrote for the checkpoint, where the output has none."""
    by_hand = cards.is_written_by_hand(source / "README.md") and not (output / "README.md").exists()
    return (source / "README.md").read_text(encoding="utf-8") if by_hand else None


def _load(folder: Path, output: Path, dtype: torch.dtype | None) -> LoMDMPipeline:
    """The pipeline of a checkpoint in `dtype`, with averaged weights if there are any."""
    if (folder / AVERAGE).is_file() and output.resolve() == folder.resolve():
        raise ValueError(
            f"output {output} is the checkpoint itself: its training weights would be replaced by "
            f"their average ({AVERAGE}), and training could not resume from it. Pass another "
            "folder."
        )
    kind = LoMDMConfig.get_config_dict(folder)[0].get("model_type") or "lomdm"
    if not kind.startswith("lomdm"):
        raise ValueError(
            f"{folder} holds a {kind}, which needs no code of ours: it loads and uploads as it is."
        )
    pipe = LoMDMPipeline.from_pretrained(folder)
    pipe = pipe if dtype is None else pipe.to(dtype)
    take_average(pipe.model, folder)
    return pipe
