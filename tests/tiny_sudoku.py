"""Random puzzles with their solutions."""

import torch

from hf_lomdm.data.sudoku import Puzzle, add_clues


def make_solution(seed: int = 0) -> list[int]:
    """A solved grid: the cyclic one with digits, lines within bands and columns within stacks
    shuffled."""
    generator = torch.Generator().manual_seed(seed)
    digits = (torch.randperm(9, generator=generator) + 1).tolist()
    lines, columns = (
        [3 * b + int(i) for b in range(3) for i in torch.randperm(3, generator=generator)]
        for _ in "ab"
    )
    return [
        digits[(3 * (line % 3) + line // 3 + column) % 9] for line in lines for column in columns
    ]


def make_random_puzzle(seed: int = 0, clues: int = 50) -> Puzzle:
    return add_clues(
        Puzzle((0,) * 81, tuple(make_solution(seed))), clues, torch.Generator().manual_seed(seed)
    )


def write_puzzles(path, count: int, clues: int = 50):
    """A csv file of `count` puzzles."""
    rows = [make_random_puzzle(seed, clues) for seed in range(count)]
    lines = [",".join("".join(map(str, grid)) for grid in row) for row in rows]
    path.write_text("\n".join(["puzzle,solution", *lines]))
    return path
