"""Tiny models of each system of the family, for the suites of the peers."""

from hf_lomdm import LoMDMConfig

SIZES = {
    "vocab_size": 99,
    # the first ones: transformers' suite leaves 4 tokens and makes the last of these padding
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "mask_token_id": 2,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "dropout": 0.0,
}
SYSTEMS = {
    "Learned": {},
    "Uniform": {"rate_type": "uniform"},
    "Token": {"rate_type": "token"},
    "Score": {"rate_type": "score"},
    "Blocks": {"block_size": 4},
}


def make_config(**system) -> LoMDMConfig:
    """A configuration of a few thousand weights."""
    return LoMDMConfig(**{**SIZES, **system})
