"""Files of text: the column that holds it, read in bounded parts, exactly as written.

What other columns hold never decides whether text is read. A path is a name, never a pattern.
"""

import codecs
import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

from ..pipelines.prompts_lomdm import well_formed

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
# Characters and documents that are gathered before they are written.
BATCH_CHARACTERS, BATCH_DOCUMENTS = 1 << 20, 1000


def list_files(path: Path) -> list[Path]:
    """The files at `path`, all of one known format and not all empty, in alphabetical order.

    A file that a folder holds by several names (links) is listed once; hidden ones are left out.
    """
    files = list(_walk(path)) if path.is_dir() else [path]
    formats = ", ".join(FORMATS)
    if not files:
        raise ValueError(f"{path} holds no file of a known kind. Put {formats} files there.")
    if not files[0].is_file():
        raise ValueError(
            f"{path} does not exist. Check train_file and validation_file, or pass dataset_name."
        )
    kinds = sorted({file_kind(file) or file.suffix.lower() for file in files})
    if len(kinds) > 1 or kinds[0] not in FORMATS:
        raise ValueError(
            f"{path} must hold files of one kind of {formats}, got {', '.join(kinds)}."
        )
    if not any(file.stat().st_size for file in files):
        raise ValueError(f"{path} is empty. Check train_file and validation_file.")
    return files


def _walk(folder: Path) -> Iterator[Path]:
    """The files of known formats in `folder` and below, through links too, each once."""
    folders, files = set(), []
    for root, below, names in os.walk(folder, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        if (identity := _identity(root)) in folders:  # a link to a folder around it
            below.clear()
            continue
        folders.add(identity)
        files += [Path(root, name) for name in names if not name.startswith(".")]
    listed = set()
    for file in sorted(file for file in files if file.is_file() and file_kind(file)):
        if (identity := _identity(file)) not in listed:
            listed.add(identity)
            yield file


def _identity(path: str | Path) -> tuple[int, int]:
    """The same for all names of a file or folder."""
    state = os.stat(path)
    return state.st_dev, state.st_ino


def file_kind(path: Path) -> str | None:
    """The format by the name: `.jsonl` for `a.jsonl` and `a.jsonl.gz`; `None` if unknown."""
    match = re.search(r"(\.txt|\.jsonl|\.csv)(\.gz|\.zst|\.bz2)?$|\.parquet$", path.name.lower())
    return match and (match[1] or match[0])


def open_file(path: Path) -> BinaryIO:
    """The bytes of a file, decompressed by what its name ends in."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    stream = path.open("rb")
    return (
        io.BufferedReader(pa.input_stream(stream, compression=compression))
        if compression
        else stream
    )


def read_texts(path: Path, columns: Sequence[str], sample_by: str) -> Iterator[pa.Array]:
    """The texts of a file as arrays of `large_string`, from the first of `columns` it has.

    Raises:
        ValueError: no such column, a text that is none, or a file that is malformed; names file and
            place.
    """
    kind = file_kind(path) or ""
    try:
        yield from FORMATS[kind](path, columns, sample_by)
    except (csv.Error, pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the system's error names the file
            raise
        raise ValueError(f"{path} is not a well-formed {kind} file: {error}") from error


# ------------------------------------------------------------------------------------------ formats


def _read_txt(path: Path, columns: Sequence[str], sample_by: str) -> Iterator[pa.Array]:
    if "text" not in columns:
        raise missing_column(path, columns, ["text"])
    check_utf8(path)
    splits: dict[str, Callable[[io.TextIOWrapper], Iterable[str]]] = {
        "line": _lines,
        "paragraph": _paragraphs,
        "document": lambda stream: [stream.read()],
    }
    with io.TextIOWrapper(open_file(path), encoding="utf-8-sig") as stream:
        yield from _arrays(splits[sample_by](stream))


def _lines(stream: Iterable[str]) -> Iterator[str]:
    return (line.rstrip("\n") for line in stream)


def _paragraphs(stream: Iterable[str]) -> Iterator[str]:
    r"""What `split("\n\n")` gives, but for empty parts, a line at a time."""
    lines: list[str] = []
    for line in stream:
        if line == "\n" and lines:
            if lines != ["\n"]:
                yield "".join(lines)[:-1]
            lines = []
        else:
            lines.append(line)
    if lines:
        yield "".join(lines)


def _read_jsonl(path: Path, columns: Sequence[str], sample_by: str) -> Iterator[pa.Array]:
    names: dict[str, None] = {}

    def texts() -> Iterator[str | None]:
        for number, record in read_jsonl(path):
            column = next((name for name in columns if name in record), None)
            text = None if column is None else record[column]
            if not (text is None or isinstance(text, str)):
                raise ValueError(
                    f"column {column!r} of {path} must hold strings, line {number} holds "
                    f"{json.dumps(text)[:40]}. Choose another column, or put quotes around it."
                )
            names.update(dict.fromkeys(record))
            yield text

    yield from _arrays(texts())
    if names and not names.keys() & set(columns):
        raise missing_column(path, columns, names)


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a jsonl file, each with its line number from 1; blank lines are skipped.

    Raises:
        ValueError: a line that is not UTF-8 or not a JSON object; names file and line.
    """
    with open_file(path) as stream:
        for number, line in enumerate(stream, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode())
                if re.search(rb"\\u[dD]", line):  # escapes of surrogates are rare
                    record = _well_formed(record)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number} is not UTF-8: {error.reason}. {_iconv(path)}"
                ) from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}.") from error
            if not isinstance(record, dict):
                raise ValueError(
                    f"{path}, line {number} is no JSON object, but {json.dumps(record)[:40]}."
                )
            yield number, record


