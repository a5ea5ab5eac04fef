"""The picture of the generation order."""

import sys

import pytest

from hf_lomdm.visualization import order_picture
from hf_lomdm.visualization.picture import COLUMNS, place_tokens

WORDS = [f"word{i} " for i in range(60)]


def test_placed_tokens_keep_the_text_and_never_overlap_or_leave_the_line():
    tokens = [*WORDS, "x" * (2 * COLUMNS + 3), "a\nb", "\n", "end"]
    pieces = place_tokens(tokens)
    assert "".join(text for *_, text in pieces) == "".join(tokens).replace("\n", "")
    cells = [(line, column + i) for _, line, column, text in pieces for i in range(len(text))]
    assert len(set(cells)) == len(cells) and max(column for _, column in cells) < COLUMNS
    assert cells == sorted(cells)
    lines = {text: line for _, line, _, text in pieces}
    assert lines["b"] == lines["a"] + 1 and lines["end"] == lines["b"] + 1


def test_a_token_that_a_line_has_no_room_for_begins_the_next_one():
    assert place_tokens(["abc", "def"], columns=6) == [(0, 0, 0, "abc"), (1, 0, 3, "def")]
    assert place_tokens(["abc", "defg"], columns=6) == [(0, 0, 0, "abc"), (1, 1, 0, "defg")]


def test_picture_colours_follow_the_order(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "order.png"
    order_picture([*WORDS[:7], "given ", "late", "<pad>"], [0, 1, 2, 3, 4, 5, 6, -1, 7, -2], path)
    pixels = image.imread(path)
    assert pixels.shape[2] == 4 and pixels.shape[1] > pixels.shape[0]
    row = pixels[int(0.15 * 150) + 6, :, :3]  # just below the top of the first line's boxes
    first, given, last = (
        row[int((0.15 + column * 0.602 * 9 / 72) * 150)] for column in (0.5, 44, 49)
    )
    # dark blue, the first colour of cividis
    assert first == pytest.approx([0, 34 / 255, 78 / 255], abs=0.02)
    # begins at column 42, the last word at 48
    assert given == pytest.approx([0.91, 0.91, 0.91], abs=0.02)
    assert last == pytest.approx([254 / 255, 232 / 255, 56 / 255], abs=0.02)  # its yellow


def test_picture_without_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"hf-lomdm\[viz\]"):
        order_picture(["a"], [0], tmp_path / "order.png")


@pytest.mark.parametrize(
    ("tokens", "order", "message"), [(["a"], [], "got 1 and 0"), (["a"], [-1], "no step")]
)
def test_unusable_input_is_refused(tmp_path, tokens, order, message):
    with pytest.raises(ValueError, match=message):
        order_picture(tokens, order, tmp_path / "order.png")
