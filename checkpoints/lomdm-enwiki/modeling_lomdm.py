"""LoMDM models: the bidirectional backbone, the order heads, and the loss. This file travels to the Hub."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_lomdm import BOUNDS, LoMDMConfig
from .process_lomdm import (
    BoundTerms,
    centre,
    draw_order_view,
    draw_time_view,
    learned_rates,
    order_bound,
    position_exponentials,
    rloo_score,
    row_seeds,
    time_bound,
)


@dataclass
class LoMDMOutput(ModelOutput):
    """Output of `LoMDMForMaskedDiffusion`; `B` texts of `L` positions, `V` token ids, `D` hidden units.

    Without labels:
        logits: `[B, L, V]`, unnormalised token law in the model's dtype, the mask token at `-inf`; or `None`.
        rates: `[B, L]` float32, reverse rates `v_i(z) > 0`.
        last_hidden_state: `[B, L, D]`.
    With labels (everything but the loss is detached, and summed over the blocks of a text):
        loss: scalar, nats per maskable token; its value is the bound, its gradient that of section 2 (RLOO).
        nelbo, main, velocity: `[B]`, nats per text; `nelbo = main + velocity`.
        score: `[B]`, the RLOO term whose gradient is in the loss (its value is not); `None` with a single view.
        forward_rates: `[B, L]` float32, `w_i(x) > 0`.
        rate_ratio: `[B]`, `V / W` over the masked positions, 1 when the reverse rates fit the forward ones.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    rates: Tensor | None = None
    last_hidden_state: Tensor | None = None
    nelbo: Tensor | None = None
    main: Tensor | None = None
    velocity: Tensor | None = None
    score: Tensor | None = None
    forward_rates: Tensor | None = None
    rate_ratio: Tensor | None = None


def wide(values: Tensor) -> Tensor:
    """`values` in float32, or in float64 if that is what they are: the precision of the process."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def position_ids(attention_mask: Tensor | None, length: int, device) -> Tensor:
    """Positions `[B, L]` (`[1, L]` without a mask) counted from the first real token."""
    if attention_mask is None:
        return torch.arange(length, device=device)[None]
    return (attention_mask.to(torch.int64).cumsum(-1) - 1).clamp(min=0)


def rotary_tables(position: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[B, 1, L, head_size]` of the half-rotation form, float32.

    Computed in every pass: non-persistent buffers hold garbage after `from_pretrained`.
    """
    exponent = torch.arange(0, head_size, 2, device=position.device, dtype=torch.float32) / head_size
    angle = position[:, None, :, None].float() * theta**-exponent  # [B, 1, L, head_size / 2]
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turns each pair `(j, j + head_size / 2)` of `states` `[B, H, L, head_size]` by the angle of its position."""
    cos, sin = rotary
    first, second = states.chunk(2, dim=-1)
    return (states * cos + torch.cat((-second, first), dim=-1) * sin).to(states.dtype)


def attention_inputs(config: LoMDMConfig, hidden: Tensor, attention_mask: Tensor | None) -> tuple:
    """The attention mask in the form of the attention implementation (`None` = no mask), and the rotary tables."""
    position = position_ids(attention_mask, hidden.shape[1], hidden.device)
    rotary = rotary_tables(position, config.hidden_size // config.num_attention_heads, config.rope_theta)
    if attention_mask is None:
        return None, rotary
    real = attention_mask.to(torch.bool)
    return create_bidirectional_mask(config=config, inputs_embeds=hidden, attention_mask=real), rotary


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Plain attention with transformers' signature: `[B, H, L, head_size]` in, `[B, L, H, head_size]` out."""
    weights = query @ key.transpose(2, 3) * scaling  # [B, H, L, L]
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = wide(weights).softmax(-1).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class LoMDMAttention(nn.Module):
    """Bidirectional self-attention with rotary positions, without biases."""

    is_causal = False

    def __init__(self, config: LoMDMConfig):
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None, rotary: tuple[Tensor, Tensor]) -> Tensor:
        batch, length, _ = hidden.shape
        qkv = self.qkv_proj(hidden).view(batch, length, 3, -1, self.head_size)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, L, head_size]
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        attended, _ = attend(
            self,
            rotate(query, rotary),
            rotate(key, rotary),
            value,
            attention_mask,
            dropout=0.0,
            scaling=self.head_size**-0.5,
        )
        return self.o_proj(attended.reshape(batch, length, -1))


