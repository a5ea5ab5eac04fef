"""`tools/make_animation.py`: a frame for each step, in which ever fewer positions are masked."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def bar_pixels(picture, bar: str) -> int:
    """How many pixels of a frame have the colour of a bar; a palette may move it by a little."""
    wanted = tuple(int(bar[i : i + 2], 16) for i in (1, 3, 5))
    colours = picture.convert("RGB").getcolors(2**20)
    return sum(
        count
        for count, colour in colours
        if max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) < 24
    )


def test_each_frame_of_the_animation_shows_the_text_after_a_step(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("animation", ROOT / "tools" / "make_animation.py")
    animation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(animation)
    output = tmp_path / "folder" / "writing.gif"
    arguments = ["--model", str(ROOT / "checkpoints" / "lomdm-enwiki"), "--output", str(output)]
    arguments += ["--prompt", "The city", "--num_inference_steps", "4", "--max_length", "16"]
    monkeypatch.setattr(sys, "argv", ["make_animation.py", *arguments])
    animation.main()
    assert "5 frames" in capsys.readouterr().out
    bars = []
    with Image.open(output) as picture:
        for number in range(picture.n_frames):
            picture.seek(number)
            bars.append(bar_pixels(picture, animation.BAR))
    assert len(bars) == 5
    # no rates before the first step; then bars of those that are still masked
    assert bars[0] == 0 < bars[3] < bars[1] and bars[4] == 0
