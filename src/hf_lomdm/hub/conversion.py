"""Folding of public MDLM and BD3-LM weights into the LoMDM backbone.

Both condition every layer on a constant (their time conditioning is off), so that the modulation of its LayerNorms and
residual branches can be multiplied into the neighbouring weights exactly.
"""

import re

import torch
from torch import Tensor, nn

# Folded into other weights, computed on the fly, or part of the published training alone
_IGNORED = re.compile(r"(sigma_map\.|.*adaLN_modulation\.|rotary_emb\.inv_freq$|noise\.|sampling_eps_(min|max)$)")


def fold_mdlm_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `LoMDMForMaskedDiffusion` (backbone and LM head) from those of an MDLM or BD3-LM.

    Args:
        state: the state dict of the public layout, which is the same for both, keys with or without the prefix
            `backbone.`.
    Returns:
        Float32 weights under the names of `LoMDMForMaskedDiffusion(rate_type="uniform")`; for a BD3-LM the model has
        its `block_size`, which is not in the weights.
    Raises:
        ValueError: if keys are missing or unknown, with their names.
    """
    state = {key.removeprefix("backbone."): value.to(torch.float64) for key, value in state.items()}
    blocks = 1 + max((int(key.split(".")[1]) for key in state if key.startswith("blocks.")), default=-1)
    used: dict[str, Tensor] = {}
    take = _Taker(state, used)
    condition = _condition(take)
    folded = {"model.embed_tokens.weight": take("vocab_embed.embedding")}
    for index in range(blocks):
        folded.update(_fold_block(take, f"blocks.{index}.", f"model.layers.{index}.", condition))
    folded.update(_fold_output(take, condition))
    unknown = sorted(key for key in state if key not in used and not _IGNORED.match(key))
    if unknown:
        raise ValueError(f"state has unknown keys {unknown}: convert only checkpoints of MDLM and BD3-LM.")
    return {key: value.to(torch.float32).contiguous() for key, value in folded.items()}


class _Taker:
    """Reads a key and remembers it; a missing one is an error with its name."""

    def __init__(self, state: dict[str, Tensor], used: dict[str, Tensor]):
        self.state, self.used = state, used

    def __call__(self, key: str) -> Tensor:
        if key not in self.state:
            raise ValueError(f"state lacks the key {key!r}: it is no complete MDLM or BD3-LM.")
        self.used[key] = self.state[key]
        return self.state[key]


def _condition(take: _Taker) -> Tensor:
    """The constant conditioning vector: the embedding of sigma = 0, whose cosines are ones and sines zeros."""
    weight = take("sigma_map.mlp.0.weight")
    half = weight.shape[1] // 2
    sinusoid = torch.cat((weight.new_ones(half), weight.new_zeros(weight.shape[1] - half)))
    hidden = nn.functional.silu(weight @ sinusoid + take("sigma_map.mlp.0.bias"))
    return nn.functional.silu(take("sigma_map.mlp.2.weight") @ hidden + take("sigma_map.mlp.2.bias"))


def _modulation(take: _Taker, prefix: str, condition: Tensor, chunks: int) -> tuple[Tensor, ...]:
    return (take(f"{prefix}adaLN_modulation.weight") @ condition + take(f"{prefix}adaLN_modulation.bias")).chunk(chunks)


def _fold_block(take: _Taker, source: str, target: str, condition: Tensor) -> dict[str, Tensor]:
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = _modulation(take, source, condition, 6)
    return {
        f"{target}attention_norm.weight": take(f"{source}norm1.weight") * (1 + scale_1),
        f"{target}attention_norm.bias": shift_1,
        f"{target}attention.qkv_proj.weight": take(f"{source}attn_qkv.weight"),
        f"{target}attention.o_proj.weight": take(f"{source}attn_out.weight") * gate_1[:, None],
        f"{target}mlp_norm.weight": take(f"{source}norm2.weight") * (1 + scale_2),
        f"{target}mlp_norm.bias": shift_2,
        f"{target}mlp.up_proj.weight": take(f"{source}mlp.0.weight"),
        f"{target}mlp.up_proj.bias": take(f"{source}mlp.0.bias"),
        f"{target}mlp.down_proj.weight": take(f"{source}mlp.2.weight") * gate_2[:, None],
        f"{target}mlp.down_proj.bias": take(f"{source}mlp.2.bias") * gate_2,
    }


def _fold_output(take: _Taker, condition: Tensor) -> dict[str, Tensor]:
    shift, scale = _modulation(take, "output_layer.", condition, 2)
    return {
        "model.norm.weight": take("output_layer.norm_final.weight") * (1 + scale),
        "model.norm.bias": shift,
        "lm_head.weight": take("output_layer.linear.weight"),
        "lm_head.bias": take("output_layer.linear.bias"),
    }
