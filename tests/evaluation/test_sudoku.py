"""Sudoku: encoding, the measures of solutions and of orders, and the way through trainer and pipeline."""

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
from hf_lomdm.data.arguments import DataArguments
from hf_lomdm.evaluation.sudoku import (
    EMPTY,
    MASK,
    TOKEN_IDS,
    Puzzle,
    _measures,
    add_clues,
    encode,
    evaluate_sudoku,
    forced_cells,
    load_puzzles,
    make_puzzle,
    order_statistics,
    solves,
    template,
    training_rows,
)
from hf_lomdm.training.arguments import LoMDMTrainingArguments
from hf_lomdm.training.data import TextCollator
from hf_lomdm.training.sudoku import MOST_CLUES, SudokuRows, disguise, load_sudoku, sudoku_tokenizer
from hf_lomdm.training.trainer import LoMDMTrainer

ROOT = Path(__file__).parents[2]


def make_solution(seed: int = 0) -> list[int]:
    """A solved grid: the cyclic one with digits, lines within bands and columns within stacks shuffled."""
    generator = torch.Generator().manual_seed(seed)
    digits = (torch.randperm(9, generator=generator) + 1).tolist()
    lines, columns = ([3 * b + int(i) for b in range(3) for i in torch.randperm(3, generator=generator)] for _ in "ab")
    return [digits[(3 * (line % 3) + line // 3 + column) % 9] for line in lines for column in columns]


def make(seed: int = 0, clues: int = 50) -> Puzzle:
    return add_clues(Puzzle((0,) * 81, tuple(make_solution(seed))), clues, torch.Generator().manual_seed(seed))


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
        here = possible(cell)
        alone = [d for d in here for unit in units_of(cell) if not any(d in possible(o) for o in unit if o != cell)]
        forced.append(len(here) == 1 or bool(alone))
    return forced


def build_solver(**overrides) -> LoMDMPipeline:
    model = build_model(**TOKEN_IDS, bos_token_id=None, eos_token_id=None, max_position_embeddings=81, **overrides)
    return LoMDMPipeline(model, LoMDMScheduler(mask_token_id=MASK))


def test_encode_reads_dots_zeros_and_lines():
    text = "53..7....\n6..195...\n" + "000000000" * 7
    assert encode(text)[:15] == (5, 3, 0, 0, 7, 0, 0, 0, 0, 6, 0, 0, 1, 9, 5)
    for wrong in ("123", "x" * 81, "²" * 81):
        with pytest.raises(ValueError, match="grid must hold 81 digits"):
            encode(wrong)


def test_solves_only_what_has_every_digit_once_and_the_clues_unchanged():
    grid, other = torch.tensor(make_solution(0)), torch.tensor(make_solution(1))
    swapped = grid.clone()
    swapped[[0, 1]] = grid[[1, 0]]  # the line still holds every digit
    columns = torch.arange(1, 10).repeat(9)  # every line does, no column
    clues = torch.zeros(81, dtype=torch.int64)
    clues[40] = grid[40]
    wrong_clue = clues.clone()
    wrong_clue[40] = grid[40] % 9 + 1
    grids = torch.stack([grid, swapped, columns, other, grid])
    given = torch.stack([clues, clues * 0, clues * 0, clues * 0, wrong_clue])
    assert solves(grids, given).tolist() == [True, False, False, True, False]


@pytest.mark.parametrize("clues", [24, 40, 60, 80])
def test_forced_cells_are_those_found_cell_by_cell(clues):
    grids = torch.tensor([make(seed, clues).clues for seed in range(4)])
    expected = torch.tensor([forced_by_hand(list(grid)) for grid in grids.tolist()])
    assert torch.equal(forced_cells(grids), expected)
    assert expected.any() and (clues > 60 or not expected[grids == 0].all())


def test_order_statistics_compare_the_reveals_with_even_draws_from_the_same_states():
    puzzle = make(2, clues=45)
    clues, solution = torch.tensor([puzzle.clues]), torch.tensor([puzzle.solution])
    empty = [i for i, digit in enumerate(puzzle.clues) if digit == 0]
    grid, order, found, even = list(puzzle.clues), torch.full((1, 81), -1), 0, 0.0
    for step in range(len(empty) // 3):  # three at a time: the first forced ones
        forced = forced_by_hand(grid)
        left = [i for i in empty if grid[i] == 0]
        now = sorted(left, key=lambda i: not forced[i])[:3]
        found, even = found + sum(forced[i] for i in now), even + 3 * sum(forced[i] for i in left) / len(left)
        for i in now:
            grid[i], order[0, i] = puzzle.solution[i], step
    result = order_statistics(solution, clues, order)
    assert result[0].tolist() == pytest.approx([found / len(empty), even / len(empty)])
    assert result[0, 0] > result[0, 1] + 0.05


def test_measures_count_solved_puzzles_cells_and_errors():
    puzzles = [make(seed) for seed in range(4)]
    grids = torch.tensor([puzzle.solution for puzzle in puzzles])
    order = torch.where(torch.tensor([puzzle.clues for puzzle in puzzles]) == 0, 0, -1)
    cell = puzzles[1].clues.index(0)
    grids[1, cell] = grids[1, cell] % 9 + 1
    measures = _measures(grids, order, puzzles)
    assert (measures["value"], measures["solved"], measures["n"], measures["tokens"]) == (0.75, 0.75, 4, 4 * 31)
    assert measures["standard_error"] == pytest.approx(torch.tensor([1.0, 0, 1, 1]).std().item() / 2)
    assert measures["cells_right"] == pytest.approx(1 - 1 / 124)
    other = Puzzle((0,) * 81, puzzles[0].solution)  # another solution than the one on file
    grid = torch.tensor([make_solution(9)])
    assert _measures(grid, torch.zeros(1, 81, dtype=torch.int64), [other]).items() >= {"value": 0, "solved": 1}.items()


def test_puzzles_load_from_csv_by_blocks_and_are_checked(tmp_path):
    puzzles, path = [make(seed) for seed in range(5)], tmp_path / "puzzles.csv"
    lines = [",".join("".join(map(str, part)) for part in puzzle) for puzzle in puzzles]
    path.write_text("\n".join(["puzzle,solution", *lines]) + "\n")
    assert load_puzzles(path) == puzzles
    assert load_puzzles(path, start=1, count=3) == puzzles[1:4]
    with pytest.raises(ValueError, match="has no puzzles from row 5 on"):
        load_puzzles(path, start=5)
    path.write_text("\n".join(["puzzle,solution", lines[0], lines[1][:82] + lines[2][82:]]))
    with pytest.raises(ValueError, match="puzzle 1: solution .* does not solve"):
        load_puzzles(path)
    path.write_text("a,b\n")
    with pytest.raises(ValueError, match="has no column 'puzzle', only a, b"):
        load_puzzles(path)
    path.write_text("\ufeffpuzzle,more,solution\n" + lines[0].replace(",", ",NA,") + "\n" + lines[1][:81] + "\n")
    assert load_puzzles(path, count=1) == puzzles[:1]
    with pytest.raises(ValueError, match="puzzles.csv, puzzle 1: grid must hold 81 digits or dots, got 0 characters"):
        load_puzzles(path)
    for start, count in ((-1, None), (0, 0), (0, -1)):
        with pytest.raises(ValueError, match=f"number of puzzles 1, got {start} and {count}"):
            load_puzzles(path, start, count)


def test_add_clues_reveals_cells_of_the_solution():
    puzzle = make(3, clues=30)
    easier = add_clues(puzzle, 40, torch.Generator().manual_seed(0))
    assert sum(map(bool, easier.clues)) == 40
    assert all(new in (old or solution, old) for new, old, solution in zip(easier.clues, *puzzle, strict=True))
    assert make_puzzle("".join(map(str, easier.clues)), "".join(map(str, easier.solution))) == easier
    with pytest.raises(ValueError, match="total must be in 30 to 81"):
        add_clues(puzzle, 29)


def test_rows_train_a_model_that_never_masks_a_clue(tmp_path):
    puzzles = [make(seed) for seed in range(6)]
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
        data_collator=TextCollator(TOKEN_IDS["pad_token_id"], 81),
    )
    before = pipe.model.lm_head.weight.detach().clone()
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 0 and not torch.equal(before, pipe.model.lm_head.weight)


def test_evaluate_sudoku_keeps_the_clues_and_does_not_hang_on_batches():
    pipe, puzzles = build_solver(), [make(seed, clues=70) for seed in range(5)]
    records = [
        evaluate_sudoku(pipe, puzzles, num_inference_steps=4, batch_size=size, progress=False) for size in (2, 5)
    ]
    assert records[0] == records[1] and records[0]["tokens"] == 55 and records[0]["n"] == 5
    json.dumps(records[0])
    out = pipe([template(puzzles[0])], num_inference_steps=4, output_type="seq")
    assert all(out.sequences[0, i] == clue for i, clue in enumerate(puzzles[0].clues) if clue)
    other = evaluate_sudoku(pipe, puzzles, num_inference_steps=11, sampler="left_to_right", progress=False)
    assert other["sampler"] == "left_to_right" and other["forced_first"] != records[0]["forced_first"]
    assert evaluate_sudoku(pipe, puzzles[:1], learned_order=False, progress=False)["learned_order"] is False


def test_a_model_or_puzzles_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match="vocab_size is 11, Sudoku takes 12"):
        evaluate_sudoku(build_pipeline(), [make()], progress=False)
    small = LoMDMPipeline(build_model(**TOKEN_IDS), LoMDMScheduler(mask_token_id=MASK))
    with pytest.raises(ValueError, match="max_position_embeddings is 32, a grid has 81 cells"):
        evaluate_sudoku(small, [make()], progress=False)
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 64"):
        evaluate_sudoku(build_solver(), [], progress=False)
    with pytest.raises(ValueError, match="no empty cell"):
        evaluate_sudoku(build_solver(), [Puzzle(tuple(make_solution()), tuple(make_solution()))], progress=False)


def write_puzzles(path, count: int, clues: int = 50):
    """A csv file of `count` puzzles."""
    rows = [make(seed, clues) for seed in range(count)]
    lines = [",".join("".join(map(str, grid)) for grid in row) for row in rows]
    path.write_text("\n".join(["puzzle,solution", *lines]))
    return path


def test_a_disguise_is_another_puzzle_with_as_many_clues_and_its_own_solution():
    puzzle = make(3, 30)
    disguised = [disguise(puzzle, torch.Generator().manual_seed(seed)) for seed in range(40)]
    clues, solutions = (torch.tensor([one[part] for one in disguised]) for part in (0, 1))
    assert solves(solutions, clues).all()
    assert ((clues > 0).sum(-1) == 30).all() and len({one.solution for one in disguised}) == 40
    # forced cells go where their cells go, so no disguise is easier
    forced = forced_cells(torch.tensor([puzzle.clues])).sum()
    assert (forced_cells(clues).sum(-1) == forced).all()


def test_sudoku_rows_are_the_same_whenever_they_are_read_and_give_from_their_own_clues_to_the_most():
    puzzles = [make(seed, 20) for seed in range(5)]
    rows = SudokuRows(puzzles, variants=200)
    assert len(rows) == 1000 and rows[7] == rows[7] and rows[7] != rows[12]
    labels = torch.tensor([rows[index]["labels"] for index in range(len(rows))])
    grids = torch.tensor([rows[index]["input_ids"] for index in range(len(rows))])
    clues = grids.where(labels == -100, EMPTY)
    assert solves(grids, clues).all() and (grids.where(labels != -100, -100) == labels).all()
    given = (clues != EMPTY).sum(-1)
    counts = given.bincount(minlength=MOST_CLUES + 1)[20:].double()  # even over 20 to 64
    assert given.min() == 20 and given.max() == MOST_CLUES
    assert (counts - counts.mean()).square().sum() / counts.mean() < 90  # chi-square, 44 degrees of freedom


def test_the_text_of_a_puzzle_is_a_template_and_the_text_of_a_solution_its_digits():
    tokenizer, puzzle = sudoku_tokenizer(), make(0, 30)
    text = "".join(map(str, puzzle.clues))
    assert tokenizer.mask_token_id == MASK and len(tokenizer) == TOKEN_IDS["vocab_size"]
    for written in (text, text.replace("0", "."), "\n".join(text[i : i + 9] for i in range(0, 81, 9))):
        assert tokenizer(written, add_special_tokens=False).input_ids == template(puzzle)
    assert tokenizer.decode(puzzle.solution) == "".join(map(str, puzzle.solution))
    pipe = build_solver()
    pipe = LoMDMPipeline(pipe.model, pipe.scheduler, tokenizer)
    out = pipe(text, num_inference_steps=4, generator=torch.Generator().manual_seed(0))
    given = torch.tensor(puzzle.clues) > 0
    assert (out.sequences[0][given] == torch.tensor(puzzle.solution)[given]).all()
    assert out.texts[0] == tokenizer.decode(out.sequences[0], skip_special_tokens=True)


def test_sudoku_splits_whole_blocks_and_refuses_what_is_no_sudoku(tmp_path):
    path = write_puzzles(tmp_path / "sudoku.csv", 20)
    rows, tokenizer = load_sudoku(DataArguments(task="sudoku", train_file=str(path), max_length=81))
    assert rows["train"].puzzles == load_puzzles(path)[:18] and rows["validation"].puzzles == load_puzzles(path)[18:]
    own = write_puzzles(tmp_path / "valid.csv", 3)
    few = {"validation_file": str(own), "max_train_rows": 4, "max_validation_rows": 2}
    rows, _ = load_sudoku(DataArguments(task="sudoku", train_file=str(path), max_length=81, **few))
    assert [len(rows[split].puzzles) for split in ("train", "validation")] == [4, 2]
    for settings, message in (
        ({"train_file": str(path), "max_length": 64}, "max_length 81, the cells of a grid, got 64"),
        ({"max_length": 81}, "needs train_file"),
        ({"train_file": str(own), "max_length": 81}, "has 3 puzzles"),
    ):
        with pytest.raises(ValueError, match=message):
            load_sudoku(DataArguments(task="sudoku", **settings))


def test_train_and_evaluate_scripts_train_on_puzzles_and_solve_some(tmp_path):
    path, folder = write_puzzles(tmp_path / "sudoku.csv", 20), tmp_path / "run"
    sizes = ["--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--bf16", "false"]
    short = ["--max_steps", "2", "--warmup_steps", "1", "--lr_scheduler_type", "linear", "--lr_scheduler_kwargs", "{}"]
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
    few = ["--start", "16", "--clues", "76", "--num_inference_steps", "4"]
    done = run("evaluate.py", "sudoku", "--model", folder, "--file", path, *few, "--quiet", "--output", record)
    found = json.loads(record.read_text())
    assert found["task"] == "sudoku" and found["n"] == 4 and found["tokens"] == 4 * 5 and found["clues"] == 76
    assert "share of puzzles solved" in done and "cells_right" in done
    assert "Sudokus in many guises" in (folder / "README.md").read_text()


def run(script: str, *words) -> str:
    command = [sys.executable, str(ROOT / "training_scripts" / script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
