"""What `LoMDMScheduler` draws follows the laws of docs/method.md, by exact enumeration; seeds are
fixed."""

import itertools
import math

import pytest
import torch

import oracles
from hf_lomdm.modeling import random_lomdm
from hf_lomdm.modeling import scheduling_lomdm as scheduling
from hf_lomdm.modeling import token_draw_lomdm as token_draw
from hf_lomdm.modeling.scheduling_lomdm import LoMDMScheduler

# z of a chi-square statistic or of a mean: 4 is passed by a right sampler in all but about 1 of
# 16,000 seeds
BOUND = 4.0
N, VOCAB, MASK = 3, 4, 3


@pytest.fixture(scope="module")
def toy() -> tuple[torch.Tensor, oracles.StateTables]:
    """A model of 3 positions and 3 tokens whose logits and rates depend on the state in an
    arbitrary way."""
    generator = torch.Generator().manual_seed(0)
    states = torch.tensor(list(itertools.product(range(VOCAB), repeat=N)))
    logits = 1.5 * torch.randn(len(states), N, VOCAB, generator=generator, dtype=torch.float64)
    logits[..., MASK] = -torch.inf
    rates = 0.05 + 1.3 * torch.rand(len(states), N, generator=generator, dtype=torch.float64)
    return logits, oracles.StateTables(states, logits.log_softmax(-1), rates, MASK)


def code(samples: torch.Tensor) -> torch.Tensor:
    """Row of each sample in the table of states."""
    return (samples * VOCAB ** torch.arange(N - 1, -1, -1)).sum(-1)


def sample(toy, num_inference_steps: int, count: int = 40_000, **config) -> torch.Tensor:
    logits, table = toy
    scheduler = LoMDMScheduler(MASK, **config)
    scheduler.set_timesteps(num_inference_steps)
    generator, z = torch.Generator().manual_seed(1), torch.full((count, N), MASK)
    for t in scheduler.timesteps:
        z = scheduler.step(logits[code(z)], t, z, table.reverse[code(z)], generator).prev_sample
    return z


def distance(samples: torch.Tensor, law: dict) -> float:
    counts = torch.bincount(code(samples), minlength=VOCAB**N).double()
    exact = torch.zeros(VOCAB**N, dtype=torch.float64)
    for state, probability in law.items():
        exact[code(torch.tensor(state))] = probability
    return oracles.chi_square_z(counts, exact)


# ------------------------------------------------------------------------------------ whole samples


def test_sequential_one_by_one_is_the_enumerated_process(toy):
    exact = oracles.sequential_law(toy[1])
    assert distance(sample(toy, N), exact) < BOUND
    assert distance(sample(toy, 2 * N), exact) < BOUND  # more steps than positions change nothing
    assert distance(sample(toy, N, sampler="random"), exact) > BOUND  # the test sees a wrong order


def test_sequential_with_blocks_of_one_is_autoregression(toy):
    logits, table = toy
    left_to_right = torch.where(
        table.states == MASK, torch.tensor([1e12, 1e6, 1.0], dtype=torch.float64), 1.0
    )
    forced = oracles.StateTables(table.states, table.log_law, left_to_right, MASK)
    for config in (
        dict(block_size=1),
        dict(sampler="left_to_right"),
        dict(sampler="ancestral", block_size=1),
    ):
        assert distance(sample(toy, N, **config), oracles.sequential_law(forced)) < BOUND, config


@pytest.mark.parametrize("grid", ["uniform", "adaptive"])
def test_ancestral_is_its_enumerated_law_and_nears_the_process(toy, grid):
    _, table = toy
    times = 4 if grid == "adaptive" else [1.0, 0.75, 0.5, 0.25]
    exact = oracles.ancestral_law(table, times)
    samples = sample(toy, 4, sampler="ancestral", grid=grid)
    assert distance(samples, exact) < BOUND
    assert distance(samples, oracles.sequential_law(table)) > BOUND  # four steps are not the limit
    assert (
        distance(
            sample(toy, 100, 10_000, sampler="ancestral", grid=grid), oracles.sequential_law(table)
        )
        < BOUND
    )


