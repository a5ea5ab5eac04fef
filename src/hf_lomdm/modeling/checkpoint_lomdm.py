"""The gate of every checkpoint: what a folder may hold, checked before a model is built from it.

This file travels to the Hub. Weights are judged from the headers of their files: nothing is
unpickled, and no memory is asked for that a `config.json` names.
"""

import inspect
import json
import os
import re
from collections.abc import Set
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import cached_file

from .fields_lomdm import MOST_LABELS, Number, shown

DOWNLOAD = ("revision", "token", "cache_dir", "force_download", "local_files_only", "subfolder")
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# suffixes of distributed checkpoints, which hold parts of weights
SHARDS = "shard-[0-9]*-model-[0-9]*-of-[0-9]*.safetensors"
LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.")
UNCOPIED = re.compile(r"^\s*from\s+\.+\s+import", re.MULTILINE)  # transformers overlooks it
REMEDY = "Export or download the model again."
SAME_EXPORT = "Take config.json and weights from the same export."


class Checkpoint:
    """The files of a folder or a Hub repository, `options` being those of `from_pretrained`.

    A folder that holds nothing but an adapter of PEFT stands for the base that it names, as in
    transformers.
    """

    def __init__(self, name_or_path: str | os.PathLike, options: dict[str, Any]):
        self.name, self.folder = (
            str(name_or_path),
            Path(name_or_path, options.get("subfolder") or ""),
        )
        self.variant = options.get("variant")
        self.download = {name: options[name] for name in DOWNLOAD if options.get(name) is not None}
        adapter = None if self.find(CONFIG) else self.find("adapter_config.json")
        if adapter is not None:
            self.name = str(_read_json(adapter).get("base_model_name_or_path"))
            self.folder = Path(self.name)

    def find(self, name: str) -> str | None:
        """The path of one of its files, downloaded if need be; `None` if it has none.

        Raises:
            OSError: `config.json`, which is asked for first, when the Hub cannot be reached.
        """
        strict = {"_raise_exceptions_for_missing_entries": name == CONFIG}
        return cached_file(self.name, name, **strict, **self.download)

    def weight_files(self) -> list[str]:
        """Paths of the safetensors files that hold the weights, all of them of this folder.

        Raises:
            ValueError: pickles, an index that is none or that leaves the folder. OSError: no
                weights.
        """
        shards = sorted(map(str, self.folder.glob(SHARDS)))
        if shards:  # transformers reads these in place of all else
            return shards
        weights, index = (self.find(self._of_variant(name)) for name in (WEIGHTS, INDEX))
        if weights is not None:
            return [weights]
        if index is not None:
            return [self._indexed(index, name) for name in _indexed_names(index)]
        pickles = sorted(path.name for pattern in PICKLES for path in self.folder.glob(pattern))
        pickles = [name for name in pickles if name != "training_args.bin"]
        if pickles:
            raise ValueError(
                f"{self.name} offers its weights as pickles ({', '.join(pickles)}), which can run "
                f"code when they are read. Ask for {WEIGHTS}, or convert files that you trust with "
                "safetensors.torch.save_file."
            )
        wanted = self._of_variant(WEIGHTS)
        raise OSError(
            f"no file named {wanted} in {self.name}. Pass a folder that save_pretrained has "
            "written."
        )

    def _of_variant(self, name: str) -> str:
        stem, _, suffix = name.rpartition(".")
        return name if self.variant is None else f"{stem}.{self.variant}.{suffix}"

    def _indexed(self, index: str, name: Any) -> str:
        """The path of a file that the index names; for `model/` of a Hub folder, one level up."""
        folder = Path(index).parent
        in_hub_folder = folder.name == "model" and (folder.parent / "model_index.json").is_file()
        inside = name.removeprefix("../") if isinstance(name, str) and in_hub_folder else name
        plain = (
            isinstance(inside, str)
            and Path(inside).name == inside
            and inside.endswith(".safetensors")
        )
        path = self.find(name) if plain else None
        if path is None:
            raise ValueError(
                f"{index} names {name!r}, which is no safetensors file of its folder. {REMEDY}"
            )
        return path


