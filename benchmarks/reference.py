"""Plain versions of what peers do, to measure against: one line for each formula.

They run the modules of our model, so backbone, weights, attention and dtype are the same on both
sides. What differs is the work around them: logits at every position, a softmax over the whole
vocabulary, one pass for each view.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hf_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.modeling.process_lomdm import at_least_float32


def draw_masks(quantiles: Tensor, length: int) -> Tensor:
    """MDLM's masks `[B, L]` bool: `k = floor(quantile * L)` uniformly chosen positions stay.

    The share that is masked, `(L - k) / L`, takes the part of the time `t`.
    """
    kept = (quantiles * length).floor().clamp(max=length - 1)
    rank = torch.rand(len(quantiles), length, device=quantiles.device).argsort(-1).argsort(-1)
    return rank >= kept[:, None]


def token_losses(model: LoMDMForMaskedDiffusion, hidden: Tensor, clean: Tensor) -> Tensor:
    """`-log p_i(x_i)` `[B, L]` at every position, by a log-softmax over the vocabulary."""
    logits = at_least_float32(model.lm_head(hidden))  # [B, L, V]
    logits[..., model.config.mask_token_id] = -torch.inf
    return -logits.log_softmax(-1).gather(-1, clean[..., None]).squeeze(-1)


def mdlm_loss(model: LoMDMForMaskedDiffusion, clean: Tensor, masked: Tensor) -> Tensor:
    """The loss of MDLM, nats per token: `1/t` times the loss of the masked positions.

    With `t` the share that is masked this is the order bound at uniform rates, so that our model's
    loss has the same value and the same gradient for the same masks.

    Args:
        clean: `[B, L]`. masked: `[B, L]` bool, at least one in each text.
    """
    noisy = clean.masked_fill(masked, model.config.mask_token_id)
    nll = token_losses(model, model.model(noisy).last_hidden_state, clean)
    time = masked.to(nll.dtype).mean(-1, keepdim=True)
    return (nll * masked / time).sum() / clean.numel()


def norm_sig_rates(model: LoMDMForMaskedDiffusion, scores: Tensor) -> Tensor:
    """`c1 + c2 NormSig(g)` `[B, L]`; the mean score is taken off first."""
    sigmoid = (scores - scores.mean(-1, keepdim=True)).sigmoid()
    return model.config.c1 + model.config.c2 * (sigmoid - sigmoid.mean(-1, keepdim=True))


def naive_lomdm_loss(
    model: LoMDMForMaskedDiffusion,
    clean: Tensor,
    quantiles: Tensor,
    exponentials: tuple[Tensor, Tensor],
) -> Tensor:
    """The order bound of LoMDM, nats per token, in three passes that all make all logits.

    Args:
        clean: `[B, L]`. quantiles: `[B]` in `(0, 1)`. exponentials: `[B, L]` `Exp(1)` draws for
            each of both views.
    """
    # 1. The clean text: forward rates                                               w        [B, L]
    with torch.no_grad():
        features = model.model(clean, deterministic=True).last_hidden_state
        model.lm_head(features)  # a forward pass of a peer's model gives logits, wanted or not
    w = norm_sig_rates(model, model.phi(features))
    revealed = (quantiles * clean.shape[1]).floor().clamp(max=clean.shape[1] - 1)[:, None]
    # 2. One pass for each view                                                      L, log q [B]
    (first, first_q), (second, second_q) = (
        _view_bound(model, clean, w, revealed, draws) for draws in exponentials
    )
    # 3. RLOO
    score = (first - second).detach() * (first_q - second_q) / 2
    return ((first + second) / 2 + score - score.detach()).sum() / clean.numel()


def _view_bound(
    model, clean: Tensor, w: Tensor, revealed: Tensor, exponentials: Tensor
) -> tuple[Tensor, Tensor]:
    """The bound `[B]` at one state, and the log-probability `[B]` of the reveals before it."""
    order = (exponentials / w.detach()).argsort(-1)  # Plackett-Luce
    masked = order.argsort(-1) >= revealed
    in_order = w.gather(-1, order)
    left = in_order.flip(-1).cumsum(-1).flip(-1)  # W before each reveal
    before = torch.arange(clean.shape[1], device=clean.device) < revealed
    log_q = ((in_order.log() - left.log()) * before).sum(-1)
    hidden = model.model(clean.masked_fill(masked, model.config.mask_token_id)).last_hidden_state
    nll, v = token_losses(model, hidden, clean), norm_sig_rates(model, model.psi(hidden.detach()))
    w_share, v_share = (rates / (rates * masked).sum(-1, keepdim=True) for rates in (w, v))
    bound = clean.shape[1] * (w_share * masked * (nll + w_share.log() - v_share.log())).sum(-1)
    return bound, log_q


@torch.no_grad()
def ancestral_sample(
    model: LoMDMForMaskedDiffusion,
    sample: Tensor,
    steps: int,
    first_step: int = 0,
    after_step: Callable[[], bool | None] | None = None,
    rows: int = 32,
) -> Tensor:
    """MDLM's ancestral sampler, with the rates of the model (1 for MDLM): from `sample` to text.

    In every step each masked position draws from `V` outcomes in float64: a token, or to stay
    masked. The output of the model is used again as long as the batch has not changed.

    Args:
        sample: `[B, L]`, masks where text is wanted. steps: of the whole way from `t = 1` to 0, on
            an even grid.
        first_step: where to start. after_step: called after each step; returning `True` ends the
            run.
        rows: texts that draw at once; the outcomes of one take `8 L V` bytes, four times over.
    Returns:
        `[B, L]`.
    """
    out = None
    for step in range(first_step, steps):
        time, next_time = (steps - step) / steps, (steps - step - 1) / steps
        if out is None:
            out = model(input_ids=sample)
        parts = zip(sample.split(rows), out.logits.split(rows), out.rates.split(rows), strict=True)
        following = torch.cat([_ancestral_draw(model, *part, next_time / time) for part in parts])
        if not torch.equal(following, sample):
            out = None
        sample = following
        if after_step is not None and after_step():
            break
    return sample


def _ancestral_draw(model, sample: Tensor, logits: Tensor, rates: Tensor, left: float) -> Tensor:
    """The state `[B, L]` after a step that leaves the share `left` of the time."""
    mask = model.config.mask_token_id
    stay = left ** rates.double()  # [B, L]
    outcomes = logits.double().softmax(-1) * (1 - stay)[..., None]  # [B, L, V]
    outcomes[..., mask] = stay
    noise = -torch.rand(outcomes.shape, dtype=torch.float64, device=sample.device).log()
    drawn = (outcomes / noise).argmax(-1)  # the Gumbel trick, its exponential taken on both sides
    return torch.where(sample == mask, drawn, sample)
