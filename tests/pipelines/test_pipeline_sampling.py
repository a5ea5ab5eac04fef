"""What `LoMDMPipeline` samples: agreement of its paths, laws, prompts, per-call settings."""

import pytest
import torch
from scipy.stats import chisquare
from tiny_pipeline import BOS, EOS, MASK, PAD, generators, make_pipe

from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.modeling.scheduling_lomdm import SAMPLERS
from hf_lomdm.pipelines.filling_lomdm import Filling
from tiny_tokenizer import build_tokenizer

PROMPTS = [[BOS, 3, 4, 5], [BOS, 6], [BOS, 7, MASK, MASK, 8, 9, MASK]]


def of_the_first_window(*seeds: int) -> list[torch.Generator]:
    """The generators that the pipeline derives from a list of them for its first window."""
    drawn = [torch.randint(2**62, (), generator=source).item() for source in generators(*seeds)]
    return [torch.Generator().manual_seed(seed) for seed in drawn]


def sample_with_all_logits(model, scheduler, sample, attention_mask, steps, generator):
    """The plain path by hand: all logits in every step, `scheduler.step`, no skipping."""
    order = torch.full_like(sample, -1)
    scheduler.set_timesteps(steps)
    for step, timestep in enumerate(scheduler.timesteps):
        with torch.no_grad():
            out = model(input_ids=sample, attention_mask=attention_mask)
        result = scheduler.step(
            out.logits, timestep, sample, out.rates, generator, attention_mask=attention_mask
        )
        sample, order = result.prev_sample, order.masked_fill(result.revealed, step)
    return sample, order


@pytest.mark.rounding
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pipeline_equals_the_plain_path_token_for_token(make_model, sampler, dtype):
    model = make_model().to(dtype)
    pipe = make_pipe(model, sampler=sampler, temperature=0.8, top_p=0.9, top_k=7)
    out = pipe(PROMPTS, num_inference_steps=4, max_length=12, generator=generators(0, 1, 2))
    rows = [
        [BOS, 3, 4, 5] + [MASK] * 8,
        [BOS, 6] + [MASK] * 10,
        [BOS, 7, MASK, MASK, 8, 9, MASK] + [PAD] * 5,
    ]
    real = torch.tensor([[1] * 12, [1] * 12, [1] * 7 + [0] * 5])
    plain = sample_with_all_logits(
        model, pipe.scheduler, torch.tensor(rows), real, 4, of_the_first_window(0, 1, 2)
    )
    assert torch.equal(out.sequences, plain[0])
    assert torch.equal(out.order, plain[1].masked_fill(real == 0, -2))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_given_tokens_stay_all_masks_are_filled_and_the_order_says_so(make_model, sampler):
    out = make_pipe(make_model(), sampler=sampler)(PROMPTS, num_inference_steps=5, max_length=12)
    template, order = out.sequences[2], out.order[2]
    assert template[[0, 1, 4, 5]].tolist() == [BOS, 7, 8, 9] and template[7:].tolist() == [PAD] * 5
    assert order[[0, 1, 4, 5]].tolist() == [-1] * 4 and order[7:].tolist() == [-2] * 5
    assert (order[[2, 3, 6]] >= 0).all() and (order <= 4).all()
    assert (out.order[:2, 4:] >= 0).all() and (out.order[0, :4] == -1).all()
    assert not (out.sequences == MASK).any()


@pytest.mark.rounding
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_result_does_not_depend_on_its_batch_nor_on_padding(make_model, sampler):
    # float64: batching moves logits by 1e-15 only
    pipe = make_pipe(make_model().double(), sampler=sampler)
    together = pipe(
        PROMPTS[:2], num_inference_steps=3, max_new_tokens=6, generator=generators(5, 6)
    )
    for row, seed in ((0, 5), (1, 6)):
        alone = pipe(
            [PROMPTS[row]], num_inference_steps=3, max_new_tokens=6, generator=generators(seed)
        )
        length = alone.sequences.shape[1]
        assert torch.equal(together.sequences[row, :length], alone.sequences[0])
        assert torch.equal(together.order[row, :length], alone.order[0])
        assert (together.order[row, length:] == -2).all()


@pytest.mark.parametrize("block_size, max_length", [(None, 12), (None, 40), (4, 12)])
def test_one_generator_gives_each_row_what_the_row_alone_gets(make_model, block_size, max_length):
    pipe = make_pipe(make_model(block_size=block_size, eos_token_id=None).double())
    options = {"num_inference_steps": 3, "max_length": max_length}
    (alone,), both = generators(0), pipe([[3], [4, 5]], generator=generators(0)[0], **options)
    listed = pipe([[3]], generator=[alone], **options)
    assert torch.equal(
        pipe([[3]], generator=generators(0)[0], **options).sequences, listed.sequences
    )
    assert torch.equal(both.sequences[0], listed.sequences[0])
    # its next seed
    assert torch.equal(both.sequences[1], pipe([[4, 5]], generator=alone, **options).sequences[0])


