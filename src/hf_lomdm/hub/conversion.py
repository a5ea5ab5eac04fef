"""Public MDLM and BD3-LM checkpoints as Hub folders: no code of theirs runs.

Both condition every layer on a constant (their time conditioning is off), so that the modulation of
its LayerNorms and residual branches can be multiplied into the neighbouring weights exactly.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..data.tokenizers import complete_special_tokens, special_token_ids
from ..modeling.configuration_lomdm import LoMDMConfig
from ..modeling.modeling_lomdm import LoMDMForMaskedDiffusion
from .export import export_to_hub_folder
from .public_checkpoint import (
    PublicCheckpoint,
    check_layout,
    num_blocks,
    public_layout,
    read_public_checkpoint,
    strip_prefixes,
)

ROPE_THETA = 10000.0
# Logit bias of an entry that the checkpoint does not have: its probability is exactly zero, in
# float16 too
NEVER = -1e4
CARD = """# {name}

Converted by hf-lomdm from the {system} checkpoint `{source}` ({weights}). The conditioning on a
constant time is folded into the weights: the token laws are those of the original, up to rounding.
The text it was trained on, its quality, its limits and its licence are those of the original, none
of which was checked here.
"""
# by `averaged` of the checkpoint
WEIGHTS = {
    None: "as published",
    True: "moving average of the weights",
    False: "weights without moving average",
}


# ------------------------------------------------------------------------------------------ folding


def fold_mdlm_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `LoMDMForMaskedDiffusion` (backbone and LM head) from those of an MDLM or BD3-LM.

    Args:
        state: the state dict of the public layout, which is the same for both, keys with or without
            the prefixes `backbone.` and `_orig_mod.`.
    Returns:
        Float32 weights under the names of `LoMDMForMaskedDiffusion(rate_type="uniform")`; for a
        BD3-LM the model has its `block_size`, which is not in the weights.
    Raises:
        ValueError: if keys are missing or unknown or shapes wrong, with their names.
    """
    state = strip_prefixes(state)
    check_layout(state)
    state = {key: value.to(torch.float64) for key, value in state.items()}
    condition = _condition(state)
    folded = {"model.embed_tokens.weight": state["vocab_embed.embedding"]}
    for index in range(num_blocks(state)):
        folded |= _fold_block(state, f"blocks.{index}.", f"model.layers.{index}.", condition)
    folded |= _fold_output(state, condition)
    return {key: value.to(torch.float32).contiguous() for key, value in folded.items()}


def _condition(state: dict[str, Tensor]) -> Tensor:
    """The constant conditioning vector, the embedding of sigma = 0: cosines 1, sines 0."""
    weight = state["sigma_map.mlp.0.weight"]
    half = weight.shape[1] // 2
    sinusoid = torch.cat((weight.new_ones(half), weight.new_zeros(weight.shape[1] - half)))
    hidden = nn.functional.silu(weight @ sinusoid + state["sigma_map.mlp.0.bias"])
    return nn.functional.silu(
        state["sigma_map.mlp.2.weight"] @ hidden + state["sigma_map.mlp.2.bias"]
    )


def _modulation(
    state: dict[str, Tensor], prefix: str, condition: Tensor, chunks: int
) -> tuple[Tensor, ...]:
    weight, bias = (
        state[f"{prefix}adaLN_modulation.weight"],
        state[f"{prefix}adaLN_modulation.bias"],
    )
    return (weight @ condition + bias).chunk(chunks)


def _fold_block(
    state: dict[str, Tensor], source: str, target: str, condition: Tensor
) -> dict[str, Tensor]:
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = _modulation(state, source, condition, 6)
    return {
        f"{target}attention_norm.weight": state[f"{source}norm1.weight"] * (1 + scale_1),
        f"{target}attention_norm.bias": shift_1,
        f"{target}attention.qkv_proj.weight": state[f"{source}attn_qkv.weight"],
        f"{target}attention.o_proj.weight": state[f"{source}attn_out.weight"] * gate_1[:, None],
        f"{target}mlp_norm.weight": state[f"{source}norm2.weight"] * (1 + scale_2),
        f"{target}mlp_norm.bias": shift_2,
        f"{target}mlp.up_proj.weight": state[f"{source}mlp.0.weight"],
        f"{target}mlp.up_proj.bias": state[f"{source}mlp.0.bias"],
        f"{target}mlp.down_proj.weight": state[f"{source}mlp.2.weight"] * gate_2[:, None],
        f"{target}mlp.down_proj.bias": state[f"{source}mlp.2.bias"] * gate_2,
    }


