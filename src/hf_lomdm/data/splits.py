"""The train and validation rows of a run: text tokenised, packed or cut, and cached.

Rows depend on the text, the tokenizer and the arguments alone: documents are read in their order by
one process and concatenated over the whole split, so neither the number of processes nor any batch
size moves a row boundary.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .arguments import DataArguments, check_limits
from .cache import cached
from .detokenizers import get_detokenizer
from .rows import RowCounts, training_rows
from .streaming import RowStream, open_stream
from .text import PYDOC_TOPICS, check_sample_by, documents, load_text, split_document
from .tokenizers import check_known, load_tokenizer, special_token_ids, train_tokenizer

# Part of the name of a cached file: raise it when the same arguments come to mean other rows.
ROWS_VERSION = 2


def load_data(
    arguments: DataArguments, output_dir: str | Path, seed: int = 0
) -> tuple[dict[str, Any], PreTrainedTokenizerBase]:
    """The data of a training run: rows of tokens (`train`, `validation`) and the tokenizer.

    A tokenizer made from the text is kept in `output_dir/tokenizer` and reused from there. Rows are
    kept in the cache of `datasets` (`HF_DATASETS_CACHE`); with `streaming` those of `train` are a
    `RowStream` without end. Of several processes on a machine, let the first do this before the
    others.

    Args:
        seed: of the order of a stream.
    Raises:
        ValueError: an argument, a file or the text cannot be used; says which and what to do.
    """
    check_arguments(arguments)
    if arguments.streaming:
        return _load_stream(arguments, seed)
    texts = load_text(arguments)
    if arguments.train_tokenizer:
        train_documents = documents(texts["train"], arguments.detokenizer)
        pieces = (piece for document in train_documents for piece in split_document(document))
        tokenizer = train_tokenizer(
            arguments.train_tokenizer, pieces, Path(output_dir) / "tokenizer"
        )
    else:
        tokenizer = load_tokenizer(arguments.tokenizer or "")
    limits = {"train": arguments.max_train_rows, "validation": arguments.max_validation_rows}
    rows = {
        split: tokenize(texts[split], tokenizer, arguments, limits[split], split)
        for split in limits
    }
    return rows, tokenizer


def _load_stream(
    arguments: DataArguments, seed: int
) -> tuple[dict[str, Any], PreTrainedTokenizerBase]:
    tokenizer = load_tokenizer(arguments.tokenizer or "")
    texts, held_out, name = open_stream(arguments)
    validation = tokenize(
        held_out, tokenizer, arguments, arguments.max_validation_rows, "validation"
    )
    fingerprint = _fingerprint(name, tokenizer, arguments, max_rows=None)
    known = documents(held_out, arguments.detokenizer)
    train = RowStream(texts, tokenizer, arguments, seed, fingerprint, known)
    return {"train": train, "validation": validation}, tokenizer


def check_arguments(arguments: DataArguments) -> None:
    """Raise `ValueError` for arguments out of range or in contradiction; reads nothing."""
    get_detokenizer(arguments.detokenizer)
    check_sample_by(arguments.sample_by)
    if bool(arguments.tokenizer) == bool(arguments.train_tokenizer):
        raise ValueError(
            f"give either tokenizer (got {arguments.tokenizer!r}) or train_tokenizer "
            f"(got {arguments.train_tokenizer!r}); an empty string switches one off."
        )
    if bool(arguments.dataset_name) == bool(arguments.train_file):
        raise ValueError(
            f"give either dataset_name (got {arguments.dataset_name!r}) or train_file (got "
            f"{arguments.train_file!r}); an empty string switches one off."
        )
    if arguments.streaming and arguments.dataset_name in (None, "", PYDOC_TOPICS):
        raise ValueError(
            f"streaming reads a data set, and dataset_name is {arguments.dataset_name!r}. Pass one "
            "with splits, or leave streaming out."
        )
    if arguments.streaming and arguments.train_tokenizer:
        raise ValueError(
            f"train_tokenizer={arguments.train_tokenizer!r} reads the whole text, which streaming "
            "never has. Pass tokenizer, or leave streaming out."
        )
    shortest = 3 if arguments.insert_special_tokens else 1
    if arguments.max_length < shortest:
        raise ValueError(
            f"max_length must be at least {shortest}, got {arguments.max_length}. For example: 128."
        )
    if arguments.fill_with_eos and arguments.packing:
        raise ValueError(
            "fill_with_eos=True is for rows of one document each, and packing=True joins "
            "documents. Pass packing=False, or leave fill_with_eos out."
        )
    check_limits(arguments)


def model_token_ids(
    tokenizer: PreTrainedTokenizerBase, arguments: DataArguments
) -> dict[str, int | None]:
    """`special_token_ids`, but `None` for a BOS or EOS that no row has and no model learns.

    Without `insert_special_tokens` no row begins with BOS, and EOS stands behind documents only
    where they are packed or filled up with it.
    """
    ids: dict[str, int | None] = {**special_token_ids(tokenizer)}
    if not arguments.insert_special_tokens:
        has_eos = arguments.packing or arguments.fill_with_eos
        ids["bos_token_id"] = None
        ids["eos_token_id"] = ids["eos_token_id"] if has_eos else None
    return ids


def tokenize(
    texts: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    arguments: DataArguments,
    max_rows: int | None = None,
    split: str = "train",
) -> Dataset:
    """Rows `input_ids` (int32, at most `max_length` each) of one split; prints what there is.

    Packed rows are all `max_length` long; padded ones are stored without their padding, which the
    collator adds.

    Raises:
        ValueError: there is no text, or not enough of it for one packed row.
    """
    key = _fingerprint(texts._fingerprint, tokenizer, arguments, max_rows)
    rows, record = cached(
        key, lambda path: _write_rows(path, texts, tokenizer, arguments, max_rows, split)
    )
    digest = record.pop("digest")
    if os.environ.get("RANK", "0") == "0":
        print(RowCounts(**record).describe(split, arguments.packing), flush=True)
    rows = rows.with_format("numpy")
    # of the tokens alone: the cache may lie anywhere, and be written at any time
    rows._fingerprint = digest
    return rows


def data_fingerprint(
    rows: Mapping[str, Dataset | Sequence[dict]], tokenizer: PreTrainedTokenizerBase
) -> str:
    """Names the rows of a run and what their ids mean, in 16 hexadecimal digits.

    Equal rows have equal names, wherever they come from; a stream is named by its source.

    Args:
        rows: by split; of `load_data`, `load_sudoku`, or lists of dicts that JSON takes.
    """
    contents = {
        split: getattr(part, "_fingerprint", None) or list(part) for split, part in rows.items()
    }
    ids = [getattr(tokenizer, f"{name}_token_id") for name in ("mask", "pad", "bos", "eos", "unk")]
    parts = (contents, sorted(tokenizer.get_vocab().items()), ids)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _fingerprint(
    texts: str,
    tokenizer: PreTrainedTokenizerBase,
    arguments: DataArguments,
    max_rows: int | None,
) -> str:
    """Names everything that rows depend on; `texts` names the documents."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = (
        backend.to_str()
        if backend is not None
        else json.dumps(sorted(tokenizer.get_vocab().items()))
    )
    cut = [arguments.max_length, arguments.packing, arguments.insert_special_tokens, max_rows]
    cut += [arguments.fill_with_eos] * arguments.fill_with_eos
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    parts = (ROWS_VERSION, texts, arguments.detokenizer, cut, ids, vocabulary)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _write_rows(
    path: Path,
    texts: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    arguments: DataArguments,
    max_rows: int | None,
    split: str,
) -> dict[str, Any]:
    """Write rows to `path`; returns their counts and a `digest` of their tokens."""
    counts = RowCounts()
    blocks = training_rows(documents(texts, arguments.detokenizer), tokenizer, arguments, counts)
    digest = _write_blocks(path, blocks, max_rows, counts)
    _check_rows(counts, arguments, split)
    return asdict(counts) | {"digest": digest}


