"""What training logs beside the loss, averaged over the steps between two logs."""

import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from ..evaluation.summary import masked_std

_NAMES = (
    "tokens",
    "texts",
    "main",
    "velocity",
    "score",
    "score_share",
    "score_share_squared",
    "forward_spread",
    "reverse_spread",
    "rate_ratio",
    "steps",
    "phi_grad_norm",
)


class TrainingLog:
    """Sums of every term since the last log, kept on the device: nothing synchronises until `take`.

    What a model does not have (a score, learned rates, phi) is not logged.
    """

    def __init__(self):
        self._sums: dict[str, Tensor] = {}

    def add(self, outputs, maskable: Tensor) -> None:
        """Adds a micro-batch: its `LoMDMOutput` and which positions are maskable `[B, L]`."""
        tokens = maskable.sum(-1).float()
        self._add(tokens=tokens.sum(), texts=torch.ones_like(tokens).sum())
        self._add(main=outputs.main.sum(), velocity=outputs.velocity.sum())
        if outputs.score is not None:
            share = outputs.score / tokens.clamp(min=1)
            self._add(
                score=outputs.score.sum(),
                score_share=share.sum(),
                score_share_squared=share.square().sum(),
            )
            self._add(forward_spread=masked_std(outputs.forward_rates, maskable).sum())
            self._add(rate_ratio=outputs.rate_ratio.sum())
        if outputs.rates is not None:
            self._add(reverse_spread=masked_std(outputs.rates, maskable).sum())

    def add_gradient(self, phi_norm: Tensor) -> None:
        """Adds the gradient norm of phi of one optimizer step."""
        self._add(steps=torch.ones_like(phi_norm), phi_grad_norm=phi_norm)

    def _add(self, **terms: Tensor) -> None:
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + term.float()

    def take(self, accelerator) -> dict[str, float]:
        """The averages over all processes since the last call; per token in nats, or per text."""
        zero = torch.zeros(())
        stacked = torch.stack(
            [self._sums.get(name, zero).to(accelerator.device) for name in _NAMES]
        )
        values = dict(zip(_NAMES, accelerator.reduce(stacked, "sum").tolist(), strict=True))
        present, self._sums = set(self._sums), {}
        tokens, texts = max(values["tokens"], 1), max(values["texts"], 1)
        logs = {name: values[name] / tokens for name in ("main", "velocity", "score")}
        logs |= {
            name: values[name] / texts
            for name in ("forward_spread", "reverse_spread", "rate_ratio")
        }
        logs["phi_grad_norm"] = values["phi_grad_norm"] / max(values["steps"], 1)
        logs = {
            name: value for name, value in logs.items() if name in {"main", "velocity", *present}
        }
        if "score" in present:
            mean = values["score_share"] / texts
            logs["score_std"] = max(values["score_share_squared"] / texts - mean**2, 0.0) ** 0.5
        return logs


def keep_logs_in(output_dir: str | Path, callbacks: Iterable[TrainerCallback]) -> None:
    """Sends TensorBoard's files to `output_dir`, from an evaluation before training too.

    What is logged then would make transformers write them to `runs` of the working directory.
    """
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(Path(output_dir, "runs", time.strftime("%b%d_%H-%M-%S")))