def check_checkpoint(
    model_class: type[PreTrainedModel],
    name_or_path: str | os.PathLike,
    /,
    *args,
    complete: bool = True,
    **options,
) -> None:
    """Refuses weights that are not those of the configuration, or that are not safe to read.

    Args:
        model_class: whose `from_pretrained` is called with `args` and `options`.
        complete: whether weights may not be missing either.
    Raises:
        ValueError: weights of another shape or depth than the configuration says, missing, broken,
            pickled or outside of the folder; a configuration that cannot be read. OSError: no
            weights, or no such folder or repository.
    """
    for name in ("trust_remote_code", "dtype", "torch_dtype"):
        options.pop(name, None)  # these do not change files or shapes
    checkpoint = Checkpoint(name_or_path, options)
    config = _configuration(model_class, checkpoint.name, options)
    files = checkpoint.weight_files()
    shapes = weight_shapes(files)
    if config.backbone_config is None:  # layers of other backbones have names of their own
        _check_depth(checkpoint.name, shapes, config.num_hidden_layers)
    # quantized weights and parts of weights have shapes of their own
    quantized = getattr(config, "quantization_config", None) is not None
    if quantized or options.get("ignore_mismatched_sizes") or fnmatch(Path(files[0]).name, SHARDS):
        return
    try:
        with torch.device("meta"):
            model = model_class(config, *args)
    except TypeError:
        # a subclass with arguments of its own; transformers compares when it has built it
        return
    expected = {_bare(name): list(value.shape) for name, value in model.state_dict().items()}
    tied = map(_bare, model._tied_weights_keys or ()) if config.tie_word_embeddings else ()
    check_shapes(
        checkpoint.name,
        {_bare(name): shape for name, shape in shapes.items()},
        expected,
        set(tied),
        complete,
    )


def _configuration(
    model_class: type[PreTrainedModel], source: str, options: dict[str, Any]
) -> PreTrainedConfig:
    """The configuration of the model, taken out of `options` where it is passed there."""
    config = options.pop("config", None)
    if not isinstance(config, PreTrainedConfig):
        _check_type(model_class.config_class, config or source, options)
    # AutoModel passes the configuration
    chosen = not isinstance(config, PreTrainedConfig) and not options.get("_from_auto")
    if not isinstance(config, PreTrainedConfig):
        config = model_class.config_class.from_pretrained(config or source, **options)
    name, author = model_class.__name__, (config.architectures or [None])[0]
    if not chosen and author not in (None, name):
        raise ValueError(
            f"{source} was saved by {author}, not {name}. Load it by {author}.from_pretrained."
        )
    return config


def _check_type(kind: type[PreTrainedConfig], source: Any, options: dict[str, Any]) -> None:
    """Refuses the configuration of another kind of model: its fields mean something else here."""
    written = kind.get_config_dict(source, **options)[0].get("model_type")
    known = {getattr(parent, "model_type", None) for parent in kind.__mro__}
    if written and written not in known:
        raise ValueError(
            f"{source} holds a model of type {written!r}, not {kind.model_type!r}. A language "
            "model of transformers becomes one by from_causal_lm or from_masked_lm."
        )


def read_tokenizer(source: str | os.PathLike, **options) -> PreTrainedTokenizerBase:
    """`AutoTokenizer.from_pretrained`, which reads a `config.json` too and runs no code of others.

    Raises:
        ValueError: more labels there than memory holds.
    """
    download = {name: options[name] for name in DOWNLOAD if name in options}
    path = cached_file(source, CONFIG, _raise_exceptions_for_missing_entries=False, **download)
    labels = None if path is None else _read_json(path).get("num_labels")
    if labels not in Number(int, 0, MOST_LABELS, optional=True):
        raise ValueError(f"{path} has num_labels={shown(labels)}. {REMEDY}")
    return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)


