"""Draws depend on seed, step and text alone."""

import pytest
import torch

from hf_lomdm.data.draws import step_generators, step_quantiles


@pytest.mark.parametrize("global_size", [1, 8, 24])
def test_quantiles_are_stratified_over_the_global_batch_and_differ_between_steps(global_size):
    for step in range(5):
        quantiles = step_quantiles(3, step, range(global_size), global_size)
        strata = (quantiles.double() * global_size).floor().long().sort().values
        # rounding to float32 may move one quantile at the edge of its stratum by one
        assert (strata - torch.arange(global_size)).abs().sum() <= 1
        assert ((quantiles > 0) & (quantiles < 1)).all()
    one_of_many = torch.stack([step_quantiles(3, step, range(1), 8) for step in range(2000)])
    counts = torch.histc(one_of_many, 10, 0, 1)
    # chi-square with 9 degrees of freedom, p = 0.001
    assert ((counts - 200) ** 2 / 200).sum() < 27.9


def test_the_draws_of_a_text_do_not_depend_on_the_split():
    whole = step_quantiles(1, 7, range(8), 8), step_generators(1, 7, range(8))
    parts = [
        (step_quantiles(1, 7, texts, 8), step_generators(1, 7, texts))
        for texts in (range(0, 3), range(3, 8))
    ]
    assert torch.equal(whole[0], torch.cat([quantiles for quantiles, _ in parts]))
    seeds = [generator.initial_seed() for generator in whole[1]]
    assert seeds == [
        generator.initial_seed() for _, generators in parts for generator in generators
    ]
    others = [
        generator.initial_seed()
        for run in ((2, 7), (1, 8))
        for generator in step_generators(*run, range(8))
    ]
    assert len({*seeds, *others}) == 24
