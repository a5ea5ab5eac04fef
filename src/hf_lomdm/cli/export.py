"""Turns a checkpoint into a folder for the Hub, and uploads it if asked to.

    lomdm export outputs/owt --output export/lomdm-owt --dtype bfloat16 --push org/lomdm-owt
    lomdm export outputs/tiny --output export/lomdm-tiny

The folder of an adapter (LoRA) is written without the weights of its base, which it names.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from hf_lomdm.cli.errors import user_errors
from hf_lomdm.cli.option_types import nonempty
from hf_lomdm.hub import export_to_hub_folder
from hf_lomdm.modeling.scheduling_lomdm import SAMPLERS


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model_help = (
        "folder of the checkpoint; where it holds a moving average (ema.safetensors), the average "
        "is exported"
    )
    parser.add_argument("--model", type=nonempty, required=True, help=model_help)
    parser.add_argument("--output", type=nonempty, required=True, help="folder to write")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored"
    )
    parser.add_argument(
        "--sampler",
        choices=SAMPLERS,
        help="sampler of the folder's scheduler; default: the checkpoint's",
    )
    parser.add_argument("--model_card", type=Path, help="file whose text becomes README.md")
    parser.add_argument(
        "--base_name",
        type=nonempty,
        help="for an adapter: the name of its base on the Hub; default: the name in the run",
    )
    parser.add_argument("--max_shard_size", help='for example "5GB"')
    parser.add_argument(
        "--push", "--repo_id", dest="repo_id", metavar="REPO_ID", help="upload to this repository"
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    return parser.parse_args(arguments)


@user_errors()
def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    if options.private and options.repo_id is None:
        raise ValueError("--private needs --push: nothing is uploaded without it.")
    if not Path(options.model).is_dir():
        remedy = "Pass the output_dir of a run, or one of its checkpoints"
        raise ValueError(f"--model {options.model} is no folder. {remedy}.")
    upload = {}
    if options.repo_id is not None:
        upload = {
            "push_to_hub": True,
            "repo_id": options.repo_id,
            "private": options.private or None,
        }
    folder = export(options, upload)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(f"{path.stat().st_size:>12,}  {path.relative_to(folder)}")


def export(options: argparse.Namespace, upload: dict[str, Any]) -> Path:
    """Writes the folder and, if `upload` says so, uploads it."""
    return export_to_hub_folder(
        options.model,
        options.output,
        scheduler_config=None if options.sampler is None else {"sampler": options.sampler},
        dtype=None if options.dtype is None else getattr(torch, options.dtype),
        model_card=None
        if options.model_card is None
        else options.model_card.read_text(encoding="utf-8"),
        base_name=options.base_name,
        max_shard_size=options.max_shard_size,
        **upload,
    )
