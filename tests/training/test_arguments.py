"""What a training run can be told: ranges, settings without effect in a mode, and errors of one
line."""

import math
from dataclasses import fields
from pathlib import Path

import pytest
from tiny_training import make_trainer

from hf_lomdm.training.arguments import (
    MODES,
    RANGES,
    REFUSED,
    LoMDMTrainingArguments,
    ModelArguments,
)
from hf_lomdm.training.models import causal_config, diffusion_config
from hf_lomdm.training.parsing import PARTS, parse_arguments

CONFIGS = Path(__file__).parents[2] / "training_scripts" / "configs"
TEXT = ("--train_file", "a.txt", "--train_tokenizer", "char", "--use_cpu")


@pytest.mark.parametrize("name", RANGES)
def test_every_number_has_a_range_and_is_refused_outside_of_it_by_name_and_value(tmp_path, name):
    kind, low, high = RANGES[name]
    outside = [low - 1, math.nan, *([high, low + 0.5] if kind is int else [high])]
    for value in [value for value in outside if not (name == "max_steps" and value == math.inf)]:
        with pytest.raises(
            ValueError, match=rf"{name} must be a .*number, at least {low}.*, got {value}\."
        ):
            LoMDMTrainingArguments(str(tmp_path), **{name: value})


@pytest.mark.parametrize("name", REFUSED)
def test_settings_of_transformers_that_would_do_something_else_are_refused(tmp_path, name):
    value = False if name == "average_tokens_across_devices" else 0.1 if "factor" in name else True
    with pytest.raises(ValueError, match=f"{name}={value} is not supported: "):
        LoMDMTrainingArguments(str(tmp_path), **{name: value})


def test_no_number_is_without_a_range():
    free = {"head_learning_rate", "local_rank", "ddp_bucket_cap_mb", "eval_accumulation_steps"}
    kinds = ("int", "float", "int | None", "float | None")
    names = {
        argument.name
        for argument in fields(LoMDMTrainingArguments)
        if getattr(argument.type, "__name__", argument.type) in kinds
    }
    assert names - free <= RANGES.keys() | REFUSED.keys()


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ("--objective", "ar", "--c1", "0.9"),
            "c1=0.9 has no effect with objective ar. Leave it out.",
        ),
        (
            ("--objective", "ar", "--eval_num_samples", "4"),
            "eval_num_samples=4 has no effect with objective ar",
        ),
        (
            ("--objective", "ar", "--block_size", "4"),
            "block_size=4 has no effect with objective ar",
        ),
        (
            ("--rate_type", "uniform", "--c2", "0.0"),
            "c2=0.0 has no effect with a rate_type that is not learned",
        ),
        (("--time_epsilon", "1e-3"), "time_epsilon=0.001 has no effect with bound order"),
        (("--dataset_config", "small"), "dataset_config='small' has no effect with train_file"),
        (("--train_split", "test"), "train_split='test' has no effect with train_file"),
        (("--text_column", "body"), "text_column='body' has no effect with text in .txt files"),
        (
            ("--train_file", "a.csv", "--sample_by", "line"),
            "sample_by='line' has no effect with text that is no .txt",
        ),
        (
            ("--task", "sudoku", "--train_tokenizer", "", "--packing", "false"),
            "packing=False has no effect with task sudoku",
        ),
        (
            ("--lr_scheduler_type", "constant", "--warmup_steps", "9"),
            "warmup_steps=9.0 has no effect with lr_scheduler_type constant",
        ),
    ],
)
def test_a_setting_without_effect_in_its_mode_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments([*TEXT, *words])


