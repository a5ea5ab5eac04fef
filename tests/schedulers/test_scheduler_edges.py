"""Cases on a boundary: what a margin is, the token that crosses `top_p`, the ends of a window."""

import pytest
import torch

from hf_lomdm import LoMDMScheduler

MASK = 18


def make(**config) -> LoMDMScheduler:
    scheduler = LoMDMScheduler(mask_token_id=MASK, **config)
    scheduler.set_timesteps(2)
    return scheduler


def test_margin_is_the_difference_of_the_two_best_not_their_ratio():
    close, steep = torch.zeros(MASK), torch.full((MASK,), 0.05)
    # differences 0.2 and 0.1, ratios 1.5 and 3
    close[:2], steep[0] = torch.tensor([0.6, 0.4]), 0.15
    scheduler, sample = make(sampler="margin"), torch.full((1, 2), MASK)
    for laws, expected in (([close, steep], [True, False]), ([steep, close], [False, True])):
        revealed = scheduler.select(
            None, scheduler.timesteps[0], sample, logits=torch.stack(laws).log()[None]
        )
        assert revealed.tolist() == [expected]


@pytest.mark.parametrize(
    "top_p, kept", [(0.25, 1), (0.26, 2), (0.5, 2), (0.51, 3), (0.75, 3), (0.76, 4), (1.0, 4)]
)
def test_top_p_keeps_the_token_that_reaches_it_and_none_behind(top_p, kept):
    # four equal tokens: the sums of their shares are exact, and the first ones count as likeliest
    scheduler, places = make(top_p=top_p), torch.arange(200)
    tokens = scheduler.draw_tokens(torch.zeros(200, 4), torch.zeros_like(places), places, 1)
    assert tokens.unique().tolist() == list(range(kept))


def test_velocity_holds_at_both_ends_of_a_window():
    rates = torch.tensor([[0.5, 2.0, 1.0, 4.0]])
    assert torch.equal(make().velocity(1.0, rates), rates)
    scheduler = make(block_size=2)  # windows [1/2, 1] and [0, 1/2]
    assert torch.equal(scheduler.velocity(1.0, rates), torch.tensor([[1.0, 4.0, 0.0, 0.0]]))
    assert torch.equal(
        scheduler.velocity(0.5, rates), torch.tensor([[torch.inf, torch.inf, 2.0, 8.0]])
    )
    assert torch.equal(scheduler.velocity(0.25, rates), torch.tensor([[0.0, 0.0, 4.0, 16.0]]))
