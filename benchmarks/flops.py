"""Floating point operations on paper: of training steps of any system.

A multiplication and an addition are two operations. Counted are the products with weight matrices
and those of attention; a test counts them with torch. A forward pass costs 2 for each weight and
token and `4 * D * keys` for each layer of attention; a backward pass twice that. Recomputed work is
not counted: it is not needed.
"""

from transformers import PreTrainedConfig

from hf_lomdm import LoMDMConfig
from hf_lomdm.modeling.attention_lomdm import chunk_positions

SYSTEMS = ("mdlm_reference", "mdlm", "naive_lomdm", "lomdm")


def layer(config: PreTrainedConfig, keys: float) -> float:
    """One transformer block forward, per token that attends to `keys` positions."""
    return 2 * (
        4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    ) + _attention(config, keys)


def _attention(config: PreTrainedConfig, keys: float) -> float:
    return 4 * config.hidden_size * keys


def backbone(config: PreTrainedConfig, keys: float) -> float:
    """All blocks forward, per token; embeddings are looked up."""
    return config.num_hidden_layers * layer(config, keys)


def projection(config: PreTrainedConfig) -> float:
    """To the vocabulary, forward, per position that is projected."""
    return 2 * config.hidden_size * config.vocab_size


def order_head(config: LoMDMConfig, keys: float) -> float:
    """An order head forward, per token."""
    return layer(config, keys) + 2 * config.hidden_size * (config.hidden_size + 1)


def training(config: PreTrainedConfig, length: int, masked_share: float = 0.5) -> float:
    """Forward and backward of a training step of a system of the family, per token of text.

    Counted is what the loss reads. AR: one pass, projected at every position. Others: one pass per
    view, projected where it is masked; with blocks one more, of the clean copy, in one row with the
    views. Learned rates: besides, the clean text once without gradient, phi on it, and psi on all
    copies.

    Args:
        config: a `LoMDMConfig`, or the `GPTNeoXConfig` of the AR baseline.
        length: tokens of a row.
        masked_share: of the positions, in the mean over texts and views.
    """
    if not isinstance(config, LoMDMConfig):
        return 3 * (backbone(config, length) + projection(config))
    learned = config.rate_type == "learned"
    views = config.num_views or (2 if config.rate_type in ("learned", "token") else 1)
    return _training(config, length, views, learned, masked_share)


def of_system(system: str, config: LoMDMConfig, length: int, masked_share: float = 0.5) -> float:
    """A training step of one of `SYSTEMS` per token of text; the references project all."""
    body, logits = backbone(config, length), projection(config)
    if system == "mdlm_reference":
        return 3 * (body + logits)
    if system == "naive_lomdm":
        return body + logits + 3 * 3 * order_head(config, length) + 2 * 3 * (body + logits)
    if system in ("mdlm", "lomdm"):
        learned = system == "lomdm"
        return _training(config, length, 2 if learned else 1, learned, masked_share)
    raise ValueError(f"system must be one of {SYSTEMS}, got {system!r}.")


def _training(
    config: LoMDMConfig, length: int, views: int, learned: bool, masked_share: float
) -> float:
    copies, alone, keys = views, length, length
    if config.block_size is not None:
        copies += 1
        alone, keys = block_keys(config, length, 1), block_keys(config, length, copies)
    total = 3 * copies * backbone(config, keys) + 3 * views * masked_share * projection(config)
    if learned:
        total += backbone(config, alone) + 3 * order_head(config, alone)
        return total + 3 * copies * order_head(config, keys)
    if config.block_size is None:
        return total
    # of the clean copy, the last layer makes keys and values (and queries) alone
    return total - 3 * (layer(config, alone) - 2 * 3 * config.hidden_size**2)


def block_keys(config: LoMDMConfig, length: int, num_copies: int) -> float:
    """Positions to which one attends with blocks, the mean over the copies of a text."""
    pairs = 0
    for queries, keys in chunk_positions(config, length, num_copies):
        pairs += (queries.stop - queries.start) * sum(part.stop - part.start for part in keys)
    return pairs / (num_copies * length)


def num_weights(config: LoMDMConfig) -> int:
    """Entries of the weight matrices, with embeddings, heads and biases; norms are left out."""
    d, ff = config.hidden_size, config.intermediate_size
    block = 4 * d * d + 2 * d * ff + ff + d
    heads = 2 * (block + d * d + 2 * d) + d if config.rate_type == "learned" else 0
    table = 1 if config.tie_word_embeddings else 2
    return config.num_hidden_layers * block + heads + config.vocab_size * (table * d + 1)
