"""The folders for `evaluate.load`: the library's usual interface, offline, with the values of
hf_lomdm.evaluation."""

import math
from pathlib import Path

import pytest
import torch
from tiny_judge import build_judge, build_judge_tokenizer, build_pipeline

from hf_lomdm.evaluation import exact_log_likelihood
from hf_lomdm.evaluation.corpus import evaluate_corpus
from hf_lomdm.evaluation.judge import judge_texts

evaluate = pytest.importorskip("evaluate", reason="the extra [eval] is not installed")

METRICS = Path(__file__).parents[2] / "metrics"
TEXTS = ["abca", "gg", "fedcb"]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """`evaluate.load` of a folder of this repository; its caches lie in one temporary folder."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(folder / "modules"))
        yield lambda name: evaluate.load(str(METRICS / name), cache_dir=str(folder / "cache"))


def test_nelbo_perplexity_bounds_the_exact_perplexity_of_each_text(load, tmp_path):
    pipe = build_pipeline()
    result = load("nelbo_perplexity").compute(predictions=TEXTS, model=pipe, num_samples=100)
    exact = []
    for text in TEXTS:
        # behind BOS
        row = torch.tensor([[1, *pipe.tokenizer(text, add_special_tokens=False)["input_ids"]]])
        labels = row.clone()
        labels[:, 0] = -100
        exact.append(math.exp(-exact_log_likelihood(pipe.model, row, labels).item() / len(text)))
    for bound, value in zip(result["perplexities"], exact, strict=True):
        # 100 draws: 2 % standard error; the bound is not far off
        assert 0.92 * value < bound < 1.5 * value
    assert result["tokens"] == 11
    assert result["perplexity"] == pytest.approx(math.exp(result["nats_per_token"]))
    nats = (
        sum(math.log(p) * len(text) for p, text in zip(result["perplexities"], TEXTS, strict=True))
        / 11
    )
    assert result["nats_per_token"] == pytest.approx(nats)
    assert result["mean_perplexity"] == pytest.approx(sum(result["perplexities"]) / 3)
    pipe.save_pretrained(tmp_path / "model")
    repeated = load("nelbo_perplexity").compute(
        predictions=TEXTS, model=str(tmp_path / "model"), num_samples=100
    )
    assert repeated["perplexities"] == pytest.approx(result["perplexities"], rel=1e-5)
    pipe.to(torch.bfloat16).save_pretrained(tmp_path / "half")  # is read in float32
    half = load("nelbo_perplexity").compute(
        predictions=TEXTS, model=str(tmp_path / "half"), num_samples=100, device="cpu"
    )
    full = load("nelbo_perplexity").compute(
        predictions=TEXTS, model=pipe.to(torch.float32), num_samples=100
    )
    assert half["perplexities"] == pytest.approx(full["perplexities"], rel=1e-6)
    low, high = result["perplexity_interval"]
    assert low < result["perplexity"] < high


@pytest.mark.parametrize("bound", ["order", "time"])
def test_nelbo_perplexity_is_that_of_the_bound_and_the_seed_asked_for(load, bound):
    pipe, options = build_pipeline(), {"bound": bound, "num_samples": 4, "seed": 3}
    texts = pipe.tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    rows = [{"input_ids": [1, *ids], "labels": [-100, *ids]} for ids in texts]
    record = evaluate_corpus(pipe.model, rows, progress=False, **options)
    result = load("nelbo_perplexity").compute(predictions=TEXTS, model=pipe, **options)
    assert result["nats_per_token"] == pytest.approx(record["value"])


def test_nelbo_perplexity_adds_batches_and_cuts_long_texts_into_windows(load):
    metric, pipe = load("nelbo_perplexity"), build_pipeline()
    metric.add_batch(predictions=["ab"])
    metric.add(prediction="abcdefg" * 8)
    result = metric.compute(model=pipe, add_start_token=False, bound="time")
    assert result["tokens"] == 58 and len(result["perplexities"]) == 2
    with pytest.raises(ValueError, match=r"predictions \[1\] have no tokens"):
        metric.compute(predictions=["ab", ""], model=pipe)
    with pytest.raises(ValueError, match="predictions is empty"):
        metric.compute(predictions=[], model=pipe)
    with pytest.raises(ValueError, match="device='cpu' is for a model that is named"):
        metric.compute(predictions=["ab"], model=pipe, device="cpu")
    alone = metric.compute(predictions=["ab"], model=pipe)
    assert alone["standard_error"] is None and alone["perplexity"] > 1
    # spelled out: text
    assert metric.compute(predictions=["<mask>"], model=pipe)["tokens"] == len("<mask>")
    pipe.tokenizer = None
    with pytest.raises(ValueError, match="model has no tokenizer"):
        metric.compute(predictions=["ab"], model=pipe)


def test_generative_perplexity_is_that_of_judge_texts(load, tmp_path):
    judge, tokenizer = build_judge(), build_judge_tokenizer()
    texts = [*TEXTS, ""]
    result = load("generative_perplexity").compute(
        predictions=texts, model=judge, tokenizer=tokenizer
    )
    record = judge_texts(texts, judge, tokenizer, progress=False)
    assert result["perplexity"] == record["value"] and result["empty_texts"] == 1
    assert all(
        result[name] == record[name]
        for name in ("judge_entropy", "repetition", "distinct_2", "tokens")
    )
    per_text = zip(record["per_text"]["nats"], record["per_text"]["tokens"], strict=True)
    assert result["perplexities"] == pytest.approx(
        [math.exp(nats / tokens) for nats, tokens in per_text]
    )
    assert result["mean_perplexity"] == pytest.approx(sum(result["perplexities"]) / 3)
    judge.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    options = {
        "model": str(tmp_path / "judge"),
        "add_start_token": False,
        "device": "cpu",
        "max_length": 2,
    }
    result = load("generative_perplexity").compute(predictions=texts, **options)
    same = judge_texts(texts, judge, tokenizer, with_bos=False, context=2, progress=False)
    assert result["perplexity"] == pytest.approx(same["value"], rel=1e-5)
    scores = load("generative_perplexity").compute(predictions=["ab", "abcd"], **options)
    # a text whose only token is read is no second one
    assert scores["tokens"] == 1 and scores["standard_error"] is None
    with pytest.raises(ValueError, match="tokenizer is for a judge that is passed as a model"):
        load("generative_perplexity").compute(predictions=texts, tokenizer=tokenizer, **options)
    with pytest.raises(ValueError, match="device='cpu' is for a judge that is named"):
        load("generative_perplexity").compute(
            predictions=texts, model=judge, tokenizer=tokenizer, device="cpu"
        )
    with pytest.raises(ValueError, match="Pass its tokenizer too"):
        load("generative_perplexity").compute(predictions=texts, model=judge)
