"""Records hold the environment and are written whole."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_lomdm.evaluation import records
from hf_lomdm.evaluation.records import check_output, environment, write_record


def test_environment_names_versions_device_and_seed():
    record = environment("cpu", torch.bfloat16, seed=3)
    # of the package: no local part
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert (record["device_type"], record["dtype"], record["seed"]) == ("cpu", "bfloat16", 3)


def test_the_commit_is_that_of_this_repository_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr(
        records, "__file__", str(tmp_path / "venv" / "hf_lomdm" / "evaluation" / "records.py")
    )
    (tmp_path / "venv" / "hf_lomdm" / "evaluation").mkdir(parents=True)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run(
        [*git, "commit", "-q", "--allow-empty", "-m", "of somebody's project"], check=True
    )
    assert environment("cpu", torch.float32, seed=0)["commit"] is None
    monkeypatch.setattr(
        records, "__file__", str(tmp_path / "src" / "hf_lomdm" / "evaluation" / "records.py")
    )
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
    assert list(tmp_path.iterdir()) == [path]  # nothing half written stays


def test_links_devices_and_pipes_stay_what_they_are(tmp_path):
    (tmp_path / "link").symlink_to("folder/real.json")
    write_record(tmp_path / "link", {"value": 1})  # there was nothing yet
    write_record(tmp_path / "link", {"value": 2})
    assert (tmp_path / "link").is_symlink() and json.loads(
        (tmp_path / "folder/real.json").read_text()
    ) == {"value": 2}
    write_record("/dev/null", {"value": 1})
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_record(tmp_path / "pipe", {"value": 3})
    assert json.loads(os.read(reader, 1000)) == {"value": 3} and (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_standard_output_that_is_a_file_gets_the_record_and_stays_open(capfd):
    print(1, flush=True)
    write_record("/dev/stdout", 2)
    print(3)
    assert capfd.readouterr().out.split() == ["1", "2", "3"]


@pytest.mark.slow
@pytest.mark.parametrize("pipe", [False, True])
def test_standard_output_gets_the_record_and_stays_open(tmp_path, pipe):
    code = (
        "from hf_lomdm.evaluation.records import write_record as w; print(1, flush=True); "
        "w('/dev/stdout', 2); print(3)"
    )
    with (tmp_path / "file").open("w") as file:
        stream = subprocess.PIPE if pipe else file
        done = subprocess.run([sys.executable, "-c", code], stdout=stream, text=True, check=True)
    assert (done.stdout or (tmp_path / "file").read_text()).split() == ["1", "2", "3"]


def test_only_a_record_of_the_same_measurement_may_be_replaced(tmp_path):
    path, measured = (
        tmp_path / "deep" / "record.json",
        {"task": "likelihood", "options": {"steps": (1, 2)}},
    )
    check_output(path, measured)
    write_record(path, measured | {"value": 1})
    check_output(path, measured)
    for other in ({"task": "order"}, measured | {"model": "a"}):
        with pytest.raises(
            ValueError, match="is the record of something else: its (task|model) is .*delete it"
        ):
            check_output(path, other)
    check_output("/dev/null", {"task": "order"})
    for content in (b"text", b"[1]", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is there and no record"):
            check_output(path, measured)
    with pytest.raises(ValueError, match="is a folder"):
        check_output(tmp_path, measured)
