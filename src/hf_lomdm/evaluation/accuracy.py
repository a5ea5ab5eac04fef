"""How good the estimates are: samples needed, order against time, the gap of the bounds."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data.batches import Text, collate, read_rows
from ..data.draws import step_generators
from .corpus import Z95, evaluate_corpus, is_diffusion, process_state
from .likelihood import MAX_EXACT_POSITIONS, exact_log_likelihood, nelbo
from .parts import PartsFile, beside, values_digest

BOOTSTRAPS = 2000


def pilot(
    model: nn.Module,
    rows: Iterable[dict],
    *,
    bound: str = "order",
    num_texts: int = 32,
    num_samples: int = 16,
    target: float = 0.1,
    seed: int = 0,
    parts_file: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """How many samples per text bring the Monte-Carlo error of all `rows` down to `target`.

    Args:
        num_texts: texts measured, drawn by `seed`. num_samples: of the bound, per text; 4 or more.
        target: half the width of the 95 % interval of the perplexity, from Monte-Carlo error alone.
        parts_file: as in `evaluate_corpus`.
    Returns:
        `samples_needed` per text; `perplexity`; `perplexity_text_error`, half the interval that the
        choice of the texts alone leaves for all rows, which no number of samples lowers;
        `seconds_per_sample` of one text.
    Raises:
        ValueError: fewer than two texts or four samples, or a model whose value is exact.
    """
    texts = _diffusion_rows(model, rows)
    if num_samples < 4 or min(num_texts, len(texts)) < 2:
        raise ValueError(
            f"pilot needs num_samples of 4 or more and 2 or more texts, got {num_samples} and "
            f"{min(num_texts, len(texts))}. The defaults are 16 and 32."
        )
    chosen = _choose_rows(texts, num_texts, seed)
    options = {"num_samples": num_samples, "seed": seed, "progress": progress}
    record = evaluate_corpus(model, chosen, bound=bound, parts_file=parts_file, **options)
    return {
        "bound": bound,
        "target": target,
        "perplexity": record["perplexity"],
        "samples_needed": _samples_needed(record, texts, target),
        "perplexity_text_error": _text_error(record, texts),
        "variance_per_sample": float(sample_variances(record).mean()),
        "seconds_per_sample": record["seconds"] / (num_samples * len(chosen)),
        "texts_measured": len(chosen),
        "texts": len(texts),
    }


def _width(record: dict[str, Any], texts: list[Text]) -> float:
    """Half the interval of the perplexity of `texts` for one nat of error in their sum."""
    tokens = sum(int((text.labels != -100).sum()) for text in texts)
    return Z95 * record["perplexity"] / tokens


def _samples_needed(record: dict[str, Any], texts: list[Text], target: float) -> int:
    """Samples per text that bring the perplexity of `texts` to +- `target`, by some of them."""
    variance = float(sample_variances(record).mean())
    return max(1, math.ceil(len(texts) * variance * (_width(record, texts) / target) ** 2))


def compare_bounds(
    model: nn.Module,
    rows: Iterable[dict],
    *,
    num_texts: int = 64,
    num_samples: int = 16,
    target: float = 0.1,
    seed: int = 0,
    parts_file: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Samples that the time bound and the order bound need for equal error on the same texts.

    Args:
        parts_file: `name.jsonl` becomes `name-order.jsonl` and `name-time.jsonl`, as in
            `evaluate_corpus`.
    Returns:
        `time_over_order`: how many samples of the time bound carry as much as one of the order
        bound, the ratio of the variances per text and sample; its 95 % interval, by the bootstrap
        over texts; bound by bound the values and, for all rows, `samples_needed` for a perplexity
        to +- `target`.
    Raises:
        ValueError: fewer than two texts, a model whose value is exact, or texts of which the order
            bound is exact.
    """
    texts = _diffusion_rows(model, rows)
    if min(num_texts, len(texts)) < 2:
        raise ValueError(
            f"compare_bounds needs 2 or more texts, got {min(num_texts, len(texts))}. Pass more "
            "rows."
        )
    chosen = _choose_rows(texts, num_texts, seed)
    options = {"num_samples": num_samples, "seed": seed, "progress": progress}
    records = {
        bound: evaluate_corpus(
            model, chosen, bound=bound, parts_file=beside(parts_file, bound), **options
        )
        for bound in ("order", "time")
    }
    return {
        **_time_over_order(*records.values(), seed),
        "n": len(chosen),
        "num_samples": num_samples,
        **{bound: _summary(record, texts, target) for bound, record in records.items()},
    }