def _fold_output(state: dict[str, Tensor], condition: Tensor) -> dict[str, Tensor]:
    shift, scale = _modulation(state, "output_layer.", condition, 2)
    return {
        "model.norm.weight": state["output_layer.norm_final.weight"] * (1 + scale),
        "model.norm.bias": shift,
        "lm_head.weight": state["output_layer.linear.weight"],
        "lm_head.bias": state["output_layer.linear.bias"],
    }


# -------------------------------------------------------------------------------- the configuration


def public_config(
    checkpoint: PublicCheckpoint,
    block_size: int | None = None,
    max_length: int | None = None,
    mask_token_id: int | None = None,
) -> LoMDMConfig:
    """The configuration: from `config.json`, from shapes, and from what the caller adds.

    Args:
        checkpoint: as `read_public_checkpoint` gives it.
        block_size: of a BD3-LM whose settings do not say it.
        max_length: tokens per text in its training, if its settings do not say it: nothing in the
            weights does.
        mask_token_id: if its settings do not say it; default the last id, as in the models with
            GPT-2's vocabulary.
    Raises:
        ValueError: settings that contradict the weights or the arguments, models that do not fold
            (autoregressive, conditioned on the time), or a size that is nowhere to be found.
    """
    state, settings = checkpoint.state, checkpoint.settings
    vocabulary, width = public_layout(state)["vocab_embed.embedding"]
    sizes = {"vocab_size": vocabulary, "hidden_dim": width, "n_blocks": num_blocks(state)}
    _check_settings(settings, sizes)
    length = _length(settings, max_length)
    mask = _one_of("mask_token_id", settings.get("mask_token_id"), mask_token_id)
    block_size = _block_size(checkpoint, block_size)
    config = LoMDMConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=num_blocks(state),
        num_attention_heads=_num_heads(state, settings.get("n_heads"), width),
        intermediate_size=len(state["blocks.0.mlp.0.bias"]),
        max_position_embeddings=length,
        mask_token_id=vocabulary - 1 if mask is None else mask,
        rate_type="uniform",
        block_size=None if block_size == length else block_size,
        dropout=settings.get("dropout", 0.1),
        rope_theta=ROPE_THETA,
        layer_norm_eps=1e-5,
    )
    _check_mask(state, config.mask_token_id)
    return config


def _check_settings(settings: Mapping[str, Any], sizes: dict[str, int]) -> None:
    """Raises `ValueError` for models that do not fold and for sizes other than the weights'."""
    for name, wrong in (
        ("causal", "autoregressive"),
        ("time_conditioning", "conditioned on the time"),
    ):
        if settings.get(name):
            raise ValueError(
                f"the config has {name}={settings[name]!r}: a model that is {wrong} cannot be "
                "converted."
            )
    for name, size in sizes.items():
        if settings.get(name, size) != size:
            raise ValueError(
                f"the config has {name}={settings[name]!r}, the weights {size}. They do not "
                "belong together."
            )


def _length(settings: Mapping[str, Any], given: int | None) -> int:
    """Tokens per text in its training."""
    length = _one_of("max_length", settings.get("model_length"), given)
    if length is None:
        raise ValueError(
            "max_length is not in the file. Pass --max_length, the tokens per text it was trained "
            "on."
        )
    return length


def _block_size(checkpoint: PublicCheckpoint, given: int | None) -> int | None:
    """Positions per block of a BD3-LM; `None` of an MDLM."""
    block_size = _one_of("block_size", checkpoint.settings.get("block_size"), given)
    if block_size is None and "sampling_eps_min" in checkpoint.state:
        raise ValueError(
            "the weights are those of a BD3-LM, whose block_size is not in the file. Pass "
            "--block_size."
        )
    return block_size


def _one_of(name: str, stored: Any, given: Any) -> Any:
    if None not in (stored, given) and stored != given:
        raise ValueError(
            f"{name} is {given}, but the checkpoint's config says {stored}. Leave it out."
        )
    return given if stored is None else stored


def _num_heads(state: dict[str, Tensor], stored: int | None, width: int) -> int:
    """Heads from the config or from the rotary frequencies, of which a head has half its size."""
    frequencies = state.get("rotary_emb.inv_freq")
    if frequencies is None and stored is None:
        raise ValueError(
            "the number of heads is neither in a config (n_heads) nor in the weights (inv_freq)."
        )
    if frequencies is None:
        return stored
    heads = width // (2 * len(frequencies))
    if stored not in (None, heads):
        raise ValueError(
            f"the config has n_heads={stored}, the rotary frequencies are those of {heads} heads."
        )
    expected = ROPE_THETA ** -(torch.arange(len(frequencies)) / len(frequencies))
    # 1e-2: the frequencies may be stored in bfloat16
    if not torch.allclose(frequencies.float(), expected, rtol=1e-2, atol=0):
        raise ValueError(
            f"rotary_emb.inv_freq is not of base {ROPE_THETA:.0f}: this is another network."
        )
    return heads