def test_temperature_and_truncation_change_the_token_law_as_they_say(toy):
    """Every place is drawn from the softmax of logits / temperature, after top-k, then top-p."""
    logits = toy[0][:, 0].expand(1, -1, -1)[0, :8]  # 8 laws of 3 tokens
    count = 20_000
    for temperature, top_k, top_p in [
        (1.0, None, None),
        (0.5, None, None),
        (2.0, 2, None),
        (1.0, None, 0.7),
        (1.5, 2, 0.6),
    ]:
        law = (logits / temperature).softmax(-1)
        for row in law:
            tokens = sorted(range(VOCAB), key=lambda y, row=row: -float(row[y]))[: top_k or VOCAB]
            total, kept = float(row[tokens].sum()), []
            while sum(float(row[y]) for y in kept) < (top_p or 1.0) * total and len(kept) < len(
                tokens
            ):
                kept.append(tokens[len(kept)])
            row[[y for y in range(VOCAB) if y not in kept]] = 0
            row /= row.sum()
        scheduler = LoMDMScheduler(MASK, temperature=temperature, top_k=top_k, top_p=top_p)
        rows, positions = torch.arange(count)[:, None], torch.arange(len(logits))[None]
        generator = torch.Generator().manual_seed(2)
        drawn = scheduler.draw_tokens(
            logits.expand(count, -1, -1), rows, positions, count, generator
        )
        for i, exact in enumerate(law):
            counts = torch.bincount(drawn[:, i], minlength=VOCAB).double()
            if (exact > 0).sum() == 1:
                assert counts[exact.argmax()] == count
            else:
                assert oracles.chi_square_z(counts, exact) < BOUND, (temperature, top_k, top_p, i)


def test_zero_temperature_takes_the_likeliest_token_and_top_k_one_the_same():
    logits = torch.randn(5, 7, 9, generator=torch.Generator().manual_seed(0))
    rows, positions = torch.arange(5)[:, None], torch.arange(7)[None]
    expected = logits[..., :8].argmax(-1)
    for config in (
        dict(temperature=0.0),
        dict(top_k=1),
        dict(top_p=1e-9),
        dict(temperature=1e-300),
    ):
        assert torch.equal(
            LoMDMScheduler(8, **config).draw_tokens(logits, rows, positions, 5), expected
        ), config


# ---------------------------------------------------------------------------------------- positions


def test_sequential_draws_sets_without_replacement_by_weight():
    v = torch.tensor([0.05, 0.3, 0.7, 1.0, 1.35], dtype=torch.float64)
    scheduler = LoMDMScheduler(MASK)
    scheduler.set_timesteps(3)
    start, count = torch.full((40_000, 5), MASK), 40_000
    revealed = scheduler.select(v.expand(count, 5), 1.0, start, torch.Generator().manual_seed(0))
    counts = torch.bincount((revealed * 2 ** torch.arange(5)).sum(1), minlength=32).double()
    exact = torch.zeros(32, dtype=torch.float64)
    for a, b in itertools.permutations(range(5), 2):
        exact[2**a + 2**b] += v[a] / v.sum() * v[b] / (v.sum() - v[a])
    assert oracles.chi_square_z(counts, exact) < BOUND


@pytest.mark.parametrize("block_size", [None, 2])
def test_ancestral_marginals_are_exact_for_frozen_rates(block_size):
    """After the step to time s a position is still masked with probability u(s)^v, whatever the
    steps before."""
    v, count, steps = torch.tensor([0.05, 0.3, 0.7, 1.0, 1.35], dtype=torch.float64), 20_000, 6
    scheduler = LoMDMScheduler(MASK, sampler="ancestral", grid="uniform", block_size=block_size)
    scheduler.set_timesteps(steps)
    masked, generator = torch.full((count, 5), MASK), torch.Generator().manual_seed(0)
    windows = 1 if block_size is None else 3
    block = torch.zeros(5) if block_size is None else torch.arange(5) // 2
    for k, t in enumerate(scheduler.timesteps):
        revealed = scheduler.select(v.expand(count, 5), t, masked, generator)
        masked = masked.masked_fill(revealed, 0)
        s = 1 - (k + 1) / steps
        u = (windows * s - (windows - 1 - block.double())).clamp(0, 1)
        u = torch.where(u < 1e-12, 0.0, u)
        exact, seen = u**v, (masked == MASK).double().mean(0)
        deviation = (exact * (1 - exact) / count).sqrt()
        assert ((seen - exact).abs() <= BOUND * deviation + 1e-12).all(), (k, seen, exact)


