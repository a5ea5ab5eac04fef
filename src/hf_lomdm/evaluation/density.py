"""How densely the order bound should draw the share revealed, by a pilot's loss."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..data.batches import batches_by_length, collate, read_rows
from ..data.draws import step_generators
from .corpus import is_diffusion
from .likelihood import loss_by_share, replicate_sizes, weighted_shares

UNIFORM_PART = 0.1  # of a fitted density, so that no weight exceeds 10


def measured_density(
    model: nn.Module,
    rows: Iterable[dict],
    *,
    num_samples: int = 2,
    bins: int = 16,
    num_texts: int = 64,
    batch_tokens: int = 8192,
    seed: int = 0,
) -> list[float]:
    """The density of shares with the least predicted Monte-Carlo error of `num_samples`.

    The candidates are the even one and `sqrt(mean^2 / m^2 + spread^2)`, of the loss in each of
    `bins` equal parts of `[0, 1]`, for `m = 1` (the root mean square) and for the number `m` of
    strata: the more strata, the less the mean's slope adds to the error (docs/evaluation.md). A
    tenth of each is uniform. The pilot's draws are its own, so the estimate on the same rows stays
    unbiased.

    Args:
        model: a `LoMDMForMaskedDiffusion`. rows: as in `evaluate_corpus`. num_samples: of the
            evaluation to come.
        num_texts: how many rows to measure, drawn by `seed`, at two passes per row and bin.
    Returns:
        `bins` numbers with mean 1, for `evaluate_corpus(density=...)`; all 1 where evenly is best.
    Raises:
        ValueError: counts below 1, or a model whose value is exact.
    """
    if not is_diffusion(model):
        raise ValueError(
            f"model {type(model).__name__} has an exact likelihood: there are no shares to draw."
        )
    for name, count in (("num_samples", num_samples), ("bins", bins), ("num_texts", num_texts)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")
    texts = read_rows(rows, model.config.max_position_embeddings)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    sums = torch.zeros(3, bins, dtype=torch.float64)
    for batch in batches_by_length(texts, order[:num_texts].tolist(), batch_tokens):
        inputs = collate([texts[i] for i in batch], next(model.parameters()).device)
        # the evaluation draws with step 0; the pilot must be independent of it
        generators = step_generators(seed, 1, batch)
        sums += loss_by_share(model, **inputs, bins=bins, generators=generators)
    strata = min(replicate_sizes(num_samples))
    best = _best_density(sums[1] / sums[0], (sums[2] / sums[0]).sqrt(), strata)
    return [round(value, 4) for value in best.tolist()]


def _best_density(mean: Tensor, spread: Tensor, strata: int) -> Tensor:
    """The candidate `[bins]` with the least predicted variance, by the loss in each bin."""
    candidates = [torch.ones_like(mean)]
    for slope in (1.0, 1.0 / strata):
        shape = (mean.square() * slope**2 + spread.square()).sqrt()
        candidates.append((1 - UNIFORM_PART) * shape / shape.mean() + UNIFORM_PART)
    return min(candidates, key=lambda density: _predicted_variance(density, mean, spread, strata))


def _predicted_variance(density: Tensor, mean: Tensor, spread: Tensor, strata: int) -> float:
    """The variance of one stratum: noise at a share, and slope of the mean within it."""
    points, bins = 256, len(mean)
    quantiles = (torch.arange(strata * points, dtype=torch.float64) + 0.5) / (strata * points)
    shares, weights = weighted_shares(quantiles, density)
    # the mean is interpolated between the centres of bins
    place = (shares * bins - 0.5).clamp(0, bins - 1)
    low = place.long().clamp(max=max(0, bins - 2))
    curve = mean[low].lerp(mean[(low + 1).clamp(max=bins - 1)], place - low)
    noise = (spread[(shares * bins).long().clamp(max=bins - 1)] * weights).square().mean()
    slope = (curve * weights).view(strata, points).var(-1, correction=0).mean()
    return float(noise + slope)
