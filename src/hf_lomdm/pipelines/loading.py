"""`LoMDMPipeline.from_pretrained` with the package: no remote code, nothing is unpickled."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import PipelineQuantizationConfig
from huggingface_hub import snapshot_download

from ..modeling.checkpoint_lomdm import read_tokenizer
from ..modeling.configuration_lomdm import LoMDMConfig
from ..modeling.modeling_lomdm import LoMDMForMaskedDiffusion
from ..modeling.scheduling_lomdm import LoMDMScheduler
from .hub_folder_lomdm import file_and_name

COMPONENTS = ("model", "scheduler", "tokenizer")
DOWNLOAD = ("revision", "token", "cache_dir", "force_download", "local_files_only")
# Options of diffusers' loader that change nothing here with these values. With others they are
# refused by name.
WITHOUT_EFFECT = {
    "custom_revision": (None,),
    "custom_pipeline": (None,),
    "disable_mmap": (None, False),
    "load_connected_pipeline": (None, False),
    "low_cpu_mem_usage": (None, True, False),  # models are built without memory for weights anyway
    "mirror": (None,),
    "offload_state_dict": (None, True, False),
    "output_loading_info": (None, False),
    "provider": (None,),
    "provider_options": (None,),
    "proxies": (None,),
    "sess_options": (None,),
    "trust_remote_code": (None, True, False),  # no code of the folder runs
    "use_flashpack": (None, False),
    "use_onnx": (None, False),
    "use_safetensors": (None, True),
}
CLASSES = {
    "_class_name": [["pipeline_lomdm", "LoMDMPipeline"]],
    "model": [["modeling_lomdm", "LoMDMForMaskedDiffusion"], ["order_adapter", "OrderAdapter"]],
    "scheduler": [["scheduling_lomdm", "LoMDMScheduler"]],
}


def load_pipeline(pipeline_class: type, name_or_path: str | os.PathLike, **kwargs) -> Any:
    """A pipeline from a folder or a Hub repository, as `LoMDMPipeline.from_pretrained` says.

    Raises:
        ValueError: weights or a configuration that `check_checkpoint` refuses, a `model_index.json`
            that names other classes, options that cannot be honoured. Nothing has been built then.
        OSError: no weights at all, or no such folder or repository.
    """
    given = {name: kwargs.pop(name) for name in COMPONENTS if name in kwargs}
    download = {name: kwargs.pop(name) for name in DOWNLOAD if name in kwargs}
    options = _model_options(given, kwargs)
    folder = _fetch(name_or_path, download)
    _check_classes(folder / "model_index.json", pipeline_class, given)
    parts = {"tokenizer": None, **given}
    if "model" not in given:
        parts["model"] = _load_model(folder, options)
    if "scheduler" not in given:
        parts["scheduler"] = _load_scheduler(folder / "scheduler", parts["model"].config)
    if "tokenizer" not in given and (folder / "tokenizer_config.json").exists():
        with _readable(f"the tokenizer of {folder}"):
            parts["tokenizer"] = read_tokenizer(folder)
    pipe = pipeline_class(**parts)
    pipe.register_to_config(_name_or_path=str(name_or_path))
    return pipe


def _model_options(given: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options of the model's `from_pretrained` among those of diffusers' loader."""
    for name, values in WITHOUT_EFFECT.items():
        if options.get(name) not in values:
            raise ValueError(
                f"{name}={options[name]!r} has no effect on a LoMDMPipeline. Leave it out."
            )
    for name in ("model", "scheduler"):
        if name in given and given[name] is None:
            raise ValueError(
                f"{name}=None: a LoMDMPipeline needs one. Leave it out to load that of the folder."
            )
    options = {
        name: value
        for name, value in options.items()
        if name not in WITHOUT_EFFECT and value is not None
    }
    older = options.pop("torch_dtype", None)
    if older is not None and options.setdefault("dtype", older) != older:
        raise ValueError(
            f"dtype={options['dtype']} and torch_dtype={older} differ. Pass dtype alone."
        )
    if "model" in given and options:
        raise ValueError(
            f"{sorted(options)} are of the stored model, but model= is given. Apply them to that "
            "one."
        )
    if "dtype" in options:
        options["dtype"] = _dtype(options["dtype"])
    if isinstance(options.get("quantization_config"), PipelineQuantizationConfig):
        options["quantization_config"] = _quantization(options["quantization_config"])
    return options