def test_adaptive_grid_equals_the_uniform_one_at_rate_one():
    masked = torch.ones(2, 7, dtype=torch.bool)
    masked[1, 2:] = False
    for steps in (2, 5, 64):
        schedulers = [
            LoMDMScheduler(MASK, sampler="ancestral", grid=grid) for grid in ("adaptive", "uniform")
        ]
        for scheduler in schedulers:
            scheduler.set_timesteps(steps)
        for left in range(1, steps + 1):
            arguments = (
                torch.ones(2, 7).double(),
                masked,
                torch.zeros(2, 7, dtype=torch.int64),
                1,
                left,
            )
            adaptive, uniform = (scheduler._ancestral(*arguments) for scheduler in schedulers)
            torch.testing.assert_close(adaptive[masked], uniform[masked], rtol=1e-12, atol=0)
            torch.testing.assert_close(uniform[masked], torch.full_like(uniform[masked], 1 / left))


@pytest.mark.parametrize("spread", [(0.05, 1.35), (1e-4, 50.0), (0.999, 1.001)])
@pytest.mark.parametrize("block_size", [None, 5])
def test_adaptive_grid_expects_an_even_share_of_reveals(spread, block_size):
    generator = torch.Generator().manual_seed(0)
    low, high = (math.log(x) for x in spread)
    rates = (
        low + (high - low) * torch.rand(50, 23, generator=generator, dtype=torch.float64)
    ).exp()
    masked = torch.rand(50, 23, generator=generator) < torch.linspace(0, 1, 50)[:, None]
    scheduler = LoMDMScheduler(MASK, sampler="ancestral", block_size=block_size)
    for left in (1, 2, 3, 10, 200):
        block, num_blocks = scheduler.blocks(masked, None)
        probability = scheduler._ancestral(rates, masked, block, num_blocks, left) * masked
        expected = masked.sum(1).double() / left
        # 1e-6 of a position: the fixed number of Newton steps is exact far beyond that even for
        # rates 500,000 apart
        torch.testing.assert_close(probability.sum(1), expected, rtol=0, atol=1e-6)
        assert (probability >= 0).all() and (probability <= 1).all()


def test_adaptive_grid_reveals_the_expected_number():
    rates = (0.05 + 1.3 * torch.rand(30, generator=torch.Generator().manual_seed(0))).expand(
        20_000, 30
    )
    scheduler = LoMDMScheduler(MASK, sampler="ancestral")
    scheduler.set_timesteps(4)
    revealed = scheduler.select(
        rates, 1.0, torch.full((20_000, 30), MASK), torch.Generator().manual_seed(0)
    )
    assert abs(oracles.z_score(revealed.sum(1).double(), 30 / 4)) < BOUND


# --------------------------------------------------------------------------------------- randomness


def uniformity(u: torch.Tensor) -> float:
    return oracles.chi_square_z(
        torch.histc(u.flatten(), 64, 0, 1), torch.full((64,), 1 / 64).double()
    )


def test_hash_is_uniform_in_all_its_bits_for_near_and_random_seeds():
    near = torch.arange(-500, 500)
    random = torch.randint(-(2**62), 2**62, (1000,), generator=torch.Generator().manual_seed(0))
    for seeds in (near, random, near * 2**40):
        u = random_lomdm.position_uniforms(seeds[:, None], torch.arange(200)[None])
        assert u.dtype == torch.float64 and u.min() > 0 and u.max() < 1
        for bits in (0, 12, 24, 40):  # float32 uniforms would be constant from bit 24 on
            assert uniformity((u * 2.0**bits) % 1) < BOUND, bits


def test_hash_stays_in_the_open_interval_at_its_ends(monkeypatch):
    for bits in (0, -1):
        monkeypatch.setattr(
            random_lomdm, "_mix", lambda values, bits=bits: torch.full_like(values, bits)
        )
        u = random_lomdm.position_uniforms(
            torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        )
        assert 0 < u.item() < 1


