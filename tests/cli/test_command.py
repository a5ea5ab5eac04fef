"""The command `lomdm`: its pages, its words, and one line for a mistake."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lomdm_command

ROOT = Path(__file__).parents[2]
SMALL = ["--hidden_size", "16", "--num_hidden_layers", "1", "--max_steps", "2", "--bf16", "false"]
QUIET = ["--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true", "--eval_steps", "2"]
OPTION = re.compile(r"(?<![\w-])--[a-z_]+[a-z]")


@pytest.fixture(scope="module")
def write_help():
    path = ROOT / "tools" / "write_help.py"
    spec = importlib.util.spec_from_file_location("write_help", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_of_help_name_the_options_that_there_are(write_help):
    pages = write_help.pages()
    assert pages.keys() == {"lomdm", *lomdm_command.COMMANDS}
    for name, text in pages.items():
        kept = (lomdm_command.HELP / f"{name}.txt").read_text(encoding="utf-8")
        if name in ("lomdm", "train", "finetune"):  # argparse wraps lines by version
            assert kept == text, "run tools/write_help.py"
        assert set(OPTION.findall(kept)) == set(OPTION.findall(text)), "run tools/write_help.py"
        assert len(kept.splitlines()) <= 100 and max(map(len, kept.splitlines())) <= 150


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"], ["evaluate", "x", "-h"]])
def test_help_needs_no_torch(words):
    code = "import sys; sys.modules['torch'] = None; import lomdm_command; lomdm_command.main()"
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: lomdm") and not done.stderr


def test_a_command_that_does_not_exist_is_one_line():
    with pytest.raises(SystemExit, match="^error: lomdm has no command 'write'. It has train, "):
        lomdm_command.main(["write"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sample", "here", "--seed", "1"], ["--model", "here", "--seed", "1"]),
        (["sample", "--model", "here"], ["--model", "here"]),
        (["convert", "a.ckpt"], ["--checkpoint", "a.ckpt"]),
        (["evaluate", "order", "here", "--quiet"], ["order", "--model", "here", "--quiet"]),
        (["evaluate", "--compare", "a.json", "b.json"], ["--compare", "a.json", "b.json"]),
        (["evaluate", "order", "--model", "here"], ["order", "--model", "here"]),
        (["train", "--help-all"], ["--help"]),
    ],
)
def test_the_first_word_is_what_a_command_works_on(monkeypatch, words, expected):
    seen = []
    module = importlib.import_module(f"hf_lomdm.cli.{words[0]}")
    monkeypatch.setattr(module, "main", lambda: seen.append(sys.argv))
    monkeypatch.setattr(sys, "argv", ["lomdm"])
    lomdm_command.main(words)
    assert seen == [[f"lomdm {words[0]}", *expected]]


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A text of one's own in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "my.txt"
    path.write_text("the cat sat on the mat\n\nthe dog lay on the log\n\n" * 60)
    return path


def run(*words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lomdm"])
    lomdm_command.main([*words])


def test_a_text_alone_is_trained_sampled_and_talked_to(text, monkeypatch, capsys):
    run("train", "my.txt", *SMALL, *QUIET, monkeypatch=monkeypatch)
    assert (text.parent / "outputs/my/model.safetensors").is_file()
    assert "validation" in capsys.readouterr().out  # a share of the text is held out
    words = ["--max_length", "8", "--num_inference_steps", "2"]
    run("sample", "outputs/my", *words, monkeypatch=monkeypatch)
    assert "--- text 1, seed 0" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="has no chat template. Use lomdm sample"):
        run("chat", "outputs/my", monkeypatch=monkeypatch)


@pytest.mark.parametrize("config", ["tiny", "enwiki"])
def test_a_text_on_the_command_line_replaces_that_of_a_configuration(text, monkeypatch, config):
    from hf_lomdm.training.parsing import parse_arguments

    path = str(ROOT / f"training_scripts/configs/{config}.yaml")
    data, _, args = parse_arguments(["--config", path, "--train_file", str(text), "--use_cpu"])
    assert (data.train_file, data.dataset_name, data.validation_file) == (str(text), None, None)
    assert args.output_dir == f"outputs/{config}" and data.train_tokenizer
    words = ["--config", path, "--train_file", str(text), "--validation_file", str(text)]
    assert parse_arguments([*words, "--use_cpu"])[0].validation_file == str(text)


def test_a_chat_answers_line_by_line(tmp_path, monkeypatch, capsys):
    import io

    from conftest import build_model
    from hf_lomdm import LoMDMPipeline, LoMDMScheduler
    from tiny_tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.unk_token = "<pad>"
    pipe = LoMDMPipeline(build_model(), LoMDMScheduler(mask_token_id=10), tokenizer)
    pipe.save_pretrained(tmp_path / "model")
    answers = []
    for _ in range(2):
        # the second line is of characters that the tokenizer does not know
        monkeypatch.setattr(sys, "stdin", io.StringIO("abc\n\u96ea\ncab\n\nnever read\n"))
        options = ["--max_new_tokens", "6", "--system", "be", "--seed", "3"]
        run("chat", str(tmp_path / "model"), *options, monkeypatch=monkeypatch)
        out, err = capsys.readouterr()
        answers.append(out.splitlines())
        assert err.count("error: ") == 1 and "\u96ea" in err
    assert answers[0] == answers[1] and len(answers[0]) == 2  # two lines, two answers, one seed
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc\ncab\n"))
    run("chat", str(tmp_path / "model"), *options, monkeypatch=monkeypatch)
    assert capsys.readouterr().out.splitlines() == answers[0]  # as if it had not been said


def test_a_missing_extra_is_one_line(monkeypatch):
    for name in ("gradio", "hf_lomdm.cli.space"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    message = "^error: lomdm space needs gradio, of the extra space: pip install 'hf-lomdm.space.'$"
    with pytest.raises(SystemExit, match=message):
        lomdm_command.main(["space", "here"])
