"""Quality against passes: enumerated laws on an exact network, and the script on few puzzles."""

import json
import sys
from pathlib import Path

import pytest
import torch

from exact_model import TEXTS, ExactModel

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "studies" / "passes"))

import passes  # noqa: E402

PUZZLES = str(ROOT / "tests" / "fixtures" / "sudoku.csv")
CHECKPOINT = str(ROOT / "checkpoints" / "lomdm-sudoku")


@pytest.fixture
def states(monkeypatch):
    """The states of an exact network, with the order of its tokens in each axis undone."""
    monkeypatch.setattr(passes, "KEPT", 3)
    return passes.tables(ExactModel(), torch.zeros(3, dtype=torch.int64), 0)


def exact_law(states) -> torch.Tensor:
    model = ExactModel()
    law = torch.tensor([model.law[text] for text in TEXTS], dtype=torch.float64).view(3, 3, 3)
    kept = model(torch.full((1, 3), 3)).logits[0].topk(3).indices
    for axis, order in enumerate(kept):
        law = law.index_select(axis, order)
    return law


@pytest.mark.parametrize("order", ["learned", "random", "confidence", "entropy"])
@pytest.mark.parametrize("count", ["steps", 1.0, -0.0])
def test_one_at_a_time_an_exact_network_writes_its_law_in_every_order(states, order, count):
    law, number = passes.law_of_setting(states, order, count or -1e-12, 3)
    torch.testing.assert_close(law, exact_law(states))
    assert abs(number - 3) < 1e-12


def test_all_at_once_is_the_product_of_the_marginals(states):
    exact = exact_law(states)
    parts = [exact.sum([j for j in range(3) if j != i]) for i in range(3)]
    product = torch.einsum("a,b,c->abc", *parts)
    for setting in (("learned", "steps", 1), ("confidence", 1e-9, 3), ("entropy", -1e9, 3)):
        law, number = passes.law_of_setting(states, *setting)
        torch.testing.assert_close(law, product)
        assert abs(number - 1) < 1e-12


def test_bounds_take_passes_between_one_and_three(states):
    for setting in (("confidence", 0.5, 3), ("entropy", -0.85, 3), ("learned", -0.8, 3)):
        law, number = passes.law_of_setting(states, *setting)
        assert abs(float(law.sum()) - 1) < 1e-12 and 1 < number < 3


def test_the_script_measures_puzzles_and_draws_them(tmp_path, capsys):
    settings = ["threshold 0.99", "confidence, 7 steps"]
    record, picture = str(tmp_path / "record.json"), str(tmp_path / "passes.png")
    arguments = ["sudoku", "--model", CHECKPOINT, "--file", PUZZLES, "--max_rows", "2"]
    passes.main([*arguments, "--clues", "70", "--settings", *settings, "--output", record])
    found = json.loads(Path(record).read_text())["found"]
    assert list(found) == settings and found["threshold 0.99"]["forward_passes"] < 11
    pytest.importorskip("matplotlib")
    passes.main(["plot", "--records", record, "--output", picture])
    assert Path(picture).stat().st_size > 1000 and "picture:" in capsys.readouterr().out
