"""training_scripts/evaluate.py: a record and a table for every command."""

import json
import math
import shutil
from functools import partial

import pytest
from safetensors.torch import load_file, save_file
from tiny_evaluation import ROOT, likelihood, write_causal, write_judge
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from hf_lomdm.cli import evaluate
from hf_lomdm.evaluation import generation
from hf_lomdm.visualization import plots

pytest_plugins = ["evaluation_fixtures"]
ENVIRONMENT = {"versions", "device", "dtype", "seed", "commit"}


def test_likelihood_writes_a_record_and_a_table(run, folder, capsys):
    record = run("likelihood", "--file", folder / "text.txt", "--num_samples", "4")
    assert (
        record["task"] == "likelihood"
        and record["source"] == "text.txt"
        and record["documents"] == 3
    )
    # 30 letters and an EOS behind each document, in rows of 6 between BOS and EOS
    assert record["tokens"] == 33 + 2 * 6 and record["n"] == 6 and record["characters"] == 30
    assert record.keys() >= ENVIRONMENT and record["num_samples"] == 4
    out = capsys.readouterr().out
    assert (
        "text.txt: 6 rows, 45 tokens, 3 documents" in out
        and "perplexity" in out
        and "tokens counted" in out
    )


def test_orders_seed_and_dtype_of_the_command_are_those_of_the_measurement(run, folder):
    words = ["--num_orders", "2", "--seed", "5", "--dtype", "float64"]
    record = run("likelihood", "--file", folder / "text.txt", *words)
    assert (record["estimator"], record["seed"], record["dtype"]) == (
        "order bound, 2 orders",
        5,
        "float64",
    )


def test_likelihood_of_documents_and_without_the_order(run, folder):
    packed = run("likelihood", "--file", folder / "text.txt")
    record = run("likelihood", "--file", folder / "text.txt", "--documents", "--stride", "3")
    assert record["n"] == 3 and record["tokens"] == 30 + 2 * 3 and record["groups"] is not None
    plain = run("likelihood", "--file", folder / "text.txt", "--without_order")
    assert plain["velocity"] == pytest.approx(0, abs=1e-6) and packed["velocity"] > 0.001
    assert plain["rows"] == packed["rows"]


def test_likelihood_takes_its_extra_measurements_along(run, folder, capsys, monkeypatch):
    # its own 512 samples take long
    monkeypatch.setattr(evaluate, "exact_gap", partial(evaluate.exact_gap, num_samples=16))
    words = [
        "--pilot",
        "--compare_bounds",
        "--exact_gap",
        "3",
        "--span",
        "--num_texts",
        "4",
        "--max_rows",
        "5",
    ]
    record = run("likelihood", "--file", folder / "text.txt", *words)
    assert record["n"] == 5
    assert record["pilot"]["samples_needed"] >= 1 and record["pilot"]["texts_measured"] == 4
    assert record["compare_bounds"]["time_over_order"] > 0
    assert record["exact_gap"]["positions"] == 3 and record["exact_gap"]["span"]
    out = capsys.readouterr().out
    assert "pilot on 4 of 5 texts" in out and "samples for equal error, time : order = " in out
    assert "3 neighbouring positions of 4 texts" in out and "  time: gap " in out


def test_zero_shot_takes_local_files(run, folder, capsys):
    record = run("zero-shot", "--sets", "ptb", "--file", f"ptb={folder / 'ptb.txt'}")
    likelihood = record["sets"]["ptb"]
    assert (
        record["task"] == "zero-shot"
        and likelihood["tokens"] == 7 + 2 * 2
        and likelihood["source"] == "ptb.txt"
    )
    assert likelihood.keys() >= ENVIRONMENT and "ptb" in capsys.readouterr().out


def test_likelihood_with_a_fitted_density_says_which(run, folder):
    record = run("likelihood", "--file", folder / "text.txt", "--fit_density")
    assert len(record["density"]) == 16 and sum(record["density"]) == pytest.approx(16, abs=0.01)
    assert run("likelihood", "--file", folder / "text.txt")["density"] is None
    with pytest.raises(SystemExit, match="error: --fit_density is for the order bound"):
        run("likelihood", "--file", folder / "text.txt", "--fit_density", "--bound", "time")


def test_a_checkpoint_is_measured_by_its_average(run, folder, tmp_path, capsys):
    shutil.copytree(folder / "model", tmp_path / "checkpoint-1")
    weights = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    save_file(
        {name: 0 * weight for name, weight in weights.items()},
        tmp_path / "checkpoint-1" / "ema.safetensors",
    )
    record = likelihood(tmp_path / "checkpoint-1", folder / "text.txt", tmp_path / "record.json")
    # with all weights zero every token but the mask is as likely
    vocabulary = json.loads((folder / "model" / "config.json").read_text())["vocab_size"]
    assert record["value"] == pytest.approx(math.log(vocabulary - 1), rel=1e-5)
    assert "its averaged weights are measured" in capsys.readouterr().out


