"""Checkpoints of the public MDLM and BD3-LM code: read without running any code of theirs."""

import json
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# No weights of the network, or computed on the fly here
_IGNORED = re.compile(r"(rotary_emb\.inv_freq$|noise\.|sampling_eps_(min|max)$)")


@dataclass
class PublicCheckpoint:
    """What a checkpoint of the public code holds.

    state: its weights, keys without prefixes, in the order of the file.
    settings: the content of its `config.json`, empty for a Lightning file.
    averaged: whether the weights are a moving average; `None` if the file does not say (a Hub
        folder).
    """

    state: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    averaged: bool | None = None


def read_public_checkpoint(path: str | os.PathLike, ema: bool | None = None) -> PublicCheckpoint:
    """Reads the folder of a Hub repository, or a Lightning file with its moving average.

    Only tensors and plain containers are made from what is read. Objects of other classes, which a
    Lightning file has among its hyperparameters, become empty: nothing of theirs is imported or
    called.

    Args:
        path: a folder with `config.json` and `model.safetensors` or `pytorch_model.bin`, or a file
            of Lightning.
        ema: `True`, the moving average; `False`, the weights themselves; `None`, the average where
            there is one: it is what the public code evaluates and samples with.
    Raises:
        ValueError: a path without a checkpoint, a file that is truncated or holds anything but
            weights, or `ema` that the checkpoint cannot satisfy.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, ema)
    if not path.is_file():
        raise ValueError(
            f"checkpoint {path} does not exist. Pass a Lightning file or a folder with config.json."
        )
    content = _read_pickle(path, inert=True)
    if not isinstance(content, Mapping) or "state_dict" not in content:
        raise ValueError(
            f"checkpoint {path} is no Lightning file: it has no state_dict. Pass the folder of a "
            "Hub one."
        )
    state = _clean(content["state_dict"], path)
    average = content.get("ema")
    if ema and average is None:
        raise ValueError(
            f"ema=True, but {path} has no moving average. Leave it out to convert the weights "
            "themselves."
        )
    if average is None or ema is False:
        return PublicCheckpoint(state, averaged=False)
    return PublicCheckpoint(_averaged_state(state, average, path), averaged=True)


def _read_folder(folder: Path, ema: bool | None) -> PublicCheckpoint:
    if ema is not None:
        raise ValueError(
            f"ema={ema} is for Lightning files: the folder {folder} has one set of weights. Leave "
            "it out."
        )
    candidates = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not candidates or not (folder / "config.json").is_file():
        raise ValueError(
            f"checkpoint {folder} must hold config.json and one of {WEIGHTS}. Download it again."
        )
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{folder / 'config.json'} is no JSON: {error}. Download it again."
        ) from error
    if not isinstance(settings, dict):
        raise ValueError(
            f"{folder / 'config.json'} must hold a mapping, got {type(settings).__name__}."
        )
    content = (
        _read_safetensors(candidates[0])
        if candidates[0].suffix == ".safetensors"
        else _read_pickle(candidates[0])
    )
    return PublicCheckpoint(_clean(content, candidates[0]), settings)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file: {error}. Download it again."
        ) from error


def _read_pickle(path: Path, inert: bool = False) -> Any:
    """What `torch.save` wrote; with `inert`, objects that are not plain become empty."""
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if inert else []
        with torch.serialization.safe_globals([_inert_class(name) for name in foreign]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        # torch's own text first advises to load the file without protection
        reason = (
            re.split(r"trusted source\.|WeightsUnpickler error:", str(error))[-1]
            .strip()
            .split("\n")[0][:200]
        )
        raise ValueError(
            f"{path} is truncated, or holds more than weights, and was not read further: {reason}. "
            "Download it again from a place that you trust; nothing of it was run."
        ) from error


class _Inert:
    """Stands for an object of a foreign class: takes what it is built from, keeps nothing."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state):
        pass


def _inert_class(name: str) -> type:
    """An `_Inert` that torch's restricted unpickler takes for the class or function `name`."""
    module, _, qualname = name.rpartition(".")
    return type(qualname, (_Inert,), {"__module__": module, "__qualname__": qualname})


