"""The generation order as one HTML page: tokens coloured by step, to be played.

The page loads nothing and runs no script but its own (a content security policy with hashes says so
to the browser).
"""

import base64
import hashlib
import html
import os
from collections.abc import Sequence
from importlib.resources import files

from ..evaluation.records import write_file
from .colours import COLOURS, black_or_white, colour_index
from .terminal import visible


def write_order_html(
    path: str | os.PathLike,
    tokens: Sequence[list[str]],
    order: Sequence[list[int]],
    title: str = "Order of reveal",
) -> None:
    """Writes texts as a page on which the colour of each token tells its step of reveal.

    The page shows one text at a time, finished at first; buttons, a slider and keys (arrows, Home,
    End, space) go through the steps. A masked token keeps the room of the token to come. All text
    is escaped; control characters and marks of direction are shown as signs.

    Args:
        path: file to write.
        tokens: for each text the text of each token (`token_texts`).
        order: for each text the step of reveal of each token; -1 = given, -2 = padding (left out).
        title: heading of the page.
    Raises:
        ValueError: no text, or `tokens` and `order` that differ in length.
    """
    if not tokens or len(tokens) != len(order):
        raise ValueError(
            f"tokens and order must hold the same texts, at least one, got {len(tokens)}, "
            f"{len(order)}."
        )
    for number, lengths in enumerate(zip(map(len, tokens), map(len, order), strict=True)):
        if lengths[0] != lengths[1]:
            raise ValueError(
                f"tokens and order of text {number} must have the same length, got {lengths[0]} "
                f"and {lengths[1]}."
            )
    write_file(path, order_page(tokens, order, title).encode())


def read_resource(name: str) -> str:
    """A page of this folder, or a style sheet or script as it stands within its element."""
    return "\n" + files(__package__).joinpath(name).read_text(encoding="utf-8")


def text_element(number: int, tokens: list[str], order: list[int]) -> str:
    """A text as spans; without the script all texts are there, finished and coloured."""
    last = max(order, default=0)
    spans = (
        token_span(token, step, last)
        for token, step in zip(tokens, order, strict=True)
        if step > -2
    )
    attributes = f'class="text" dir="auto" role="group" aria-label="text {number + 1}"'
    return f"<div {attributes}>{''.join(spans)}</div>"


def token_span(token: str, step: int, last: int) -> str:
    """A token as a span, in the colour of its step of `last + 1`; -1 = given."""
    if step < 0:
        return f'<span class="given" title="given">{escape(token)}</span>'
    colour = colour_index(step, 0, last)
    attributes = f'class="t c{colour}" data-step="{step}" title="step {step + 1} of {last + 1}"'
    return f"<span {attributes}>{escape(token)}</span>"


def escape(text: str) -> str:
    """HTML of a text: what could be taken for something else is escaped or a sign."""
    return html.escape(visible(text)).replace("\n", "\u21b5\n")


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def order_page(tokens: Sequence[list[str]], order: Sequence[list[int]], title: str) -> str:
    """The page that `write_order_html` writes."""
    title, script = escape(title), read_resource("order_page.js")
    texts = "\n".join(
        text_element(number, *text) for number, text in enumerate(zip(tokens, order, strict=True))
    )
    colours = "".join(
        f".c{number}:not(.masked) {{ background: {colour}; color: {black_or_white(colour)}; }}\n"
        for number, colour in enumerate(COLOURS)
    )
    style = read_resource("order_page.css") + colours
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}"
    samples = "".join(
        f'<option value="{number}">text {number + 1}</option>' for number in range(len(tokens))
    )
    ramp = "".join(f'<i class="c{number}"></i>' for number in range(len(COLOURS)))
    parts = {"policy": policy, "style": style, "script": script, "title": title}
    parts |= {"samples": samples, "texts": texts, "ramp": ramp}
    return read_resource("order_page.html").lstrip().format(**parts)
