"""Text as documents: from the Hub, files or CPython, with validation text held out."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    Value,
    load_dataset,
    load_dataset_builder,
)
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.csv.csv import CsvConfig
from datasets.packaged_modules.text.text import TextConfig

from .arguments import SAMPLE_BY, DataArguments
from .cache import cached
from .detokenizers import get_detokenizer
from .reading import check_strings, list_files, missing_column, read_texts

PYDOC_TOPICS = "pydoc_topics"
VALIDATION_FRACTION = 0.1
# Part of the name of a cached file: raise it when the same files come to mean other texts.
TEXTS_VERSION = 1
# A longer document is tokenised in pieces.
PIECE_CHARACTERS = 1 << 16


def load_text(arguments: DataArguments) -> DatasetDict:
    """The raw documents, `train` and `validation`, in one string column `text`.

    Validation text comes from `validation_file`, else `validation_split`, else from the end of the
    train text (the last tenth of its characters, cut between documents, or inside where there is
    only one).
    """
    train = load_split(arguments, arguments.train_split, arguments.train_file)
    if arguments.validation_file:
        validation = load_split(arguments, "train", arguments.validation_file)
    elif arguments.validation_split:
        if arguments.train_file or arguments.dataset_name == PYDOC_TOPICS:
            raise ValueError(
                f"validation_split {arguments.validation_split!r} needs a data set that has "
                "splits. Pass validation_file, or leave both out to validate on the end of the "
                "train text."
            )
        validation = load_split(arguments, arguments.validation_split, None)
    else:
        train, validation = hold_out_end(train)
        if arguments.dataset_name == PYDOC_TOPICS:
            validation = without_known(validation, train)
    return DatasetDict(train=train, validation=validation)


def load_split(
    arguments: DataArguments, split: str, file: str | None, streaming: bool = False
) -> Dataset | IterableDataset:
    """The documents of `file`, else of a split of `dataset_name`, in one column `text`.

    Raises:
        ValueError: a file, data set, split or column that cannot be read; says which.
    """
    if file:
        return load_files(file, arguments.sample_by, (arguments.text_column,))
    if arguments.dataset_name == PYDOC_TOPICS:
        return pydoc_topics()
    name, config, revision = (
        arguments.dataset_name or "",
        arguments.dataset_config,
        arguments.dataset_revision,
    )
    try:
        return load_hub(name, config, revision, split, arguments.text_column, streaming)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"split {split!r} of dataset_name {name!r} (dataset_config {config!r}) cannot be "
            f"loaded. {error}"
        ) from error


def load_hub(
    name: str,
    config: str | None,
    revision: str | None,
    split: str,
    column: str,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """One column of strings of a data set, from the Hub or a folder with splits, called `text`.

    Args:
        streaming: read it where it lies, each time that it is iterated.
    Raises:
        ValueError, OSError: a folder, files or a column that cannot be read.
    """
    pattern = re.search(r"[*?[]|::", os.path.realpath(name))
    if pattern and os.path.isdir(name):
        raise ValueError(
            f"The library datasets reads {pattern[0]!r} in the path of a folder as a pattern. "
            "Rename it, or pass its files as train_file."
        )
    source = {"name": config, "revision": revision}
    options: dict[str, Any] = {}
    # else `NA` is no text, and `007` a number
    kind = load_dataset_builder(name, **source).config
    if isinstance(kind, CsvConfig):
        options = {"features": Features({column: Value("string")}), "keep_default_na": False}
    elif isinstance(kind, TextConfig) and column == "text":  # else a stream knows no columns
        options = {"features": Features({column: Value("string")})}
    try:
        dataset = load_dataset(name, **source, split=split, streaming=streaming, **options)
    except DatasetGenerationError as error:  # says no more than that there is one
        raise ValueError(f"Its files cannot be read: {error.__cause__}") from error
    if dataset.features is None:
        raise ValueError(
            "Its columns cannot be told: its first file is malformed, or of a kind that cannot be "
            "streamed. Check it, or leave streaming out."
        )
    if column not in dataset.column_names:
        raise missing_column(name, (column,), dataset.column_names)
    check_strings(dataset.features.arrow_schema.field(column).type, column, name)
    dataset = dataset.select_columns([column])
    if getattr(dataset.features[column], "dtype", None) not in ("string", "large_string"):
        dataset = dataset.cast_column(column, Value("large_string"))
    return dataset if column == "text" else dataset.rename_column(column, "text")


def load_files(
    path: str | Path, sample_by: str = "paragraph", columns: Sequence[str] = ("text",)
) -> Dataset:
    """The documents of a file or of a folder in one column `text`, cached by `datasets`.

    Files are .txt, .jsonl, .csv (any of them compressed: .gz, .zst, .bz2) or .parquet, of one kind
    in a folder. Texts are read as they are written, without a byte order mark; U+FFFD stands for
    lone surrogates of JSON.

    Args:
        sample_by: what a document of a .txt file is: a `line`, a `paragraph` (up to an empty line)
            or the `document`.
        columns: names of the column that holds the text; in each file, or line of a .jsonl, the
            first that is there.
    Raises:
        ValueError: an unknown `sample_by`; missing, empty, without rows, of an unknown or mixed
            kind, malformed, without the column, or not UTF-8.
    """
    check_sample_by(sample_by)
    files = list_files(Path(path))
    stats = [(str(file.absolute()), file.stat()) for file in files]
    states = [(name, state.st_size, state.st_mtime_ns, state.st_ino) for name, state in stats]
    parts = (TEXTS_VERSION, states, list(columns), sample_by)
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    dataset, _ = cached(
        f"text-{key}", lambda target: _write_texts(target, Path(path), files, columns, sample_by)
    )
    dataset._fingerprint = key
    return dataset


def _write_texts(
    target: Path, path: Path, files: list[Path], columns: Sequence[str], sample_by: str
) -> dict[str, int]:
    schema, rows = pa.schema([("text", pa.large_string())]), 0
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for array in (array for file in files for array in read_texts(file, columns, sample_by)):
            writer.write_batch(pa.record_batch([array], schema=schema))
            rows += len(array)
    if not rows:
        raise ValueError(
            f"{path} has no rows. Put text into it, or check train_file and validation_file."
        )
    return {"rows": rows}


def check_sample_by(sample_by: str) -> None:
    """Raise `ValueError` where `sample_by` is not one of the choices."""
    if sample_by not in SAMPLE_BY:
        raise ValueError(
            f"sample_by must be one of {', '.join(SAMPLE_BY)}, got {sample_by!r}. The default: "
            "paragraph."
        )


def pydoc_topics() -> Dataset:
    """The language reference inside every CPython, one document per topic, by name."""
    from pydoc_data.topics import topics  # half a megabyte of text that only this function wants

    return Dataset.from_dict({"text": [topics[name] for name in sorted(topics)]})


def hold_out_end(texts: Dataset) -> tuple[Dataset, Dataset]:
    """Cut `texts` into train and validation, which gets about the last tenth of the characters."""
    if len(texts) == 0:
        raise ValueError(
            "the train text holds no document. Check train_file, or train_split and text_column."
        )
    if len(texts) == 1:
        text = texts[0]["text"] or ""
        cut = round(len(text) * (1 - VALIDATION_FRACTION))
        return Dataset.from_dict({"text": [text[:cut]]}), Dataset.from_dict({"text": [text[cut:]]})
    lengths = pc.fill_null(pc.utf8_length(texts.with_format("arrow")[:]["text"]), 0).to_numpy()
    ends = np.cumsum(lengths)
    first = int(np.searchsorted(ends, ends[-1] * (1 - VALIDATION_FRACTION), side="right"))
    first = min(max(first, 1), len(texts) - 1)
    return texts.select(range(first)), texts.select(range(first, len(texts)))


def without_known(texts: Dataset, known: Dataset) -> Dataset:
    """Drop documents with more than half of their paragraphs in `known`: they measure memory.

    The topics of CPython overlap: all of `with` and `while` is in `compound`, too.
    """
    paragraphs = {paragraph for text in known["text"] for paragraph in text.split("\n\n")}
    shares = [
        np.mean([paragraph in paragraphs for paragraph in text.split("\n\n")])
        for text in texts["text"]
    ]
    return texts.select([index for index, share in enumerate(shares) if share <= 0.5])


def documents(texts: Dataset | IterableDataset, detokenizer: str | None = None) -> Iterator[str]:
    """The documents of column `text`, detokenised, in order, without blank ones."""
    undo = get_detokenizer(detokenizer)
    for batch in texts.select_columns(["text"]).with_format("arrow").iter(batch_size=256):
        for text in batch["text"].to_pylist():
            if text and not text.isspace():
                yield undo(text) if undo else text


def read_documents(
    path: str | Path, column: str, sample_by: str, detokenizer: str | None = None
) -> list[str]:
    """The documents of a file or folder (`load_files`), detokenised, without blank ones."""
    texts = list(documents(load_files(path, sample_by, (column,)), detokenizer))
    if not texts:
        raise ValueError(
            f"{path} holds no document that is not blank. Check the file and the column {column!r}."
        )
    return texts


def split_document(text: str) -> Iterator[str]:
    """Cut a long document into pieces of at most `PIECE_CHARACTERS`; nothing is lost.

    The cut goes before a blank that follows no other white space, where tokenizers that split on
    white space cut anyway (GPT-2, BERT), so the tokens are those of the whole; it is arbitrary
    where there is no such blank.
    """
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        limit = start + PIECE_CHARACTERS
        end = text.rfind(" ", start + 1, limit)
        while end > 0 and text[end - 1].isspace():
            end = text.rfind(" ", start + 1, end)
        end = limit if end < 0 else end
        yield text[start:end]
        start = end
    yield text[start:]
