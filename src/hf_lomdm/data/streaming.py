"""Rows of a data set that is read while a model trains, and is never whole on this machine."""

import json
from collections.abc import Iterable, Iterator
from itertools import count

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
        ValueError: while it is read, a pass over the documents that yields no row, or in which the
            tokenizer does not know more than 1 % of the tokens.
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
            documents that validate.
    """
    texts = load_split(arguments, arguments.train_split, None, streaming=True)
    source = (arguments.dataset_name, arguments.dataset_config)
    # its hash changes with its files
    builder = datasets.load_dataset_builder(*source, revision=arguments.dataset_revision)
    parts = (builder.hash, *source, arguments.train_split, arguments.text_column)
    name = json.dumps([*parts, datasets.__version__])
    if arguments.validation_file:
        return texts, load_split(arguments, "train", arguments.validation_file), name
    split = arguments.validation_split or arguments.train_split
    held_out = load_split(arguments, split, None, streaming=True)
    first = [document["text"] for document in held_out.take(NUM_HELD_OUT + 1)]
    if not arguments.validation_split and len(first) <= NUM_HELD_OUT:
        raise ValueError(
            f"{arguments.dataset_name} has {len(first)} documents, and the first {NUM_HELD_OUT} "
            "validate. Pass validation_split or validation_file, or leave streaming out."
        )
    return texts, Dataset.from_dict({"text": first[:NUM_HELD_OUT]}), name
