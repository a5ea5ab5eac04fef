"""An order that follows the state: psi alone is trained, by what orders drawn from it earn.

The bound of training draws orders from phi, which reads the finished text, and charges what psi
cannot foretell of them. Here psi draws the orders itself, as the sampler does, and what is revealed
is the true text; so nothing is charged but the tokens (docs/method.md, "an order by policy
gradient").
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from ..evaluation import NelboEstimate
from ..modeling.batch_lomdm import Batch
from ..modeling.modeling_lomdm import LoMDMOutput
from ..modeling.process_lomdm import draw_order_view, log_prob_next, rloo_score
from ..modeling.random_lomdm import position_exponentials, position_uniforms, row_seeds
from ..modeling.token_draw_lomdm import certainty, inverse_cdf
from .model_card import Description
from .trainer import LoMDMTrainer

# What psi is paid for: to take the surest position first (a warm start), the log-probability of the
# texts that are revealed in its orders, or their probability.
CREDITS = ("certainty", "log_likelihood", "likelihood")
# In nats: two positions that are nearly certain differ in their log-rates by `r / WIDTH` times what
# their entropies differ, and less the more uncertain they are.
WIDTH = 0.6


class Reveals(NamedTuple):
    """Texts `[B, L]` revealed in at most `T` steps; `R` states in which a position was drawn.

    Attributes:
        features: `[R, L, D]`, hidden states of these states, step after step.
        states: their `Batch`: ids `[R, L]`, masks among them.
        masked: `[R, L]` bool, the positions to choose from.
        chosen: `[R]` int64, the position that was drawn.
        place: `[R]` int64 each, the text and the step, an index into `[B, T]`.
        log_p: `[B, T]`, log-probability of the tokens that a step revealed, in nats; 0 behind the
            last.
    """

    features: Tensor
    states: Batch
    masked: Tensor
    chosen: Tensor
    place: tuple[Tensor, Tensor]
    log_p: Tensor


def log_next_position(model: Any, features: Tensor, states: Batch, masked: Tensor) -> Tensor:
    """Log-law `[R, L]` of the next position of the sequential sampler, `v_i / sum of v`.

    It is differentiable in psi. Arguments as in `Reveals`.
    """
    rates = model.rate_law.reverse_rates(model, features, states)
    return log_prob_next(rates, masked)


@torch.no_grad()
def draw_reveals(model: Any, batch: Batch, seeds: Tensor, sure: float = 1.0) -> Reveals:
    """Reveals true texts in orders drawn from the model's reverse rates.

    Args:
        model: a LoMDM with one window.
        batch: clean texts with `maskable`. seeds: `[B]` int64 on the CPU, of the draws of each.
        sure: where the largest token probability of positions exceeds it, these are revealed all
            at once, and nothing is drawn; 1 = one position at a time, always.
    """
    masked, device = batch.maskable.clone(), batch.ids.device
    steps = int(masked.sum(1).max())
    uniforms = position_uniforms(seeds[:, None], torch.arange(steps))
    log_p = torch.zeros(len(masked), steps, dtype=precision(model), device=device)
    parts = []
    for step in range(steps):
        rows = masked.any(1).nonzero()[:, 0]  # texts of which something is left
        if not len(rows):
            break
        left = masked[rows]
        texts = batch.rows(rows)
        states = texts._replace(ids=texts.ids.masked_fill(left, model.config.mask_token_id))
        features = model.encode(states)
        law = log_next_position(model, features, states, left).exp().cpu().double()
        chosen = inverse_cdf(law, uniforms[rows.cpu(), step]).to(device)
        token_law = model.token_logits(features).to(log_p).log_softmax(-1)
        certain = left & (token_law.amax(-1) > math.log(sure))
        is_drawn = ~certain.any(1)
        now = certain.index_put((is_drawn.nonzero()[:, 0], chosen[is_drawn]), certain.new_ones(()))
        log_true = token_law.gather(-1, texts.ids[..., None])[..., 0]
        log_p[rows, step] = log_true.masked_fill(~now, 0.0).sum(-1)
        masked[rows] = left & ~now
        met = (features, states.ids, left, chosen, rows, torch.full_like(rows, step))
        parts.append([values[is_drawn] for values in met])
    # their cast weights have no gradients, and autocast would use them again
    torch.clear_autocast_cache()
    features, ids, left, chosen, rows, step = map(torch.cat, zip(*parts, strict=True))
    mask = None if batch.attention_mask is None else batch.attention_mask[rows]
    return Reveals(features, model.make_batch(ids, mask), left, chosen, (rows, step), log_p)


def precision(model: Any) -> torch.dtype:
    """float32, or float64 in a model of that."""
    return torch.promote_types(model.dtype, torch.float32)


def order_objective(
    model: Any, batch: Batch, seeds: Tensor, num_orders: int, credit: str, sure: float = 1.0
) -> tuple[Tensor, Tensor]:
    """What orders of each text earn `[B]`, with its gradient in psi, and `-log p` `[B]`, in nats.

    Of `log_likelihood` it is the mean over the orders of the text's log-probability, of
    `likelihood` that of its probability. Both are unbiased, and so is the gradient: each draw is
    credited with what comes after it (`likelihood`: with the whole), minus what the other orders of
    the text earn from the same step on.

    Args:
        seeds: `[num_orders * B]` int64 on the CPU, order after order. sure: as in `draw_reveals`.
    """
    reveals = draw_reveals(model, batch.stack(num_orders), seeds, sure)
    log_q = torch.zeros_like(reveals.log_p)
    if len(reveals.chosen):
        log_law = log_next_position(model, reveals.features, reveals.states, reveals.masked)
        drawn = log_law.gather(1, reveals.chosen[:, None])[:, 0]
        log_q = log_q.index_put(reveals.place, drawn.to(log_q))
    # order by order, [G, B, T]
    log_p, log_q = (
        values.view(num_orders, -1, values.shape[1]) for values in (reveals.log_p, log_q)
    )
    to_come = log_p.flip(-1).cumsum(-1).flip(-1)
    value = to_come if credit == "log_likelihood" else to_come[..., :1].exp()
    score = rloo_score(value, log_q).sum(-1)
    return value[..., 0].mean(0) + score - score.detach(), -log_p.sum(-1).mean(0)


def certainty_objective(model: Any, batch: Batch, masked: Tensor) -> Tensor:
    """How well psi takes the surest position first, `[B]`, from states with `masked` `[B, L]`.

    It is minus the mean square, over the masked positions, of what its log-rates differ from those
    of the entropies `H`, `r exp(-H / WIDTH)`, both up to a constant. `r` is `log_rate_range`.
    """
    states = batch._replace(ids=batch.ids.masked_fill(masked, model.config.mask_token_id))
    with torch.no_grad():
        features = model.encode(states)
        rows = masked.nonzero(as_tuple=True)
        logits = model.token_logits(features[rows])
        entropy = -certainty(logits, model.config.mask_token_id, "entropy").to(features.device)
        wanted = model.config.log_rate_range * torch.exp(-entropy / WIDTH).to(precision(model))
    torch.clear_autocast_cache()
    log_rates = model.rate_law.reverse_rates(model, features, states).log()
    difference = torch.zeros_like(log_rates).index_put(rows, log_rates[rows] - wanted)
    count = masked.sum(-1, keepdim=True)
    centred = (difference - difference.sum(-1, keepdim=True) / count) * masked
    return -(centred.square() / count).sum(-1)


class OrderPolicyTrainer(LoMDMTrainer):
    """Trains the head psi of a LoMDM, and nothing else, on the orders that it draws.

    Evaluation gives the bound of these orders: the mean of `-log p` of the text revealed in them.
    All states of a micro-batch, one for each draw, are in memory at once.

    Args:
        num_orders: orders of each text, 2 or more, that are compared with each other.
        credit: one of `CREDITS`.
        sure: in training, positions whose largest token probability exceeds it are revealed at
            once (`draw_reveals`): what is certain costs nothing, and its order says nothing.
        args, options: as in `LoMDMTrainer`.
    Raises:
        ValueError: a model without psi or with blocks, another number of orders, credit or `sure`.
    """

    def __init__(
        self,
        *args,
        num_orders: int = 4,
        credit: str = "log_likelihood",
        sure: float = 1.0,
        **options,
    ):
        super().__init__(*args, **options)
        check_policy(self.model.config, num_orders, credit, sure, self.accelerator.num_processes)
        self.num_orders, self.credit, self.sure = num_orders, credit, sure
        self.model.requires_grad_(False)
        self.model.psi.requires_grad_(True)

    def objective(self, model: Any, inputs: dict[str, Any]) -> LoMDMOutput:
        """Minus what orders earn, per maskable token, or the distance from certainty."""
        batch = self._texts(model, inputs)
        count = batch.maskable.sum(-1)
        if self.credit == "certainty":
            loss = -certainty_objective(model, batch, self._draw_masks(batch, inputs)) * count
            cost = loss.detach()
        else:
            seeds = self._seeds(inputs["generator"], batch, self.num_orders)
            how = self.num_orders, self.credit, self.sure
            earned, cost = order_objective(model, batch, seeds, *how)
            # where all is sure nothing is drawn, and the Trainer asks for a gradient all the same
            loss = 0 * model.psi.out.weight.sum() - earned
        loss = loss.sum() / count.sum().clamp(min=1)
        return LoMDMOutput(loss=loss, nelbo=cost, main=cost, velocity=torch.zeros_like(cost))

    def _draw_masks(self, batch: Batch, inputs: dict[str, Any]) -> Tensor:
        """What is masked `[B, L]` in a state of each text on its way in a random order."""
        seeds = row_seeds(inputs["generator"], len(batch.ids), batch.ids.device)
        noise = position_exponentials(seeds, batch.position).to(batch.ids.device)
        rates, quantiles = torch.ones_like(noise), inputs["quantiles"][:, None]
        return draw_order_view(rates, batch.maskable, quantiles, noise).masked

    def describe(self) -> Description:
        """What the model card says: the measure is not the order bound, whose orders are phi's."""
        measures = {"eval_nelbo": "bound by orders drawn from psi alone"}
        return replace(super().describe(), measures=measures, objective="orders of psi alone")

    @torch.no_grad()
    def estimate(self, batch: dict[str, Tensor], generators: list[Generator]) -> NelboEstimate:
        """`-log p` of each text revealed in orders of psi, the mean over `eval_num_samples`."""
        model, count = self.accelerator.unwrap_model(self.model), self.args.eval_num_samples
        texts = self._texts(model, batch)
        seeds = self._seeds(generators, texts, count)
        log_p = draw_reveals(model, texts.stack(count), seeds).log_p
        costs = -log_p.sum(-1).view(count, -1).double().cpu()
        error = None if count == 1 else costs.std(0) / count**0.5
        cost = costs.mean(0)
        return NelboEstimate(cost, error, cost, torch.zeros_like(cost))

    def _texts(self, model: Any, inputs: dict[str, Any]) -> Batch:
        labels, mask = inputs["labels"], inputs.get("attention_mask")
        maskable = labels != -100 if mask is None else (labels != -100) & mask.bool()
        if not maskable.any(1).all():
            raise ValueError("labels of a text hold nothing to reveal. Leave such texts out.")
        return model.make_batch(inputs["input_ids"], mask, maskable)

    def _seeds(self, generators: list[Generator], batch: Batch, count: int) -> Tensor:
        return torch.cat([row_seeds(generators, len(batch.ids), "cpu") for _ in range(count)])


def check_policy(config: Any, num_orders: int, credit: str, sure: float, processes: int) -> None:
    """Raises `ValueError` for what `OrderPolicyTrainer` cannot train or be told."""
    if config.rate_type != "learned" or config.block_size is not None or config.logit_shift:
        raise ValueError(
            f"the model has rate_type={config.rate_type!r}, block_size={config.block_size}, "
            f"logit_shift={config.logit_shift}; an order policy needs a learned order in one "
            "window. Pass a LoMDM without blocks."
        )
    if credit == "certainty" and config.log_rate_range is None:
        raise ValueError(
            "credit='certainty' needs rates that can say so, and the model has log_rate_range=None."
            " Give it one, for example 40."
        )
    if num_orders < 2:
        raise ValueError(
            f"num_orders must be at least 2, got {num_orders}: orders are judged by each other."
        )
    if credit not in CREDITS:
        raise ValueError(f"credit must be one of {CREDITS}, got {credit!r}.")
    if not 0 < sure <= 1:
        raise ValueError(f"sure must be in (0, 1], got {sure}. Pass 1 to draw every position.")
    if processes > 1:
        raise ValueError(f"an order policy trains in one process, got {processes}. Start one.")
