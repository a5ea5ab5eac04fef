"""Sudoku: the share solved, and whether the order of reveals follows what clues force.

Some orders are better than others, so orders can be judged.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.draws import step_generators
from ..data.sudoku import CELLS, EMPTY, TOKEN_IDS, UNITS, Puzzle, solves, template
from .generation import changed_pipeline, count_setting
from .parts import PartsFile, values_digest
from .records import environment


def forced_cells(grids: Tensor) -> Tensor:
    """Which empty cells (0) of `grids` `[B, 81]` have one possible digit only: bool.

    Possible is a digit that no line, column or box of the cell holds; a cell is forced if it is the
    only possible digit of the cell, or the cell the only possible place of the digit in one of its
    units.
    """
    units, empty = UNITS.float(), grids == EMPTY
    digits = (grids[..., None] == torch.arange(1, 10)).float()  # [B, 81, 9]
    excluded = torch.einsum("uc,bud->bcd", units, torch.einsum("uc,bcd->bud", units, digits)) > 0
    possible = ~excluded & empty[..., None]
    places = torch.einsum("uc,bcd->bud", units, possible.float())  # [B, 27, 9]
    last_place = torch.einsum("uc,bud->bcd", units, (places == 1).float()) > 0
    return (possible.sum(-1) == 1) | (possible & last_place).any(-1)


def order_statistics(grids: Tensor, clues: Tensor, order: Tensor) -> Tensor:
    """Whether forced cells are revealed first: shares of reveals `[B, 2]` float64.

    The first is the share of reveals that were forced when they were made (`forced_cells`), the
    second what it would be had each been drawn evenly from the masked cells of the same states.
    Reveals of one step share a state.

    Args:
        grids: `[B, 81]`, as they were written, right or wrong. clues: `[B, 81]`. order: `[B, 81]`,
            of the pipeline.
    """
    counts = torch.zeros(len(grids), 2, dtype=torch.float64)
    for step in range(int(order.max()) + 1):
        masked, now = order >= step, order == step
        state = torch.where(order < 0, clues, grids).masked_fill(masked, EMPTY)
        forced = forced_cells(state)
        even = (forced.sum(-1) / masked.sum(-1).clamp(min=1)) * now.sum(-1)
        counts += torch.stack([(forced & now).sum(-1), even], dim=-1)
    return counts / (order >= 0).sum(-1, keepdim=True).clamp(min=1)


def evaluate_sudoku(
    pipe: Any,
    puzzles: Sequence[Puzzle],
    *,
    num_inference_steps: int = CELLS,
    batch_size: int = 64,
    seed: int = 0,
    sampler: str | None = None,
    learned_order: bool = True,
    parts_file: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Solves puzzles, each with its own generator, and looks at the order of the reveals.

    Args:
        pipe: a `LoMDMPipeline` of a model with the vocabulary `TOKEN_IDS` and room for 81
            positions; its scheduler holds the temperature. sampler, learned_order: as in
            `write_texts`.
        parts_file: filled grids are appended here and not filled again.
    Returns:
        A dict that JSON takes: `value`, the share of grids that are the solution, with its
        `standard_error`; `solved`, the share that solve their puzzle (more only where a puzzle has
        several solutions); `cells_right`, of the revealed ones; `forced_first` and
        `forced_at_random`, the means of `order_statistics`, and `forced_first_difference`, paired
        by puzzle with its standard error; `n`, `tokens` revealed, `forward_passes` per puzzle
        (those with something to reveal in it), `tokens_per_forward`, `seconds` of filling in, the
        setting.
    Raises:
        ValueError: no puzzles, a model that does not fit, or a parts file of another model or
            setting.
    """
    _check(pipe.model.config, puzzles, batch_size)
    with changed_pipeline(pipe, sampler, None, learned_order):
        setting = _setting(pipe.scheduler)
        setting |= {"num_inference_steps": num_inference_steps, "learned_order": learned_order}
        identity = {**setting, "seed": seed, "puzzles": values_digest(puzzles)}
        parts = PartsFile(parts_file, identity, pipe.model)
        options = num_inference_steps, batch_size, seed, parts, progress
        grids, order, costs = _fill(pipe, puzzles, *options)
    weights = next(pipe.model.parameters())
    measures = _measures(grids, order, puzzles) | costs
    return measures | setting | environment(weights.device, weights.dtype, seed)


