"""Bounds on `-log P(x)` with their Monte-Carlo error, and exact values of short texts."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..modeling.backbone_lomdm import check_inputs, check_labels
from ..modeling.batch_lomdm import Batch, make_batch, stack_views
from ..modeling.blocks_lomdm import block_quantiles, block_sum, broadcast_to_positions
from ..modeling.configuration_lomdm import BOUNDS
from ..modeling.process_lomdm import at_least_float32, draw_order, log_prob_prefix
from ..modeling.random_lomdm import position_exponentials, row_seeds
from ..pipelines.pipeline_lomdm import eval_mode

MAX_EXACT_POSITIONS = 14  # of a block: 2^14 passes
# Floats in the largest tensor of one chunk, logits or MLP activations: 128 MiB in float32.
CHUNK_ELEMENTS = 2**25


@dataclass(frozen=True)
class NelboEstimate:
    """Bounds on `-log P(x)` for each text of a batch, in nats per text; float64 tensors on the CPU.

    Attributes:
        nelbo: `[B]`, unbiased estimate of the bound; `main + velocity`.
        standard_error: `[B]`, Monte-Carlo standard error of `nelbo` for the given texts, `None`
            from a single draw. The error from the choice of the texts is not in it.
        main: `[B]`, the token part. With several orders: the mean of `-log p` over the orders.
        velocity: `[B]`, the order part. With several orders: the rest of the bound, which may be
            negative.
    """

    nelbo: Tensor
    standard_error: Tensor | None
    main: Tensor
    velocity: Tensor


def nelbo(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    bound: str = "order",
    num_samples: int = 2,
    num_orders: int | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    density: Tensor | None = None,
) -> NelboEstimate:
    """Estimates an upper bound on `-log P(x)` of each text (docs/method.md, the two bounds).

    The draws of the number of reveals (order bound) or of the local time (time bound) are
    stratified within each text, so every row is unbiased on its own. The time bound is the uncut
    integral. Runs in eval mode, which it restores.

    Args:
        model: a `LoMDMForMaskedDiffusion`, on any device and in any dtype.
        input_ids: `[B, L]` int64, clean texts.
        attention_mask: `[B, L]`, 1 = real, 0 = padding; `None` = nothing padded.
        labels: `[B, L]`, the clean token ids, -100 = given (neither masked nor counted); default:
            nothing is given.
        bound: `"order"` or `"time"`.
        num_samples: passes per text; with `num_orders` the number of independent groups of orders.
            They are split into independent replicates, whose spread is the standard error: from 2
            samples on.
        num_orders: `K` replaces the order bound by the tighter `-log mean_k P(x, order_k) /
            q(order_k | x)` of each block, at `num_samples * K * n` passes per text (or longest
            block) of `n` maskable positions.
        generator: source of all draws; one, or one per text (then a text does not depend on its
            batch or padding).
        density: `[bins]`, how densely the share revealed (`k / n`, in each block) is drawn in equal
            parts of `[0, 1]`, up to a factor, for the order bound; a weight keeps the estimate
            unbiased. `None` = evenly. `hf_lomdm.evaluation.density.measured_density` fits it. It
            changes the error, not the bound.
    Raises:
        ValueError: shapes, ids or options that do not fit, or a model whose bound is not finite.
    """
    check_options(bound, num_samples, num_orders)
    _check_density(density, bound, num_orders)
    batch = clean_texts(model, input_ids, attention_mask, labels)
    with evaluating(model):
        rates = model.forward_rates(batch.ids, attention_mask, given=~batch.maskable)
        if num_orders is None:
            replicates = _one_view_replicates(
                model, batch, rates, bound, num_samples, generator, density
            )
        else:
            groups = [
                _order_group(model, batch, rates, num_orders, generator) for _ in range(num_samples)
            ]
            replicates = torch.stack(groups)
    return _summarise(replicates)


def check_options(bound: str, num_samples: int, num_orders: int | None) -> None:
    """Raise `ValueError` where options of `nelbo` are out of range or exclude each other."""
    if bound not in BOUNDS:
        raise ValueError(f"bound must be one of {BOUNDS}, got {bound!r}.")
    if num_samples < 1:
        raise ValueError(
            f"num_samples must be at least 1, got {num_samples}. Pass 2 or more for a standard "
            "error."
        )
    if num_orders is not None and num_orders < 1:
        raise ValueError(f"num_orders must be None or at least 1, got {num_orders}.")
    if num_orders is not None and bound != "order":
        raise ValueError(
            f"num_orders={num_orders} needs bound='order', got {bound!r}. Leave num_orders out."
        )


def weighted_shares(quantiles: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    """Shares by a piecewise constant density, from uniform quantiles, and their weights.

    For every `f`, the mean of `weight * f(share)` over uniform quantiles is the mean of `f` over
    uniform shares.

    Args:
        quantiles: of any shape, in `(0, 1)`. density: `[bins]`, positive, of equal parts of `[0,
            1]`, up to a factor.
    Returns:
        Shares and weights `1 / density(share)`, both of the shape and device of `quantiles`,
        float64.
    """
    density = density.to(quantiles.device, torch.float64) / density.double().mean().to(
        quantiles.device
    )
    edges = torch.cat([density.new_zeros(1), (density / len(density)).cumsum(0)])
    index = (
        torch.searchsorted(edges, quantiles.double(), right=True).sub(1).clamp(0, len(density) - 1)
    )
    shares = index / len(density) + (quantiles.double() - edges[index]) / density[index]
    return shares, 1 / density[index]


def loss_by_share(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    bins: int,
    generators: list[torch.Generator],
) -> Tensor:
    """The order bound's one-draw estimates by the share revealed, summed over texts and blocks.

    Two independent views at one share per text and bin (`2 * bins` passes) tell the noise from the
    texts' difference.

    Args:
        input_ids, attention_mask, labels: as in `nelbo`. generators: one per text.
    Returns:
        `[3, bins]` float64 on the CPU: number of blocks with something to count, sums of their loss
        (nats) and of the variance of a draw at a given share (nats squared).
    Raises:
        ValueError: shapes or ids that do not fit, or a model whose bound is not finite.
    """
    batch = clean_texts(model, input_ids, attention_mask, labels)
    has_maskable = block_sum(batch.maskable.long(), batch.blocks).cpu() > 0  # [B, N]
    num_texts, device, sums = len(batch.ids), batch.ids.device, []
    with evaluating(model):
        rates = model.forward_rates(batch.ids, attention_mask, given=~batch.maskable)
        for number in range(bins):
            seeds = torch.cat([row_seeds(generators, num_texts, device) for _ in range(2)])
            offset = torch.stack(
                [torch.rand((), generator=source, dtype=torch.float64) for source in generators]
            )
            quantiles = ((number + offset) / bins).to(device)[:, None].expand(has_maskable.shape)
            terms, *_ = model.estimate_bound(batch, rates, quantiles, seeds, "order")
            first, second = (
                (terms.main + terms.velocity).cpu().double().view(2, *has_maskable.shape)
            )
            require_finite((first + second).sum(-1), "loss by share")
            variance = (first - second).square().sum() / 2
            sums.append(torch.stack([has_maskable.sum(), ((first + second) / 2).sum(), variance]))
    return torch.stack(sums, dim=-1)


@torch.no_grad()
def exact_log_likelihood(
    model: nn.Module,
    input_ids: Tensor,
    labels: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """`log P(x)` of each text, summed over all `n!` orders by way of `2^n` masked subsets.

    With blocks, the sum over the blocks of `log P(block | blocks before it)`.

    Args:
        model: a `LoMDMForMaskedDiffusion`. input_ids: `[B, L]` int64, clean texts.
        labels: `[B, L]`, the clean token ids, -100 = given; at most 14 positions of a text (or of a
            block) may be neither given nor padding. The result is then the conditional
            log-probability of these, given the others.
        attention_mask: `[B, L]`, 1 = real, 0 = padding; `None` = nothing padded.
    Returns:
        `[B]` float64 on the CPU, nats; 0 for a text in which everything is given.
    Raises:
        ValueError: more than 14 positions to sum over, shapes or ids that do not fit, a model that
            is not finite.
    """
    batch = clean_texts(model, input_ids, attention_mask, labels)
    longest = int(block_sum(batch.maskable.long(), batch.blocks).max()) if len(batch.ids) else 0
    if longest > MAX_EXACT_POSITIONS:
        raise ValueError(
            f"input_ids has a text (or block) with {longest} maskable positions; "
            f"exact_log_likelihood takes at most {MAX_EXACT_POSITIONS} (2^n passes). Give more "
            "positions by labels of -100, or use nelbo(num_orders=...)."
        )
    with evaluating(model):
        values = [
            _subset_sum(model, batch.rows(slice(row, row + 1))) for row in range(len(batch.ids))
        ]
    return require_finite(torch.tensor(values, dtype=torch.float64), "log-likelihood")


def _check_density(density: Tensor | None, bound: str, num_orders: int | None) -> None:
    if density is None:
        return
    if bound != "order" or num_orders is not None:
        raise ValueError(
            f"density is for bound='order' without num_orders, got {bound!r} and {num_orders}. "
            "Leave density out."
        )
    if density.dim() != 1 or not len(density) or not (density.isfinite() & (density > 0)).all():
        raise ValueError(
            f"density must be [bins], finite and positive, got {density}. Use measured_density."
        )


def clean_texts(model, input_ids, attention_mask, labels) -> Batch:
    """Checks the input; the clean texts and their maskable positions."""
    check_inputs(input_ids, attention_mask, model.config)
    real = (
        torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is None
        else attention_mask.bool()
    )
    if labels is None:
        labels = input_ids.masked_fill(~real, -100)
        if (labels == model.config.mask_token_id).any():
            raise ValueError(
                f"input_ids contain the mask token ({model.config.mask_token_id}). Pass clean "
                "texts."
            )
    check_labels(input_ids, labels, None, model.config)
    maskable = real & (labels != -100)
    clean = torch.where(maskable, labels, input_ids).to(torch.int64)
    return make_batch(clean, attention_mask, model.config.block_size, maskable)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within this context `model` is in eval mode, and nothing is recorded for gradients."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError(
            "model has virtual tokens of peft, which forward alone sees. Evaluate the loss of "
            "forward."
        )
    with eval_mode(model), torch.no_grad():
        yield


def _one_view_replicates(
    model, batch: Batch, rates, bound, num_samples, generator, density
) -> Tensor:
    """`[R, 2, B]` float64: main and velocity part of each replicate."""
    sizes, num_texts, device = replicate_sizes(num_samples), len(batch.ids), batch.ids.device
    offset_seeds = row_seeds(generator, num_texts, device)
    offsets = torch.exp(
        -position_exponentials(offset_seeds, torch.arange(len(sizes), device=device)[None])
    )
    replicates = []
    for offset, size in zip(offsets.unbind(-1), sizes, strict=True):
        total = torch.zeros(2, num_texts, dtype=torch.float64)
        for stratum in range(size):
            quantiles = (offset + stratum) / size  # [B]
            quantiles = block_quantiles(quantiles, offset_seeds, batch.blocks)  # [B, N]
            weights: Tensor | float = 1.0
            if density is not None:
                quantiles, weights = weighted_shares(quantiles, density)
            seeds = row_seeds(generator, num_texts, device)
            terms, *_ = model.estimate_bound(batch, rates, quantiles, seeds, bound)
            total += (torch.stack([terms.main, terms.velocity]).double() * weights).sum(
                -1
            ).cpu() / size
        replicates.append(total)
    return torch.stack(replicates)


def replicate_sizes(num_samples: int) -> list[int]:
    """Strata of each of about `sqrt(S)` replicates.

    Few strata stratify badly, few replicates measure badly.
    """
    count = min(num_samples, max(2, math.isqrt(num_samples)))
    return [num_samples // count + (r < num_samples % count) for r in range(count)]


def _summarise(replicates: Tensor) -> NelboEstimate:
    """The mean over independent unbiased replicates `[R, 2, B]`, and its standard error."""
    main, velocity = replicates.mean(0)
    error = replicates.sum(1).std(0) / len(replicates) ** 0.5 if len(replicates) > 1 else None
    return NelboEstimate(require_finite(main + velocity, "nelbo"), error, main, velocity)


class NotFiniteError(FloatingPointError, ValueError):
    """A value that is not finite: the weights are broken, or training has diverged."""


def require_finite(values: Tensor, name: str) -> Tensor:
    """`values` `[B]`; raises `NotFiniteError` where one is not finite, with the texts."""
    if not values.isfinite().all():
        rows = (~values.isfinite()).nonzero().flatten().tolist()
        raise NotFiniteError(
            f"The {name} of texts {rows[:8]} is not finite. Check the model's weights for NaN and "
            "inf."
        )
    return values


def _order_group(model, batch: Batch, rates: Tensor, num_orders: int, generator) -> Tensor:
    """Main and velocity part `[2, B]` float64 of the bound of `K` drawn orders.

    The bound is `-log mean_k P(x, order_k) / q(order_k|x)`.
    """
    num_texts, device = len(batch.ids), batch.ids.device
    seeds = torch.cat([row_seeds(generator, num_texts, device) for _ in range(num_orders)])
    batch, rates = batch.stack(num_orders), stack_views(rates, num_orders)  # [K * B, L]
    exponentials = position_exponentials(seeds, batch.position)
    rank = draw_order(exponentials.to(rates), rates, batch.maskable, batch.blocks)
    counts = block_sum(batch.maskable.long(), batch.blocks)
    # [K * B, N]
    log_q = log_prob_prefix(rank, counts, rates, batch.maskable, batch.blocks).cpu().double()
    log_choices, log_tokens = _log_prob_of_order(model, batch, rank)
    log_ratio = (log_choices + log_tokens - log_q).view(num_orders, -1, log_q.shape[1])
    bound = (math.log(num_orders) - log_ratio.logsumexp(0)).sum(-1)
    main = -log_tokens.sum(-1).view(num_orders, -1).mean(0)
    return torch.stack([main, bound - main])


def _log_prob_of_order(model, batch: Batch, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[B, N]` that the model reveals these tokens in order of `rank`.

    All blocks of a text move on at once: each sees the others as they are in the clean text.
    """
    maskable, length = batch.maskable, batch.ids.shape[1]
    choices, tokens = torch.zeros(2, *batch.ids.shape, dtype=torch.float64)
    for step in range(int(rank[maskable].max()) + 1 if maskable.any() else 0):
        left = maskable & (rank >= step)
        for rows in left.any(-1).nonzero().flatten().split(_chunk_rows(model, length, 1)):
            at = left[rows] & (rank[rows] == step)
            log_choice, log_token = _log_reveals(model, batch.rows(rows), left[rows], at)
            choices[rows.cpu()] += torch.zeros(at.shape, dtype=torch.float64).masked_scatter(
                at.cpu(), log_choice
            )
            tokens[rows.cpu()] += torch.zeros(at.shape, dtype=torch.float64).masked_scatter(
                at.cpu(), log_token
            )
    blocks = (
        None
        if batch.blocks is None
        else batch.blocks._replace(of_position=batch.blocks.of_position.cpu())
    )
    return block_sum(choices, blocks), block_sum(tokens, blocks)


