"""`LoMDMPipeline.from_pretrained` where the package is installed: no remote code runs, nothing is unpickled."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedConfig

from ..modeling.configuration_lomdm import LoMDMConfig
from ..modeling.modeling_lomdm import LoMDMForMaskedDiffusion
from ..schedulers.scheduling_lomdm import LoMDMScheduler

DOWNLOAD = ("revision", "token", "cache_dir", "force_download", "local_files_only")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
LAYER = "model.layers."
CLASSES = {
    "_class_name": [["pipeline_lomdm", "LoMDMPipeline"]],
    "model": [["modeling_lomdm", "LoMDMForMaskedDiffusion"], ["order_adapter", "OrderAdapter"]],
    "scheduler": [["scheduling_lomdm", "LoMDMScheduler"]],
}


def load_pipeline(pipeline_class: type, name_or_path: str | os.PathLike, **kwargs) -> Any:
    """A pipeline from a folder or a Hub repository, as described at `LoMDMPipeline.from_pretrained`.

    Raises:
        ValueError: weights that are missing, unexpected, of another shape than `config.json` says, broken, pickled or
            outside of the folder; a configuration that cannot be read; a `model_index.json` that names other classes.
            Nothing has been built from them then.
        OSError: no weights at all, or no such folder or repository.
    """
    kwargs.pop("trust_remote_code", None)
    given = {name: kwargs.pop(name) for name in ("model", "scheduler", "tokenizer") if name in kwargs}
    folder = _fetch(name_or_path, {name: kwargs.pop(name) for name in DOWNLOAD if name in kwargs})
    _check_classes(folder / "model_index.json")
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
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)  # else it would ask at a terminal
    pipe = pipeline_class(model=model, scheduler=scheduler, tokenizer=tokenizer)
    pipe.register_to_config(_name_or_path=str(name_or_path))
    return pipe


def _check_classes(path: Path) -> None:
    """Refuses the folder of another pipeline, whose code would not run here but whose author expects it to."""
    if not path.is_file():
        return
    index = json.loads(path.read_text(encoding="utf-8"))
    for name, known in CLASSES.items():
        found = index.get(name) if isinstance(index, dict) else index
        if found not in known:
            raise ValueError(
                f"{path} names {found} as {name}, not {known[0]}: this is not a folder of LoMDMPipeline. "
                "Load it with DiffusionPipeline if you trust its author."
            )


def _load_model(folder: Path, options: dict[str, Any]) -> LoMDMForMaskedDiffusion:
    """The model, with every weight from the checkpoint: transformers would only warn and leave random ones."""
    if PreTrainedConfig.get_config_dict(folder)[0].get("model_type") == "lomdm_order_adapter":
        from ..adapters import OrderAdapter  # which few need, and which needs the evaluation

        return OrderAdapter.from_pretrained(folder, **options)
    check_weights(folder)
    options = {**options, "use_safetensors": True, "output_loading_info": True}
    model, report = LoMDMForMaskedDiffusion.from_pretrained(folder, **options)
    wrong = {name: sorted(map(str, report[name]))[:3] for name in ("missing_keys", "unexpected_keys") if report[name]}
    if wrong:
        raise ValueError(f"the checkpoint {folder} does not fit its config.json: {wrong}. Export the model again.")
    return model


def check_weights(folder: Path) -> None:
    """Refuses a folder whose weights are not those that its `config.json` describes, from their headers alone.

    Raises:
        ValueError: as `load_pipeline`. OSError: no weights.
    """
    config = _read_config(folder)
    shapes: dict[str, list[int]] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, "pt") as weights:
                shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}
        except SafetensorError as error:
            raise ValueError(
                f"{error}: {path} is cut off, or no safetensors file. Download or export the model again."
            ) from error
    if getattr(config, "quantization_config", None) is None:  # quantized weights have shapes of their own
        _check_shapes(folder, config, shapes)


def _read_config(folder: Path) -> LoMDMConfig:
    try:
        config = LoMDMConfig.from_pretrained(folder)
    except TypeError as error:  # a string or a list where a number belongs
        raise ValueError(
            f"{folder / 'config.json'} holds a value of a wrong type: {error}. Export it again."
        ) from error
    if getattr(config, "transformers_weights", None) is not None:
        raise ValueError(f"{folder / 'config.json'} names a weight file of its own (transformers_weights). Remove it.")
    return config


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, all of them inside it."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return [folder / name for name in _indexed_files(folder / INDEX)]
    pickles = sorted(
        path.name for pattern in PICKLES for path in folder.glob(pattern) if path.name != "training_args.bin"
    )
    if pickles:
        raise ValueError(
            f"{folder} offers its weights as pickles ({', '.join(pickles)}), which can run code when they are read. "
            f"Ask for {WEIGHTS}, or convert files that you trust with safetensors.torch.save_file."
        )
    raise OSError(f"no file named {WEIGHTS} in {folder}. Pass a folder that save_pretrained has written.")


def _indexed_files(path: Path) -> list[str]:
    content = json.loads(path.read_text(encoding="utf-8"))
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{path} has no weight_map. Export the model again.")
    for name in set(names.values()):
        inside = isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")
        if not inside or not (path.parent / name).is_file():
            raise ValueError(
                f"{path} names {name!r}, which is no safetensors file of its folder. Export the model again."
            )
    return sorted(set(names.values()))


def _check_shapes(folder: Path, config: LoMDMConfig, shapes: dict[str, list[int]]) -> None:
    """Compares before anything is allocated: a configuration may ask for terabytes, or for ten million layers."""
    layers = {name.removeprefix(LAYER).split(".")[0] for name in shapes if name.startswith(LAYER)}
    remedy = "Take config.json and weights from the same export."
    if len(layers) != config.num_hidden_layers:
        raise ValueError(
            f"{folder / 'config.json'} says num_hidden_layers={config.num_hidden_layers}, the weights have "
            f"{len(layers)}. {remedy}"
        )
    with torch.device("meta"):
        expected = {name: list(value.shape) for name, value in LoMDMForMaskedDiffusion(config).state_dict().items()}
    wrong = [name for name in sorted(shapes.keys() & expected.keys()) if shapes[name] != expected[name]]
    if wrong:
        pairs = ", ".join(f"{name} {shapes[name]} instead of {expected[name]}" for name in wrong[:3])
        raise ValueError(
            f"{len(wrong)} weights of {folder} have other shapes than its config.json says: {pairs}. {remedy}"
        )


def _fetch(name_or_path: str | os.PathLike, download: dict[str, Any]) -> Path:
    """The folder itself, or the snapshot of a repository; code files are left out."""
    if os.path.isdir(name_or_path):
        return Path(name_or_path)
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    return Path(snapshot_download(str(name_or_path), allow_patterns=patterns, **download))