def _check_mask(state: dict[str, Tensor], mask_token_id: int) -> None:
    """Checks the mask's row of the output, the only one that starts at zero and never learns."""
    rows, bias = state["output_layer.linear.weight"], state["output_layer.linear.bias"]
    dead = ((rows == 0).all(dim=1) & (bias == 0)).nonzero().flatten().tolist()
    if len(dead) == 1 and dead[0] != mask_token_id:
        raise ValueError(
            f"mask_token_id is {mask_token_id}, but the one row of the output that never learned "
            f"is {dead[0]}. Pass --mask_token_id {dead[0]}, or the tokenizer that the checkpoint "
            "was trained with."
        )


# -------------------------------------------------------------------------------- tokenizer and all


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, config: LoMDMConfig) -> None:
    """Completes `tokenizer` and `config` by each other and by the checkpoint, both in place.

    The mask gets the checkpoint's id for it. A padding token that the checkpoint does not have gets
    an id of its own behind the vocabulary, never the mask's, and `config.vocab_size` grows by it.

    Raises:
        ValueError: if the tokenizer is not the checkpoint's: another vocabulary size or another id
            of the mask.
    """
    complete_special_tokens(tokenizer)
    ids = special_token_ids(tokenizer)
    mask, size = config.mask_token_id, config.vocab_size
    if ids["mask_token_id"] != mask:
        taken = tokenizer.convert_ids_to_tokens(mask) if mask < ids["vocab_size"] else None
        raise ValueError(
            f"tokenizer has the mask token {tokenizer.mask_token!r} at id {ids['mask_token_id']}, "
            f"the checkpoint at {mask} (there {taken!r} in the tokenizer). Pass the plain "
            "tokenizer it was trained with."
        )
    behind = sorted(token for token, index in tokenizer.get_vocab().items() if index >= size)
    if ids["vocab_size"] < size or behind not in ([], [tokenizer.pad_token]):
        raise ValueError(
            f"tokenizer has {ids['vocab_size']} ids, the checkpoint {size}"
            f"{f', which leaves out {behind[:5]}' if behind else ''}. Pass the tokenizer it was "
            "trained with."
        )
    for name, value in ids.items():
        setattr(config, name, value)


def convert_checkpoint(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase | None = None,
    ema: bool | None = None,
    block_size: int | None = None,
    max_length: int | None = None,
    mask_token_id: int | None = None,
) -> Path:
    """Writes the Hub folder of a public MDLM or BD3-LM checkpoint (docs/conversion.md).

    Args:
        checkpoint, ema: as for `read_public_checkpoint`.
        output: a folder that does not exist yet, or is empty.
        tokenizer: the one that the checkpoint was trained with, completed in place; `None` writes
            none.
        block_size, max_length, mask_token_id: as for `public_config`; a tokenizer with a mask token
            knows its id.
    Returns:
        The path of the written folder, whose weights are float32.
    Raises:
        ValueError: as the functions named above, and if `output` holds something. Nothing is
            written then.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(
            f"output {output} exists already. Pass a folder that does not, or empty it."
        )
    source = read_public_checkpoint(checkpoint, ema)
    if mask_token_id is None and "mask_token_id" not in source.settings and tokenizer is not None:
        mask_token_id = tokenizer.mask_token_id
    config = public_config(source, block_size, max_length, mask_token_id)
    weights = fold_mdlm_state_dict(source.state)
    if tokenizer is not None:
        fit_tokenizer(tokenizer, config)
        weights = _grow(weights, config.vocab_size)
    model = LoMDMForMaskedDiffusion(config)
    model.load_state_dict(weights, strict=True)
    system = "MDLM" if config.block_size is None else f"BD3-LM (blocks of {config.block_size})"
    names = {"name": output.name, "system": system, "source": Path(checkpoint).name}
    card = CARD.format(**names, weights=WEIGHTS[source.averaged])
    return export_to_hub_folder(model, output, tokenizer, model_card=card)


def _grow(weights: dict[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """Rows for ids that the checkpoint lacks: never predicted, and embedded as zero."""
    grown = dict(weights)
    for name, fill in (
        ("model.embed_tokens.weight", 0.0),
        ("lm_head.weight", 0.0),
        ("lm_head.bias", NEVER),
    ):
        value = weights[name]
        rows = value.new_full((vocab_size - len(value), *value.shape[1:]), fill)
        grown[name] = torch.cat((value, rows))
    return grown
