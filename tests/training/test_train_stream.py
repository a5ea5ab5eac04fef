"""Training on a data set that is read meanwhile: resuming is exact, on any number of processes."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from test_distributed import ROOT, SGD, free_port
from test_resume import assert_same_checkpoint
from transformers import TrainerCallback

from hf_lomdm.cli import train
from hf_lomdm.cli.errors import FROM_OUTSIDE
from hf_lomdm.data import streaming
from hf_lomdm.data.streaming import StreamError
from hf_lomdm.training.checkpointing import RunError
from tiny_tokenizer import build_word_tokenizer

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_length": 8}


@pytest.fixture
def flags(tmp_path, monkeypatch):
    """Of a run on 40 documents of one to six words, two of which validate; a pass has 19 rows."""
    monkeypatch.setattr(streaming, "NUM_HELD_OUT", 2)
    (tmp_path / "set").mkdir()
    texts = [" ".join("abcdef"[number % 6 :]) for number in range(40)]
    write(tmp_path / "set", texts)
    build_word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return {
        **{
            "dataset_name": tmp_path / "set",
            "streaming": True,
            "tokenizer": tmp_path / "tokenizer",
        },
        **SIZES,
        **{"per_device_train_batch_size": 4, "lr_scheduler_type": "constant", "ema_decay": 0.5},
        **{"max_steps": 8, "save_steps": 2, "report_to": "none", "disable_tqdm": True},
    }


def write(folder, texts):
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "train.jsonl").write_text("\n".join(lines))


def words(flags, **others):
    named = {**flags, **others}
    return [word for key, value in named.items() for word in (f"--{key}", str(value))]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_on_a_stream_resumes_bit_by_bit_behind_the_end_of_a_pass(flags, tmp_path, workers):
    train.main(words(flags, output_dir=tmp_path / "whole"))
    flags["dataloader_num_workers"] = workers
    for steps in (2, 6, 8):  # a pass ends in the fifth step
        train.main(words(flags, output_dir=tmp_path / "parts", max_steps=steps))
    assert_same_checkpoint(tmp_path / "whole" / "checkpoint-8", tmp_path / "parts" / "checkpoint-8")


def test_a_stream_that_has_changed_is_refused(flags, tmp_path):
    trainer = train.prepare(words(flags, output_dir=tmp_path / "run", max_steps=2))
    train.train(trainer)
    write(tmp_path / "set", ["a b c d e f"] * 30)
    with pytest.raises(RunError, match="other data"):
        train.train(train.prepare(words(flags, output_dir=tmp_path / "run")))


class Break(TrainerCallback):
    """After the second step the file is broken; the next pass begins with it, after the fifth."""

    def __init__(self, file):
        self.file = file

    def on_step_end(self, args, state, control, **others):
        if state.global_step == 2:
            self.file.write_text('{"text": "a"}\n{"text": \n')


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_stops_training_in_one_line_and_a_checkpoint_is_left(
    flags, tmp_path, workers
):
    flags |= {"max_steps": 40, "save_steps": 100, "dataloader_num_workers": workers}
    trainer = train.prepare(words(flags, output_dir=tmp_path / "run"))
    file = tmp_path / "set" / "train.jsonl"
    trainer.add_callback(Break(file))
    with pytest.raises(StreamError) as error:
        train.train(trainer)
    (saved,) = (tmp_path / "run").glob("checkpoint-*")
    assert int(saved.name.split("-")[1]) >= 2  # what was read ahead is lost
    assert (saved / "complete.json").is_file() and isinstance(error.value, FROM_OUTSIDE)
    line = f"{file} cannot be read: .*; training stops: {saved} is saved, the same"
    assert re.match(line, str(error.value)) and "\n" not in str(error.value)


def test_a_stream_without_an_end_is_refused_before_anything_is_read(flags, tmp_path):
    flags = {**flags, "dataset_name": "nowhere/at-all", "max_steps": -1}
    with pytest.raises(SystemExit, match="Pass max_steps"):
        train.main(words(flags, output_dir=tmp_path / "run"))


def run(flags, folder, processes, steps):
    """`train.py` on one or two processes, four rows a step."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    launcher = [] if processes == 1 else [*launcher, free_port()]
    shares = {"per_device_train_batch_size": 4 // processes, "output_dir": folder}
    plain = {"dropout": 0.0, **SGD, **shares, "max_steps": steps}
    command = [*launcher, ROOT / "training_scripts/train.py", *words(flags, **plain)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *map(str, command)], check=True, env=environment)
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_two_processes_read_a_stream_as_one_and_go_on_as_one(flags, tmp_path):
    first = [" ".join("g" + "ab" * number) for number in range(1, 4)] * 334  # these validate
    write(tmp_path / "set", [*first, *(" ".join("abcdef"[number % 6 :]) for number in range(40))])
    one, two = (run(flags, tmp_path / str(count), count, 8) for count in (1, 2))
    run(flags, tmp_path / "both", 2, 4)
    both = run(flags, tmp_path / "both", 1, 8)
    for name, weight in one.items():  # float32 sums in another order
        for other in (two, both):
            torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-5)
