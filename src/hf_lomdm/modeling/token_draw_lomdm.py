"""The token draw of a step: inverse CDF of a law in float64, and how certain a law is.

This file travels to the Hub.
"""

import torch
from torch import Tensor

from .random_lomdm import float64_device

# float64 entries of one slice of a token draw: all positions of a text at once do not fit for large
# V. 128 MB; on a CPU 2 MB, which stay in a core's cache (several times faster).
SLICE_SIZE, CPU_SLICE_SIZE = 2**24, 2**18


def slice_rows(logits: Tensor) -> int:
    """Rows of `[..., V]` logits in a slice."""
    size = CPU_SLICE_SIZE if logits.device.type == "cpu" else SLICE_SIZE
    return max(1, size // logits.shape[-1])


def slices(logits: Tensor) -> tuple[Tensor, ...]:
    """`[..., V]` logits as `[M, V]` slices that bound the memory of float64 work."""
    return logits.reshape(-1, logits.shape[-1]).split(slice_rows(logits))


def without_mask_token(logits: Tensor, mask_token_id: int) -> Tensor:
    """A float64 copy of `[M, V]` logits in which the mask token has probability 0."""
    logits = logits.detach().to(float64_device(logits.device)).to(torch.float64, copy=True)
    if mask_token_id < logits.shape[1]:
        logits[:, mask_token_id] = -torch.inf
    return logits


def certainty(logits: Tensor, mask_token_id: int, measure: str) -> Tensor:
    """Certainty `[M]` of the token law of `[M, V]` logits by `measure`, a sampler by logits."""
    law = without_mask_token(logits, mask_token_id).softmax(-1)
    if measure == "confidence":
        return law.amax(-1)
    if measure == "margin":
        best = law.topk(2).values
        return best[:, 0] - best[:, 1]
    return -torch.special.entr(law).sum(-1)


def token_probability(logits: Tensor, tokens: Tensor, mask_token_id: int) -> Tensor:
    """Probability `[M]` of `tokens` `[M]` in the law of `[M, V]` logits, float64."""
    law = without_mask_token(logits, mask_token_id).log_softmax(-1)
    return law.gather(1, tokens.to(law.device)[:, None])[:, 0].exp()


def draw_from_law(
    logits: Tensor,
    uniforms: Tensor,
    mask_token_id: int,
    temperature: float,
    top_p: float | None,
    top_k: int | None,
) -> Tensor:
    """Tokens `[M]` at the quantiles `uniforms` `[M]` of the law of `[M, V]` logits.

    Raises:
        ValueError: on the CPU, if logits hold NaN or +inf or leave no token.
    """
    logits = without_mask_token(logits, mask_token_id)
    best = logits.amax(-1, keepdim=True)
    if best.device.type == "cpu" and not best.isfinite().all():
        raise ValueError(
            "logits give no law at a place of the draw (NaN or infinite). Check the model's "
            "weights."
        )
    if temperature == 0:
        return logits.argmax(-1)
    weights = ((logits - best) / temperature).exp()
    if top_k is not None or top_p is not None:
        # stable: the order of ties, frequent in bfloat16, must not depend on the batch
        sorted_weights = weights.sort(dim=-1, descending=True, stable=True)
        best, tokens = (part[:, :top_k] for part in sorted_weights)
        if top_p is not None:
            total = best.cumsum(-1)
            best = best.masked_fill(total - best >= top_p * total[:, -1:], 0.0)
        # back in order of id: rounding may swap two tokens of nearly equal weight, and must not
        # swap draws
        weights = torch.zeros_like(weights).scatter(1, tokens, best)
    return inverse_cdf(weights, uniforms)


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """First entry `[M]` at which cumulative `weights` `[M, V]` reach a share `uniforms` `[M]`.

    An entry of weight 0 is never met: the target lies strictly between 0 and the total.
    """
    cumulative = weights.cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, target)[:, 0]
    # NaN, which only the CPU can look for, is not above any target
    return found.clamp(max=weights.shape[1] - 1)