def _time_over_order(order: dict[str, Any], time: dict[str, Any], seed: int) -> dict[str, Any]:
    """The ratio of the variances by the records of both bounds, and its interval."""
    variances = sample_variances(time), sample_variances(order)
    if not variances[1].any():
        raise ValueError(
            "the order bound of these rows has no Monte-Carlo error to compare with. Pass longer "
            "rows."
        )
    return {
        "time_over_order": float(variances[0].mean() / variances[1].mean()),
        "time_over_order_interval": _ratio_interval(*variances, seed),
    }


def _summary(record: dict[str, Any], texts: list[Text], target: float) -> dict[str, Any]:
    """The value of one bound, its error, and the samples that all `texts` need."""
    deviation = math.sqrt(float(sample_variances(record).mean()))
    return {
        "value": record["value"],
        "monte_carlo_error": record["monte_carlo_error"],
        "deviation_per_sample": deviation * record["n"] / record["tokens"],
        "samples_needed": _samples_needed(record, texts, target),
    }


def _ratio_interval(numerator: Tensor, denominator: Tensor, seed: int) -> list[float]:
    """95 % interval of the ratio of two means over texts `[N]`, by the bootstrap."""
    count, generator = len(numerator), torch.Generator().manual_seed(seed)
    draws = torch.randint(count, (BOOTSTRAPS, count), generator=generator)
    ratios = numerator[draws].mean(-1) / denominator[draws].mean(-1)
    ratios = ratios[ratios.isfinite()]  # a resample may hold only texts without error
    return ratios.quantile(torch.tensor([0.025, 0.975]).double()).tolist()


