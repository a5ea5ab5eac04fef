"""Documents as rows of tokens: joined and packed, or each on its own, cut or in windows.

Rows depend on the text, the tokenizer and the arguments alone, never on batch sizes or the number
of processes. The rows of training (`pack_full_rows`, `truncate_documents`) are streamed and drop
what does not fit; those of evaluation (`pack_documents`, `cut_documents`) drop nothing and count
every character.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..pipelines.prompts_lomdm import dropped_letters, well_formed
from .arguments import DataArguments
from .text import split_document
from .tokenizers import check_known, encode_texts

# Bounds what is tokenised at once.
BATCH_CHARACTERS = 1 << 20
# Tokens `[n]` int32 of pieces of documents in their order, each with whether its document ends
# there.
Pieces = list[tuple[np.ndarray, bool]]
# The tokens in front of every row and behind it, `None` = none.
Ends = Sequence[int | None]


@dataclass
class RowCounts:
    """What became of a split. `tokens` are those in the rows, special tokens included.

    `unknown` are those that the tokenizer does not know, of `encoded` tokens of text.
    """

    documents: int = 0
    rows: int = 0
    tokens: int = 0
    unknown: int = 0
    dropped: int = 0
    encoded: int = 0

    def describe(self, split: str, packing: bool) -> str:
        """One line for people."""
        where = "behind the last full row" if packing else "behind max_length"
        line = f"{split}: {self.rows:,} rows, {self.tokens:,} tokens, {self.documents:,} documents"
        line += f"; {self.dropped:,} tokens {where} dropped" if self.dropped else ""
        return line + (
            f"; {self.unknown:,} tokens unknown to the tokenizer" if self.unknown else ""
        )


def token_batches(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, counts: RowCounts
) -> Iterator[Pieces]:
    """Tokens of the documents, a bounded number at a time."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for text in texts:
        counts.documents += 1
        pieces = list(split_document(text))
        for index, piece in enumerate(pieces, start=1):
            batch.append((piece, index == len(pieces)))
            size += len(piece)
            if size >= BATCH_CHARACTERS:
                yield _encode(batch, tokenizer, counts)
                batch, size = [], 0
    if batch:
        yield _encode(batch, tokenizer, counts)


def _encode(
    batch: list[tuple[str, bool]], tokenizer: PreTrainedTokenizerBase, counts: RowCounts
) -> Pieces:
    ends = [end for _, end in batch]

    def name(index: int) -> str:  # the last piece is of the last document so far
        return f"document {counts.documents - sum(ends[index:-1])} of the text"

    texts = [piece for piece, _ in batch]
    encoded = encode_texts(tokenizer, texts, name)
    arrays = [np.asarray(ids, dtype=np.int32) for ids in encoded]
    counts.encoded += sum(map(len, arrays))
    if tokenizer.unk_token_id is not None:
        counts.unknown += sum(int((ids == tokenizer.unk_token_id).sum()) for ids in arrays)
    else:
        lost = dropped_letters(tokenizer, well_formed("".join(texts)))
        dropped = sum(text.count(letter) for letter in lost for text in texts)
        counts.unknown, counts.encoded = counts.unknown + dropped, counts.encoded + dropped
    return list(zip(arrays, ends, strict=True))


def joined(batches: Iterable[Pieces], separator: int | None) -> Iterator[np.ndarray]:
    """The tokens of each batch in one array, `separator`, if any, behind each document."""
    back = [] if separator is None else [np.array([separator], dtype=np.int32)]
    for pieces in batches:
        yield np.concatenate(
            [part for ids, is_end in pieces for part in ((ids, *back) if is_end else (ids,))]
        )


def whole_documents(batches: Iterable[Pieces]) -> Iterator[list[np.ndarray]]:
    """The tokens of the documents that end in each batch, one array each."""
    parts: list[np.ndarray] = []
    for pieces in batches:
        ended = []
        for ids, is_end in pieces:
            parts.append(ids)
            if is_end:
                ended.append(np.concatenate(parts))
                parts = []
        yield ended


