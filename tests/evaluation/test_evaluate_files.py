"""training_scripts/evaluate.py: names of records, what may be replaced, and interruptions."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_evaluation import ROOT, likelihood

from hf_lomdm.cli import evaluate

pytest_plugins = ["evaluation_fixtures"]


def test_default_names_carry_model_and_data(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "model", "runs/other")
    shutil.copy(folder / "text.txt", "more.txt")
    for model, file in [
        (folder / "model", folder / "text.txt"),
        ("runs/other", "more.txt"),
        ("runs/other", "more.txt"),
    ]:
        evaluate.main(["likelihood", "--model", str(model), "--file", str(file), "--quiet"])
    evaluate.main(
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
        assert (
            evaluate.default_output(evaluate.parse_arguments(words)) == f"outputs/evaluation/{name}"
        )


def test_no_record_is_replaced_by_one_of_something_else(folder, tmp_path, capsys):
    output, model = tmp_path / "record.json", tmp_path / "other"
    shutil.copytree(folder / "model", model)

    def call(model, *words):
        evaluate.main(
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


def test_parts_beside_a_record_that_are_of_somebody_else_stay(folder, tmp_path):
    other = tmp_path / "record.json.parts" / "mine.jsonl"
    other.parent.mkdir()
    other.write_text('{"text": "abc"}\n')
    likelihood(folder / "model", folder / "text.txt", tmp_path / "record.json")
    assert [path.name for path in other.parent.iterdir()] == ["mine.jsonl"]


def test_pictures_are_not_replaced_by_those_of_another_record(run, folder, tmp_path):
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
    evaluate.main([*words, str(tmp_path / "a.json")])
    evaluate.main([*words, str(tmp_path / "a.json")])  # the same again
    with pytest.raises(SystemExit, match="error: --plots .*plots holds pictures of another record"):
        evaluate.main([*words, str(tmp_path / "b.json")])
    picture = tmp_path / "mine.png"
    picture.write_text("mine")
    with pytest.raises(SystemExit, match="error: --plot .*mine.png is there already"):
        evaluate.main(["--compare", str(tmp_path / "a.json"), "--plot", str(picture)])
    assert picture.read_text() == "mine"
    with pytest.raises(SystemExit, match="error: --plot .*mine must end in the format"):
        evaluate.main(
            ["--compare", str(tmp_path / "a.json"), "--plot", str(picture.with_suffix(""))]
        )
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(["--plot", "x.png", *words, str(tmp_path / "a.json")])


def test_a_record_goes_to_a_device_without_parts_beside_it(folder, capfd):
    words = [
        "likelihood",
        "--model",
        str(folder / "model"),
        "--file",
        str(folder / "text.txt"),
        "--quiet",
        "--output",
    ]
    evaluate.main([*words, "/dev/null"])
    assert Path("/dev/null").is_char_device() and not Path("/dev/null.parts").exists()
    capfd.readouterr()
    evaluate.main([*words, "/dev/stdout"])
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
