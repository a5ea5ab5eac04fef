"""What shapes the token law and moves no position: guidance, processors, allowed tokens."""

from unittest.mock import patch

import pytest
import torch
from tiny_pipeline import BOS, MASK, generators, make_pipe
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import (
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

import oracles
from hf_lomdm import LoMDMScheduler
from hf_lomdm.modeling.process_lomdm import guided_logits

KINDS = [("learned", None), ("token", None), ("learned", 4), ("score", 4)]
PROMPTS = [[BOS, 3, 4, 5, 6, 7], [BOS, 6], [BOS, 7, MASK, MASK, 8, 9, MASK]]


def forbid(*tokens: int) -> LogitsProcessorList:
    return LogitsProcessorList([SuppressTokensLogitsProcessor(list(tokens), device="cpu")])


# ------------------------------------------------------------------------------------- guidance


def test_guided_logits_are_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(50, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    one[:, 5] = two[:, 5] = -torch.inf
    one[:, 4] = -torch.inf  # impossible with the prompt
    two[:, 3] = -torch.inf  # with the prompt alone
    p, q = one.softmax(-1), two.softmax(-1)
    for scale in (0.0, 0.5, 1.0, 2.0, 7.5):
        exact = p**scale * torch.where(q > 0, q, 1.0) ** (1 - scale)
        exact = torch.where(p > 0, exact, 0.0)
        found = guided_logits(one, two, scale).softmax(-1)
        torch.testing.assert_close(found, exact / exact.sum(-1, keepdim=True))
    torch.testing.assert_close(guided_logits(one, two, 1.0).softmax(-1), p)


@pytest.mark.parametrize("rate_type, block_size", KINDS)
@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_a_guided_token_has_the_closed_form(make_model, rate_type, block_size, scale):
    """One masked token behind a prompt: chi-square against `p^scale q^(1 - scale)`."""
    model = make_model(rate_type=rate_type, block_size=block_size).double()
    text = torch.tensor([[BOS, 3, 4, MASK]])
    generator = torch.Generator().manual_seed(0)
    out = make_pipe(model)(
        text.tolist(), 1, num_return_sequences=4_000, generator=generator, guidance_scale=scale
    )
    with torch.no_grad():
        p, q = (model(ids).logits[0, -1].softmax(-1) for ids in (text, torch.full_like(text, MASK)))
    law = torch.where(p > 0, p**scale * q ** (1 - scale), 0.0)
    counts = torch.bincount(out.sequences[:, 3], minlength=11).double()
    assert abs(oracles.chi_square_z(counts, law / law.sum())) < 4
    assert scale == 0 or abs(oracles.chi_square_z(counts, p)) > 4
    assert out.num_forward_passes == 1  # of a doubled batch


@pytest.mark.parametrize("rate_type, block_size", KINDS)
def test_scale_one_is_no_guidance(make_model, rate_type, block_size):
    model, sizes = make_model(rate_type=rate_type, block_size=block_size, eos_token_id=None), []
    model.register_forward_pre_hook(
        lambda _, args, options: sizes.append(len(args[0] if args else options["input_ids"])),
        with_kwargs=True,
    )
    pipe, found = make_pipe(model), {}
    for scale, size in ((None, 3), (1.0, 3), (1, 3), (2.0, 6)):
        sizes.clear()
        options = {} if scale is None else {"guidance_scale": scale}
        found[size] = pipe(PROMPTS, 4, max_length=14, generator=generators(1, 2, 3), **options)
        assert set(sizes) == {size} and torch.equal(found[3].sequences, found[size].sequences) == (
            size == 3
        )
        assert found[size].num_forward_passes == found[3].num_forward_passes


@pytest.mark.parametrize("settings", [{}, {"sampler": "threshold", "threshold": 0.3}], ids=str)
@pytest.mark.parametrize("rate_type, block_size", KINDS)
def test_guided_rows_are_what_they_are_alone_with_and_without_cache(
    make_model, rate_type, block_size, settings
):
    model = make_model(rate_type=rate_type, block_size=block_size, eos_token_id=None).double()
    pipe = make_pipe(model, **settings)
    shapes = {
        "guidance_scale": 2.0,
        "logits_processor": forbid(5, 6),
        "allowed_tokens": {9: [3, 4], 11: [7]},
    }

    def write(prompts, seeds, **options):
        known = {"max_length": 17, "generator": generators(*seeds)} | shapes | options
        return pipe(prompts, 5, **known)

    together, plain = (write(PROMPTS, range(3), use_cache=cached) for cached in (True, False))
    assert torch.equal(together.sequences, plain.sequences)
    for row, prompt in enumerate(PROMPTS):
        allowed = shapes["allowed_tokens"] if row < 2 else None
        alone = write([prompt], [row], allowed_tokens=allowed)
        length = alone.sequences.shape[1]
        assert torch.equal(together.sequences[row, :length], alone.sequences[0])
        assert torch.equal(together.order[row, :length], alone.order[0])


def test_a_callback_changes_the_guidance_of_the_steps_that_follow(make_model):
    """As diffusers has it: `pipe._guidance_scale`, from the next step on."""
    pipe, scales, guide = make_pipe(make_model()), [], LoMDMScheduler.guide

    def record(logits, plain, scale):
        scales.append(scale)
        return guide(logits, plain, scale)

    def weaken(pipe, step, timestep, tensors):
        pipe._guidance_scale -= 1.0
        return {}

    with patch.object(LoMDMScheduler, "guide", staticmethod(record)):
        pipe(PROMPTS[:1], 3, max_length=14, guidance_scale=3.0, callback_on_step_end=weaken)
    assert scales == [3.0, 2.0, 1.0] and pipe.guidance_scale == 0.0
    with pytest.raises(ValueError, match="_guidance_scale=0.0 comes too late.*Pass another"):
        pipe(PROMPTS[:1], 3, max_length=14, callback_on_step_end=weaken)


def test_without_the_prompt_a_block_model_reads_no_block_of_it(make_model):
    """Given blocks are not there, given tokens of the present block are masks."""
    model = make_model(rate_type="uniform", block_size=4, eos_token_id=None).double()
    pipe, seen = make_pipe(model), []
    open_context = model.open_context

    def spy(tokens, mask, use_cache):
        seen.append((tokens.clone(), None if mask is None else mask.clone()))
        return open_context(tokens, mask, use_cache)

    model.open_context = spy
    pipe([PROMPTS[0]], 1, max_length=8, guidance_scale=3.0, use_cache=False)
    tokens, mask = seen[0]
    assert tokens.shape == (2, 4) and mask.tolist() == [[1] * 4, [0] * 4]


# ------------------------------------------------------------------------------------ processors


@pytest.mark.parametrize("rate_type, block_size", KINDS)
@pytest.mark.parametrize("sampler", ["sequential", "confidence", "ancestral"])
def test_processors_forbid_force_and_bias_and_move_no_position(
    make_model, rate_type, block_size, sampler
):
    model = make_model(rate_type=rate_type, block_size=block_size, eos_token_id=None)
    pipe = make_pipe(model, sampler=sampler)

    def write(processor):
        return pipe([[BOS]], 16, max_length=16, generator=generators(0), logits_processor=processor)

    plain, forbidden = write(None), write(forbid(*range(3, 10)))
    assert set(forbidden.sequences[0, 1:].tolist()) <= {0, 1, 2}
    force = LogitsProcessorList([SequenceBiasLogitsProcessor({(7,): 1e4})])
    assert set(write(force).sequences[0, 1:].tolist()) == {7}
    assert torch.equal(write(LogitsProcessorList()).sequences, plain.sequences)
    if sampler != "confidence":  # which looks at other laws once tokens differ
        first = plain.order[0] == 0
        assert torch.equal(forbidden.order[0] == 0, first)


def test_a_processor_is_given_the_canvas_of_each_place(make_model):
    class Spy(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append((input_ids.clone(), scores.shape))
            return scores

    for block_size in (None, 4):
        seen = []
        pipe = make_pipe(make_model(block_size=block_size, eos_token_id=None))
        out = pipe(
            PROMPTS[:2],
            8,
            max_length=9,
            generator=generators(0, 1),
            logits_processor=LogitsProcessorList([Spy()]),
        )
        assert all(ids.shape == (len(ids), 9) and shape == (len(ids), 11) for ids, shape in seen)
        prompts = [[*prompt, *[MASK] * (9 - len(prompt))] for prompt in PROMPTS[:2]]
        assert seen[0][0].unique(dim=0).tolist() == sorted(prompts)
        # what is not masked is what will be there in the end
        for ids, _ in seen:
            fits = (ids[:, None] == out.sequences) | (ids[:, None] == MASK)
            assert fits.all(-1).any(1).all()


def test_no_repeats_makes_every_token_a_new_one(make_model):
    class NoRepeats(LogitsProcessor):
        """No token that the canvas has already."""

        def __call__(self, input_ids, scores):
            return scores.scatter(1, input_ids, -torch.inf)

    pipe = make_pipe(make_model(eos_token_id=None))
    out = pipe([[MASK] * 9], 9, generator=generators(0), logits_processor=NoRepeats())
    assert len(set(out.sequences[0].tolist())) == 9
    penalty = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1e3)])
    assert pipe([[BOS]], 8, max_length=9, logits_processor=penalty).sequences.shape == (1, 9)