def _subset_sum(model, batch: Batch) -> float:
    """`log P` of one text (`[1, L]` each), the sum over its blocks."""
    alone = [
        batch.maskable & (batch.block == block) for block in batch.block[batch.maskable].unique()
    ]
    return sum(_subset_sum_of_block(model, batch, block) for block in alone)


def _subset_sum_of_block(model, batch: Batch, maskable: Tensor) -> float:
    """`P(S) = sum_{i in S} (v_i / V) p_i(x_i) P(S without i)` over the maskable subsets `S`.

    `P({}) = 1`.
    """
    length = batch.ids.shape[1]
    places = maskable[0].nonzero().flatten()  # [n]
    bit = torch.arange(len(places))
    # [2^n, n], row S = the subset S
    members = (torch.arange(2 ** len(places))[:, None] >> bit) % 2 == 1
    # of each reveal from each subset
    log_next = torch.full(members.shape, -torch.inf, dtype=torch.float64)
    rows = _chunk_rows(model, length, max(1, len(places)))
    for part, values in zip(members.split(rows), log_next.split(rows), strict=True):
        masked = torch.zeros(len(part), length, dtype=torch.bool, device=batch.ids.device)
        masked[:, places] = part.to(masked.device)
        log_choice, log_token = _log_reveals(model, batch.stack(len(part)), masked, masked)
        values[part] = log_choice + log_token
    log_rest = torch.zeros(len(members), dtype=torch.float64)
    for size in range(1, len(places) + 1):
        subset = (members.sum(-1) == size).nonzero().flatten()
        # has no effect where i is not in the subset
        without = (subset[:, None] - 2**bit).clamp(min=0)
        log_rest[subset] = (log_next[subset] + log_rest[without]).logsumexp(-1)
    return log_rest[-1].item()


