"""What a run prints: loss, perplexity, speed and time left, and a text at each evaluation."""

import re

import pytest
from tiny_training import make_trainer
from transformers import PrinterCallback, ProgressCallback

from hf_lomdm.training.progress import Progress, say_time

LINE = re.compile(
    r"step (\d+)/(\d+): loss ([\d.]+) nats per token \(perplexity ([\d.e+]+)\), "
    r"[\d,]+ tokens/s, \d+ (?:s|min|h|days) left"
)


def test_the_first_and_the_last_step_have_a_line_and_evaluations_too(tmp_path, capsys):
    trainer = make_trainer(tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2)
    trainer.train()
    printed = capsys.readouterr().out
    lines = LINE.findall(printed)
    assert [line[0] for line in (lines[0], lines[-1])] == ["1", "4"] and lines[0][1] == "4"
    for _, _, loss, perplexity in lines:
        assert float(perplexity) == pytest.approx(2.718281828 ** float(loss), rel=1e-3)
    assert re.findall(r"step (\d): validation [\d.]+", printed) == ["2", "4"]
    assert "{'loss'" not in printed and "grad_norm" not in printed


def test_the_loss_of_a_line_is_that_of_the_log(tmp_path, capsys):
    trainer = make_trainer(tmp_path, max_steps=1, logging_steps=1)
    trainer.train()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert float(LINE.findall(capsys.readouterr().out)[0][2]) == pytest.approx(logged, abs=1e-4)


def test_a_callback_of_ours_takes_the_place_of_theirs(tmp_path):
    trainer = make_trainer(tmp_path)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert Progress in kinds and not {ProgressCallback, PrinterCallback} & set(kinds)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (119, "119 s"), (600, "10 min"), (9e3, "2 h"), (2e5, "2 days")],
)
def test_a_duration_is_said_in_its_unit(seconds, said):
    assert say_time(seconds) == said