def pack_full_rows(
    batches: Iterable[Pieces], max_length: int, ends: Ends, separator: int, counts: RowCounts
) -> Iterator[list[np.ndarray]]:
    """Rows of `max_length` tokens of the joined documents; the last remainder is dropped, once.

    Args:
        ends: BOS and EOS around every row, or `None`. separator: the token behind each document.
    """
    front, back = _as_lists(ends)
    width = max_length - len(front) - len(back)
    leftover = np.empty(0, dtype=np.int32)
    for tokens in joined(batches, separator):
        leftover = np.concatenate([leftover, tokens])
        full = len(leftover) // width * width
        if full:
            yield [_between(front, chunk, back) for chunk in leftover[:full].reshape(-1, width)]
        leftover = leftover[full:]
    counts.dropped = len(leftover)


def truncate_documents(
    batches: Iterable[Pieces],
    max_length: int,
    ends: Ends,
    counts: RowCounts,
    filler: int | None = None,
) -> Iterator[list[np.ndarray]]:
    """One row per document between `ends`; what does not fit into `max_length` is dropped.

    Args:
        filler: stands behind each row up to `max_length`; `None` = rows stay as long as they are.
    """
    front, back = _as_lists(ends)
    width = max_length - len(front) - len(back)
    for texts in whole_documents(batches):
        counts.dropped += sum(max(len(ids) - width, 0) for ids in texts)
        if texts:
            rows = [_between(front, ids[:width], back) for ids in texts]
            yield rows if filler is None else [fill(row, max_length, filler) for row in rows]


def training_rows(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    arguments: DataArguments,
    counts: RowCounts,
) -> Iterator[list[np.ndarray]]:
    """The rows that a run trains on, as its arguments say: packed, or of one document each."""
    batches = token_batches(texts, tokenizer, counts)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ends = (bos, eos) if arguments.insert_special_tokens else (None, None)
    if arguments.packing:
        return pack_full_rows(batches, arguments.max_length, ends, eos, counts)
    filler = eos if arguments.fill_with_eos else None
    return truncate_documents(batches, arguments.max_length, ends, counts, filler)


def fill(row: np.ndarray, length: int, token: int) -> np.ndarray:
    """`row` with `token` behind it up to `length`."""
    return np.pad(row, (0, length - len(row)), constant_values=token)


def _as_lists(ends: Ends) -> list[list[int]]:
    return [[] if token is None else [token] for token in ends]


def _between(front: list[int], ids: np.ndarray, back: list[int]) -> np.ndarray:
    return np.concatenate([front, ids, back], dtype=np.int32, casting="unsafe")


