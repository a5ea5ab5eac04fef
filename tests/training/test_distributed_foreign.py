"""A converted model on two processes trains as on one, with LoRA too, and sharded (FSDP2)."""

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_distributed import ROOT, SGD, free_port
from test_train_foreign import FLAGS, LLAMA, folder  # noqa: F401  a fixture
from tiny_training import FORKS
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from hf_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.training.finetuning import add_lora

OWN = deepcopy(LLAMA)  # converting a model changes the configuration that it was made of
LORA = ("--lora_rank", "2")


def run(folder: Path, name: str, processes: int, *words: str) -> Path:  # noqa: F811
    """`train.py` on the base of `folder`, on one or two processes, with 8 rows per step."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    launcher = [] if processes == 1 else [*launcher, free_port()]
    flags = {**FLAGS, **SGD, "per_device_train_batch_size": 8 // processes}
    flags = {key.removeprefix("--"): str(value) for key, value in flags.items()}
    files = ["--init_from", folder / "base", "--train_file", folder / "text.txt"]
    command = [sys.executable, *launcher, ROOT / "training_scripts/train.py", *files]
    command += [word for key, value in flags.items() for word in (f"--{key}", value)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command += ["--output_dir", folder / name, *words]
    subprocess.run(list(map(str, command)), check=True, env=environment)
    return folder / name


@pytest.mark.slow
@pytest.mark.parametrize("lora", [(), LORA], ids=["full", "lora"])
def test_two_processes_equal_one_and_go_on_as_one(folder, lora):  # noqa: F811
    one = run(folder, "one", 1, "--max_steps", "4", *lora)
    two = run(folder, "two", 2, "--max_steps", "4", *lora)
    run(folder, "both", 2, "--max_steps", "2", *lora)
    both = run(folder, "both", 1, "--max_steps", "4", *lora)  # on another number of processes
    name = "merged/model.safetensors" if lora else "model.safetensors"
    weights = load_file(one / name)
    for other in (two, both):
        for key, value in load_file(other / name).items():  # float32 sums in another order
            torch.testing.assert_close(value, weights[key], rtol=0, atol=1e-5)


def build(lora: bool):
    torch.manual_seed(0)
    how = {"block_size": 2, "settings": {"num_attention_heads": 2}}
    model = LoMDMForMaskedDiffusion.from_causal_lm(
        AutoModelForCausalLM.from_config(deepcopy(OWN)), **how
    )
    return add_lora(model, 2, 4) if lora else model


def step(model) -> tuple[float, dict[str, torch.Tensor]]:
    """A loss and the gradients after it."""
    ids = torch.randint(0, 12, (4, 8), generator=torch.Generator().manual_seed(0))
    model.train()
    loss = model(input_ids=ids, labels=ids, generator=torch.Generator().manual_seed(0)).loss
    loss.backward()
    named = model.named_parameters()
    grads = {name: weight.grad for name, weight in named if weight.grad is not None}
    whole = {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in grads.items()}
    return loss.item(), whole


def shard_and_step(path: Path, port: str, lora: bool) -> None:
    """Shards each layer that transformers says not to split, and the rest as one."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1
    )
    model = build(lora)
    whole = model.get_base_model() if lora else model
    layers = [part for part in model.modules() if type(part).__name__ in whole._no_split_modules]
    heads = 4 if lora else 2  # a layer in each; peft keeps the heads as they were, too
    assert len(layers) == OWN.num_hidden_layers + heads
    for layer in layers:
        fully_shard(layer)
    torch.save(step(fully_shard(model)), path)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_sharded_step_is_that_of_the_whole_model(tmp_path, lora):
    path = tmp_path / "sharded.pt"
    process = FORKS.Process(target=shard_and_step, args=(path, free_port(), lora))
    process.start()
    process.join()
    assert process.exitcode == 0
    loss, gradients = torch.load(path)
    expected, others = step(build(lora))
    assert loss == pytest.approx(expected, rel=1e-6)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=1e-7)