def _dtype(dtype: Any) -> torch.dtype | str:
    """The model's dtype of a dtype per component; `default` stands for all not named."""
    per_component = dtype if isinstance(dtype, dict) else {"model": dtype}
    unknown = sorted(map(str, per_component.keys() - {*COMPONENTS, "default"}))
    if unknown:
        raise ValueError(
            f"dtype names {unknown}, a LoMDMPipeline has {list(COMPONENTS)}. Name model or default."
        )
    chosen = per_component.get("model", per_component.get("default", torch.float32))
    is_dtype = chosen == "auto" or isinstance(
        getattr(torch, chosen, None) if isinstance(chosen, str) else chosen, torch.dtype
    )
    if not is_dtype:
        raise ValueError(f"dtype must be a dtype of torch, its name or 'auto', got {chosen!r}.")
    return chosen


def _quantization(config: PipelineQuantizationConfig) -> Any:
    """What a quantization per component says of the model."""
    named = set(config.quant_mapping or config.components_to_quantize or ["model"])
    if named != {"model"}:
        raise ValueError(
            f"quantization_config names {sorted(named)}, a LoMDMPipeline can quantise ['model'] "
            "alone."
        )
    return config._resolve_quant_config(is_diffusers=False, module_name="model")


def _check_classes(path: Path, pipeline_class: type, given: dict[str, Any]) -> None:
    """Refuses the folder of another pipeline, whose own code would not run here."""
    if not path.is_file():
        return
    with _readable(path):
        index = json.loads(path.read_text(encoding="utf-8"))
    for name, classes in CLASSES.items():
        written = index.get(name) if isinstance(index, dict) else index
        if (
            written not in classes
            and name not in given
            and written != file_and_name(pipeline_class)
        ):
            raise ValueError(
                f"{path} names {written} as {name}, not {classes[0]}: this is not a folder of "
                f"LoMDMPipeline. Load it by the class that wrote it, pass its component ({name}=), "
                "or trust its author's DiffusionPipeline."
            )


def _load_model(folder: Path, options: dict[str, Any]) -> LoMDMForMaskedDiffusion:
    if LoMDMConfig.get_config_dict(folder)[0].get("model_type") == "lomdm_order_adapter":
        from ..adapters import OrderAdapter  # heavy, and few models need it

        adapter: Any = OrderAdapter.from_pretrained(folder, **options)
        return adapter
    try:
        return LoMDMForMaskedDiffusion.from_pretrained(folder, _from_auto=True, **options)
    except TypeError as error:  # an option that neither the pipeline nor the model knows
        raise ValueError(f"{error}. Leave it out.") from error


def _load_scheduler(folder: Path, config: LoMDMConfig) -> LoMDMScheduler:
    if not folder.is_dir():
        return LoMDMScheduler(mask_token_id=config.mask_token_id, block_size=config.block_size)
    with _readable(folder):
        return LoMDMScheduler.from_pretrained(folder)


@contextmanager
def _readable(source: str | Path) -> Iterator[None]:
    """Turns what a broken file raises into a `ValueError`; tokenizers raises bare `Exception`."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{source} cannot be read: {reason}. Export or download it again."
        ) from error


def _fetch(name_or_path: str | os.PathLike, download: dict[str, Any]) -> Path:
    """The folder itself, or the snapshot of a repository; code files are left out."""
    if os.path.isdir(name_or_path):
        return Path(name_or_path)
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    return Path(snapshot_download(str(name_or_path), allow_patterns=patterns, **download))