@pytest.mark.rounding
@pytest.mark.parametrize("sampler", ["confidence", "margin", "entropy"])
def test_positions_that_are_all_alike_are_revealed_the_same_way_in_every_batch(make_model, sampler):
    """Where nothing is known all positions have one law, and float32 rounds it otherwise in another
    batch."""
    pipe = make_pipe(make_model(hidden_size=64), sampler=sampler)
    for length in (8, 13, 24):
        alone = pipe([[MASK] * length], 1 + length // 4, generator=generators(3))
        for others in ([[MASK] * (length + 8)], [[MASK] * length] * 2, [[3, MASK]] * 6):
            seeds = range(3, 4 + len(others))
            batch = pipe([[MASK] * length, *others], 1 + length // 4, generator=generators(*seeds))
            assert torch.equal(alone.order[0], batch.order[0, :length]), length
            assert torch.equal(alone.sequences[0], batch.sequences[0, :length]), length
        first = alone.order[0].eq(0).nonzero()[:, 0]  # ties go to the left
        assert first.tolist() == list(range(len(first)))


def test_attention_mask_is_passed_only_where_something_is_padded(make_model, monkeypatch):
    model, masks = make_model(), []
    forward = model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda **inputs: masks.append(inputs["attention_mask"]) or forward(**inputs),
    )
    pipe = make_pipe(model)
    pipe([[BOS, 3], [BOS, 4, 5]], num_inference_steps=1, max_length=8)
    pipe([[BOS, 3], [BOS, 4, 5]], num_inference_steps=1, max_new_tokens=3)
    assert masks[0] is None
    assert masks[1].tolist() == [[1] * 5 + [0], [1] * 6]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_forward_passes_are_counted_and_steps_with_nothing_left_make_none(make_model, sampler):
    model, calls = make_model(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    out = make_pipe(model, sampler=sampler)([[BOS, 3, 4]], num_inference_steps=20, max_new_tokens=5)
    assert out.num_forward_passes == len(calls) <= 20
    if sampler != "ancestral":  # one reveal per pass
        assert len(calls) == 5 and sorted(out.order[0].tolist()) == [-1, -1, -1, 0, 1, 2, 3, 4]


def test_only_revealed_positions_are_projected_to_the_vocabulary(make_model):
    model, projected = make_model(), []
    model.lm_head.register_forward_hook(
        lambda _, inputs, __: projected.append(inputs[0].shape[:-1].numel())
    )
    pipe = make_pipe(model)
    pipe(num_inference_steps=4, max_length=12)
    assert projected == [3, 3, 3, 3]
    projected.clear()
    pipe(num_inference_steps=4, max_length=12, sampler="ancestral")
    assert sum(projected) == 12


def test_single_masked_token_follows_the_softmax_of_its_logits(make_model):
    """Chi-square over 4,000 draws with a fixed seed; p > 1e-3."""
    model = make_model()
    template = [BOS, 3, MASK, 4]
    out = make_pipe(model)(
        [template], 1, num_return_sequences=4000, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        law = model(input_ids=torch.tensor([template])).logits[0, 2].double().softmax(-1)
    counts = torch.bincount(out.sequences[:, 2], minlength=11)
    kept = law * 4000 > 5
    expected = torch.cat([law[kept], law[~kept].sum()[None]]).clamp(min=1e-12)
    observed = torch.cat([counts[kept], counts[~kept].sum()[None]])
    assert counts[MASK] == 0
    assert chisquare(observed.numpy(), (expected / expected.sum() * 4000).numpy()).pvalue > 1e-3


def test_temperature_does_not_move_the_order(make_model):
    pipe = make_pipe(make_model(rate_type="uniform"))
    results = [pipe([[3]], 6, temperature=t, generator=generators(3)) for t in (0.0, 0.5, 1.0, 3.0)]
    assert all(torch.equal(out.order, results[0].order) for out in results)
    assert not torch.equal(results[0].sequences, results[3].sequences)


def test_generators_make_results_reproducible_and_leave_the_global_one_alone(make_model):
    pipe = make_pipe(make_model())
    state = torch.get_rng_state()
    first, second = (
        pipe(None, 8, generator=torch.Generator().manual_seed(1)).sequences for _ in range(2)
    )
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    third = pipe(None, 8).sequences
    torch.manual_seed(4)
    assert torch.equal(pipe(None, 8).sequences, third)
    torch.set_rng_state(state)


def test_sequences_of_one_prompt_stand_side_by_side(make_model):
    out = make_pipe(make_model())(
        [[BOS, 3], [BOS, 4]],
        2,
        max_length=6,
        num_return_sequences=3,
        generator=generators(*range(6)),
    )
    assert out.sequences[:, 1].tolist() == [3, 3, 3, 4, 4, 4]
    assert len({tuple(row) for row in out.sequences.tolist()}) == 6


def fill(row: list[int], tokens: list[int]) -> None:
    """Puts the tokens at the masks of a row, from left to right."""
    masked = [i for i, token in enumerate(row) if token == MASK]
    for i, token in zip(masked, tokens, strict=True):
        row[i] = token


def test_texts_hold_the_prompt_and_end_before_the_first_eos_after_it(make_model, monkeypatch):
    pipe = make_pipe(make_model(), build_tokenizer())
    drawn = iter([[5, EOS, 6, EOS], [EOS, 5, 6, 7], [3, 4, 5, 6]])

    def write(filling, bar):
        for row, tokens in zip(filling.canvas.rows, drawn, strict=True):
            fill(row, tokens)
        return iter(())

    monkeypatch.setattr(Filling, "run", write)
    out = pipe(["ab", "<eos>b", "ag"], max_new_tokens=4)
    # the EOS within the prompt ends nothing; special tokens are left out
    assert out.texts == ["abc", "b", "agabcd"]
    assert out.sequences[0].tolist() == [BOS, 3, 4, 5, EOS, 6, EOS]


def test_right_context_of_a_hole_stays_whatever_the_hole_ends_with(make_model, monkeypatch):
    pipe = make_pipe(make_model(), build_tokenizer())
    drawn = iter([[EOS, 5], [EOS, 5, EOS, 6], [5, EOS]])

    def write(filling, bar):
        for row in filling.canvas.rows:
            fill(row, next(drawn))
        return iter(())

    monkeypatch.setattr(Filling, "run", write)
    assert pipe("a<mask><mask>bd").texts == ["acbd"]
    # the hole at the end may end the text
    assert pipe("a<mask><mask>b<mask><mask>").texts == ["acb"]
    assert pipe("<mask><mask>").texts == ["c"]


def test_bos_that_is_eos_ends_no_text_at_its_first_position(make_model, monkeypatch):
    """GPT-2 tokenizers have one token for both, and a model that writes freely begins with it."""
    pipe = make_pipe(make_model(bos_token_id=EOS), build_tokenizer())
    drawn = iter([[EOS, 3, 4, EOS, 5], [3, EOS, 4, 5, 6], [EOS, EOS, 3, 4, 5]])

    def write(filling, bar):
        fill(filling.canvas.rows[0], next(drawn))
        return iter(())

    monkeypatch.setattr(Filling, "run", write)
    assert [pipe(max_length=5).texts for _ in range(3)] == [["ab"], ["a"], [""]]


def test_text_prompts_and_templates_are_the_token_prompts(make_model):
    pipe = make_pipe(make_model(), build_tokenizer())
    texts = pipe(
        ["abc", "d", "<bos>e<mask><mask>fg<mask>"], 4, max_length=12, generator=generators(0, 1, 2)
    )
    ids = pipe(PROMPTS, 4, max_length=12, generator=generators(0, 1, 2))
    assert torch.equal(texts.sequences, ids.sequences)
    assert texts.texts == ids.texts and texts.texts[0].startswith("abc") and len(texts.texts) == 3


def test_bos_is_put_in_front_of_text_prefixes_alone_once_and_only_if_the_model_has_one(make_model):
    pipe = make_pipe(make_model(), build_tokenizer())
    for prompt in ("a", "<bos>a"):
        assert pipe(prompt, 1, max_length=4).sequences[0, :2].tolist() == [BOS, 3]
    assert pipe([[3]], 1, max_length=4).sequences[0, 0] == 3  # token ids are taken as they are
    template = pipe("a<mask>b", 1)  # and so are templates: the result is as long as they are
    assert template.sequences.shape == (1, 3) and template.sequences[0, [0, 2]].tolist() == [3, 4]
    assert (pipe(None, 1, max_length=4).order >= 0).all()
    without = make_pipe(make_model(bos_token_id=None), build_tokenizer())
    assert without("a", 1, max_length=4).sequences[0, 0] == 3


def test_padding_without_a_padding_token_is_never_taken_for_a_mask(make_model):
    model = make_model(pad_token_id=None, eos_token_id=None, mask_token_id=0)
    pipe = LoMDMPipeline(model, LoMDMScheduler(mask_token_id=0))
    pipe.set_progress_bar_config(disable=True)
    out = pipe([[3], [4, 5, 6]], 2, max_new_tokens=2)
    assert out.order[0, 3:].tolist() == [-2, -2] and (out.sequences != 0).all()


def test_settings_of_a_call_hold_for_that_call_only(make_model):
    pipe = make_pipe(make_model(), temperature=0.0, sampler="left_to_right")
    before = dict(pipe.scheduler.config)
    greedy = pipe(None, 31, generator=generators(0))
    other = pipe(
        None, 31, sampler="sequential", temperature=2.0, top_p=0.9, top_k=5, generator=generators(0)
    )
    repeated = pipe(None, 31, generator=generators(9))
    assert not torch.equal(other.order, greedy.order) and not torch.equal(
        other.sequences, greedy.sequences
    )
    # greedy and left to right: nothing is random
    assert torch.equal(repeated.sequences, greedy.sequences)
    with pytest.raises(ValueError, match="top_p"):
        pipe(None, 4, sampler="random", top_p=2.0)
    assert dict(pipe.scheduler.config) == before and pipe.scheduler.timesteps is None


def test_settings_hold_however_they_came_into_the_scheduler(make_model):
    """Positionally, by name, or set afterwards: `from_config`, on which a call relies, drops none
    of them."""
    scheduler = LoMDMScheduler(MASK, "left_to_right")
    pipe = LoMDMPipeline(make_model(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    scheduler.register_to_config(temperature=0.0)
    first, second = (pipe(None, 31, generator=generators(seed)).sequences for seed in (0, 1))
    assert torch.equal(first, second)  # greedy and left to right: nothing is random
    with pytest.raises(ValueError, match="temperature must be a number from 0.0 .* got -1"):
        scheduler.register_to_config(temperature=-1)
    assert scheduler.config.temperature == 0.0


def test_top_k_of_one_is_greedy(make_model):
    pipe = make_pipe(make_model())
    first, second = (
        pipe(None, 8, max_length=8, generator=generators(0), **setting).sequences
        for setting in ({"top_k": 1}, {"temperature": 0.0})
    )
    assert torch.equal(first, second)


def test_output_forms(make_model):
    pipe = make_pipe(make_model(), build_tokenizer())
    out = pipe("a", 2, max_length=6, generator=generators(0))
    sequences, texts, order, reveals, passes, row_passes, tokens_per_pass, seconds = pipe(
        "a", 2, max_length=6, generator=generators(0), return_dict=False
    )
    assert (
        texts == out.texts
        and torch.equal(sequences, out.sequences)
        and torch.equal(order, out.order)
    )
    assert passes == out.num_forward_passes == 2 and row_passes.tolist() == [2]
    assert torch.equal(reveals, out.num_reveals) and torch.equal(reveals, (order >= 0).long())
    assert tokens_per_pass == out.tokens_per_pass == 2 and seconds > 0 < out.seconds
    assert pipe("a", 2, max_length=6, output_type="seq").texts is None
    # an index means the same in both forms, with texts and without
    for output_type in ("text", "seq"):
        options = {"max_length": 6, "output_type": output_type}
        object_, tuple_ = (
            pipe("a", 2, generator=generators(0), return_dict=form, **options)
            for form in (True, False)
        )
        assert len(tuple_) == len(object_.to_tuple()) == 7 + (output_type == "text")
        for i, value in enumerate(tuple_):
            same = (
                torch.equal(value, object_[i])
                if isinstance(value, torch.Tensor)
                else value == object_[i]
            )
            assert same or i == len(tuple_) - 1, i  # seconds differ from call to call
    assert make_pipe(make_model())([[3]], 2).texts is None  # without a tokenizer there is no text


def test_dropout_is_off_while_sampling_and_the_mode_of_every_module_comes_back(make_model):
    model = make_model(dropout=0.5)
    pipe = make_pipe(model)
    expected = pipe(None, 8, generator=generators(0)).sequences
    model.train()
    model.psi.eval()
    assert torch.equal(pipe(None, 8, generator=generators(0)).sequences, expected)
    assert model.training and model.model.training and not model.psi.training


def test_compiled_model_samples_the_same_without_graph_breaks(make_model):
    model = make_model()
    expected = make_pipe(model)(
        [[3], [4, 5]], 3, max_new_tokens=4, generator=generators(0, 1)
    ).sequences
    pipe = make_pipe(torch.compile(model, backend="eager", fullgraph=True))
    assert torch.equal(
        pipe([[3], [4, 5]], 3, max_new_tokens=4, generator=generators(0, 1)).sequences, expected
    )
