"""The configuration of a new model, from the arguments of a run."""

from dataclasses import asdict

from transformers import GPTNeoXConfig

from ..modeling.configuration_lomdm import LoMDMConfig
from .arguments import ModelArguments


def diffusion_config(arguments: ModelArguments, max_length: int, token_ids: dict[str, int | None]) -> LoMDMConfig:
    """A member of the family for texts of `max_length` tokens.

    Args:
        token_ids: `vocab_size` and the special tokens, from `hf_lomdm.training.model_token_ids`.
    Raises:
        ValueError: settings that contradict each other or are out of range.
    """
    settings = asdict(arguments)
    del settings["objective"]
    settings["max_position_embeddings"] = arguments.max_position_embeddings or max_length
    return LoMDMConfig(**settings, **token_ids)


def causal_config(arguments: ModelArguments, max_length: int, token_ids: dict[str, int | None]) -> GPTNeoXConfig:
    """The autoregressive baseline: GPT-NeoX with the trunk of `LoMDMModel`, and dropout of the embeddings besides.

    `bos_token_id` is the start token, here the mask token, so that `generate()` without a prompt starts from it. An EOS
    that is also the BOS of the texts (GPT-2) is left out: it would end every text at its first token.
    """
    eos = token_ids["eos_token_id"]
    return GPTNeoXConfig(
        vocab_size=token_ids["vocab_size"],
        hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.num_hidden_layers,
        num_attention_heads=arguments.num_attention_heads,
        intermediate_size=4 * arguments.hidden_size,
        max_position_embeddings=arguments.max_position_embeddings or max_length,
        bos_token_id=token_ids["mask_token_id"],
        eos_token_id=None if eos == token_ids["bos_token_id"] else eos,
        pad_token_id=token_ids["pad_token_id"],
        hidden_act="gelu_pytorch_tanh",
        hidden_dropout=arguments.dropout,
        attention_dropout=0.0,
        attention_bias=False,
        use_parallel_residual=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        layer_norm_eps=1e-5,
        initializer_range=(3 * arguments.hidden_size) ** -0.5,
        tie_word_embeddings=arguments.tie_word_embeddings,
    )