class LoMDMMLP(nn.Module):
    """Linear, tanh-GELU, linear."""

    def __init__(self, config: LoMDMConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = nn.GELU(approximate="tanh")
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(self.act(self.up_proj(hidden)))


class LoMDMLayer(GradientCheckpointingLayer):
    """A pre-LN transformer block; `dropout` acts on both residual branches."""

    def __init__(self, config: LoMDMConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = LoMDMAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = LoMDMMLP(config)
        # the sum over 2 * num_hidden_layers residual branches starts with the variance of one
        residual_std = config.initializer_range / (2 * config.num_hidden_layers) ** 0.5
        self.attention.o_proj.init_std = self.mlp.down_proj.init_std = residual_std

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None, rotary: tuple[Tensor, Tensor], dropout: float = 0.0
    ) -> Tensor:
        branch = self.attention(self.attention_norm(hidden), attention_mask, rotary)
        hidden = hidden + nn.functional.dropout(branch, dropout, training=dropout > 0)
        branch = self.mlp(self.mlp_norm(hidden))
        return hidden + nn.functional.dropout(branch, dropout, training=dropout > 0)


class LoMDMPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of these models."""

    config_class = LoMDMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # The Trainer may divide the loss by the accumulation steps: it is a mean, not a sum over `num_items_in_batch`.
    accepts_loss_kwargs = False
    _no_split_modules = ["LoMDMLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """`PreTrainedModel.from_pretrained` that refuses a checkpoint with missing or unexpected weights.

        With `output_loading_info=True` it returns `(model, info)` as in transformers and leaves the judgement of
        `info["missing_keys"]`, which got random values, to the caller.

        Raises:
            ValueError: if weights are missing or unexpected, with their names.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if output_loading_info:
            return model, info
        missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        if missing or unexpected:
            raise ValueError(
                f"The checkpoint does not fit {cls.__name__}: missing {missing[:5]}, unexpected {unexpected[:5]}. "
                "Check config.json, or pass output_loading_info=True to accept random values for missing weights."
            )
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Of custom code transformers passes leaf modules only: layers say on the leaf what is special (`init_std`).
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=getattr(module, "init_std", self.config.initializer_range))
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class LoMDMModel(LoMDMPreTrainedModel):
    """The backbone alone: token ids to hidden states. It sees neither the time nor the rates."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^phi\.", r"^psi\."]  # of a checkpoint with all heads

    def __init__(self, config: LoMDMConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LoMDMLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, deterministic: bool = False
    ) -> BaseModelOutput:
        """Hidden states of partly masked or clean texts.

        Args:
            input_ids: `[B, L]` int64.
            attention_mask: `[B, L]`, 1 = real, 0 = padding on either side; `None` = nothing padded.
            deterministic: no dropout, in training mode too (the clean pass of the forward rates).
        Returns:
            `last_hidden_state` `[B, L, D]`.
        """
        check_inputs(input_ids, attention_mask, self.config)
        hidden = self.embed_tokens(input_ids)
        mask, rotary = attention_inputs(self.config, hidden, attention_mask)
        dropout = self.config.dropout if self.training and not deterministic else 0.0
        for layer in self.layers:
            hidden = layer(hidden, mask, rotary, dropout)
        return BaseModelOutput(last_hidden_state=self.norm(hidden))


class LoMDMOrderHead(nn.Module):
    """One transformer block and an MLP: features of the backbone to a centred score `g` per position.

    The mean score of a text is a flat direction of `NormSig` along which training drifts until the sigmoids saturate;
    scores are therefore centred, and the last layer has no bias (docs/method.md, "order heads"). The last layer
    starts at zero: all rates start at `c1`.
    """

    def __init__(self, config: LoMDMConfig):
        super().__init__()
        self.config = config
        self.layer = LoMDMLayer(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = nn.GELU(approximate="tanh")
        self.out = nn.Linear(config.hidden_size, 1, bias=False)
        self.out.init_std = 0.0

    def forward(self, features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Scores `[B, L]` (float32 or wider, mean zero over the real positions) of features `[B, L, D]`."""
        mask, rotary = attention_inputs(self.config, features, attention_mask)
        hidden = self.layer(features, mask, rotary)
        scores = self.out(self.act(self.dense(self.norm(hidden)))).squeeze(-1)
        return centre(wide(scores), as_bool(attention_mask))


