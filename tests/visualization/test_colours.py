"""The one colour scale: it is cividis, and every step has its place on it."""

import pytest

from hf_lomdm.visualization.colours import COLOURS, channels, colour_index, colour_map, spread


def test_the_colours_are_those_of_cividis_from_end_to_end():
    matplotlib = pytest.importorskip("matplotlib")
    last = len(COLOURS) - 1
    for number, colour in enumerate(COLOURS):
        assert channels(colour) == pytest.approx(
            [255 * part for part in matplotlib.colormaps["cividis"](number / last)[:3]], abs=2
        )
        assert channels(colour) == pytest.approx(
            [255 * part for part in colour_map()(number / last)[:3]], abs=2
        )


def test_a_step_has_the_colour_of_its_place_between_the_first_and_the_last():
    assert [colour_index(step, 2, 10) for step in (2, 6, 10)] == [0, 8, 16]
    assert colour_index(5, 5, 5) == 0  # one step alone


def test_spread_colours_are_different_and_begin_with_the_darkest():
    assert [len(set(spread(count))) for count in (1, 2, 7, 11)] == [1, 2, 7, 11]
    assert spread(3)[0] == COLOURS[0] and COLOURS[-1] not in spread(3)
