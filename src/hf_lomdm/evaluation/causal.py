"""Exact `-log P(x)` of autoregressive models of `transformers`, in the form of the bounds.

The model is a law of the whole text: it reads the text shifted by one behind a start token and
predicts every token, the first one too. The start token is in no text, so it has probability zero,
unless it is the model's EOS too (GPT-2).
"""

import torch
from torch import Tensor, nn

from ..pipelines.pipeline_lomdm import eval_mode
from .likelihood import NelboEstimate, require_finite


def causal_nll(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    start_token_id: int | None = None,
) -> NelboEstimate:
    """Exact `-log P(x)` of each text under an autoregressive model, summed in float64 on the CPU.

    Runs in eval mode, which it restores. One pass over all texts, whose logits `[B, L, V]` must fit
    into memory.

    Args:
        model: a causal language model of `transformers` that takes `position_ids`.
        input_ids: `[B, L]` int64, clean texts.
        attention_mask: `[B, L]`, 1 = real, 0 = padding on either side; `None` = nothing padded.
        labels: `[B, L]`, the clean token ids, -100 = given: read, not counted. Where only a prefix
            is given the result is `-log` of the conditional probability of the rest; a given token
            behind others does not change theirs.
        start_token_id: what every text begins with unseen; default `model.config.bos_token_id`.
    Returns:
        `NelboEstimate` with `nelbo = main` `[B]` in nats, `standard_error` and `velocity` zero.
    Raises:
        ValueError: shapes that do not agree, no start token, texts that contain it, a result that
            is not finite.
    """
    start = model.config.bos_token_id if start_token_id is None else start_token_id
    clean, targets = _clean_texts(input_ids, attention_mask, labels)
    in_text = start == model.config.eos_token_id
    _check_start(start, clean, attention_mask, in_text)
    with eval_mode(model), torch.no_grad():
        losses = causal_token_losses(model, clean, attention_mask, targets, start, in_text)
    main = require_finite(losses.cpu().double().sum(-1), "-log P")
    return NelboEstimate(main, torch.zeros_like(main), main, torch.zeros_like(main))


def causal_token_losses(
    model: nn.Module,
    clean: Tensor,
    attention_mask: Tensor | None,
    targets: Tensor,
    start_token_id: int,
    start_in_text: bool = False,
) -> Tensor:
    """`-log p(x_i | x_<i)` `[B, L]`, float32 or wider; 0 where `targets` `[B, L]` are -100.

    `start_in_text`: the start token may be in texts too; else its probability is zero.
    """
    padding = {}
    if attention_mask is not None:
        position = (attention_mask.to(torch.int64).cumsum(-1) - 1).clamp(min=0)
        padding = {"attention_mask": attention_mask, "position_ids": position}
    logits = model(
        input_ids=shift_right(clean, attention_mask, start_token_id),
        use_cache=False,
        return_dict=True,
        **padding,
    ).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if not start_in_text:
        # in place: a copy of [B, L, V] would be the largest tensor
        logits[..., start_token_id] = -torch.inf
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def shift_right(clean: Tensor, attention_mask: Tensor | None, start_token_id: int) -> Tensor:
    """What the model reads `[B, L]`: the start token, then at each position the one before."""
    shifted = clean.roll(1, dims=-1)
    if attention_mask is None:
        shifted[:, 0] = start_token_id
        return shifted
    real = attention_mask.to(torch.bool)
    return shifted.masked_fill(real & (real.cumsum(-1) == 1), start_token_id)


def _clean_texts(
    input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The clean texts, and the same with -100 where nothing is counted; checks shapes."""
    if input_ids.dim() != 2 or 0 in input_ids.shape:
        raise ValueError(
            "input_ids must have the shape [batch, length], not empty, got "
            f"{list(input_ids.shape)}."
        )
    for name, values in {"attention_mask": attention_mask, "labels": labels}.items():
        if values is not None and values.shape != input_ids.shape:
            raise ValueError(
                f"{name} must have the shape of input_ids, {list(input_ids.shape)}, got "
                f"{list(values.shape)}. Pass one value per token."
            )
    targets = input_ids if labels is None else labels
    if attention_mask is not None:
        targets = targets.masked_fill(attention_mask == 0, -100)
    return torch.where(targets != -100, targets, input_ids), targets


def _check_start(
    start: int | None, clean: Tensor, attention_mask: Tensor | None, in_text: bool
) -> None:
    if start is None:
        raise ValueError(
            "start_token_id is None and the model's bos_token_id too. Pass the token that texts "
            "begin with."
        )
    contains = (
        clean == start if attention_mask is None else (clean == start) & (attention_mask != 0)
    )
    if contains.any() and not in_text:
        raise ValueError(
            f"input_ids contain the start token ({start}), whose probability is zero. Pass clean "
            "texts, and the start_token_id that the model was trained with."
        )
