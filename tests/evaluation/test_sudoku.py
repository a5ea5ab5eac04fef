"""Sudoku: encoding, the measures of solutions and of orders, and the way through trainer and
pipeline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_judge import build_pipeline

from conftest import build_model
from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.data.batches import LoMDMDataCollator
from hf_lomdm.data.sudoku import (
    MASK,
    TOKEN_IDS,
    Puzzle,
    sudoku_tokenizer,
    template,
    training_rows,
)
from hf_lomdm.evaluation.sudoku import _measures, evaluate_sudoku, forced_cells, order_statistics
from hf_lomdm.training.arguments import LoMDMTrainingArguments
from hf_lomdm.training.trainer import LoMDMTrainer
from tiny_sudoku import make_random_puzzle, make_solution, write_puzzles

ROOT = Path(__file__).parents[2]


def units_of(cell: int) -> list[list[int]]:
    line, column = divmod(cell, 9)
    corner = line // 3 * 27 + column // 3 * 3
    box = [corner + 9 * i + j for i in range(3) for j in range(3)]
    return [[9 * line + j for j in range(9)], [9 * i + column for i in range(9)], box]


def forced_by_hand(grid: list[int]) -> list[bool]:
    def possible(cell: int) -> set[int]:
        taken = {grid[other] for unit in units_of(cell) for other in unit}
        return set(range(1, 10)) - taken if grid[cell] == 0 else set()

    forced = []
    for cell in range(81):
        digits = possible(cell)
        alone = [
            d
            for d in digits
            for unit in units_of(cell)
            if not any(d in possible(o) for o in unit if o != cell)
        ]
        forced.append(len(digits) == 1 or bool(alone))
    return forced


def build_solver(**overrides) -> LoMDMPipeline:
    model = build_model(
        **TOKEN_IDS, bos_token_id=None, eos_token_id=None, max_position_embeddings=81, **overrides
    )
    return LoMDMPipeline(model, LoMDMScheduler(mask_token_id=MASK))


@pytest.mark.parametrize("clues", [24, 40, 60, 80])
def test_forced_cells_are_those_found_cell_by_cell(clues):
    grids = torch.tensor([make_random_puzzle(seed, clues).clues for seed in range(4)])
    expected = torch.tensor([forced_by_hand(list(grid)) for grid in grids.tolist()])
    assert torch.equal(forced_cells(grids), expected)
    assert expected.any() and (clues > 60 or not expected[grids == 0].all())


def test_order_statistics_compare_the_reveals_with_even_draws_from_the_same_states():
    puzzle = make_random_puzzle(2, clues=45)
    clues, solution = torch.tensor([puzzle.clues]), torch.tensor([puzzle.solution])
    empty = [i for i, digit in enumerate(puzzle.clues) if digit == 0]
    grid, order, actual, even = list(puzzle.clues), torch.full((1, 81), -1), 0, 0.0
    for step in range(len(empty) // 3):  # three at a time: the first forced ones
        forced = forced_by_hand(grid)
        left = [i for i in empty if grid[i] == 0]
        now = sorted(left, key=lambda i: not forced[i])[:3]
        actual, even = (
            actual + sum(forced[i] for i in now),
            even + 3 * sum(forced[i] for i in left) / len(left),
        )
        for i in now:
            grid[i], order[0, i] = puzzle.solution[i], step
    result = order_statistics(solution, clues, order)
    assert result[0].tolist() == pytest.approx([actual / len(empty), even / len(empty)])
    assert result[0, 0] > result[0, 1] + 0.05


def test_measures_count_solved_puzzles_cells_and_errors():
    puzzles = [make_random_puzzle(seed) for seed in range(4)]
    grids = torch.tensor([puzzle.solution for puzzle in puzzles])
    order = torch.where(torch.tensor([puzzle.clues for puzzle in puzzles]) == 0, 0, -1)
    cell = puzzles[1].clues.index(0)
    grids[1, cell] = grids[1, cell] % 9 + 1
    measures = _measures(grids, order, puzzles)
    assert (measures["value"], measures["solved"], measures["n"], measures["tokens"]) == (
        0.75,
        0.75,
        4,
        4 * 31,
    )
    assert measures["standard_error"] == pytest.approx(
        torch.tensor([1.0, 0, 1, 1]).std().item() / 2
    )
    assert measures["cells_right"] == pytest.approx(1 - 1 / 124)
    other = Puzzle((0,) * 81, puzzles[0].solution)  # another solution than the one on file
    grid = torch.tensor([make_solution(9)])
    assert (
        _measures(grid, torch.zeros(1, 81, dtype=torch.int64), [other]).items()
        >= {"value": 0, "solved": 1}.items()
    )


def test_rows_train_a_model_that_never_masks_a_clue(tmp_path):
    puzzles = [make_random_puzzle(seed) for seed in range(6)]
    rows = training_rows(puzzles)
    assert [i for i, label in enumerate(rows[0]["labels"]) if label == -100] == [
        i for i, clue in enumerate(puzzles[0].clues) if clue
    ]
    pipe = build_solver()
    arguments = LoMDMTrainingArguments(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=3,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = LoMDMTrainer(
        model=pipe.model,
        args=arguments,
        train_dataset=rows,
        data_collator=LoMDMDataCollator(TOKEN_IDS["pad_token_id"], 81),
    )
    before = pipe.model.lm_head.weight.detach().clone()
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 0 and not torch.equal(
        before, pipe.model.lm_head.weight
    )


def test_evaluate_sudoku_keeps_the_clues_and_does_not_hang_on_batches():
    pipe, puzzles = build_solver(), [make_random_puzzle(seed, clues=70) for seed in range(5)]
    records = [
        evaluate_sudoku(pipe, puzzles, num_inference_steps=4, batch_size=size, progress=False)
        for size in (2, 5)
    ]
    assert all(record.pop("seconds") > 0 for record in records)
    assert records[0]["forward_passes"] <= 4 and records[0]["tokens_per_forward"] >= 55 / 20
    assert records[0] == records[1] and records[0]["tokens"] == 55 and records[0]["n"] == 5
    json.dumps(records[0])
    out = pipe([template(puzzles[0])], num_inference_steps=4, output_type="seq")
    assert all(out.sequences[0, i] == clue for i, clue in enumerate(puzzles[0].clues) if clue)
    other = evaluate_sudoku(
        pipe, puzzles, num_inference_steps=11, sampler="left_to_right", progress=False
    )
    assert (
        other["sampler"] == "left_to_right" and other["forced_first"] != records[0]["forced_first"]
    )
    assert (
        evaluate_sudoku(pipe, puzzles[:1], learned_order=False, progress=False)["learned_order"]
        is False
    )


def test_a_model_or_puzzles_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match="vocab_size is 11, Sudoku takes 12"):
        evaluate_sudoku(build_pipeline(), [make_random_puzzle()], progress=False)
    small = LoMDMPipeline(build_model(**TOKEN_IDS), LoMDMScheduler(mask_token_id=MASK))
    with pytest.raises(ValueError, match="max_position_embeddings is 32, a grid has 81 cells"):
        evaluate_sudoku(small, [make_random_puzzle()], progress=False)
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 64"):
        evaluate_sudoku(build_solver(), [], progress=False)
    with pytest.raises(ValueError, match="no empty cell"):
        evaluate_sudoku(
            build_solver(), [Puzzle(tuple(make_solution()), tuple(make_solution()))], progress=False
        )


def test_the_text_of_a_puzzle_is_a_template_and_the_text_of_a_solution_its_digits():
    tokenizer, puzzle = sudoku_tokenizer(), make_random_puzzle(0, 30)
    text = "".join(map(str, puzzle.clues))
    assert tokenizer.mask_token_id == MASK and len(tokenizer) == TOKEN_IDS["vocab_size"]
    for written in (
        text,
        text.replace("0", "."),
        "\n".join(text[i : i + 9] for i in range(0, 81, 9)),
    ):
        assert tokenizer(written, add_special_tokens=False).input_ids == template(puzzle)
    assert tokenizer.decode(puzzle.solution) == "".join(map(str, puzzle.solution))
    pipe = build_solver()
    pipe = LoMDMPipeline(pipe.model, pipe.scheduler, tokenizer)
    out = pipe(text, num_inference_steps=4, generator=torch.Generator().manual_seed(0))
    given = torch.tensor(puzzle.clues) > 0
    assert (out.sequences[0][given] == torch.tensor(puzzle.solution)[given]).all()
    assert out.texts[0] == tokenizer.decode(out.sequences[0], skip_special_tokens=True)


@pytest.mark.slow
def test_train_and_evaluate_scripts_train_on_puzzles_and_solve_some(tmp_path):
    path, folder = write_puzzles(tmp_path / "sudoku.csv", 20), tmp_path / "run"
    sizes = [
        "--hidden_size",
        "16",
        "--num_hidden_layers",
        "1",
        "--num_attention_heads",
        "2",
        "--bf16",
        "false",
    ]
    short = [
        "--max_steps",
        "2",
        "--warmup_steps",
        "1",
        "--lr_scheduler_type",
        "linear",
        "--lr_scheduler_kwargs",
        "{}",
    ]
    config = str(ROOT / "training_scripts/configs/sudoku.yaml")
    run(
        "train.py",
        "--config",
        config,
        "--train_file",
        path,
        "--output_dir",
        folder,
        "--report_to",
        "none",
        *sizes,
        *short,
    )
    record = tmp_path / "sudoku.json"
    small = ["--start", "16", "--clues", "76", "--num_inference_steps", "4"]
    done = run(
        "evaluate.py",
        "sudoku",
        "--model",
        folder,
        "--file",
        path,
        *small,
        "--quiet",
        "--output",
        record,
    )
    actual = json.loads(record.read_text())
    assert (
        actual["task"] == "sudoku"
        and actual["n"] == 4
        and actual["tokens"] == 4 * 5
        and actual["clues"] == 76
    )
    assert "share of puzzles solved" in done and "cells_right" in done
    assert "Sudokus in many guises" in (folder / "README.md").read_text()


def run(script: str, *words) -> str:
    command = [sys.executable, str(ROOT / "training_scripts" / script), *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
