"""Corpus values and their errors from those of single texts."""

import math

from torch import Tensor


def summarise_texts(texts: Tensor) -> dict[str, float]:
    """Corpus metrics from rows `[N, 4]` of maskable tokens, main, velocity and Monte-Carlo error of each text.

    The standard error is that of the ratio estimator `sum nelbo / sum tokens` over texts as a sample; as each text's
    nelbo carries its Monte-Carlo error, both errors are in it. A single text says nothing of the others: NaN.
    """
    tokens, main, velocity, error = texts.double().unbind(-1)
    total = tokens.sum().clamp(min=1)
    value = (main + velocity).sum() / total
    residual = main + velocity - value * tokens
    spread = residual.square().sum() * (len(texts) / (len(texts) - 1) if len(texts) > 1 else math.nan)
    metrics = {
        "loss": value,
        "nelbo": value,
        "nelbo_standard_error": spread.sqrt() / total,
        "main": main.sum() / total,
        "velocity": velocity.sum() / total,
        "perplexity": value.exp(),
        "tokens": tokens.sum(),
    }
    if not error.isnan().any():
        metrics["nelbo_monte_carlo_error"] = error.square().sum().sqrt() / total
    return {name: float(number) for name, number in metrics.items()}