def _write_blocks(
    path: Path, blocks: Iterable[list[np.ndarray]], max_rows: int | None, counts: RowCounts
) -> str:
    schema = pa.schema([("input_ids", pa.list_(pa.int32()))])
    tokens, sizes = hashlib.sha256(), hashlib.sha256()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for block in blocks:
            rows = block if max_rows is None else block[: max_rows - counts.rows]
            lengths = np.array([len(row) for row in rows], dtype=np.int64)
            offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
            values = np.concatenate(rows)
            arrays = [pa.ListArray.from_arrays(offsets, pa.array(values))]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            tokens.update(values.tobytes())
            sizes.update(lengths.tobytes())
            counts.rows += len(rows)
            counts.tokens += len(values)
            if counts.rows == max_rows:
                break
    return hashlib.sha256(tokens.digest() + sizes.digest()).hexdigest()


def _check_rows(counts: RowCounts, arguments: DataArguments, split: str) -> None:
    if counts.documents == 0:
        raise ValueError(
            f"the {split} text holds no document that is not blank. Check the file, or the split "
            "and text_column."
        )
    check_known(counts.unknown, counts.encoded, f"the {split} text")
    if counts.rows == 0:
        raise ValueError(
            f"the {split} text has {counts.dropped} tokens, too few for one row: max_length is "
            f"{arguments.max_length}. Lower max_length, give more text, or pass packing=False to "
            "pad."
        )
