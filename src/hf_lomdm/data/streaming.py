"""Rows of a data set that is read while a model trains, and is never whole on this machine."""

import hashlib
import json
import os
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .arguments import DataArguments
from .rows import RowCounts, training_rows
from .text import documents, load_split
from .tokenizers import check_known

# So many documents at the front of a split validate, where no validation_file is given.
NUM_HELD_OUT = 1000
# Documents wait in a buffer of this size until they are drawn, and so do their rows.
BUFFER_SIZE = 1000
# Of a file on this machine these bytes at its front and its end are part of the stream's name.
ENDS_READ = 1 << 16


class StreamError(OSError, ValueError):
    """A stream that cannot be read any further; says why, and in which file."""

    def __init__(self, message: str):
        # a worker sends it on behind its traceback
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


@contextmanager
def _reading(arguments: DataArguments) -> Iterator[None]:
    """Of what goes wrong within it the error names the file that was being read."""
    try:
        yield
    except Exception as error:  # broken files make readers say all sorts of things
        # all readers of `datasets` call it so
        frames = (frame.f_locals.get("file") for frame, _ in traceback.walk_tb(error.__traceback__))
        *_, file = [None, *(file for file in frames if isinstance(file, str))]
        if file is None and type(error) is ValueError:  # of the text, not of reading it
            raise StreamError(str(error)) from error
        reason = f"{type(error).__name__}: {error}"
        raise StreamError(f"{file or arguments.dataset_name} cannot be read: {reason}") from error


class RowStream(torch.utils.data.IterableDataset):
    """Rows `{"input_ids": [L]}` without end: pass after pass over the documents, each shuffled.

    The rows and their order depend on the arguments here, and on the version of `datasets`, which
    shuffles. To iterate anew is to read the same rows again, which is how training that resumes
    finds its place.

    Args:
        texts: the documents, in one column `text`.
        held_out: documents that are passed over: those that validate.
        fingerprint: names everything that the rows depend on, but for the order.

    Raises:
        StreamError: while it is read, a file that is malformed or gone, a pass over the documents
            that yields no row, or in which the tokenizer does not know more than 1 % of the tokens.
    """

    def __init__(
        self,
        texts: datasets.IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        arguments: DataArguments,
        seed: int,
        fingerprint: str,
        held_out: Iterable[str] = (),
    ):
        self.texts, self.tokenizer, self.arguments = texts, tokenizer, arguments
        self.seed, self._fingerprint = seed, fingerprint
        self.held_out = frozenset(held_out)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        with _reading(self.arguments):
            yield from self._rows()

    def _rows(self) -> Iterator[dict[str, np.ndarray]]:
        for epoch in count():
            counts = RowCounts()
            texts = self.texts.shuffle(seed=self.seed + epoch, buffer_size=BUFFER_SIZE)
            read = documents(texts, self.arguments.detokenizer)
            new = (text for text in read if text not in self.held_out)
            blocks = training_rows(new, self.tokenizer, self.arguments, counts)
            for row in shuffled(blocks, np.random.default_rng([self.seed, epoch])):
                counts.rows += 1
                yield {"input_ids": row}
            check_known(counts.unknown, counts.encoded, "the train text")
            if not counts.rows:
                raise ValueError(
                    f"{self.arguments.dataset_name} has no row to train on: {counts.documents} "
                    f"documents of {counts.encoded} tokens, but for those that validate. Pass "
                    "another validation text, lower max_length, or leave streaming out."
                )


def shuffled(
    blocks: Iterable[list[np.ndarray]], draws: np.random.Generator
) -> Iterator[np.ndarray]:
    """The rows of the blocks; each takes the place of one that is drawn from a buffer."""
    buffer: list[np.ndarray] = []
    for row in (row for block in blocks for row in block):
        if len(buffer) < BUFFER_SIZE:
            buffer.append(row)
            continue
        index = draws.integers(BUFFER_SIZE)
        yield buffer[index]
        buffer[index] = row
    yield from (buffer[index] for index in draws.permutation(len(buffer)))


def open_stream(arguments: DataArguments) -> tuple[datasets.IterableDataset, Dataset, str]:
    """The documents to train on, unread, those that validate, and a name of the former.

    Validation text comes from `validation_file`, else from the first documents of
    `validation_split`, else from the first of the train text.

    Raises:
        ValueError: a data set, a split or a column that is not there; train text that ends with the
            documents that validate, or cannot be read so far.
    """
    texts = load_split(arguments, arguments.train_split, None, streaming=True)
    parts = (*_source(arguments), arguments.train_split, arguments.text_column)
    name = json.dumps([*parts, datasets.__version__])
    if arguments.validation_file:
        return texts, load_split(arguments, "train", arguments.validation_file), name
    split = arguments.validation_split or arguments.train_split
    held_out = load_split(arguments, split, None, streaming=True)
    with _reading(arguments):
        first = [document["text"] for document in held_out.take(NUM_HELD_OUT + 1)]
    if not arguments.validation_split and len(first) <= NUM_HELD_OUT:
        raise ValueError(
            f"{arguments.dataset_name} has {len(first)} documents, and the first {NUM_HELD_OUT} "
            "validate. Pass validation_split or validation_file, or leave streaming out."
        )
    return texts, Dataset.from_dict({"text": first[:NUM_HELD_OUT]}), name


def _source(arguments: DataArguments) -> list:
    """Names the files of a data set: by what is in them, wherever a folder lies."""
    source = arguments.dataset_name or "", arguments.dataset_config
    builder = datasets.load_dataset_builder(*source, revision=arguments.dataset_revision)
    folder = Path(source[0]).resolve()
    if not folder.is_dir():
        return [builder.hash, *source]  # of the Hub: the hash changes with its files
    files = {Path(file) for split in (builder.config.data_files or {}).values() for file in split}
    return [source[1], *([os.path.relpath(file, folder), *_ends(file)] for file in sorted(files))]


def _ends(file: Path) -> tuple[int, str]:
    """Size of a file, and a hash of what stands at its front and its end."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        front = stream.read(ENDS_READ)
        stream.seek(max(0, size - ENDS_READ))
        return size, hashlib.sha256(front + stream.read(ENDS_READ)).hexdigest()
