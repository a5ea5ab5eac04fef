"""The whole of tiny.yaml on real text (minutes): the bound, the order and the samples that the
README promises."""

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOAL = 2.32  # nats per character; the bigram entropy of the text by its own counts is 2.46


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_tiny_config_learns_more_than_bigrams_and_uneven_rates(tmp_path, monkeypatch, capsys):
    script = str(ROOT / "training_scripts" / "train.py")
    config = str(ROOT / "training_scripts" / "configs" / "tiny.yaml")
    monkeypatch.setattr(sys, "argv", [script, "--config", config, "--output_dir", str(tmp_path)])
    runpy.run_path(script, run_name="__main__")
    metrics = json.loads((tmp_path / "eval_results.json").read_text())
    assert metrics["eval_nelbo"] + 4 * metrics["eval_nelbo_standard_error"] < GOAL
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [row["forward_spread"] for row in history if "forward_spread" in row][-1] > 0.001
    assert capsys.readouterr().out.count("--- sample") == 3
