"""training_scripts/evaluate.py: a record, a table and clear errors for every command."""

import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)

from conftest import build_model
from hf_lomdm.cli import evaluate
from hf_lomdm.data.tokenizers import train_tokenizer
from hf_lomdm.evaluation import generation
from hf_lomdm.visualization import plots
from tiny_tokenizer import build_tokenizer

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"versions", "device", "dtype", "seed", "commit"}


@pytest.fixture(scope="module")
def script():
    return evaluate


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
def run(script, folder, tmp_path):
    """Runs a command and returns its record."""

    def call(command: str, *words: str) -> dict:
        output = tmp_path / f"{command}.json"
        output.unlink(missing_ok=True)
        common = ["--model", str(folder / "model"), "--output", str(output), "--quiet"]
        script.main([command, *common, *map(str, words)])
        assert not output.with_name(output.name + ".parts").exists()
        return json.loads(output.read_text())

    return call


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


def test_likelihood_takes_its_extra_measurements_along(run, folder, capsys):
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


def write_judge(path: Path) -> Path:
    config = GPT2Config(
        vocab_size=261,
        n_positions=32,
        n_embd=8,
        n_layer=1,
        n_head=1,
        bos_token_id=1,
        eos_token_id=2,
    )
    GPT2LMHeadModel(config).save_pretrained(path)
    train_tokenizer("byte", []).save_pretrained(path)
    return path


def write_causal(path: Path) -> None:
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 16,
    }
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=11, max_position_embeddings=12, **ids, **sizes)
    ).save_pretrained(path)
    build_tokenizer().save_pretrained(path)


def test_a_checkpoint_is_measured_by_its_average(run, folder, script, tmp_path, capsys):
    shutil.copytree(folder / "model", tmp_path / "checkpoint-1")
    weights = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    save_file(
        {name: 0 * weight for name, weight in weights.items()},
        tmp_path / "checkpoint-1" / "ema.safetensors",
    )
    words = [
        "--file",
        str(folder / "text.txt"),
        "--output",
        str(tmp_path / "record.json"),
        "--quiet",
    ]
    script.main(["likelihood", "--model", str(tmp_path / "checkpoint-1"), *words])
    record = json.loads((tmp_path / "record.json").read_text())
    # with all weights zero every token but the mask is as likely
    vocabulary = json.loads((folder / "model" / "config.json").read_text())["vocab_size"]
    assert record["value"] == pytest.approx(math.log(vocabulary - 1), rel=1e-5)
    assert "its averaged weights are measured" in capsys.readouterr().out


def test_autoregressive_models_of_others_read_their_start_token_and_nothing_else(
    run, script, tmp_path
):
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
        script.main(["likelihood", "--model", str(tmp_path / "gpt2"), *words])
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


def test_generation_sweeps_the_number_of_steps_and_resumes_each(
    run, script, tmp_path, capsys, monkeypatch
):
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


