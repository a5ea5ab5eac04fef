"""`--help` of every script says what it does, and does nothing else."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "studies", "tools", "training_scripts", "space", "metrics")
SCRIPTS = [
    path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "__main__" in path.read_text()
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_help_runs_nothing(script, monkeypatch, capsys, tmp_path):
    if script.parent.name == "space":
        pytest.importorskip("gradio")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(script.parent)
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code in (None, 0) and "usage: " in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_help_of_the_script_that_runs_all_benchmarks_runs_none():
    command = ["bash", str(ROOT / "benchmarks" / "run_all.sh"), "--help"]
    done = subprocess.run(
        command, env={"PYTHON": "false", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 0 and "short_run" in done.stdout
