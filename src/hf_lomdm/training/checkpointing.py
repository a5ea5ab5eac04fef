"""Checkpoint folders that are complete or absent, whatever happens while they are written.

A checkpoint is written to a folder beside its place, flushed to the disk and renamed. A folder that is being written
or removed has a name that starts with `_`, which resuming ignores, cleaning removes and Hub uploads leave out.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

MANIFEST = "complete.json"
# What the optimizer and the draws of a checkpoint go on with, whatever a resumed run is told: settings of its
# `training_record.json`, and fields of its `config.json`.
FIXED = {
    "training_record.json": (
        *("learning_rate", "head_learning_rate", "muon_learning_rate", "frozen_modules", "lr_scheduler_type", "seed"),
    ),
    "config.json": (
        *("rate_type", "block_size", "c1", "c2", "bound", "time_epsilon", "time_range", "num_views", "dropout"),
        *("base_name", "base_fingerprint"),
    ),
}
_PREFIX = "_checkpoint-"


class CheckpointError(ValueError):
    """A checkpoint that a run cannot go on from; says which and what to do."""


def staging_folder(output_dir: str | Path, step: int) -> Path:
    """Where the checkpoint of `step` is written before it is complete."""
    return Path(output_dir) / f"{_PREFIX}{step}-incomplete"


def publish(staged: Path, final: Path) -> None:
    """Moves the folder `staged` to `final` so that `final` is complete at any moment that it exists.

    The manifest lists the size of each file, every file and folder is flushed to the disk, then the folder is renamed.
    A folder that already has the name `final` is replaced.
    """
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    sizes = {str(path.relative_to(staged)): path.stat().st_size for path in files}
    manifest = staged / MANIFEST
    manifest.write_text(json.dumps(sizes, indent=1))
    for path in (*files, manifest, *(path for path in staged.rglob("*") if path.is_dir()), staged):
        _flush(path)
    remove(final)
    staged.rename(final)
    _flush(final.parent)


def remove(folder: Path) -> None:
    """Removes a folder if it is there; it loses its name first, so that no half of it is taken for a checkpoint."""
    if not folder.is_dir():
        return
    doomed = folder.with_name(f"{_PREFIX}{folder.name.removeprefix('checkpoint-')}-removed")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def clean(output_dir: str | Path) -> None:
    """Removes what interrupted writing and interrupted removing have left in `output_dir`."""
    for folder in Path(output_dir).glob(f"{_PREFIX}*"):
        if re.fullmatch(rf"{_PREFIX}\d+-(incomplete|removed)", folder.name):
            shutil.rmtree(folder)


def rotate(output_dir: str | Path, limit: int | None, keep: set[Path]) -> None:
    """Removes the oldest complete checkpoints until `limit` are left, but none of `keep`; `None` or 0 keeps all."""
    checkpoints = complete_checkpoints(output_dir)
    surplus = len(checkpoints) - limit if limit else 0
    removable = [folder for folder in checkpoints if folder not in keep]
    for folder in removable[: max(surplus, 0)]:
        remove(folder)


def complete_checkpoints(output_dir: str | Path) -> list[Path]:
    """Complete checkpoints of `output_dir`, oldest step first."""
    found = [folder for folder in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", folder.name)]
    return sorted((folder for folder in found if is_complete(folder)), key=lambda folder: int(folder.name[11:]))


def is_complete(folder: Path) -> bool:
    """Whether `folder` has its manifest and every file of it in full size."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    sizes = json.loads(manifest.read_text())
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def choose_checkpoint(resume_from: str | bool | None, output_dir: str | Path) -> Path | None:
    """The checkpoint to resume from, or `None` to start anew.

    Args:
        resume_from: `"auto"`, the newest complete checkpoint of `output_dir` if there is one; `True`, the same but
            there must be one; a folder; `None` or `False`, no checkpoint.
    Raises:
        CheckpointError: a folder that is not a complete checkpoint, or no checkpoint where there must be one.
    """
    if resume_from in (None, False):
        return None
    if resume_from is True or resume_from == "auto":
        newest = complete_checkpoints(output_dir)[-1:]
        if not newest and resume_from is True:
            raise CheckpointError(f"resume_from_checkpoint is True, but {output_dir} has no complete one. Pass 'auto'.")
        return newest[0] if newest else None
    folder = Path(resume_from)
    if not is_complete(folder):
        raise CheckpointError(
            f"resume_from_checkpoint={str(folder)!r} is not a complete checkpoint: its {MANIFEST} is missing or names "
            "files that are missing or cut. Pass 'auto' for the newest complete one of output_dir."
        )
    return folder


def check_same_run(folder: Path, settings: dict[str, Any], config: dict[str, Any]) -> None:
    """Raises `CheckpointError` if the checkpoint `folder` cannot go on with `settings` and the model's `config`.

    It would go on with its own ones for the most part, and its records would say otherwise.
    """
    for name, now in (("training_record.json", {"settings": settings}), ("config.json", config)):
        before = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
        before, now = before.get("settings", before), json.loads(json.dumps(now.get("settings", now), default=str))
        for key in FIXED[name]:
            if key in before and key in now and before[key] != now[key]:
                raise CheckpointError(
                    f"{folder} was trained with {key}={before[key]!r}, not {now[key]!r}, and cannot go on with that. "
                    "Pass the old value, or another output_dir for another run."
                )
    if not (folder / "scheduler.pt").is_file() and not list(folder.glob("global_step*")):  # DeepSpeed has its own
        raise CheckpointError(
            f"{folder} has no optimizer state (save_only_model=True), so training cannot go on from it. Pass another "
            "output_dir."
        )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
