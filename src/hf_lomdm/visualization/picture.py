"""The generation order as a picture: text in boxes coloured by step, with a colour bar."""

import io
import os
from pathlib import Path

from ..evaluation.records import write_file
from .colours import black_or_white, colour_map
from .terminal import PICTURES

COLUMNS = 80
FONT_SIZE = 9  # points
# inches; DejaVu Sans Mono, which comes with matplotlib, advances 0.602 em
CHARACTER_WIDTH = 0.602 * FONT_SIZE / 72
LINE_HEIGHT, MARGIN, BAR_WIDTH, DPI = 0.22, 0.15, 0.9, 150  # inches, and dots per inch
GIVEN_COLOUR = "#e8e8e8"
UNSEEN = dict.fromkeys(PICTURES, 0xFFFD)  # control characters: the font has no pictures of them


def place_tokens(tokens: list[str], columns: int = COLUMNS) -> list[tuple[int, int, int, str]]:
    """Places tokens on lines of `columns` characters, in monospace.

    Returns:
        Pieces `(token index, line, column, text)`; a token is split at line breaks and where it
        exceeds a line.
    """
    pieces, line, column = [], 0, 0
    for index, token in enumerate(tokens):
        if column and column + len(token.rstrip("\n").lstrip(" ")) > columns:
            line, column = line + 1, 0
        for number, part in enumerate(token.replace("\t", " ").split("\n")):
            if number:
                line, column = line + 1, 0
            while part:
                text, part = part[: columns - column], part[columns - column :]
                pieces.append((index, line, column, text))
                column += len(text)
                if column == columns:
                    line, column = line + 1, 0
    return pieces


def order_picture(tokens: list[str], order: list[int], path: str | os.PathLike) -> None:
    """Writes the text as a picture in which the colour of each token tells its step of reveal.

    Args:
        tokens: text of each token, so that they read as the text when joined.
        order: step of reveal of each token; -1 = given (grey), -2 = padding (left out).
        path: file to write; the ending chooses the format (`.png`, `.svg`, `.pdf`; none: PNG).
    Raises:
        ValueError: if `tokens` and `order` differ in length, or nothing was revealed.
        ImportError: without matplotlib.
    """
    if len(tokens) != len(order):
        raise ValueError(
            f"tokens and order must have the same length, got {len(tokens)} and {len(order)}."
        )
    pairs = [
        (token.translate(UNSEEN), step)
        for token, step in zip(tokens, order, strict=True)
        if step > -2
    ]
    steps = [step for _, step in pairs if step >= 0]
    if not steps:
        raise ValueError(
            "order holds no step of reveal (all given or padding): there is no order to show."
        )
    _draw(
        place_tokens([token for token, _ in pairs]), [step for _, step in pairs], max(steps), path
    )


def _draw(
    pieces: list[tuple[int, int, int, str]], order: list[int], last: int, path: str | os.PathLike
) -> None:
    try:
        from matplotlib import colors
        from matplotlib.cm import ScalarMappable
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'hf-lomdm[viz]'.") from error
    lines = pieces[-1][1] + 1
    text_width, text_height = COLUMNS * CHARACTER_WIDTH, max(lines, 5) * LINE_HEIGHT
    width, height = text_width + 2 * MARGIN + BAR_WIDTH, text_height + 2 * MARGIN
    figure = Figure(figsize=(width, height))
    # the text's axes have the size of the text, so that a character fills a unit and boxes fit
    axes = figure.add_axes(
        (MARGIN / width, MARGIN / height, text_width / width, text_height / height)
    )
    axes.set(xlim=(0, COLUMNS), ylim=(max(lines, 5), 0))
    axes.axis("off")
    colours = ScalarMappable(colors.Normalize(1, last + 1), colour_map())
    font = {"family": "DejaVu Sans Mono", "size": FONT_SIZE, "va": "center"}
    for index, line, column, text in pieces:
        colour = (
            colors.to_hex(colours.to_rgba(order[index] + 1)) if order[index] >= 0 else GIVEN_COLOUR
        )
        axes.add_patch(Rectangle((column, line + 0.05), len(text), 0.9, color=colour, linewidth=0))
        letters = black_or_white(colour)
        # a "$" in a text is a dollar
        axes.text(column, line + 0.5, text, parse_math=False, color=letters, **font)
    bar = figure.add_axes(
        (1 - BAR_WIDTH / width, MARGIN / height, 0.12 / width, text_height / height)
    )
    figure.colorbar(colours, cax=bar, label="step of reveal")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=DPI, format=Path(path).suffix[1:] or "png")
    write_file(path, picture.getvalue())