# --------------------------------------------------------------------------------- allowed tokens


@pytest.mark.parametrize("rate_type, block_size", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_allowed_tokens_alone_are_written(make_model, rate_type, block_size, temperature):
    model = make_model(rate_type=rate_type, block_size=block_size, eos_token_id=None)
    pipe = make_pipe(model, temperature=temperature)
    allowed = {2: [7], 5: [3, 4], 9: [8, 9], 10: [5]}
    for max_length, count in ((12, 3), (40, 2)):  # beyond the context too
        out = pipe(
            [[BOS, 3]],
            12,
            max_length=max_length,
            num_return_sequences=count,
            allowed_tokens=allowed | ({38: [6]} if max_length == 40 else {}),
        )
        for position, tokens in allowed.items():
            assert set(out.sequences[:, position].tolist()) <= set(tokens)
        assert max_length == 12 or (out.sequences[:, 38] == 6).all()
    each = pipe([[BOS], [BOS, 3, 4]], 4, max_length=6, allowed_tokens=[{5: [7]}, {5: [8]}])
    assert each.sequences[:, 5].tolist() == [7, 8]


def test_allowed_tokens_keep_the_law_among_themselves(make_model):
    model = make_model().double()
    text = torch.tensor([[BOS, 3, MASK, 4]])
    out = make_pipe(model)(
        text.tolist(),
        1,
        num_return_sequences=4_000,
        generator=torch.Generator().manual_seed(0),
        allowed_tokens={2: (3, 5, 7)},
    )
    with torch.no_grad():
        law = model(text).logits[0, 2].softmax(-1)
    law = torch.zeros_like(law).index_copy(0, torch.tensor([3, 5, 7]), law[[3, 5, 7]])
    counts = torch.bincount(out.sequences[:, 2], minlength=11).double()
    assert abs(oracles.chi_square_z(counts, law / law.sum())) < 4


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        *(
            ({"guidance_scale": bad}, "guidance_scale must be a number of at least 0, got .* Pass")
            for bad in (-1, "2", None, float("nan"), float("inf"), True)
        ),
        ({"prompt": None, "guidance_scale": 2.0}, "guidance_scale=2.0 needs a prompt"),
        ({"prompt": [[MASK, MASK]], "guidance_scale": 2.0}, "guidance_scale=2.0 needs a prompt"),
        ({"logits_processor": 3}, "logits_processor must be callable, got 3. Pass a LogitsPr"),
        ({"allowed_tokens": [3]}, "allowed_tokens must map positions to token ids, or be a list"),
        ({"allowed_tokens": [{}, {}]}, "or be a list of 1 mappings, got"),
        ({"allowed_tokens": {8: [3]}}, "has the position 8, rows have 0 to 7"),
        ({"allowed_tokens": {"3": [3]}}, "has the position '3'"),
        ({"allowed_tokens": {3: []}}, "at position 3 must be token ids below 11 .* got \\[\\]"),
        ({"allowed_tokens": {3: [MASK]}}, "but the mask token's, got .10."),
        ({"allowed_tokens": {3: [11]}}, "token ids below 11"),
        ({"allowed_tokens": {3: 4}}, "got 4. Pass at least one"),
    ],
    ids=str,
)
def test_bad_shapes_are_one_clear_line(make_model, arguments, message):
    options = {"prompt": [[BOS, 3]], "num_inference_steps": 2, "max_length": 8}
    with pytest.raises(ValueError, match=message) as caught:
        make_pipe(make_model())(**(options | arguments))
    assert "\n" not in str(caught.value)
