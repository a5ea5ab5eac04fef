"""Fixtures of the tests of training_scripts/evaluate.py, which name them in `pytest_plugins`."""

import json
from pathlib import Path

import pytest

from conftest import build_model
from hf_lomdm.cli import evaluate
from tiny_tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model with its tokenizer, and some text."""
    path = tmp_path_factory.mktemp("evaluate")
    build_model(max_position_embeddings=8).save_pretrained(path / "model")
    build_tokenizer().save_pretrained(path / "model")
    (path / "text.txt").write_text("abcdefgab\n\ncagdeb\n\nabcabcabcdefggg")
    (path / "ptb.txt").write_text("abc\ndefg\n")
    return path


@pytest.fixture
def run(folder, tmp_path):
    """Runs a command and returns its record."""

    def call(command: str, *words: str) -> dict:
        output = tmp_path / f"{command}.json"
        output.unlink(missing_ok=True)
        common = ["--model", str(folder / "model"), "--output", str(output), "--quiet"]
        evaluate.main([command, *common, *map(str, words)])
        assert not output.with_name(output.name + ".parts").exists()
        return json.loads(output.read_text())

    return call
