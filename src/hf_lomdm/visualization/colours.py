"""The colour of a step of reveal in every picture: cividis, dark blue early, yellow late."""

from typing import Any

# The same to eyes with and without colour blindness; lightness grows steadily.
COLOURS = (
    *("#00224e", "#002e6a", "#1a386f", "#32436d", "#434e6c", "#535a6d", "#61656f", "#6f7073"),
    *("#7d7c78", "#8c8878", "#9b9476", "#aba072", "#bcae6c", "#cdbb63", "#dec958", "#f0d846"),
    "#fee838",
)


def colour_index(step: float, first: float, last: float) -> int:
    """Index into `COLOURS` of a step by its place between the first and the last one."""
    return round((step - first) / max(1, last - first) * (len(COLOURS) - 1))


def spread(count: int) -> list[str]:
    """`count` of the colours, as far from each other as they can be; the lightest is left out."""
    last = len(COLOURS) - 3  # what is lighter is hard to see as a line on white
    return [COLOURS[round(i * last / max(1, count - 1))] for i in range(count)]


def channels(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of `#rrggbb`, 0 to 255."""
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue


def black_or_white(colour: str) -> str:
    """The one that stands out more on a background, by WCAG's contrast (never below 4.5)."""
    shares = [c / 255 for c in channels(colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#ffffff"


def colour_map() -> Any:
    """`COLOURS` as a colour map of matplotlib."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("order", list(COLOURS))
