"""training_scripts/train.py and its configurations, at small size on text with the real data sets'
columns."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from hf_lomdm import LoMDMPipeline
from hf_lomdm.training.parsing import parse_arguments
from hub_server import HubServer
from without_package import run_without_package

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
TEXT8 = {
    "train_file": FIXTURES / "text8.train.txt",
    "validation_file": FIXTURES / "text8.valid.txt",
}
SOURCES = {
    "tiny": {},
    "text8": TEXT8,
    "enwiki": {**TEXT8, "train_tokenizer": "bpe:300"},
    "sudoku": {"train_file": FIXTURES / "sudoku.csv", "max_length": 81},
    "moses": {
        "train_file": FIXTURES / "molecules.train.txt",
        "validation_file": FIXTURES / "molecules.valid.txt",
    },
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

    def run(config: str, system: str | None = None, **overrides) -> tuple[Path, str]:
        settings = {**SMALL, **SOURCES[config], "output_dir": tmp_path / config, **overrides}
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        script = ROOT / "training_scripts" / "train.py"
        files = ["--config", str(CONFIGS / f"{config}.yaml")]
        files += [] if system is None else ["--config", str(CONFIGS / "systems" / f"{system}.yaml")]
        monkeypatch.setattr(sys, "argv", [str(script), *files, *words])
        runpy.run_path(str(script), run_name="__main__")
        return Path(settings["output_dir"]), capsys.readouterr().out

    return run


def with_slow(names: list[str], fast: str) -> list:
    """All names; those that are not in `fast` read nothing that one of these does not read."""
    slow = pytest.mark.slow
    return [pytest.param(name, marks=[] if name in fast.split() else slow) for name in names]


@pytest.mark.parametrize(
    "config",
    with_slow(
        sorted(path.stem for path in CONFIGS.glob("*.yaml")), "enwiki sudoku moses lm1b_packed owt"
    ),
)
def test_every_configuration_trains_two_steps_and_leaves_a_folder_that_loads(train, config):
    folder, printed = train(config)
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (
        model.config.rate_type == "learned"
        and model.config.mask_token_id == tokenizer.mask_token_id
    )
    average = load_file(folder / "checkpoint-2" / "ema.safetensors")
    assert all(torch.equal(value, average[name]) for name, value in model.state_dict().items())
    evaluation = json.loads((folder / "eval_results.json").read_text())
    assert {"eval_nelbo", "eval_nelbo_standard_error", "eval_perplexity"} <= evaluation.keys()
    assert printed.count("--- sample") == 3 and "order bound:" in printed
    assert "order bound with c2 = 0 at evaluation:" in printed


def test_the_same_command_again_continues_and_a_finished_run_is_left_as_it_is(train):
    folder, _ = train("tiny")
    first = load_file(folder / "model.safetensors")
    train("tiny")
    reloaded = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, reloaded[name]) for name, value in first.items())
    train("tiny", max_steps=3)
    assert (folder / "checkpoint-3").is_dir()
    assert not torch.equal(
        load_file(folder / "model.safetensors")["lm_head.bias"], first["lm_head.bias"]
    )
    with pytest.raises(
        SystemExit, match="^error: .*checkpoint-3 was trained with seed=.*, not 7, and cannot go on"
    ):
        train("tiny", seed=7)


@pytest.mark.parametrize(
    "config, system",
    [("text8", None), ("text8", "ar"), pytest.param("sudoku", None, marks=pytest.mark.slow)],
)
def test_other_data_in_the_same_folder_are_refused(train, tmp_path, config, system):
    settings = {} if config == "sudoku" else {"validation_file": SOURCES[config]["validation_file"]}
    folder, _ = train(config, system, **settings)
    source = Path(SOURCES[config]["train_file"])
    moved, other = tmp_path / f"moved{source.suffix}", tmp_path / f"other{source.suffix}"
    moved.write_text(source.read_text())
    lines = source.read_text().split("\n")
    other.write_text(
        "\n".join([lines[0], *lines[2:]]) if config == "sudoku" else source.read_text()[1:]
    )
    with pytest.raises(
        SystemExit,
        match="^error: .*(checkpoint-2 was trained with other data|made from another train text)",
    ):
        train(config, system, **settings, train_file=other, max_steps=3)
    train(config, system, **settings, train_file=moved, max_steps=3)
    record = json.loads((folder / "training_record.json").read_text())
    assert record["steps"] == 3 and record["data_fingerprint"] in (folder / "README.md").read_text()
    if system is None and config == "text8":
        with pytest.raises(
            SystemExit, match="^error: .*checkpoint-3 was trained with hidden_size=16, not 32"
        ):
            train(config, hidden_size=32, max_steps=4)


@pytest.mark.parametrize(
    "system",
    with_slow(
        sorted(path.stem for path in (CONFIGS / "systems").glob("*.yaml")),
        "lomdm block_lomdm uniform_psi mdlm_two_views genmd4 sedd ar",
    ),
)
def test_every_system_trains_two_steps_and_leaves_a_folder_that_loads(train, system):
    folder, printed = train("tiny", system)
    settings = yaml.safe_load((CONFIGS / "systems" / f"{system}.yaml").read_text())
    autoregressive = settings.get("objective") == "ar"
    model = (AutoModelForCausalLM if autoregressive else AutoModel).from_pretrained(folder)
    average = load_file(folder / "checkpoint-2" / "ema.safetensors")
    frozen = tuple(settings.get("frozen_modules", ()))
    weights = {
        name: value for name, value in model.state_dict().items() if not name.startswith(frozen)
    }
    assert weights.keys() == average.keys() and all(
        torch.equal(weights[name], average[name]) for name in average
    )
    of_the_run = ("objective", "frozen_modules")
    assert all(
        getattr(model.config, name) == value
        for name, value in settings.items()
        if name not in of_the_run
    )
    if not autoregressive:
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        assert scheduler["block_size"] == settings.get("block_size")
    evaluation = json.loads((folder / "eval_results.json").read_text())
    assert {"eval_nelbo", "eval_nelbo_standard_error", "eval_perplexity"} <= evaluation.keys()
    assert printed.count("--- sample") == 3 and "+- " in printed
    assert (
        ("negative log-likelihood (exact):" in printed)
        == autoregressive
        != ("order bound:" in printed)
    )
    assert ("c2 = 0" in printed) == (settings.get("rate_type") == "learned")


def test_logs_go_to_tensorboard_when_it_is_installed(train):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = train("tiny", report_to="tensorboard")
    events = list(folder.rglob("events.out.tfevents.*"))
    tags = EventAccumulator(str(events[0].parent)).Reload().Tags()["scalars"]
    assert {
        "train/loss",
        "train/velocity",
        "train/rate_ratio",
        "train/phi_grad_norm",
        "eval/nelbo",
    } <= set(tags)


def test_report_to_defaults_to_tensorboard_or_none_and_the_command_line_wins(tmp_path):
    words = ["--config", str(CONFIGS / "tiny.yaml"), "--output_dir", str(tmp_path), "--use_cpu"]
    _, model_args, args = parse_arguments([*words, "--hidden_size", "48", "--learning_rate", "0.5"])
    settings = yaml.safe_load((CONFIGS / "tiny.yaml").read_text())
    assert (model_args.hidden_size, args.learning_rate) == (48, 0.5)
    assert (
        args.head_learning_rate == settings["head_learning_rate"]
        and args.seed == settings["seed"] == args.data_seed
    )
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
        ("hidden_size: 8", ["--config=nowhere.yaml"], "--config nowhere.yaml does not exist"),
    ],
)
def test_unknown_keys_and_files_are_errors_that_name_them(tmp_path, text, words, message):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--config", str(config), *words])


def test_what_cannot_be_trained_on_is_one_line(train, tmp_path):
    with pytest.raises(SystemExit, match="^error: .*nowhere.txt does not exist. Check train_file"):
        train("text8", train_file=tmp_path / "nowhere.txt")


@pytest.mark.parametrize("system, words", [(None, {"c2": 0.9}), ("bd3lm_4", {"block_size": 0})])
def test_the_model_is_checked_before_the_text_is_read_and_a_tokenizer_made(
    train, tmp_path, system, words
):
    with pytest.raises(SystemExit, match=f"^error: (?!.*nowhere).*{next(iter(words))}"):
        train("text8", system, train_file=tmp_path / "nowhere.txt", **words)
    with pytest.raises(SystemExit, match="^error: init_from=.*nothing"):
        train("text8", train_file=tmp_path / "nowhere.txt", init_from=tmp_path / "nothing")
    assert not (tmp_path / "text8/tokenizer").exists()


def test_a_tokenizer_that_a_failed_run_left_is_not_used_for_another_text(train, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("xyz " * 200 + "\n")
    train("text8", train_tokenizer="char", tokenizer="")
    with pytest.raises(
        SystemExit, match="^error: train_tokenizer is 'char', but .* made from another train text"
    ):
        train("text8", train_tokenizer="char", tokenizer="", train_file=other)


def test_values_of_a_file_may_begin_with_a_dash(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        "train_file: -a.txt\nvalidation_file: --b=c.txt\ntokenizer: ''\nuse_cpu: true\noutput_dir: "
        "-out\n"
    )
    data_args, _, args = parse_arguments(["--config", str(config)])
    assert (data_args.train_file, data_args.validation_file, data_args.tokenizer) == (
        "-a.txt",
        "--b=c.txt",
        "",
    )
    assert args.output_dir == "-out"


def test_epochs_of_the_command_line_win_over_the_steps_of_a_file():
    words = ["--config", str(CONFIGS / "tiny.yaml"), "--use_cpu", "--num_train_epochs", "2"]
    assert parse_arguments(words)[2].max_steps == -1
    assert parse_arguments([*words, "--max_steps", "3"])[2].max_steps == 3


def test_lists_dictionaries_numbers_and_empty_values_of_a_file_arrive(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"output_dir: {tmp_path}\nuse_cpu: true\nlearning_rate: 3e-4\nreport_to: "
        "[none]\ntime_epsilon:\nlr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: "
        "{min_lr: 0.1}\npacking: false\n"
    )
    data_args, model_args, args = parse_arguments(["--config", str(config)])
    assert (
        args.learning_rate == 3e-4
        and args.report_to == []
        and args.lr_scheduler_kwargs == {"min_lr": 0.1}
    )
    assert data_args.packing is False and model_args.time_epsilon is None


def test_the_log_and_the_training_metrics_lie_in_the_folder_and_a_finished_run_keeps_them(train):
    folder, _ = train("tiny")
    metrics = json.loads((folder / "train_results.json").read_text())
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 2 and metrics["train_loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)
    assert any("eval_nelbo" in entry for entry in history)
    train("tiny")
    reloaded = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert json.loads((folder / "train_results.json").read_text()) == metrics
    assert [entry["loss"] for entry in reloaded if "loss" in entry] == losses
    assert not any(entry.get("train_loss") == 0 for entry in reloaded)


@pytest.mark.parametrize(
    "config, settings, has_bos, has_eos",
    [
        ("text8", {}, False, True),  # packed: EOS behind every document
        ("text8", {"packing": "false"}, False, False),
        ("tiny", {}, True, True),
        ("moses", {}, False, True),  # filled up with EOS
    ],
)
def test_special_tokens_that_are_in_no_row_are_not_in_the_configuration(
    train, config, settings, has_bos, has_eos
):
    folder, _ = train(config, **settings)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # the Trainer takes them over from the tokenizer
    for place in (folder, folder / "checkpoint-2"):
        stored = json.loads((place / "config.json").read_text())
        assert stored.get("bos_token_id") == (tokenizer.bos_token_id if has_bos else None)
        assert stored.get("eos_token_id") == (tokenizer.eos_token_id if has_eos else None)


LOAD = """
import json, sys
import torch
from diffusers import DiffusionPipeline
from transformers import AutoModel, AutoTokenizer

