"""An order that is given: the rates are those of the law, the bound is of its order, and the script
trains in it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.data.splits import load_data
from hf_lomdm.evaluation.corpus import evaluate_corpus
from hf_lomdm.modeling.process_lomdm import centre, learned_rates
from hf_lomdm.modeling.rates_lomdm import RATE_LAWS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "studies" / "word_orders"))

from fixed_order import PositionRates, parse_options, rates_by_position  # noqa: E402


@pytest.fixture
def fixed(monkeypatch):
    """Fixes an order until the end of the test, for rows of up to 8 tokens."""

    def fix(law):
        monkeypatch.setitem(
            RATE_LAWS, "uniform", PositionRates(rates_by_position(law, 8, 0.7, 0.65))
        )

    return fix


def test_laws_are_what_their_words_say():
    scores = -0.5 * torch.arange(6.0)
    torch.testing.assert_close(rates_by_position("exp 0.5", 6, 0.7, 0.65), scores.exp())
    assert torch.equal(rates_by_position("uniform", 3, 0.7, 0.65), torch.ones(3))
    expected = learned_rates(centre(scores[None]), 0.7, 0.65)[0]
    assert torch.equal(rates_by_position("normsig 0.5", 6, 0.7, 0.65), expected)
    steep = rates_by_position("normsig 1", 64, 0.7, 0.65)
    assert (steep[0] / steep[-1]).item() == pytest.approx(1.025 / 0.375, rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("law", ["exp 0.5", "normsig 0.5"])
def test_forward_and_reverse_rates_are_the_law_of_the_position(make_model, fixed, law):
    fixed(law)
    model, text = make_model(rate_type="uniform").eval(), torch.tensor([[3, 4, 5, 6], [0, 7, 8, 9]])
    # padding on the left: positions count from the first token
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    expected = rates_by_position(law, 8, 0.7, 0.65)[torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2]])]
    assert torch.equal(model.forward_rates(text, mask), expected)
    assert torch.equal(model(text, mask).rates, expected)


@torch.no_grad()
def test_bound_of_a_steep_law_is_the_cost_from_left_to_right(make_model, fixed):
    fixed("exp 9")  # each weight is 1e-4 of the one before
    model, text = make_model(rate_type="uniform").eval(), torch.tensor([[3, 4, 5, 6]])
    expected = torch.tensor(0.0)
    for place in range(4):
        state = text.clone()
        state[:, place:] = model.config.mask_token_id
        expected -= model(state).logits[0, place].log_softmax(-1)[text[0, place]]
    quantiles = ((torch.arange(4) + 0.5) / 4)[:, None]  # every number of reveals once
    texts, seeds = text.expand(4, 4), torch.arange(4)
    batch = model.make_batch(texts, maskable=texts > 0)
    terms, _, _ = model.estimate_bound(batch, model.forward_rates(texts), quantiles, seeds)
    torch.testing.assert_close(terms.main.mean(), expected, rtol=2e-3, atol=0)
    assert terms.velocity.abs().max() < 1e-6


@pytest.mark.parametrize(
    "words, message",
    [
        (["--law", "steep"], "--law must be"),
        (["--law", "exp steep"], "--law must be"),
        (["--law", "exp 0.2 0.1"], "--law must be"),
        (["--law", "exp 99"], "a slope of at most"),
        (["--law", "uniform", "--block_size", "4"], "without --block_size"),
        (["--law", "uniform", "--objective", "ar"], "objective"),
        (["--law", "uniform", "--task", "sudoku"], "--task text"),
    ],
)
def test_what_cannot_be_trained_in_this_order_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parse_options([*words, "--output", "x.json"])


def test_every_law_has_a_folder_of_its_own():
    folders = [
        parse_options(["--law", law, "--output", "x"])[1].training.output_dir
        for law in ("exp 0.01", "exp 0.02")
    ]
    assert folders == ["outputs/fixed-exp-0.01", "outputs/fixed-exp-0.02"]


@pytest.mark.slow
def test_the_script_trains_and_records_the_bound_in_its_order(tmp_path):
    config, output = (
        str(ROOT / "training_scripts" / "configs" / "tiny.yaml"),
        tmp_path / "found.json",
    )
    words = [
        "--law",
        "exp 1",
        "--output",
        str(output),
        "--output_dir",
        str(tmp_path / "run"),
        "--config",
        config,
    ]
    words += [
        "--max_steps",
        "60",
        "--hidden_size",
        "32",
        "--max_validation_rows",
        "64",
        "--warmup_steps",
        "5",
    ]
    subprocess.run(
        [sys.executable, ROOT / "studies" / "word_orders" / "fixed_order.py", *words], check=True
    )
    record = json.loads(output.read_text())
    _, run, rates = parse_options(words)
    model = LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "run")
    rows = load_data(run.data, tmp_path / "run")[0]["validation"]
    without = evaluate_corpus(model, rows, num_samples=2, seed=0)
    with model.with_rates(PositionRates(rates)):
        within = evaluate_corpus(model, rows, num_samples=2, seed=0)
    assert record["value"] == pytest.approx(within["value"], rel=1e-5) and record["n"] == 64
    # 100 times the tolerance above
    assert abs(without["value"] - within["value"]) > 1e-3 * within["value"]
