"""Exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from .measures import gathered

AVERAGE = "ema.safetensors"  # beside the training weights in a checkpoint of the trainer


class EMA:
    """Exponential moving average of the trainable floating weights of a model, kept in float32.

    Update `n = 0, 1, ...` uses the decay `min(decay, (1 + n) / (10 + n))`: the first weights are
    soon forgotten. Frozen weights equal their average and are not kept. Weights that FSDP2 shards
    (`DTensor`) stay sharded.

    Args:
        model: its weights are the starting point.
        decay: in `(0, 1)`, for example 0.9999.
    Raises:
        ValueError: a decay outside `(0, 1)`.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(
                f"ema_decay must be in (0, 1), got {decay}. Pass for example 0.9999, or 0 for no "
                "average."
            )
        self.decay = decay
        self.num_updates = 0
        self.average = {
            name: weight.detach().float().clone() for name, weight in trainable_weights(model)
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the weights of `model`, after each optimizer step."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        weights = [weight.float() for _, weight in trainable_weights(model)]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)
        self.num_updates += 1

    @contextmanager
    def weights_of(self, model: nn.Module) -> Iterator[None]:
        """Within this context `model` holds the average; afterwards, bit by bit, its weights."""
        own = {name: weight.detach().clone() for name, weight in trainable_weights(model)}
        _copy_weights(self.average, model)
        try:
            yield
        finally:
            _copy_weights(own, model)

    def save(self, path: Path, write: bool = True) -> None:
        """Writes the average and its count to the safetensors file `path`.

        With sharded weights every process has to call this (it gathers them); only those with
        `write` write.
        """
        full = {name: gathered(value).cpu().contiguous() for name, value in self.average.items()}
        if write:
            save_file(full, path, metadata={"format": "pt", "num_updates": str(self.num_updates)})

    def load(self, path: Path) -> None:
        """Takes the average and its count from `path`, written by `save`.

        Raises:
            ValueError: a missing file, or names or shapes that are not those of the model.
        """
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist, so the moving average cannot be resumed. Pass --ema_decay "
                "0, or train from the start in another --output_dir."
            )
        with safe_open(path, framework="pt") as file:
            names = file.keys()  # the file itself is not iterable
            stored = {name: file.get_tensor(name) for name in names}
            num_updates = int(file.metadata()["num_updates"])
        _check_same(path, stored, self.average)
        for name, value in self.average.items():
            value.copy_(_sharded_like(stored[name], value))
        self.num_updates = num_updates


def trainable_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and value of each trainable floating weight; tied weights once."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.is_floating_point():
            yield name, weight


@torch.no_grad()
def _copy_weights(source: dict[str, Tensor], model: nn.Module) -> None:
    for name, weight in trainable_weights(model):
        weight.copy_(source[name])


def _sharded_like(value: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _check_same(path: Path, stored: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in stored.keys() | expected.keys():
        left, right = (
            tuple(values[name].shape) if name in values else None for values in (stored, expected)
        )
        if left != right:
            raise ValueError(
                f"{path} holds {name} with shape {left}, the model has {right}. Resume with the "
                "model that was saved."
            )


@torch.no_grad()
def take_average(model: nn.Module, folder: Path) -> bool:
    """Puts the averaged weights of a checkpoint into its model; returns whether it has any.

    Those that are not averaged were frozen.

    Raises:
        ValueError: an average that does not fit the model.
    """
    path, weights = folder / AVERAGE, dict(model.named_parameters())
    if not path.is_file():
        return False
    for name, value in load_file(path).items():
        shape = tuple(weights[name].shape) if name in weights else None
        if shape != value.shape:
            raise ValueError(
                f"{path} holds {name} with shape {tuple(value.shape)}, the model has {shape}. "
                "Use the checkpoint that the average belongs to."
            )
        weights[name].copy_(value)
    return True
