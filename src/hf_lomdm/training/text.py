"""Text as documents: read it from the Hub, from files or from CPython, hold out validation text, detokenise."""

import codecs
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError

from .arguments import SAMPLE_BY, DataArguments
from .detokenizers import get_detokenizer

PYDOC_TOPICS = "pydoc_topics"
VALIDATION_FRACTION = 0.1
FILE_FORMATS = {".txt": "text", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
# A longer document is tokenised in pieces.
PIECE_CHARACTERS = 1 << 16


def load_text(arguments: DataArguments) -> DatasetDict:
    """The raw documents, `train` and `validation`, in one string column `text`.

    Validation text comes from `validation_file`, else `validation_split`, else from the end of the train text (the last
    tenth of its characters, cut between documents, or inside where there is only one).
    """
    train = _load_split(arguments, arguments.train_split, arguments.train_file)
    if arguments.validation_file:
        validation = _load_split(arguments, "train", arguments.validation_file)
    elif arguments.validation_split:
        if arguments.train_file or arguments.dataset_name == PYDOC_TOPICS:
            raise ValueError(
                f"validation_split {arguments.validation_split!r} needs a data set that has splits. "
                "Pass validation_file, or leave both out to validate on the end of the train text."
            )
        validation = _load_split(arguments, arguments.validation_split, None)
    else:
        train, validation = hold_out_end(train)
        if arguments.dataset_name == PYDOC_TOPICS:
            validation = without_known(validation, train)
    return DatasetDict(train=train, validation=validation)


def _load_split(arguments: DataArguments, split: str, file: str | None) -> Dataset:
    if file:
        return _text_column(load_files(file, arguments.sample_by), arguments.text_column, file)
    if arguments.dataset_name == PYDOC_TOPICS:
        return pydoc_topics()
    try:
        found = load_dataset(
            arguments.dataset_name, arguments.dataset_config, revision=arguments.dataset_revision, split=split
        )
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"split {split!r} of dataset_name {arguments.dataset_name!r} (dataset_config {arguments.dataset_config!r}) "
            f"cannot be loaded. {error}"
        ) from error
    return _text_column(found, arguments.text_column, arguments.dataset_name)


def _text_column(found: Dataset, column: str, source: str) -> Dataset:
    if column not in found.column_names:
        raise ValueError(
            f"text_column {column!r} is not a column of {source}. Choose one of: {', '.join(found.column_names)}."
        )
    kind = getattr(found.features[column], "dtype", type(found.features[column]).__name__)
    if kind not in ("string", "large_string"):
        raise ValueError(f"text_column {column!r} of {source} must hold strings, got {kind}. Choose another column.")
    return (
        found.select_columns([column]).rename_column(column, "text")
        if column != "text"
        else found.select_columns(["text"])
    )


def load_files(path: str, sample_by: str = "paragraph") -> Dataset:
    """The documents of a .txt, .jsonl, .csv or .parquet file, or of a folder of files of one of these kinds.

    `sample_by` says what a document of a .txt file is: a `line`, a `paragraph` (up to an empty line) or the whole file.

    Raises:
        ValueError: an unknown `sample_by`; missing, empty, without rows, of an unknown or mixed kind, malformed, or not
            UTF-8 (names the byte offset).
    """
    check_sample_by(sample_by)
    files = _list_files(Path(path))
    suffix = files[0].suffix.lower()
    if suffix != ".parquet":
        for file in files:
            check_utf8(file)
    options = {"sample_by": sample_by} if suffix == ".txt" else {}
    try:
        return load_dataset(FILE_FORMATS[suffix], data_files=[str(file) for file in files], split="train", **options)
    except (DatasetGenerationError, ValueError) as error:
        if "corresponds to no data" in str(error):  # a split without rows is left out
            raise ValueError(
                f"{path} has no rows. Put text into it, or check train_file and validation_file."
            ) from None
        raise ValueError(f"{path} is not a well-formed {suffix} file: {error.__cause__ or error}") from error


def check_sample_by(sample_by: str) -> None:
    """Raise `ValueError` where `sample_by` is not one of the choices."""
    if sample_by not in SAMPLE_BY:
        raise ValueError(f"sample_by must be one of {', '.join(SAMPLE_BY)}, got {sample_by!r}. The default: paragraph.")


def _list_files(path: Path) -> list[Path]:
    """The files at `path`, in alphabetical order; all of one known format and not all empty."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in FILE_FORMATS)
    else:
        files = [path]
    known = ", ".join(FILE_FORMATS)
    if not files:
        raise ValueError(f"{path} holds no file of a known kind. Put {known} files there.")
    if not files[0].is_file():
        raise ValueError(f"{path} does not exist. Check train_file and validation_file, or pass dataset_name.")
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) > 1 or kinds[0] not in FILE_FORMATS:
        raise ValueError(f"{path} must hold files of one kind of {known}, got {', '.join(kinds)}.")
    if not any(file.stat().st_size for file in files):
        raise ValueError(f"{path} is empty. Check train_file and validation_file.")
    return files


def check_utf8(path: Path) -> None:
    """Raise `ValueError` with the file and the byte offset where `path` is not UTF-8; reads it in blocks of 1 MiB."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    start = 0
    with path.open("rb") as stream:
        while True:
            block = stream.read(1 << 20)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                offset = start - pending + error.start
                raise ValueError(
                    f"{path} is not UTF-8: {error.reason} at byte offset {offset}. "
                    f"Convert it, for example: iconv -f ISO-8859-1 -t UTF-8 {path.name}"
                ) from error
            if not block:
                return
            start += len(block)


def pydoc_topics() -> Dataset:
    """The language reference inside every CPython (465 kB in 3.11), one document per topic, by name."""
    from pydoc_data.topics import topics  # half a megabyte of text that only this function wants

    return Dataset.from_dict({"text": [topics[name] for name in sorted(topics)]})


def hold_out_end(texts: Dataset) -> tuple[Dataset, Dataset]:
    """Cut `texts` into train and validation: about the last tenth of the characters is validation text."""
    if len(texts) == 0:
        raise ValueError("the train text holds no document. Check train_file, or train_split and text_column.")
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
    """Drop the documents more than half of whose paragraphs also stand in `known`: they would measure memory.

    The topics of CPython overlap: all of `with` and `while` is in `compound`, too.
    """
    seen = {paragraph for text in known["text"] for paragraph in text.split("\n\n")}
    shares = [np.mean([paragraph in seen for paragraph in text.split("\n\n")]) for text in texts["text"]]
    return texts.select([index for index, share in enumerate(shares) if share <= 0.5])


def documents(texts: Dataset, detokenizer: str | None = None) -> Iterator[str]:
    """The documents of column `text`, detokenised, in order; without those that are empty or blank."""
    undo = get_detokenizer(detokenizer)
    for batch in texts.select_columns(["text"]).with_format("arrow").iter(batch_size=256):
        for text in batch["text"].to_pylist():
            if text and not text.isspace():
                yield undo(text) if undo else text


def split_document(text: str) -> Iterator[str]:
    """Cut a long document into pieces of at most `PIECE_CHARACTERS`; nothing is lost.

    The cut goes before a blank that follows no other white space, where tokenizers that split on white space cut anyway
    (GPT-2, BERT), so the tokens are those of the whole; it is arbitrary where there is no such blank.
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
