"""A folder that holds what was trained and names its base. This file travels to the Hub.

What was trained are order heads, token rates, and low-rank updates (LoRA) of linear layers. The
base is a language model of transformers, or a model of this family.
"""

import copy
import hashlib
import os
from collections.abc import Iterable
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from .checkpoint_lomdm import Checkpoint, weight_shapes
from .pretrained_lomdm import Conversion, load_pretrained

HEADS = ("phi", "psi", "omega")  # modules that are held whole
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
PEFT_FILE, PEFT_PREFIX = "adapter_model.safetensors", "base_model.model."
FROM_THE_BASE = ("token", "cache_dir", "force_download", "local_files_only")


class Adapted(Conversion):
    """The part of a model that loads a folder without the weights of its base."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args,
        base: str | os.PathLike | PreTrainedModel | None = None,
        verify_base: bool = True,
        **kwargs,
    ) -> Any:
        """As `LoMDMPreTrainedModel.from_pretrained`; a folder without its base is put together.

        The result is a whole model: its updates are added to the weights of the base.

        Args:
            base: of a folder without its base: where that is now, or the base itself, which is then
                used up; default what `config.base` says.
            verify_base: refuse a base with other weights than those of the training.
        Raises:
            ValueError: also a base that does not fit.
        """
        name, config = pretrained_model_name_or_path, kwargs.get("config")
        if _base_of(cls, name, config, kwargs) is None:
            if base is not None:
                raise ValueError(f"{name} holds whole weights. Leave base= out.")
            return super().from_pretrained(name, *args, **kwargs)  # type: ignore[misc]
        return _assemble(cls, name, base, verify_base, kwargs)


def _base_of(model_class: Any, name: Any, config: Any, options: dict[str, Any]) -> dict | None:
    """What a folder says of its base; `None` where it holds whole weights."""
    if isinstance(config, PreTrainedConfig):
        return getattr(config, "base", None)
    if name is None:
        return None
    checkpoint = Checkpoint(name, options)
    if checkpoint.find("config.json") is None:
        return None
    fields, _ = model_class.config_class.get_config_dict(checkpoint.name, **checkpoint.download)
    return fields.get("base")


def _assemble(model_class: Any, name: Any, base: Any, verify: bool, options: dict[str, Any]) -> Any:
    """The base with the heads and the updates of the folder `name`, in eval mode."""
    checkpoint = Checkpoint(name, options)
    options = {key: value for key, value in options.items() if key not in checkpoint.download}
    wants_info = options.pop("output_loading_info", False)
    for key in ("_from_auto", "trust_remote_code", "use_safetensors", "adapter_kwargs"):
        options.pop(key, None)
    config = copy.deepcopy(options.pop("config", None))  # the caller's keeps its base
    if not isinstance(config, PreTrainedConfig):
        config = model_class.config_class.from_pretrained(name, **checkpoint.download)
    named, config.base = config.base, None  # what is put together is whole
    weights, dtype = read_adapted(checkpoint), _precision(options, config)
    options = _base_options(checkpoint, named, base, options)
    model = _load_base(model_class, config, named["name"] if base is None else base, options)
    if verify and not is_base(model, named):
        raise ValueError(
            f"the base of {name} does not have the weights that it was trained on "
            f"({named['name']}, revision {named.get('revision')}). Pass base= and the right one, "
            "or verify_base=False to take it as it is."
        )
    apply_weights(model, weights, named["lora_scale"], str(name))
    model = model.to(dtype).eval()
    model.name_or_path = str(name)
    none: dict[str, set] = {
        key: set() for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    return (model, {**none, "error_msgs": []}) if wants_info else model


def _base_options(
    checkpoint: Checkpoint, named: dict, base: Any, options: dict[str, Any]
) -> dict[str, Any]:
    """The options of the base's `from_pretrained`."""
    if options.get("quantization_config") is not None:
        raise ValueError(
            "quantization_config: low-rank updates cannot be added to quantised weights. Load "
            "without it, save the whole model, and quantise that."
        )
    if isinstance(base, PreTrainedModel):
        return {}
    fetch = {key: checkpoint.download[key] for key in FROM_THE_BASE if key in checkpoint.download}
    if base is None and named.get("revision") is not None:
        fetch["revision"] = named["revision"]
    return {**fetch, **options, "dtype": "auto"}


def _precision(options: dict[str, Any], config: Any) -> torch.dtype:
    """Takes out of the options what the whole model is to have; default that of the folder.

    The base is recognised by its weights as they are stored.
    """
    dtype = options.pop("dtype", options.pop("torch_dtype", None))
    dtype = config.dtype if dtype in (None, "auto") else dtype
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32


def _load_base(model_class: Any, config: Any, base: Any, options: dict[str, Any]) -> Any:
    """The model of `config` with the weights of its base, and heads of any value."""
    if config.backbone_config is None:
        is_model = isinstance(base, PreTrainedModel)
        if not is_model and _base_of(model_class, base, None, options) is not None:
            raise ValueError(f"the base {base} has a base itself. Pass base= and a whole model.")
        own = base if is_model else model_class.from_pretrained(base, **options)
        model = model_class(config).to(own.device, own.dtype)
        trunk = dict(base_weights(own))
        wrong = model.load_state_dict(trunk, strict=False)
        missing = [key for key in wrong.missing_keys if key.partition(".")[0] not in HEADS]
        if wrong.unexpected_keys or (missing and not config.tie_word_embeddings):
            raise ValueError(f"the base lacks {missing[:3]}. Pass the base of the training.")
        return model
    masked = type(config.backbone_config) in MODEL_FOR_MASKED_LM_MAPPING
    kind = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    return model_class.of_base(config, load_pretrained(kind, base, options))


