"""The canvas of a call, filled in a window at a time. This file travels to the Hub."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GIVEN, PADDING = -1, -2


@dataclass
class Canvas:
    """Texts on the host, unpadded.

    `rows`, `order` and `reveals` as in the output; `starts`: first positions behind all given
    ones.
    """

    rows: list[list[int]]
    order: list[list[int]]
    reveals: list[list[int]]
    starts: list[int]


@dataclass
class Window:
    """What is being filled in of each row, right-padded: its next block or window.

    sample, order, reveals: `[B, S]` int64. given: `[B, S]` bool, what was there when it was opened.
    certainties: `[B, S]`, the probability that each token had when it was revealed.
    attention_mask: `[B, S]`, 1 = real; `None` = nothing padded. num_masked: masks of each row;
    num_free: when it was opened. firsts: where it begins in each row.
    """

    sample: Tensor
    order: Tensor
    reveals: Tensor
    given: Tensor
    certainties: Tensor
    attention_mask: Tensor | None
    num_masked: list[int]
    num_free: list[int]
    firsts: list[int]


def new_canvas(rows: list[list[int]], mask_token_id: int) -> Canvas:
    """A canvas of rows in which nothing is revealed yet."""
    starts = [
        max((i + 1 for i, token in enumerate(row) if token != mask_token_id), default=0)
        for row in rows
    ]
    order, reveals = ([[value] * len(row) for row in rows] for value in (GIVEN, 0))
    return Canvas(rows, order, reveals, starts)


def windows(rows: list[list[int]], config) -> list[tuple[list[int], int]]:
    """First position in each row, and width, of every window.

    Windows of a row ignore the other rows.
    """
    firsts, size, limit = [0] * len(rows), config.block_size, config.max_position_embeddings
    stride = max(1, limit // 2)  # half of a window is the context of the next
    if size is not None:
        mask = config.mask_token_id
        firsts, stride, limit = [row.index(mask) // size * size for row in rows], size, size
    longest = max(len(row) - first for row, first in zip(rows, firsts, strict=True))
    starts = range(0, max(0, longest - limit) + stride, stride)
    return [([first + start for first in firsts], min(limit, longest - start)) for start in starts]


def open_window(canvas: Canvas, firsts: list[int], width: int, config, device) -> Window:
    """The window of each row that begins at `firsts`, on `device`."""
    spans = zip(canvas.rows, firsts, strict=True)
    parts = [row[first : first + width] for row, first in spans]
    sample, mask = to_tensor(parts, padding_token(config), device)
    left = [part.count(config.mask_token_id) for part in parts]
    order, reveals = torch.full_like(sample, GIVEN), torch.zeros_like(sample)
    given = sample != config.mask_token_id
    certainties = torch.ones(sample.shape, device=device)
    return Window(sample, order, reveals, given, certainties, mask, left, left, firsts)


def close_window(
    canvas: Canvas, window: Window, config, stopped: Callable[[list[int], int], bool]
) -> None:
    """Copies a finished window into the canvas and cuts rows that have ended.

    A row ends with its first EOS behind all given positions, or where `stopped(row, start)`
    says so.
    """
    write(canvas, window)
    rows = zip(canvas.rows, canvas.order, canvas.reveals, canvas.starts, strict=True)
    for (row, order, reveals, start), first in zip(rows, window.firsts, strict=True):
        end = min(len(row), first + window.sample.shape[1])
        if end_of_row(row[:end], start, config) < end or stopped(row[:end], start):
            del row[end:], order[end:], reveals[end:]


def write(canvas: Canvas, window: Window) -> None:
    """Copies the present state of a window into the canvas."""
    values = (part.tolist() for part in (window.sample, window.order, window.reveals))
    filled = zip(window.firsts, *values, strict=True)
    rows = zip(canvas.rows, canvas.order, canvas.reveals, strict=True)
    for (row, order, reveals), (first, tokens, steps, counts) in zip(rows, filled, strict=True):
        end = min(len(row), first + len(tokens))
        row[first:end] = tokens[: end - first]
        # what an earlier window revealed is given here
        order[first:end] = map(max, order[first:end], steps)
        reveals[first:end] = map(max, reveals[first:end], counts)


def to_tensor(rows: list, padding: int, device, left: bool = False) -> tuple[Tensor, Tensor | None]:
    """Rows as `[B, L]`, padded on one side, and the mask of what is real, `None` if all is."""
    width = max(map(len, rows))
    missing = [width - len(row) for row in rows]
    padded = [
        [padding] * n * left + row + [padding] * n * (not left)
        for n, row in zip(missing, rows, strict=True)
    ]
    real = [
        [0] * n * left + [1] * len(row) + [0] * n * (not left)
        for n, row in zip(missing, rows, strict=True)
    ]
    values = torch.tensor(padded, dtype=torch.int64, device=device)
    mask = torch.tensor(real, dtype=torch.int64, device=device) if any(missing) else None
    return values, mask


def end_of_row(row: list[int], start: int, config) -> int:
    """Where a row ends: at its first EOS from `start` on."""
    # a BOS that the model wrote may be its EOS token: GPT-2's is
    start = max(start, int(row[0] == config.bos_token_id))
    return end_of_text(row, config.eos_token_id, start)


def end_of_text(ids: Sequence[int], eos: int | None, start: int = 0) -> int:
    """How many of the tokens `ids` are text: those before the first EOS from `start` on, or all."""
    return ids.index(eos, start) if eos in ids[start:] else len(ids)


def padding_token(config) -> int:
    """What stands at padded positions: never the mask token, which would be counted as masked."""
    known = (token for token in (config.pad_token_id, config.eos_token_id) if token is not None)
    return next(known, (config.mask_token_id + 1) % config.vocab_size)


def require(condition: bool, message: str) -> None:
    """Raises `ValueError` with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)