@dataclass
class Rows:
    """Rows of tokens made from documents, and what became of these.

    Attributes:
        rows: dicts of `input_ids` `[L]` int64.
        counts: documents, rows, tokens (special tokens included) and tokens unknown to the
            tokenizer.
        characters, num_bytes: of the text in the rows; `None` where it is cut and cannot be
            counted.
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
    kept: list[str] = field(default_factory=list)

    def measure(self, texts: Iterable[str], keep: bool = False) -> Iterator[str]:
        """The same texts, well formed; `keep` remembers them in `kept`."""
        for text in map(well_formed, texts):
            self.characters += len(text)
            self.num_bytes += len(text.encode())
            if keep:
                self.kept.append(text)
            yield text


def pack_documents(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    ends: Ends = (None, None),
    separator: int | None = None,
    max_rows: int | None = None,
) -> Rows:
    """Rows of `max_length` tokens of the joined documents, the last one shorter: all is kept.

    Args:
        ends: BOS and EOS around every row, or `None`. separator: a token behind each document, or
            `None`.
        max_rows: the first rows only.
    Raises:
        ValueError: no text, one that the tokenizer does not know or that holds its mask token, or
            no room for it between BOS and EOS.
    """
    front, back = _as_lists(ends)
    width = max_length - len(front) - len(back)
    if width < 1 or (max_rows is not None and max_rows < 1):
        raise ValueError(
            f"max_length and max_rows must leave room for text, got {max_length} and {max_rows}."
        )
    counts, size, limit = RowCounts(), _TextSize(), None if max_rows is None else max_rows * width
    batches = token_batches(size.measure(texts, keep=max_rows is not None), tokenizer, counts)
    stream = _first(joined(batches, separator), limit)
    if not len(stream):
        raise ValueError(
            "the text holds no document that is not blank. Check the file, or the split and column."
        )
    check_known(counts.unknown, counts.encoded, "the text")
    kept = stream[:limit]
    chunks = (kept[start : start + width] for start in range(0, len(kept), width))
    rows = [{"input_ids": _between(front, chunk, back).astype(np.int64)} for chunk in chunks]
    counts.rows, counts.tokens = len(rows), sum(len(row["input_ids"]) for row in rows)
    if len(kept) < len(stream):
        return Rows(rows, counts, *_decoded_size(kept, size, tokenizer))
    return Rows(rows, counts, size.characters, size.num_bytes)


def _first(arrays: Iterable[np.ndarray], limit: int | None) -> np.ndarray:
    """The arrays in one, no further than to the first that reaches `limit`."""
    parts, length = [np.empty(0, dtype=np.int32)], 0
    for array in arrays:
        parts.append(array)
        length += len(array)
        if limit is not None and length >= limit:
            break
    return np.concatenate(parts)


def cut_documents(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    ends: Ends = (None, None),
    stride: int = 1,
    max_documents: int | None = None,
) -> Rows:
    """Each document between BOS and EOS; one longer than `max_length` in windows (`roll`).

    Raises:
        ValueError: `max_documents` below 1, a stride out of range, or a text as in
            `pack_documents`.
    """
    if max_documents is not None and max_documents < 1:
        raise ValueError(
            f"max_documents must be at least 1, got {max_documents}. Leave it out to use every "
            "document."
        )
    front, back = _as_lists(ends)
    counts, size = RowCounts(), _TextSize()
    batches = token_batches(size.measure(list(texts)[:max_documents]), tokenizer, counts)
    tokens = list(chain.from_iterable(whole_documents(batches)))
    check_known(counts.unknown, counts.encoded, "the text")
    rows, groups = roll((_between(front, ids, back) for ids in tokens), max_length, stride)
    counts.rows, counts.tokens = len(rows), sum(int((row["labels"] != -100).sum()) for row in rows)
    return Rows(rows, counts, size.characters, size.num_bytes, groups)


def roll(
    texts: Iterable[Sequence[int] | np.ndarray], max_length: int, stride: int
) -> tuple[list[dict], list[int]]:
    """Windows of texts of any length that count each token once, and the text of each.

    The first window counts up to `max_length` tokens; each further one counts `stride` and reads
    the tokens before them, as many as fit, as given (labels -100). Nothing behind the counted
    tokens is read, so the values of the rows of a text add up to a bound on `-log` of its
    probability, and exactly to it for an autoregressive model.

    Raises:
        ValueError: a stride outside of 1 to `max_length`.
    """
    if not 1 <= stride <= max_length:
        raise ValueError(
            f"stride must be in 1 to {max_length}, got {stride}. For example: "
            f"{max(1, max_length // 2)}."
        )
    rows, groups = [], []
    for index, text in enumerate(texts):
        ids = np.asarray(text, dtype=np.int64)
        counted = 0
        while counted < len(ids):
            end = min(len(ids), max_length if counted == 0 else counted + stride)
            start = max(0, end - max_length)
            labels = ids[start:end].copy()
            labels[: counted - start] = -100
            rows.append({"input_ids": ids[start:end], "labels": labels})
            groups.append(index)
            counted = end
    return rows, groups


def _decoded_size(stream: np.ndarray, size: _TextSize, tokenizer) -> tuple[int | None, int | None]:
    """Characters and bytes of a stream that ends in the text; `None` if decoding changes it."""
    decoded = tokenizer.decode(
        stream.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    decoded = decoded.rstrip("\N{REPLACEMENT CHARACTER}")  # the cut may lie inside a character
    if not "".join(size.kept).startswith(decoded):
        return None, None
    return len(decoded), len(decoded.encode())
