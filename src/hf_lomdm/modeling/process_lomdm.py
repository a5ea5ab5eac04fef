"""The process of docs/method.md as pure functions: time, rates, draws, bounds, RLOO score.

Everything is per text and, within a text, per block: `[B, L]` are values per position, `[B, N]` per
block. Without `blocks` there is one window (`N = 1`). Floating values are float32 or wider; nothing
here knows of a network.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .blocks_lomdm import Blocks, block_min, block_sum, broadcast_to_positions
from .random_lomdm import check_rates

# The stream of a cut time bound spends this share of its draws on the reconstruction term
# (`draw_time_view`).
RECONSTRUCTION_SHARE = 0.125
# Newton steps for the adaptive grid. They approach the root from one side, so stopping early
# reveals a little late.
NEWTON_STEPS = 20


class View(NamedTuple):
    """One draw of a partly masked text and what the bounds need to know of it.

    `masked` `[B, L]` bool; `log_q` `[B, N]`, log-probability of the draw, differentiable in the
    rates; `weight` `[B, N]`, importance weight of the draw; `reconstruction` `[B, N]` bool, where
    the draw stands for the reconstruction term of a cut time bound, or `None`.
    """

    masked: Tensor
    log_q: Tensor
    weight: Tensor
    reconstruction: Tensor | None = None


class BoundTerms(NamedTuple):
    """One-draw estimates `[B, N]` in nats: `main + velocity` is the bound, `ratio` is `V / W`."""

    main: Tensor
    velocity: Tensor
    rate_ratio: Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """`values` in float32, or in float64 if that is what they are: the precision of the process."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


# ---------------------------------------------------------------------------- time and the schedule


def local_time(
    time: float | Tensor, block: int | Tensor = 0, num_blocks: int | Tensor = 1, unit: int = 1
) -> Tensor:
    """Local time `u = clip((t - a) / (b - a), 0, 1)` of each position at time `t`, float64.

    Block `b` of `N` has the window `[a, b] = [1 - (b + 1) / N, 1 - b / N]`: the leftmost is masked
    last.

    Args:
        time: `t * unit`, a number or `[B, 1]`. In whole steps of a grid of `unit` steps, windows
            end at exactly 0.
        block: `[B, L]`, block of each position. num_blocks: of each text, `[B, 1]`, or a number for
            all.
    Returns:
        `[B, L]` in `[0, 1]`.
    """
    start = (num_blocks - 1 - block) * unit
    since_start: Any = num_blocks * time - start  # one of them is a tensor
    return (since_start.to(torch.float64) / unit).clamp(0, 1)


def log_mask_probability(log_u: Tensor, rates: Tensor) -> Tensor:
    """`log(1 - alpha) = w log u`, log-probability of a mask at local time `u`: `[B, L]`."""
    return rates * log_u


def alpha(log_u: Tensor, rates: Tensor) -> Tensor:
    """`alpha = 1 - u^w`, the probability of no mask at local time `u`: `[B, L]`."""
    return -torch.expm1(rates * log_u)


def velocity(
    time: float | Tensor, rates: Tensor, block: int | Tensor = 0, num_blocks: int | Tensor = 1
) -> Tensor:
    """The paper's velocity `A = -alpha' / (1 - alpha) = w / (t - a)` in `[a, b]`, else 0: `[B, L]`.

    Per unit of global time; infinite at `t = a`. Arguments as in `local_time`.
    """
    since_start: Any = time - (num_blocks - 1 - block) / num_blocks  # one of them is a tensor
    inside = (since_start >= 0) & (since_start * num_blocks <= 1)
    return torch.where(inside, rates / since_start, 0.0)


def reveal_probability(log_u_from: Tensor, log_u_to: Tensor, rates: Tensor) -> Tensor:
    """Probability that a mask is revealed while local time falls from `u_from` to `u_to`.

    Exact for rates that stay frozen over the step: `1 - (u_to / u_from) ** v` (docs/method.md,
    "ancestral step").

    Args:
        log_u_from, log_u_to: `[B, L]` or `[B, 1]`, log local times, `log_u_to <= log_u_from <= 0`;
            `-inf` ends it.
        rates: `[B, L]`, reverse rates `v > 0`.
    Returns:
        `[B, L]` in `[0, 1]`; exactly 1 where the window ends.
    """
    return -torch.expm1(rates * (log_u_to - log_u_from))