def as_bool(attention_mask: Tensor | None) -> Tensor | None:
    """The padding mask as bool, `None` where nothing is padded."""
    return None if attention_mask is None else attention_mask.to(torch.bool)


class LoMDMForMaskedDiffusion(LoMDMPreTrainedModel):
    """A masked diffusion language model with a learned (or uniform) order: backbone, LM head and order heads.

    Without labels it gives the token law `p_i(z)` and the reverse rates `v_i(z)` of a partly masked text; with labels
    the loss, a bound on `-log P(x)` in nats per token (docs/method.md).
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: LoMDMConfig):
        super().__init__(config)
        self.model = LoMDMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        learned = config.rate_type == "learned"
        self.phi = LoMDMOrderHead(config) if learned else None  # forward rates w, from clean text
        self.psi = LoMDMOrderHead(config) if learned else None  # reverse rates v, from partly masked text
        self.post_init()
        self._keys_to_ignore_on_load_unexpected = None  # post_init takes over what the backbone alone may ignore

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    @property
    def num_views(self) -> int:
        """Views per text in the loss: two where the law of the views is learned (RLOO), else one."""
        return 2 if self.config.rate_type == "learned" else 1

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        quantiles: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        bound: str | None = None,
        output_logits: bool = True,
    ) -> LoMDMOutput:
        """Token law and rates of partly masked texts, or with `labels` the loss of clean texts.

        Args:
            input_ids: `[B, L]` int64, partly masked texts; with labels the clean texts.
            attention_mask: `[B, L]`, 1 = real; `None` = nothing padded. Padding is never attended to nor counted.
            labels: `[B, L]`, the clean token ids; -100 = given, neither masked nor counted.
            quantiles: `[B]` in `(0, 1)`, fixes the number of reveals (order bound) or the local time (time bound) of
                each text; default: stratified within the batch.
            generator: source of masks and orders; one, or one per text (then a text does not depend on its batch).
            bound: `"order"` or `"time"`; default `config.bound`.
            output_logits: `False` leaves the vocabulary projection to `token_logits`.
        Raises:
            ValueError: shapes that do not agree, ids outside the vocabulary, a bound that does not exist.
        """
        if labels is None:
            return self._denoise(input_ids, attention_mask, output_logits)
        check_labels(input_ids, labels, quantiles, self.config)
        maskable = labels != -100 if attention_mask is None else (labels != -100) & attention_mask.bool()
        clean = torch.where(maskable, labels, input_ids).to(torch.int64)
        return self._loss(clean, attention_mask, maskable, quantiles, generator, bound or self.config.bound)

    def forward_rates(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Forward rates `w_i(x)` `[B, L]`, float32 or wider, of clean texts `[B, L]`; differentiable in `phi` alone."""
        if self.phi is None:
            return torch.ones(x.shape, device=x.device, dtype=wide(self.lm_head.weight[:0]).dtype)
        with torch.no_grad():
            features = self.model(x, attention_mask, deterministic=True).last_hidden_state
        return self._rates(self.phi, features, attention_mask)

    def token_logits(self, hidden: Tensor) -> Tensor:
        """The token law of hidden states, `[..., D] -> [..., V]` unnormalised, the mask token at `-inf`."""
        logits = self.lm_head(hidden)
        logits[..., self.config.mask_token_id] = -torch.inf  # in place: a copy of [..., V] would be the largest tensor
        return logits

    def _denoise(self, input_ids: Tensor, attention_mask: Tensor | None, output_logits: bool) -> LoMDMOutput:
        hidden = self.model(input_ids, attention_mask).last_hidden_state
        return LoMDMOutput(
            logits=self.token_logits(hidden) if output_logits else None,
            rates=self._reverse_rates(hidden, attention_mask),
            last_hidden_state=hidden,
        )

    def _rates(self, head: LoMDMOrderHead, features: Tensor, attention_mask: Tensor | None) -> Tensor:
        features = features.detach()  # heads never reach the backbone
        if head.layer.gradient_checkpointing and torch.is_grad_enabled():
            features.requires_grad_()  # reentrant checkpointing drops the gradients of a layer whose input has none
        scores = head(features, attention_mask)
        return learned_rates(scores, self.config.c1, self.config.c2, as_bool(attention_mask))

    def _reverse_rates(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        if self.psi is None:
            return torch.ones_like(wide(hidden[..., 0]))
        return self._rates(self.psi, hidden, attention_mask)

    def _loss(self, clean, attention_mask, maskable, quantiles, generator, bound) -> LoMDMOutput:
        batch = clean.shape[0]
        # 1. Rates of the forward process, from clean text                        w                 [B, L]
        rates = self.forward_rates(clean, attention_mask)
        # 2. The same quantile but independent draws for each view                seeds             [views * B]
        if quantiles is None:
            quantiles = stratified_quantiles(batch, generator, clean.device)
        seeds = torch.cat([row_seeds(generator, batch, clean.device) for _ in range(self.num_views)])
        # 3. One pass over all views, the bound term by term                      terms, log_q      [views * B, N]
        repeated = [stack_views(values, self.num_views) for values in (clean, rates, maskable, quantiles)]
        terms, log_q = self.estimate_bound(*repeated, seeds, stack_views(attention_mask, self.num_views), bound)
        # 4. The bound, the mean over views                                       nelbo             [B]
        main, velocity, ratio = (values.view(self.num_views, batch, -1).mean(0) for values in terms)
        nelbo = (main + velocity).sum(-1)
        # 5. RLOO: value zero, gradient of the score                              score             [B]
        objective, score = nelbo, None
        if self.training and self.num_views == 2:
            score = rloo_score(*(terms.main + terms.velocity).chunk(2), *log_q.chunk(2)).sum(-1)
            objective = nelbo + score - score.detach()
        # 6. Nats per maskable token
        return LoMDMOutput(
            loss=objective.sum() / maskable.sum().clamp(min=1),
            nelbo=nelbo.detach(),
            main=main.sum(-1).detach(),
            velocity=velocity.sum(-1).detach(),
            score=None if score is None else score.detach(),
            forward_rates=rates.detach(),
            rate_ratio=ratio.mean(-1),
        )

    def estimate_bound(
        self,
        clean: Tensor,
        rates: Tensor,
        maskable: Tensor,
        quantiles: Tensor,
        seeds: Tensor,
        attention_mask: Tensor | None = None,
        bound: str | None = None,
    ) -> tuple[BoundTerms, Tensor]:
        """One-view estimates of a bound for given forward rates; the building block of the loss and of evaluation.

        Args:
            clean: `[B, L]`, clean texts. rates: `[B, L]`, `w` from `forward_rates`. maskable: `[B, L]` bool.
            quantiles: `[B]` in `(0, 1)`. seeds: `[B]` int64 of the draws (`row_seeds`).
        Returns:
            `BoundTerms` `[B, N]` in nats per text and block, and `log q(z|x)` `[B, N]` of the drawn views.
        """
        # 1. A partly masked view of each text                                    z                 [B, L]
        view = self._draw_view(rates, maskable, quantiles, seeds, attention_mask, bound or self.config.bound)
        noisy = clean.masked_fill(view.masked, self.config.mask_token_id)
        # 2. One pass; the projection and the loss at masked positions only       nll               [B, L]
        hidden = self.model(noisy, attention_mask).last_hidden_state
        logits = wide(self.token_logits(hidden[view.masked]))  # [M, V]
        losses = nn.functional.cross_entropy(logits, clean[view.masked], reduction="none")
        nll = torch.zeros_like(rates).masked_scatter(view.masked, losses.to(rates.dtype))
        # 3. The bound, term by term
        reverse = self._reverse_rates(hidden, attention_mask)
        evaluate = order_bound if (bound or self.config.bound) == "order" else time_bound
        return evaluate(nll, rates, reverse, view), view.log_q

    def _draw_view(self, rates, maskable, quantiles, seeds, attention_mask, bound):
        if bound not in BOUNDS:
            raise ValueError(f"bound must be one of {BOUNDS}, got {bound!r}.")
        position = position_ids(attention_mask, rates.shape[1], rates.device)
        exponentials = position_exponentials(seeds, position).to(rates.device)
        quantiles = quantiles.to(rates)[:, None]
        if bound == "order":
            return draw_order_view(rates, maskable, quantiles, exponentials)
        epsilon = self.config.time_epsilon if self.training else None  # evaluation is never cut
        return draw_time_view(rates, maskable, quantiles, exponentials, epsilon=epsilon)


def stack_views(values: Tensor | None, num_views: int) -> Tensor | None:
    """`[B, ...] -> [num_views * B, ...]`, view after view."""
    return None if values is None else values.repeat(num_views, *[1] * (values.dim() - 1))


def stratified_quantiles(batch: int, generator, device) -> Tensor:
    """Default quantiles `[B]`: one shared offset, evenly spread; independent ones with a generator per text."""
    if isinstance(generator, (list, tuple)):
        return torch.cat([stratified_quantiles(1, one, device) for one in generator])
    source = device if generator is None else generator.device
    offset = torch.rand(1, generator=generator, device=source).to(device)
    quantiles = (offset + torch.arange(batch, device=device) / batch) % 1
    return quantiles.clamp(2**-25, 1 - 2**-24)  # inside (0, 1): log and floor are taken


def check_inputs(input_ids: Tensor, attention_mask: Tensor | None, config: LoMDMConfig) -> None:
    """Raises `ValueError` for shapes that do not agree and, where it costs no synchronisation, for unknown ids."""
    if input_ids.dim() != 2 or 0 in input_ids.shape:
        raise ValueError(f"input_ids must have the shape [batch, length], not empty, got {list(input_ids.shape)}.")
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"input_ids must be token ids of dtype int64, got {input_ids.dtype}.")
    if input_ids.shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"input_ids has length {input_ids.shape[1]}, more than max_position_embeddings="
            f"{config.max_position_embeddings}. Cut or split the texts."
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids, {list(input_ids.shape)}, got "
            f"{list(attention_mask.shape)}. Pass 1 for real tokens and 0 for padding."
        )
    check_ids("input_ids", input_ids, config.vocab_size)


