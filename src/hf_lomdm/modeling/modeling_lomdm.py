"""LoMDM models: backbone, LM head, rates and loss. This file travels to the Hub."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from .adapted_lomdm import Adapted
from .attention_lomdm import attention_inputs  # noqa: F401  diffusers copies what this file imports, no deeper
from .backbone_hub_lomdm import HubHead, new_model, read_backbone, shifted_states, takes_cache
from .backbone_lomdm import (
    GIVEN,
    LoMDMModel,
    check_labels,
    check_text,
    check_unread,
    one_text,
)
from .batch_lomdm import Batch, make_batch, stack_views
from .blocks_lomdm import Blocks  # noqa: F401  diffusers copies what this file imports, no deeper
from .checkpoint_lomdm import check_checkpoint  # noqa: F401  diffusers copies what this file imports, no deeper
from .configuration_lomdm import LoMDMConfig
from .context_lomdm import BlockContext
from .fields_lomdm import Number  # noqa: F401  diffusers copies what this file imports, no deeper
from .loss_lomdm import LoMDMOutput, LoMDMWithLoss
from .pretrained_lomdm import load_pretrained  # noqa: F401  diffusers copies what this file imports, no deeper
from .process_lomdm import View  # noqa: F401  diffusers copies what this file imports, no deeper
from .random_lomdm import row_seeds  # noqa: F401  diffusers copies what this file imports, no deeper
from .rates_lomdm import (
    RATE_LAWS,
    RHO_AT_START,
    EqualRates,
    LoMDMOrderHead,
    LoMDMTokenRates,
    RateLaw,
)
from .token_losses_lomdm import TokenLosses  # noqa: F401  diffusers copies what this file imports, no deeper


class LoMDMForMaskedDiffusion(Adapted, LoMDMWithLoss):
    """A masked diffusion language model: backbone, LM head, and the rates of its `rate_type`.

    Without labels it returns logits of the token law `p_i(z)` and the reverse rates `v_i(z)` of a
    partly masked text `z`. With labels it returns the loss of clean texts, a bound on `-log P(x)`
    in nats per token (docs/method.md).
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    # `save_pretrained` and `push_to_hub` then copy the code
    _auto_class = "AutoModel"  # type: ignore[assignment]

    def __init__(self, config: LoMDMConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        self.hub_head: HubHead | None = None
        for module in () if backbone is None else backbone.modules():
            # else post_init would draw its weights anew
            setattr(module, "_is_hf_initialized", True)  # noqa: B010
        if backbone is None and config.backbone_config is not None:
            backbone = new_model(config.backbone_config)
        if backbone is None:
            self.model = LoMDMModel(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        elif isinstance(backbone, LoMDMForMaskedDiffusion):
            self.model, self.lm_head = backbone.model, backbone.lm_head
        else:
            self._take_over(backbone)
        self.rate_law = RATE_LAWS[config.rate_type]
        self.has_trained_on_masks = False  # by logits; `_Learned` asks until then
        modules = self.rate_law.modules(config)
        self.phi, self.psi, self.omega = (modules.get(name) for name in ("phi", "psi", "omega"))
        self.post_init()
        # post_init takes over what the backbone alone may ignore
        self._keys_to_ignore_on_load_unexpected = None

    def _take_over(self, whole: PreTrainedModel) -> None:
        """Makes the backbone of a model of transformers `model`, and its head's parts ours."""
        self.hub_head = HubHead(whole)
        self.model = whole.base_model
        for name in self.hub_head.children:
            setattr(self, name, getattr(whole, name))
        self.model.config.is_causal = False  # else attention without a mask would be causal
        self.config.backbone_config = self.model.config
        self._tied_weights_keys = self.hub_head.tied
        layers = getattr(self.model, "_no_split_modules", None) or ()  # for FSDP and device_map
        self._no_split_modules = [*layers, *self._no_split_modules]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LoMDMTokenRates):
            nn.init.constant_(module.rho, RHO_AT_START)
        elif isinstance(module, LoMDMOrderHead) and module.given is not None:
            nn.init.zeros_(module.given)

    def extra_repr(self) -> str:
        """The line in which `repr` says what kind of model it is, above its layers."""
        config = self.config
        return (
            f"{self.num_parameters() / 1e6:.1f} M parameters, {self.dtype} on {self.device}, "
            f"rate_type={config.rate_type!r}, block_size={config.block_size}, "
            f"context of {config.max_position_embeddings} tokens, {config.vocab_size} token ids"
        )

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of token ids."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding of token ids."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The last layer of the LM head."""
        return self.lm_head if self.hub_head is None else self.get_submodule(self.hub_head.output)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the last layer of the LM head."""
        name = "lm_head" if self.hub_head is None else self.hub_head.output
        self.set_submodule(name, new_embeddings)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *args, **kwargs
    ) -> nn.Embedding:
        """As in transformers; token rates follow. Losing a special token is a `ValueError`."""
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        if self.hub_head is not None:
            self.model.config.vocab_size = self.config.vocab_size
        self._own_law.resize(self)
        return embeddings

    @property
    def _own_law(self) -> RateLaw:
        """The law of the training: its token law stays, whatever law orders the reveals."""
        return RATE_LAWS[self.config.rate_type]

    @property
    def has_own_rates(self) -> bool:
        """Whether the rates are those of the configuration (`with_rates`)."""
        return self.rate_law == self._own_law

    @contextmanager
    def with_rates(self, law: RateLaw) -> Iterator[None]:
        """Within this context another law gives forward and reverse rates; the token law stays."""
        own, self.rate_law = self.rate_law, law
        try:
            yield
        finally:
            self.rate_law = own

    def without_order(self) -> AbstractContextManager[None]:
        """Within this context all rates equal `c1`, as with `c2 = 0`: no learned order."""
        return self.with_rates(EqualRates(self.config.c1))

    generation_config = None  # peft asks for it too

    @classmethod
    def can_generate(cls) -> bool:
        """`False`: `LoMDMPipeline` writes texts."""
        return False

    # set by the package to what makes a pipeline of a model; as remote code it stays None
    make_pipeline: Callable | None = None

    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        max_new_tokens: int | None = None,
        num_inference_steps: int = 256,
        return_dict_in_generate: bool = False,
        **options,
    ) -> Tensor | ModelOutput:
        """Writes texts as `LoMDMPipeline` does, by the method name of transformers.

        Args:
            input_ids: `[B, L]`, prompts or templates, padded on either side; `None` = no prompt.
            attention_mask: `[B, L]`, 1 = real; `None` = nothing padded.
            max_new_tokens, num_inference_steps, options: as in the call of the pipeline, with the
                defaults of `LoMDMScheduler`.
            return_dict_in_generate: return the output of the pipeline.
        Returns:
            `[B, L]` token ids, prompts included, padded on the right.
        """
        prompt, make = None, type(self).make_pipeline or _pipeline_of_folder
        if input_ids is not None:
            _check_prompts(input_ids, attention_mask)
            real = input_ids.new_ones(input_ids.shape) if attention_mask is None else attention_mask
            rows = zip(input_ids, real.bool(), strict=True)
            prompt = [row[kept].tolist() for row, kept in rows]
        steps = {"num_inference_steps": num_inference_steps, "max_new_tokens": max_new_tokens}
        out = make(self)(prompt, output_type="seq", **steps, **options)
        return out if return_dict_in_generate else out.sequences

    def prepare_inputs_for_generation(self, *args, **kwargs):
        """Raises `ValueError`: there is no next token.

        peft asks for it where `task_type="CAUSAL_LM"`.
        """
        raise ValueError("there is no next token to prepare for. Call generate() or LoMDMPipeline.")

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        quantiles: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        bound: str | None = None,
        output_logits: bool = True,
        past_key_values: Cache | None = None,
        logits_to_keep: int | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **unread,
    ) -> LoMDMOutput:
        """Token law and rates of partly masked texts, or with `labels` the loss of clean texts.

        Args:
            input_ids: `[B, L]` int64, partly masked texts; with labels the clean texts.
            attention_mask: `[B, L]`, 1 = real; `None` = nothing padded. Padding is never attended
                to nor counted.
            labels: `[B, L]`, the clean token ids; -100 = given, neither masked nor counted.
            quantiles: `[B]` in `(0, 1)`, fixes the number of reveals (order bound) or the local
                time (time bound) of each text; default: stratified within the batch.
            generator: source of masks and orders; one for the batch, or one per text (then a text
                does not depend on its batch).
            bound: `"order"` or `"time"`; default `config.bound`.
            output_logits: `False` skips the vocabulary projection; `token_logits` does it later.
            past_key_values: only without labels and with blocks: a `DynamicCache()` of the blocks
                before. The keys and values of `input_ids` (whole blocks, the last may be short) are
                added to it; `crop` removes them. `attention_mask` is then that of all positions,
                `[B, P + L]`.
            logits_to_keep: only without labels: outputs of this many last positions; default all.
            inputs_embeds: `[B, L, D]` instead of `input_ids`; with labels, the embeddings of given
                positions (peft's prompt tuning).
            output_hidden_states: only without labels; default: the configuration's.
            unread: the other standard arguments of transformers, all `None` or `False`.
            return_dict: `False` returns the values that are not `None` as a tuple; default: the
                configuration's.
        With blocks and without labels, a block reads itself and the `input_ids` before it. The
        model is trained with clean blocks before a block, so these should hold no masks.

        Raises:
            ValueError: shapes that do not agree, ids outside the vocabulary, a bound that does not
                exist.
        """
        check_unread(self.config, unread)
        check_forward_arguments(self, labels, past_key_values, logits_to_keep, output_hidden_states)
        if labels is None:
            inputs = {
                "input_ids": input_ids,
                "inputs_embeds": inputs_embeds,
                "past_key_values": past_key_values,
            }
            return self._denoise(
                inputs, attention_mask, output_logits, logits_to_keep, output_hidden_states
            )
        name, text = one_text(input_ids, inputs_embeds)
        check_labels(text, labels, quantiles, self.config, name)
        maskable = (
            labels != GIVEN if attention_mask is None else (labels != GIVEN) & attention_mask.bool()
        )
        clean = torch.where(maskable, labels, GIVEN if input_ids is None else input_ids).to(
            torch.int64
        )
        batch = self.make_batch(clean, attention_mask, maskable, inputs_embeds)
        return self._loss(batch, quantiles, generator, bound)

    def make_batch(
        self,
        ids: Tensor | None,
        attention_mask: Tensor | None = None,
        maskable: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Batch:
        """The texts `[B, L]` with positions and blocks, for the methods that take a `Batch`."""
        return make_batch(ids, attention_mask, self.config.block_size, maskable, inputs_embeds)

    def forward_rates(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        given: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Forward rates `w_i(x)` `[B, L]` of clean texts; differentiable in `phi` or `omega`.

        They are float32 or wider.

        `given`: `[B, L]` bool, the positions that are never masked, on which the rates of the
        others may depend; `None` = none. `inputs_embeds`: `[B, L, D]`, the embeddings of positions
        with the id -100.
        """
        maskable = None if given is None else ~given
        return self.rate_law.forward_rates(
            self, self.make_batch(x, attention_mask, maskable, inputs_embeds)
        )

    def token_logits(self, hidden: Tensor) -> Tensor:
        """The token law, `[..., D] -> [..., V]` unnormalised, the mask token at `-inf`."""
        head = self.hub_head
        logits = self.lm_head(hidden) if head is None else head.project(self, hidden)
        logits = self._own_law.weigh_tokens(self, logits)
        # in place: a copy of [..., V] would be the largest tensor
        logits[..., self.config.mask_token_id] = -torch.inf
        return logits

    def open_context(
        self, tokens: Tensor, attention_mask: Tensor | None = None, use_cache: bool = True
    ) -> BlockContext:
        """With blocks: the whole blocks `[B, P]`, padded on the left, before the next one."""
        use_cache = use_cache and (self.hub_head is None or takes_cache(self.model))
        return BlockContext(self, tokens, attention_mask, DynamicCache() if use_cache else None)

    def _denoise(
        self, text, attention_mask, output_logits, logits_to_keep, output_hidden_states
    ) -> LoMDMOutput:
        cache = text["past_key_values"]
        out = self._read(
            **text, attention_mask=attention_mask, output_hidden_states=output_hidden_states
        )
        batch = self.make_batch(
            text["input_ids"], attention_mask, inputs_embeds=text["inputs_embeds"]
        )
        rates = self.rate_law.reverse_rates(
            self, out.last_hidden_state, batch, past_key_values=cache
        )
        kept = slice(None if logits_to_keep is None else -logits_to_keep, None)
        hidden = self._token_states(out.last_hidden_state, batch, cache)[:, kept]
        rates = rates[:, kept]
        logits = self.token_logits(hidden) if output_logits or self.rates_need_logits else None
        if self.rates_need_logits:
            rates = self.rates_of_logits(logits)
        begins = self.training and not self.has_trained_on_masks
        if begins and text["input_ids"] is not None and not torch.compiler.is_compiling():
            logits = None if logits is None else _Learned.apply(logits, self, text["input_ids"])
        return LoMDMOutput(
            logits=logits if output_logits else None,
            rates=rates,
            last_hidden_state=hidden,
            hidden_states=out.hidden_states,
        )

    def encode(self, batch: Batch, views: Tensor | None = None, **options) -> Tensor:
        """Hidden states of the trunk for a batch, or for it and its views `[K * B, L]`."""
        ids, embeds = batch.ids, batch.inputs_embeds
        if embeds is not None:
            views = (
                None
                if views is None
                else self._embed(views, stack_views(embeds, len(views) // len(embeds)))
            )
            ids, embeds = None, self._embed(ids, embeds)
        options |= {} if views is None else {"views": views}
        options |= {} if embeds is None else {"inputs_embeds": embeds}
        return self._read(
            input_ids=ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=False,
            **options,
        ).last_hidden_state

    def _read(self, **inputs) -> BaseModelOutput:
        """The trunk's output, for the arguments of `LoMDMModel.forward`."""
        if self.hub_head is None:
            return self.model(**inputs, return_dict=True)
        inputs.pop("views_only", None)
        keep = inputs.pop("output_hidden_states")
        keep = self.config.output_hidden_states if keep is None else keep
        check_text(self.config, **inputs)
        return read_backbone(self.model, self.config, output_hidden_states=bool(keep), **inputs)

    def _token_states(self, hidden: Tensor, batch: Batch, cache: Cache | None = None) -> Tensor:
        """The states `[B, L, D]` that `token_logits` projects, of hidden states `[B, L, D]`."""
        if not self.config.logit_shift:
            return hidden
        previous, position = None, batch.position
        if cache is not None:  # its last layer keeps the states, without values
            layer = self.config.num_hidden_layers + self.rate_law.uses_psi
            layers: list[Any] = cache.layers
            if len(layers) > layer and (held := cache.get_seq_length(layer)):
                previous = layers[layer].keys[:, 0, -1:]
                # a mask counts what is in the cache, too
                position = position + (held if batch.attention_mask is None else 0)
            cache.update(hidden[:, None], hidden[:, None, :, :0], layer)
        return shifted_states(hidden, position, self.config.block_size, 1, previous)

    def _embed(self, ids: Tensor, inputs_embeds: Tensor) -> Tensor:
        """Embeddings `[B, L, D]` of `ids`, but `inputs_embeds` at positions of the id -100."""
        embeds = self.get_input_embeddings()(ids.clamp(min=0))
        return torch.where((ids == GIVEN)[..., None], inputs_embeds.to(embeds.dtype), embeds)

    def rates_of_logits(self, logits: Tensor) -> Tensor:
        """Reverse rates `[...]`, float32 or wider, of the token law `[..., V]`."""
        return self.rate_law.rates_of_logits(self, logits)


class _Learned(torch.autograd.Function):
    """The logits as they are; the first backward pass raises if nothing was masked.

    A trainer that takes the labels out (`label_smoothing_factor`) would teach the model to copy
    what it reads. Asked until a mask has been seen: looking waits for the device.
    """

    @staticmethod
    def forward(logits: Tensor, model: LoMDMForMaskedDiffusion, input_ids: Tensor) -> Tensor:
        return logits.view_as(logits)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # else torch.func could not take it
        _, ctx.model, ctx.input_ids = inputs

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        if not (ctx.input_ids == ctx.model.config.mask_token_id).any():
            raise ValueError(
                "labels: none given, and no position of input_ids is masked, so that the model "
                "learns to copy. Pass labels (a Trainer with label_smoothing_factor takes them "
                "out: set it to 0), or mask input_ids."
            )
        ctx.model.has_trained_on_masks = True
        return grad, None, None


def _check_prompts(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """Raises `ValueError` for what `generate` cannot take for prompts."""
    wrong = f"input_ids must be token ids [B, L], got {getattr(input_ids, 'shape', input_ids)}. "
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or input_ids.is_floating_point():
        raise ValueError(
            wrong + "Pass tokenizer(texts, return_tensors='pt', padding=True).input_ids."
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape {list(input_ids.shape)} of input_ids, got "
            f"{list(attention_mask.shape)}. Pass 1 for real tokens and 0 for padding."
        )


def _pipeline_of_folder(model: Any) -> Any:
    """The pipeline of the folder that a model was loaded from with its code."""
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise ImportError(
            "generate() needs diffusers. Install it: pip install diffusers"
        ) from error
    trust = {"trust_remote_code": True}  # this is remote code: it is trusted already
    pipe = DiffusionPipeline.from_pretrained(model.name_or_path, model=model, **trust)
    config = model.config
    pipe.scheduler = type(pipe.scheduler)(config.mask_token_id, block_size=config.block_size)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def check_forward_arguments(
    model: LoMDMForMaskedDiffusion,
    labels,
    past_key_values,
    logits_to_keep: int | None,
    hidden_states,
) -> None:
    """Raises `ValueError` for arguments that labels exclude and for caches that do not fit."""
    if labels is not None and (past_key_values is not None or logits_to_keep is not None):
        raise ValueError(
            "labels exclude past_key_values and logits_to_keep: a loss reads whole texts. Leave "
            "them out (by peft, tune prompts instead of prefixes)."
        )
    if labels is not None and (
        model.config.output_hidden_states if hidden_states is None else hidden_states
    ):
        raise ValueError(
            "labels exclude output_hidden_states, for a loss reads views that it draws. Leave it "
            "(in the configuration too) at False."
        )
    if logits_to_keep is not None and logits_to_keep < 1:
        raise ValueError(f"logits_to_keep must be None (all) or at least 1, got {logits_to_keep}.")
    if past_key_values is None or model.config.block_size is None:  # the trunk refuses it then
        return
    layers = model.config.num_hidden_layers + model.rate_law.uses_psi + model.config.logit_shift
    grows = isinstance(past_key_values, DynamicCache) and len(past_key_values.layers) in (0, layers)
    if not grows:
        raise ValueError(
            f"past_key_values must be a DynamicCache() made without a configuration ({layers} "
            f"layers take part), got {type(past_key_values).__name__} of "
            f"{len(past_key_values.layers)} layers."
        )
    if model.training and any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):
        raise ValueError(
            "past_key_values is dropped by gradient checkpointing in training. Call model.eval() "
            "first."
        )
