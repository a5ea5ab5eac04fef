"""The generation order as one HTML page: tokens coloured by step, to be played.

The page loads nothing and runs no script but its own (a content security policy with hashes says so
to the browser).
"""

import base64
import hashlib
import html
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Literal

from ..evaluation.records import write_file
from .colours import COLOURS, black_or_white, colour_index
from .terminal import visible

Rates = Mapping[int, Sequence[float | None]]  # of each token by step; `None` where it has none
HEIGHTS = "0123456789abcdefghijklmnopqrstuvwxyz"


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
    texts = [
        text_element(*text, label=f"text {number + 1}")
        for number, text in enumerate(zip(tokens, order, strict=True))
    ]
    write_file(path, order_page(texts, title).encode())


def read_resource(name: str) -> str:
    """A page of this folder, or a style sheet or script as it stands within its element."""
    return "\n" + files(__package__).joinpath(name).read_text(encoding="utf-8")


def text_element(
    tokens: Sequence[str],
    order: Sequence[int],
    label: str,
    rates: Rates | None = None,
    kind: Literal["text", "grid"] = "text",
) -> str:
    """A text as spans; without the script it is there, finished and coloured.

    Args:
        tokens, order: as in `write_order_html`. label: what a screen reader says of it.
        rates: for steps, 0-based, the rate of each token, which masked tokens show as bars. The
            highest bar is the highest rate of all steps, an empty one the lowest.
        kind: `"grid"` lays 81 tokens out as nine lines of nine cells.
    """
    last = max(order, default=0)
    spans = (
        token_span(token, step, last)
        for token, step in zip(tokens, order, strict=True)
        if step > -2
    )
    heights = _heights(order, rates or {}, last)
    attributes = f'class="{kind}" dir="auto" role="group" aria-label="{escape(label)}"'
    return f'<div {attributes} data-rates="{heights}">{"".join(spans)}</div>'


def _heights(order: Sequence[int], rates: Rates, last: int) -> str:
    """For each step a word of as many signs, 0 to 9 and a to z, as tokens are revealed."""
    known = [rate for row in rates.values() for rate in row if rate is not None]
    low, width = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0) or 1.0
    revealed = [i for i, step in enumerate(order) if step >= 0]

    def sign(rate: float | None) -> str:
        return HEIGHTS[0 if rate is None else round((rate - low) / width * (len(HEIGHTS) - 1))]

    steps = (rates.get(step) for step in range(last + 1))
    return ",".join("".join(sign(row[i]) for i in revealed) if row else "" for row in steps)


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


def colour_style() -> str:
    """The style sheet of tokens, and of the colours of their steps."""
    rules = (
        f".c{number}:not(.masked) {{ background: {colour}; color: {black_or_white(colour)}; }}\n"
        for number, colour in enumerate(COLOURS)
    )
    return read_resource("tokens.css") + "".join(rules)


def colour_ramp() -> str:
    """The colours from early to late, for a legend."""
    return "".join(f'<i class="c{number}"></i>' for number in range(len(COLOURS)))


def order_page(samples: Sequence[str], title: str, plays: bool = False) -> str:
    """The page that `write_order_html` writes, of samples made of `text_element` and drawings.

    Args:
        samples: HTML; one at a time is shown.
        title: heading. plays: the page is part of another one, and plays by itself.
    """
    title, script = escape(title), read_resource("order_page.js")
    style = colour_style() + read_resource("order_page.css")
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}"
    numbers = "".join(
        f'<option value="{number}">text {number + 1}</option>' for number in range(len(samples))
    )
    elements = "\n".join(f'<section class="sample">{sample}</section>' for sample in samples)
    parts = {"policy": policy, "style": style, "script": script, "title": title}
    parts |= {"samples": elements, "numbers": numbers, "ramp": colour_ramp()}
    parts["plays"] = " data-plays" if plays else ""
    return read_resource("order_page.html").lstrip().format(**parts)


def order_frame(sample: str, title: str) -> str:
    """A page that plays one sample by itself, in a frame that reaches nothing.

    It tells the page around it its height (`orderHeight`, in pixels).
    """
    page = html.escape(order_page([sample], title, plays=True))
    return (
        f'<iframe title="{escape(title)}" sandbox="allow-scripts" srcdoc="{page}" '
        'style="width: 100%; height: 32rem; border: 0"></iframe>'
    )
