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

    The rows and their order depend on nothing but the arguments here. To iterate anew is to read
    the same rows again, which is how training that resumes finds its place.

    Args:
        texts: the documents, in one column `text`.
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
    ):
        self.texts, self.tokenizer, self.arguments = texts, tokenizer, arguments
        self.seed, self._fingerprint = seed, fingerprint

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for epoch in count():
            counts = RowCounts()
            texts = self.texts.shuffle(seed=self.seed + epoch, buffer_size=BUFFER_SIZE)
            blocks = training_rows(
                documents(texts, self.arguments.detokenizer), self.tokenizer, self.arguments, counts
            )
            for row in shuffled(blocks, np.random.default_rng([self.seed, epoch])):
                counts.rows += 1
                yield {"input_ids": row}
            check_known(counts.unknown, counts.encoded, "the train text")
            if not counts.rows:
                raise ValueError(
                    f"{self.arguments.dataset_name} has no row to train on: {counts.documents} "
                    f"documents of {counts.encoded} tokens, behind those that validate. Pass "
                    "validation_split or validation_file, lower max_length, or leave streaming out."
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
    `validation_split`, else from the first of the train text, which then are not trained on.

    Raises:
        ValueError: a data set, a split or a column that is not there.
    """
    texts = load_split(arguments, arguments.train_split, None, streaming=True)
    source = (arguments.dataset_name, arguments.dataset_config)
    # its hash changes with its files
    builder = datasets.load_dataset_builder(*source, revision=arguments.dataset_revision)
    parts = [builder.hash, *source, arguments.train_split, arguments.text_column]
    if arguments.validation_file:
        held_out = load_split(arguments, "train", arguments.validation_file)
        return texts, held_out, json.dumps(parts)
    if arguments.validation_split:
        held_out = load_split(arguments, arguments.validation_split, None, streaming=True)
    else:
        held_out, texts, parts = texts, texts.skip(NUM_HELD_OUT), [*parts, NUM_HELD_OUT]
    first = [document["text"] for document in held_out.take(NUM_HELD_OUT)]
    return texts, Dataset.from_dict({"text": first}), json.dumps(parts)
