"""Exact values of docs/method.md by enumeration: plain, slow, and free of the library's own
formulas.

A text with `n` maskable positions has `2^n` partly masked copies. `Tables` holds what the network
says about each of them; every bound, probability and law here is a sum over those copies, over all
`n!` orders, or a quadrature over the local time. Everything is float64 and differentiable, so exact
gradients come from autograd.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Tables:
    """What a model says about every partly masked copy of one text.

    Attributes:
        masked: `[2^n, n]` bool; in copy `s` position `i` is masked when bit `i` of `s` is set.
        nll: `[2^n, n]`, `-log p_i(x_i)`; of use at masked positions only.
        reverse: `[2^n, n]`, the rates `v_i(z)`.
        forward: `[n]`, the rates `w_i(x)`.
    """

    masked: Tensor
    nll: Tensor
    reverse: Tensor
    forward: Tensor


def subsets(n: int) -> Tensor:
    """All subsets of `n` positions, `[2^n, n]` bool; row `s` holds the bits of `s`."""
    return (torch.arange(2**n)[:, None] >> torch.arange(n)) % 2 == 1


def tables(
    model,
    text: Tensor,
    maskable: list[int] | None = None,
    attention_mask: Tensor | None = None,
    given: Tensor | None = None,
) -> Tables:
    """Enumerate one text `[L]`; `maskable` lists the positions that are neither given nor padding
    (default: all).

    `given` `[L]` bool is what phi is told; default: all that is not maskable.
    """
    positions = torch.tensor(range(len(text)) if maskable is None else maskable)
    masked = subsets(len(positions))
    states = text.repeat(len(masked), 1)
    states[:, positions] = torch.where(masked, model.config.mask_token_id, text[positions])
    mask = None if attention_mask is None else attention_mask.expand(len(states), -1)
    out = model(input_ids=states, attention_mask=mask)
    log_law = out.logits.double().log_softmax(-1)[:, positions]
    nll = -log_law.gather(-1, text[positions].expand(len(states), -1)[..., None]).squeeze(-1)
    rows = None if attention_mask is None else attention_mask[None]
    given = not_in(positions, text) if given is None else given
    forward = model.forward_rates(text[None], attention_mask=rows, given=given[None])[0, positions]
    return Tables(masked, nll, out.rates[:, positions].double(), forward.double())


def not_in(positions, text: Tensor) -> Tensor:
    """`[L]` bool: all positions of a text but these."""
    return torch.ones_like(text, dtype=torch.bool).index_fill(
        0, torch.as_tensor(positions, dtype=torch.int64), False
    )


def blocks_of(model, text: Tensor) -> list[range]:
    """The positions of each block of a text, which is a single one in a model without blocks."""
    size = model.config.block_size or len(text)
    return [range(start, min(start + size, len(text))) for start in range(0, len(text), size)]


def block_tables(model, text: Tensor, maskable: list[int] | None = None) -> list[Tables]:
    """A table for each block of a text: clean before it and cut after it, so that nothing later can
    matter.

    Bounds, probabilities and laws of a text are those of its blocks added up. Blocks with nothing
    maskable have none.
    """
    maskable = list(range(len(text))) if maskable is None else maskable
    given = not_in(maskable, text)
    inside = [(block.stop, [i for i in block if i in maskable]) for block in blocks_of(model, text)]
    return [
        tables(model, text[:stop], positions, given=given[:stop])
        for stop, positions in inside
        if positions
    ]


def add_up(function, parts: list[Tables], *args, **options) -> Tensor | tuple[Tensor, ...]:
    """The sum of `function(table)`, or of each of its values, over the blocks of a text."""
    values = [function(table, *args, **options) for table in parts]
    return (
        tuple(map(sum, zip(*values, strict=True))) if isinstance(values[0], tuple) else sum(values)
    )


def keep_gradient(table: Tables, *names: str) -> Tables:
    """The same tables where only the named ones carry gradients."""
    return replace(
        table,
        **{k: getattr(table, k).detach() for k in ("nll", "reverse", "forward") if k not in names},
    )


def order_probabilities(rates: Tensor) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Every order of `n` positions with its Plackett-Luce probability: next is `i` with `rates_i /
    sum(rates left)`."""
    for order in itertools.permutations(range(len(rates))):
        left, probability = list(range(len(rates))), torch.ones((), dtype=torch.float64)
        for i in order:
            probability = probability * rates[i] / rates[left].sum()
            left.remove(i)
        yield order, probability


