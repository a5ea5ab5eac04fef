"""The loss of a LoMDM: views drawn, read in one pass, and the bound term by term.

This file travels to the Hub. `_loss` is the recipe; docs/method.md derives its formulas.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from .backbone_hub_lomdm import HubHead, shifted_states
from .backbone_lomdm import LoMDMPreTrainedModel
from .batch_lomdm import Batch, stack_copies, stack_views
from .blocks_lomdm import block_quantiles, block_sum
from .configuration_lomdm import BOUNDS
from .process_lomdm import (
    BoundTerms,
    View,
    draw_order_view,
    draw_time_view,
    order_bound,
    rloo_score,
    time_bound,
)
from .random_lomdm import position_exponentials, row_seeds, stratified_quantiles
from .rates_lomdm import RateLaw
from .token_losses_lomdm import CACHE_LOGITS, TokenLosses, rows_at_a_time

# logits of one chunk of the projection in a loss on a CPU, as many as their gradient
CHUNK_LOGITS = 2**24


@dataclass
class LoMDMOutput(ModelOutput):
    """Output of `LoMDMForMaskedDiffusion`: `B` texts, `L` positions, `V` ids, `D` hidden units.

    Without labels:
        logits: `[B, L, V]`, unnormalised token law in the model's dtype, the mask token at `-inf`;
            or `None`.
        rates: `[B, L]` float32, reverse rates `v_i(z) > 0`.
        last_hidden_state: `[B, L, D]`, the input of `token_logits` (with `logit_shift` the states
            of the positions before).
        hidden_states: as in `LoMDMModel`.
    With labels (everything except the loss is detached, and summed over the blocks of a text):
        loss: scalar, nats per maskable token; its value is the bound, its gradient includes the
            score term (docs/method.md, "Gradients").
        rates: `[B, L]`, the reverse rates of the first view, with an order head; else `None`.
        nelbo, main, velocity: `[B]`, nats per text; `nelbo = main + velocity`.
        score: `[B]`, the RLOO term; its gradient is in the loss, its value is not. `None` if the
            loss has no such term.
        forward_rates: `[B, L]` float32, `w_i(x) > 0`.
        rate_ratio: `[B]`, `V / W` over the masked positions, 1 when the reverse rates fit the
            forward ones.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    rates: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    nelbo: Tensor | None = None
    main: Tensor | None = None
    velocity: Tensor | None = None
    score: Tensor | None = None
    forward_rates: Tensor | None = None
    rate_ratio: Tensor | None = None


