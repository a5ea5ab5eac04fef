"""Arrow files in the cache of `datasets`, each in a folder of its own, whole or not there."""

import contextlib
import json
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

DATA, RECORD = "data.arrow", "record.json"
# A file that is being written grows several times a minute, unless its process is stopped for a
# while.
ABANDONED_SECONDS = 24 * 3600


def cached(key: str, make: Callable[[Path], dict[str, Any]]) -> tuple[Dataset, dict[str, Any]]:
    """The data set and the record of `key`, from the cache, or made now and left there.

    Any number of processes, on machines that share the cache too, may make the same: one folder
    stays, all read that.

    Args:
        key: names everything that the data depend on.
        make: writes an Arrow stream to the path that it is given; returns its record for JSON, with
            its `rows`.
    Raises:
        ValueError: the folder in the cache is damaged.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hf_lomdm" / key
    if not folder.is_dir():
        _make(folder, make)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        dataset = Dataset.from_file(str(folder / DATA))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is damaged: {error}. Delete it; it is made again.") from error
    if len(dataset) != record["rows"]:
        raise ValueError(
            f"{folder} is damaged: it has {len(dataset):,} rows of {record['rows']:,}. Delete it; "
            "it is made again."
        )
    return dataset, record


def _make(folder: Path, make: Callable[[Path], dict[str, Any]]) -> None:
    """Makes `folder` appear with all its files in one move; one already there stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder.parent)
    unfinished = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.unfinished")
    unfinished.mkdir()
    try:
        record = make(unfinished / DATA)
        (unfinished / RECORD).write_text(json.dumps(record), encoding="utf-8")
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Removes what killed processes left half written: files that have not grown for long."""
    for folder in parent.glob("*.unfinished"):
        with contextlib.suppress(OSError):  # another process was faster, or it is not ours
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - newest > ABANDONED_SECONDS:
                shutil.rmtree(folder)
