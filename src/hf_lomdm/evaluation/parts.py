"""What an interrupted evaluation has finished, on disk."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

_HEAD = "parts_of"  # the key of the first line, by which a file is known to be ours


class PartsFile:
    """Finished rows on disk: a line that says what they belong to, then one line of JSON for each.

    A last line that was cut off in writing is dropped, here and from the file.

    Args:
        path: `None` keeps nothing. setting: what rows depend on, a dict that JSON takes. model: its
            weights too.
    """

    def __init__(
        self, path: str | Path | None, setting: dict[str, Any], model: nn.Module | None = None
    ):
        self.path, self.setting = None if path is None else Path(path), setting
        if path is not None and model is not None:
            self.setting = setting | {"model": model_digest(model)}
        self._ready = False  # whether this process has prepared its own file

    def read(self) -> dict[int, dict]:
        """The values of the finished rows of all processes, by index.

        Raises:
            ValueError: they belong to another model, text or setting, or a file is none of ours.
        """
        done = {}
        if self.path is None:
            return done
        for path in self._files():
            lines = _whole_lines(path)
            if lines:
                self._check(path, lines[0])
            for line in lines[1:]:
                values = json.loads(line)
                done[values.pop("row")] = values
        return done

    def append(self, values: dict[int, dict], process: int = 0) -> None:
        """Adds rows to the file of `process`; they are on disk when this returns."""
        if self.path is None:
            return
        path = self.path if process == 0 else self.path.with_name(f"{self.path.name}.{process}")
        lines = [json.dumps({"row": index, **row}) for index, row in values.items()]
        if not self._ready:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = _whole_lines(path) if path.exists() else []
            if whole:
                os.truncate(path, sum(len(line.encode()) + 1 for line in whole))
            else:
                path.write_text("", encoding="utf-8")
                lines = [json.dumps({_HEAD: self.setting}), *lines]
            self._ready = True
        with path.open("a", encoding="utf-8") as stream:
            stream.write("".join(line + "\n" for line in lines))
            stream.flush()
            os.fsync(stream.fileno())

    def delete(self) -> None:
        """Removes the files of all processes."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """Those that are there: that of the first process, and `.1`, `.2`, ... of the others."""
        if not self.path.parent.is_dir():
            return []
        name = re.compile(re.escape(self.path.name) + r"(\.\d+)?")
        return sorted(path for path in self.path.parent.iterdir() if name.fullmatch(path.name))

    def _check(self, path: Path, line: str) -> None:
        setting = _setting(line)
        if setting is None:
            raise ValueError(
                f"parts_file {path} holds no parts of an evaluation. Choose another name, or "
                "delete it."
            )
        differ = [name for name in self.setting if setting.get(name) != self.setting[name]]
        if differ:
            raise ValueError(
                f"parts_file {path} belongs to another evaluation: {', '.join(differ)} differ. "
                "Choose another name, or delete it to start anew."
            )


def beside(path: str | Path | None, name: Any) -> Path | None:
    """`folder/parts.jsonl` becomes `folder/parts-name.jsonl`; `None` stays."""
    return (
        None
        if path is None
        else Path(path).with_name(f"{Path(path).stem}-{name}{Path(path).suffix}")
    )


def delete_parts(folder: str | Path) -> None:
    """Removes the parts files of all processes in `folder`, and the folder if it is empty."""
    for path in Path(folder).glob("*.jsonl*"):
        # else another program owns the folder
        if path.is_file() and _setting(next(iter(_whole_lines(path)), "")) is not None:
            path.unlink()
    if Path(folder).is_dir() and not any(Path(folder).iterdir()):
        Path(folder).rmdir()


def values_digest(values: Any) -> str:
    """A hash of anything that JSON takes."""
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=16).hexdigest()


def model_digest(model: nn.Module) -> str:
    """A hash of weights, configuration and, where it is not the model's own, law of the rates."""
    config = {
        k: v
        for k, v in model.config.to_dict().items()
        if k not in ("transformers_version", "_name_or_path")
    }
    if not getattr(model, "has_own_rates", True):
        config["rate_law"] = model.rate_law
    digest = hashlib.blake2b(
        json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16
    )
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _setting(line: str) -> dict | None:
    """What the parts behind a first line belong to; `None`: it is not the first line of parts."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record.get(_HEAD) if isinstance(record, dict) else None


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file that end in a line feed."""
    return path.read_bytes().decode("utf-8", errors="replace").split("\n")[:-1]