def guided_logits(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Log of a law proportional to `p^scale * q^(1 - scale)`, up to a constant.

    `p` is the conditional law, `q` the unconditional one (classifier-free guidance;
    docs/method.md).

    What has no probability under the conditional law has none.

    Args:
        conditional, unconditional: `[..., V]`, unnormalised.
    """
    log_p, log_q = conditional.log_softmax(-1), unconditional.log_softmax(-1)
    possible = log_p > -torch.inf
    log_q = torch.where(possible & (log_q > -torch.inf), log_q, 0.0)
    return torch.where(possible, scale * log_p + (1 - scale) * log_q, -torch.inf)


def remask_limit(log_u_from: Tensor, log_u_to: Tensor, rates: Tensor) -> Tensor:
    """Largest `sigma` `[B, L]` with which marginals stay.

    `min(1, (1 - alpha(u_to)) / alpha(u_from))`.

    Args:
        log_u_from, log_u_to, rates: as in `reveal_probability`, but for the rate `w`, of a position
            masked or not.
    """
    revealed = alpha(log_u_from, rates).clamp(min=torch.finfo(rates.dtype).tiny)
    return (torch.exp(rates * log_u_to) / revealed).clamp(max=1.0)


def remasking_reveal_probability(
    log_u_from: Tensor, log_u_to: Tensor, rates: Tensor, sigma: Tensor
) -> Tensor:
    """Probability that a masked position is revealed where revealed ones are masked again.

    `(alpha(u_to) - (1 - sigma) alpha(u_from)) / (1 - alpha(u_from))`, with `sigma` the
    probability that a revealed one is masked again.

    The probability that a position is masked then goes from `1 - alpha(u_from)` to
    `1 - alpha(u_to)`, as in the forward process (ReMDM, for rates of each position;
    docs/method.md, "remasking"). It is `reveal_probability` where `sigma` is 0.

    Args:
        sigma: `[B, L]`, at most `remask_limit`.
    Returns:
        `[B, L]` in `[0, 1]`; exactly 1 where the window ends.
    """
    odds = alpha(log_u_from, rates) / torch.exp(rates * log_u_from)
    found = reveal_probability(log_u_from, log_u_to, rates) + sigma * odds
    return torch.where(log_u_to > -torch.inf, found, torch.ones_like(found))


def least_certain_weights(certainties: Tensor, among: Tensor) -> Tensor:
    """`softmax(-certainty)` over the positions `among` `[B, L]`, their mean elsewhere: `[B, L]`.

    With the mean, as many are revealed as are masked again, in expectation.
    """
    weights = (-certainties).masked_fill(~among, -torch.inf).softmax(-1)
    return torch.where(among, weights, 1 / among.sum(-1, keepdim=True).clamp(min=1).to(weights))


def threshold_prefix(certainties: Tensor, threshold: float) -> Tensor:
    """Length `[B, 1]` of the longest prefix of `certainties` `[B, L]` above the threshold."""
    return (certainties > threshold).cumprod(1).sum(1, keepdim=True)


def entropy_bound_prefix(entropies: Tensor, bound: float) -> Tensor:
    """Length `[B, 1]` of the longest prefix whose sum minus its largest is at most `bound`.

    Sum minus largest bounds what tokens that are drawn together do not know of each other, their
    total correlation, in nats (arXiv 2505.24857). It never falls as the prefix grows.

    Args:
        entropies: `[B, L]`, of the token laws in order of reveal, in nats; `inf` ends the prefix.
    """
    unknown = entropies.cumsum(1) - entropies.cummax(1).values  # inf - inf is NaN: not within
    return (entropies.isfinite() & (unknown <= bound)).cumprod(1).sum(1, keepdim=True)


def adaptive_log_ratio(rates: Tensor, among: Tensor, fraction: Tensor) -> Tensor:
    """`log rho` `[B, 1]` with `sum_i (1 - rho^{v_i}) = fraction * n` over `n` positions `among`.

    Newton from the `rho` that would do if all rates were the largest one. The sum is concave in
    `-log rho`, so every step stays on that side of the root (docs/method.md, "sampler").

    Args:
        fraction: `[B, 1]` in `[0, 1)`; 0 gives 0.
    """
    goal = fraction * among.sum(1, keepdim=True)
    rates = rates * among  # a rate of 0 adds nothing to the sum
    tiny = torch.finfo(rates.dtype).tiny
    x = -torch.log1p(-fraction) / rates.amax(1, keepdim=True).clamp(min=tiny)
    for _ in range(NEWTON_STEPS):
        reached = -torch.expm1(-rates * x).sum(1, keepdim=True)
        slope = (rates * torch.exp(-rates * x)).sum(1, keepdim=True)
        x = x + ((goal - reached) / slope.clamp(min=tiny)).clamp(min=0)
    return -x


# -------------------------------------------------------------------------------------------- rates


def centre(scores: Tensor, real: Tensor | None = None, blocks: Blocks | None = None) -> Tensor:
    """`scores` `[B, L]` minus their mean over the `real` positions of the block.

    `real` is `[B, L]` bool; `None` means all.
    """
    weight = torch.ones_like(scores) if real is None else real.to(scores.dtype)
    mean = block_sum(scores * weight, blocks) / block_sum(weight, blocks).clamp(min=1)
    return scores - broadcast_to_positions(mean, blocks)


def learned_rates(
    scores: Tensor, c1: float, c2: float, real: Tensor | None = None, blocks: Blocks | None = None
) -> Tensor:
    """`c1 + c2 NormSig(g)`, `NormSig(g)_i = sigmoid(g_i) - mean_j sigmoid(g_j)` (paper, section 4).

    Args:
        scores: `[B, L]`, `g` of an order head.
        real: `[B, L]` bool, the positions of the mean: all that are not padding, masked, revealed
            or given alike.
    Returns:
        `[B, L]`, in `(c1 - c2, c1 + c2)` at real positions.
    """
    return c1 + c2 * centre(torch.sigmoid(scores), real, blocks)


def exponential_rates(
    scores: Tensor, log_range: float, real: Tensor | None = None, blocks: Blocks | None = None
) -> Tensor:
    """`exp(r NormSig(g))`: rates that differ by a factor of `e^r` at most (docs/method.md).

    Args:
        scores, real, blocks: as in `learned_rates`. log_range: `r`.
    Returns:
        `[B, L]`, positive; to first order in `r` those of `c1 = 1, c2 = r`.
    """
    return (log_range * centre(torch.sigmoid(scores), real, blocks)).exp()


def rates_in_order(rates: Tensor, log_factors: Tensor) -> Tensor:
    """`w_i exp(b_i)`: rates `[B, L]` that lean towards an order, `b` `[B, L]` (docs/method.md)."""
    return rates * log_factors.exp()


def log_rate_of_token_rates(logits: Tensor, log_omega: Tensor) -> Tensor:
    """Log reverse rate `[...]` of GenMD4, `v = sum_y omega_y mu_y`, from its token law.

    The law is `p_y = omega_y mu_y / v`, so that `sum_y mu_y = 1` is `1 / v = sum_y p_y / omega_y`.

    Args:
        logits: `[..., V]`, unnormalised log of the law `p` (`omega` included). log_omega: `[V]`,
            log token rates.
    """
    return logits.logsumexp(-1) - (logits - log_omega).logsumexp(-1)


def log_rate_of_scores(logits: Tensor) -> Tensor:
    """Log reverse rate `[...]` of SEDD, `v = sum_y s_y`, `s_y = exp(logits_y) / (V - 1)`."""
    return logits.logsumexp(-1) - math.log(logits.shape[-1] - 1)


# -------------------------------------------------------------------------------------------- draws


def draw_masks(exponentials: Tensor, log_u: Tensor, rates: Tensor, maskable: Tensor) -> Tensor:
    """Which positions are masked at local time `u`, each with probability `u^w`: `[B, L]` bool."""
    check_rates(rates)
    return maskable & (exponentials.to(rates) > -log_mask_probability(log_u, rates))


def log_prob_masks(
    masked: Tensor, log_u: Tensor, rates: Tensor, maskable: Tensor, blocks: Blocks | None = None
) -> Tensor:
    """Log-probability `[B, N]` of `masked` of `draw_masks`; `log_u` `[B, L]` or `[B, 1]`."""
    revealed = maskable & ~masked
    log_masked = log_mask_probability(log_u, rates)
    # the exponent is replaced before the logarithm: where() alone lets its NaN gradient through
    log_revealed = torch.log(
        -torch.expm1(torch.where(revealed, log_masked, -torch.ones_like(log_masked)))
    )
    zero = torch.zeros_like(log_masked)
    return block_sum(
        torch.where(masked, log_masked, torch.where(revealed, log_revealed, zero)), blocks
    )


def draw_order(
    exponentials: Tensor, rates: Tensor, maskable: Tensor, blocks: Blocks | None = None
) -> Tensor:
    """Rank of reveal of each position within its block, in Plackett-Luce order with weights `w`.

    Minus the log of a local masking time is `Exp(1) / w`: the last one masked is revealed first.

    Returns:
        `[B, L]` int64, 0 = revealed first; positions that are not maskable come after all others.
    """
    check_rates(rates)
    log_time = (exponentials.to(rates) / rates.detach()).masked_fill(~maskable, torch.inf)
    order = log_time.argsort(dim=-1, stable=True)
    if blocks is not None:  # sort by block, keep the order within
        order = order.gather(1, blocks.of_position.gather(1, order).argsort(dim=-1, stable=True))
    rank = order.argsort(-1)
    if blocks is None:
        return rank
    count = block_sum(torch.ones_like(rank), blocks)
    return rank - broadcast_to_positions(count.cumsum(-1) - count, blocks)


def log_prob_prefix(
    rank: Tensor,
    num_revealed: Tensor,
    rates: Tensor,
    maskable: Tensor,
    blocks: Blocks | None = None,
) -> Tensor:
    """Plackett-Luce log-probability of the first `k` reveals, `sum_{j<k} log(w_{s_j} / W_j)`.

    Args:
        rank: `[B, L]` from `draw_order`. num_revealed: `[B, N]`, `k`. rates: `[B, L]`, `w`.
    Returns:
        `[B, N]`, 0 where `k = 0`.
    """
    size, count = (
        (rates.shape[1], 1)
        if blocks is None
        else (min(blocks.size, rates.shape[1]), blocks.num_blocks)
    )
    slot = rank if blocks is None else blocks.of_position * size + rank.clamp(max=size - 1)
    in_order = rates.new_zeros(rates.shape[0], count * size).scatter_add(1, slot, rates * maskable)
    in_order = in_order.view(-1, count, size)  # [B, N, S], in order of reveal
    remaining = in_order.flip(-1).cumsum(-1).flip(-1)  # W_j
    drawn = (torch.arange(size, device=rates.device) < num_revealed[..., None]) & (in_order > 0)
    ones = torch.ones_like(in_order)
    log_ratio = torch.where(drawn, in_order, ones).log() - torch.where(drawn, remaining, ones).log()
    return log_ratio.sum(-1)


def draw_order_view(
    rates: Tensor,
    maskable: Tensor,
    quantiles: Tensor,
    exponentials: Tensor,
    blocks: Blocks | None = None,
) -> View:
    """One state of the reveal chain: `k = floor(quantile * n)` Plackett-Luce reveals are done.

    Args:
        rates: `[B, L]`, `w`. maskable: `[B, L]` bool. quantiles: `[B, N]` in `(0, 1)`.
            exponentials: `[B, L]`.
    Returns:
        A view with weight `n`, the number of maskable positions (`k` is uniform on `0..n-1`).
    """
    count = block_sum(maskable.to(rates.dtype), blocks)
    # k [B, N]
    revealed = torch.minimum((quantiles * count).floor(), count - 1).clamp(min=0).to(torch.int64)
    rank = draw_order(exponentials, rates, maskable, blocks)
    masked = maskable & (rank >= broadcast_to_positions(revealed, blocks))
    return View(masked, log_prob_prefix(rank, revealed, rates, maskable, blocks), count)


def draw_time_view(
    rates: Tensor,
    maskable: Tensor,
    quantiles: Tensor,
    exponentials: Tensor,
    blocks: Blocks | None = None,
    epsilon: float | None = None,
    time_range: Sequence[float] | None = None,
) -> View:
    """The masks at one local time `u` per block, drawn from a quantile `r`.

    Uncut (`epsilon=None`): `u = r^(1/kappa)` with `kappa` half the smallest rate of the block,
    weight `1 / (kappa r)` instead of `1/u`. The second moment of a position's term is `int kappa^-1
    u^(w-kappa-1) du`: finite for `kappa < w`, smallest at `kappa = w / 2`. Cut (the paper's way):
    `u` uniform on `[epsilon, 1]`, weight `(1 - epsilon) / u`; a fixed share of the draws is taken
    at `u = epsilon` and stands for the reconstruction term, all reweighted to stay unbiased.
    Clipped (`time_range`, as BD3-LM trains): `u` uniform on `[low, high]`, weight `1/u`, no bound.

    Args:
        rates: `[B, L]`, `w`. maskable: `[B, L]` bool. quantiles: `[B, N]` in `(0, 1)`.
            exponentials: `[B, L]`.
    """
    check_rates(rates)
    reconstruction = None
    if time_range is not None:
        u = time_range[0] + (time_range[1] - time_range[0]) * quantiles
        log_u, weight = u.log(), 1 / u
    elif epsilon is None:
        smallest = block_min(rates.detach().masked_fill(~maskable, torch.inf), blocks)
        kappa = torch.where(smallest.isfinite(), smallest, torch.ones_like(smallest)) / 2
        log_u = quantiles.log() / kappa
        weight = 1 / (kappa * quantiles)
    else:
        share = RECONSTRUCTION_SHARE
        reconstruction = quantiles < share
        u = torch.where(
            reconstruction, epsilon, epsilon + (1 - epsilon) * (quantiles - share) / (1 - share)
        )
        log_u = u.log()
        weight = torch.where(reconstruction, 1 / share, (1 - epsilon) / ((1 - share) * u))
    log_u = broadcast_to_positions(log_u, blocks)
    masked = draw_masks(exponentials, log_u, rates.detach(), maskable)
    return View(
        masked, log_prob_masks(masked, log_u, rates, maskable, blocks), weight, reconstruction
    )


# ------------------------------------------------------------------------------------------- bounds


def order_bound(
    nll: Tensor, w: Tensor, v: Tensor, view: View, blocks: Blocks | None = None
) -> BoundTerms:
    """The order bound at one state: `n sum_{masked} (w/W) [nll + log(w/W) - log(v/V)]`.

    Args:
        nll: `[B, L]`, `-log p_i(x_i)` in nats, finite everywhere. w, v: `[B, L]`, forward and
            reverse rates.
    """
    w_masked, total_w, total_v = _masked_rates(w, v, view.masked, blocks)
    has_masked = total_w > 0  # a block without maskable positions counts as zero
    ones = torch.ones_like(total_w)
    safe_w, safe_v = torch.where(has_masked, total_w, ones), torch.where(has_masked, total_v, ones)
    main = block_sum(w_masked * nll, blocks) / safe_w
    divergence = (
        block_sum(w_masked * (w.log() - v.log()), blocks) / safe_w - safe_w.log() + safe_v.log()
    )
    return BoundTerms(view.weight * main, view.weight * divergence, (safe_v / safe_w).detach())


def time_bound(
    nll: Tensor, w: Tensor, v: Tensor, view: View, blocks: Blocks | None = None
) -> BoundTerms:
    """The paper's NELBO at one time: `weight sum_{masked} [w nll + w log(w/v) - (w - v)]`.

    Where the draw stands for the reconstruction term it is `weight sum_{masked} nll_i`, without
    velocity.

    Args:
        nll: `[B, L]`, `-log p_i(x_i)` in nats, finite everywhere. w, v: `[B, L]`, forward and
            reverse rates.
    """
    w_masked, total_w, total_v = _masked_rates(w, v, view.masked, blocks)
    main = block_sum(w_masked * nll, blocks)
    divergence = block_sum(w_masked * (w.log() - v.log()), blocks) - total_w + total_v
    if view.reconstruction is not None:
        plain = block_sum(nll * view.masked, blocks)
        main = torch.where(view.reconstruction, plain, main)
        divergence = torch.where(view.reconstruction, torch.zeros_like(divergence), divergence)
    ratio = torch.where(
        total_w > 0,
        total_v / total_w.clamp(min=torch.finfo(w.dtype).tiny),
        torch.ones_like(total_w),
    )
    return BoundTerms(view.weight * main, view.weight * divergence, ratio.detach())


def _masked_rates(
    w: Tensor, v: Tensor, masked: Tensor, blocks: Blocks | None
) -> tuple[Tensor, Tensor, Tensor]:
    w_masked = w * masked  # [B, L]
    return w_masked, block_sum(w_masked, blocks), block_sum(v * masked, blocks)


def log_prob_next(rates: Tensor, masked: Tensor) -> Tensor:
    """Log-law `[B, L]` of the next position, `v_i / sum of v` over those `masked` `[B, L]`."""
    return rates.log().masked_fill(~masked, -torch.inf).log_softmax(-1)


def rloo_score(bounds: Tensor, log_q: Tensor) -> Tensor:
    """The RLOO term `[B, N]` of `K` independent views; the baseline is the others' mean bound.

    `mean_k sg(L_k - mean_{j != k} L_j) log q(z_k|x)`; of two views `sg(L1 - L2) (log q(z1|x) - log
    q(z2|x)) / 2`. Its gradient is the score part of the gradient of the mean bound (Eq. 8 and
    appendix E.1 of the paper); its value is not part of the bound, so the loss adds `score -
    score.detach()`.

    Args:
        bounds, log_q: `[K, B, N]`, `L_k` and `log q(z_k|x)`, `K >= 2`.
    """
    num_views = len(bounds)
    # L_k - mean_{j != k} L_j
    advantage = (bounds - bounds.mean(0)).detach() * num_views / (num_views - 1)
    return (advantage * log_q).mean(0)