def _clean(content: Any, path: Path) -> dict[str, Tensor]:
    """Keys without the prefixes of Lightning, of the Hub class and of `torch.compile`."""
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} must hold a mapping of names to weights, got {type(content).__name__}."
        )
    wrong = [
        key
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if wrong:
        raise ValueError(
            f"{path} has entries that are no weights: {wrong[:5]}. It is no MDLM or BD3-LM."
        )
    return strip_prefixes(content)


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys without those of `torch.compile` and of the Hub class."""
    return {
        key.replace("_orig_mod.", "").removeprefix("backbone."): value
        for key, value in state.items()
    }


def _averaged_state(state: dict[str, Tensor], average: Any, path: Path) -> dict[str, Tensor]:
    """`state` with the moving average of its parameters, which are listed without names.

    They stand in the order of the module.
    """
    shadow = average.get("shadow_params") if isinstance(average, Mapping) else None
    layout = public_layout(state)
    names = list(layout) + [key for key in state if key.startswith("noise.")]
    expected = [tuple(state[name].shape) if name in state else None for name in names]
    if (
        not isinstance(shadow, list)
        or [tuple(getattr(tensor, "shape", ())) for tensor in shadow] != expected
    ):
        raise ValueError(
            f"ema of {path} does not belong to its weights: their numbers, order or shapes differ. "
            "Pass ema=False (--no_ema) to convert the weights themselves."
        )
    return {**state, **dict(zip(names, shadow, strict=True))}


# --------------------------------------------------------------------------------- sizes and layout


def public_layout(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of the public network, in the order of its module.

    The sizes are those of `state` (keys without prefixes): vocabulary and width of the embedding,
    width of the MLP and of the conditioning, number of blocks.

    Raises:
        ValueError: if `state` lacks the weights that tell the sizes.
    """
    shapes = {}
    for key in ("vocab_embed.embedding", "blocks.0.mlp.0.weight", "sigma_map.mlp.0.weight"):
        if key not in state or state[key].ndim != 2:
            raise ValueError(f"state lacks the key {key!r}: it is no complete MDLM or BD3-LM.")
        shapes[key] = tuple(state[key].shape)
    (vocabulary, width), (inner, _), (condition, sinusoid) = shapes.values()
    layout = {"vocab_embed.embedding": (vocabulary, width)}
    layout |= _linear("sigma_map.mlp.0", condition, sinusoid) | _linear(
        "sigma_map.mlp.2", condition, condition
    )
    for index in range(num_blocks(state)):
        block = f"blocks.{index}"
        layout[f"{block}.norm1.weight"] = (width,)
        layout[f"{block}.attn_qkv.weight"] = (3 * width, width)
        layout[f"{block}.attn_out.weight"] = (width, width)
        layout[f"{block}.norm2.weight"] = (width,)
        layout |= _linear(f"{block}.mlp.0", inner, width) | _linear(f"{block}.mlp.2", width, inner)
        layout |= _linear(f"{block}.adaLN_modulation", 6 * width, condition)
    layout["output_layer.norm_final.weight"] = (width,)
    layout |= _linear("output_layer.linear", vocabulary, width)
    return layout | _linear("output_layer.adaLN_modulation", 2 * width, condition)


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def num_blocks(state: Mapping[str, Tensor]) -> int:
    """Layers that the weights have."""
    return 1 + max(
        (int(key.split(".")[1]) for key in state if re.match(r"blocks\.\d+\.", key)), default=-1
    )


def check_layout(state: Mapping[str, Tensor]) -> None:
    """Raises `ValueError` for keys that are missing or unknown, and for shapes that do not fit."""
    layout = public_layout(state)
    for key, shape in layout.items():
        if key not in state:
            raise ValueError(f"state lacks the key {key!r}: it is no complete MDLM or BD3-LM.")
        if tuple(state[key].shape) != shape:
            raise ValueError(
                f"state has {key!r} of shape {tuple(state[key].shape)}, its other weights need "
                f"{shape}."
            )
    unknown = sorted(key for key in state if key not in layout and not _IGNORED.match(key))
    if unknown:
        raise ValueError(
            f"state has unknown keys {unknown}: convert only checkpoints of MDLM and BD3-LM."
        )
