"""JSON records of measurements: what was measured, with the environment that it was measured in."""

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

import torch

_PACKAGES = ("torch", "transformers", "diffusers", "accelerate", "datasets", "safetensors")


def environment(device: str | torch.device, dtype: torch.dtype, seed: int) -> dict:
    """Versions, device, dtype, seed and commit: what a reader needs to repeat a measurement."""
    device = torch.device(device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "seed": seed,
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def write_record(path: str | Path, record: dict) -> None:
    """Writes `record` as JSON so that `path` is whole at any moment: beside its place first, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    package = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "--short", "HEAD"]
    try:
        root, commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:2]
    except (OSError, ValueError, subprocess.CalledProcessError):  # no git, or installed from a wheel
        return None
    return commit if package == Path(root).resolve() / "src" / "hf_lomdm" else None  # else of somebody's project
