"""What a causal language model thinks of texts, and how varied they are.

Dull and repetitive text has a low perplexity under any judge, so `judge_texts` never gives the one
without the other.
"""

import importlib.util
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..modeling.checkpoint_lomdm import read_tokenizer
from ..pipelines.prompts_lomdm import well_formed
from .parts import PartsFile, values_digest
from .summary import summarise_texts

# tokens that a judge reads at once: GPT-2's, so that judges with longer contexts compare
CONTEXT = 1024
LOGITS = 2**27  # floats in the logits of one pass: 512 MiB
REPEATED = 4  # tokens of a phrase that counts as repeated


def load_judge(
    name_or_path: str = "gpt2-large", device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in float32, in eval mode, and its own tokenizer.

    Args:
        name_or_path: a Hub name, a folder, or a local `.gguf` file (dequantised; needs the package
            `gguf`).
        device: default: the GPU if there is one.
    Raises:
        ValueError: a model that cannot be loaded, a gguf file that does not exist, or the package
            is missing.
    """
    path, options = str(name_or_path), {}
    if path.endswith(".gguf"):
        if not Path(path).is_file():
            raise ValueError(
                f"name_or_path {path!r} is no file. Pass the path of a gguf file on this machine."
            )
        if importlib.util.find_spec("gguf") is None:
            raise ValueError(
                f"name_or_path {path!r} needs the package gguf to be read: pip install gguf."
            )
        options, path = {"gguf_file": Path(path).name}, str(Path(path).parent)
    try:
        tokenizer = read_tokenizer(path, **options)
        judge = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, trust_remote_code=False, **options
        )
    except (OSError, ValueError) as error:  # for example a repository with custom code
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"judge {path!r} cannot be loaded: {reason}") from error
    # the name in records must not hold folders of this machine
    judge.config.name_or_path = Path(name_or_path).name
    return judge.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), tokenizer


def judge_texts(
    texts: Sequence[str],
    judge: nn.Module,
    judge_tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 8,
    context: int = CONTEXT,
    with_bos: bool = True,
    parts_file: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Generative perplexity of texts, always with measures of their variety.

    Texts are cut into tokens by the judge's own tokenizer, whoever wrote them; special tokens and
    the end of a text are not counted. Longer texts are read in windows that overlap by half, each
    token counted once.

    Args:
        batch_size: windows per pass, fewer where their logits would not fit.
        context: longest window in tokens, 2 or more; the judge's own limit if that is less.
        with_bos: read every text behind the judge's BOS and count its first token. `False`, or a
            judge that has no BOS: the first token of a text is read, not counted.
        parts_file: windows that were read are appended here and not read again.
    Returns:
        A dict that JSON takes: `value` (the perplexity), `standard_error` (over texts, delta
        method), the same as `nats_per_token`, `n` texts, of which `empty_texts` (in no measure but
        this), `tokens` counted; in tokens of the judge `judge_entropy` (unigram, nats, mean over
        texts), `repetition` (share of phrases of four tokens that their text has had before),
        `distinct_1`, `_2`, `_3` (distinct n-grams of all texts / all their n-grams: compare it at
        equal `n` and length only) and `judge_tokens_per_text`; `characters_per_text`; `per_text`
        values.
    Raises:
        ValueError: no texts, or none with a token to count; a context too short; a judge whose
            values are not finite; a parts file of other texts or another judge.
    """
    if context < 2:
        raise ValueError(f"context must be at least 2, got {context}. For example: {CONTEXT}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}. For example: 8.")
    bos = judge_tokenizer.bos_token_id if with_bos else None
    texts = [well_formed(text) for text in texts]
    ids = [
        judge_tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for text in texts
    ]
    rows = [row if bos is None else [bos, *row] for row in ids if row]
    counted = [len(row) - 1 for row in rows]
    if not sum(counted):
        raise ValueError(
            f"texts: {len(texts)} texts hold no token to count. Pass texts that are not empty."
        )
    window = min(context, getattr(judge.config, "max_position_embeddings", None) or context)
    parts = PartsFile(parts_file, {"judge_window": window, "texts": values_digest(rows)}, judge)
    nats = _nats(judge, rows, window, batch_size, parts, progress)
    return {
        "unit": "generative perplexity",
        **_perplexity(counted, nats),
        "n": len(texts),
        "empty_texts": len(texts) - len(rows),
        "tokens": sum(counted),
        "judge": getattr(judge.config, "name_or_path", "") or type(judge).__name__,
        "judge_window": window,
        "judge_reads_bos": bos is not None,
        **_style(texts, ids),
        "per_text": {"tokens": counted, "nats": nats},
    }


def _style(texts: list[str], ids: list[list[int]]) -> dict[str, float | None]:
    """How varied and how long the texts are, in tokens of the judge and in characters."""
    return {
        **entropy([row for row in ids if row], "judge_entropy"),
        **variety(ids),
        "judge_tokens_per_text": sum(map(len, ids)) / len(ids),
        "characters_per_text": sum(map(len, texts)) / len(texts),
    }


def _perplexity(counted: list[int], nats: list[float]) -> dict[str, float | None]:
    """The corpus value and its error over texts, from counted tokens and nats of each text."""
    table = [[tokens, nll, 0.0, 0.0] for tokens, nll in zip(counted, nats, strict=True)]
    means = summarise_texts(torch.tensor(table, dtype=torch.float64))
    error = means.get("nelbo_standard_error")
    return {
        "value": means["perplexity"],
        "standard_error": None if error is None else means["perplexity"] * error,
        "nats_per_token": means["nelbo"],
        "nats_per_token_standard_error": error,
    }


def entropy(rows: Sequence[Sequence[int]], name: str) -> dict[str, float | None]:
    """Mean unigram entropy in nats of the rows of ids that are not empty, and its error."""
    counts = [
        torch.tensor(list(Counter(row).values()), dtype=torch.float64) for row in rows if len(row)
    ]
    if not counts:
        return {name: None, f"{name}_standard_error": None}
    entropies = torch.stack([torch.special.entr(count / count.sum()).sum() for count in counts])
    error = float(entropies.std() / math.sqrt(len(entropies))) if len(entropies) > 1 else None
    return {name: float(entropies.mean()), f"{name}_standard_error": error}


def variety(rows: Sequence[Sequence[int]]) -> dict[str, float | None]:
    """`repetition` and `distinct_n` of rows, as in `judge_texts`; `None` if all are too short."""
    phrases = [_ngrams(row, REPEATED) for row in rows]
    total, different = sum(map(len, phrases)), sum(len(set(row)) for row in phrases)
    result = {"repetition": 1 - different / total if total else None}
    for n in (1, 2, 3):
        grams = [gram for row in rows for gram in _ngrams(row, n)]
        result[f"distinct_{n}"] = len(set(grams)) / len(grams) if grams else None
    return result


def _ngrams(row: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(row[i:] for i in range(n)), strict=False))