@pytest.mark.parametrize(
    "words",
    [
        ("--train_file", "a.txt.gz", "--sample_by", "line"),
        (
            "--train_file",
            "a.csv",
            "--validation_file",
            "b.TXT",
            "--sample_by",
            "line",
            "--text_column",
            "body",
        ),
        # a folder may hold either
        ("--train_file", str(CONFIGS), "--sample_by", "line", "--text_column", "body"),
        (
            "--train_file",
            "",
            "--dataset_name",
            "org/text",
            "--text_column",
            "body",
            "--dataset_config",
            "small",
        ),
        ("--bound", "time", "--time_epsilon", "1e-3"),
        ("--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", "9"),
        ("--objective", "ar", "--c1", "0.7"),  # the default may be said
    ],
)
def test_a_setting_with_effect_is_taken(words):
    parse_arguments([*TEXT, *words])


@pytest.mark.parametrize("make_config", [diffusion_config, causal_config])
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"hidden_size": 15}, "hidden_size must be a multiple of"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"dropout": 1.5}, "dropout"),
        ({"max_position_embeddings": 8}, "max_position_embeddings=8 is less than max_length=16"),
    ],
)
def test_sizes_of_both_objectives_are_checked(make_config, settings, message):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, **settings}
    ids = {
        "vocab_size": 9,
        "mask_token_id": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    with pytest.raises(ValueError, match=message):
        make_config(ModelArguments(**sizes), 16, ids)


def test_a_schedule_that_does_not_take_its_arguments_is_an_error_that_names_them(tmp_path):
    schedule = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min": 1}}
    with pytest.raises(
        ValueError, match="lr_scheduler_kwargs={'min': 1} does not fit .*'cosine_with_min_lr'"
    ):
        make_trainer(tmp_path, **schedule).train()


def test_modes_name_settings_that_there_are():
    names = {argument.name for part in PARTS for argument in fields(part)}
    assert all(names.issuperset(mode.idle) for mode in MODES)


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ("--sample_by", "word"),
            "argument --sample_by.*: invalid choice: 'word'.* Run with --help for all names.",
        ),
        (("--objective", "gan"), "argument --objective: invalid choice: 'gan'"),
        (("--max_length", "many"), "argument --max_length.*: invalid int value: 'many'"),
        (("--optim", "best"), "'best'"),
        (("--lr_scheduler_type", "zigzag"), "'zigzag'"),
        (("--lr_scheduler_kwargs", "{min_lr}"), "'{min_lr}' is no JSON: "),
    ],
)
def test_a_value_that_a_key_cannot_have_is_one_line(words, message, capsys):
    with pytest.raises(ValueError, match=message) as raised:
        parse_arguments([*TEXT, *words])
    assert "\n" not in str(raised.value) and not capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [
        (b"hidden_size: [8", "is no YAML that can be read: .*line 1"),
        (b"hidden_size: 8\n\tdropout: 0", "is no YAML that can be read: .*line 2"),
        (b"text_column: caf\xe9", "is no YAML that can be read: .*utf-8"),
    ],
)
def test_a_malformed_file_is_one_line(tmp_path, content, message):
    config = tmp_path / "config.yaml"
    config.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        parse_arguments(["--config", str(config)])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "line, message",
    [
        ("sample_by: word", "sample_by in .*invalid choice: 'word' (choose from 'line'"),
        ("optim: best", "optim in .*invalid choice: 'best'"),
        ("max_length: 64.0", "max_length in .*invalid int value: 64.0"),
        ("max_length: true", "max_length in .*invalid int value: True"),
        ("learning_rate: [0.1]", "learning_rate in .*invalid float value: \\[0.1\\]"),
        ("time_range: [0.3, x]", "time_range in .*invalid float value"),
        ("packing: 2", "packing in .*Truthy value expected: got 2"),
        ("text_column: {a: 1}", "text_column in .*invalid str value"),
    ],
)
def test_a_value_of_a_file_that_its_key_cannot_have_names_both(tmp_path, line, message):
    config = tmp_path / "config.yaml"
    config.write_text(f"train_file: a.txt\n{line}\n")
    message = message.replace("in .*", f"in {config}: ").replace("(choose", "\\(choose")
    with pytest.raises(ValueError, match=f"^{message}.* Run with --help"):
        parse_arguments(["--config", str(config)])