name = sys.argv[1]
model = AutoModel.from_pretrained(name, trust_remote_code=True)
pipe = DiffusionPipeline.from_pretrained(name, trust_remote_code=True)
ids = pipe(num_inference_steps=4, generator=torch.Generator().manual_seed(0)).sequences.tolist()
vocabulary = [len(AutoTokenizer.from_pretrained(name)), len(pipe.tokenizer)]
print("RESULT", json.dumps([model.lm_head.weight.double().sum().item(), ids, vocabulary]))
"""


def assert_loads_as(folder: Path, actual: list) -> None:
    """What `LOAD` gave elsewhere is what the package makes of `folder`."""
    pipe = LoMDMPipeline.from_pretrained(folder)
    total, ids, vocabulary = actual
    assert total == pipe.model.lm_head.weight.double().sum().item()
    assert (
        ids
        == pipe(
            num_inference_steps=4, generator=torch.Generator().manual_seed(0)
        ).sequences.tolist()
    )
    assert vocabulary == [len(pipe.tokenizer)] * 2


@pytest.mark.slow
def test_the_output_folder_loads_as_model_and_pipeline_without_the_package(train, tmp_path):
    folder, _ = train("tiny")
    assert_loads_as(folder, run_without_package(LOAD, folder, folder=tmp_path))


@pytest.mark.slow
def test_a_push_that_breaks_off_is_completed_by_the_same_command_and_loads_without_the_package(
    tmp_path,
):
    words = {
        **SMALL,
        "output_dir": tmp_path / "out",
        "push_to_hub": "true",
        "hub_model_id": "tester/tiny",
    }
    command = [
        sys.executable,
        str(ROOT / "training_scripts" / "train.py"),
        "--config",
        str(CONFIGS / "tiny.yaml"),
    ]
    command += [word for key, value in words.items() for word in (f"--{key}", str(value))]
    with HubServer() as hub:
        settings = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test"}
        environment = {
            **os.environ,
            **settings,
            "HF_HOME": str(tmp_path / "push"),
            "OMP_NUM_THREADS": "1",
        }
        hub.drop("POST", "/commit/", times=99, after=1000)  # those in the background too
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        output = (
            "ConnectionError: "
            + str(tmp_path / "out")
            + " is written, but was not uploaded to tester/tiny: "
        )
        assert done.returncode == 1 and output in done.stderr and hub.files("tester/tiny") == []
        hub.drops_left = 0
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        repo = hub.find("model", "tester/tiny")
        files = repo.commits[repo.refs["main"]]
        actual = run_without_package(LOAD, "tester/tiny", folder=tmp_path, **settings)
    assert {
        "modeling_lomdm.py",
        "model/config.json",
        "trainer_state.json",
        "eval_results.json",
    } <= files.keys()
    assert not any("checkpoint-" in name for name in files)
    card = files["README.md"]["data"].decode()
    assert 'AutoModel.from_pretrained("tester/tiny"' in card
    assert (
        "custom_code" in card
        and "trained for\n2 optimizer steps" in card
        and "| order bound |" in card
    )
    assert_loads_as(tmp_path / "out", actual)


def test_bf16_configs_need_no_word_about_the_cpu_where_there_is_nothing_else(tmp_path):
    *_, args = parse_arguments(
        ["--config", str(CONFIGS / "tiny.yaml"), "--output_dir", str(tmp_path)]
    )
    assert args.bf16 and args.use_cpu == (not torch.accelerator.is_available())


def test_samples_are_printed_without_the_codes_that_the_model_writes(train, tmp_path):
    (tmp_path / "codes.txt").write_text("\x1b\x07\x9b\u202e\x7f\n\n" * 200, encoding="utf-8")
    words = {"train_file": tmp_path / "codes.txt", "dataset_name": "", "train_tokenizer": "char"}
    _, printed = train("tiny", **words)
    samples = printed.split("--- sample\n", 1)[1]
    assert set(samples) & set("␛␇␡") and not set(printed) & set("\x1b\x07\x9b\u202e\x7f")


def test_a_full_disk_ends_training_in_one_line_and_a_bug_with_its_traceback(train, monkeypatch):
    def fail(error):
        def save_state(_):
            raise error

        monkeypatch.setattr("transformers.Trainer.save_state", save_state)

    fail(OSError(28, "No space left on device"))
    with pytest.raises(SystemExit, match="^error: .*No space left on device$"):
        train("tiny", max_steps=1)
    fail(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        train("tiny", max_steps=1)
