"""The card from a training record: what the Hub reads of it, its code, its picture, and who may
replace it."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, RepoUrl

from hf_lomdm.adapters.order_adapter import OrderAdapterConfig
from hf_lomdm.data.arguments import DataArguments
from hf_lomdm.hub import export_to_hub_folder
from hf_lomdm.training.model_card import (
    MARKER,
    PICTURE_FILE,
    RECORD_FILE,
    TrainingRecord,
    describe_causal,
    describe_data,
    describe_diffusion,
    model_card,
)
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
    assert f"]({PICTURE_FILE})" in text and (folder / PICTURE_FILE).read_bytes().startswith(
        b"\x89PNG"
    )
    assert (
        "Text: letters at random." in text
        and "`learning_rate`: 0.01" in text
        and len(snippets(text)) == 3
    )
    assert f"{metrics['eval_tokens']:,.0f} tokens; 2 draws per text" in text
    # raises for a model-index that is none
    results = ModelCard.load(folder / "README.md").data.eval_results
    names = [
        f"eval{prefix}_{kind}"
        for prefix in ("", "_without_order")
        for kind in ("nelbo", "perplexity")
    ]
    # the trainer takes the exponential by itself; both are rounded to 4 digits
    assert [result.metric_value for result in results] == [
        pytest.approx(metrics[name], abs=1e-4) for name in names
    ]
    assert [result.metric_type for result in results] == ["nelbo", "perplexity"] * 2
    assert f"standard error {metrics['eval_nelbo_standard_error']:.4f}" in results[0].metric_name
    assert "the averaged weights on" in text and f"| {metrics['eval_perplexity']:.2f} +- " in text


@pytest.mark.slow
def test_the_code_of_the_card_runs_on_the_folder_that_it_sits_in(trained, monkeypatch):
    _, _, folder = trained
    first, second, third = snippets((folder / "README.md").read_text())
    measured = "[list(output.logits.shape), out.sequences.tolist()]"
    done = f'import json\nprint("RESULT", json.dumps({measured}))'
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
    assert (
        "These weights were not evaluated." in early.read_text()
        and "2 optimizer steps" in early.read_text()
    )


def test_a_push_takes_the_record_and_the_picture_along(trained, tmp_path, monkeypatch):
    _, _, folder = trained
    uploads = []
    monkeypatch.setattr(
        HfApi, "create_repo", lambda *_, **__: RepoUrl("https://huggingface.co/me/tiny")
    )
    monkeypatch.setattr(HfApi, "file_exists", lambda *_: False)
    monkeypatch.setattr(
        HfApi, "upload_folder", lambda _, **options: uploads.extend(options["allow_patterns"])
    )
    export_to_hub_folder(folder, tmp_path / "out", push_to_hub=True, repo_id="me/tiny")
    assert {RECORD_FILE, PICTURE_FILE} <= set(uploads)


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


def test_the_text_of_a_run_is_described_by_its_arguments_without_paths_of_the_machine(tmp_path):
    packed = DataArguments(
        dataset_name="org/text", dataset_config="small", train_split="train[:9]", max_length=64
    )
    packed.tokenizer = "org/bert"
    rows = "packed into rows of 64 tokens"
    assert (
        describe_data(packed)
        == f"`org/text` (small, split train[:9]), {rows}, tokenizer `org/bert`"
    )
    local = DataArguments(dataset_name=str(tmp_path), tokenizer=str(tmp_path), max_length=64)
    assert (
        describe_data(local)
        == f"`{tmp_path.name}` (split train), {rows}, tokenizer `{tmp_path.name}`"
    )
    lines = DataArguments(
        train_file="/home/me/text.txt", packing=False, train_tokenizer="bpe:512", max_length=32
    )
    assert (
        describe_data(lines)
        == "`text.txt`, one document per row, of 32 tokens, tokenizer `bpe:512`"
    )


METRICS = {"eval_nelbo": 2.0, "eval_nelbo_standard_error": 0.1, "eval_tokens": 50.0}


def test_the_protocol_is_that_of_the_weights_and_of_the_measure(make_model):
    record = TrainingRecord(3, {"ema_decay": 0.0, "eval_num_samples": 4}, METRICS)
    text = model_card("name", describe_diffusion(make_model().config), record)
    assert (
        "Protocol: the weights on" in text
        and "50 tokens; 4 draws per text" in text
        and "7.39 +- 0.74" in text
    )
    text = model_card("name", describe_causal(), record)
    assert "exact, nothing is drawn" in text and "draws" not in text and "averaged" not in text


@pytest.mark.parametrize(
    "name", ["me/{order}", "{}", "{0[x]}", "a{b", "}", "{{ name }}{% if %}{#", "<b>&'"]
)
def test_braces_in_a_name_are_text(name):
    sizes = {
        "vocab_size": 9,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "mask_token_id": 7,
    }
    description = describe_diffusion(OrderAdapterConfig(base_name=name, **sizes))
    record = TrainingRecord(1234, {}, METRICS, data=f"`{name}.txt`", data_fingerprint="00aa")
    text = model_card(name, description, record, dataset=None)
    assert f"An order for `{name}`" in text and "Trained for 1,234 optimizer steps" in text
    assert f'from_pretrained("{name}")' in text and f"Text: `{name}.txt`. Fingerprint of" in text


def test_a_value_that_json_cannot_hold_is_in_the_table_alone(make_model):
    record = TrainingRecord(3, {}, METRICS | {"eval_nelbo": 1e4})
    text = model_card("name", describe_diffusion(make_model().config), record)
    assert (
        "| 10000.0000 | 0.1000 | inf +- inf |" in text
        and "type: nelbo" in text
        and "type: perplexity" not in text
    )


def test_cards_name_the_base_and_that_of_an_adapter_needs_the_package():
    sizes = {
        "vocab_size": 9,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "mask_token_id": 7,
    }
    for commit in ("0" * 40, None):  # without one the base is a folder, no name that the Hub knows
        config = OrderAdapterConfig(base_name="org/bert", base_revision=commit, **sizes)
        text = model_card("me/order", describe_diffusion(config), TrainingRecord(3, {}, METRICS))
        assert "An order for `org/bert`" in text and "and not without it" in text
        assert "trust_remote_code" not in text and "custom_code" not in text
        assert ("base_model: org/bert" in text) == (commit is not None)
    tuned = TrainingRecord(3, {"lora_rank": 4}, METRICS, base_model="org/base")
    text = model_card("tuned", describe_causal(), tuned)
    assert "base_model: org/base" in text and "- `lora_rank`: 4" in text
