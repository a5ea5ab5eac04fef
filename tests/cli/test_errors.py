"""What scripts say when they cannot go on: one line for a mistake, a traceback for a bug."""

import io
import os
import sys

import pytest
import torch
from safetensors import SafetensorError

from hf_lomdm.cli.errors import FROM_OUTSIDE, loading, one_line, user_errors

MISTAKES = {
    "value": (ValueError("steps must be 1,\n  got 0.\nMore here"), "steps must be 1, got 0."),
    "file": (FileNotFoundError(2, "No such file", "a.txt"), "a.txt: No such file"),
    "disk": (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
    "extra": (ImportError("Plots need matplotlib: pip ..."), "Plots need matplotlib: pip ..."),
    "weights": (SafetensorError("header too short"), "header too short"),
    "memory": (MemoryError(), "not enough memory. Take fewer or shorter texts."),
    "torch": (
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        "a file could not be written. Is the disk full?",
    ),
    "unsaid": (ValueError(), "ValueError"),
    "controls": (ValueError("got '\x1b[2J\x9b\u202e\udce9'."), "got '␛[2J\ufffd\ufffd\ufffd'."),
    "long": (ValueError("x" * 10**6), "x" * 1000 + " ..."),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_of_a_user_are_one_line(kind):
    error, said = MISTAKES[kind]

    @user_errors()
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == f"error: {said}"


def test_an_allocation_that_torch_refuses_is_one_line():
    with pytest.raises(SystemExit, match="^error: not enough memory"), user_errors():
        torch.empty(10**15)


@pytest.mark.parametrize(
    "error", [TypeError("x"), KeyError("x"), RuntimeError("x"), ImportError("x", name="hf_lomdm.x")]
)
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)), user_errors():
        raise error


def test_within_training_what_comes_from_outside_is_one_line_and_a_value_error_is_a_bug():
    with pytest.raises(SystemExit, match="^error: .*No space"), user_errors(*FROM_OUTSIDE):
        raise OSError(28, "No space left on device")
    with pytest.raises(ValueError, match="x"), user_errors(*FROM_OUTSIDE):
        raise ValueError("x")


def test_a_model_that_cannot_be_loaded_is_said_to_be_a_folder_a_file_or_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    for name, reason in {
        ".": "cut off",
        "file": "it is a file",
        "none": "there is no such folder, and as a rep",
    }.items():
        with (
            pytest.raises(ValueError, match=f"^--model .* cannot be loaded: {reason}"),
            loading("--model", tmp_path / name),
        ):
            raise SafetensorError("cut off")


def test_two_lines_of_an_error_at_most():
    assert one_line(ValueError("a\n\n b\nc")) == "a b"


@user_errors()
def show(*words: str) -> None:
    for word in words:
        print(word)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8"])
def test_characters_that_the_output_cannot_encode_are_replaced(monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    show("a\u2588\U0001f600\udce9")
    expected = "a\u2588\U0001f600?\n" if encoding == "utf-8" else "a???\n"
    assert written.getvalue().decode(encoding) == expected


def test_interruption_ends_without_a_word(capsys):
    with pytest.raises(SystemExit) as stop, user_errors():
        raise KeyboardInterrupt
    assert stop.value.code == 130 and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("lines", [1, 10_000])  # within and beyond the buffer
def test_a_reader_who_leaves_ends_it_without_a_word(monkeypatch, lines):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as stop:
            show(*["x" * 99] * lines)
        print("nobody reads", flush=True)  # no error of the interpreter, which flushes at its end
    assert stop.value.code == 141


def test_help_for_a_reader_who_leaves_ends_without_a_word(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as stop, user_errors():
            print("usage")
            sys.exit(0)
    assert stop.value.code == 141


def test_a_pipe_that_is_not_the_output_is_named():
    with pytest.raises(SystemExit, match="^error: .*Broken pipe"), user_errors():
        raise BrokenPipeError(32, "Broken pipe")


def test_an_output_that_is_full_is_an_error_and_one_that_is_closed_is_none(monkeypatch):
    with open("/dev/full", "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit, match="^error: .*No space left on device$"):
            show("x")
    monkeypatch.setattr(sys, "stdout", None)
    show("x")


def test_statuses_of_argparse_stay():
    with pytest.raises(SystemExit) as stop, user_errors():
        sys.exit(2)
    assert stop.value.code == 2