def _well_formed(value: Any) -> Any:
    """`value` of JSON with every text in it well formed."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, list):
        return [_well_formed(item) for item in value]
    if isinstance(value, dict):
        return {_well_formed(name): _well_formed(item) for name, item in value.items()}
    return value


def _read_csv(path: Path, columns: Sequence[str], sample_by: str) -> Iterator[pa.Array]:
    check_utf8(path)
    yield from _arrays(text for (text,) in read_csv(path, columns))


def read_csv(path: Path, *alternatives: Sequence[str]) -> Iterator[tuple[str | None, ...]]:
    """The cells of some columns of a csv file as written; `None` where a row is too short.

    Args:
        alternatives: the names that each column may have; the first that the first line has.
    Raises:
        ValueError: a column that is missing, or quotes that are not closed.
    """
    csv.field_size_limit(sys.maxsize)  # by default a longer text than 128 kB is refused
    with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="") as stream:
        # an empty row at the end, unless a quote is open there
        rows = csv.reader(chain(stream, ["\n"]))
        row = header = next(filter(None, rows), None)
        if header is None:
            return
        for names in alternatives:
            if not set(names) & set(header):
                raise missing_column(path, names, header)
        places = [
            header.index(next(name for name in names if name in header)) for names in alternatives
        ]
        for row in rows:
            if row:
                yield tuple(row[place] if place < len(row) else None for place in places)
        if row:
            raise csv.Error(
                f"a quote is not closed in the row that ends the file, {','.join(row)[:40]!r}"
            )


def _read_parquet(path: Path, columns: Sequence[str], sample_by: str) -> Iterator[pa.Array]:
    with path.open("rb") as stream:
        file = parquet.ParquetFile(stream)
        column = next((name for name in columns if name in file.schema_arrow.names), None)
        if column is None:
            raise missing_column(path, columns, file.schema_arrow.names)
        check_strings(file.schema_arrow.field(column).type, column, path)
        for batch in file.iter_batches(BATCH_DOCUMENTS, columns=[column]):
            array = batch.column(0).cast(pa.large_string())
            array.validate(full=True)  # that it is UTF-8
            yield array


FORMATS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}


def _arrays(texts: Iterable[str | None]) -> Iterator[pa.Array]:
    batch: list[str | None] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text or "")
        if size >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
            yield pa.array(batch, pa.large_string())
            batch, size = [], 0
    yield pa.array(batch, pa.large_string())


# ------------------------------------------------------------------------------------------- checks


def missing_column(
    source: str | Path, columns: Iterable[str], present: Iterable[str]
) -> ValueError:
    """What to raise where none of `columns` is among those that are `present` in `source`."""
    names = " or ".join(map(repr, dict.fromkeys(columns)))
    return ValueError(
        f"{source} has no column {names}, only {', '.join(list(present)[:20])}. Rename one, or "
        "name another (text_column; evaluate.py: --column)."
    )


def check_strings(kind: pa.DataType, column: str, source: str | Path) -> None:
    """Raise `ValueError` unless the column holds strings; Arrow has several types of them."""
    types = pa.types
    values = kind.value_type if types.is_dictionary(kind) else kind
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    if not any(test(values) for test in tests):
        raise ValueError(
            f"column {column!r} of {source} must hold strings, got {kind}. Choose another column."
        )


def check_utf8(path: Path) -> None:
    """Raise `ValueError` with file and byte offset where `path` is not UTF-8; reads in blocks."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    start = 0
    with open_file(path) as stream:
        while True:
            block = stream.read(1 << 20)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                offset = start - pending + error.start
                raise ValueError(
                    f"{path} is not UTF-8: {error.reason} at byte offset {offset}. {_iconv(path)}"
                ) from error
            if not block:
                return
            start += len(block)


def _iconv(path: Path) -> str:
    with open_file(path) as stream:
        wide = stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding = "UTF-16" if wide else "ISO-8859-1"
    return f"Convert it, for example: iconv -f {encoding} -t UTF-8 {path.name}"