def steps(order: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """`(state, next position)` for each reveal of an order, the state as a bit set of masked
    positions."""
    state = 2 ** len(order) - 1
    for i in order:
        yield state, i
        state -= 2**i


def joint_log_probability(table: Tables, order: tuple[int, ...]) -> Tensor:
    """`log P(x, order)`: at each step the next position by `v / V`, then its token."""
    total = torch.zeros((), dtype=torch.float64)
    for state, i in steps(order):
        rates = table.reverse[state]
        total = total + (rates[i] / rates[table.masked[state]].sum()).log() - table.nll[state, i]
    return total


def log_likelihood(table: Tables) -> Tensor:
    """`log P(x)`, brute force over all orders."""
    orders = itertools.permutations(range(len(table.forward)))
    return torch.stack([joint_log_probability(table, order) for order in orders]).logsumexp(0)


def order_terms(table: Tables, state: int) -> tuple[Tensor, Tensor]:
    """Main and velocity part of one reveal from one state, by the definition of a KL between
    categorical laws."""
    at = table.masked[state]
    forward = table.forward[at] / table.forward[at].sum()
    reverse = table.reverse[state, at] / table.reverse[state, at].sum()
    return (forward * table.nll[state, at]).sum(), (forward * (forward / reverse).log()).sum()


def order_bound(table: Tables) -> tuple[Tensor, Tensor]:
    """Main and velocity part of the order bound, over all orders."""
    main = velocity = torch.zeros((), dtype=torch.float64)
    for order, probability in order_probabilities(table.forward):
        for state, _ in steps(order):
            reveal_main, reveal_velocity = order_terms(table, state)
            main, velocity = (
                main + probability * reveal_main,
                velocity + probability * reveal_velocity,
            )
    return main, velocity


def prefix_law(rates: Tensor, k: int) -> Tensor:
    """`[2^n]`: probability of each masked set after the first `k` reveals of a Plackett-Luce
    order."""
    law = [torch.zeros((), dtype=torch.float64)] * 2 ** len(rates)
    for order, probability in order_probabilities(rates):
        state = 2 ** len(rates) - 1 - sum(2**i for i in order[:k])
        law[state] = law[state] + probability
    return torch.stack(law)


def time_law(table: Tables, u: Tensor) -> Tensor:
    """`[T, 2^n]`: probability of each masked set at local times `u` `[T]`; every position is masked
    with `u^w`."""
    hidden = u[:, None, None] ** table.forward
    return torch.where(table.masked, hidden, 1 - hidden).prod(-1)


def rate_terms(table: Tables) -> tuple[Tensor, Tensor]:
    """`[2^n]` each: main and velocity part of the time bound in each state, before the weight
    `1/u`."""
    w, v = table.forward, table.reverse
    velocity = w * (w / v).log() - (w - v)
    return (table.masked * w * table.nll).sum(-1), (table.masked * velocity).sum(-1)


def time_bound(table: Tables, cut: float = 0.0, nodes: int = 200) -> tuple[Tensor, Tensor]:
    """Main and velocity part of the time bound over `u` in `[cut, 1]`, by Gauss-Legendre
    quadrature.

    With `u = r^m` the integrand in `r` behaves as `r^(m w - 1)` near 0; `m = 4 / min w` makes it
    `r^3` or flatter, so that small rates do no harm.
    """
    power = 4.0 / float(table.forward.detach().min())
    low = cut ** (1 / power)
    x, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(nodes))
    r = low + (1 - low) * (x + 1) / 2
    law = time_law(table, r**power) * (weight * (1 - low) / 2 * power / r)[:, None]
    main, velocity = rate_terms(table)
    return (law * main).sum(), (law * velocity).sum()


