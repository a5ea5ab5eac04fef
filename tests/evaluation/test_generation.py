"""evaluate_generation: what a system writes, what it costs, and that nothing of the pipeline is
left changed."""

import itertools
import json
import math

import pytest
import torch
from test_causal import build_causal
from tiny_judge import build_judge, build_judge_tokenizer, build_pipeline

from conftest import build_model
from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.evaluation.causal import causal_nll
from hf_lomdm.evaluation.generation import (
    _draw_causal,
    changed_pipeline,
    evaluate_generation,
    judge_texts,
    judge_written,
    pass_counts,
    sweep,
    write_causal_texts,
    write_texts,
)
from oracles import chi_square_z, vivid
from tiny_tokenizer import build_tokenizer

OPTIONS = {"num_samples": 5, "num_inference_steps": 4, "max_length": 12, "progress": False}


def test_the_record_holds_what_the_judge_says_of_what_the_pipeline_writes():
    pipe, judge, tokenizer = build_pipeline(), build_judge(), build_judge_tokenizer()
    record = evaluate_generation(pipe, judge, tokenizer, seed=3, **OPTIONS)
    written = write_texts(pipe, seed=3, **OPTIONS)
    judged = judge_texts([item.text for item in written.items], judge, tokenizer, progress=False)
    assert judged.items() <= record.items()
    assert (
        record["forward_passes"] == 4
        and record["tokens_per_forward"] == 3
        and record["seconds"] > 0
    )
    lengths = [len(item.ids) for item in written.items]
    assert record["tokens_per_text"] == sum(lengths) / 5
    assert (
        record["draw_precision"] == "float64"
        and record["seed"] == 3
        and record["sampler"] == "sequential"
    )
    assert record["examples"] == [item.text for item in written.items][:4]
    assert 0 < record["entropy"] < math.log(11)
    json.dumps(record)


def test_the_ids_of_a_text_are_the_text():
    pipe = build_pipeline()
    items = write_texts(pipe, **{**OPTIONS, "num_samples": 40}).items
    assert [pipe.tokenizer.decode(item.ids) for item in items] == [item.text for item in items]
    assert len({len(item.text) for item in items}) > 3  # texts that end early, and others
    assert all(item.tokens == 12 for item in items)  # an EOS inside the only window saves nothing


def test_the_ids_of_a_text_that_begins_with_a_bos_that_is_eos_are_the_text():
    pipe = build_pipeline()
    config = pipe.model.config
    config.bos_token_id = config.eos_token_id  # as in GPT-2: at the first position it ends nothing
    with torch.no_grad():
        pipe.model.lm_head.bias[config.eos_token_id] += 3  # at many first positions, and at others
    items = write_texts(pipe, **{**OPTIONS, "num_samples": 40}).items
    assert [pipe.tokenizer.decode(item.ids) for item in items] == [item.text for item in items]
    assert len({len(item.text) for item in items}) > 3


def test_texts_hang_on_seed_and_index_alone():
    pipe = build_pipeline()
    texts = [
        [item.text for item in write_texts(pipe, **OPTIONS, batch_size=size, seed=seed).items]
        for size, seed in ((1, 0), (2, 0), (5, 0), (5, 1))
    ]
    assert texts[0] == texts[1] == texts[2] != texts[3]
    assert len(set(texts[0])) > 1


