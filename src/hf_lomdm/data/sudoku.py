"""Sudoku as infilling: puzzles from csv files as rows with given clues; a tokenizer.

The id of a digit is the digit, 0 (an empty cell of a puzzle) is in no row, `MASK` is the mask
token. A row holds the 81 cells, line by line.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from .arguments import DataArguments, check_limits
from .reading import read_csv

CELLS, EMPTY, MASK, PAD, VOCABULARY = 81, 0, 10, 11, 12
TOKEN_IDS = {"vocab_size": VOCABULARY, "mask_token_id": MASK, "pad_token_id": PAD}
VARIANTS = 64  # augmented variants of each training puzzle
ROWS_VERSION = 1  # raise it when the same puzzles come to mean other rows
MOST_CLUES = 64  # of a training row; the fewest are those of the puzzle

_line, _column = torch.arange(CELLS) // 9, torch.arange(CELLS) % 9
_box = _line // 3 * 3 + _column // 3
# [27, 81] bool
UNITS = torch.cat([torch.arange(9)[:, None] == place for place in (_line, _column, _box)])


class Puzzle(NamedTuple):
    """Two tuples of 81 digits: the clues with 0 = empty, and the solution."""

    clues: tuple[int, ...]
    solution: tuple[int, ...]


def encode(grid: str) -> tuple[int, ...]:
    """The 81 digits of a grid such as `"53..7...."`; `.` or `0` is an empty cell.

    White space is left out.

    Raises:
        ValueError: another number of cells or another character.
    """
    cells = "".join(grid.split()).replace(".", "0")
    if len(cells) != CELLS or not (cells.isascii() and cells.isdigit()):
        raise ValueError(
            f"grid must hold {CELLS} digits or dots, got {len(cells)} characters: {grid[:90]!r}."
        )
    return tuple(map(int, cells))


def make_puzzle(clues: str, solution: str) -> Puzzle:
    """A puzzle and its solution from text.

    Raises:
        ValueError: grids that cannot be read, a solution that is none, or one that contradicts the
            clues.
    """
    puzzle = Puzzle(encode(clues), encode(solution))
    if not solves(torch.tensor([puzzle.solution]), torch.tensor([puzzle.clues])).item():
        raise ValueError(
            f"solution {solution!r} does not solve {clues!r}. Check the order of the two."
        )
    return puzzle


def load_puzzles(path: str | Path, start: int = 0, count: int | None = None) -> list[Puzzle]:
    """`count` puzzles of a csv file with columns `puzzle` and `solution`, from row `start` on.

    Neighbours in a file are often variants of one puzzle: take training and test puzzles from
    blocks far apart.

    Raises:
        ValueError: missing columns, no puzzles, or a row that is none, with its number.
    """
    if start < 0 or (count is not None and count < 1):
        raise ValueError(
            f"start must be at least 0 and the number of puzzles 1, got {start} and {count}."
        )
    cells = read_csv(Path(path), ("puzzle",), ("solution",))
    puzzles: list[Puzzle] = []
    for number, (clues, solution) in enumerate(cells):
        if number < start or (count is not None and len(puzzles) == count):
            continue
        try:
            puzzles.append(make_puzzle(clues or "", solution or ""))
        except ValueError as error:
            raise ValueError(f"{path}, puzzle {number}: {error}") from error
    if not puzzles:
        raise ValueError(
            f"{path} has no puzzles from row {start} on. Lower start, or check the file."
        )
    return puzzles


def add_clues(puzzle: Puzzle, total: int, generator: torch.Generator | None = None) -> Puzzle:
    """An easier puzzle: clues from the solution at random cells until there are `total`."""
    empty = torch.tensor([i for i, digit in enumerate(puzzle.clues) if digit == EMPTY])
    extra = total - (CELLS - len(empty))
    if not 0 <= extra <= len(empty):
        raise ValueError(
            f"total must be in {CELLS - len(empty)} to {CELLS}, the clues there are and all, got "
            f"{total}."
        )
    chosen = set(empty[torch.randperm(len(empty), generator=generator)[:extra]].tolist())
    clues = (puzzle.solution[i] if i in chosen else digit for i, digit in enumerate(puzzle.clues))
    return Puzzle(tuple(clues), puzzle.solution)


def training_rows(puzzles: Iterable[Puzzle]) -> list[dict[str, list[int]]]:
    """Rows for `LoMDMTrainer`: the solution, with labels of -100 (given) at the clues."""
    return [
        {
            "input_ids": list(puzzle.solution),
            "labels": [-100 if clue else digit for clue, digit in zip(*puzzle, strict=True)],
        }
        for puzzle in puzzles
    ]


def template(puzzle: Puzzle) -> list[int]:
    """The prompt of the pipeline: clues, and the mask token in all other cells."""
    return [digit or MASK for digit in puzzle.clues]


def solves(grids: Tensor, clues: Tensor) -> Tensor:
    """Whether grids `[B, 81]` are solved and no clue was changed: `[B]` bool."""
    digits = grids[..., None] == torch.arange(1, 10)  # [B, 81, 9]
    counts = torch.einsum("uc,bcd->bud", UNITS.float(), digits.float())
    return (counts == 1).all(-1).all(-1) & ((clues == EMPTY) | (grids == clues)).all(-1)


def augment(puzzle: Puzzle, generator: torch.Generator) -> Puzzle:
    """Another puzzle of the same kind: digits renamed, lines permuted in bands, transposed."""

    def lines() -> torch.Tensor:
        bands = torch.randperm(3, generator=generator)[:, None] * 3
        return (
            bands + torch.stack([torch.randperm(3, generator=generator) for _ in range(3)])
        ).flatten()

    names = torch.cat(
        [torch.zeros(1, dtype=torch.int64), torch.randperm(9, generator=generator) + 1]
    )
    grids = names[torch.tensor(puzzle)].view(2, 9, 9)[:, lines()][:, :, lines()]
    if torch.rand((), generator=generator) < 0.5:
        grids = grids.mT
    clues, solution = grids.flatten(1).tolist()
    return Puzzle(tuple(clues), tuple(solution))


def load_sudoku(
    arguments: DataArguments,
) -> tuple[dict[str, "SudokuRows"], PreTrainedTokenizerFast]:
    """Rows of puzzles (`train`, `validation`) from csv files, and the tokenizer.

    Without a `validation_file` the last tenth of `train_file` validates: neighbours in a file are
    often alike, so the two must be whole blocks.

    Raises:
        ValueError: no `train_file`, another `max_length` than 81, a limit below 1, or a file that
            holds no puzzles.
    """
    if not arguments.train_file:
        raise ValueError(
            "task sudoku needs train_file, a csv file with the columns puzzle and solution. Pass "
            "one."
        )
    if arguments.max_length != CELLS:
        raise ValueError(
            f"task sudoku needs max_length {CELLS}, the cells of a grid, got "
            f"{arguments.max_length}."
        )
    check_limits(arguments)
    train, validation = _load_splits(arguments.train_file, arguments.validation_file)
    train = train[: arguments.max_train_rows]
    validation = validation[: arguments.max_validation_rows]
    print(
        f"train: {len(train):,} puzzles, {VARIANTS} guises each; validation: {len(validation):,} "
        "puzzles",
        flush=True,
    )
    rows = {"train": SudokuRows(train, VARIANTS), "validation": SudokuRows(validation, 1)}
    return rows, sudoku_tokenizer()


def _load_splits(
    train_file: str, validation_file: str | None
) -> tuple[Sequence[Puzzle], Sequence[Puzzle]]:
    train = load_puzzles(train_file)
    if validation_file:
        return train, load_puzzles(validation_file)
    if len(train) < 10:
        raise ValueError(
            f"{train_file} has {len(train)} puzzles; without a validation_file 10 are needed."
        )
    cut = len(train) - len(train) // 10
    return train[:cut], train[cut:]


class SudokuRows(Dataset):
    """Rows of 81 `input_ids` (the solution) and `labels` (-100 at clues).

    Row `i` is the same whenever it is read.

    Row `i` is puzzle `i mod N`, augmented by the seed `i`, with clues added up to an even draw from
    as many as it has to `MOST_CLUES`: the model learns easy and hard grids.
    """

    def __init__(self, puzzles: Sequence[Puzzle], variants: int):
        self.puzzles, self.variants = puzzles, variants
        contents = json.dumps([ROWS_VERSION, puzzles, variants])
        # called as in `datasets.Dataset`
        self._fingerprint = hashlib.sha256(contents.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.puzzles) * self.variants

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        generator = torch.Generator().manual_seed(index)
        puzzle = augment(self.puzzles[index % len(self.puzzles)], generator)
        total = self.draw_clues(sum(map(bool, puzzle.clues)), generator)
        return training_rows([add_clues(puzzle, total, generator)])[0]

    def draw_clues(self, own: int, generator: torch.Generator) -> int:
        """How many clues a puzzle with `own` clues is given."""
        return int(torch.randint(own, max(own, MOST_CLUES) + 1, (), generator=generator))


def sudoku_tokenizer() -> PreTrainedTokenizerFast:
    """Grids as text, `"53..7...."` and so on.

    `.` or `0` is an empty cell, which is the mask token, so that the text of a puzzle is a template
    for the pipeline. All other characters are left out.
    """
    vocabulary = {str(digit): digit for digit in range(10)} | {".": MASK, "[PAD]": PAD}
    model = Tokenizer(models.BPE(vocabulary, []))
    model.normalizer = normalizers.Replace("0", ".")
    model.decoder = decoders.Fuse()
    model.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (".", "[PAD]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        mask_token=".",
        pad_token="[PAD]",
        clean_up_tokenization_spaces=False,
    )
