"""A tiny training run for the tests of the trainer, also as a process of its own that is killed or
joined."""

import multiprocessing
import os
import signal
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import GPTNeoXForCausalLM, TrainerCallback

from conftest import build_model
from hf_lomdm.training import checkpointing, ema
from hf_lomdm.training.arguments import LoMDMTrainingArguments, ModelArguments
from hf_lomdm.training.models import causal_config
from hf_lomdm.training.trainer import LoMDMTrainer

# A clean process, without threads, that has imported everything: it is forked for each run. (It
# cannot preload this module: Python 3.11 does not hand it the path of the tests.)
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["hf_lomdm.training.trainer", "hf_lomdm.training.arguments", "pytest", "torch._dynamo"]
)


# Three optimizer steps an epoch, dropout on: the data position and the random state matter.
RUN = {
    "dropout": 0.1,
    "max_steps": 8,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
}


class StopAfter(TrainerCallback):
    """Raises after a step, as an interrupt from outside would."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def make_texts(
    count: int = 24, length: int = 12, unequal: bool = False, seed: int = 0
) -> list[dict]:
    """Random texts of ordinary tokens (3 to 9); with `unequal` of lengths from 2 to `length`."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (
        torch.randint(2, length + 1, (count,), generator=generator).tolist()
        if unequal
        else [length] * count
    )
    return [{"input_ids": torch.randint(3, 10, (size,), generator=generator)} for size in sizes]


def collate(texts: list[dict]) -> dict[str, torch.Tensor]:
    """Pads on the right; labels are -100 at padding; the mask is there only if something is
    padded."""
    rows = [text["input_ids"] for text in texts]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    batch = {"input_ids": input_ids, "labels": input_ids.masked_fill(real == 0, -100)}
    return batch if real.all() else {**batch, "attention_mask": real}


def build_causal(dropout: float = 0.0, **overrides) -> GPTNeoXForCausalLM:
    """A random autoregressive model for the texts of `make_texts`, start token 10; `overrides` of
    its configuration."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    sizes = ModelArguments(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, dropout=dropout
    )
    ids = {
        "vocab_size": 11,
        "mask_token_id": 10,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = causal_config(sizes, 32, ids)
    config.update({"initializer_range": 0.3, **overrides})
    model = GPTNeoXForCausalLM(config).eval()
    torch.set_rng_state(state)
    return model


def make_trainer(
    output_dir,
    model=None,
    unequal: bool = False,
    dropout: float = 0.0,
    callbacks=None,
    trainer_class=LoMDMTrainer,
    system: dict | None = None,
    **settings,
):
    """A trainer of a tiny model on 24 random texts, 8 a step.

    `system` overrides the configuration of the model, `settings` the training arguments.
    """
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "head_learning_rate": 1e-2,
        "ema_decay": 0.9,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return trainer_class(
        model=build_model(dropout=dropout, **(system or {})) if model is None else model,
        args=LoMDMTrainingArguments(str(output_dir), **{**defaults, **settings}),
        train_dataset=make_texts(unequal=unequal),
        eval_dataset=make_texts(count=6, unequal=unequal, seed=1),
        data_collator=collate,
        callbacks=callbacks,
    )


def train(
    output_dir, die_at: int | None = None, environment: dict[str, str] | None = None, **settings
) -> None:
    """Trains in this process to the end, or until it kills itself at the event `die_at` of writing
    checkpoints."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    if die_at is not None:
        kill_at_event(die_at)
    trainer = make_trainer(output_dir, **settings)
    trainer.train("auto")
    trainer.save_model()


def start(output_dir, **settings) -> multiprocessing.Process:
    """Starts `train` in a process of its own."""
    process = FORKS.Process(target=train, args=(output_dir,), kwargs=settings)
    process.start()
    return process


def kill_at_event(number: int) -> None:
    """SIGKILL at the `number`-th (from 0) event of this process that touches the files of a
    checkpoint.

    Before a file is saved, when half of it is on the disk, before each flush, each rename and each
    removal.
    """
    left = [number]

    def event() -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    def watch(owner, name: str, saved_path=None) -> None:
        plain = getattr(owner, name)

        def watched(*args, **kwargs):
            event()
            if saved_path is not None and left[0] == 0:
                plain(*args, **kwargs)
                path = Path(saved_path(*args))
                os.truncate(path, path.stat().st_size // 2)
            if saved_path is not None:
                event()
            return plain(*args, **kwargs)

        setattr(owner, name, watched)

    watch(torch, "save", lambda content, path: path)
    watch(ema, "save_file", lambda tensors, path: path)
    watch(os, "fsync")
    watch(Path, "rename")
    watch(checkpointing.shutil, "rmtree")


def checkpoint_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor and number of a checkpoint: weights, average, optimizer, scheduler, random
    state, position."""
    tensors = {
        f"weights.{name}": value for name, value in load_file(folder / "model.safetensors").items()
    }
    tensors |= {
        f"ema.{name}": value for name, value in load_file(folder / "ema.safetensors").items()
    }
    for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        tensors |= _flatten(file, torch.load(folder / file, weights_only=False))
    return tensors


def _flatten(prefix: str, value) -> dict[str, torch.Tensor]:
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        with suppress(TypeError, ValueError, RuntimeError):  # names and None are no numbers
            return {prefix: torch.as_tensor(value)}
        return {}
    return {
        name: value
        for key, part in items
        for name, value in _flatten(f"{prefix}.{key}", part).items()
    }