def _log_reveals(model, batch: Batch, masked: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[M]` that `i` is its block's next reveal, and that it gets `x_i`.

    Args:
        batch: `R` clean texts. masked: `[R, L]` bool, the state. at: `[R, L]` bool, the `M` masked
            positions asked for.
    """
    noisy = batch._replace(ids=batch.ids.masked_fill(masked, model.config.mask_token_id))
    hidden, rates = model.encode_views(noisy, batch)
    if model.rates_need_logits:
        rates = rates.masked_scatter(
            masked, model.rates_of_logits(model.token_logits(hidden[masked]))
        )
    total = broadcast_to_positions(block_sum(rates * masked, batch.blocks), batch.blocks)
    log_choice = (rates.log() - total.log())[at]
    log_law = at_least_float32(model.token_logits(hidden[at])).log_softmax(-1)  # [M, V]
    log_token = log_law.gather(-1, batch.ids[at][:, None]).squeeze(-1)
    return log_choice.cpu().double(), log_token.cpu().double()


def _chunk_rows(model, length: int, projected: int) -> int:
    """Rows per pass that bound memory; `projected` positions of each get logits."""
    projected = length if model.rates_need_logits else projected
    largest = max(projected * model.config.vocab_size, length * model.config.intermediate_size)
    return max(1, CHUNK_ELEMENTS // largest)