def test_autoregressive_models_of_others_read_their_start_token_and_nothing_else(run, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tests" / "fixtures" / "gpt2_tokenizer")
    end = tokenizer.eos_token_id
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=16)
    config.bos_token_id = config.eos_token_id = end
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    (tmp_path / "text.txt").write_text("a dark night\n\nthe rain fell")
    for more in ([], ["--documents"]):
        (tmp_path / "record.json").unlink(missing_ok=True)
        words = [
            "--file",
            str(tmp_path / "text.txt"),
            "--output",
            str(tmp_path / "record.json"),
            "--quiet",
            *more,
        ]
        evaluate.main(["likelihood", "--model", str(tmp_path / "gpt2"), *words])
        record = json.loads((tmp_path / "record.json").read_text())
        tokens = sum(
            len(tokenizer(text)["input_ids"]) for text in ("a dark night", "the rain fell")
        )
        assert record["tokens"] == tokens + 2 * (not more)  # packed documents are separated


def test_generation_takes_autoregressive_models(run, tmp_path):
    write_causal(tmp_path / "ar")
    words = [
        "--model",
        tmp_path / "ar",
        "--judge",
        write_judge(tmp_path / "judge"),
        "--num_samples",
        "6",
    ]
    record = run("generation", *words, "--max_length", "10")
    assert (
        record["sampler"] == "autoregressive"
        and record["value"] > 1
        and record.keys() >= ENVIRONMENT
    )
    assert record["max_length"] == 10 and 0 < record["forward_passes"] <= 10
    options = (["--sampler", "random"], ["--grid", "uniform"], ["--without_order"], ["--sweep"])
    for option in (*options, ["--num_inference_steps", "3"]):
        with pytest.raises(SystemExit, match=f"error: {option[0]} is for diffusion models"):
            run("generation", *words, *option)


def test_generation_and_order_write_records(run, folder, tmp_path, capsys):
    record = run(
        "generation",
        "--judge",
        write_judge(tmp_path / "judge"),
        "--num_samples",
        "3",
        "--num_inference_steps",
        "4",
    )
    assert record["task"] == "generation" and record["value"] > 1 and record.keys() >= ENVIRONMENT
    pytest.importorskip("matplotlib")
    record = run(
        "order", "--file", folder / "text.txt", "--num_samples", "2", "--plots", tmp_path / "plots"
    )
    assert record["task"] == "order" and -1 <= record["value"] <= 1 and record.keys() >= ENVIRONMENT
    assert list((tmp_path / "plots").glob("*.png"))
    assert "plot: " in capsys.readouterr().out


def test_generation_sweeps_the_number_of_steps_and_resumes_each(run, tmp_path, capsys, monkeypatch):
    words = [
        "--judge",
        write_judge(tmp_path / "judge"),
        "--num_samples",
        "3",
        "--max_length",
        "20",
        "--sweep",
    ]
    seen = []
    monkeypatch.setattr(
        generation.PartsFile, "append", lambda self, *_: seen.append(self.path.name)
    )
    record = run("generation", *words)
    assert [step["num_inference_steps"] for step in record["sweep"]] == [8, 16, 20]
    assert record["value"] == record["sweep"][-1]["value"]
    # a text that has ended takes no further passes
    assert record["forward_passes"] <= 20 and record["tokens_per_forward"] == 1
    names = [f"generation-{steps}{kind}.jsonl" for steps in (8, 16, 20) for kind in ("", "-judge")]
    assert seen == names
    assert "8 steps" in capsys.readouterr().out


def test_compare_prints_and_draws(run, folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run("likelihood", "--file", folder / "text.txt")
    first = (tmp_path / "likelihood.json").rename(tmp_path / "learned.json")
    run("likelihood", "--file", folder / "text.txt", "--without_order")
    capsys.readouterr()
    evaluate.main(
        [
            "--compare",
            str(first),
            str(tmp_path / "likelihood.json"),
            "--plot",
            str(tmp_path / "both.png"),
        ]
    )
    out = capsys.readouterr().out
    assert (
        "learned" in out.splitlines()[0]
        and "(paired)" in out
        and (tmp_path / "both.png").stat().st_size > 5_000
    )


def test_order_records_of_checkpoints_are_drawn_over_steps(
    run, folder, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("matplotlib")
    seen, draw = [], plots.plot_order_over_steps
    monkeypatch.setattr(
        plots,
        "plot_order_over_steps",
        lambda records, path: (seen.append(records), draw(records, path)),
    )
    paths = []
    for step in (200, 30):
        model = tmp_path / "run" / f"checkpoint-{step}"
        model.parent.mkdir(exist_ok=True)
        model.symlink_to(folder / "model", target_is_directory=True)
        run("order", "--model", model, "--file", folder / "text.txt", "--num_samples", "2")
        paths.append(str((tmp_path / "order.json").rename(tmp_path / f"order-{step}.json")))
    evaluate.main(["--compare", *paths, "--plot", str(tmp_path / "pictures/steps.png")])
    assert [list(records) for records in seen] == [[200, 30]] and seen[0][30]["model"].endswith(
        "checkpoint-30"
    )
    assert (tmp_path / "pictures/steps.png").stat().st_size > 5_000
    # other records are compared as ever: of another run, of one step, of no checkpoint
    first = {"task": "order", "model": "a/checkpoint-1"}
    for other in ({"model": "b/checkpoint-2"}, {"model": "a/checkpoint-1"}, {"model": "a/final"}):
        assert evaluate.checkpoints_by_step({"x": first, "y": first | other}) == {}
    assert evaluate.checkpoints_by_step({"x": first}) == {}
