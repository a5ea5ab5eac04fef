"""Checkpoint folders that are complete or absent, whatever happens while they are written.

A checkpoint is written to a folder beside its place, flushed to the disk and renamed. A folder that
is being written or removed has a name that starts with `_`, which resuming ignores, cleaning
removes and Hub uploads leave out. What the disk has changed since is found by the checksums of the
manifest.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

logger = logging.getLogger(__name__)

MANIFEST = "complete.json"
LOCK = "_lock"  # no upload takes what begins with _
_PREFIX = "_checkpoint-"
# Files of a checkpoint and of `LoMDMPipeline.save_pretrained`.
_LEFT_OVER = re.compile(rf"{_PREFIX}\d+-(incomplete|removed)|[._][0-9a-f]{{32}}")
_LOCKS: dict[tuple[int, Path], IO] = {}


class RunError(ValueError):
    """A run that cannot begin, or go on from its checkpoint; says why and what to do."""


def staging_folder(output_dir: str | Path, step: int) -> Path:
    """Where the checkpoint of `step` is written before it is complete."""
    return Path(output_dir) / f"{_PREFIX}{step}-incomplete"


def publish(staged: Path, final: Path) -> None:
    """Moves the folder `staged` to `final`, which is complete whenever it exists.

    The manifest lists size and SHA-256 of each file, every file and folder is flushed to the disk,
    then the folder is renamed. A folder that already has the name `final` is replaced.
    """
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    entries = {
        path.relative_to(staged).as_posix(): [path.stat().st_size, _digest(path)] for path in files
    }
    manifest = staged / MANIFEST
    manifest.write_text(json.dumps(entries, indent=1))
    for path in (*files, manifest, *(path for path in staged.rglob("*") if path.is_dir()), staged):
        _flush(path)
    remove(final)
    staged.rename(final)
    _flush(final.parent)


def remove(folder: Path) -> None:
    """Removes a folder, which loses its name first: no half of it passes for a checkpoint."""
    if not folder.is_dir():
        return
    doomed = folder.with_name(f"{_PREFIX}{folder.name.removeprefix('checkpoint-')}-removed")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def clean(output_dir: str | Path) -> None:
    """Removes what interrupted writing and removing have left in `output_dir`."""
    for folder in [*Path(output_dir).glob("[._]*"), *Path(output_dir).glob("*/_*")]:
        if _LEFT_OVER.fullmatch(folder.name) and folder.is_dir():
            shutil.rmtree(folder)


def describe_last(output_dir: str | Path) -> str:
    """Which checkpoint a run that stops now has left."""
    for last in reversed(complete_checkpoints(output_dir)):
        return f"{last} is saved, the same command goes on from it"
    return "there is no checkpoint"


def rotate(output_dir: str | Path, limit: int | None, keep: set[Path]) -> None:
    """Removes the oldest complete checkpoints down to `limit`, none of `keep`; 0 keeps all."""
    checkpoints = complete_checkpoints(output_dir)
    surplus = len(checkpoints) - limit if limit else 0
    removable = [folder for folder in checkpoints if folder not in keep]
    for folder in removable[: max(surplus, 0)]:
        remove(folder)


def complete_checkpoints(output_dir: str | Path) -> list[Path]:
    """Complete checkpoints of `output_dir`, oldest step first."""
    return [folder for folder in _checkpoint_folders(output_dir) if is_complete(folder)]


def is_complete(folder: Path) -> bool:
    """Whether `folder` has its manifest and every file of it in full size."""
    return find_fault(folder, checksums=False) is None


def find_fault(folder: Path, checksums: bool = True) -> str | None:
    """What is wrong with the files of a checkpoint by its manifest, in words; `None` if nothing is.

    Args:
        checksums: whether to read the files too; else their sizes must do.
    """
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        # checkpoints of earlier versions list sizes only
        recorded = {
            name: entry if isinstance(entry, list) else [entry, None]
            for name, entry in entries.items()
        }
        for name, (size, digest) in recorded.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != size:
                return f"{name} is missing or cut"
            if checksums and digest is not None and _digest(path) != digest:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, AttributeError) as error:
        return f"{MANIFEST} is missing or damaged ({type(error).__name__})"
    return None if recorded else f"{MANIFEST} is empty"


def choose_checkpoint(resume_from: str | bool | None, output_dir: str | Path) -> Path | None:
    """The checkpoint to resume from, or `None`; one that is not intact is passed over.

    Args:
        resume_from: `"auto"`, the newest intact checkpoint of `output_dir` if there is any
            checkpoint; `True`, the same but there must be one; a folder; `None` or `False`, no
            checkpoint.
    Raises:
        RunError: a folder that is not an intact checkpoint, no intact one among those of
            `output_dir`, or no checkpoint where there must be one.
    """
    if resume_from in (None, False):
        return None
    if resume_from is not True and resume_from != "auto":
        fault = find_fault(Path(resume_from))
        if fault:
            raise RunError(
                f"resume_from_checkpoint={str(resume_from)!r} is not a complete checkpoint: "
                f"{fault}. Pass 'auto' for the newest intact one of output_dir."
            )
        return Path(resume_from)
    folders = _checkpoint_folders(output_dir)
    for folder in reversed(folders):
        fault = find_fault(folder)
        if fault is None:
            return folder
        logger.warning("%s is passed over: %s.", folder, fault)
    if folders:
        raise RunError(
            f"{output_dir} has checkpoints, but none is intact; {folders[-1].name}: "
            f"{find_fault(folders[-1])}. Remove them to start anew, or pass another output_dir."
        )
    if resume_from is True:
        raise RunError(
            f"resume_from_checkpoint is True, but {output_dir} has no complete one. Pass 'auto'."
        )
    return None


def lock(output_dir: str | Path) -> None:
    """Keeps other processes from training in `output_dir` until this one ends, however it ends.

    Raises:
        RunError: another process trains there.
    """
    try:
        import fcntl  # not on Windows
    except ImportError:
        return
    path = Path(output_dir).resolve() / LOCK
    if (os.getpid(), path) in _LOCKS:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        # the lock belongs to this process: workers do not inherit it
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise RunError(
            f"another process is training in output_dir={str(output_dir)!r}. Wait for it or stop "
            "it, or pass another output_dir."
        ) from None
    except OSError as error:
        logger.warning("%s cannot be locked (%s): start no second run there.", output_dir, error)
    _LOCKS[os.getpid(), path] = file  # closing any file of that name would release the lock


@contextmanager
def explained_write(folder: str | Path) -> Iterator[None]:
    """Turns what safetensors raises on a full disk into the `OSError` that it is."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(
            f"{folder} could not be written: {error}. Make room on the disk, then start again."
        ) from error


def _checkpoint_folders(output_dir: str | Path) -> list[Path]:
    """Folders that are named like a checkpoint, oldest step first."""
    checkpoints = [
        folder
        for folder in Path(output_dir).glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", folder.name)
    ]
    return sorted(checkpoints, key=lambda folder: int(folder.name[11:]))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