def reconstruction(table: Tables, cut: float) -> Tensor:
    """Expected `-log p` of the positions that are still masked at `u = cut`."""
    law = time_law(table, torch.tensor([cut], dtype=torch.float64))[0]
    return (law * (table.masked * table.nll).sum(-1)).sum()


def multi_order_bound(table: Tables, count: int) -> Tensor:
    """Expected importance-weighted bound with `count` orders, over all tuples of orders."""
    weighted = [
        (joint_log_probability(table, order) - probability.log(), probability)
        for order, probability in order_probabilities(table.forward)
    ]
    total = torch.zeros((), dtype=torch.float64)
    for drawn in itertools.product(weighted, repeat=count):
        ratio = torch.stack([w for w, _ in drawn])
        total = total - math.prod(p for _, p in drawn) * (ratio.logsumexp(0) - math.log(count))
    return total


# The law of the model itself: every state of `n` positions over the vocabulary and the mask


@dataclass(frozen=True)
class StateTables:
    """What a model says about every state of `n` positions.

    Attributes:
        states: `[S, n]`, all sequences over the vocabulary, the mask token among them.
        log_law: `[S, n, V]`, log token law.
        reverse: `[S, n]`, the rates `v_i(z)`.
        mask: the id of the mask token.
    """

    states: Tensor
    log_law: Tensor
    reverse: Tensor
    mask: int


@torch.no_grad()
def state_tables(model, n: int, start: Tensor | None = None) -> StateTables:
    """Enumerate all `V^n` states; `start` `[n]` keeps its unmasked positions fixed (a prompt or a
    template)."""
    mask, vocab = model.config.mask_token_id, model.config.vocab_size
    choices = [
        range(vocab) if start is None or start[i] == mask else [int(start[i])] for i in range(n)
    ]
    states = torch.tensor(list(itertools.product(*choices)))
    out = model(input_ids=states)
    return StateTables(states, out.logits.double().log_softmax(-1), out.rates.double(), mask)


def _flow(
    table: StateTables, law: dict[tuple[int, ...], float], moves
) -> dict[tuple[int, ...], float]:
    """Push probability one step on: each state's masked positions are revealed as `moves(state
    row)` says."""
    row_of = {tuple(s): r for r, s in enumerate(table.states.tolist())}
    token_law = table.log_law.exp().tolist()  # [S][n][V]; indexing tensors would be slow
    onward: dict[tuple[int, ...], float] = {}
    for state, mass in law.items():
        row = row_of[state]
        for revealed, probability in moves(row):
            tokens = [
                range(table.log_law.shape[-1]) if i in revealed else [y]
                for i, y in enumerate(state)
            ]
            for after in itertools.product(*tokens):
                p = math.prod(token_law[row][i][after[i]] for i in revealed)
                if p > 0:
                    onward[after] = onward.get(after, 0.0) + mass * probability * p
    return onward


def _start(table: StateTables) -> dict[tuple[int, ...], float]:
    most_masked = (table.states == table.mask).sum(-1).argmax()
    return {tuple(table.states[most_masked].tolist()): 1.0}


def sequential_law(table: StateTables) -> dict[tuple[int, ...], float]:
    """`P(x)` of the exact process: one reveal at a time, position by `v / V`, token by its law."""

    def moves(row: int):
        masked = [i for i, y in enumerate(table.states[row].tolist()) if y == table.mask]
        total = float(table.reverse[row, masked].sum())
        return [((i,), float(table.reverse[row, i]) / total) for i in masked]

    law = _start(table)
    while any(table.mask in state for state in law):
        law = _flow(table, law, moves)
    return law


