"""Rows as batches, padded on the right: to a fixed length for training, else to the longest row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Text(NamedTuple):
    """One row: `ids` `[L]` int64, and `labels` `[L]`, the same with -100 at given positions."""

    ids: np.ndarray
    labels: np.ndarray


@dataclass
class LoMDMDataCollator:
    """Makes a batch of rows, padded on the right to `max_length`, so that shapes never change.

    Returns `input_ids` and `labels`, both `[B, max_length]` int64; labels are -100 at padding and
    where a row's own `labels` (optional, as long as its `input_ids`) say -100 = given.
    `attention_mask` (1 = real) is there only if something is padded.
    """

    pad_token_id: int
    max_length: int

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        """The batch of these rows, each of at most `max_length` tokens."""
        texts = [_as_text(row) for row in rows]
        longest = max(len(text.ids) for text in texts)
        if longest > self.max_length:
            raise ValueError(
                f"a row of {longest} tokens is longer than max_length {self.max_length}. Raise it, "
                "or cut the rows."
            )
        return _pad(texts, self.max_length, [self.pad_token_id] * len(texts))


def collate(texts: Sequence[Text], device: torch.device) -> dict[str, Tensor]:
    """As `LoMDMDataCollator`, but on `device` and only as long as the longest text.

    Each text is padded by its own last token: a model may have no padding token.
    """
    batch = _pad(texts, max(len(text.ids) for text in texts), [text.ids[-1] for text in texts])
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _pad(texts: Sequence[Text], length: int, padding: Sequence[int]) -> dict[str, Tensor]:
    """The batch of texts, each padded to `length` by its own token of `padding`."""
    input_ids = torch.tensor(padding)[:, None].repeat(1, length)
    labels = torch.full_like(input_ids, -100)
    attention_mask = torch.zeros_like(input_ids)
    for index, text in enumerate(texts):
        end = len(text.ids)
        input_ids[index, :end] = torch.as_tensor(text.ids)
        labels[index, :end] = torch.as_tensor(text.labels)
        attention_mask[index, :end] = 1
    batch = {"input_ids": input_ids, "labels": labels}
    return batch if bool(attention_mask.all()) else {**batch, "attention_mask": attention_mask}


def _as_text(row: dict) -> Text:
    ids = np.asarray(row["input_ids"], dtype=np.int64)
    return Text(ids, np.asarray(row.get("labels", ids), dtype=np.int64))


def read_rows(rows: Iterable[dict], max_length: int) -> list[Text]:
    """The rows as arrays.

    Raises:
        ValueError: no rows, an empty one, one longer than `max_length`, labels of another length,
            nothing to count.
    """
    texts = []
    for index, row in enumerate(rows):
        text = _as_text(row)
        ids, labels = text
        if not 0 < len(ids) <= max_length:
            raise ValueError(
                f"rows: row {index} has {len(ids)} tokens, the model takes 1 to {max_length}. Pack "
                "the text, or cut it into windows by hf_lomdm.data.rows.roll."
            )
        if labels.shape != ids.shape:
            raise ValueError(
                f"rows: row {index} has {len(ids)} input_ids and {len(labels)} labels. Pass one "
                "each."
            )
        texts.append(text)
    if not any((text.labels != -100).any() for text in texts):
        raise ValueError(
            f"rows: {len(texts)} rows hold no token to count. Check the text and the labels."
        )
    return texts


def batches_by_length(
    texts: Sequence[Text], indices: Sequence[int], batch_tokens: int
) -> list[list[int]]:
    """Indices in batches of at most `batch_tokens` tokens with padding, the longest first.

    A longer row is a batch of its own.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}. For example: 8192.")
    batches: list[list[int]] = []
    for index in sorted(indices, key=lambda i: (-len(texts[i].ids), i)):
        longest = len(texts[batches[-1][0]].ids) if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