def test_an_interrupted_evaluation_keeps_its_finished_texts(tmp_path, monkeypatch):
    pipe, parts = build_pipeline(), tmp_path / "parts.jsonl"
    whole = write_texts(pipe, **OPTIONS, batch_size=2)
    calls, call = [], type(pipe).__call__

    def interrupted(self, *args, **options):
        calls.append(options["num_return_sequences"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return call(self, *args, **options)

    monkeypatch.setattr(type(pipe), "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_texts(pipe, **OPTIONS, batch_size=2, parts_file=parts)
    resumed = write_texts(pipe, **OPTIONS, batch_size=2, parts_file=parts)
    assert calls == [2, 2, 2, 1]
    assert [item.text for item in resumed.items] == [item.text for item in whole.items]
    with pytest.raises(ValueError, match="num_inference_steps"):
        write_texts(pipe, **{**OPTIONS, "num_inference_steps": 8}, parts_file=parts)


def test_learned_order_false_makes_the_reveal_order_even():
    # the first reveal of a template: even over its masked positions with c2 = 0, far from it with
    # the learned rates
    pipe, template = build_pipeline(), [3, 10, 9, 10, 10, 4, 10, 7]
    vivid(pipe.model)  # whose rates differ widely
    masked = torch.tensor(template) == 10
    z = {}
    for learned in (True, False):
        with changed_pipeline(pipe, None, None, learned):
            out = pipe(
                [template], num_return_sequences=600, generator=torch.Generator().manual_seed(0)
            )
        counts = (out.order[:, masked] == 0).sum(0).double()
        z[learned] = chi_square_z(counts, torch.full((4,), 1 / 4, dtype=torch.float64))
    assert z[False] < 4 < z[True]
    assert write_texts(pipe, **OPTIONS, learned_order=False).setting["learned_order"] is False
    assert write_texts(pipe, **OPTIONS).setting["learned_order"] is True


@pytest.mark.parametrize("fails", [False, True])
def test_the_pipeline_is_as_before_afterwards(fails):
    pipe = build_pipeline({"sampler": "ancestral", "temperature": 0.5})
    pipe.set_progress_bar_config(desc="mine", disable=True)
    before = (pipe.scheduler, pipe.model.rate_law, dict(pipe._progress_bar_config))
    options = {**OPTIONS, "max_length": 99 if not fails else 0}
    if fails:
        with pytest.raises(ValueError, match="max_length must be a whole number of at least 1"):
            write_texts(pipe, **options, grid="uniform", learned_order=False)
    else:
        setting = write_texts(pipe, **options, grid="uniform", learned_order=False).setting
        assert (setting["grid"], setting["temperature"], setting["learned_order"]) == (
            "uniform",
            0.5,
            False,
        )
    assert before == (pipe.scheduler, pipe.model.rate_law, pipe._progress_bar_config)
    assert pipe.scheduler.config.grid == "adaptive" and before[1].uses_psi


def test_grid_and_sampler_change_the_texts():
    pipe = build_pipeline()
    variants = [
        {},
        {"sampler": "ancestral"},
        {"sampler": "ancestral", "grid": "uniform"},
        {"sampler": "confidence"},
    ]
    texts = [
        tuple(item.text for item in write_texts(pipe, **OPTIONS, **variant).items)
        for variant in variants
    ]
    assert len(set(texts)) == 4


def test_a_sweep_gives_each_record_out_as_it_is_finished():
    pipe = build_pipeline()
    records = sweep(
        pipe, build_judge(), build_judge_tokenizer(), max_length=20, num_samples=2, progress=False
    )
    assert next(records)["num_inference_steps"] == 8
    assert [record["forward_passes"] for record in records] == [16, 20]
    assert (
        pass_counts(8) == [8]
        and pass_counts(64) == [8, 16, 32, 64]
        and pass_counts(100)[-2:] == [64, 100]
    )
    chosen = sweep(
        pipe, build_judge(), build_judge_tokenizer(), steps=[3], num_samples=2, progress=False
    )
    assert [record["forward_passes"] for record in chosen] == [3]


@pytest.mark.parametrize("block_size, rate_type", [(4, "uniform"), (None, "token")])
def test_the_family_is_judged_too(block_size, rate_type):
    pipe = build_pipeline(block_size=block_size, rate_type=rate_type)
    record = evaluate_generation(pipe, build_judge(), build_judge_tokenizer(), **OPTIONS)
    assert record["learned_order"] is False and record["value"] > 1
    with pytest.raises(
        ValueError, match="learned_order=False needs a model with rate_type='learned'"
    ):
        write_texts(pipe, **OPTIONS, learned_order=False)


def test_what_cannot_be_written_is_an_error():
    pipe = build_pipeline()
    with pytest.raises(ValueError, match="num_samples must be a whole number of at least 1, got 0"):
        write_texts(pipe, **{**OPTIONS, "num_samples": 0})
    with pytest.raises(
        ValueError, match="grid='uniform' is for sampler='ancestral', got 'sequential'"
    ):
        write_texts(pipe, **OPTIONS, grid="uniform")
    bare = LoMDMPipeline(build_model(), LoMDMScheduler(mask_token_id=10))
    with pytest.raises(ValueError, match="pipe.tokenizer is None"):
        write_texts(bare, **OPTIONS)


@pytest.mark.parametrize("value", [0, -1, 2.5, "8"])
@pytest.mark.parametrize("name", ["max_length", "num_samples", "batch_size"])
def test_counts_of_an_autoregressive_model_are_whole_numbers(name, value):
    options = {"num_samples": 2, "max_length": 8, name: value}
    with pytest.raises(
        ValueError, match=f"{name} must be a whole number of at least 1, got {value!r}"
    ):
        write_causal_texts(build_causal(), build_tokenizer(), **options)


def test_texts_that_no_memory_holds_are_refused_before():
    with pytest.raises(
        ValueError, match="max_length=1000000000 and batch_size=16 make more than 2097152 tokens"
    ):
        write_causal_texts(build_causal(), build_tokenizer(), num_samples=2, max_length=10**9)
    with pytest.raises(ValueError, match="max_length=1000000000 make .* tokens, more than 2097152"):
        write_texts(build_pipeline(), **{**OPTIONS, "max_length": 10**9})


def test_autoregressive_texts_follow_the_law_that_causal_nll_measures():
    # all 36 texts of two tokens that the model can write (7 ids but the start token)
    model = build_causal(eos_token_id=None)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2000)]
    texts = torch.tensor(list(itertools.product(range(6), repeat=2)))
    probability = (-causal_nll(model, texts).nelbo).exp()
    drawn = _draw_causal(model, 2, generators)
    counts = torch.bincount(drawn[:, 0] * 6 + drawn[:, 1], minlength=36).double()
    assert chi_square_z(counts, probability / probability.sum()) < 4


def test_autoregressive_texts_end_at_eos_and_do_not_hang_on_their_batch(tmp_path):
    model = build_causal(vocab_size=11, start=10, eos_token_id=2, bos_token_id=10)
    options = {"num_samples": 6, "max_length": 16, "progress": False}
    written = write_causal_texts(
        model, build_tokenizer(), **options, parts_file=tmp_path / "parts.jsonl"
    )
    alone = write_causal_texts(model, build_tokenizer(), **options, batch_size=1)
    assert [item.text for item in written.items] == [item.text for item in alone.items]
    assert all(item.passes == item.tokens for item in alone.items)
    assert any(item.tokens < 16 for item in alone.items)
    record = judge_written(written, build_judge(), build_judge_tokenizer(), progress=False)
    assert record["sampler"] == "autoregressive" and record["forward_passes"] == max(
        i.tokens for i in alone.items
    )
    with pytest.raises(ValueError, match="bos_token_id is None"):
        model.config.bos_token_id = None
        write_causal_texts(model, build_tokenizer(), **options)