def check_ids(name: str, ids: Tensor, vocab_size: int) -> None:
    """Raises `ValueError` for ids outside the vocabulary; on the CPU only (elsewhere it would synchronise)."""
    if torch.compiler.is_compiling() or ids.device.type != "cpu" or ids.numel() == 0:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"{name} must be in [0, vocab_size={vocab_size}), got {low if low < 0 else high}. "
            "Use the tokenizer that the model was trained with."
        )


def check_labels(input_ids: Tensor, labels: Tensor, quantiles: Tensor | None, config: LoMDMConfig) -> None:
    """Raises `ValueError` for labels or quantiles that do not fit the input; values are read on the CPU only."""
    if labels.shape != input_ids.shape:
        raise ValueError(
            f"labels must have the shape of input_ids, {list(input_ids.shape)}, got {list(labels.shape)}. "
            "Pass the clean token ids, -100 at given positions."
        )
    if quantiles is not None and quantiles.shape != input_ids.shape[:1]:
        raise ValueError(f"quantiles must have the shape [batch={len(input_ids)}], got {list(quantiles.shape)}.")
    if torch.compiler.is_compiling() or labels.device.type != "cpu":
        return
    if quantiles is not None and not ((quantiles > 0) & (quantiles < 1)).all():
        raise ValueError(f"quantiles must be in (0, 1), got {quantiles.tolist()}.")
    clean = torch.where(labels == -100, input_ids, labels)
    check_ids("labels", clean, config.vocab_size)
    if (clean == config.mask_token_id).any():
        raise ValueError(
            f"labels or given positions contain the mask token ({config.mask_token_id}). "
            "Pass clean texts: the model masks them."
        )
