"""The calls that people know: messages, stop strings, streamers, streams, generate."""

import inspect

import pytest
import torch
from diffusers import (
    BlockRefinementScheduler,
    DiscreteDDIMScheduler,
    EntropyBoundScheduler,
    LLaDA2Pipeline,
)
from transformers import TextDiffusionStreamer, TextIteratorStreamer

from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from tiny_tokenizer import build_tokenizer

MASK, PAD, BOS, EOS = 10, 0, 1, 2
TEMPLATE = (
    "{% for m in messages %}{{ m.content }}d{% endfor %}{% if add_generation_prompt %}e{% endif %}"
)
HELLO = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]
both_kinds = pytest.mark.parametrize("block_size", [None, 4])


def make_pipe(model, **settings) -> LoMDMPipeline:
    size = model.config.block_size
    pipe = LoMDMPipeline(
        model, LoMDMScheduler(MASK, block_size=size, **settings), build_tokenizer()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -------------------------------------------------------------------------------------- messages


def test_messages_are_the_prompt_that_the_chat_template_makes(make_model):
    pipe = make_pipe(make_model())
    pipe.tokenizer.chat_template = TEMPLATE
    ids = [3, 4, 6, 5, 6, 7]  # "ab" d "c" d e
    spelt = pipe([ids], 4, max_new_tokens=5, generator=generator())
    for messages in (HELLO, [HELLO], (tuple(HELLO),)):
        out = pipe(
            messages=messages, num_inference_steps=4, max_new_tokens=5, generator=generator()
        )
        assert torch.equal(out.sequences, spelt.sequences) and out.texts == spelt.texts
    two = pipe(messages=[HELLO, HELLO[:1]], num_inference_steps=4, max_new_tokens=5)
    assert len(two.texts) == 2 and (two.order[1, :4] == -1).all()


@pytest.mark.parametrize(
    "messages", [[], "hello", [{"role": "user"}], [[]], ["ab"], 3, [HELLO, {"role": "user"}]]
)
def test_what_is_no_conversation_is_refused(make_model, messages):
    pipe = make_pipe(make_model())
    pipe.tokenizer.chat_template = TEMPLATE
    with pytest.raises(ValueError, match="messages must be dicts with role and content.*Pass"):
        pipe(messages=messages)


def test_messages_need_a_template_and_exclude_a_prompt(make_model):
    pipe = make_pipe(make_model())
    with pytest.raises(ValueError, match="messages need a tokenizer with a chat template. Set"):
        pipe(messages=HELLO)
    pipe.tokenizer.chat_template = TEMPLATE
    with pytest.raises(ValueError, match="prompt='a' and messages exclude each other"):
        pipe("a", messages=HELLO)


# ---------------------------------------------------------------------------------- stop strings


@both_kinds
def test_a_stop_string_ends_the_text_and_what_would_be_behind_its_window(make_model, block_size):
    pipe = make_pipe(make_model(block_size=block_size, eos_token_id=None))
    options = {"max_length": 40, "generator": generator(3)}
    whole = pipe("ab", 12, **options).texts[0]
    stop = whole[6:8]
    for stops in (stop, [stop], ["zz", stop]):
        out = pipe("ab", 12, max_length=40, generator=generator(3), stop_strings=stops)
        assert out.texts == [whole[: whole.index(stop, 2)]]
        assert out.sequences.shape[1] < 40 and stop in pipe.tokenizer.decode(out.sequences[0])
    inside = pipe("ab", 12, max_length=40, generator=generator(3), stop_strings="ab").texts[0]
    assert inside.startswith("ab") and "ab" not in inside[2:]  # the prompt's own ends nothing
    assert pipe("ab", 12, max_length=40, generator=generator(3), stop_strings="zz").texts == [whole]


@pytest.mark.parametrize("bad", ["", [""], [3], 3, ["a", None]])
def test_bad_stop_strings_are_one_clear_line(make_model, bad):
    with pytest.raises(ValueError, match="stop_strings must be strings that are not empty.*Pass"):
        make_pipe(make_model())("a", 2, stop_strings=bad)


def test_stop_strings_need_a_tokenizer(make_model):
    pipe = make_pipe(make_model())
    pipe.tokenizer = None
    with pytest.raises(ValueError, match="stop_strings='a' need a tokenizer. Load"):
        pipe([[3]], 2, stop_strings="a")


# ------------------------------------------------------------------------------------- streaming


class Recorder:
    def __init__(self):
        self.puts, self.drafts, self.ended = [], [], 0

    def put(self, value):
        assert not self.ended
        self.puts.append(value)

    def put_draft(self, value):
        self.drafts.append(value)

    def end(self):
        self.ended += 1


@both_kinds
@pytest.mark.parametrize("prompt", [[BOS, 3, 4], [BOS, MASK, MASK, 5, 6, 7, 8, MASK, 9], None])
def test_a_streamer_is_told_prompt_drafts_and_finished_windows(make_model, block_size, prompt):
    pipe, recorder = make_pipe(make_model(block_size=block_size, eos_token_id=None)), Recorder()
    options = {} if prompt and MASK in prompt else {"max_length": 40}
    out = pipe(prompt and [prompt], 5, generator=generator(), streamer=recorder, **options)
    known = [BOS, 3, 4] if prompt and MASK not in prompt else [BOS] if prompt else []
    assert recorder.puts[0].tolist() == [known] and recorder.ended == 1
    assert torch.cat(recorder.puts, 1).tolist() == out.sequences.tolist()
    assert len(recorder.drafts) >= out.num_forward_passes
    assert any((draft == MASK).any() for draft in recorder.drafts)
    assert not (recorder.drafts[-1] == MASK).any()
    plain = pipe(prompt and [prompt], 5, generator=generator(), **options)
    assert torch.equal(plain.sequences, out.sequences)


def test_streamers_of_transformers_print_the_text(make_model, capsys):
    pipe = make_pipe(make_model(eos_token_id=None))
    streamer = TextDiffusionStreamer(pipe.tokenizer, skip_special_tokens=True)
    out = pipe("ab", 4, max_length=12, generator=generator(), streamer=streamer)
    assert out.texts[0] in capsys.readouterr().out
    words = TextIteratorStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
    pipe("ab", 4, max_length=12, generator=generator(), streamer=words)
    assert "ab" + "".join(words) == out.texts[0]


def test_bad_streamers_are_one_clear_line(make_model):
    pipe = make_pipe(make_model())
    with pytest.raises(ValueError, match="streamer must have put and end, got 3. Pass a TextDiff"):
        pipe("a", 2, streamer=3)
    with pytest.raises(ValueError, match="streamer takes one text, got 2. Pass one prompt"):
        pipe(["a", "b"], 2, streamer=Recorder())


@both_kinds
def test_a_stream_is_the_call_step_by_step(make_model, block_size):
    pipe = make_pipe(make_model(block_size=block_size, eos_token_id=None))
    prompts = [[BOS, 3, 4], [BOS, 5]]
    options = {"max_length": 18, "temperature": 0.7, "guidance_scale": 1.5}
    whole = pipe(prompts, 4, generator=generator(), **options)
    steps = list(pipe.stream(prompts, num_inference_steps=4, generator=generator(), **options))
    assert torch.equal(steps[-1].sequences, whole.sequences)
    assert torch.equal(steps[-1].order, whole.order)
    assert steps[-1].num_forward_passes == whole.num_forward_passes
    assert [step.step for step in steps] == sorted({*whole.order[whole.order >= 0].tolist()})
    for step in steps:
        known = step.sequences != MASK
        assert torch.equal(step.sequences[known], whole.sequences[known])
        assert torch.equal(known, (whole.order <= step.step))


def test_a_stream_that_is_left_leaves_the_model_as_it_was(make_model):
    pipe = make_pipe(make_model(dropout=0.5).train())
    stream = pipe.stream(None, num_inference_steps=8)
    state = torch.is_grad_enabled()
    next(stream)
    assert torch.is_grad_enabled() == state
    stream.close()
    assert pipe.model.training and pipe.model.model.training


def test_streams_refuse_what_their_loop_is_for(make_model):
    pipe = make_pipe(make_model())
    for name, value in (("streamer", Recorder()), ("callback_on_step_end", print)):
        with pytest.raises(ValueError, match=f"{name}=.* is not for stream.*Leave it out"):
            next(pipe.stream("a", **{name: value}))
    with pytest.raises(ValueError, match="temperature must be"):
        next(pipe.stream("a", temperature=-1))
    with pytest.raises(TypeError, match="no_such"):
        next(pipe.stream("a", no_such=1))


# --------------------------------------------------------------------------------- one generator


@both_kinds
@pytest.mark.parametrize("sampler", ["sequential", "ancestral", "threshold"])
def test_one_generator_and_a_list_of_it_are_the_same_for_one_row(make_model, sampler, block_size):
    pipe = make_pipe(make_model(block_size=block_size, eos_token_id=None), sampler=sampler)
    one, listed = (
        pipe("ab", 4, max_length=20, generator=source).sequences
        for source in (generator(5), [generator(5)])
    )
    assert torch.equal(one, listed)
    scheduler = LoMDMScheduler(MASK)
    scheduler.set_timesteps(3)
    sample, logits = torch.full((1, 6), MASK), torch.zeros(1, 6, 11)
    steps = [
        scheduler.step(logits, 1.0, sample, torch.ones(1, 6), source).prev_sample
        for source in (generator(5), [generator(5)])
    ]
    assert torch.equal(*steps)


# ------------------------------------------------------------------------------------- generate


@both_kinds
def test_generate_is_the_pipeline_on_padded_ids(make_model, block_size):
    model = make_model(block_size=block_size, eos_token_id=None)
    pipe = make_pipe(model)
    prompts, seeds = [[BOS, 3, 4, 5], [BOS, 6]], (1, 2)
    expected = pipe(
        prompts, 3, max_new_tokens=6, generator=[generator(seed) for seed in seeds], top_k=5
    )
    for left in (True, False):
        padded = [BOS, 3, 4, 5], [PAD, PAD, BOS, 6] if left else [BOS, 6, PAD, PAD]
        real = [1, 1, 1, 1], [0, 0, 1, 1] if left else [1, 1, 0, 0]
        out = model.generate(
            torch.tensor(padded),
            torch.tensor(real),
            max_new_tokens=6,
            num_inference_steps=3,
            generator=[generator(seed) for seed in seeds],
            top_k=5,
        )
        assert torch.equal(out, expected.sequences)
    alone = model.generate(
        torch.tensor(prompts[:1]), max_new_tokens=6, return_dict_in_generate=True
    )
    assert alone.order.shape == (1, 10) and not model.training
    assert model.generate(max_length=8, num_inference_steps=2).shape == (1, 8)


def test_generate_refuses_what_is_no_batch_of_ids(make_model):
    model = make_model()
    for bad in ([[3]], torch.tensor([3]), torch.ones(1, 3)):
        with pytest.raises(
            ValueError, match="input_ids must be token ids .B, L., got .* Pass token"
        ):
            model.generate(bad)
    with pytest.raises(ValueError, match="attention_mask must have the shape .1, 3. of input_ids"):
        model.generate(torch.tensor([[3, 4, 5]]), torch.ones(1, 2))
    with pytest.raises(ValueError, match="temperature must be"):
        model.generate(torch.tensor([[3, 4, 5]]), temperature=-1)


# -------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize(
    "scheduler", [EntropyBoundScheduler, BlockRefinementScheduler, DiscreteDDIMScheduler]
)
def test_schedulers_of_diffusers_are_refused_with_a_sentence(make_model, scheduler):
    pipe = LoMDMPipeline(make_model(), scheduler())
    expected = f"scheduler is a {scheduler.__name__}, which does not draw .* Use LoMDMScheduler"
    with pytest.raises(ValueError, match=expected):
        pipe([[BOS, 3]], 2)


def test_the_llada2_pipeline_and_our_classes_refuse_each_other(make_model):
    """It has arguments that ours do not know; docs/sampling.md says so."""
    options = {"gen_length": 4, "block_length": 4, "num_inference_steps": 2, "output_type": "seq"}
    for scheduler, message in (
        (LoMDMScheduler(MASK), "unexpected keyword argument 'block_length'"),
        (BlockRefinementScheduler(), "position_ids is not read by these models"),
    ):
        pipe = LLaDA2Pipeline(make_model(), scheduler, build_tokenizer())
        pipe.set_progress_bar_config(disable=True)
        with pytest.raises((TypeError, ValueError), match=message):
            pipe(input_ids=torch.tensor([[BOS, 3]]), **options)


def test_outputs_stand_in_the_order_of_diffusers(make_model):
    from diffusers.pipelines.llada2.pipeline_llada2 import LLaDA2PipelineOutput

    out = make_pipe(make_model())("ab", 2, max_length=6)
    theirs = list(inspect.signature(LLaDA2PipelineOutput).parameters)
    assert list(out)[: len(theirs)] == theirs == ["sequences", "texts"]
    assert out[0] is out.sequences and out[1] is out.texts