def test_compare_prints_and_draws(script, run, folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run("likelihood", "--file", folder / "text.txt")
    first = (tmp_path / "likelihood.json").rename(tmp_path / "learned.json")
    run("likelihood", "--file", folder / "text.txt", "--without_order")
    capsys.readouterr()
    script.main(
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
    script, run, folder, tmp_path, monkeypatch, capsys
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
    script.main(["--compare", *paths, "--plot", str(tmp_path / "pictures/steps.png")])
    assert [list(records) for records in seen] == [[200, 30]] and seen[0][30]["model"].endswith(
        "checkpoint-30"
    )
    assert (tmp_path / "pictures/steps.png").stat().st_size > 5_000
    # other records are compared as ever: of another run, of one step, of no checkpoint
    first = {"task": "order", "model": "a/checkpoint-1"}
    for other in ({"model": "b/checkpoint-2"}, {"model": "a/checkpoint-1"}, {"model": "a/final"}):
        assert script.checkpoints_by_step({"x": first, "y": first | other}) == {}
    assert script.checkpoints_by_step({"x": first}) == {}


def test_errors_are_one_line_and_say_what_to_do(script, run, folder, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "n.jsonl").write_text('{"text": 1}\n')
    for words, message in [
        (("likelihood", "--file", tmp_path / "empty.txt"), "error: .*is empty"),
        (("likelihood", "--file", tmp_path / "latin.txt"), "error: .*not UTF-8"),
        (
            ("likelihood", "--file", folder / "text.txt", "--bound", "both"),
            "error: bound must be one of",
        ),
        (("zero-shot", "--file", "ptp=x"), "error: --file ptp=x: 'ptp' must be one of --sets"),
        (
            ("likelihood", "--file", tmp_path / "n.jsonl"),
            "error: column 'text' of .* must hold strings, line 1 holds 1",
        ),
        (
            ("generation", "--judge", tmp_path / "none"),
            "error: --judge .*none cannot be loaded: there is no",
        ),
        (
            ("generation", "--judge", tmp_path / "none.gguf"),
            "error: --judge .*none.gguf does not exist",
        ),
        (
            ("likelihood", "--file", folder / "text.txt", "--tokenizer", tmp_path / "none"),
            "error: --tokenizer .*none cannot be loaded: there is no such folder",
        ),
    ]:
        with pytest.raises(SystemExit, match=message):
            run(*words)
    with pytest.raises(
        SystemExit, match="error: --model .*none cannot be loaded: there is no such folder"
    ):
        script.main(
            ["likelihood", "--model", str(tmp_path / "none"), "--file", str(folder / "text.txt")]
        )
    with pytest.raises(SystemExit, match="error: .*is no record"):
        script.main(["--compare", str(tmp_path / "none.json")])
    (tmp_path / "part.json").write_text('{"task": "likelihood"}')
    with pytest.raises(
        SystemExit, match="error: --compare: a record is not one of this script, or not whole"
    ):
        script.main(["--compare", str(tmp_path / "part.json")])
    with pytest.raises(SystemExit, match="2"):  # argparse says the rest
        script.main([])


def test_numbers_out_of_range_are_refused_before_anything_is_read(script, capsys):
    for command, option, value in [
        ("likelihood", "--max_rows", "-1"),
        ("likelihood", "--max_rows", "0"),
        ("likelihood", "--stride", "0"),
        ("likelihood", "--num_samples", "0"),
        ("likelihood", "--num_orders", "-1"),
        ("likelihood", "--batch_tokens", "0"),
        ("likelihood", "--exact_gap", "0"),
        ("likelihood", "--exact_gap", "15"),
        ("likelihood", "--num_texts", "-1"),
        ("likelihood", "--seed", "-1"),
        ("likelihood", "--seed", "nan"),
        ("likelihood", "--file", ""),
        ("likelihood", "--output", ""),
        ("zero-shot", "--max_rows", "-1"),
        ("zero-shot", "--num_samples", "1.5"),
        ("generation", "--batch_size", "0"),
        ("generation", "--num_samples", "0"),
        ("generation", "--max_length", "0"),
        ("generation", "--num_inference_steps", "-3"),
        ("order", "--num_samples", "0"),
        ("sudoku", "--start", "-1"),
        ("sudoku", "--max_rows", "-1"),
        ("sudoku", "--clues", "82"),
        ("sudoku", "--batch_size", "0"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            script.main([command, "--model", "nothing", "--file", "nothing", option, value])
        assert f"argument {option}: must be " in capsys.readouterr().err


def test_options_that_would_do_nothing_are_refused(run, folder, tmp_path):
    text = ("--file", folder / "text.txt")
    (tmp_path / "rows.jsonl").write_text('{"text": "abc"}\n')
    for words, message in [
        (("likelihood", *text, "--stride", "3"), "--stride needs --documents"),
        (("order", *text, "--stride", "3"), "--stride needs --documents"),
        (("likelihood", *text, "--span"), "--span needs --exact_gap"),
        (
            ("likelihood", *text, "--num_texts", "4"),
            "--num_texts needs --pilot or --fit_density or",
        ),
        (
            ("likelihood", "--file", tmp_path / "rows.jsonl", "--sample_by", "line"),
            "--sample_by is for .txt files",
        ),
        (
            ("generation", "--sweep", "--num_inference_steps", "4"),
            "--num_inference_steps is set by --sweep",
        ),
        (("zero-shot", "--file", "ptb"), "--file must be SET=PATH, got 'ptb'"),
        (("zero-shot", "--file", "ptb="), "--file must be SET=PATH, got 'ptb='"),
        (
            ("zero-shot", "--sets", "lambada", "--file", "ptb=x"),
            ".*'ptb' must be one of --sets, once: lambada",
        ),
        (
            ("zero-shot", "--file", f"ptb={folder / 'ptb.txt'}", "--file", "ptb=x"),
            ".*must be one of --sets, once",
        ),
    ]:
        with pytest.raises(SystemExit, match=f"error: {message}"):
            run(*words)


def test_options_of_bounds_are_refused_for_models_without(run, folder, tmp_path):
    build_model(max_position_embeddings=8, rate_type="uniform").save_pretrained(tmp_path / "mdlm")
    write_causal(tmp_path / "ar")
    build_tokenizer().save_pretrained(tmp_path / "mdlm")
    text = ("--file", folder / "text.txt")
    with pytest.raises(
        SystemExit,
        match="error: --without_order is for learned rates, and those of .* are 'uniform'",
    ):
        run("likelihood", *text, "--model", tmp_path / "mdlm", "--without_order")
    options = (
        ["--bound", "time"],
        ["--num_samples", "3"],
        ["--num_orders", "2"],
        ["--seed", "1"],
        ["--without_order"],
    )
    for option in (
        *options,
        ["--pilot"],
        ["--fit_density"],
        ["--compare_bounds"],
        ["--exact_gap", "2"],
    ):
        with pytest.raises(
            SystemExit,
            match=f"error: {option[0]} is for diffusion models, and .*ar is autoregressive",
        ):
            run("likelihood", *text, "--model", tmp_path / "ar", *option)


def test_a_file_that_is_not_there_is_named_with_the_option_of_this_script(run):
    for words in (("likelihood",), ("order",), ("sudoku",)):
        with pytest.raises(
            SystemExit, match="error: --file nope.txt does not exist. Check the path.$"
        ):
            run(*words, "--file", "nope.txt")
    with pytest.raises(SystemExit, match="error: --file nope.txt does not exist"):
        run("zero-shot", "--file", "ptb=nope.txt")


def test_default_names_carry_model_and_data(script, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "model", "runs/other")
    shutil.copy(folder / "text.txt", "more.txt")
    for model, file in [
        (folder / "model", folder / "text.txt"),
        ("runs/other", "more.txt"),
        ("runs/other", "more.txt"),
    ]:
        script.main(["likelihood", "--model", str(model), "--file", str(file), "--quiet"])
    script.main(
        ["zero-shot", "--model", "runs/other", "--sets", "ptb", "--file", "ptb=more.txt", "--quiet"]
    )
    names = sorted(path.name for path in Path("outputs/evaluation").iterdir())
    first = f"likelihood-{folder.name}-model-{folder.name}-text.txt.json"
    assert names == [first, "likelihood-runs-other-more.txt.json", "zero-shot-runs-other-ptb.json"]
    for words, name in [
        (
            ["generation", "--model", "org/big", "--judge", "/models/a b.gguf"],
            "generation-org-big-models-a-b.gguf.json",
        ),
        (["zero-shot", "--model", "m"], "zero-shot-m-all.json"),
        (["sudoku", "--model", "m", "--file", "x/17.csv"], "sudoku-m-x-17.csv.json"),
    ]:
        assert script.default_output(script.parse_arguments(words)) == f"outputs/evaluation/{name}"


def test_no_record_is_replaced_by_one_of_something_else(script, folder, tmp_path, capsys):
    output, model = tmp_path / "record.json", tmp_path / "other"
    shutil.copytree(folder / "model", model)

    def call(model, *words):
        script.main(
            [
                "likelihood",
                "--model",
                str(model),
                "--output",
                str(output),
                "--quiet",
                *map(str, words),
            ]
        )

    text = ("--file", folder / "text.txt")
    call(folder / "model", *text)
    before = output.read_text()
    call(folder / "model", *text, "--batch_tokens", "8")  # the same measurement
    assert output.read_text() != before  # by its clock
    before = output.read_text()
    for other, message in [
        ((model, *text), f"its model is '{folder / 'model'}', not '{model}'"),
        (
            (folder / "model", "--file", folder / "ptb.txt"),
            "its options is {'file': .*text.txt'}, not {'file': .*ptb.txt'}",
        ),
        (
            (folder / "model", *text, "--without_order"),
            "its options is {}, not {'without_order': True}",
        ),
    ]:
        with pytest.raises(
            SystemExit, match=f"error: --output .*is the record of something else: {message}"
        ):
            call(*other)
    output.with_name("notes.json").write_text("mine")
    with pytest.raises(SystemExit, match="error: --output .*notes.json is there and no record"):
        call(folder / "model", *text, "--output", output.with_name("notes.json"))
    assert output.read_text() == before and output.with_name("notes.json").read_text() == "mine"
    with pytest.raises(SystemExit, match="error: --output .* is a folder"):
        call(folder / "model", *text, "--output", tmp_path)
    capsys.readouterr()


def test_parts_beside_a_record_that_are_of_somebody_else_stay(script, folder, tmp_path):
    other = tmp_path / "record.json.parts" / "mine.jsonl"
    other.parent.mkdir()
    other.write_text('{"text": "abc"}\n')
    words = [
        "--file",
        str(folder / "text.txt"),
        "--output",
        str(tmp_path / "record.json"),
        "--quiet",
    ]
    script.main(["likelihood", "--model", str(folder / "model"), *words])
    assert [path.name for path in other.parent.iterdir()] == ["mine.jsonl"]


def test_pictures_are_not_replaced_by_those_of_another_record(script, run, folder, tmp_path):
    pytest.importorskip("matplotlib")
    words = [
        "order",
        "--model",
        str(folder / "model"),
        "--file",
        str(folder / "text.txt"),
        "--num_samples",
        "2",
    ]
    words += ["--plots", str(tmp_path / "plots"), "--quiet", "--output"]
    script.main([*words, str(tmp_path / "a.json")])
    script.main([*words, str(tmp_path / "a.json")])  # the same again
    with pytest.raises(SystemExit, match="error: --plots .*plots holds pictures of another record"):
        script.main([*words, str(tmp_path / "b.json")])
    picture = tmp_path / "mine.png"
    picture.write_text("mine")
    with pytest.raises(SystemExit, match="error: --plot .*mine.png is there already"):
        script.main(["--compare", str(tmp_path / "a.json"), "--plot", str(picture)])
    assert picture.read_text() == "mine"
    with pytest.raises(SystemExit, match="error: --plot .*mine must end in the format"):
        script.main(["--compare", str(tmp_path / "a.json"), "--plot", str(picture.with_suffix(""))])
    with pytest.raises(SystemExit, match="2"):
        script.main(["--plot", "x.png", *words, str(tmp_path / "a.json")])


def test_a_record_goes_to_a_device_without_parts_beside_it(script, folder, capfd):
    words = [
        "likelihood",
        "--model",
        str(folder / "model"),
        "--file",
        str(folder / "text.txt"),
        "--quiet",
        "--output",
    ]
    script.main([*words, "/dev/null"])
    assert Path("/dev/null").is_char_device() and not Path("/dev/null.parts").exists()
    capfd.readouterr()
    script.main([*words, "/dev/stdout"])
    assert '"task": "likelihood"' in capfd.readouterr().out


@pytest.mark.slow
def test_a_killed_evaluation_loses_no_finished_row(run, folder, tmp_path):
    """`kill -9` in the middle: no record, the rows on disk are not computed again, the values are
    those of one go."""
    (tmp_path / "text.txt").write_text(
        "\n\n".join("abcdefg"[i % 7 :] + "gfedcba" * 3 for i in range(40))
    )
    words = ["--file", str(tmp_path / "text.txt"), "--num_samples", "16", "--batch_tokens", "8"]
    script, output = str(ROOT / "training_scripts/evaluate.py"), tmp_path / "killed.json"
    command = [
        sys.executable,
        script,
        "likelihood",
        "--model",
        str(folder / "model"),
        "--output",
        str(output),
        *words,
    ]
    parts = tmp_path / "killed.json.parts/likelihood.jsonl"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (parts.exists() and parts.read_bytes().count(b"\n") > 5):
        assert process.poll() is None, "the evaluation ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9 and not output.exists()
    finished = parts.read_bytes().count(b"\n") - 1
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    record, whole = json.loads(output.read_text()), run("likelihood", *words)
    assert 5 <= finished < record["n"] and not parts.parent.exists()
    # the bar
    assert (
        f"/{record['n'] - finished} " in done.stderr
        or f"/{record['n'] - finished - 1} " in done.stderr
    )
    assert record["per_text"] == whole["per_text"] and record["value"] == whole["value"]
