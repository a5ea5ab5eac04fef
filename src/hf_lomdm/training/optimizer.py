"""`torch.optim.Muon` for the trunk's matrices, another optimizer for the rest, as one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel


class JoinedOptimizer(Optimizer):
    """Several optimizers that step together, for trainers and schedulers that take one.

    Parameter groups and state are those of all parts one after the other; each part steps its own
    groups.

    Args:
        parts: optimizers of disjoint parameters; `defaults` are those of the first.
    """

    parts: Sequence[Optimizer] = ()

    def __init__(self, parts: Sequence[Optimizer]):
        super().__init__(
            [dict(group) for part in parts for group in part.param_groups], parts[0].defaults
        )
        self.parts = parts
        self._share()

    def _share(self) -> None:
        start = 0
        for part in self.parts:
            end = start + len(part.param_groups)
            part.param_groups, part.state, start = self.param_groups[start:end], self.state, end

    @torch.no_grad()
    def step(self, closure=None):
        """One step of every part; `closure` is called once, before the first."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        """As in torch; the parts go on from the loaded groups and state."""
        super().load_state_dict(state_dict)
        self._share()

    def add_param_group(self, param_group: dict) -> None:
        """Raises `TypeError` once the parts are joined: none of them would step the group."""
        if self.parts:
            raise TypeError(
                "joined optimizers take no further parameters. Add them to a part before it is "
                "joined."
            )
        super().add_param_group(param_group)


def trunk_matrices(model: PreTrainedModel) -> list[nn.Parameter]:
    """The trainable matrices of the backbone's layers: no embedding, no head.

    Raises:
        ValueError: there are none.
    """
    layers = getattr(model.base_model, "layers", nn.ModuleList())
    matrices = [
        weight for weight in layers.parameters() if weight.requires_grad and weight.dim() == 2
    ]
    if not matrices:
        raise ValueError(
            "muon_learning_rate is for the matrices of the backbone's layers, and "
            f"{type(model).__name__} has none to train (frozen, adapters alone, or another kind of "
            "model). Leave it out."
        )
    return matrices


def add_muon(
    optimizer: Optimizer, model: PreTrainedModel, args: Any, is_sharded: bool
) -> Optimizer:
    """`optimizer`, joined with Muon for the trunk's matrices, at its `muon_learning_rate`.

    Raises:
        ValueError: sharded weights, another optimizer than AdamW, or no matrices.
    """
    rate = args.muon_learning_rate
    if is_sharded:
        raise ValueError(
            f"muon_learning_rate={rate} needs whole matrices, which sharded training does not "
            "keep. Leave it out, or train with plain data parallelism."
        )
    if not isinstance(optimizer, torch.optim.AdamW):
        raise ValueError(
            f"muon_learning_rate={rate} goes with AdamW for the rest, got "
            f"optim={args.optim.value!r}. Leave one of them out."
        )
    return with_muon(optimizer, trunk_matrices(model), rate, args.weight_decay)


def with_muon(
    optimizer: Optimizer, matrices: Sequence[nn.Parameter], lr: float, weight_decay: float
) -> Optimizer:
    """`optimizer` without `matrices`, which it no longer steps, joined with Muon for them.

    Args:
        optimizer: that has not stepped yet.
        lr: spectral norm of an update of a square matrix; torch scales it with the shape
            ("original").
    """
    theirs = {id(weight) for weight in matrices}
    for group in optimizer.param_groups:
        group["params"] = [weight for weight in group["params"] if id(weight) not in theirs]
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="original")
    return JoinedOptimizer([optimizer, muon])
