"""The pilot of the shares and the parts of several orders against plain statistics of single
draws."""

import torch

import oracles
from hf_lomdm.evaluation import nelbo
from hf_lomdm.evaluation.likelihood import loss_by_share


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_variance_of_a_draw_at_a_share_is_that_of_draws_of_their_own(make_model):
    model = oracles.vivid(make_model(**oracles.SMALLEST))
    text, bins, draws = torch.tensor([[0, 2, 1]]), 3, 150  # each bin is one number of reveals
    sums = torch.stack(
        [loss_by_share(model, text, bins=bins, generators=[seeded(seed)]) for seed in range(draws)]
    )
    # [draws, bins]; `mean` is that of two views, so has half the variance
    count, mean, variance = sums.unbind(1)
    assert (count == 1).all()
    expected = 2 * mean.var(0)
    # a share with one possible view has none; 150 draws tell the others to about a seventh
    possible = expected > 1e-6
    assert 0 < possible.sum() < bins and variance[:, ~possible].abs().max() < 1e-6
    torch.testing.assert_close(variance.mean(0)[possible], expected[possible], rtol=0.35, atol=0)


def test_the_token_part_of_several_orders_is_the_mean_over_all_of_them(make_model):
    model = oracles.vivid(make_model(**oracles.SMALLEST))
    texts = torch.tensor([[0, 2, 1], [1, 1, 0]])
    together = nelbo(model, texts, num_samples=1, num_orders=8, generator=seeded(0))
    # the same eight orders
    singly = nelbo(model, texts, num_samples=8, num_orders=1, generator=seeded(0))
    torch.testing.assert_close(together.main, singly.main)
    # Jensen: the mean of the probabilities is inside the logarithm
    assert (together.nelbo <= singly.nelbo).all()
    torch.testing.assert_close(together.main + together.velocity, together.nelbo)
