"""Two processes on the CPU train as one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from tiny_training import FORKS, build_causal, checkpoint_tensors, collate, make_texts, start
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers.utils import SAFE_WEIGHTS_NAME

from conftest import build_model
from hf_lomdm.data.draws import step_generators
from hf_lomdm.evaluation import nelbo
from hf_lomdm.training.ema import EMA
from hf_lomdm.training.trainer import gather_weights_for_evaluation

ROOT = Path(__file__).parents[2]
SGD = {
    "optim": "sgd",
    "learning_rate": 0.1,
    "head_learning_rate": 0.1,
    "lr_scheduler_type": "constant",
}
RUN = {
    **SGD,
    "unequal": True,
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def train_two(output_dir: Path, **settings) -> None:
    """Two processes with the environment that torchrun gives them."""
    common = {
        "ACCELERATE_USE_CPU": "true",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    ranks = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    processes = [start(output_dir, environment=rank, **settings) for rank in ranks]
    for process in processes:
        process.join(timeout=120)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]


TWO = {**RUN, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


FAMILY = [{"rate_type": "token"}, {"rate_type": "score", "block_size": 4}, {"block_size": 4}]


@pytest.mark.parametrize(
    "system", [None, *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILY)]
)
def test_two_processes_equal_one_in_weights_logs_and_evaluation(tmp_path, system):
    alone = start(tmp_path / "one", per_device_train_batch_size=8, system=system, **RUN)
    train_two(tmp_path / "two", system=system, **TWO)
    alone.join()
    ours, theirs = (load_file(tmp_path / name / SAFE_WEIGHTS_NAME) for name in ("one", "two"))
    for name, value in ours.items():  # the averages; float32 sums in another order
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-5)
    logs = [read_logs(tmp_path / name / "checkpoint-4") for name in ("one", "two")]
    for left, right in zip(*logs, strict=True):
        for key in left.keys() - {
            "eval_runtime",
            "eval_samples_per_second",
            "eval_steps_per_second",
        }:
            assert left[key] == pytest.approx(right[key], rel=1e-3, abs=1e-5), key
    assert (tmp_path / "two" / "checkpoint-4" / "rng_state_1.pth").is_file()  # there were two


@pytest.mark.slow
def test_two_processes_resume_exactly(tmp_path):
    train_two(tmp_path / "whole", **TWO)
    train_two(tmp_path / "parts", **{**TWO, "max_steps": 2})
    train_two(tmp_path / "parts", **TWO)
    assert_same(tmp_path / "whole" / "checkpoint-4", tmp_path / "parts" / "checkpoint-4")


def read_logs(checkpoint: Path) -> list[dict]:
    return json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]


def assert_same(left: Path, right: Path) -> None:
    for rank in range(2):
        for folder in (left, right):  # the name it has with one process
            (folder / "rng_state.pth").write_bytes((folder / f"rng_state_{rank}.pth").read_bytes())
        ours, theirs = checkpoint_tensors(left), checkpoint_tensors(right)
        assert ours.keys() == theirs.keys() and all(
            torch.equal(ours[name], theirs[name]) for name in ours
        )


def test_average_and_evaluation_of_sharded_weights_are_those_of_whole_ones(tmp_path):
    process = FORKS.Process(target=average_sharded, args=(tmp_path, free_port()))
    process.start()
    process.join()
    assert process.exitcode == 0
    model = build_model()
    ema = average_twice(model)
    stored = load_file(tmp_path / "sharded.safetensors")
    assert stored.keys() == ema.average.keys()
    for name, value in stored.items():
        torch.testing.assert_close(value, ema.average[name], rtol=0, atol=1e-7)


def average_sharded(folder: Path, port: str) -> None:
    """Averages the weights of a model sharded by FSDP2, saves the average, loads it and swaps it
    in."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1
    )
    model = build_model()
    for layer in model.model.layers:
        fully_shard(layer)
    ema = average_twice(fully_shard(model))
    assert isinstance(ema.average["lm_head.weight"], DTensor)
    ema.save(folder / "sharded.safetensors")
    reloaded = EMA(model, 0.9)
    reloaded.load(folder / "sharded.safetensors")
    own = model.lm_head.weight.full_tensor().clone()
    with reloaded.weights_of(model):
        assert torch.equal(
            model.lm_head.weight.full_tensor(), ema.average["lm_head.weight"].full_tensor()
        )
        assert not torch.equal(model.lm_head.weight.full_tensor(), own)
    assert torch.equal(model.lm_head.weight.full_tensor(), own)
    gather_weights_for_evaluation(model)
    assert_same_evaluation(model, build_model(), factor=6.0)


def assert_same_evaluation(sharded: torch.nn.Module, whole: torch.nn.Module, factor: float) -> None:
    with torch.no_grad():
        for weight in whole.parameters():
            weight.mul_(factor)
    batch = collate(make_texts(count=4))
    ours, theirs = (
        nelbo(model, **batch, generator=step_generators(0, 0, range(4))).nelbo
        for model in (sharded, whole)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


def average_twice(model: torch.nn.Module) -> EMA:
    ema = EMA(model, 0.9)
    for factor in (2.0, 3.0):
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(factor)
        ema.update(model)
    return ema


@pytest.mark.slow
def test_train_script_under_torchrun_equals_one_process(tmp_path):
    script = str(ROOT / "training_scripts" / "train.py")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_length": 32}
    steps = {
        "max_steps": 3,
        "max_train_rows": 32,
        "max_validation_rows": 6,
        "warmup_steps": 0,
        "dropout": 0,
        "bf16": "false",
    }
    settings = {
        **sizes,
        **steps,
        **SGD,
        "report_to": "none",
        "disable_tqdm": "true",
        "use_cpu": "true",
        "bf16": "false",
    }
    runs = {
        "one": ([sys.executable], 8),
        "two": (
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nproc-per-node",
                "2",
                "--master-port",
                free_port(),
            ],
            4,
        ),
    }
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "cache")
    for name, (launcher, batch) in runs.items():
        words = {**settings, "output_dir": tmp_path / name, "per_device_train_batch_size": batch}
        command = [
            *launcher,
            script,
            "--config",
            str(ROOT / "training_scripts" / "configs" / "tiny.yaml"),
        ]
        command += [word for key, value in words.items() for word in (f"--{key}", str(value))]
        subprocess.run(command, check=True, env=environment, timeout=300)
    ours, theirs = (load_file(tmp_path / name / SAFE_WEIGHTS_NAME) for name in runs)
    for name, value in ours.items():  # float32 sums in another order
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["cpu", "ddp", "fsdp2"])
def test_accelerate_reads_the_shipped_configurations(name, make_model):
    path = ROOT / "training_scripts" / "accelerate_configs" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.use_cpu == (name == "cpu")
    # which layers are wrapped is left to the model: no name here, and a name there
    if name == "fsdp2":
        assert (
            "fsdp_transformer_layer_cls_to_wrap"
            not in yaml.safe_load(path.read_text())["fsdp_config"]
        )
        for model in (make_model(), build_causal()):
            assert set(model._no_split_modules) <= {
                type(module).__name__ for module in model.modules()
            }
