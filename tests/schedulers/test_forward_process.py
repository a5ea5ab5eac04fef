"""The forward process of `LoMDMScheduler`: `alpha`, `velocity`, windows of blocks, `add_noise`."""

import pytest
import torch
from tiny_scheduler import MASK, generators, make, random_output

from hf_lomdm.modeling import process_lomdm as process
from hf_lomdm.modeling.random_lomdm import position_exponentials, row_seeds
from hf_lomdm.modeling.scheduling_lomdm import LoMDMScheduler


@pytest.mark.parametrize("block_size", [None, 1, 4, 5])
def test_velocity_is_minus_the_slope_of_alpha_over_one_minus_alpha(block_size):
    _, rates = random_output(1, 10)
    scheduler, rates = LoMDMScheduler(MASK, block_size=block_size), rates.double()
    for t in (0.03, 0.37, 0.62, 0.95):
        step = 1e-6
        slope = (scheduler.alpha(t + step, rates) - scheduler.alpha(t - step, rates)) / (2 * step)
        hidden = 1 - scheduler.alpha(t, rates)
        inside = (hidden > 0) & (hidden < 1)
        velocity = scheduler.velocity(t, rates)
        # 1e-5: the central difference has an error of about step^2 / t^3, rounding of 1e-16 / step
        torch.testing.assert_close(
            velocity[inside], (-slope / hidden)[inside], rtol=1e-5, atol=1e-8
        )
        assert inside.any() and not velocity[~inside].any()


def test_alpha_is_one_for_data_zero_for_all_masked_and_takes_a_time_per_row():
    _, rates = random_output(3, 8)
    for block_size in (None, 3):
        scheduler = LoMDMScheduler(MASK, block_size=block_size)
        assert (scheduler.alpha(0.0, rates) == 1).all() and (scheduler.alpha(1.0, rates) == 0).all()
        assert scheduler.alpha(0.5, rates).dtype == torch.float32
        times = torch.tensor([0.2, 0.5, 0.9])
        each = torch.cat([scheduler.alpha(float(t), rates[i : i + 1]) for i, t in enumerate(times)])
        for shaped in (times, times[:, None]):
            torch.testing.assert_close(scheduler.alpha(shaped, rates), each)


def test_windows_of_blocks_count_real_positions_only():
    _, rates = random_output(1, 6)
    scheduler = LoMDMScheduler(MASK, block_size=2)
    padded, mask = (
        torch.cat([torch.ones(1, 3), rates, torch.ones(1, 2)], 1),
        torch.tensor([[0] * 3 + [1] * 6 + [0] * 2]),
    )
    for function in (scheduler.alpha, scheduler.velocity):
        assert torch.equal(function(0.4, padded, mask)[:, 3:9], function(0.4, rates))


def test_add_noise_masks_with_probability_one_minus_alpha():
    rates = torch.tensor([0.05, 0.4, 1.0, 1.35, 0.7, 0.7]).expand(40_000, 6)
    text = torch.arange(6).expand_as(rates)
    mask = torch.tensor([0, 1, 1, 1, 1, 1]).expand_as(text)
    scheduler = LoMDMScheduler(MASK)
    noisy = scheduler.add_noise(
        text, rates, 0.3, torch.Generator().manual_seed(0), attention_mask=mask
    )
    hidden = noisy == MASK
    assert torch.equal(noisy[~hidden], text[~hidden]) and not hidden[:, 0].any()
    expected = 0.3 ** rates[0, 1:].double()
    z = (hidden[:, 1:].double().mean(0) - expected) / (expected * (1 - expected) / len(text)).sqrt()
    assert z.abs().max() < 4
    both = (hidden[:, 4] & hidden[:, 5]).double().mean()  # neighbours are independent
    assert abs(both - expected[3] ** 2) < 4 * (0.25 / len(text)) ** 0.5
    assert (scheduler.add_noise(text, rates, 1.0)[0] == MASK).all()
    assert torch.equal(scheduler.add_noise(text, rates, 0.0), text)


def test_add_noise_of_a_padded_text_equals_alone():
    _, rates = random_output(1, 6)
    text, padded = torch.arange(6)[None], torch.tensor([[0, 0, *range(6), 0]])
    mask = torch.tensor([[0] * 2 + [1] * 6 + [0]])
    padded_rates = torch.cat([torch.ones(1, 2), rates, torch.ones(1, 1)], 1)
    for seed in range(20):
        alone = LoMDMScheduler(MASK).add_noise(text, rates, 0.5, *generators(seed))
        noisy = LoMDMScheduler(MASK).add_noise(
            padded, padded_rates, 0.5, *generators(seed), attention_mask=mask
        )
        assert torch.equal(noisy[:, 2:8], alone)


def test_draws_equal_those_of_the_process_from_the_same_generator():
    """Same seeds, same hash: the scheduler's noise is the training's, its sequential order the
    training's order."""
    _, rates = random_output(64, 12)
    text = torch.zeros(64, 12, dtype=torch.int64)
    maskable, position = torch.ones_like(text).bool(), torch.arange(12)[None]
    seeds = row_seeds(torch.Generator().manual_seed(1), 64, torch.device("cpu"))
    exponentials = position_exponentials(seeds, position)
    masked = process.draw_masks(exponentials, torch.tensor(0.5).log(), rates, maskable)
    noisy = LoMDMScheduler(MASK).add_noise(text, rates, 0.5, torch.Generator().manual_seed(1))
    assert torch.equal(noisy == MASK, masked)
    rank = process.draw_order(exponentials, rates, maskable)
    revealed = make(3).select(rates, 1.0, text + MASK, torch.Generator().manual_seed(1))
    assert torch.equal(revealed, rank < 4)
