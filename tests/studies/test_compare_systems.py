"""studies/family/compare_systems.py: what a budget buys, and a comparison of two systems from start
to table."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import datasets
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPTNeoXForCausalLM

from hf_lomdm.evaluation.causal import causal_token_losses
from hf_lomdm.training.arguments import ModelArguments
from hf_lomdm.training.models import causal_config

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "training_scripts" / "configs" / "tiny.yaml"
sys.path.insert(0, str(ROOT / "studies" / "family"))  # which a script has by itself
SPECIFICATION = importlib.util.spec_from_file_location(
    "compare_systems", ROOT / "studies" / "family" / "compare_systems.py"
)
script = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(script)

SMALL = [
    "--hidden_size",
    "16",
    "--num_hidden_layers",
    "1",
    "--num_attention_heads",
    "2",
    "--max_length",
    "16",
    "--max_train_rows",
    "32",
    "--max_validation_rows",
    "8",
    "--per_device_train_batch_size",
    "4",
    "--per_device_eval_batch_size",
    "4",
    "--warmup_steps",
    "1",
    "--save_steps",
    "2",
    "--logging_steps",
    "1",
    "--bf16",
    "false",
    "--use_cpu",
    "true",
    "--report_to",
    "none",
    "--disable_tqdm",
    "true",
]


def parse(folder: Path, *words: str) -> tuple[argparse.Namespace, list[str]]:
    """Options for runs in `folder`, on whose command line `words` are the last."""
    places = ["--output_dir", str(folder / "runs"), "--output", str(folder / "compare.json")]
    return script.parse_options(
        ["--config", str(CONFIG), "--budget", "tokens=200", *places, *SMALL, *words]
    )


@pytest.mark.parametrize("kind", ["tokens", "flops", "seconds"])
def test_a_budget_is_a_kind_and_a_number(kind):
    assert script.parse_budget(f"{kind}=2.5e3") == (kind, 2500.0)


@pytest.mark.parametrize(
    "text", ["tokens", "tokens=", "tokens=many", "tokens=0", "flops=-1", "seconds=inf", "steps=5"]
)
def test_a_budget_that_cannot_be_spent_is_an_error_that_shows_it(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"got '{text}'"):
        script.parse_budget(text)


@pytest.mark.parametrize(
    "amount, cost, steps", [(1000, 100, 10), (999, 100, 9), (1001, 100, 10), (0.3, 0.1, 3)]
)
def test_a_budget_buys_whole_steps_and_is_never_exceeded_by_more_than_rounding(amount, cost, steps):
    assert script.steps_within(script.Budget("tokens", amount), cost) == steps


def test_a_budget_below_one_step_is_an_error_that_names_the_cost():
    with pytest.raises(
        ValueError, match="flops=5 is less than one optimizer step, which costs 12 flops"
    ):
        script.steps_within(script.Budget("flops", 5.0), 12.0)


def test_tokens_of_a_step_are_those_of_its_texts_without_padding(tmp_path):
    options, words = parse(tmp_path, "--systems", "mdlm", "--gradient_accumulation_steps", "3")
    (run,) = script.make_runs(options, words)
    rows = datasets.Dataset.from_dict({"input_ids": [[1] * 16, [1] * 4, [1] * 7]})
    # rows of 16, 4 and 7 tokens, 9 on average
    assert script.tokens_per_step(run.training, rows) == 4 * 3 * 9


def test_a_step_lasts_what_the_longer_probe_takes_more():
    fewer, more = script.PROBE_STEPS
    assert script.step_seconds(7 + 0.25 * fewer, 7 + 0.25 * more) == pytest.approx(0.25, rel=1e-12)
    assert script.step_seconds(3.0, 2.0) == 2.0 / more  # noise: no negative time


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 200, "mask_token_id": 199}
FAMILY = {
    "mdlm": {"rate_type": "uniform"},
    "sedd": {"rate_type": "score"},
    "genmd4": {"rate_type": "token"},
    "lomdm": {"rate_type": "learned"},
    "bd3lm": {"rate_type": "uniform", "block_size": 8},
    "bd3lm_two_views": {"rate_type": "uniform", "block_size": 8, "num_views": 2},
    "block_lomdm": {"rate_type": "learned", "block_size": 8},
}


@pytest.mark.parametrize("system", FAMILY)
def test_flops_of_a_step_are_those_that_torch_counts(make_model, system):
    # eager attention is made of plain products, which the counter of torch sees in every pass; 3 %:
    # weights that are added and not multiplied (biases, norms), and shares of masked positions
    # other than a half
    model = make_model(**SIZES, **FAMILY[system], attn_implementation="eager").train()
    ids = torch.randint(3, 199, (64, 32), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, generator=torch.Generator().manual_seed(1)).loss.backward()
    assert script.flops.training(model.config, 32) == pytest.approx(
        counter.get_total_flops() / ids.numel(), rel=0.03
    )


def test_flops_of_an_autoregressive_step_are_those_that_torch_counts():
    arguments = ModelArguments(
        objective="ar", hidden_size=32, num_hidden_layers=3, num_attention_heads=2, dropout=0.0
    )
    tokens = {
        "vocab_size": 200,
        "mask_token_id": 199,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = causal_config(arguments, 32, tokens)
    config._attn_implementation = "eager"
    model = GPTNeoXForCausalLM(config).train()
    ids = torch.randint(3, 199, (4, 32), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        causal_token_losses(model, ids, None, ids, 199).sum().backward()
    assert script.flops.training(model.config, 32) == pytest.approx(
        counter.get_total_flops() / ids.numel(), rel=0.03
    )


@pytest.mark.parametrize(
    "words, message",
    [
        (["--max_steps", "5"], "--max_steps is set by --budget"),
        (["--num-train-epochs=5"], "--num_train_epochs is set by --budget"),
        (["--systems", "mdlm", "ar", "mdlm"], "--systems mdlm ar mdlm has a name twice"),
        (["--systems", "nothing"], "nothing.yaml does not exist"),
        (["--hiden_size", "5"], "Unknown argument '--hiden_size'"),
    ],
)
def test_options_that_cannot_be_compared_are_errors(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        script.make_runs(*parse(tmp_path, *words))


def test_the_record_of_all_does_not_replace_that_of_one(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(tmp_path, "--systems", "lomdm", "--output", str(tmp_path / "runs" / "lomdm.json"))
    assert "is the place of the record of that system alone" in capsys.readouterr().err


def test_a_system_that_changes_the_text_is_refused(tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("rate_type: uniform\ntrain_tokenizer: byte\n")
    with pytest.raises(ValueError, match="other.yaml changes the text or its rows"):
        script.make_runs(*parse(tmp_path, "--systems", "mdlm", str(other)))


def test_a_plan_is_kept_and_one_of_other_settings_is_refused(tmp_path, make_model):
    options, words = parse(tmp_path, "--systems", "mdlm")
    (run,) = script.make_runs(options, words)
    model = make_model(rate_type="uniform")
    plan = script.planned_steps(run, options, model, tokens=64.0)
    assert (plan["steps"], plan["train_tokens"], plan["parameters"]) == (
        3,
        192.0,
        model.num_parameters(),
    )
    assert plan["train_flops"] == pytest.approx(192 * script.flops.training(model.config, 16))
    assert script.planned_steps(run, options, model, tokens=1.0) == plan  # not planned anew
    options, words = parse(tmp_path, "--systems", "mdlm", "--seed", "5")
    with pytest.raises(ValueError, match="mdlm.plan.json is of other settings"):
        script.planned_steps(*script.make_runs(options, words), options, model, tokens=64.0)


@pytest.mark.parametrize("kind, amount, steps", [("flops", 1000.0, 7), ("seconds", 3.5, 14)])
def test_the_steps_of_a_plan_follow_from_the_kind_of_the_budget(
    tmp_path, make_model, monkeypatch, kind, amount, steps
):
    options, words = parse(tmp_path, "--systems", "mdlm", "--budget", f"{kind}={amount}")
    monkeypatch.setattr(script, "measure_step", lambda run: 0.25)
    monkeypatch.setattr(script.flops, "training", lambda config, length: 2.0)
    (run,) = script.make_runs(options, words)
    # 128 operations a step
    assert script.planned_steps(run, options, make_model(), tokens=64.0)["steps"] == steps


@pytest.mark.slow
def test_two_systems_from_start_to_table_and_nothing_is_done_twice(tmp_path, capfd):
    words = ["--config", str(CONFIG), "--systems", "mdlm", "ar", "--budget", "tokens=200", *SMALL]
    words += ["--output_dir", str(tmp_path / "runs"), "--output", str(tmp_path / "compare.json")]
    script.main(words)
    printed = capfd.readouterr().out
    mdlm, ar = (
        json.loads((tmp_path / "runs" / f"{name}.json").read_text()) for name in ("mdlm", "ar")
    )
    actual = json.loads((tmp_path / "compare.json").read_text())["systems"]
    assert mdlm["rows"] == ar["rows"] and mdlm["tokens"] == ar["tokens"] == 8 * 16
    assert mdlm["steps"] == ar["steps"] == 3  # 4 rows of 16 tokens each
    assert (
        json.loads((tmp_path / "runs" / "ar" / "trainer_state.json").read_text())["global_step"]
        == 3
    )
    assert "finished before" not in printed and printed.count("(paired)") == 1
    # equal rows
    assert actual["ar"]["minus_first"]["value"] == pytest.approx(
        ar["value"] - mdlm["value"], abs=1e-9
    )
    assert actual["mdlm"]["minus_first"]["value"] == 0 and "per_text" not in actual["mdlm"]
    log = json.loads((tmp_path / "runs" / "ar" / "trainer_state.json").read_text())["log_history"]
    assert (
        actual["ar"]["curve"]
        == [[line["step"], line["loss"]] for line in log if "loss" in line]
        != []
    )

    (tmp_path / "runs" / "ar.json").unlink()  # as if killed before the record was there
    weights = {
        name: (tmp_path / "runs" / name / "model.safetensors").stat().st_mtime_ns
        for name in ("mdlm", "ar")
    }
    results = (tmp_path / "runs" / "ar" / "train_results.json").stat().st_mtime_ns
    script.main(words)
    assert capfd.readouterr().out.count("finished before") == 1
    reloaded = json.loads((tmp_path / "runs" / "ar.json").read_text())
    assert reloaded["value"] == ar["value"] and reloaded["per_text"] == ar["per_text"]
    assert (tmp_path / "runs" / "mdlm" / "model.safetensors").stat().st_mtime_ns == weights["mdlm"]
    # no step was trained anew
    assert (tmp_path / "runs" / "ar" / "train_results.json").stat().st_mtime_ns == results
