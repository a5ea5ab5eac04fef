"""Oracles of the order of Sudoku: rates from entropies, and the script on the shipped
checkpoint."""

import json
import sys
from pathlib import Path

import pytest
import torch

from hf_lomdm.evaluation import nelbo

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "studies" / "sudoku"))

from sudoku_oracle import OracleRates, main, make_law  # noqa: E402

PUZZLES = str(ROOT / "tests" / "fixtures" / "sudoku.csv")
CHECKPOINT = str(ROOT / "checkpoints" / "lomdm-sudoku")


def test_laws_are_what_their_words_say():
    entropy = torch.tensor([[0.0, 0.2, 2.0]])
    assert torch.equal(make_law("uniform", 0.7, 0.65)(entropy), torch.ones(1, 3))
    torch.testing.assert_close(make_law("exp 3", 0.7, 0.65)(entropy), (-3 * entropy).exp())
    share = torch.sigmoid(-10 * (entropy - entropy.mean()))
    expected = 0.7 + 0.65 * (share - share.mean())
    torch.testing.assert_close(make_law("normsig 10", 0.7, 0.65)(entropy), expected)
    torch.testing.assert_close(make_law("normsig 10 0.65", 0.7, 0.1)(entropy), expected)


@pytest.mark.parametrize("words", ["exp", "normsig 1 2 3", "uniform 2", "even"])
def test_a_law_that_does_not_exist_is_refused(words):
    with pytest.raises(ValueError, match="laws must be"):
        make_law(words, 0.7, 0.65)


@torch.no_grad()
def test_forward_rates_know_the_clues_alone_and_reverse_rates_the_state(make_model):
    model = make_model()
    model.rate_law = OracleRates(lambda entropy: 1 + entropy)
    text, given = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[True, False, False, True]])
    start = torch.where(given, text, 10)
    law = model(start).logits.softmax(-1)
    entropy = torch.distributions.Categorical(law).entropy() * ~given
    torch.testing.assert_close(model.forward_rates(text, given=given), 1 + entropy)
    torch.testing.assert_close(model(start).rates, 1 + entropy)
    assert (entropy[~given] > 0.1).all()
    labels = text.masked_fill(given, -100)
    assert nelbo(model, text, labels=labels, generator=torch.Generator().manual_seed(0)).main > 0


def test_the_script_measures_each_law(tmp_path, capsys):
    words = ["--model", CHECKPOINT, "--file", PUZZLES, "--max_rows", "2", "--clues", "60"]
    main(
        [
            *words,
            "--laws",
            "uniform",
            "exp 30",
            "--num_samples",
            "2",
            "--output",
            str(tmp_path / "found.json"),
        ]
    )
    laws = json.loads((tmp_path / "found.json").read_text())["laws"]
    assert laws.keys() == {"uniform", "exp 30"} and all(law["n"] == 2 for law in laws.values())
    even, sure = laws["uniform"], laws["exp 30"]
    # equal rates cost nothing
    assert even["bound"] == pytest.approx(even["main"]) and even["over_first"] == 0
    assert (
        sure["over_first"] == pytest.approx(sure["bound"] - even["bound"])
        and sure["bound"] > sure["main"]
    )
    assert laws["exp 30"]["value"] == 1.0  # with 60 clues nothing but the order could go wrong
    assert "forced reveals" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="laws must be"):
        main([*words, "--laws", "even"])
