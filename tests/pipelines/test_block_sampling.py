"""Texts written block after block and beyond the context: exact cache, independent rows, an end at
EOS."""

import itertools

import pytest
import torch

import oracles
from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.evaluation import exact_log_likelihood
from tiny_tokenizer import build_tokenizer

MASK, PAD, BOS, EOS = 10, 0, 1, 2
# prompts that end within a block and at its end, a template with a finished block in its middle,
# and a long prompt
PROMPTS = [
    [BOS, 3, 4, 5, 6],
    [BOS],
    [BOS, 7, MASK, MASK, 8, 9, 3, 4, MASK, 5, MASK],
    [BOS, 3, 4, 5],
    [BOS, 3, 4, 5, 6, 7, 8, 9, 3],
    [BOS, MASK],
    [MASK, 4],
    [BOS, 3, 4, 5, 6, 7, 8],
]
KINDS = [("learned", 4), ("uniform", 4), ("token", 4), ("score", 3), ("uniform", 1)]
# a chi-square statistic this many standard deviations out has probability 3e-5; seeds are fixed
Z = 4.0


def make_pipe(model, **settings) -> LoMDMPipeline:
    """A pipeline of the model in float64, where the cache moves logits by 1e-15 only."""
    mask = model.config.mask_token_id
    tokenizer = build_tokenizer() if mask == MASK else None
    pipe = LoMDMPipeline(model.double(), LoMDMScheduler(mask_token_id=mask, **settings), tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def of_the_window(index: int) -> torch.Generator:
    """The generator that the pipeline derives for a window from one with the seed 0."""
    drawn = torch.randint(2**62, (), generator=torch.Generator().manual_seed(0)).item()
    return torch.Generator().manual_seed(drawn + index)


def same(first, second) -> bool:
    return torch.equal(first.sequences, second.sequences) and torch.equal(first.order, second.order)


@pytest.mark.parametrize("sampler", ["sequential", "ancestral", "confidence"])
@pytest.mark.parametrize("rate_type, block_size", KINDS)
def test_cached_equals_uncached_token_for_token_in_a_batch_of_unequal_prompts(
    make_model, rate_type, block_size, sampler
):
    model = make_model(
        rate_type=rate_type, block_size=block_size, max_position_embeddings=16, eos_token_id=None
    )
    pipe = make_pipe(model, sampler=sampler)
    cached, plain = (
        pipe(PROMPTS, 2, max_length=23, generator=generators(8), use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert same(cached, plain) and cached.num_forward_passes == plain.num_forward_passes
    assert not (cached.sequences == MASK).any()
    for i, prompt in enumerate(PROMPTS):  # and each row is what it is alone, with the cache
        alone = pipe([prompt], 2, max_length=23, generator=generators(8)[i : i + 1])
        length = alone.sequences.shape[1]
        assert torch.equal(alone.sequences[0], cached.sequences[i, :length])
        assert (cached.order[i, length:] == -2).all()


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("rate_type, block_size", KINDS)
def test_blocks_are_those_of_a_loop_written_by_hand(make_model, rate_type, block_size, use_cache):
    """One row: in each block the scheduler's steps on what the model says of the whole text so
    far."""
    model = make_model(
        rate_type=rate_type, block_size=block_size, max_position_embeddings=8, eos_token_id=None
    )
    pipe, steps, length = make_pipe(model), 3, 14
    out = pipe(
        [[BOS, 3, 4, 5, 6]],
        steps,
        max_length=length,
        generator=torch.Generator().manual_seed(0),
        use_cache=use_cache,
    )
    text, passes = torch.tensor([[BOS, 3, 4, 5, 6] + [MASK] * (length - 5)]), 0
    pipe.scheduler.set_timesteps(steps)
    for index, first in enumerate(range(5 // block_size * block_size, length, block_size)):
        block, generator = slice(first, first + block_size), of_the_window(index)
        for timestep in pipe.scheduler.timesteps:
            if (text[:, block] == MASK).any():
                with torch.no_grad():
                    output = model(text)
                passes += 1
                arguments = (
                    output.logits[:, block],
                    timestep,
                    text[:, block],
                    output.rates[:, block],
                    generator,
                )
                text[:, block] = pipe.scheduler.step(*arguments).prev_sample
    assert torch.equal(out.sequences, text) and out.num_forward_passes == passes


@pytest.mark.parametrize(
    "rate_type, block_size",
    [
        ("uniform", 1),
        ("uniform", 2),
        ("learned", 2),
        ("token", 2),
        ("score", 2),
        ("token", None),
        ("score", None),
    ],
)
def test_one_reveal_per_step_writes_with_the_exact_probabilities(make_model, rate_type, block_size):
    model = oracles.vivid(
        make_model(**oracles.SMALLEST, rate_type=rate_type, block_size=block_size)
    )
    texts = torch.tensor(list(itertools.product(range(3), repeat=3)))
    law = exact_log_likelihood(model, texts).exp()
    assert abs(law.sum() - 1) < 1e-9
    out = make_pipe(model)(
        [[3] * 3],
        3,
        num_return_sequences=5_000,
        generator=torch.Generator().manual_seed(0),
        output_type="seq",
    )
    counts = (out.sequences[:, None] == texts).all(-1).sum(0).double()
    assert abs(oracles.chi_square_z(counts, law)) < Z
    # the test sees another law
    assert oracles.chi_square_z(counts, torch.full_like(law, 1 / len(law))) > Z


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_text_that_has_ended_costs_no_more_passes_and_is_padding_behind_its_block(
    make_model, use_cache
):
    model = make_model(rate_type="uniform", block_size=4)
    # the third block of each row is of EOS alone
    pipe, tokens = make_pipe(model), iter([5] * 4 + [EOS] * 2)
    project = model.token_logits

    def token_logits(hidden):
        logits = torch.full_like(project(hidden), -1e3)
        logits[..., next(tokens)] = 1e3
        return logits

    model.token_logits = token_logits
    out = pipe([[BOS, 3], [BOS, 3, EOS, 4, 6]], 2, max_length=60, use_cache=use_cache)
    assert out.sequences[0].tolist() == [BOS, 3, *[5] * 6, *[EOS] * 4, *[PAD] * 4]
    # an EOS of the prompt ends nothing
    assert out.sequences[1].tolist() == [BOS, 3, EOS, 4, 6, *[5] * 7, *[EOS] * 4]
    assert out.num_forward_passes == 6
    assert out.order[0, :2].tolist() == [-1, -1] and set(out.order[0, 2:4].tolist()) == {0, 1}
    assert out.order[0, 12:].tolist() == [-2] * 4 and set(out.order[1, 12:].tolist()) == {4, 5}
    assert out.texts == ["a" + 6 * "c", "abd" + 7 * "c"]


@pytest.mark.parametrize("sampler", ["sequential", "left_to_right"])
def test_a_model_without_blocks_continues_beyond_its_context_by_a_sliding_window(
    make_model, sampler
):
    model = make_model(max_position_embeddings=8, eos_token_id=None)
    pipe, prompt, length = make_pipe(model, sampler=sampler), [BOS, 3, 4], 19
    out = pipe([prompt], 4, max_length=length, generator=torch.Generator().manual_seed(0))
    order = torch.full((1, length), -1)
    text = torch.tensor([prompt + [MASK] * (length - 3)])
    pipe.scheduler.set_timesteps(4)
    # windows of 8, of which the first half is given
    for index, first in enumerate(range(0, 13, 4)):
        window, generator = slice(first, first + 8), of_the_window(index)
        for step, timestep in enumerate(pipe.scheduler.timesteps):
            if not (text[:, window] == MASK).any():
                continue
            with torch.no_grad():
                output = model(text[:, window])
            result = pipe.scheduler.step(
                output.logits, timestep, text[:, window], output.rates, generator
            )
            text[:, window] = result.prev_sample
            order[:, window] = order[:, window].masked_fill(result.revealed, 4 * index + step)
    assert torch.equal(out.sequences, text) and torch.equal(out.order, order)
    assert out.num_forward_passes == 4 + 4 + 4 + 3  # the last window has three positions to fill in


def test_rows_beyond_the_context_do_not_depend_on_their_batch(make_model):
    pipe = make_pipe(make_model(max_position_embeddings=8, eos_token_id=None))
    prompts = [[BOS, 3], [BOS, 3, 4, 5, 6, 7, 8, 9, 3, 4], [BOS, MASK, 4]]
    both = pipe(prompts, 3, max_length=21, generator=generators(3))
    for i, prompt in enumerate(prompts):
        alone = pipe([prompt], 3, max_length=21, generator=generators(3)[i : i + 1])
        length = alone.sequences.shape[1]
        assert torch.equal(alone.sequences[0], both.sequences[i, :length])
        assert (
            torch.equal(alone.order[0], both.order[i, :length])
            and (both.order[i, length:] == -2).all()
        )


@pytest.mark.parametrize("block_size", [None, 4])
def test_a_list_of_generators_moves_on_and_gives_every_row_draws_of_its_own(make_model, block_size):
    pipe = make_pipe(
        make_model(max_position_embeddings=8, block_size=block_size, eos_token_id=None)
    )
    source = torch.Generator().manual_seed(0)
    # the prompt fills the first window: what is drawn is drawn in later ones
    texts = [
        pipe([list(range(3, 10)) + [3, 4]], 4, max_length=24, generator=[source]).sequences
        for _ in range(2)
    ]
    assert not torch.equal(*texts)
    rows = pipe([[BOS]], 4, max_length=24, num_return_sequences=4, generator=[source] * 4).sequences
    assert len({tuple(row) for row in rows[:, 8:].tolist()}) == 4


@pytest.mark.parametrize("rows", [1, 2])  # one alone has no mask of padding
@pytest.mark.parametrize("rate_type", ["learned", "token"])
def test_a_step_costs_the_same_however_long_the_text(make_model, rate_type, rows):
    """A prompt of four contexts is read a context at a time, and nothing out of reach is kept."""
    model = make_model(
        rate_type=rate_type, block_size=4, max_position_embeddings=8, eos_token_id=None
    )
    pipe, widths, held = make_pipe(model), [], []
    read = model.model.forward

    def forward(input_ids, attention_mask=None, past_key_values=None, **options):
        widths.append(input_ids.shape[1])
        held.append(past_key_values.get_seq_length())
        return read(input_ids, attention_mask, past_key_values=past_key_values, **options)

    prompts = [[BOS, *range(3, 10)] * 4 + [3], [BOS, 3]][:rows]
    model.model.forward = forward
    cached = pipe(prompts, 2, max_length=50, generator=generators(rows))
    model.model.forward = read
    assert max(widths) <= 8 + 4 and max(held) <= 16
    assert same(
        pipe(prompts, 2, max_length=50, generator=generators(rows), use_cache=False), cached
    )


def test_ancestral_steps_without_a_reveal_cost_no_pass(make_model):
    pipe = make_pipe(
        make_model(rate_type="uniform", block_size=1, eos_token_id=None), sampler="ancestral"
    )
    out = pipe([[BOS]], 50, max_length=9, generator=torch.Generator().manual_seed(0))
    assert out.num_forward_passes == 8
    assert not (out.sequences == MASK).any()


def test_an_offloaded_model_writes_the_same_blocks(make_model):
    pipe = make_pipe(make_model(block_size=4, eos_token_id=None))
    expected = pipe([[BOS, 3], [BOS]], 2, max_length=14, generator=generators(2))
    pipe.enable_model_cpu_offload(device="cpu")
    assert same(pipe([[BOS, 3], [BOS]], 2, max_length=14, generator=generators(2)), expected)


def test_steps_are_those_of_each_block_and_the_callback_sees_the_block(make_model):
    pipe, seen = make_pipe(make_model(rate_type="uniform", block_size=4, eos_token_id=None)), []
    pipe(
        [[BOS]],
        num_inference_steps=2,
        max_length=10,
        callback_on_step_end=lambda pipe, step, time, tensors: (
            seen.append((step, float(time), tensors["sample"].shape[1])) or {}
        ),
    )
    assert seen == [(0, 1.0, 4), (1, 0.5, 4), (2, 1.0, 4), (3, 0.5, 4), (4, 1.0, 2), (5, 0.5, 2)]
    assert pipe.num_timesteps == 6
