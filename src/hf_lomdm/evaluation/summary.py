"""Corpus values and their errors from those of single texts."""

from torch import Tensor


def summarise_texts(texts: Tensor) -> dict[str, float]:
    """Corpus metrics of texts `[N, 4]`: maskable tokens, main, velocity, Monte-Carlo error.

    The standard error is that of the ratio estimator `sum nelbo / sum tokens` over texts as a
    sample; as each text's nelbo carries its Monte-Carlo error, both errors are in it. A single text
    says nothing of the others, nor does one without a token to count: without it.

    Raises:
        ValueError: there is no token to count.
    """
    if not (texts[:, 0] > 0).any():
        raise ValueError(
            f"{len(texts)} texts hold no token to count: all are given or padding. Pass other "
            "texts."
        )
    texts = texts[texts[:, 0] > 0]
    tokens, main, velocity, error = texts.double().unbind(-1)
    total = tokens.sum()
    value = (main + velocity).sum() / total
    metrics = {
        "loss": value,
        "nelbo": value,
        "main": main.sum() / total,
        "velocity": velocity.sum() / total,
        "perplexity": value.exp(),
        "tokens": tokens.sum(),
    }
    if len(texts) > 1:
        spread = (main + velocity - value * tokens).square().sum() * len(texts) / (len(texts) - 1)
        metrics["nelbo_standard_error"] = spread.sqrt() / total
    if not error.isnan().any():
        metrics["nelbo_monte_carlo_error"] = error.square().sum().sqrt() / total
    return {name: float(number) for name, number in metrics.items()}


def masked_std(values: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation `[B]` of `values` `[B, L]` where `mask` `[B, L]` is true."""
    mask = mask.to(values.dtype)
    count = mask.sum(-1, keepdim=True).clamp(min=1)
    centred = (values - (values * mask).sum(-1, keepdim=True) / count) * mask
    return (centred.square().sum(-1) / count[:, 0]).sqrt()
