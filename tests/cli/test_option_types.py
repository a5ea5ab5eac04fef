"""Types of options: what is out of range is refused, with the option's name by argparse."""

import argparse

import pytest

from hf_lomdm.cli.option_types import SEED, between, new_file, nonempty, positive, whole


def refused(read, text: str) -> str:
    with pytest.raises(argparse.ArgumentTypeError) as error:
        read(text)
    return str(error.value)


@pytest.mark.parametrize("text", ["-1", "0", "11", "1.5", "x", "", "nan", "1e3"])
def test_whole_numbers_have_a_range(text):
    assert refused(whole(1, 10), text) == f"must be a whole number from 1 to 10, got {text!r}"
    assert [whole(1, 10)("1"), whole(1, 10)("10"), whole(0)("99")] == [1, 10, 99]


@pytest.mark.parametrize("text", ["-0.1", "2.1", "nan", "inf", "-inf", "1e400", "x", ""])
def test_numbers_have_a_range_and_are_finite(text):
    assert refused(between(0, 2), text) == f"must be a number from 0 to 2, got {text!r}"
    assert refused(positive, "0" if text == "2.1" else text)
    assert [between(0, 2)("0"), between(0)("1e9"), between(0, 2)("2"), positive("2.1")] == [
        0,
        1e9,
        2,
        2.1,
    ]


def test_seeds_are_those_that_every_library_takes():
    assert SEED(str(2**32 - 1)) == 2**32 - 1 and refused(SEED, str(2**32)) and refused(SEED, "-1")


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_names_are_not_empty(text):
    assert refused(nonempty, text) and refused(new_file, text)


def test_a_file_to_be_written_is_no_folder_and_has_one(tmp_path):
    assert "is a folder" in refused(new_file, str(tmp_path))
    assert "must be in a folder" in refused(new_file, str(tmp_path / "none" / "a.html"))
    assert new_file(str(tmp_path / "a.html")) == tmp_path / "a.html"
    assert str(new_file("/dev/null")) == "/dev/null"