def exact_gap(
    model: nn.Module,
    rows: Iterable[dict],
    *,
    positions: int = 10,
    num_texts: int = 16,
    num_samples: int = 512,
    num_orders: int | None = None,
    span: bool = False,
    seed: int = 0,
    parts_file: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Bound minus exact `-log P` of some positions of real texts, given all others.

    Args:
        positions: how many positions of each text are not given, 1 to 14: the exact value costs
            `2^positions` passes.
        num_texts: how many texts, drawn by `seed`. num_samples: of each bound, per text.
        num_orders: also measure the order bound with this many orders, from as many times fewer
            samples.
        span: the positions are neighbours, which depend on each other most; else they are drawn
            anywhere in the text.
        parts_file: finished texts are appended here and not measured again.
    Returns:
        `exact`, and for each bound `value` and `gap`: means over texts in nats per position, each
        with its `standard_error`; the gaps are paired text by text. `per_text` holds the values of
        each, in nats per position: systems asked for the same positions of the same rows compare
        text by text.
    Raises:
        ValueError: `positions` out of range, fewer than two texts that have so many, or a model
            whose value is exact.
    """
    excerpts = _excerpts(model, rows, positions, num_texts, span, seed)
    bounds = {bound: {"bound": bound, "num_samples": num_samples} for bound in ("order", "time")}
    if num_orders is not None:
        groups = {"num_orders": num_orders, "num_samples": max(1, num_samples // num_orders)}
        bounds[f"order, {num_orders} orders"] = groups
    values = _exact_and_bounds(model, excerpts, bounds, seed, parts_file, progress)
    setting = {"n": len(values), "positions": positions, "span": span, "num_samples": num_samples}
    exact, *estimates = values.unbind(-1)
    gaps = [{**_mean(estimate), "gap": _mean(estimate - exact)} for estimate in estimates]
    per_text = dict(zip(("exact", *bounds), values.T.tolist(), strict=True))
    by_bound = dict(zip(bounds, gaps, strict=True))
    return {"exact": _mean(exact), **setting, **by_bound, "per_text": per_text}


def _excerpts(
    model: nn.Module, rows: Iterable[dict], positions: int, num_texts: int, span: bool, seed: int
) -> list[Text]:
    """Some of the rows, each with all but `positions` of its positions given."""
    if not 1 <= positions <= MAX_EXACT_POSITIONS:
        raise ValueError(
            f"positions must be in 1 to {MAX_EXACT_POSITIONS}, got {positions}. For example: 10."
        )
    texts = [
        text
        for text in _diffusion_rows(model, rows)
        if int((text.labels != -100).sum()) >= positions
    ]
    if min(len(texts), num_texts) < 2:
        raise ValueError(
            f"exact_gap needs 2 or more texts with {positions} tokens to count, got "
            f"{min(len(texts), num_texts)}. Lower positions, or pass more rows."
        )
    chosen = _choose(len(texts), num_texts, seed)
    return [
        _ask(texts[index], positions, span, seed + number) for number, index in enumerate(chosen)
    ]


def _exact_and_bounds(
    model: nn.Module,
    texts: list[Text],
    bounds: dict[str, dict],
    seed: int,
    parts_file: str | Path | None,
    show: bool,
) -> Tensor:
    """Exact `-log P` and bounds of each text in nats per position, `[N, 1 + bounds]` float64."""
    device = next(model.parameters()).device
    rows = [[text.ids.tolist(), text.labels.tolist()] for text in texts]
    parts = PartsFile(
        parts_file, {"texts": values_digest(rows), "bounds": bounds, "seed": seed}, model
    )
    done = {number: part["values"] for number, part in parts.read().items()}
    todo = [number for number in range(len(texts)) if number not in done]
    for number in tqdm(todo, disable=not show, unit="text", desc="exact gap"):
        text = collate([texts[number]], device)
        exact = -exact_log_likelihood(model, text["input_ids"], text["labels"])
        estimates = [
            nelbo(model, **text, **options, generator=step_generators(seed, 1, [number])).nelbo
            for options in bounds.values()
        ]
        count = int((texts[number].labels != -100).sum())
        done[number] = (torch.cat([exact, *estimates]) / count).tolist()
        parts.append({number: {"values": done[number]}}, process_state().process_index)
    return torch.tensor([done[number] for number in range(len(texts))], dtype=torch.float64)


def sample_variances(record: dict[str, Any]) -> Tensor:
    """The Monte-Carlo variance `[N]` of one sample of each text, nats squared, by its record."""
    return (
        torch.tensor(record["per_text"]["error"], dtype=torch.float64).square()
        * record["num_samples"]
    )


def _text_error(record: dict[str, Any], texts: list[Text]) -> float:
    """Half the interval of the perplexity of `texts` that their choice alone leaves.

    By the variance between texts, in nats squared, the Monte-Carlo variance taken out.
    """
    tokens, main, velocity, error = (
        torch.tensor(record["per_text"][name], dtype=torch.float64)
        for name in ("tokens", "main", "velocity", "error")
    )
    residual = main + velocity - record["value"] * tokens
    variance = float(residual.square().sum() / (len(residual) - 1) - error.square().mean())
    return _width(record, texts) * math.sqrt(len(texts) * max(0.0, variance))


def _diffusion_rows(model: nn.Module, rows: Iterable[dict]) -> list[Text]:
    if not is_diffusion(model):
        raise ValueError(
            f"model {type(model).__name__} has an exact likelihood: there is no bound to examine."
        )
    return read_rows(rows, model.config.max_position_embeddings)


def _choose(count: int, wanted: int, seed: int) -> Sequence[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted].tolist()


def _choose_rows(texts: list[Text], wanted: int, seed: int) -> list[dict]:
    chosen = (texts[i] for i in _choose(len(texts), wanted, seed))
    return [{"input_ids": text.ids, "labels": text.labels} for text in chosen]


def _ask(text: Text, positions: int, span: bool, seed: int) -> Text:
    """`text` with all but `positions` of its maskable positions given."""
    maskable = np.flatnonzero(text.labels != -100)
    random = np.random.default_rng(seed)
    if span:
        start = random.integers(len(maskable) - positions + 1)
        chosen = maskable[start : start + positions]
    else:
        chosen = random.choice(maskable, positions, replace=False)
    labels = np.full_like(text.labels, -100)
    labels[chosen] = text.labels[chosen]
    return Text(text.ids, labels)


def _mean(values: Tensor) -> dict[str, float]:
    return {
        "value": float(values.mean()),
        "standard_error": float(values.std() / math.sqrt(len(values))),
    }
