"""`LoMDMPipeline.from_pretrained` where the package is installed: no remote code takes part."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoTokenizer

from ..modeling.modeling_lomdm import LoMDMForMaskedDiffusion
from ..schedulers.scheduling_lomdm import LoMDMScheduler

DOWNLOAD = ("revision", "token", "cache_dir", "force_download", "local_files_only")


def load_pipeline(pipeline_class: type, name_or_path: str | os.PathLike, **kwargs) -> Any:
    """A pipeline from a folder or a Hub repository, as described at `LoMDMPipeline.from_pretrained`.

    Raises:
        ValueError: weights that are missing or unexpected, with their names.
    """
    kwargs.pop("trust_remote_code", None)
    given = {name: kwargs.pop(name) for name in ("model", "scheduler", "tokenizer") if name in kwargs}
    folder = _fetch(name_or_path, {name: kwargs.pop(name) for name in DOWNLOAD if name in kwargs})
    if "torch_dtype" in kwargs:
        kwargs["dtype"] = kwargs.pop("torch_dtype")
    model = given.get("model") or _load_model(folder, kwargs)
    scheduler = given.get("scheduler")
    if scheduler is None and (folder / "scheduler").is_dir():
        scheduler = LoMDMScheduler.from_pretrained(folder / "scheduler")
    elif scheduler is None:
        scheduler = LoMDMScheduler(mask_token_id=model.config.mask_token_id, block_size=model.config.block_size)
    tokenizer = given.get("tokenizer")
    if "tokenizer" not in given and (folder / "tokenizer_config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(folder)
    pipe = pipeline_class(model=model, scheduler=scheduler, tokenizer=tokenizer)
    pipe.register_to_config(_name_or_path=str(name_or_path))
    return pipe


def _load_model(folder: Path, options: dict[str, Any]) -> LoMDMForMaskedDiffusion:
    """The model, with every weight from the checkpoint: transformers would only warn and leave random ones."""
    model, report = LoMDMForMaskedDiffusion.from_pretrained(folder, output_loading_info=True, **options)
    wrong = {name: sorted(map(str, report[name]))[:3] for name in ("missing_keys", "unexpected_keys") if report[name]}
    if wrong:
        raise ValueError(f"the checkpoint {folder} does not fit its config.json: {wrong}. Export the model again.")
    return model


def _fetch(name_or_path: str | os.PathLike, download: dict[str, Any]) -> Path:
    """The folder itself, or the snapshot of a repository; code files are left out."""
    if os.path.isdir(name_or_path):
        return Path(name_or_path)
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    return Path(snapshot_download(str(name_or_path), allow_patterns=patterns, **download))
