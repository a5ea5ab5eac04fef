"""training_scripts/evaluate.py: what cannot be evaluated is a one-line error with its remedy."""

import pytest
from tiny_evaluation import write_causal
from transformers import BertConfig, BertForMaskedLM

from conftest import build_model
from hf_lomdm.cli import evaluate
from tiny_tokenizer import build_tokenizer

pytest_plugins = ["evaluation_fixtures"]


def test_errors_are_one_line_and_say_what_to_do(run, folder, tmp_path):
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
        evaluate.main(
            ["likelihood", "--model", str(tmp_path / "none"), "--file", str(folder / "text.txt")]
        )
    with pytest.raises(SystemExit, match="error: .*is no record"):
        evaluate.main(["--compare", str(tmp_path / "none.json")])
    (tmp_path / "part.json").write_text('{"task": "likelihood"}')
    with pytest.raises(
        SystemExit, match="error: --compare: a record is not one of this script, or not whole"
    ):
        evaluate.main(["--compare", str(tmp_path / "part.json")])
    with pytest.raises(SystemExit, match="2"):  # argparse says the rest
        evaluate.main([])


def test_numbers_out_of_range_are_refused_before_anything_is_read(capsys):
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
            evaluate.main([command, "--model", "nothing", "--file", "nothing", option, value])
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


def test_a_masked_language_model_is_not_measured_as_an_autoregressive_one(run, folder, tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = BertConfig(vocab_size=11, intermediate_size=8, **sizes)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    build_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(SystemExit, match="cannot be loaded: the model is a BertLMHeadModel"):
        run("likelihood", "--file", folder / "text.txt", "--model", tmp_path / "bert")


def test_a_file_that_is_not_there_is_named_with_the_option_of_this_script(run):
    for words in (("likelihood",), ("order",), ("sudoku",)):
        with pytest.raises(
            SystemExit, match="error: --file nope.txt does not exist. Check the path.$"
        ):
            run(*words, "--file", "nope.txt")
    with pytest.raises(SystemExit, match="error: --file nope.txt does not exist"):
        run("zero-shot", "--file", "ptb=nope.txt")
