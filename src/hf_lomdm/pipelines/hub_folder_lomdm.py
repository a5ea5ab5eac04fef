"""A Hub folder: written aside, checked, moved, uploaded. This file travels to the Hub."""

import glob
import inspect
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
from huggingface_hub import HfApi
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

from .canvas_lomdm import require

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHT_FILES = (WEIGHTS, INDEX, "model-*-of-*.safetensors")
# Classes whose code travels, by the names of their files and their own: remote code lies in other
# packages.
OUR_CODE = (["pipeline_lomdm", "LoMDMPipeline"], ["scheduling_lomdm", "LoMDMScheduler"])
CARD = """---
library_name: transformers
pipeline_tag: fill-mask
tags: [lomdm, masked-diffusion, diffusers, custom_code]
---

"""
DEFAULT_CARD = """# {name}

A masked diffusion language model. This folder loads by `AutoModel.from_pretrained` and as a
pipeline by `DiffusionPipeline.from_pretrained`, both with `trust_remote_code=True`. Nothing is
recorded here about its quality.
"""


def check_target(target: str | os.PathLike, model_type: str) -> None:
    """Refuses a folder whose model would be replaced by one of another kind.

    A folder may be written again if it holds no model, or one whose `config.json` names the same
    `model_type`.

    Raises:
        ValueError: a file; a folder with another pipeline, with a model of another kind, or with
            weights of no known kind.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise ValueError(f"save_directory {target} is a file. Pass a folder.")
    pipeline, kind = (
        _entry(target / "model_index.json", "_class_name"),
        _entry(target / "config.json", "model_type"),
    )
    ours = isinstance(pipeline, list) and ("pipeline_lomdm" in pipeline or kind == model_type)
    if pipeline is not None and not ours:
        raise ValueError(
            f"save_directory {target} holds another pipeline ({pipeline}). Pass another folder."
        )
    if kind != model_type and (_weights(target) or (target / "config.json").exists()):
        raise ValueError(
            f"save_directory {target} holds a model of the kind {kind!r}, not {model_type!r}, "
            "whose weights would be replaced. Pass another folder."
        )


def _entry(path: Path, name: str) -> Any:
    """An entry of a JSON file; `None` without one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (ValueError, RecursionError):
        return path.name  # an unknown kind
    return content.get(name) if isinstance(content, dict) else path.name


def _weights(folder: Path) -> list[Path]:
    return [path for pattern in WEIGHT_FILES for path in folder.glob(pattern)]


def file_and_name(cls: type) -> list[str]:
    """How an index of diffusers names a class: its file and its name."""
    return [cls.__module__.split(".")[-1], cls.__name__]


