"""Continuations against passes: the divergence in closed form, and the script on tiny models."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from conftest import build_model
from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from tiny_tokenizer import build_tokenizer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "studies" / "passes"))

import texts  # noqa: E402


def law(*shares: float) -> torch.Tensor:
    return torch.tensor(shares, dtype=torch.float64)


def test_the_divergence_is_one_for_equal_laws_and_known_for_laws_apart():
    assert abs(float(texts.mauve(law(0.3, 0.7), law(0.3, 0.7))) - 1) < 1e-12
    # the curve is (w^5, (1 - w)^5), and 5 B(5, 6) = 1 / 252 lies below it
    apart = float(texts.mauve(law(1, 1e-300), law(1e-300, 1)))
    assert abs(apart - 1 / 252) < 2e-4
    near, far = (float(texts.mauve(law(0.5, 0.5), law(a, 1 - a))) for a in (0.6, 0.8))
    assert 0.9 < near < 1 and far < near
    assert abs(near - float(texts.mauve(law(0.6, 0.4), law(0.5, 0.5)))) < 1e-12  # symmetric


def test_clusters_are_found_and_shares_are_never_zero():
    points = torch.cat([torch.randn(40, 2) * 0.1 + 5 * i for i in range(3)])
    label = texts.k_means(points.double(), 2)
    assert all(len(set(part.tolist())) == 1 for part in label.split(40))
    assert texts.histogram(torch.tensor([0, 0, 2]), 3).tolist() == [2.5 / 4.5, 0.5 / 4.5, 1.5 / 4.5]


def test_other_texts_are_further_than_the_same_and_the_difference_is_paired():
    generator = torch.Generator().manual_seed(1)
    true = torch.randn(80, 4, generator=generator, dtype=torch.float64)
    states = {"true": true, texts.FULL: true.flip(0), "elsewhere": true + 3}
    found = texts.compare(states)
    assert abs(found[texts.FULL]["value"] - 1) < 1e-12 and found["elsewhere"]["value"] < 0.2
    assert found[texts.FULL]["minus_full_standard_error"] == 0
    other = found["elsewhere"]
    assert abs(other["minus_full"] - (other["value"] - 1)) < 1e-12
    assert 0 < other["minus_full_standard_error"] < 0.2


def test_nats_are_per_token_of_the_judge_with_the_error_of_a_ratio():
    nats = torch.tensor([[6.0, 3.0], [8.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    found = texts.reading(nats, nats * torch.tensor([0.5, 1.0]))
    assert abs(found["judge_nats"] - 16 / 6) < 1e-12
    assert abs(found["judge_nats_minus_full"] - 8 / 6) < 1e-12
    rest = nats[:, 0] - 16 / 6 * nats[:, 1]
    assert abs(found["judge_nats_standard_error"] - float(rest.std() / 2 / 3**0.5)) < 1e-12
    # of half the nats the parts are half as large
    paired = found["judge_nats_minus_full_standard_error"]
    assert abs(paired - float(rest.std() / 4 / 3**0.5)) < 1e-12
    assert texts.reading(nats, nats)["judge_nats_minus_full_standard_error"] == 0


@pytest.fixture
def judge(tmp_path) -> Path:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 11}
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    GPT2LMHeadModel(GPT2Config(**sizes, **ids)).save_pretrained(tmp_path / "judge")
    build_tokenizer().save_pretrained(tmp_path / "judge")
    return tmp_path / "judge"


def test_the_script_writes_reads_and_goes_on_with_what_was_read(tmp_path, judge, monkeypatch):
    pipe = LoMDMPipeline(build_model(), LoMDMScheduler(mask_token_id=10), build_tokenizer())
    pipe.save_pretrained(tmp_path / "model")
    letters = torch.randint(7, (1300,), generator=torch.Generator().manual_seed(0))
    (tmp_path / "text.txt").write_text("".join("abcdefg"[i] for i in letters))
    names = ["learned, 8 steps", "threshold 0.5"]
    command = ["--model", str(tmp_path / "model"), "--judge", str(judge), "--max_rows", "20"]
    command += ["--file", str(tmp_path / "text.txt"), "--settings", *names, "--output"]
    texts.main([*command, str(tmp_path / "a.json")])
    record = json.loads((tmp_path / "a.json").read_text())
    found = record["found"]
    assert list(found) == [texts.FULL, *names] and list(record["text"]) == ["true", texts.TRUE]
    assert found[names[0]]["forward_passes"] <= 8 < found[texts.FULL]["forward_passes"]
    assert abs(found[texts.FULL]["judge_nats_minus_full"]) < 1e-12 < found[names[0]]["judge_nats"]
    assert record["text"]["true"]["value"] == pytest.approx(1)
    monkeypatch.setattr(GPT2LMHeadModel, "forward", None)  # everything has been read
    texts.main([*command, str(tmp_path / "a.json")])
    assert json.loads((tmp_path / "a.json").read_text())["found"].keys() == found.keys()
    with pytest.raises(SystemExit, match="1300 tokens, but"):
        texts.main([*command[:4], "--max_rows", "99", *command[6:], str(tmp_path / "b.json")])


def test_a_continuation_is_read_behind_its_beginning(judge):
    model, tokenizer = texts.load_judge(str(judge), "cpu")
    states, nats = texts.read(model, tokenizer, ["abc"], ["de"], None)
    ids = torch.tensor([[1, 3, 4, 5, 6, 7]])
    with torch.no_grad():
        law = model(ids).logits[0].log_softmax(-1)
    expected = -(law[3, 6] + law[4, 7])
    assert abs(float(nats[0, 0]) - float(expected)) < 1e-4 and nats[0, 1] == 2
    assert states.shape == (1, texts.FEATURES)
