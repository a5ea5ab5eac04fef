"""The order as terminal text: the text coloured by step of reveal, and as it grew."""

import math
from typing import Any

from .colours import COLOURS, black_or_white, channels, colour_index

SHARES = (0.25, 0.5, 0.75, 1.0)
HIDDEN = "·"
RESET = "\x1b[0m"
LEGEND_WIDTH = 40
# Texts may hold codes that steer a terminal, marks that turn the direction of a line, and halves of
# surrogate pairs, which no encoding takes: all are shown as signs. Line breaks and tabs stay.
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
PICTURES |= dict.fromkeys([*range(128, 160), *map(ord, DIRECTIONS), *range(0xD800, 0xE000)], 0xFFFD)
INCOMPLETE = "\ufffd"  # what a decoder gives for the first bytes of a character


def visible(text: str) -> str:
    """A text as it may be printed: characters that would steer the terminal are signs."""
    return text.translate(PICTURES)


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """Text of each token within its sequence: joined, they are the decoded text.

    A token that ends within a character has the text `""`; the character goes to the token that
    completes it.

    Args:
        tokenizer: a transformers tokenizer.
        ids: the token ids of one sequence, special tokens included; they are shown.
    """
    pieces, shown = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        piece = "" if text.endswith(INCOMPLETE) and end < len(ids) else text[len(shown) :]
        shown += piece
        pieces.append(piece)
    return pieces


def order_text(tokens: list[str], order: list[int], color: bool) -> str:
    """The text with its order, then as it was at 25, 50, 75 and 100 % of the reveals.

    Args:
        tokens: text of each token, so that they read as the text when joined (spaces included).
            Control characters that could steer the terminal are shown as pictures of themselves
            (`␛`).
        order: step of reveal of each token; -1 = given, -2 = padding (left out).
        color: `True` colours the text by 24-bit ANSI codes, `False` uses no escape codes: only
            the snapshots, where `·` stands for each character of a masked token, show the order.
    Returns:
        Lines of text, without a newline at the end.
    Raises:
        ValueError: if `tokens` and `order` differ in length.
    """
    if len(tokens) != len(order):
        raise ValueError(
            f"tokens and order must have the same length, got {len(tokens)} and {len(order)}."
        )
    pairs = [(visible(token), step) for token, step in zip(tokens, order, strict=True) if step > -2]
    steps = sorted(step for _, step in pairs if step >= 0)
    if not steps:
        return "".join(token for token, _ in pairs)
    parts = [_coloured(pairs, steps) + "\n\n" + _legend(steps)] if color else []
    for share in SHARES:
        last = steps[math.ceil(share * len(steps)) - 1]
        title = (
            f"after step {last + 1}: {sum(step <= last for step in steps)} of {len(steps)} tokens "
            "revealed"
        )
        parts.append(f"{title}\n{_snapshot(pairs, last)}")
    return "\n\n".join(parts)


def _painted(text: str, step: float, steps: list[int]) -> str:
    """A text on the colour of its step; a line break would paint the rest of the line."""
    colour = COLOURS[colour_index(step, steps[0], steps[-1])]
    ground, letters = (";".join(map(str, channels(c))) for c in (colour, black_or_white(colour)))
    code = f"\x1b[48;2;{ground};38;2;{letters}m"
    return "\n".join(f"{code}{part}{RESET}" if part else "" for part in text.split("\n"))


def _coloured(pairs: list[tuple[str, int]], steps: list[int]) -> str:
    return "".join(token if step < 0 else _painted(token, step, steps) for token, step in pairs)


def _legend(steps: list[int]) -> str:
    """A bar in all the colours, from the first step of reveal to the last one."""
    places = [
        steps[0] + (steps[-1] - steps[0]) * i / (LEGEND_WIDTH - 1) for i in range(LEGEND_WIDTH)
    ]
    bar = "".join(_painted(" ", place, steps) for place in places)
    return f"step {steps[0] + 1} {bar} step {steps[-1] + 1}; uncoloured: given"


def _snapshot(pairs: list[tuple[str, int]], last: int) -> str:
    """The text after step `last`; what is still masked is hidden, line breaks stay."""
    return "".join(token if step <= last else _hide(token) for token, step in pairs)


def _hide(token: str) -> str:
    return "".join(character if character == "\n" else HIDDEN for character in token)
