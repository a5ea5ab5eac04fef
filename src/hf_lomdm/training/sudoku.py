"""Sudoku for training: puzzles in many guises as rows with given cells, and a tokenizer for grids."""

import hashlib
import json
from collections.abc import Sequence

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from ..data.arguments import DataArguments
from ..evaluation.sudoku import CELLS, MASK, PAD, Puzzle, add_clues, load_puzzles, training_rows
from .data import check_limits

VARIANTS = 64  # guises of each training puzzle
ROWS_VERSION = 1  # raise it when the same puzzles come to mean other rows
MOST_CLUES = 64  # of a training row; the fewest are those of the puzzle


def load_sudoku(arguments: DataArguments) -> tuple[dict[str, "SudokuRows"], PreTrainedTokenizerFast]:
    """Rows of puzzles (`train`, `validation`) and the tokenizer, from csv files with columns `puzzle`, `solution`.

    Without a `validation_file` the last tenth of `train_file` validates: neighbours in a file are often alike, so the
    two must be whole blocks.

    Raises:
        ValueError: no `train_file`, another `max_length` than 81, a limit below 1, or a file that holds no puzzles.
    """
    if not arguments.train_file:
        raise ValueError("task sudoku needs train_file, a csv file with the columns puzzle and solution. Pass one.")
    if arguments.max_length != CELLS:
        raise ValueError(f"task sudoku needs max_length {CELLS}, the cells of a grid, got {arguments.max_length}.")
    check_limits(arguments)
    train = load_puzzles(arguments.train_file)
    if arguments.validation_file:
        validation = load_puzzles(arguments.validation_file)
    elif len(train) < 10:
        raise ValueError(f"{arguments.train_file} has {len(train)} puzzles; without a validation_file 10 are needed.")
    else:
        cut = len(train) - len(train) // 10
        train, validation = train[:cut], train[cut:]
    train, validation = train[: arguments.max_train_rows], validation[: arguments.max_validation_rows]
    print(f"train: {len(train):,} puzzles, {VARIANTS} guises each; validation: {len(validation):,} puzzles", flush=True)
    return {"train": SudokuRows(train, VARIANTS), "validation": SudokuRows(validation, 1)}, sudoku_tokenizer()


class SudokuRows(Dataset):
    """Rows `input_ids` (the solution) and `labels` (-100 at clues), 81 each; row `i` is the same whenever it is read.

    Row `i` is puzzle `i mod N` in a guise of its own, `disguise`, with clues added up to an even draw from as many as
    it has to `MOST_CLUES`: the model learns easy and hard grids.
    """

    def __init__(self, puzzles: Sequence[Puzzle], variants: int):
        self.puzzles, self.variants = puzzles, variants
        contents = json.dumps([ROWS_VERSION, puzzles, variants])
        self._fingerprint = hashlib.sha256(contents.encode()).hexdigest()  # called as in `datasets.Dataset`

    def __len__(self) -> int:
        return len(self.puzzles) * self.variants

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        generator = torch.Generator().manual_seed(index)
        puzzle = disguise(self.puzzles[index % len(self.puzzles)], generator)
        fewest = sum(map(bool, puzzle.clues))
        total = int(torch.randint(fewest, max(fewest, MOST_CLUES) + 1, (), generator=generator))
        return training_rows([add_clues(puzzle, total, generator)])[0]


def disguise(puzzle: Puzzle, generator: torch.Generator) -> Puzzle:
    """Another puzzle of the same kind: digits renamed, lines and columns permuted within and as bands, transposed."""

    def lines() -> torch.Tensor:
        bands = torch.randperm(3, generator=generator)[:, None] * 3
        return (bands + torch.stack([torch.randperm(3, generator=generator) for _ in range(3)])).flatten()

    names = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randperm(9, generator=generator) + 1])
    grids = names[torch.tensor(puzzle)].view(2, 9, 9)[:, lines()][:, :, lines()]
    if torch.rand((), generator=generator) < 0.5:
        grids = grids.mT
    clues, solution = grids.flatten(1).tolist()
    return Puzzle(tuple(clues), tuple(solution))


def sudoku_tokenizer() -> PreTrainedTokenizerFast:
    """Grids as text: `"53..7...."` and so on; `.` or `0` is an empty cell, which is the mask token, so that the text of
    a puzzle is a template for the pipeline. All other characters are left out."""
    vocabulary = {str(digit): digit for digit in range(10)} | {".": MASK, "[PAD]": PAD}
    model = Tokenizer(models.BPE(vocabulary, []))
    model.normalizer = normalizers.Replace("0", ".")
    model.decoder = decoders.Fuse()
    model.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (".", "[PAD]")])
    return PreTrainedTokenizerFast(
        tokenizer_object=model, mask_token=".", pad_token="[PAD]", clean_up_tokenization_spaces=False
    )
