"""Parts of an interrupted evaluation: what is finished is not measured again, and the record is
that of one go."""

import pytest
import torch
from test_sudoku import build_solver
from tiny_judge import build_judge, build_judge_tokenizer

import oracles
from hf_lomdm.evaluation.accuracy import compare_bounds, exact_gap, pilot
from hf_lomdm.evaluation.judge import judge_texts
from hf_lomdm.evaluation.parts import PartsFile
from hf_lomdm.evaluation.sudoku import evaluate_sudoku
from tiny_sudoku import make_random_puzzle

ROWS = [
    {"input_ids": text}
    for text in ([0, 2, 1, 1], [2, 2, 0, 1], [1, 0, 0, 0], [2, 1, 0, 0], [0, 0, 2, 0])
]
# rows that each measures in all
WANTED = {"exact gap": 5, "pilot": 5, "bounds": 10, "judge": 5, "sudoku": 4}


def build(name: str, make_model):
    """A measurement, which takes `parts_file` and a seed (the judge: texts, by their number)."""
    if name == "judge":
        judge, tokenizer = build_judge(positions=8), build_judge_tokenizer()
        options = {"batch_size": 1, "progress": False}
        # tokens are pairs of letters: three windows of 8, one, one
        texts = ["abcdefgfedcba" * 2, "abc", "gfedcbabcd"]
        return lambda parts, seed: judge_texts(
            texts[seed:], judge, tokenizer, parts_file=parts, **options
        )
    if name == "sudoku":
        pipe, puzzles = build_solver(), [make_random_puzzle(seed, 70) for seed in range(4)]
        options = {"num_inference_steps": 4, "batch_size": 1, "progress": False}
        return lambda parts, seed: evaluate_sudoku(
            pipe, puzzles, seed=seed, parts_file=parts, **options
        )
    model = oracles.vivid(make_model(**oracles.SMALLEST))
    options = {"num_texts": 5, "num_samples": 4, "progress": False}
    measure = {"exact gap": exact_gap, "pilot": pilot, "bounds": compare_bounds}[name]
    if name == "exact gap":
        options["positions"] = 3
    return lambda parts, seed: measure(model, ROWS, seed=seed, parts_file=parts, **options)


@pytest.mark.parametrize("name", WANTED)
def test_what_is_finished_is_not_measured_again(name, make_model, tmp_path, monkeypatch):
    if name in ("pilot", "bounds"):  # whose rows are one batch each
        monkeypatch.setattr(
            "hf_lomdm.evaluation.corpus.batches_by_length", lambda _, left, __: [[i] for i in left]
        )
    measure, append, rows = build(name, make_model), PartsFile.append, []
    whole = measure(None, 0)

    def appending(self, values, *process):
        append(self, values, *process)
        rows.append(len(values))
        if len(rows) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(PartsFile, "append", appending)
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "parts.jsonl", 0)
    resumed = measure(tmp_path / "parts.jsonl", 0)
    assert sum(rows) == WANTED[name]
    for record in (whole, resumed):
        for clock in ("seconds", "seconds_per_sample"):
            record.pop(clock, None)
    assert resumed == whole
    with pytest.raises(ValueError, match="belongs to another evaluation"):
        measure(tmp_path / "parts.jsonl", 1)


def test_no_path_keeps_nothing():
    parts = PartsFile(None, {}, torch.nn.Linear(1, 1))
    parts.append({0: {"value": 1}})
    assert parts.read() == {}
