"""The cross entropy of tokens in chunks of rows, without a float32 copy of the logits.

This file travels to the Hub.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

from .process_lomdm import at_least_float32

CACHE_LOGITS = 2**20  # in a chunk on a CPU: 4 MB in float32 stay in its cache
DEVICE_LOGITS = 2**27  # in a chunk on other devices: 512 MB in float32; fewer would leave them idle


class TokenLosses(torch.autograd.Function):
    """torch's cross entropy `[M]` of `targets` `[M]` under logits `[M, V]`, float32 or wider.

    Differentiable once. Only the logits and the losses are kept for the gradient, which is
    `exp(logits - log Z) - onehot(target)`, `log Z` being the loss plus the logit of the target.
    Both directions convert a chunk of rows at a time to float32.
    """

    generate_vmap_rule = True  # for torch.func

    @staticmethod
    def forward(logits: Tensor, targets: Tensor) -> Tensor:
        """The losses."""
        size = rows_at_a_time(logits, logits.shape[-1], CACHE_LOGITS)
        pairs = zip(logits.split(size), targets.split(size), strict=True)
        return torch.cat(
            [
                cross_entropy(at_least_float32(rows), target, reduction="none")
                for rows, target in pairs
            ]
        )

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keeps what the gradient needs."""
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    @once_differentiable
    def backward(ctx, by_loss: Tensor) -> tuple[Tensor, None]:
        """From the gradient by the losses `[M]` that by the logits `[M, V]`, in their precision."""
        logits, targets, losses = ctx.saved_tensors
        size = rows_at_a_time(logits, logits.shape[-1], CACHE_LOGITS)
        by_logits = []
        columns = (values[:, None] for values in (targets, losses, by_loss))
        parts = (values.split(size) for values in (logits, *columns))
        for rows, target, loss, factor in zip(*parts, strict=True):
            # as wide as the loss
            gradient = (rows - (loss + at_least_float32(rows.gather(-1, target)))).exp_()
            # 1 - exp(-loss) would cancel to 0 near a loss of 0
            gradient.scatter_(-1, target, torch.expm1(-loss))
            by_logits.append(gradient.mul_(factor).to(logits.dtype))
        return torch.cat(by_logits), None


def rows_at_a_time(values: Tensor, vocab_size: int, cpu_logits: int) -> int:
    """Rows of logits in one chunk: of `cpu_logits` on a CPU, `DEVICE_LOGITS` elsewhere."""
    return max(1, (cpu_logits if values.device.type == "cpu" else DEVICE_LOGITS) // vocab_size)
