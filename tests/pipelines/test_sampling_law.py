"""What the pipeline writes with a real model has the enumerated law: tokens and the order of reveal
alike."""

import dataclasses

import pytest
import torch

import oracles
from hf_lomdm import LoMDMPipeline, LoMDMScheduler

# A chi-square statistic this many standard deviations out has probability 3e-5; seeds are fixed.
Z = 4.0
MASK, SAMPLES = oracles.SMALLEST["mask_token_id"], 5_000


@pytest.fixture
def pipe(make_model):
    return make_pipe(make_model)


def make_pipe(make_model, **settings):
    model = oracles.vivid(make_model(**oracles.SMALLEST, **settings))
    pipe = LoMDMPipeline(model, LoMDMScheduler(mask_token_id=MASK))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write(pipe, start, steps, samples=SAMPLES, **options):
    generator = torch.Generator().manual_seed(0)
    return pipe(
        [start],
        num_inference_steps=steps,
        num_return_sequences=samples,
        generator=generator,
        **options,
    )


def states(pipe, start, temperature=1.0) -> oracles.StateTables:
    table = oracles.state_tables(pipe.model, len(start), torch.tensor(start))
    return dataclasses.replace(table, log_law=(table.log_law / temperature).log_softmax(-1))


def distance(sequences: torch.Tensor, law: dict) -> float:
    """Chi-square of drawn rows against a law over rows, in standard deviations."""
    rows, counts = sequences.unique(dim=0, return_counts=True)
    counts = {tuple(row): count for row, count in zip(rows.tolist(), counts.tolist(), strict=True)}
    assert counts.keys() <= law.keys(), "something of probability zero was written"
    observed = torch.tensor([counts.get(row, 0) for row in law], dtype=torch.float64)
    return abs(
        oracles.chi_square_z(observed, torch.tensor(list(law.values()), dtype=torch.float64))
    )


def joint_law(table: oracles.StateTables, start) -> dict:
    """Probability of each text followed by the step at which each position was revealed (-1 =
    given)."""
    row_of = {tuple(state): row for row, state in enumerate(table.states.tolist())}
    law = {(tuple(start), tuple(-1 if y != MASK else None for y in start)): 1.0}
    for step in range(start.count(MASK)):
        onward = {}
        for (state, order), mass in law.items():
            row, masked = row_of[state], [i for i, y in enumerate(state) if y == MASK]
            total = table.reverse[row, masked].sum()
            for i in masked:
                for y in range(MASK):
                    after = (*state[:i], y, *state[i + 1 :]), (*order[:i], step, *order[i + 1 :])
                    p = table.reverse[row, i] / total * table.log_law[row, i, y].exp()
                    onward[after] = onward.get(after, 0.0) + mass * float(p)
        law = onward
    return {state + order: p for (state, order), p in law.items()}


def test_sequential_one_by_one_writes_with_the_exact_probabilities(pipe):
    start = [MASK] * 3
    exact = oracles.sequential_law(states(pipe, start))
    assert distance(write(pipe, start, 3).sequences, exact) < Z
    # the reference order is another law, and the test sees it
    assert distance(write(pipe, start, 3, sampler="random").sequences, exact) > Z


@pytest.mark.parametrize("law", [{"log_rate_range": 3.0}, {"rate_type": "uniform"}])
def test_other_laws_of_rates_write_with_the_exact_probabilities(make_model, law):
    pipe = make_pipe(make_model, **law, position_log_rates=[0.0, 2.0, -2.0, 0, 0, 0, 0, 0])
    start = [MASK] * 3
    exact = joint_law(states(pipe, start), start)
    out = write(pipe, start, 3)
    assert distance(torch.cat([out.sequences, out.order], dim=1), exact) < Z
    plain = make_pipe(make_model, **law)  # the order matters
    out = write(plain, start, 3)
    assert distance(torch.cat([out.sequences, out.order], dim=1), exact) > Z


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_order_and_text_have_the_enumerated_joint_law_and_temperature_moves_tokens_only(
    pipe, temperature
):
    start = [MASK, 2, MASK, MASK]
    out = write(pipe, start, 3, temperature=temperature)
    exact = joint_law(states(pipe, start, temperature), start)
    drawn = torch.cat([out.sequences, out.order], dim=1)
    assert distance(drawn, exact) < Z
    other = joint_law(states(pipe, start, temperature=0.7), start)
    assert distance(drawn, other) > Z  # the test sees a wrong temperature


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_first_reveals_follow_the_rates_at_any_temperature(pipe, temperature):
    start = [MASK, 2, MASK, MASK]
    table = states(pipe, start)
    row = table.states.tolist().index(start)
    first = (write(pipe, start, 3, temperature=temperature).order == 0).sum(0).double()
    rates = torch.where(torch.tensor(start) == MASK, table.reverse[row], 0.0)
    assert abs(oracles.chi_square_z(first, rates / rates.sum())) < Z
    assert oracles.chi_square_z(first, torch.tensor([1, 0, 1, 1]) / 3) > Z  # the rates do differ


@pytest.mark.parametrize("grid", ["adaptive", "uniform"])
@pytest.mark.parametrize("steps, temperature", [(1, 1.0), (2, 0.4), (6, 1.0)])
def test_ancestral_writes_with_the_law_of_its_steps(pipe, grid, steps, temperature):
    start = [MASK, 2, MASK, MASK]
    pipe.scheduler = LoMDMScheduler(
        mask_token_id=MASK, sampler="ancestral", grid=grid, temperature=temperature
    )
    times = steps if grid == "adaptive" else [1 - k / steps for k in range(steps)]
    exact = oracles.ancestral_law(states(pipe, start, temperature), times)
    assert distance(write(pipe, start, steps).sequences, exact) < Z


@pytest.mark.parametrize("grid", ["adaptive", "uniform"])
def test_ancestral_approaches_the_exact_process_as_steps_grow(pipe, grid):
    table = states(pipe, [MASK] * 3)
    exact, gaps = oracles.sequential_law(table), []
    for steps in (2, 8, 32):
        times = steps if grid == "adaptive" else [1 - k / steps for k in range(steps)]
        gaps.append(oracles.total_variation(oracles.ancestral_law(table, times), exact))
    # the error is about proportional to 1 / steps
    assert gaps[1] < gaps[0] / 2 and gaps[2] < gaps[1] / 2 and gaps[2] < 0.03
    pipe.scheduler = LoMDMScheduler(mask_token_id=MASK, sampler="ancestral", grid=grid)
    assert distance(write(pipe, [MASK] * 3, 32, samples=2_000).sequences, exact) < Z
    assert distance(write(pipe, [MASK] * 3, 1, samples=2_000).sequences, exact) > Z
