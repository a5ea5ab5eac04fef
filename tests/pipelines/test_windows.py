"""What windows must not share: draws, and what the model said before a callback wrote into them."""

import pytest
import torch
from tiny_pipeline import BOS, MASK, make_pipe


@pytest.mark.parametrize("one_each", [True, False], ids=["generators", "generator"])
@pytest.mark.parametrize("block_size, width", [(8, 8), (None, 16)], ids=["blocks", "windows"])
def test_every_window_has_draws_of_its_own(make_model, block_size, width, one_each):
    model = make_model(
        rate_type="uniform", block_size=block_size, max_position_embeddings=32, eos_token_id=None
    )
    # all tokens equally likely: the text is the draws themselves
    torch.nn.init.zeros_(model.lm_head.weight)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    out = make_pipe(model)(
        [[BOS], [BOS]], 8, max_length=64, generator=generators if one_each else generators[0]
    )
    for row in out.sequences:
        parts = [
            tuple(part.tolist()) for part in row[32 if block_size is None else 8 :].split(width)
        ]
        assert len(set(parts)) == len(parts) > 1
    assert not torch.equal(out.sequences[0], out.sequences[1])


@pytest.mark.parametrize("sampler", ["sequential", "ancestral", "confidence"])
def test_after_a_callback_has_written_the_model_reads_the_canvas_again(make_model, sampler):
    model, read, written = make_model(), [], []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].clone()), with_kwargs=True
    )

    def write_another_token(pipe, step, timestep, tensors):
        sample = tensors["sample"].clone()
        sample[:, 1] = 3 + step % 6  # as many masks as before
        written.append(sample)
        return {"sample": sample}

    pipe = make_pipe(model, sampler=sampler)
    generator = torch.Generator().manual_seed(1)
    pipe(
        [[BOS, 9, MASK, MASK, 5]], 12, generator=generator, callback_on_step_end=write_another_token
    )
    masked = [sample for sample in written if (sample == MASK).any()]
    assert len(read) == 1 + len(masked) and all(map(torch.equal, read[1:], masked))
    # the case in question: a step reveals nothing, and only the callback's token is new
    counts = [int((sample == MASK).sum()) for sample in masked]
    assert (len(set(counts)) < len(counts)) == (sampler == "ancestral")