def write_json(path: Path, content: dict) -> None:
    """Writes `content` with sorted keys, so that equal folders have equal files."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def copy_code(part: Any, folder: Path) -> None:
    """Copies the file of one of our classes and the siblings that it imports.

    For remote code they come from transformers' cache.
    """
    if file_and_name(type(part)) in OUR_CODE:
        source = inspect.getfile(type(part))
        for path in (source, *get_relative_import_files(source)):
            shutil.copy(path, folder)


def saveable_model(model: Any) -> PreTrainedModel:
    """The model of a pipeline, if all of it can be written as one folder."""
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps
    remedy = (
        "Merge PEFT adapters (get_peft_model, merge_and_unload), or save them alone "
        "(model.save_pretrained)."
    )
    wrong = f"model is a {type(model).__name__}, which cannot be saved as one folder. "
    require(isinstance(model, PreTrainedModel), wrong + remedy)
    wrong = (
        f"model carries the adapters {list(getattr(model, 'peft_config', ()))}, a Hub folder holds "
        "whole weights. "
    )
    require(not getattr(model, "_hf_peft_config_loaded", False), wrong + remedy)
    return model


def write_folder(
    pipe: Any, folder: Path, model: PreTrainedModel, max_shard_size: int | str | None
) -> None:
    """The layout: the model at the root with its code, and beside it what diffusers looks for."""
    sizes: dict[str, Any] = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    model.save_pretrained(folder, **sizes)
    (folder / "model").mkdir()
    for path in (folder / "config.json", *folder.glob("*.py")):
        shutil.copy(path, folder / "model")
    write_index(folder)
    pipe.scheduler.save_pretrained(folder / "scheduler")
    copy_code(pipe, folder)
    copy_code(pipe.scheduler, folder / "scheduler")
    if pipe.tokenizer is not None:
        pipe.tokenizer.save_pretrained(folder)
    _write_model_index(pipe, folder, type(model))


def _write_model_index(pipe: Any, folder: Path, model_class: type) -> None:
    tokenizer: list[str | None] = [None, None]
    if pipe.tokenizer is not None:
        tokenizer = [type(pipe.tokenizer).__module__.split(".")[0], type(pipe.tokenizer).__name__]
        wrong = (
            f"tokenizer is a {tokenizer[1]} of {tokenizer[0]}; a Hub folder takes those of "
            "transformers only. "
        )
        require(
            tokenizer[0] == "transformers",
            wrong + "Wrap it as transformers.PreTrainedTokenizerFast.",
        )
    content = {
        "_class_name": file_and_name(type(pipe)),
        "_diffusers_version": diffusers.__version__,
        "model": file_and_name(model_class),
        "scheduler": file_and_name(type(pipe.scheduler)),
        "tokenizer": tokenizer,
    }
    write_json(folder / "model_index.json", content)


def write_index(folder: Path) -> None:
    """Writes the index of `model/`, which points to the weights at the root.

    `model/` holds no weights itself, else clients fetch nothing but weights.
    """
    if (folder / INDEX).exists():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    else:
        with safe_open(folder / WEIGHTS, "pt") as weights:
            names = sorted(weights.keys())
        size = (folder / WEIGHTS).stat().st_size
        index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(names, WEIGHTS)}
    index["weight_map"] = {name: f"../{file}" for name, file in index["weight_map"].items()}
    write_json(folder / "model" / INDEX, index)


def card(text: str | None, name: str) -> str:
    """A model card: `text` behind the header that tells the Hub what this is, or a minimal text."""
    text = DEFAULT_CARD.format(name=name) if text is None else text
    return text if text.startswith("---") else CARD + text


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A new folder in the target, or beside a missing one, so that a rename is a move.

    It is gone afterwards.

    Those that a killed save has left behind go first.
    """
    # all else may be another file system, or not ours to write; uploads of the Trainer leave out
    # what begins with _
    place, prefix = (target, "_") if target.exists() else (target.parent, f".{target.name}_")
    for left in place.glob(f"{glob.escape(prefix)}{'[0-9a-f]' * 32}"):
        shutil.rmtree(left, ignore_errors=True)
    staging = place / f"{prefix}{uuid.uuid4().hex}"
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def move(staging: Path, target: Path, written: list[str]) -> None:
    """Moves the files, or a new folder as a whole, and removes weights of an earlier save."""
    if not target.exists():
        staging.rename(target)
        return
    for name in written:
        (target / name).parent.mkdir(exist_ok=True)
        os.replace(staging / name, target / name)
    for stale in [path for path in _weights(target) if path.name not in written]:
        stale.unlink()


def push(
    folder: Path,
    written: list[str],
    keep_card: bool,
    repo_id=None,
    private=None,
    token=None,
    **commit,
) -> Any:
    """Uploads the files and removes weights of an earlier upload; a card on the Hub stays."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id or folder.name, private=private, exist_ok=True).repo_id
    if keep_card and api.file_exists(repo_id, "README.md"):
        written = [name for name in written if name != "README.md"]
    commit = {"commit_message": "Upload LoMDMPipeline", **commit}
    patterns: dict[str, Any] = {"allow_patterns": written, "delete_patterns": list(WEIGHT_FILES)}
    return api.upload_folder(repo_id=repo_id, folder_path=folder, **patterns, **commit)