def windows(length: int, window: int) -> Iterator[tuple[int, int, int]]:
    """`(start, stop, first counted)` of the windows of a row; its first token never counts."""
    stop, start = 1, 0
    while stop < length:
        counted, stop = stop, min(length, start + window)
        yield start, stop, counted
        start += max(1, window // 2)


def _nats(
    judge, rows: list[list[int]], window: int, batch_size: int, parts: PartsFile, progress: bool
) -> list[float]:
    """`-log` of the probability of each row behind its first token, in nats."""
    cuts = [(index, *cut) for index, row in enumerate(rows) for cut in windows(len(row), window)]
    cuts.sort(key=lambda cut: cut[1] - cut[2])  # longest first: out of memory shows at once
    window_nats = {number: part["nats"] for number, part in parts.read().items()}
    todo = [number for number in range(len(cuts)) if number not in window_nats]
    vocabulary = judge.config.get_text_config().vocab_size
    with tqdm(total=len(todo), disable=not progress, unit="window", desc="judge") as bar:
        while todo:
            longest = cuts[todo[0]][2] - cuts[todo[0]][1]
            size = max(1, min(batch_size, LOGITS // (longest * vocabulary)))
            batch, todo = todo[:size], todo[size:]
            values = dict(
                zip(
                    batch,
                    _window_nats(judge, rows, [cuts[number] for number in batch]),
                    strict=True,
                )
            )
            if not all(map(math.isfinite, values.values())):
                raise ValueError(
                    "the judge's log-probabilities are not finite. Check its weights and its dtype."
                )
            parts.append({number: {"nats": value} for number, value in values.items()})
            window_nats |= values
            bar.update(len(batch))
    nats = [0.0] * len(rows)
    for number in range(len(cuts)):  # in a fixed order, so that sums round alike
        nats[cuts[number][0]] += window_nats[number]
    return nats


@torch.no_grad()
def _window_nats(
    judge, rows: list[list[int]], batch: list[tuple[int, int, int, int]]
) -> list[float]:
    """The counted part of each window; right padding is invisible to a causal model."""
    longest = max(stop - start for _, start, stop, _ in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.int64)
    targets = torch.full((len(batch), longest - 1), -100)
    mask = torch.zeros_like(ids)
    for row, (index, start, stop, counted) in enumerate(batch):
        ids[row, : stop - start] = torch.tensor(rows[index][start:stop])
        mask[row, : stop - start] = 1
        targets[row, counted - start - 1 : stop - start - 1] = torch.tensor(
            rows[index][counted:stop]
        )
    device = next(judge.parameters()).device
    logits: Tensor = judge(
        input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, return_dict=True
    ).logits[:, :-1]
    losses = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.to(device).flatten(), reduction="none"
    )
    return losses.view(targets.shape).double().sum(-1).tolist()
