"""A text while it is written: the states agree with the finished run, runs do not mix, HTML is
escaped."""

import re
import threading
import time
from dataclasses import replace

import pytest
import torch

from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.visualization import live
from hf_lomdm.visualization.live import BLANK, LiveState, live_html, stream
from tiny_tokenizer import build_tokenizer


def make_pipe(model, tokenizer=True, **settings) -> LoMDMPipeline:
    scheduler = LoMDMScheduler(mask_token_id=10, block_size=model.config.block_size, **settings)
    pipe = LoMDMPipeline(model, scheduler, build_tokenizer() if tokenizer else None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator(seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed)]


CASES = {
    "one window": ({}, "abc", 5, 12, "sequential"),
    "more steps than masks": ({}, "abc", 50, 12, "sequential"),
    "idle steps": ({}, "abc", 30, 12, "ancestral"),
    "template": ({}, "<mask>b<mask><mask>", 2, None, "sequential"),
    "no prompt": ({}, None, 4, 10, "left_to_right"),
    "longer than the context": ({"max_position_embeddings": 8}, "ab", 3, 20, "sequential"),
    "blocks": ({"block_size": 4}, "abcd", 3, 16, "sequential"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_states_grow_into_the_text_that_the_pipeline_writes(make_model, case, seed):
    overrides, prompt, steps, length, sampler = CASES[case]
    pipe = make_pipe(make_model(**overrides))
    options = {"max_length": length, "sampler": sampler, "temperature": 0.9}
    out = pipe(prompt, steps, **options, generator=generator(seed))
    first, *running, last = stream(pipe, prompt, steps, **options, seed=seed)
    order = out.order[0].tolist()
    assert (last.text, last.order, "".join(last.tokens)) == (
        out.texts[0],
        order,
        pipe.tokenizer.decode(out.sequences[0]),
    )
    assert first.step == 0 and all(rate is None for rate in first.rates)
    for state in [first, *running]:
        # what the final order says about this step; an EOS may have cut the positions behind
        assert state.order[: len(order)] == [step if step < state.step else None for step in order]
        assert state.num_steps >= state.step and state.text is None
        revealed = [i for i, step in enumerate(state.order) if step is not None]
        assert all(state.tokens[i] == last.tokens[i] for i in revealed if i < len(order))
    assert (
        running[-1].step == max(order) + 1
        or len(order) < len(first.order)
        or sampler == "ancestral"
    )


def test_corrections_are_followed_to_the_last_reveal(make_model):
    settings = {"corrector_steps": 2, "corrector_k": 2}
    pipe = make_pipe(make_model(block_size=4), **settings)
    out = pipe("abcd", 4, max_length=12, generator=generator(0))
    *_, last = stream(pipe, "abcd", 4, 12, seed=0)
    assert (last.text, last.order) == (out.texts[0], out.order[0].tolist())


def test_rates_are_those_by_which_the_positions_of_the_step_were_drawn(make_model):
    model = make_model()
    pipe = make_pipe(model)
    before, *states, _ = stream(pipe, "abc", 3, 10, seed=2)
    highest = 0.0
    for state in states:
        names = [
            token if step is not None else "<mask>"
            for token, step in zip(before.tokens, before.order, strict=True)
        ]
        with torch.no_grad():
            rates = model(
                input_ids=torch.tensor([pipe.tokenizer.convert_tokens_to_ids(names)])
            ).rates[0]
        expected = [
            float(rate) if step is None else None
            for rate, step in zip(rates, before.order, strict=True)
        ]
        assert state.rates == pytest.approx(expected, abs=1e-5)  # float32, another batch of logits
        highest = max(highest, *(rate for rate in expected if rate is not None))
        assert state.highest_rate == pytest.approx(highest, abs=1e-5)
        before = state


def test_texts_written_at_the_same_time_do_not_mix(make_model):
    pipe = make_pipe(make_model())
    alone = [list(stream(pipe, "ab", 6, 12, seed=seed)) for seed in range(3)]
    together = [[] for _ in alone]
    streams = [stream(pipe, "ab", 6, 12, seed=seed) for seed in range(3)]
    for _ in alone[0]:
        for states, source in zip(together, streams, strict=True):
            states.append(next(source))
    assert together == alone and alone[0] != alone[1]


def wait_until_idle() -> None:
    deadline = time.monotonic() + 10
    while any(thread.name.startswith("live") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a run goes on though nobody reads it"
        time.sleep(0.01)


def test_a_closed_stream_ends_its_run(make_model):
    pipe, calls = make_pipe(make_model()), []
    pipe.model.register_forward_hook(lambda *_: calls.append(1))
    states = stream(pipe, "ab", 25, 30)
    next(states), next(states)
    states.close()
    wait_until_idle()
    # the state that was read, the one that waited, the one being computed
    assert 1 <= len(calls) <= 3


def test_a_run_that_nobody_reads_ends_and_says_so(make_model, monkeypatch):
    monkeypatch.setattr(live, "PATIENCE", 0.05)
    states = stream(make_pipe(make_model()), "ab", 25, 30)
    next(states), next(states)
    wait_until_idle()
    with pytest.raises(TimeoutError, match="nobody took"):
        list(states)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            (
                {"num_inference_steps": value},
                f"num_inference_steps must be a whole number from 1 .* got {value!r}",
            )
            for value in (0, 2.5, "4", float("nan"))
        ),
        ({"seed": -1}, "seed must be a whole number from 0 .* got -1"),
        ({"seed": 1.5}, "seed must be a whole number .* got 1.5"),
        ({"seed": 2**63}, "seed must be"),
        ({"prompt": "abcdef", "max_length": 3}, "prompt 0 needs 7 tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"sampler": "magic"}, "sampler"),
    ],
)
def test_unusable_input_is_refused_with_its_name(make_model, options, message):
    with pytest.raises(ValueError, match=message):
        list(stream(make_pipe(make_model()), **options))
    wait_until_idle()


def test_a_pipeline_without_a_tokenizer_is_refused(make_model):
    with pytest.raises(ValueError, match="no tokenizer"):
        stream(make_pipe(make_model(), tokenizer=False))


HOSTILE = "</span><script>x</script>\u202e\"'"
STATE = LiveState(
    2, 5, [HOSTILE, "b", "c", "secret"], [-1, 0, 1, None], [None, None, 0.5, 1.0], 2.0
)


def test_html_hides_masked_tokens_escapes_the_others_and_frames_the_newest():
    text = live_html(STATE)
    assert "secret" not in text and "<script" not in text and "\u202e" not in text
    # one more is in the legend
    assert "&lt;/span&gt;&lt;script&gt;" in text and text.count(BLANK) == 2
    # steps 0 and 1 of 4, in 16 colours
    shown = re.findall(r'<span class="(t [^"]*)"', text)
    assert shown == ["t c0", "t now c4", "t masked"]
    assert "step 2 of 5: 2 of 3 tokens revealed" in text


def test_the_bar_of_a_masked_token_is_as_high_as_the_share_of_its_rate_of_the_highest():
    assert re.findall('style="--rate: ([^"]*)"', live_html(STATE)) == ["0.50"]
    start = replace(STATE, step=0, order=[-1, None, None, None], rates=[None] * 4, highest_rate=0.0)
    assert re.findall('style="--rate: ([^"]*)"', live_html(start)) == ["0.00"] * 3


def test_a_row_of_ids_is_written_as_its_text_with_none_but_allowed_tokens(make_model):
    pipe = make_pipe(make_model())
    row = pipe.tokenizer.convert_tokens_to_ids(["<bos>", "a", "b"])
    assert list(stream(pipe, row, 5, 12, seed=1)) == list(stream(pipe, "ab", 5, 12, seed=1))
    *_, last = stream(pipe, row, 9, 12, allowed_tokens={i: [4, 5] for i in range(3, 12)})
    assert len(last.text) == 11 and set(last.text[2:]) <= set("bc")
