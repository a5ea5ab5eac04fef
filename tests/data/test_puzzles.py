"""Sudoku: encoding, files, clues, augmented rows and splits."""

import pytest
import torch

from hf_lomdm.data.arguments import DataArguments
from hf_lomdm.data.sudoku import (
    EMPTY,
    MOST_CLUES,
    Puzzle,
    SudokuRows,
    add_clues,
    augment,
    encode,
    load_puzzles,
    load_sudoku,
    make_puzzle,
    solves,
)
from hf_lomdm.evaluation.sudoku import forced_cells
from tiny_sudoku import make_random_puzzle, make_solution, write_puzzles


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


def test_puzzles_load_from_csv_by_blocks_and_are_checked(tmp_path):
    puzzles, path = [make_random_puzzle(seed) for seed in range(5)], tmp_path / "puzzles.csv"
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
    path.write_text(
        "\ufeffpuzzle,more,solution\n" + lines[0].replace(",", ",NA,") + "\n" + lines[1][:81] + "\n"
    )
    assert load_puzzles(path, count=1) == puzzles[:1]
    with pytest.raises(
        ValueError,
        match="puzzles.csv, puzzle 1: grid must hold 81 digits or dots, got 0 characters",
    ):
        load_puzzles(path)
    for start, count in ((-1, None), (0, 0), (0, -1)):
        with pytest.raises(ValueError, match=f"number of puzzles 1, got {start} and {count}"):
            load_puzzles(path, start, count)


def test_add_clues_reveals_cells_of_the_solution():
    puzzle = make_random_puzzle(3, clues=30)
    easier = add_clues(puzzle, 40, torch.Generator().manual_seed(0))
    assert sum(map(bool, easier.clues)) == 40
    assert all(
        new in (old or solution, old)
        for new, old, solution in zip(easier.clues, *puzzle, strict=True)
    )
    assert (
        make_puzzle("".join(map(str, easier.clues)), "".join(map(str, easier.solution))) == easier
    )
    with pytest.raises(ValueError, match="total must be in 30 to 81"):
        add_clues(puzzle, 29)


def test_an_augmented_puzzle_is_another_puzzle_with_as_many_clues_and_its_own_solution():
    puzzle = make_random_puzzle(3, 30)
    augmented = [augment(puzzle, torch.Generator().manual_seed(seed)) for seed in range(40)]
    clues, solutions = (torch.tensor([puzzle[part] for puzzle in augmented]) for part in (0, 1))
    assert solves(solutions, clues).all()
    assert ((clues > 0).sum(-1) == 30).all() and len(
        {puzzle.solution for puzzle in augmented}
    ) == 40
    # forced cells go where their cells go, so no augmented puzzle is easier
    forced = forced_cells(torch.tensor([puzzle.clues])).sum()
    assert (forced_cells(clues).sum(-1) == forced).all()


def test_an_augmented_puzzle_turns_lines_into_columns_half_of_the_time():
    solution = make_solution()
    line = Puzzle(
        tuple(digit if cell < 9 else EMPTY for cell, digit in enumerate(solution)), tuple(solution)
    )
    grids = [
        torch.tensor(augment(line, torch.Generator().manual_seed(seed)).clues).view(9, 9)
        for seed in range(100)
    ]
    columns = sum(bool((grid > 0).all(0).any()) for grid in grids)
    lines = sum(bool((grid > 0).all(1).any()) for grid in grids)
    assert lines + columns == 100 and 30 < columns < 70  # four standard deviations


def test_sudoku_rows_are_the_same_whenever_read_and_give_from_their_own_clues_to_the_most():
    puzzles = [make_random_puzzle(seed, 20) for seed in range(5)]
    rows = SudokuRows(puzzles, variants=200)
    assert len(rows) == 1000 and rows[7] == rows[7] and rows[7] != rows[12]
    labels = torch.tensor([rows[index]["labels"] for index in range(len(rows))])
    grids = torch.tensor([rows[index]["input_ids"] for index in range(len(rows))])
    clues = grids.where(labels == -100, EMPTY)
    assert solves(grids, clues).all() and (grids.where(labels != -100, -100) == labels).all()
    given = (clues != EMPTY).sum(-1)
    counts = given.bincount(minlength=MOST_CLUES + 1)[20:].double()  # even over 20 to 64
    assert given.min() == 20 and given.max() == MOST_CLUES
    # chi-square, 44 degrees of freedom
    assert (counts - counts.mean()).square().sum() / counts.mean() < 90


def test_sudoku_splits_whole_blocks_and_refuses_what_is_no_sudoku(tmp_path):
    path = write_puzzles(tmp_path / "sudoku.csv", 20)
    rows, tokenizer = load_sudoku(DataArguments(task="sudoku", train_file=str(path), max_length=81))
    assert (
        rows["train"].puzzles == load_puzzles(path)[:18]
        and rows["validation"].puzzles == load_puzzles(path)[18:]
    )
    own = write_puzzles(tmp_path / "valid.csv", 3)
    small = {"validation_file": str(own), "max_train_rows": 4, "max_validation_rows": 2}
    rows, _ = load_sudoku(
        DataArguments(task="sudoku", train_file=str(path), max_length=81, **small)
    )
    assert [len(rows[split].puzzles) for split in ("train", "validation")] == [4, 2]
    for settings, message in (
        ({"train_file": str(path), "max_length": 64}, "max_length 81, the cells of a grid, got 64"),
        ({"max_length": 81}, "needs train_file"),
        ({"train_file": str(own), "max_length": 81}, "has 3 puzzles"),
    ):
        with pytest.raises(ValueError, match=message):
            load_sudoku(DataArguments(task="sudoku", **settings))