def _setting(scheduler: Any) -> dict[str, Any]:
    """What of the scheduler decides the grids, for a record."""
    names = ("sampler", "temperature", "top_p", "top_k")
    return {name: scheduler.config[name] for name in names} | count_setting(scheduler)


def _fill(
    pipe: Any,
    puzzles: Sequence[Puzzle],
    steps: int,
    batch_size: int,
    seed: int,
    parts: PartsFile,
    progress: bool,
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """The filled grids and the steps of their reveals, `[N, 81]` each, and what they cost."""
    done = parts.read()
    todo = [number for number in range(len(puzzles)) if number not in done]
    with tqdm(total=len(todo), disable=not progress, unit="puzzle", desc="sudoku") as bar:
        for batch in (
            todo[start : start + batch_size] for start in range(0, len(todo), batch_size)
        ):
            prompts, generators = (
                [template(puzzles[number]) for number in batch],
                step_generators(seed, 0, batch),
            )
            out = pipe(prompts, num_inference_steps=steps, generator=generators, output_type="seq")
            seconds = [out.seconds / len(batch)] * len(batch)
            columns = out.sequences.tolist(), out.order.tolist(), out.row_passes.tolist(), seconds
            values = {
                number: dict(zip(("grid", "order", "passes", "seconds"), row, strict=True))
                for number, *row in zip(batch, *columns, strict=True)
            }
            parts.append(values)
            done |= values
            bar.update(len(batch))
    grids, order = (
        torch.tensor([done[number][name] for number in range(len(puzzles))])
        for name in ("grid", "order")
    )
    passes, seconds = (
        sum(done[number][name] for number in range(len(puzzles))) for name in ("passes", "seconds")
    )
    tokens = int((order >= 0).sum())
    costs = {
        "forward_passes": passes / len(puzzles),
        "tokens_per_forward": tokens / passes,
        "seconds": seconds,
    }
    return grids, order, costs


def _measures(grids: Tensor, order: Tensor, puzzles: Sequence[Puzzle]) -> dict[str, Any]:
    clues, solutions = (torch.tensor([puzzle[part] for puzzle in puzzles]) for part in (0, 1))
    exact = (grids == solutions).all(-1).double()
    revealed = order >= 0
    first, random = order_statistics(grids, clues, order).unbind(-1)
    return {
        "unit": "share of puzzles solved",
        "value": float(exact.mean()),
        "standard_error": _standard_error(exact),
        "solved": float(solves(grids, clues).double().mean()),
        "cells_right": float((grids == solutions)[revealed].double().mean()),
        "forced_first": float(first.mean()),
        "forced_at_random": float(random.mean()),
        "forced_first_difference": float((first - random).mean()),
        "forced_first_difference_standard_error": _standard_error(first - random),
        "n": len(puzzles),
        "tokens": int(revealed.sum()),
    }


def _standard_error(values: Tensor) -> float | None:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None


def _check(config: Any, puzzles: Sequence[Puzzle], batch_size: int) -> None:
    if not puzzles or batch_size < 1:
        raise ValueError(
            f"puzzles and batch_size must be at least 1, got {len(puzzles)} and {batch_size}."
        )
    for name in ("vocab_size", "mask_token_id"):
        if getattr(config, name) != TOKEN_IDS[name]:
            raise ValueError(
                f"the model's {name} is {getattr(config, name)}, Sudoku takes {TOKEN_IDS[name]}."
            )
    if config.max_position_embeddings < CELLS and config.block_size is None:
        raise ValueError(
            f"the model's max_position_embeddings is {config.max_position_embeddings}, a grid has "
            f"{CELLS} cells. Train a model with at least as many."
        )
    if all(all(puzzle.clues) for puzzle in puzzles):
        raise ValueError("puzzles have no empty cell. Pass puzzles that are not solved yet.")
