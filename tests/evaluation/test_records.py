"""Records hold the environment and are written whole."""

import errno
import json
import os
import subprocess

import pytest
import torch

from hf_lomdm.evaluation import records
from hf_lomdm.evaluation.records import environment, write_record


def test_environment_names_versions_device_and_seed():
    record = environment("cpu", torch.bfloat16, seed=3)
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]  # of the package: no local part
    assert (record["device_type"], record["dtype"], record["seed"]) == ("cpu", "bfloat16", 3)


def test_the_commit_is_that_of_this_repository_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "__file__", str(tmp_path / "venv" / "hf_lomdm" / "evaluation" / "records.py"))
    (tmp_path / "venv" / "hf_lomdm" / "evaluation").mkdir(parents=True)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "of somebody's project"], check=True)
    assert environment("cpu", torch.float32, seed=0)["commit"] is None
    monkeypatch.setattr(records, "__file__", str(tmp_path / "src" / "hf_lomdm" / "evaluation" / "records.py"))
    (tmp_path / "src" / "hf_lomdm" / "evaluation").mkdir(parents=True)
    assert len(environment("cpu", torch.float32, seed=0)["commit"]) >= 7


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "deep" / "record.json"
    write_record(path, {"value": 1})
    with pytest.raises(TypeError):
        write_record(path, {"value": object()})
    assert json.loads(path.read_text()) == {"value": 1}


def test_a_write_that_breaks_off_leaves_the_old_record(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_record(path, {"value": 1})

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_record(path, {"value": 2})
    assert json.loads(path.read_text()) == {"value": 1}
