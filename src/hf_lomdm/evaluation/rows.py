"""Text as rows for evaluation: nothing dropped, nothing cached, and every character counted.

Rows hang on the text, the tokenizer and the arguments alone, never on the number of processes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data.text import documents, load_files
from ..data.tokenizers import check_known
from ..pipelines.pipeline_lomdm import well_formed
from ..training.data import RowCounts, token_batches
from .corpus import is_diffusion, roll


class SpecialTokens(NamedTuple):
    """Token ids, `None` = none: `front` and `back` of every row, `separator` behind every document of packed ones."""

    front: int | None
    back: int | None
    separator: int | None


@dataclass
class Rows:
    """Rows of tokens made from documents, and what became of these.

    Attributes:
        rows: dicts of `input_ids` `[L]` int64.
        counts: documents, rows, tokens (special tokens included) and tokens unknown to the tokenizer.
        characters, num_bytes: of the text in the rows; `None` where it is cut and cannot be counted.
        groups: the document of each row, where documents are cut into windows, else `None`.
    """

    rows: list[dict]
    counts: RowCounts
    characters: int | None = None
    num_bytes: int | None = None
    groups: list[int] | None = None

    def describe(self, name: str) -> str:
        """One line for people."""
        return self.counts.describe(name, packing=True)


@dataclass
class _TextSize:
    """Counts the text that runs through `measure`."""

    characters: int = 0
    num_bytes: int = 0
    seen: list[str] = field(default_factory=list)

    def measure(self, texts: Iterable[str], keep: bool = False) -> Iterator[str]:
        """The same texts, well formed; `keep` remembers them in `seen`."""
        for text in map(well_formed, texts):
            self.characters += len(text)
            self.num_bytes += len(text.encode())
            if keep:
                self.seen.append(text)
            yield text


def special_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """BOS and EOS as in the rows that the model was trained on, which its configuration says: without a BOS, nothing
    is put around rows.

    The BOS of an autoregressive one is the start token, which `causal_nll` puts in front by itself; ours say what their
    rows have beside it (`causal_config`), others have nothing.
    """
    config = model.config
    if is_diffusion(model):
        bos, eos = config.bos_token_id, config.eos_token_id
    elif hasattr(config, "text_bos_token_id"):
        bos, eos = config.text_bos_token_id, config.text_eos_token_id
    else:
        bos, eos = None, tokenizer.eos_token_id
    return SpecialTokens(None, None, eos) if bos is None else SpecialTokens(bos, eos, eos)


def load_file(path: str | Path, column: str, sample_by: str, detokenizer: str | None = None) -> list[str]:
    """The documents of a file (see `hf_lomdm.data.text.load_files`), detokenised, without those that are blank."""
    found = list(documents(load_files(path, sample_by, (column,)), detokenizer))
    if not found:
        raise ValueError(f"{path} holds no document that is not blank. Check the file and the column {column!r}.")
    return found


def pack_documents(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    ends: Sequence[int | None] = (None, None),
    separator: int | None = None,
    max_rows: int | None = None,
) -> Rows:
    """Rows of `max_length` tokens of the joined documents, the last one as short as it is: nothing is dropped.

    Args:
        ends: BOS and EOS around every row, or `None`. separator: a token behind each document, or `None`.
        max_rows: the first rows only.
    Raises:
        ValueError: no text, one that the tokenizer does not know or that holds its mask token, or no room for it
            between BOS and EOS.
    """
    front, back = ([] if one is None else [one] for one in ends)
    width = max_length - len(front) - len(back)
    if width < 1 or (max_rows is not None and max_rows < 1):
        raise ValueError(f"max_length and max_rows must leave room for text, got {max_length} and {max_rows}.")
    counts, size, parts, have = RowCounts(), _TextSize(), [], 0
    for batch in token_batches(size.measure(texts, keep=max_rows is not None), tokenizer, counts):
        for ids, end in batch:
            parts.append(ids if separator is None or not end else np.append(ids, separator))
            have += len(parts[-1])
        if max_rows is not None and have >= max_rows * width:
            break
    stream = np.concatenate(parts, dtype=np.int64) if parts else np.empty(0, dtype=np.int64)
    cut = max_rows is not None and len(stream) > max_rows * width
    stream = stream[: max_rows * width] if cut else stream
    chunks = [stream[start : start + width] for start in range(0, len(stream), width)]
    if not chunks:
        raise ValueError("the text holds no document that is not blank. Check the file, or the split and column.")
    check_known(counts.unknown, counts.encoded, "the text")
    rows = [{"input_ids": np.concatenate([front, chunk, back]).astype(np.int64)} for chunk in chunks]
    counts.rows, counts.tokens = len(rows), sum(len(row["input_ids"]) for row in rows)
    characters, num_bytes = (size.characters, size.num_bytes) if not cut else _decoded_size(stream, size, tokenizer)
    return Rows(rows, counts, characters, num_bytes)


def cut_documents(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    ends: Sequence[int | None] = (None, None),
    stride: int = 1,
    max_documents: int | None = None,
) -> Rows:
    """Each document on its own, between BOS and EOS; one longer than `max_length` in windows (`corpus.roll`).

    Raises:
        ValueError: `max_documents` below 1, a stride out of range, or a text as in `pack_documents`.
    """
    if max_documents is not None and max_documents < 1:
        raise ValueError(f"max_documents must be at least 1, got {max_documents}. Leave it out to use every document.")
    front, back = ([] if one is None else [one] for one in ends)
    counts, size, parts = RowCounts(), _TextSize(), [[]]
    for batch in token_batches(size.measure(list(texts)[:max_documents]), tokenizer, counts):
        for ids, end in batch:
            parts[-1].append(ids)
            if end:
                parts.append([])
    check_known(counts.unknown, counts.encoded, "the text")
    rows, groups = roll((np.concatenate([front, *ids, back]) for ids in parts[:-1]), max_length, stride)
    counts.rows, counts.tokens = len(rows), sum(int((row["labels"] != -100).sum()) for row in rows)
    return Rows(rows, counts, size.characters, size.num_bytes, groups)


def _decoded_size(stream: np.ndarray, size: _TextSize, tokenizer) -> tuple[int | None, int | None]:
    """Characters and bytes of a stream that ends inside the text; `None` where decoding does not give the text back."""
    found = tokenizer.decode(stream.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    found = found.rstrip("\N{REPLACEMENT CHARACTER}")  # the cut may lie inside a character
    if not "".join(size.seen).startswith(found):
        return None, None
    return len(found), len(found.encode())
