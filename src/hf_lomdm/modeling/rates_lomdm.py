"""The rates of the process as objects, with what they learn. This file travels to the Hub."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from .attention_lomdm import attention_inputs
from .backbone_lomdm import LoMDMLayer
from .batch_lomdm import Batch, stack_copies, stack_views
from .configuration_lomdm import LoMDMConfig
from .process_lomdm import (
    at_least_float32,
    centre,
    exponential_rates,
    learned_rates,
    log_rate_of_scores,
    log_rate_of_token_rates,
    rates_in_order,
)
from .random_lomdm import copy_to_device

RHO_AT_START = math.log(math.e - 1)  # softplus of it is 1


class LoMDMOrderHead(nn.Module):
    """One transformer block and an MLP: features of the backbone to a score `g` per position.

    The last layer starts at zero, so that all rates start at `c1`. It has no bias, because the mean
    score of a block is a flat direction of `NormSig` (docs/method.md, "order heads").

    Args:
        reads_given: add a learned vector, zero at the start, at given positions. `phi` needs it: it
            reads clean text, where given positions look like the others. `psi` sees the masks.
    """

    def __init__(self, config: LoMDMConfig, reads_given: bool = False):
        super().__init__()
        self.config = config
        self.given = nn.Parameter(torch.zeros(config.hidden_size)) if reads_given else None
        self.layer = LoMDMLayer(config, layer_index=config.num_hidden_layers)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = nn.GELU(approximate="tanh")
        self.out = nn.Linear(config.hidden_size, 1, bias=False)
        self.out.init_std = 0.0  # type: ignore[assignment]

    def forward(
        self,
        features: Tensor,
        attention_mask: Tensor | None = None,
        num_copies: int = 1,
        past_key_values: Cache | None = None,
        given: Tensor | None = None,
    ) -> Tensor:
        """Scores `[B, C * L]`, float32 or wider, of features `[B, C * L, D]`.

        Args:
            attention_mask, num_copies, past_key_values: as in `LoMDMModel`.
            given: `[B, L]` bool, the given positions, for a head that reads them; `None` = none.
        """
        if given is not None:
            features = features + (given[..., None] * self.given).to(features.dtype)  # [B, L, D]
        # the head's own in a cache, behind those of the backbone
        layer = self.config.num_hidden_layers
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length(layer)
        mask, rotary = attention_inputs(
            self.config, features, attention_mask, num_copies, past_length
        )
        hidden = self.layer(features, mask, rotary, past_key_values=past_key_values)
        return at_least_float32(self.out(self.act(self.dense(self.norm(hidden)))).squeeze(-1))


class LoMDMTokenRates(nn.Module):
    """A rate `omega = softplus(rho)` for each token, 1 at the start (the mask's is not used)."""

    def __init__(self, config: LoMDMConfig):
        super().__init__()
        self.rho = nn.Parameter(torch.empty(config.vocab_size))

    def forward(self) -> Tensor:
        """`log omega` `[V]`, float32 or wider."""
        rho = at_least_float32(self.rho)
        # far below zero softplus(rho) underflows, and its logarithm is rho
        return torch.where(rho < -20, rho, nn.functional.softplus(rho.clamp(min=-20)).log())

    def resize(self, vocab_size: int) -> None:
        """Keeps the rates of the ids that stay; those of new ids start at 1."""
        rho = self.rho.detach().new_full((vocab_size,), RHO_AT_START)
        kept = min(vocab_size, len(self.rho))
        rho[:kept] = self.rho.detach()[:kept]
        self.rho = nn.Parameter(rho, requires_grad=self.rho.requires_grad)


class RateLaw:
    """Forward rates `w` and reverse rates `v` of a model (docs/method.md, "the family").

    A law holds no weights: it reads the model's `phi`, `psi` and `omega`. So any law can be put in
    place of another (`LoMDMForMaskedDiffusion.with_rates`). A law of your own overrides
    `forward_rates` and `reverse_rates`.

    Attributes:
        level: of rates that nothing sets.
        learns_forward: whether forward rates are learned, so that the loss has a score term.
        needs_logits: whether reverse rates come from the logits of all positions, by
            `rates_of_logits`. If not, positions can be chosen before the projection to the
            vocabulary.
        uses_psi: whether reverse rates come from `psi`, which attends to the clean text of blocks.
    """

    level = 1.0
    learns_forward: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False
    uses_psi: ClassVar[bool] = False

    @property
    def num_views(self) -> int:
        """Masked views of each text in the loss: RLOO compares two."""
        return 2 if self.learns_forward else 1

    def modules(self, config: LoMDMConfig) -> dict[str, nn.Module]:
        """New modules for the model, of the names `phi`, `psi` and `omega`."""
        return {}

    def forward_rates(self, model: Any, batch: Batch) -> Tensor:
        """`w_i(x)` `[B, L]`, float32 or wider, of clean texts; what is not maskable is given."""
        dtype = torch.promote_types(model.get_input_embeddings().weight.dtype, torch.float32)
        return torch.full(batch.ids.shape, self.level, device=batch.ids.device, dtype=dtype)

    def reverse_rates(
        self,
        model: Any,
        hidden: Tensor,
        batch: Batch,
        num_copies: int = 1,
        past_key_values: Cache | None = None,
    ) -> Tensor:
        """`v_i(z)` `[C * B, L]` of the hidden states of partly masked texts; 1 if they need logits.

        Args:
            hidden: `[B, C * L, D]`, `C` copies of each text side by side.
            batch: the texts that were read: partly masked, or with several copies the clean ones.
            past_key_values: with blocks, the cache of the blocks before.
        """
        return stack_copies(
            torch.full_like(at_least_float32(hidden[..., 0]), self.level), num_copies
        )

    def rates_of_logits(self, model: Any, logits: Tensor) -> Tensor:
        """`v` `[...]`, float32 or wider, of the token law `[..., V]`, for laws that need logits."""
        raise NotImplementedError(f"{type(self).__name__} has no rates of logits.")

    def weigh_tokens(self, model: Any, logits: Tensor) -> Tensor:
        """The logits of the token law `[..., V]`, from those of the LM head."""
        return logits

    def resize(self, model: Any) -> None:
        """Follows a vocabulary of another size."""


def in_given_order(model: Any, rates: Tensor, batch: Batch) -> Tensor:
    """Rates `[C * B, L]` times the factor of each position that the configuration gives."""
    log_rates = model.config.position_log_rates
    if log_rates is None:
        return rates
    table = copy_to_device(torch.tensor(log_rates, dtype=rates.dtype), rates.device)
    log_factors = table[batch.position]  # [B, L]
    return rates_in_order(rates, stack_views(log_factors, len(rates) // len(log_factors)))


@dataclass(frozen=True)
class EqualRates(RateLaw):
    """All rates equal `level`: an order taken away, at `c1` a learned one."""

    level: float = 1.0


@dataclass(frozen=True)
class PositionRates(EqualRates):
    """Rates of the positions alone: 1, or in a given order the factor of each position."""

    def forward_rates(self, model: Any, batch: Batch) -> Tensor:
        """`w_i`, the same for every text."""
        return in_given_order(model, super().forward_rates(model, batch), batch)

    def reverse_rates(self, model: Any, hidden: Tensor, batch: Batch, *args, **options) -> Tensor:
        """`v_i = w_i`: the velocity part is zero."""
        rates = super().reverse_rates(model, hidden, batch, *args, **options)
        return in_given_order(model, rates, batch)


@dataclass(frozen=True)
class LearnedRates(RateLaw):
    """LoMDM: `c1 + c2 NormSig(g)`, from `phi` on clean and `psi` on partly masked text.

    With a `log_rate_range` `r` they are `exp(r NormSig(g))`. In a given order they are multiplied
    by the factor of each position.
    """

    learns_forward = True
    uses_psi = True

    def modules(self, config: LoMDMConfig) -> dict[str, nn.Module]:
        """`phi` for clean text, `psi` for partly masked text."""
        return {"phi": LoMDMOrderHead(config, reads_given=True), "psi": LoMDMOrderHead(config)}

    def forward_rates(self, model: Any, batch: Batch) -> Tensor:
        """`w` of the head `phi`, from hidden states of the clean texts without gradients."""
        with torch.no_grad():
            features = model.encode(batch, deterministic=True)
        # torch 2.9 and 2.10 would reuse its cast weights, which have no gradients, for the views
        torch.clear_autocast_cache()
        given = None if batch.maskable is None else ~batch.maskable
        return self._head_rates(model, model.phi, features, batch, given=given)

    def reverse_rates(
        self,
        model: Any,
        hidden: Tensor,
        batch: Batch,
        num_copies: int = 1,
        past_key_values: Cache | None = None,
    ) -> Tensor:
        """`v` of the head `psi`, which does not reach the backbone."""
        return self._head_rates(model, model.psi, hidden, batch, num_copies, past_key_values)

    def _head_rates(
        self,
        model,
        head,
        features: Tensor,
        batch: Batch,
        num_copies: int = 1,
        past_key_values=None,
        given=None,
    ) -> Tensor:
        """Rates `[C * B, L]` of an order head, from features `[B, C * L, D]`."""
        features = features.detach()  # heads never reach the backbone
        features = features.to(head.norm.weight.dtype)  # the heads may have another dtype
        if head.layer.gradient_checkpointing and torch.is_grad_enabled():
            # reentrant checkpointing drops the gradients of a layer whose input has none
            features.requires_grad_()
        scores = head(features, batch.attention_mask, num_copies, past_key_values, given)
        scores, batch = stack_copies(scores, num_copies), batch.stack(num_copies)
        # the mean score is a flat direction of NormSig, along which training drifts until the
        # sigmoids saturate
        scores = centre(scores, batch.real, batch.blocks)
        config = model.config
        if config.log_rate_range is None:
            rates = learned_rates(scores, config.c1, config.c2, batch.real, batch.blocks)
        else:
            rates = exponential_rates(scores, config.log_rate_range, batch.real, batch.blocks)
        return in_given_order(model, rates, batch)


@dataclass(frozen=True)
class TokenRates(RateLaw):
    """GenMD4: `w = omega[x]`, and `v` the mean of `omega` under the token law without `omega`."""

    learns_forward = True
    needs_logits = True

    def modules(self, config: LoMDMConfig) -> dict[str, nn.Module]:
        """`omega`, a rate for each token."""
        return {"omega": LoMDMTokenRates(config)}

    def forward_rates(self, model: Any, batch: Batch) -> Tensor:
        """`w = omega[x]`."""
        return model.omega().exp()[batch.ids.clamp(min=0)]

    def rates_of_logits(self, model: Any, logits: Tensor) -> Tensor:
        """`v`, the mean of `omega` under the token law without it."""
        return log_rate_of_token_rates(at_least_float32(logits), model.omega()).exp()

    def weigh_tokens(self, model: Any, logits: Tensor) -> Tensor:
        """The law proportional to `omega_y mu_y`."""
        return logits + model.omega().to(logits.dtype)

    def resize(self, model: Any) -> None:
        """One rate for each entry of the vocabulary; new ones are 1."""
        model.omega.resize(model.config.vocab_size)


@dataclass(frozen=True)
class ScoreRates(RateLaw):
    """SEDD: `w = 1`, and `v` the sum of its scores."""

    needs_logits = True

    def rates_of_logits(self, model: Any, logits: Tensor) -> Tensor:
        """`v`, the sum of the scores."""
        return log_rate_of_scores(at_least_float32(logits)).exp()


RATE_LAWS: dict[str, RateLaw] = {
    "learned": LearnedRates(),
    "uniform": PositionRates(),
    "token": TokenRates(),
    "score": ScoreRates(),
}
