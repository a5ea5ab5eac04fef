"""The study that trains the order of Sudoku: its rows, its two stages, what it says of mistakes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_lomdm.data.sudoku import load_puzzles

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "studies" / "sudoku"))

from order_policy import EasierPuzzles, main  # noqa: E402

PUZZLES = str(ROOT / "tests" / "fixtures" / "sudoku.csv")
CHECKPOINT = str(ROOT / "checkpoints" / "lomdm-sudoku")
OF_TEXTS = CHECKPOINT.replace("lomdm-sudoku", "lomdm-enwiki")
SHORT = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--max_validation_rows", "2"]


def test_rows_have_as_many_clues_as_asked_for_and_stay_the_same():
    rows = EasierPuzzles(load_puzzles(PUZZLES), 52, 54, variants=2)
    labels = [rows[number]["labels"] for number in range(len(rows))]
    clues = [sum(label == -100 for label in row) for row in labels]
    assert len(clues) == len(rows) == 2 * len(rows.puzzles)
    assert set(clues) == {52, 53, 54}
    assert rows[3] == rows[3] != rows[3 + len(rows.puzzles)]
    own = EasierPuzzles(load_puzzles(PUZZLES), 20, 30, variants=1)[0]
    assert sum(label == -100 for label in own["labels"]) == 50  # their own are more


@pytest.mark.slow
def test_the_two_stages_train_psi_alone(tmp_path):
    words = ["--train_file", PUZZLES, *SHORT, "--report_to", "none"]
    first, second = tmp_path / "certainty", tmp_path / "policy"
    started = ["--model", CHECKPOINT, "--credit", "certainty", "--log_rate_range", "40"]
    main([*words, *started, "--output_dir", str(first)])
    main([*words, "--model", str(first), "--credit", "likelihood", "--output_dir", str(second)])
    weights = [load_file(folder / "model.safetensors") for folder in (first, second)]
    changed = {name.split(".")[0] for name in weights[0] if not same(name, *weights)}
    assert changed == {"psi"}
    assert json.loads((second / "config.json").read_text())["log_rate_range"] == 40
    shipped = load_file(Path(CHECKPOINT, "model.safetensors"))
    assert {name.split(".")[0] for name in shipped if not same(name, shipped, weights[0])} == {
        "psi",
        "phi",
    }
    assert not weights[0]["phi.out.weight"].any()
    assert json.loads((second / "eval_results.json").read_text())["eval_velocity"] == 0
    assert "orders drawn from psi alone" in (second / "README.md").read_text()


def same(name, *weights):
    return torch.equal(*(tensors[name].float() for tensors in weights))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--clues", "40"], "--clues must be two numbers"),
        (["--clues", "40", "30"], "--clues must be two numbers"),
        (["--model", "no/such/folder"], "--model no/such/folder cannot be loaded"),
        (["--model", OF_TEXTS], "a model of Sudokus 12 and 81"),
        (["--num_orders", "1"], "num_orders must be at least 2, got 1"),
        (["--sure", "2"], "sure must be in"),
    ],
)
def test_a_mistake_is_one_line(words, message, tmp_path):
    given = ["--model", CHECKPOINT, "--train_file", PUZZLES, "--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as error:
        main([*given, *words, "--report_to", "none"])
    assert message in str(error.value) and "\n" not in str(error.value)
