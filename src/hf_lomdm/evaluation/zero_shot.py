"""Zero-shot likelihood on the paper's seven sets, one protocol for every system.

The documents of a set are joined in their order, with nothing between them, and cut into chunks of
the model's context, each between BOS and EOS where the model has them. One process does it
globally: the rows depend on the text, the tokenizer and the context alone. The last chunk is short
and kept: on PTB it is a good part of all tokens.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data.detokenizers import get_detokenizer
from ..data.reading import file_kind, list_files
from ..data.rows import pack_documents
from ..data.text import documents, load_files, load_hub
from .corpus import evaluate_corpus, special_tokens


@dataclass(frozen=True)
class ZeroShotSet:
    """One evaluation set.

    Attributes:
        dataset, config, revision, split: where it is on the Hub, as Parquet files.
        column: the column that holds the text; a local file may also call it `text`.
        detokenizers: names of `hf_lomdm.data.detokenizers`, in the order in which they apply.
        line_ends: the documents on the Hub end in a line feed, which the lines of a local .txt file
            get back.
    """

    dataset: str
    split: str
    column: str = "text"
    config: str | None = None
    revision: str | None = None
    detokenizers: tuple[str, ...] = ()
    line_ends: bool = False


_PARQUET = "refs/convert/parquet"  # the branch where the Hub keeps data sets that once were scripts
_PAPERS = {
    "dataset": "armanc/scientific_papers",
    "split": "validation",
    "column": "article",
    "revision": _PARQUET,
}
_PAPERS |= {"detokenizers": ("wikitext", "lm1b")}

SETS: dict[str, ZeroShotSet] = {
    "ptb": ZeroShotSet(
        "ptb-text-only/ptb_text_only",
        "validation",
        column="sentence",
        config="penn_treebank",
        revision=_PARQUET,
        detokenizers=("ptb",),
    ),
    "wikitext": ZeroShotSet(
        "Salesforce/wikitext",
        "validation",
        config="wikitext-103-raw-v1",
        detokenizers=("wikitext",),
        line_ends=True,
    ),
    "lm1b": ZeroShotSet("dvruette/lm1b", "test", detokenizers=("lm1b",)),
    "lambada": ZeroShotSet(
        "EleutherAI/lambada_openai", "test", config="default", detokenizers=("lambada",)
    ),
    "ag_news": ZeroShotSet("fancyzhx/ag_news", "test"),
    "pubmed": ZeroShotSet(**_PAPERS, config="pubmed"),
    "arxiv": ZeroShotSet(**_PAPERS, config="arxiv"),
}


def load_documents(name: str, file: str | Path | None = None) -> list[str]:
    """The documents of a set, detokenised, in their order, those that are blank left out.

    Args:
        name: one of `SETS`. file: a .txt (a line is a document), .jsonl, .csv or .parquet file
            instead of the Hub.
    Raises:
        ValueError: an unknown name, a set or file that cannot be read, is empty, not UTF-8, or
            lacks the column.
    """
    if name not in SETS:
        raise ValueError(f"zero-shot set must be one of {', '.join(SETS)}, got {name!r}.")
    source = SETS[name]
    texts = _from_hub(name, source) if file is None else _from_file(Path(file), source)
    texts = documents(texts)
    for detokenizer in source.detokenizers:
        texts = map(get_detokenizer(detokenizer), texts)
    texts = list(texts)
    if not texts:
        raise ValueError(
            f"zero-shot set {name!r} holds no text. Check the file, or the split on the Hub."
        )
    return texts


def evaluate_zero_shot(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    names: Iterable[str] = tuple(SETS),
    *,
    files: Mapping[str, str | Path] | None = None,
    max_rows: int | None = None,
    parts_folder: str | Path | None = None,
    progress: bool = True,
    **options,
) -> dict[str, Any]:
    """`evaluate_corpus` on each set, all of which are read before the first is evaluated.

    Args:
        files: local files in place of the Hub, by name of set.
        max_rows: the first rows of each set only.
        parts_folder: finished rows are kept here, a file per set, and not computed again.
        options: of `evaluate_corpus`: bound, samples, seed, batch_tokens, ...
    Returns:
        `sets`: the record of each set, with `documents`, `source` and `unknown` tokens.
    """
    files = _checked_files(files)
    *ends, _ = special_tokens(model, tokenizer)
    length = model.config.max_position_embeddings
    loaded = {}
    for name in names:
        texts = load_documents(name, files.get(name))
        loaded[name] = pack_documents(texts, tokenizer, length, ends, max_rows=max_rows)
        if progress:
            print(loaded[name].describe(name), flush=True)
    records = {}
    for name, rows in loaded.items():
        parts = None if parts_folder is None else Path(parts_folder) / f"{name}.jsonl"
        size = {"characters": rows.characters, "num_bytes": rows.num_bytes}
        record = evaluate_corpus(
            model, rows.rows, **size, parts_file=parts, progress=progress, **options
        )
        source = Path(files[name]).name if name in files else SETS[name].dataset
        counts = {"documents": rows.counts.documents, "unknown": rows.counts.unknown}
        records[name] = {"source": source, **counts, **record}
    setting = {"max_length": length, "bos_and_eos": ends[0] is not None}
    return {"task": "zero-shot", **setting, "sets": records}


def _checked_files(files: Mapping[str, str | Path] | None) -> Mapping[str, str | Path]:
    unknown = [name for name in files or {} if name not in SETS]
    if unknown:
        raise ValueError(f"files has {unknown[0]!r}, which is no set. The sets: {', '.join(SETS)}.")
    return files or {}


def _from_hub(name: str, source: ZeroShotSet) -> Dataset:
    try:
        return load_hub(source.dataset, source.config, source.revision, source.split, source.column)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"zero-shot set {name!r} cannot be read from {source.dataset} (config {source.config}, "
            f"split {source.split}): {error} Check the connection, or pass a local file: --file "
            f"{name}=PATH."
        ) from error


def _from_file(path: Path, source: ZeroShotSet) -> Dataset:
    texts = load_files(path, "line", (source.column, "text"))
    if source.line_ends and file_kind(list_files(path)[0]) == ".txt":
        return texts.map(lambda row: {"text": row["text"] + "\n"}, desc=None)
    return texts