def _check_depth(source: str, shapes: dict[str, list[int]], num_layers: int) -> None:
    """Refuses weights of another depth, before that many layers are built."""
    layers = {match[1] for match in map(LAYER.match, shapes) if match}
    if len(layers) != num_layers:
        raise ValueError(
            f"the weights of {source} have {len(layers)} layers, its configuration says "
            f"num_hidden_layers={num_layers}. {SAME_EXPORT}"
        )


def code_map(model: PreTrainedModel) -> dict[str, str]:
    """What `config.json` says of the code that `model.save_pretrained` takes along, if any.

    Raises:
        ValueError: a class whose code is to travel imports files that cannot: transformers copies
            `from .sibling`.
    """
    cls = type(model)
    if cls._auto_class is None or cls.__module__ == "__main__":
        return {}
    source = inspect.getfile(cls)
    try:
        files = [source, *get_relative_import_files(source)]
    except FileNotFoundError as error:
        files = [error.filename]
    if UNCOPIED.search(Path(source).read_text(encoding="utf-8")) or not all(
        map(os.path.isfile, files)
    ):
        raise ValueError(
            f"{cls.__name__} cannot take its code along: {source} imports relatively what is no "
            "file beside it, as in `from .sibling import X`. Import it by its full name, or do not "
            "register the class."
        )
    names = {
        "AutoConfig": type(model.config),
        "AutoModel": cls,
        "AutoModelForMaskedLM": cls,
        cls._auto_class: cls,
    }
    return {
        auto: f"{named.__module__.split('.')[-1]}.{named.__name__}"
        for auto, named in names.items()
        if inspect.getfile(named) in files
    }


def check_shapes(
    name: str,
    found: dict[str, Any],
    expected: dict[str, Any],
    optional: Set[str] = frozenset(),
    complete: bool = True,
) -> None:
    """Raises `ValueError` if the weights `found` in `name` have other shapes than `expected`.

    If it must be `complete`, none but `optional` ones may be missing. Unexpected ones are judged
    when it is read.
    """
    wrong = [key for key in sorted(found.keys() & expected.keys()) if found[key] != expected[key]]
    if wrong:
        pairs = ", ".join(f"{key} {found[key]} instead of {expected[key]}" for key in wrong[:3])
        raise ValueError(
            f"{len(wrong)} weights of {name} have other shapes than its configuration says: "
            f"{pairs}. {SAME_EXPORT}"
        )
    missing = sorted(expected.keys() - found.keys() - optional)
    if missing and complete:
        raise ValueError(
            f"{name} does not fit its configuration: missing {missing[:5]}. {SAME_EXPORT}"
        )


def weight_shapes(paths: list[str]) -> dict[str, list[int]]:
    """Name and shape of every weight, from the headers of safetensors files.

    Raises:
        ValueError: a file that is cut off or something else.
    """
    shapes: dict[str, list[int]] = {}
    for path in paths:
        try:
            with safe_open(path, "pt") as weights:
                names = weights.keys()  # the file itself is not iterable
                shapes |= {name: weights.get_slice(name).get_shape() for name in names}
        except SafetensorError as error:
            raise ValueError(
                f"{error}: {path} is cut off, or no safetensors file. {REMEDY}"
            ) from error
    return shapes


def _bare(name: str) -> str:
    """A key as the backbone alone has it: each loads the weights of the other."""
    return name.removeprefix("model.")


def _indexed_names(path: str) -> list[Any]:
    names = _read_json(path).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{path} has no weight_map. {REMEDY}")
    return list({repr(name): name for name in names.values()}.values())


def _read_json(path: str) -> dict:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}. {REMEDY}") from error
    return content if isinstance(content, dict) else {}