def test_hash_of_neighbours_rows_and_near_seeds_is_uncorrelated():
    u = random_lomdm.position_uniforms(torch.arange(2000)[:, None], torch.arange(200)[None]) - 0.5
    pairs = {
        "positions": (u[:, 1:], u[:, :-1]),
        "rows": (u[1:], u[:-1]),
        "far": (u[:, 64:], u[:, :-64]),
    }
    pairs["diagonal"] = (u[1:, 1:], u[:-1, :-1])
    pairs["antidiagonal"] = (u[1:, :-1], u[:-1, 1:])
    for name, (a, b) in pairs.items():
        # the product of two uniforms has variance 1/144
        z = 12 * (a * b).mean() * math.sqrt(a.numel())
        assert abs(z) < BOUND, name
        joint = torch.bincount(
            ((a + 0.5) * 8).long().flatten() * 8 + ((b + 0.5) * 8).long().flatten(), minlength=64
        )
        assert oracles.chi_square_z(joint.double(), torch.full((64,), 1 / 64).double()) < BOUND, (
            name
        )


def test_position_and_token_draws_are_independent():
    """Each call takes its own seed: whether a position is revealed says nothing about its token."""
    scheduler = LoMDMScheduler(MASK, sampler="random")
    scheduler.set_timesteps(2)
    logits = torch.zeros(20_000, 4, 3)
    out = scheduler.step(
        logits, 1.0, torch.full((20_000, 4), MASK), None, torch.Generator().manual_seed(0)
    )
    for column in range(4):
        counts = torch.bincount(
            out.prev_sample[:, column][out.revealed[:, column]], minlength=3
        ).double()
        assert oracles.chi_square_z(counts, torch.full((3,), 1 / 3).double()) < BOUND


def test_every_call_takes_one_seed_per_row_whatever_the_row_holds():
    after = []
    for masked, width, sampler in [
        (0, 3, "random"),
        (3, 3, "sequential"),
        (5, 40, "left_to_right"),
        (9, 9, "margin"),
    ]:
        scheduler, generator = (
            LoMDMScheduler(MASK, sampler=sampler),
            torch.Generator().manual_seed(0),
        )
        scheduler.set_timesteps(2)
        z = torch.zeros(2, width, dtype=torch.int64)
        z[:, :masked] = MASK
        scheduler.step(torch.zeros(2, width, 3), 1.0, z, torch.ones(2, width), generator)
        after.append(torch.randint(2**62, (1,), generator=generator).item())
    assert len(set(after)) == 1


@pytest.mark.parametrize("rare", [0, 1, 4_999])
def test_a_token_of_probability_1e_9_is_drawn_as_often_as_it_should(rare, monkeypatch):
    """Uniforms are stratified over the 1e-6 around the rare token's part of the CDF, where it has
    1e-3 of the mass."""
    law = torch.full((5_000,), (1 - 1e-9) / 4_999, dtype=torch.float64)
    law[rare] = 1e-9
    logits, start = law.log() + 3.0, float(law[:rare].sum())
    strata = (torch.arange(2_000, dtype=torch.float64) + 0.5) / 2_000 * 1e-6
    uniforms = strata if rare < 4_999 else 1 - 1e-6 + strata
    uniforms = uniforms + start if rare == 1 else uniforms
    monkeypatch.setattr(scheduling, "position_uniforms", lambda seeds, positions: uniforms)
    places = torch.zeros(2_000, dtype=torch.int64)
    scheduler = LoMDMScheduler(6_000)
    drawn = scheduler.draw_tokens(logits.expand(2_000, -1), places, places, 1)
    # 2 of 2,000 strata, +-1 for a border that falls into a stratum
    assert 1 <= (drawn == rare).sum() <= 3


def test_inverse_cdf_never_meets_a_weight_of_zero():
    weights = torch.tensor([0.0, 0.2, 0.0, 0.0, 0.8 - 2**-52, 0.0]).double()
    for total in (1e-300, 1.0, 1 + 2**-52, 3e8):
        for u, expected in [(2.0**-53, 1), (0.2 - 1e-12, 1), (0.2 + 1e-12, 4), (1 - 2.0**-53, 4)]:
            actual = token_draw.inverse_cdf(
                total * weights[None], torch.tensor([u], dtype=torch.float64)
            )
            assert actual.item() == expected
