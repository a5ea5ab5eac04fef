"""Prompts longer than the context, written on in blocks: what the cache holds of them, row by
row."""

import pytest
import torch

from hf_lomdm import LoMDMPipeline, LoMDMScheduler


@pytest.mark.parametrize("rate_type", ["learned", "uniform", "token"])
@pytest.mark.parametrize("block_size, context", [(2, 6), (4, 8), (8, 8)])
@pytest.mark.parametrize("lengths", [(9, 30), (31, 2), (24, 25)])
def test_prompts_longer_than_the_context_are_read_with_their_own_padding(
    make_model, rate_type, block_size, context, lengths
):
    model = make_model(
        rate_type=rate_type,
        block_size=block_size,
        max_position_embeddings=context,
        eos_token_id=None,
    )
    pipe = LoMDMPipeline(model.double(), LoMDMScheduler(mask_token_id=10))
    pipe.set_progress_bar_config(disable=True)
    draws = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 10, (length,), generator=draws).tolist() for length in lengths]

    def write(rows, use_cache):
        generators = [torch.Generator().manual_seed(row) for row in rows]
        batch = [prompts[row] for row in rows]
        return pipe(batch, 2, max_new_tokens=9, generator=generators, use_cache=use_cache)

    cached, plain = write((0, 1), True), write((0, 1), False)
    assert torch.equal(cached.sequences, plain.sequences) and torch.equal(cached.order, plain.order)
    for row in (0, 1):
        alone = write((row,), True).sequences[0]
        assert torch.equal(cached.sequences[row, : len(alone)], alone)