def ancestral_law(table: StateTables, times: list[float] | int) -> dict[tuple[int, ...], float]:
    """`P(x)` of the ancestral sampler.

    Args:
        table: the model's states.
        times: the grid `t_0 = 1 > t_1 > ... > 0` (the last step goes to 0), or the number of steps
            of the adaptive grid, where each state solves `sum_i (1 - rho^v_i) = remaining / steps
            left`.
    """
    count = times if isinstance(times, int) else len(times)
    law = _start(table)
    for k in range(count):
        ratio = None if isinstance(times, int) else ([*times, 0.0][k + 1]) / times[k]

        def moves(row: int, k: int = k, ratio: float | None = ratio):
            masked = [i for i, y in enumerate(table.states[row].tolist()) if y == table.mask]
            v = table.reverse[row, masked].numpy()
            rho = _solve_ratio(v, count - k) if ratio is None else ratio
            stays = rho**v if rho > 0 else np.zeros(len(v))
            for chosen in itertools.product([False, True], repeat=len(masked)):
                revealed = tuple(i for i, c in zip(masked, chosen, strict=True) if c)
                probability = math.prod(
                    1 - s if c else s for s, c in zip(stays, chosen, strict=True)
                )
                if probability > 0:
                    yield revealed, probability

        law = _flow(table, law, moves)
    return law


def _solve_ratio(v: np.ndarray, steps_left: int) -> float:
    """Bisection for the `rho` at which the expected number of reveals is `len(v) / steps_left`."""
    if steps_left == 1 or len(v) == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        expected = sum(1 - middle**rate for rate in v)
        low, high = (middle, high) if expected > len(v) / steps_left else (low, middle)
    return (low + high) / 2


def total_variation(a: dict, b: dict) -> float:
    """Half the summed absolute difference of two laws."""
    return 0.5 * sum(abs(a.get(k, 0.0) - b.get(k, 0.0)) for k in a.keys() | b.keys())


# Statistics


def chi_square_z(counts: Tensor, probabilities: Tensor) -> float:
    """Pearson's statistic in standard deviations from its mean (Wilson-Hilferty), cells under 5
    expected pooled."""
    expected = probabilities * counts.sum()
    small = expected < 5
    if small.any():
        counts = torch.cat([counts[~small], counts[small].sum()[None]])
        expected = torch.cat([expected[~small], expected[small].sum()[None]])
    keep = expected > 0
    assert counts[~keep].sum() == 0, "a cell of probability zero was drawn"
    statistic = ((counts[keep] - expected[keep]) ** 2 / expected[keep]).sum().item()
    df = int(keep.sum()) - 1
    return ((statistic / df) ** (1 / 3) - (1 - 2 / (9 * df))) / math.sqrt(2 / (9 * df))


def z_score(samples: Tensor, exact: Tensor | float) -> Tensor:
    """Deviation of the mean of independent `samples` `[R, ...]` from `exact` in standard errors,
    elementwise."""
    return (samples.mean(0) - exact) / (samples.std(0) / math.sqrt(len(samples)))


def vivid(model, seed: int = 3):
    """The model in float64 with large random weights of our own, so that a wrong term moves every
    value clearly.

    Tests that enumerate thereby do not depend on how the library initialises its weights. Of the
    first few seeds, 3 depends most on the order: writing in a random order moves 3.5 % of the
    probability over texts.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        named = model.double().named_parameters()
        # last: leaves the others
        for name, parameter in sorted(named, key=lambda item: item[0].endswith("given")):
            # of the order heads and the token rates
            ends = {"out.weight": 4.0, "rho": 1.5, "given": 4.0}
            spread = next(
                (ends[end] for end in ends if name.endswith(end)),
                0.8 if parameter.dim() > 1 else 0.1,
            )
            centre = 0.0 if parameter.dim() > 1 else parameter
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(centre + spread * noise)
    return model


# A model small enough to enumerate: three tokens and the mask
SMALLEST = {
    "vocab_size": 4,
    "mask_token_id": 3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "max_position_embeddings": 8,
}
