"""Remasking keeps the forward marginals: by enumeration, for unequal rates, every strength and pair
of times."""

import itertools

import pytest
import torch

from hf_lomdm.modeling.process_lomdm import (
    alpha,
    least_certain_weights,
    remask_limit,
    remasking_reveal_probability,
    reveal_probability,
)

RATES = torch.tensor([[0.05, 0.4, 1.0, 1.35]], dtype=torch.float64)
TIMES = [1.0, 0.97, 0.7, 0.31, 0.02, 1e-6, 0.0]
# earlier times are smaller; the same time twice is a loop
PAIRS = [(t, s) for t, s in itertools.product(TIMES, TIMES) if s <= t and t > 0]


def log_u(time: float) -> torch.Tensor:
    return torch.full_like(RATES, time).log()


@pytest.mark.parametrize("t, s", PAIRS)
@pytest.mark.parametrize("strength", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["cap", "rescale"])
def test_marginals_stay(t, s, strength, kind):
    limit = remask_limit(log_u(t), log_u(s), RATES)
    sigma = limit.clamp(max=strength) if kind == "cap" else strength * limit
    reveal = remasking_reveal_probability(log_u(t), log_u(s), RATES, sigma)
    assert (limit >= 0).all() and (limit <= 1).all()
    # rounding alone may leave [0, 1]
    assert (reveal >= 0).all() and (reveal <= 1 + 1e-12).all()
    revealed = alpha(log_u(t), RATES)
    after = revealed * (1 - sigma) + (1 - revealed) * reveal
    torch.testing.assert_close(after, alpha(log_u(s), RATES), rtol=1e-9, atol=1e-12)


def test_the_limit_is_the_largest_strength():
    for t, s in PAIRS:
        limit = remask_limit(log_u(t), log_u(s), RATES)
        more = (limit + 1e-3).clamp(max=1.0)
        reveal = remasking_reveal_probability(log_u(t), log_u(s), RATES, more)
        known = (more > limit) & (s > 0) & (t < 1)
        assert (reveal[known] > 1).all()


def test_no_strength_is_the_ancestral_step_bit_for_bit():
    for t, s in PAIRS:
        if s > 0:
            found = remasking_reveal_probability(log_u(t), log_u(s), RATES, 0.0 * RATES)
            assert torch.equal(found, reveal_probability(log_u(t), log_u(s), RATES))


def test_the_joint_law_over_a_chain_of_steps_is_that_of_the_forward_process():
    """All `2^4` sets of masked positions, after every step of a chain with remasking."""
    sets = list(itertools.product([True, False], repeat=4))
    law = {one: float(all(one)) for one in sets}
    for t, s in itertools.pairwise([1.0, 0.6, 0.6, 0.25, 0.0]):
        limit = remask_limit(log_u(t), log_u(s), RATES)
        reveal = remasking_reveal_probability(log_u(t), log_u(s), RATES, 0.7 * limit)[0].tolist()
        again, onward = (0.7 * limit)[0].tolist(), dict.fromkeys(sets, 0.0)
        for (one, mass), other in itertools.product(law.items(), sets):
            for i in range(4):
                change = reveal[i] if one[i] else again[i]
                mass *= change if one[i] != other[i] else 1 - change
            onward[other] += mass
        law = onward
        masked = (1 - alpha(log_u(s), RATES))[0].tolist()
        for one, mass in law.items():
            exact = 1.0
            for i in range(4):
                exact *= masked[i] if one[i] else 1 - masked[i]
            assert abs(mass - exact) < 1e-9


def test_weights_of_the_least_certain_sum_to_one_and_average_elsewhere():
    certainties = torch.tensor([[0.9, 0.1, 0.5, 0.3], [0.2, 0.4, 0.6, 0.8]], dtype=torch.float64)
    among = torch.tensor([[True, True, False, True], [False] * 4])
    found = least_certain_weights(certainties, among)
    exact = (-certainties[0, [0, 1, 3]]).exp()
    torch.testing.assert_close(found[0, [0, 1, 3]], exact / exact.sum())
    assert abs(found[0, 2] - 1 / 3) < 1e-15 and (found[1] == 1).all()
