"""The position draw of a step: who is revealed first, how many, and with which probability.

This file travels to the Hub. Its formulas are those of `process_lomdm.py`.
"""

from typing import Any

import torch
from torch import Tensor

from .process_lomdm import (
    adaptive_log_ratio,
    least_certain_weights,
    local_time,
    remask_limit,
    remasking_reveal_probability,
    reveal_probability,
)

# Certainties that differ by no more than this are a tie, which goes to the left. Rounding, which
# depends on the batch and on the processor, moves them by up to 3e-6 in float32; and positions
# without any context have equal certainties.
TIE = 2**-13


def share(count: Any, steps_left: int | Tensor) -> Any:
    """`ceil(count / steps_left)`."""
    return (count + steps_left - 1) // steps_left


def order_of_reveal(priority: Tensor, masked: Tensor, block: Tensor) -> Tensor:
    """Columns `[B, L]` in order of reveal: masked ones first, by block, priority and column."""
    order = priority.argsort(dim=1, descending=True, stable=True)
    group = torch.where(masked, block, masked.shape[1])
    return order.gather(1, group.gather(1, order).argsort(dim=1, stable=True))


def level(priority: Tensor, masked: Tensor, block: Tensor, count: Tensor) -> Tensor:
    """`priority` `[B, L]`, but equal within `TIE` of the last of `count` `[B, 1]` reveals."""
    last = priority.gather(
        1, order_of_reveal(priority, masked, block).gather(1, (count - 1).clamp(min=0))
    )
    return torch.where((priority - last).abs() <= TIE, last, priority)


def uniform_grid_probability(
    rates: Tensor, block: Tensor, num_blocks: int | Tensor, steps_left: int | Tensor, total: int
) -> Tensor:
    """Probability `[B, L]` that a masked position is revealed in a step of equal steps of time."""
    u_from = local_time(steps_left, block, num_blocks, total)
    u_to = local_time(steps_left - 1, block, num_blocks, total)
    return torch.where(
        u_to > 0, reveal_probability(u_from.log(), u_to.log(), rates), torch.ones_like(rates)
    )


def adaptive_grid_probability(
    rates: Tensor, masked: Tensor, block: Tensor, block_size: int | None, steps_left: int | Tensor
) -> Tensor:
    """Reveal probabilities `[B, L]` that sum to `remaining / steps left`, leftmost blocks first.

    Blocks that fit into this share are revealed, the one that fits in part gets the `rho` that
    meets its rest.
    """
    size = block_size or masked.shape[1]
    counts = torch.zeros(
        len(masked), -(-masked.shape[1] // size), dtype=torch.int64, device=masked.device
    )
    counts = counts.scatter_add(1, block, masked.to(torch.int64))
    before = (counts.cumsum(1) - counts).gather(1, block)
    expected = masked.sum(1, keepdim=True).to(torch.float64) / steps_left
    fraction = ((expected - before) / counts.gather(1, block).clamp(min=1)).clamp(0, 1)
    partial = masked & (fraction > 0) & (fraction < 1)
    goal = torch.where(partial, fraction, torch.zeros_like(fraction)).amax(1, keepdim=True)
    within = reveal_probability(
        torch.zeros_like(goal), adaptive_log_ratio(rates, partial, goal), rates
    )
    return torch.where(partial, within, fraction)


def steps_beside_loop(
    steps_left: int | Tensor, total: int, start: float, stop: float
) -> int | Tensor:
    """Steps left of a grid without its steps at `stop < t <= start`, which stand still."""
    last = max(1, round(stop * total))
    length = max(0, round(start * total) - last)
    behind = steps_left - last
    if isinstance(behind, Tensor):
        return steps_left - behind.clamp(0, length)
    return steps_left - min(max(behind, 0), length)


def remasking_probability(
    rates: Tensor,
    masked: Tensor,
    remaskable: Tensor,
    log_u: tuple[Tensor, Tensor],
    remasking: str,
    sigma: float | Tensor,
    certainties: Tensor | None,
) -> Tensor:
    """Probability `[B, L]` that a masked position is revealed, or a remaskable one masked again.

    Args:
        log_u: log local times `[B, L]` before and after the step.
        remasking, sigma: as in the scheduler. certainties: `[B, L]`, for `"confidence"`.
    """
    limit = remask_limit(*log_u, rates)
    chosen = limit.clamp(max=sigma) if remasking == "cap" else sigma * limit
    if remasking == "confidence":
        chosen = chosen * least_certain_weights(certainties, remaskable)
    revealed = remasking_reveal_probability(*log_u, rates, chosen)
    return torch.where(masked, revealed, torch.where(remaskable, chosen, 0.0))