def read_adapted(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Heads and updates of a folder, also of one that PEFT has written, by the model's names.

    Raises:
        ValueError: a file that cannot be read. OSError: no weights.
    """
    peft = checkpoint.find(PEFT_FILE)
    paths = checkpoint.weight_files() if peft is None else [peft]
    weight_shapes(paths)  # judged before memory is used
    weights: dict[str, Tensor] = {}
    for path in paths:
        weights |= load_file(path)
    return {key.removeprefix(PEFT_PREFIX): value for key, value in weights.items()}


@torch.no_grad()
def apply_weights(
    model: nn.Module, weights: dict[str, Tensor], lora_scale: float, name: str
) -> None:
    """Puts heads into a model, and adds low-rank updates `scale * B A` to its linear layers.

    Raises:
        ValueError: weights of other names or shapes than those of the model.
    """
    expected = {
        key: list(value.shape)
        for key, value in model.state_dict().items()
        if key.partition(".")[0] in HEADS
    }
    heads = {key: value for key, value in weights.items() if key.partition(".")[0] in HEADS}
    layers = {key.removesuffix(DOWN).removesuffix(UP) for key in weights.keys() - heads.keys()}
    for layer in layers:
        expected |= _update_shapes(model, weights, layer)
    found = {key: list(value.shape) for key, value in weights.items()}
    wrong = sorted(
        key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)
    )
    if wrong:
        raise ValueError(
            f"{name} does not fit its base: {wrong[0]} has the shape {found.get(wrong[0])}, "
            f"expected {expected.get(wrong[0])}. Export it again, or pass its own base."
        )
    model.load_state_dict(heads, strict=False)
    for layer in sorted(layers):
        module = model.get_submodule(layer)
        weight = cast(Tensor, module.weight)
        down, up = (weights[layer + end].to(weight.device).float() for end in (DOWN, UP))
        update = lora_scale * (up @ down)  # [out, in]
        update = update.T if isinstance(module, Conv1D) else update
        weight.copy_((weight.float() + update).to(weight.dtype))


def _update_shapes(model: nn.Module, weights: dict[str, Tensor], layer: str) -> dict[str, list]:
    """The shapes of the two factors of an update, with the rank that the first one has."""
    try:
        shape = list(cast(Tensor, model.get_submodule(layer).weight).shape)
    except AttributeError:
        return {}
    if len(shape) != 2 or layer + DOWN not in weights:
        return {}
    size_in, size_out = shape if isinstance(model.get_submodule(layer), Conv1D) else shape[::-1]
    rank = len(weights[layer + DOWN])
    return {layer + DOWN: [rank, size_in], layer + UP: [size_out, rank]}


def fingerprint(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype = torch.bfloat16) -> str:
    """A hash of names, shapes and values of weights in half precision.

    Values go into it in bfloat16 or float16: the same hash where they are held in float32.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(weights, key=lambda pair: pair[0]):
        digest.update(f"{name} {list(weight.shape)}".encode())
        half = weight.detach().reshape(-1).to("cpu", dtype)
        digest.update(half.view(torch.int16).numpy().data)
    return digest.hexdigest()


def base_weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and values of what is the base's in a model, also in one that PEFT has wrapped."""
    pairs = (
        (name.removeprefix(PEFT_PREFIX).replace(".base_layer.", "."), weight)
        for name, weight in model.named_parameters()
        if ".lora_" not in name
    )
    return [pair for pair in pairs if pair[0].partition(".")[0] not in HEADS]


def base_fingerprint(model: Any, dtype: torch.dtype = torch.bfloat16) -> str:
    """`fingerprint` of what is the base's in a model, but for the rows of special tokens.

    These may be new: means of the others, which depend on their precision.
    """
    rows = model.config.vocab_size
    special = {getattr(model.config, f"{name}_token_id") for name in ("mask", "pad", "bos", "eos")}
    kept = [index for index in range(rows) if index not in special]
    return fingerprint(
        (
            (name, weight[kept] if len(weight) == rows else weight)
            for name, weight in base_weights(model)
        ),
        dtype,
    )


def is_base(model: nn.Module, named: dict) -> bool:
    """Whether a model has the weights that `named` tells, in any precision.

    Weights that were rounded to one half precision have a fingerprint in that one only.
    """
    known = (named.get("fingerprint"), named.get("fingerprint_float16"))
    if known == (None, None):
        return True
    if known[0] == base_fingerprint(model):
        return True
    return known[1] == base_fingerprint(model, torch.float16)


def describe_base(model: Any, name: str, lora_scale: float) -> dict[str, Any]:
    """What `LoMDMConfig.base` says of the base in a model, by `name`."""
    config = model.config
    return {
        "name": name,
        "revision": getattr(config.backbone_config or config, "_commit_hash", None),
        "fingerprint": base_fingerprint(model),
        "fingerprint_float16": base_fingerprint(model, torch.float16),
        "lora_scale": lora_scale,
    }