class LoMDMWithLoss(LoMDMPreTrainedModel):
    """The part of a model that estimates the bounds on `-log P(x)`, and the loss of them."""

    # what the model supplies
    rate_law: RateLaw
    hub_head: HubHead | None

    @property
    def learns_forward_rates(self) -> bool:
        """Whether the law of the views is learned, so that the loss has a score term."""
        return self.rate_law.learns_forward

    @property
    def num_views(self) -> int:
        """Masked views of each text in the loss: `config.num_views`, else what the rates need."""
        return self.config.num_views or self.rate_law.num_views

    @property
    def rates_need_logits(self) -> bool:
        """Whether reverse rates need the logits, so that positions cannot be chosen before."""
        return self.rate_law.needs_logits

    def encode(self, batch: Batch, views: Tensor | None = None, **options) -> Tensor:
        """Hidden states of the trunk for a batch, or for it and its views `[K * B, L]`."""
        raise NotImplementedError

    def token_logits(self, hidden: Tensor) -> Tensor:
        """The token law, `[..., D] -> [..., V]` unnormalised, the mask token at `-inf`."""
        raise NotImplementedError

    def rates_of_logits(self, logits: Tensor) -> Tensor:
        """Reverse rates `[...]`, float32 or wider, of the token law `[..., V]`."""
        raise NotImplementedError

    def _token_states(self, hidden: Tensor, batch: Batch) -> Tensor:
        raise NotImplementedError

    def _loss(
        self, batch: Batch, quantiles: Tensor | None, generator, bound: str | None
    ) -> LoMDMOutput:
        num_texts, device = len(batch.ids), batch.ids.device
        # 1. The same quantile but independent draws for each view    seeds           [views * B]
        if quantiles is None:
            quantiles = stratified_quantiles(num_texts, generator, device)
        seeds = torch.cat([row_seeds(generator, num_texts, device) for _ in range(self.num_views)])
        quantiles = block_quantiles(quantiles, seeds[:num_texts], batch.blocks)
        # 2. Rates of the forward process, from clean text            w               [B, L]
        rates = self.rate_law.forward_rates(self, batch)
        # 3. One pass over all views, the bound term by term          terms, log_q    [views * B, N]
        terms, log_q, reverse = self.estimate_bound(batch, rates, quantiles, seeds, bound)
        # 4. The bound, the mean over views                           nelbo           [B]
        by_view = (self.num_views, num_texts, -1)
        main, velocity, ratio = (values.view(by_view).mean(0) for values in terms)
        nelbo = (main + velocity).sum(-1)
        # 5. RLOO: value zero, gradient of the score                  score           [B]
        objective, score = nelbo, None
        if self.training and self.learns_forward_rates:
            score = rloo_score(
                (terms.main + terms.velocity).view(by_view), log_q.view(by_view)
            ).sum(-1)
            objective = nelbo + score - score.detach()
        # 6. The rate ratio, the mean over blocks that are not given  ratio           [B]
        has_maskable = block_sum(batch.maskable.to(ratio.dtype), batch.blocks) > 0
        ratio = 1 + (ratio - 1).sum(-1) / has_maskable.sum(-1).clamp(min=1)  # other blocks have 1
        # 7. Nats per maskable token
        return LoMDMOutput(
            loss=objective.sum() / batch.maskable.sum().clamp(min=1),
            nelbo=nelbo.detach(),
            main=main.sum(-1).detach(),
            velocity=velocity.sum(-1).detach(),
            score=None if score is None else score.detach(),
            rates=reverse[:num_texts].detach() if self.rate_law.uses_psi else None,
            forward_rates=rates.detach(),
            rate_ratio=ratio,
        )

    def estimate_bound(
        self,
        batch: Batch,
        rates: Tensor,
        quantiles: Tensor,
        seeds: Tensor,
        bound: str | None = None,
    ) -> tuple[BoundTerms, Tensor, Tensor]:
        """One-draw estimates of a bound for given forward rates; used by loss and evaluation.

        Args:
            batch: clean texts with their `maskable` positions. rates: `[B, L]`, `w` from
                `forward_rates`.
            quantiles: `[B, N]` in `(0, 1)`, from `block_quantiles`. seeds: `[K * B]` int64 of the
                draws of `K` views of each text, view after view (`row_seeds`).
        Returns:
            `BoundTerms` `[K * B, N]` in nats per view and block, `log q(z|x)` `[K * B, N]` of the
            drawn views, and the reverse rates `[K * B, L]` (of masked positions alone if they need
            logits, else 1).
        """
        # 1. Partly masked views of each text                         z               [K * B, L]
        num_views, bound = len(seeds) // len(batch.ids), bound or self.config.bound
        views, w = batch.stack(num_views), stack_views(rates, num_views)
        drawn = self._draw_view(views, w, stack_views(quantiles, num_views), seeds, bound)
        # before the pass over the views: here, and only here, the host waits for a GPU
        at = drawn.masked.nonzero(as_tuple=True)
        noisy = views._replace(ids=views.ids.masked_fill(drawn.masked, self.config.mask_token_id))
        hidden, v = self.encode_views(noisy, batch)
        # 2. The projection and the loss at masked positions only     nll             [K * B, L]
        losses, token_rates = self._token_losses(hidden[at], views.ids[at])
        nll = torch.zeros_like(w).index_put(at, losses.to(w.dtype))
        if self.rates_need_logits:
            v = v.index_put(at, token_rates.to(v.dtype))
        # 3. The bound, term by term
        evaluate = order_bound if bound == "order" else time_bound
        return evaluate(nll, w, v, drawn, views.blocks), drawn.log_q, v

    def _token_losses(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """`-log p` of `targets` `[M]` at hidden states `[M, D]`, and reverse rates `[M]`.

        Rates are 1 if they need no logits.

        Intermediate values are several times as large as the logits. So they are computed for a
        chunk of rows at a time, and again for the gradient. The projection is computed once.
        """
        size = rows_at_a_time(hidden, self.config.vocab_size, CHUNK_LOGITS)
        parts = [
            self._law_losses(self.token_logits(rows), wanted)
            for rows, wanted in zip(hidden.split(size), targets.split(size), strict=True)
        ]
        losses, rates = zip(*parts, strict=True)
        return torch.cat(losses), torch.cat(rates)

    def _law_losses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        losses = TokenLosses.apply(logits, targets)
        if not self.rates_need_logits:
            return losses, torch.ones_like(losses)
        # nothing random in it
        checkpoint_options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        row_chunks = logits.split(rows_at_a_time(logits, logits.shape[-1], CACHE_LOGITS))
        rates = [
            checkpoint(self.rates_of_logits, rows, **checkpoint_options) for rows in row_chunks
        ]
        return losses, torch.cat(rates)

    def encode_views(self, views: Batch, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states `[K * B, L, D]` and reverse rates `[K * B, L]` of partly masked views.

        With blocks, each block of a view sees the blocks before it as they are in the clean `batch`
        `[B, L]`, which all views of a text share. Rates that need logits are left at 1.
        """
        if self.config.block_size is None:
            hidden = self.encode(views)
            rates = self.rate_law.reverse_rates(self, hidden, views)
            return self._token_states(hidden, views), rates
        # psi and the shift read the clean copy; without both its outputs are unused
        shift = self.config.logit_shift
        keep_clean = self.rate_law.uses_psi or shift or self.hub_head is not None
        num_copies = len(views.ids) // len(batch.ids) + keep_clean
        packed = self.encode(batch, views.ids, views_only=not keep_clean)
        rates = self.rate_law.reverse_rates(self, packed, batch, num_copies)
        # [C * B, L, D], the clean copy first if it is there
        hidden = stack_copies(packed, num_copies)[-len(views.ids) :]
        if shift:
            hidden = shifted_states(packed, batch.position, self.config.block_size, num_copies)
        return hidden, rates[-len(views.ids) :]

    def _draw_view(
        self, views: Batch, rates: Tensor, quantiles: Tensor, seeds: Tensor, bound: str
    ) -> View:
        """Draws which positions of each view are masked; all arguments `[K * B, ...]`."""
        if bound not in BOUNDS:
            raise ValueError(f"bound must be one of {BOUNDS}, got {bound!r}.")
        exponentials = position_exponentials(seeds, views.position).to(rates)
        draws = (rates, views.maskable, quantiles.to(rates), exponentials, views.blocks)
        if bound == "order":
            return draw_order_view(*draws)
        # evaluation is neither cut nor clipped
        epsilon, time_range = (
            (self.config.time_epsilon, self.config.time_range) if self.training else (None, None)
        )
        return draw_time_view(*draws, epsilon, time_range)
