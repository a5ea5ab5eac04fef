"""training_scripts/train.py and its configurations, at small size on text with the real data sets' columns."""

import json
import runpy
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from hf_lomdm.training.arguments import parse_arguments

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
CONFIGS = ROOT / "training_scripts" / "configs"

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_length": 16,
    "max_steps": 2,
    "max_train_rows": 16,
    "max_validation_rows": 4,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "logging_steps": 1,
    "eval_steps": 2,
    "save_steps": 1,
    "warmup_steps": 1,
    "dataloader_num_workers": 0,
    "bf16": "false",
    "use_cpu": "true",
    "disable_tqdm": "true",
    "report_to": "none",
}
LM1B = {"dataset_name": FIXTURES / "lm1b", "tokenizer": FIXTURES / "bert_tokenizer"}
TEXT8 = {"train_file": FIXTURES / "text8.train.txt", "validation_file": FIXTURES / "text8.valid.txt"}
SOURCES = {
    "tiny": {},
    "text8": TEXT8,
    "enwiki": {**TEXT8, "train_tokenizer": "bpe:300"},
    "lm1b": LM1B,
    "lm1b_packed": LM1B,
    "owt": {
        "dataset_name": FIXTURES / "openwebtext",
        "tokenizer": FIXTURES / "gpt2_tokenizer",
        "train_split": "train[:-1]",
        "validation_split": "train[-1:]",
    },
}


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """Runs the script in this process; gives its output folder and what it printed."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def run(config: str, **overrides) -> tuple[Path, str]:
        settings = {**SMALL, **SOURCES[config], "output_dir": tmp_path / config, **overrides}
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        script = ROOT / "training_scripts" / "train.py"
        monkeypatch.setattr(sys, "argv", [str(script), "--config", str(CONFIGS / f"{config}.yaml"), *words])
        runpy.run_path(str(script), run_name="__main__")
        return Path(settings["output_dir"]), capsys.readouterr().out

    return run


@pytest.mark.parametrize("config", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_configuration_trains_two_steps_and_leaves_a_folder_that_loads(train, config):
    folder, printed = train(config)
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    settings = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    assert model.config.rate_type == settings["rate_type"] and model.config.mask_token_id == tokenizer.mask_token_id
    average = load_file(folder / "checkpoint-2" / "ema.safetensors")
    assert all(torch.equal(value, average[name]) for name, value in model.state_dict().items())
    evaluation = json.loads((folder / "eval_results.json").read_text())
    assert {"eval_nelbo", "eval_nelbo_standard_error", "eval_perplexity"} <= evaluation.keys()
    assert printed.count("--- sample") == 3 and "order bound:" in printed
    assert ("order bound with c2 = 0 at evaluation:" in printed) == (settings["rate_type"] == "learned")


def test_the_same_command_again_continues_and_a_finished_run_is_left_as_it_is(train):
    folder, _ = train("tiny")
    first = load_file(folder / "model.safetensors")
    train("tiny")
    again = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    train("tiny", max_steps=3)
    assert (folder / "checkpoint-3").is_dir()
    assert not torch.equal(load_file(folder / "model.safetensors")["lm_head.bias"], first["lm_head.bias"])


def test_uniform_rates_train_and_print_one_bound(train):
    folder, printed = train("tiny", rate_type="uniform")
    assert AutoModel.from_pretrained(folder).phi is None
    assert "order bound:" in printed and "c2 = 0" not in printed


def test_logs_go_to_tensorboard_when_it_is_installed(train):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = train("tiny", report_to="tensorboard")
    events = [path for path in folder.rglob("events.out.tfevents.*")]
    tags = EventAccumulator(str(events[0].parent)).Reload().Tags()["scalars"]
    assert {"train/loss", "train/velocity", "train/rate_ratio", "train/phi_grad_norm", "eval/nelbo"} <= set(tags)


def test_report_to_defaults_to_tensorboard_or_none_and_the_command_line_wins(tmp_path):
    words = ["--config", str(CONFIGS / "tiny.yaml"), "--output_dir", str(tmp_path), "--use_cpu"]
    _, model_args, args = parse_arguments([*words, "--hidden_size", "48", "--learning_rate", "0.5"])
    settings = yaml.safe_load((CONFIGS / "tiny.yaml").read_text())
    assert (model_args.hidden_size, args.learning_rate) == (48, 0.5)
    assert args.head_learning_rate == settings["head_learning_rate"] and args.seed == settings["seed"] == args.data_seed
    assert args.report_to in (["tensorboard"], [])


@pytest.mark.parametrize(
    "text, words, message",
    [
        ("hiden_size: 8", [], "Unknown key 'hiden_size' in .*config.yaml"),
        ("hidden_size: 8", ["--hiden_size", "8"], "Unknown argument '--hiden_size'"),
        ("hidden_size: 8", ["--hidden", "8"], "Unknown argument '--hidden'"),
        ("- hidden_size", [], "must hold lines of the form"),
        ("hidden_size: 8", ["--config", "nowhere.yaml"], "--config nowhere.yaml does not exist"),
        ("hidden_size: 8", ["--config"], "--config needs a file"),
    ],
)
def test_unknown_keys_and_files_are_errors_that_name_them(tmp_path, text, words, message):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--config", str(config), *words])


def test_lists_dictionaries_numbers_and_empty_values_of_a_file_arrive(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"output_dir: {tmp_path}\nuse_cpu: true\nlearning_rate: 3e-4\nreport_to: [none]\ntime_epsilon:\n"
        "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 0.1}\npacking: false\n"
    )
    data_args, model_args, args = parse_arguments(["--config", str(config)])
    assert args.learning_rate == 3e-4 and args.report_to == [] and args.lr_scheduler_kwargs == {"min_lr": 0.1}
    assert data_args.packing is False and model_args.time_epsilon is None
