"""A masked language model that is only read: loaded, recognised, and split into trunk and head."""

import copy
import os

import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from hf_lomdm.adapters.configuration import OrderAdapterConfig
from hf_lomdm.modeling.adapted_lomdm import fingerprint
from hf_lomdm.modeling.backbone_lomdm import check_inputs, check_unread, one_text
from hf_lomdm.modeling.blocks_lomdm import position_ids

# Special tokens that stand in the texts of a LoMDM.
OWN_TOKENS = ("mask_token_id", "pad_token_id", "bos_token_id", "eos_token_id")


class FrozenBase(nn.Module):
    """A masked language model that is only read: token ids to hidden states, and these to logits.

    It is never trained: no gradient, and eval mode (no dropout) whatever the mode of the model
    around it.
    """

    def __init__(self, base: PreTrainedModel, config: OrderAdapterConfig):
        super().__init__()
        self.config = config
        self.base = base.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FrozenBase":
        """Leaves the base in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values=None,
        deterministic: bool = True,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool = True,
        **unread,
    ) -> BaseModelOutput:
        """Hidden states `[B, L, D]` of texts `[B, L]`; the base also sees prefix and suffix.

        The arguments are those of `LoMDMModel`: it is always `deterministic`, and `past_key_values`
        and `inputs_embeds` must be `None`.
        """
        check_unread(self.config, unread)
        if past_key_values is not None:
            raise ValueError(
                "past_key_values needs blocks, which an order adapter does not have. Leave it out."
            )
        if inputs_embeds is not None:
            raise ValueError(
                "inputs_embeds is not read by an order adapter, whose base sees more. Pass "
                "input_ids."
            )
        check_inputs(one_text(input_ids, None)[1], attention_mask, self.config)
        keep = (
            self.config.output_hidden_states
            if output_hidden_states is None
            else output_hidden_states
        )
        framed, real, place = self.frame(input_ids, attention_mask)
        out = self.base.base_model(
            input_ids=framed, attention_mask=real, output_hidden_states=bool(keep)
        )
        # by index: the base may return tuples
        last, states = out[0], out[1] if keep else ()
        place = place[..., None].expand(len(input_ids), -1, last.shape[-1])
        last, *states = (state.gather(1, place) for state in (last, *states))
        return BaseModelOutput(
            last_hidden_state=last, hidden_states=tuple(states) if keep else None
        )

    def frame(
        self, input_ids: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """What the base sees of texts `[B, L]`: ids `[B, F + L + S]`, their mask, and their place.

        Texts move to the left because bases count positions from the left end, or by the ids of
        padding.
        """
        config, (batch, length) = self.config, input_ids.shape
        ends = (config.prefix_token_id, config.suffix_token_id)
        front, back = (
            input_ids.new_full((batch, int(token is not None)), token or 0) for token in ends
        )
        # [B or 1, L]
        place = position_ids(attention_mask, length, input_ids.device) + front.shape[1]
        if attention_mask is None:
            return torch.cat((front, input_ids, back), dim=1), None, place
        width, count = (
            length + front.shape[1] + back.shape[1],
            attention_mask.long().sum(-1, keepdim=True),
        )
        framed = input_ids.new_full((batch, width + 1), config.pad_token_id or 0)
        framed = framed.scatter(1, place.where(attention_mask.bool(), width), input_ids)[:, :width]
        framed[:, : front.shape[1]] = front
        framed = framed.scatter(1, (count + front.shape[1]).expand(-1, back.shape[1]), back)
        real = torch.arange(width, device=input_ids.device) < count + front.shape[1] + back.shape[1]
        return framed, real.long(), place

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """The base's own prediction head: `[..., D] -> [..., V]`.

        transformers names the parts of every architecture differently. What they share is that the
        model with the head hands `inputs_embeds` to the model without, so the latter is replaced,
        in a shallow copy, by what hands them on.
        """
        states = hidden.reshape(1, -1, hidden.shape[-1]).to(self.base.dtype)
        if self.base.config.model_type == "lomdm":
            logits = self.base.lm_head(states)
        else:
            head, backbone = copy.copy(self.base), copy.copy(self.base.base_model)
            backbone.forward = lambda *_, inputs_embeds=None, **__: BaseModelOutput(
                last_hidden_state=inputs_embeds
            )
            head._modules = {**head._modules, head.base_model_prefix: backbone}
            logits = type(head).forward(head, inputs_embeds=states)[0]
        return logits.reshape(*hidden.shape[:-1], -1)


def precision(options: dict) -> torch.dtype | None:
    """Takes the base's precision out of the options of loading.

    The base is recognised by its weights as they are stored.
    """
    # a quantizer makes the base in the precision that is asked for
    if options.get("quantization_config") is not None:
        return None
    dtype = options.pop("dtype", options.pop("torch_dtype", None))
    return None if dtype == "auto" else getattr(torch, dtype) if isinstance(dtype, str) else dtype


def load_base(
    name_or_path: str | os.PathLike, revision: str | None = None, **kwargs
) -> PreTrainedModel:
    """The masked language model of a Hub name or folder; `kwargs` are of its `from_pretrained`.

    Raises:
        ValueError: there is none, or its prediction head is missing.
    """
    kwargs.setdefault("trust_remote_code", False)  # else transformers would ask at a terminal
    try:
        base, info = AutoModelForMaskedLM.from_pretrained(
            name_or_path, revision=revision, output_loading_info=True, **kwargs
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"base {str(name_or_path)!r} could not be loaded. Give a Hub name or a folder of a "
            f"masked language model (for a saved adapter by base=). {error}"
        ) from error
    if info["missing_keys"]:
        raise ValueError(
            f"base {str(name_or_path)!r} lacks the weights {sorted(info['missing_keys'])[:3]}: "
            "they would be random. Give a checkpoint that was trained as a masked language model."
        )
    return base


def check_base(base: PreTrainedModel, config: OrderAdapterConfig | None = None) -> None:
    """Raises `ValueError` for a base that is not bidirectional or does not fit `config`."""
    kind = base.config.model_type
    if kind == "lomdm" and (
        base.config.rate_type != "uniform" or base.config.block_size is not None
    ):
        raise ValueError(
            f"base has rate_type={base.config.rate_type!r} and "
            f"block_size={base.config.block_size}: it has an order of its own. Give one with "
            "rate_type='uniform' and without blocks, such as a converted MDLM."
        )
    one_way = getattr(base.config, "is_decoder", False) or getattr(
        base.config, "is_encoder_decoder", False
    )
    if one_way or base.base_model is base:
        raise ValueError(
            f"base is a {kind}, which is no bidirectional encoder with a head. Give a masked "
            "language model."
        )
    for name in ("hidden_size", "vocab_size") if config is not None else ():
        if getattr(base.config, name) != getattr(config, name):
            raise ValueError(
                f"base has {name}={getattr(base.config, name)}, the adapter "
                f"{getattr(config, name)}. Give the base that it was made for, {config.base_name}."
            )


def check_split(frozen: FrozenBase) -> None:
    """Raises `ValueError` if hidden states and head do not give the base's own logits.

    Costs one pass over three tokens.
    """
    device = frozen.base.get_input_embeddings().weight.device
    ids = (
        torch.arange(min(3, frozen.config.max_position_embeddings), device=device)[None]
        % frozen.config.vocab_size
    )
    with torch.no_grad():
        whole = frozen.base(input_ids=ids)[0]
    split = frozen.logits(frozen.base.base_model(input_ids=ids)[0])
    finite = whole.isfinite()  # a LoMDM has its mask token at -inf
    # bfloat16
    if not torch.allclose(split[finite].float(), whole[finite].float(), rtol=0.05, atol=0.05):
        raise ValueError(
            f"base is a {frozen.base.config.model_type}, whose logits do not come from its last "
            "hidden state alone. Give another masked language model."
        )


def is_base(base: PreTrainedModel, config: OrderAdapterConfig) -> bool:
    """Whether these are the weights that the adapter was trained on, in any precision.

    Weights that were rounded to one half precision have a fingerprint in that one only.
    """
    if config.base_fingerprint == fingerprint(base.named_parameters()):
        return True
    return config.base_fingerprint_float16 == fingerprint(base.named_parameters(), torch.float16)


def special_tokens(base: PreTrainedModel, name: str, revision: str | None) -> dict:
    """Special tokens of a base: from a LoMDM's configuration, else from the tokenizer."""
    if base.config.model_type == "lomdm":
        return {key: getattr(base.config, key) for key in OWN_TOKENS}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"base {name!r} has no tokenizer. Pass mask_token_id and the like. {error}"
        ) from error
    # without files transformers builds an empty tokenizer
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ValueError(
            f"base {name!r} has no tokenizer. Pass mask_token_id and the like, or save one beside "
            "it."
        )
    if tokenizer.mask_token_id is None:
        raise ValueError(
            f"the tokenizer of {name!r} has no mask token. Give a masked language model."
        )
    ends = tokenizer("")["input_ids"]  # what the tokenizer puts around a text
    return {
        "mask_token_id": tokenizer.mask_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "prefix_token_id": ends[0] if len(ends) == 2 else None,
        "suffix_token_id": ends[1] if len(ends) == 2 else None,
        "suppressed_token_ids": set(tokenizer.all_special_ids)
        - {tokenizer.unk_token_id, tokenizer.mask_token_id},
    }


def longest_text(base: PreTrainedModel) -> int:
    """Positions that a base has; RoBERTa-like models leave the first ones unused."""
    tables = [
        module for name, module in base.named_modules() if name.endswith("position_embeddings")
    ]
    unused = next(
        (
            table.padding_idx + 1
            for table in tables
            if getattr(table, "padding_idx", None) is not None
        ),
        0,
    )
    return base.config.max_position_embeddings - unused
