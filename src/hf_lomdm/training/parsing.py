"""The arguments of a training run, from configuration files and the command line."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from ..data.arguments import DataArguments
from .arguments import LoMDMTrainingArguments, ModelArguments, check_modes


class _Parser(HfArgumentParser):
    """Its errors are one line, without the page of usage."""

    def error(self, message: str):
        raise ValueError(f"{message}. Run with --help for all names.")

    def convert(self, path: Path, key: str, value: Any) -> Any:
        """A setting of the file `path` in the type of its key; `None` stays `None`.

        Raises:
            ValueError: a value that the key cannot have; names the file and the key.
        """
        action = self._option_string_actions[f"--{key}"]  # no public name of argparse has the type
        try:
            if value is None or (action.nargs != "+" and type(value) in _container_types(key)):
                return value
            if action.nargs == "+" and value != []:
                return [
                    _convert(action, item)
                    for item in (value if isinstance(value, list) else [value])
                ]
            return _convert(action, value)
        except argparse.ArgumentTypeError as error:
            self.error(f"{key} in {path}: {error}")
        except (TypeError, ValueError):
            self.error(f"{key} in {path}: invalid {action.type.__name__} value: {value!r}")


def _convert(action: argparse.Action, value: Any) -> Any:
    if isinstance(value, (dict, list)):
        raise TypeError
    # YAML may give another type: a whole number for a float, a number for a name, a text for
    # 1e-3
    value = value if type(value) is action.type else action.type(str(value))
    if action.choices is not None and value not in action.choices:
        choices = ", ".join(map(repr, action.choices))
        raise argparse.ArgumentTypeError(f"invalid choice: {value!r} (choose from {choices})")
    return value


def _container_types(key: str) -> set[type]:
    """Which of lists and dictionaries a setting can be beside a single value."""
    hints = {name: hint for part in PARTS for name, hint in get_type_hints(part).items()}
    return {get_origin(kind) or kind for kind in get_args(hints[key])} & {dict, list}


# Settings that say where the text of a run is; one on the command line replaces those of files.
SOURCE = (
    *("dataset_name", "dataset_config", "dataset_revision", "train_file", "validation_file"),
    *("train_split", "validation_split"),
)
PARTS = (DataArguments, ModelArguments, LoMDMTrainingArguments)
HELP = (
    "--config FILE.yaml, once or more, reads any of these settings from a file. Later files win, "
    "this line over all."
)


def parse_arguments(
    arguments: Sequence[str] | None = None,
) -> tuple[DataArguments, ModelArguments, LoMDMTrainingArguments]:
    """Parses `[--config FILE.yaml ...] [--key value ...]`.

    Later files win over earlier ones, the command line wins over all; a text that it names takes
    the place of the one in the files, with its validation text and its splits. With `init_from` and
    no tokenizer named, the tokenizer is that of `init_from`. Without an `output_dir` a run writes
    to `outputs/` and the names of its files, so that `--config owt.yaml --config mdlm.yaml` gives
    `outputs/owt-mdlm`.

    Args:
        arguments: the words of the command line; default `sys.argv[1:]`.
    Raises:
        ValueError: a key that does not exist, in a file or on the command line; a value that its
            key cannot have or that has no effect; a file that cannot be read; an `output_dir` in a
            file that others overlay: all overlays would share it.
    """
    files, words = _split_off_configs(list(sys.argv[1:] if arguments is None else arguments))
    named = {
        word.split("=")[0].lstrip("-").replace("-", "_") for word in words if word.startswith("--")
    }
    parser = _Parser(PARTS, allow_abbrev=False, description=HELP)
    settings = _overlay(files, parser, named="output_dir" in named)
    if "num_train_epochs" in named and "max_steps" not in named:
        settings.pop("max_steps", None)  # the file's max_steps would win over the command line
    if named & {"dataset_name", "train_file"}:  # another text than that of the files
        settings = {key: value for key, value in settings.items() if key not in SOURCE}
    parser.set_defaults(**settings)
    *parts, unknown = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    if unknown:
        raise ValueError(f"Unknown argument {unknown[0]!r}. Run with --help for all names.")
    data, model, training = parts
    check_modes(data, model, training)
    if model.init_from and not (data.tokenizer or data.train_tokenizer):
        data.tokenizer = model.init_from
    return data, model, training


def _split_off_configs(words: list[str]) -> tuple[list[Path], list[str]]:
    """The files of `--config` in their order, and the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", type=Path, default=[])
    try:
        parsed, words = parser.parse_known_args(words)
    except argparse.ArgumentError:
        message = (
            "--config needs a file. Pass for example --config training_scripts/configs/tiny.yaml."
        )
        raise ValueError(message) from None
    return parsed.config, words


def _overlay(files: list[Path], parser: _Parser, named: bool) -> dict[str, Any]:
    """The settings of all files, later ones on top; `named`: the command line has output_dir."""
    settings: dict[str, Any] = {}
    for path in files:
        if "output_dir" in settings and not named:
            raise ValueError(
                f"output_dir={settings['output_dir']!r} is set by a file that {path} overlays, so "
                "runs with other overlays would resume from each other. Leave it out of the file, "
                "or pass --output_dir."
            )
        settings |= {
            key: parser.convert(path, key, value) for key, value in read_config(path).items()
        }
    if files:
        settings.setdefault("output_dir", "outputs/" + "-".join(path.stem for path in files))
    # without a value the default holds
    return {key: value for key, value in settings.items() if value is not None}


def read_config(path: Path) -> dict[str, Any]:
    """The settings of the flat YAML file `path`.

    Raises:
        ValueError: a missing file, one that is not a flat mapping, or a key that is no argument.
    """
    import yaml  # installed by the extra `train`

    if not path.is_file():
        raise ValueError(
            f"--config {path} does not exist. The shipped ones are in training_scripts/configs."
        )
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--config {path} is no YAML that can be read: {' '.join(str(error).split())}."
        ) from error
    if not isinstance(settings, dict):
        raise ValueError(f"--config {path} must hold lines of the form `key: value`.")
    names = {argument.name for part in PARTS for argument in fields(part) if argument.init}
    for key in settings:
        if key not in names:
            raise ValueError(
                f"Unknown key {key!r} in {path}. Run training_scripts/train.py --help for all "
                "names."
            )
    return settings
