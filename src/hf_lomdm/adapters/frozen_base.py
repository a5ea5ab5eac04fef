"""What is particular of a base that is only read: its frame, its special tokens, its identity."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from hf_lomdm.adapters.configuration import OrderAdapterConfig
from hf_lomdm.modeling.adapted_lomdm import fingerprint
from hf_lomdm.modeling.blocks_lomdm import position_ids
from hf_lomdm.modeling.checkpoint_lomdm import read_tokenizer
from hf_lomdm.modeling.pretrained_lomdm import check_kind

# Special tokens that stand in the texts of a LoMDM.
OWN_TOKENS = ("mask_token_id", "pad_token_id", "bos_token_id", "eos_token_id")


def frame(
    config: OrderAdapterConfig, input_ids: Tensor, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """What the base sees of texts `[B, L]`: ids `[B, F + L + S]`, their mask, and their place.

    Texts move to the left because bases count positions from the left end, or by the ids of
    padding.
    """
    batch, length = input_ids.shape
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


def precision(options: dict) -> torch.dtype | None:
    """Takes the base's precision out of the options of loading.

    The base is recognised by its weights as they are stored.
    """
    # a quantizer makes the base in the precision that is asked for
    if options.get("quantization_config") is not None:
        return None
    dtype = options.pop("dtype", options.pop("torch_dtype", None))
    return None if dtype == "auto" else getattr(torch, dtype) if isinstance(dtype, str) else dtype


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
    if kind == "lomdm" and base.config.backbone_config is not None:
        raise ValueError(
            f"base is a {base.config.backbone_config.model_type} that was converted. Give the "
            "model that it was made of."
        )
    one_way = getattr(base.config, "is_decoder", False) or getattr(
        base.config, "is_encoder_decoder", False
    )
    if one_way or base.base_model is base:
        raise ValueError(
            f"base is a {kind}, which is no bidirectional encoder with a head. Give a masked "
            "language model."
        )
    if kind != "lomdm":
        check_kind(base, AutoModelForMaskedLM)
    for name in ("hidden_size", "vocab_size") if config is not None else ():
        if getattr(base.config, name) != getattr(config, name):
            raise ValueError(
                f"base has {name}={getattr(base.config, name)}, the adapter "
                f"{getattr(config, name)}. Give the base that it was made for, {config.base_name}."
            )


@torch.no_grad()
def check_head(base: PreTrainedModel, project: Callable[[Tensor], Tensor]) -> None:
    """Raises `ValueError` if `project` does not make the base's logits of its hidden states.

    Costs two passes over three tokens.
    """
    ids = torch.arange(3, device=base.get_input_embeddings().weight.device)[None]
    whole, split = base(input_ids=ids)[0], project(base.base_model(input_ids=ids)[0])
    # bfloat16
    if not torch.allclose(split.float(), whole.float(), rtol=0.05, atol=0.05):
        raise ValueError(
            f"base is a {base.config.model_type}, whose logits do not come from its last hidden "
            "state alone. Give another masked language model."
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
        tokenizer = read_tokenizer(name, revision=revision)
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
