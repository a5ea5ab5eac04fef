"""What scripts say when they cannot go on: one line for a mistake, a traceback for a bug."""

import os
import subprocess
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


SCRIPT = """
import sys
from hf_lomdm.cli.errors import user_errors
@user_errors()
def main():
    {body}
main()
"""


def run(body: str, shell: str = '"$0" -c "$1"', **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", "-c", f"set -o pipefail; {shell}", sys.executable, SCRIPT.format(body=body)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "ascii:strict", "latin-1"])
def test_characters_that_the_output_cannot_encode_are_replaced(encoding):
    done = run("print('a\\u2588\\U0001f600')", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a??\n", "")


def test_interruption_ends_without_a_word():
    done = run("raise KeyboardInterrupt")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


MANY = "[print('x' * 99) for _ in range(9999)]"


@pytest.mark.parametrize("body", [MANY, "print('x'); sys.exit(0)", "print('x')"])
def test_a_reader_who_leaves_ends_it_without_a_word(body):
    # it starts to print when nobody reads any more
    done = run(f"sys.stdin.read(); {body}", 'sleep 0.2 | "$0" -c "$1" | true')
    assert (done.returncode, done.stderr) == (141, "")


def test_a_pipe_that_is_not_the_output_is_named():
    with pytest.raises(SystemExit, match="^error: .*Broken pipe"), user_errors():
        raise BrokenPipeError(32, "Broken pipe")


def test_an_output_that_is_full_or_closed():
    done = run("print('x')", '"$0" -c "$1" > /dev/full')
    said = "error: [Errno 28] No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)
    assert run("print('x', sys.stdout.isatty())", '"$0" -c "$1" >&-').returncode == 0
