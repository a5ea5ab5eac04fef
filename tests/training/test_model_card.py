"""The card from a training record: what the Hub reads of it, its code, its picture, and who may replace it."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from hf_lomdm.hub import export_to_hub_folder
from hf_lomdm.training.arguments import DataArguments
from hf_lomdm.training.model_card import MARKER, PICTURE_FILE, RECORD_FILE, TrainingRecord, describe_data
from tiny_tokenizer import build_tokenizer
from training.tiny_training import make_trainer
from without_package import run_without_package

SECTIONS = ("Use", "The order", "Evaluation", "Training", "Limitations", "Licence", "Citation")


@pytest.fixture
def trained(tmp_path):
    """A trained and evaluated tiny model in `tmp_path/run`, its trainer and its metrics."""
    trainer = make_trainer(tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=2)
    trainer.processing_class, trainer.data = build_tokenizer(), "letters at random"
    trainer.train()
    metrics = trainer.evaluate() | trainer.evaluate_without_order()
    trainer.save_model()
    return trainer, metrics, tmp_path / "run"


def snippets(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def test_the_card_has_its_sections_its_picture_and_results_that_the_hub_reads(trained):
    pytest.importorskip("matplotlib")
    _, metrics, folder = trained
    text = (folder / "README.md").read_text()
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == list(SECTIONS)
    assert f"]({PICTURE_FILE})" in text and (folder / PICTURE_FILE).read_bytes().startswith(b"\x89PNG")
    assert "Text: letters at random." in text and "`learning_rate`: 0.01" in text and len(snippets(text)) == 3
    assert f"{metrics['eval_tokens']:,.0f} maskable tokens, 2 draws per text" in text
    results = ModelCard.load(folder / "README.md").data.eval_results  # raises for a model-index that is none
    assert [one.metric_value for one in results] == [
        round(metrics["eval_nelbo"], 4),
        round(metrics["eval_without_order_nelbo"], 4),
    ]
    assert f"standard error {metrics['eval_nelbo_standard_error']:.4f}" in results[0].metric_name


@pytest.mark.slow
def test_the_code_of_the_card_runs_on_the_folder_that_it_sits_in(trained, monkeypatch):
    _, _, folder = trained
    first, second, third = snippets((folder / "README.md").read_text())
    done = 'import json\nprint("RESULT", json.dumps([list(output.logits.shape), out.sequences.tolist()]))'
    shape, rows = run_without_package(first + second + done, folder=folder.parent)
    assert shape == [1, 8, 11] and len(rows[0]) == 24
    monkeypatch.chdir(folder.parent)
    names: dict = {}
    exec(third, names)
    assert names["estimate"].standard_error > 0


def test_an_export_writes_the_card_from_the_record_of_the_checkpoint(trained, tmp_path):
    _, metrics, folder = trained
    text = (export_to_hub_folder(folder, tmp_path / "named") / "README.md").read_text()
    assert MARKER in text and "# named\n" in text and 'from_pretrained("named"' in text
    assert f"| {metrics['eval_nelbo']:.4f} |" in text and "2 optimizer steps" in text
    assert (tmp_path / "named" / RECORD_FILE).read_text() == (folder / RECORD_FILE).read_text()
    assert (tmp_path / "named" / PICTURE_FILE).is_file() == (folder / PICTURE_FILE).is_file()
    early = export_to_hub_folder(folder / "checkpoint-2", tmp_path / "early") / "README.md"
    assert "These weights were not evaluated." in early.read_text() and "2 optimizer steps" in early.read_text()


def test_a_card_by_hand_stays_and_travels(trained, tmp_path):
    _, _, folder = trained
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "README.md").write_text("# Of the target")
    export_to_hub_folder(folder, tmp_path / "there")
    assert (tmp_path / "there" / "README.md").read_text() == "# Of the target"
    (folder / "README.md").write_text("# Of the source")
    export_to_hub_folder(folder, tmp_path / "new")
    assert (tmp_path / "new" / "README.md").read_text().endswith("# Of the source")


def test_a_file_that_is_no_record_is_refused(trained, tmp_path):
    _, _, folder = trained
    (folder / RECORD_FILE).write_text(json.dumps({"steps": 2, "weights": "evil"}))
    with pytest.raises(ValueError, match="is no training record.*Remove it"):
        export_to_hub_folder(folder, tmp_path / "out")
    assert TrainingRecord.load(Path(os.devnull).parent) is None


def test_drawing_the_picture_leaves_the_training_as_it_is(trained):
    trainer, _, folder = trained
    trainer.model.train()
    state = torch.get_rng_state()
    trainer.save_model()
    assert trainer.model.training and torch.equal(torch.get_rng_state(), state)


def test_the_text_of_a_run_is_described_by_its_arguments():
    packed = DataArguments(dataset_name="org/text", dataset_config="small", train_split="train[:9]", max_length=64)
    assert (
        describe_data(packed) == "`org/text` (small, split train[:9]), packed into rows of 64 tokens, tokenizer `gpt2`"
    )
    lines = DataArguments(train_file="/home/me/text.txt", packing=False, train_tokenizer="bpe:512", max_length=32)
    assert describe_data(lines) == "`text.txt`, one document per row, of 32 tokens, tokenizer `bpe:512`"
