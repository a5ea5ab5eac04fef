"""JSON records of measurements: what was measured, with the environment that it was measured in."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import uuid
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "transformers", "diffusers", "accelerate", "datasets", "safetensors")


def environment(device: str | torch.device, dtype: torch.dtype, seed: int) -> dict:
    """Versions, device, dtype, seed and commit: what a reader needs to repeat a measurement."""
    device = torch.device(device)
    return {
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or "cpu",
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "seed": seed,
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def record_name(*words: str) -> str:
    """The name of a record: what was measured on what; of a path, the last two parts."""
    parts = ("-".join(Path(word).parts[-2:]) for word in words)
    return (
        "-".join(re.sub(r"[^.=+_0-9A-Za-z]+", "-", part)[-60:].strip("-") for part in parts)
        + ".json"
    )


def check_output(path: str | Path, measured: dict[str, Any]) -> None:
    """Refuses to replace anything but a record of the same measurement; called at the start.

    Args:
        path: where the record is to be. measured: what tells measurements apart, as it will be in
            the record.
    Raises:
        ValueError: a folder, a file that is no record, or a record in which one of `measured` is
            another.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder. Pass the name of a file.")
    if not holds_file(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    try:
        present = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        present = None
    if not isinstance(present, dict):
        raise ValueError(
            f"--output {path} is there and no record. Pass another --output, or delete it."
        )
    for name, ours in json.loads(json.dumps(measured)).items():
        if (theirs := present.get(name)) != ours:
            # name only the fields that differ
            if isinstance(ours, dict) and isinstance(theirs, dict):
                keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
                theirs, ours = (
                    {key: record[key] for key in keys if key in record} for record in (theirs, ours)
                )
            raise ValueError(
                f"--output {path} is the record of something else: its {name} is {theirs!r}, not "
                f"{ours!r}. Pass another --output, or delete it."
            )


def holds_file(path: str | Path) -> bool:
    """Whether `path` is or can be a file: not a device, a pipe, or this process's output."""
    path = Path(path)
    return not path.exists() or (path.is_file() and _own_output(path) is None)


def write_record(path: str | Path, record: dict) -> None:
    """Writes `record` as JSON by `write_file`."""
    write_file(path, (json.dumps(record, indent=2) + "\n").encode())


def write_file(path: str | Path, content: bytes) -> None:
    """Writes a file so that it is whole at any moment: beside its place first, then renamed.

    A symbolic link stays one: what it names is replaced. Devices, pipes and standard output are
    written to and stay.
    """
    if not holds_file(path):
        own = _own_output(Path(path))
        with open(path if own is None else os.dup(own), "wb") as stream:
            stream.write(content)
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{uuid.uuid4().hex}.partial")  # two writers never share it
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _own_output(path: Path) -> int | None:
    """The number of this process's output or error if `path` is it (`/dev/stdout`)."""
    for number in (1, 2):
        try:
            if os.path.samestat(path.stat(), os.fstat(number)):
                return number
        except OSError:  # closed
            pass
    return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    package = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "--short", "HEAD"]
    try:
        root, commit = subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.split("\n")[:2]
    except (OSError, ValueError, subprocess.CalledProcessError):
        # no git, or installed from a wheel
        return None
    # else the commit would be another project's
    return commit if package == Path(root).resolve() / "src" / "hf_lomdm" else None
