"""The script of the whole comparison: trains and measures, and started again it makes nothing a
second time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "studies" / "family" / "evidence.sh"
SIZES = (
    "--hidden_size",
    "32",
    "--num_hidden_layers",
    "1",
    "--num_attention_heads",
    "2",
    "--max_validation_rows",
    "8",
)


def write_text(path: Path, first: int) -> str:
    lines = [
        f"The number {n} is followed by {n + 1}, and {n * n} is its square."
        for n in range(first, first + 900)
    ]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    return str(path)


def test_without_its_words_it_says_what_they_are():
    actual = subprocess.run(
        ["bash", ROOT / "studies" / "family" / "evidence.sh"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert actual.returncode == 2 and "SYSTEMS" in actual.stdout and "PYTHON" in actual.stdout


@pytest.mark.slow
def test_every_system_is_trained_and_measured_once(tmp_path):
    texts = [
        write_text(tmp_path / f"{name}.txt", 2000 * i)
        for i, name in enumerate(("train", "valid", "test"))
    ]
    config = str(ROOT / "training_scripts" / "configs" / "enwiki.yaml")
    command = ["bash", str(SCRIPT), config, "tokens=8e3", *texts, *SIZES]
    results, parts = (
        tmp_path / "results",
        {"SYSTEMS": "mdlm lomdm ar", "OTHER_SEEDS": "", "BY_TIME": "", "EXACT": ""},
    )
    folders = {
        "RUNS": str(tmp_path / "runs"),
        "RESULTS": str(results),
        "PYTHON": sys.executable,
        "ROWS": "4",
    }
    environment = os.environ | parts | folders
    subprocess.run(command, env=environment, check=True)
    records = {path.name: path.stat().st_mtime_ns for path in results.glob("seed1-*.json")}
    kinds = {
        "mdlm": ("test", "time", "orders"),
        "lomdm": ("test", "time", "orders", "without_order", "order"),
    }
    names = {f"seed1-{system}-{kind}.json" for system, made in kinds.items() for kind in made} | {
        "seed1-ar-test.json"
    }
    assert records.keys() == names
    values = {name: json.loads((results / name).read_text()) for name in names}
    assert (
        values["seed1-mdlm-time.json"]["estimator"] != values["seed1-mdlm-test.json"]["estimator"]
    )
    subprocess.run(command, env=environment, check=True)
    assert {path.name: path.stat().st_mtime_ns for path in results.glob("seed1-*.json")} == records
    changed = subprocess.run(
        command, env=environment | {"ROWS": "5"}, capture_output=True, text=True, check=False
    )
    assert changed.returncode == 1 and "was made by other words" in changed.stderr
