"""Floating point operations on paper: of a training step, ours and the reference's, and of a sampling step.

A multiplication and an addition are two operations. Counted are the products with weight matrices and those of
attention; a test counts them with torch. A forward pass costs 2 for each weight and token and `4 * D * keys` for each
layer of attention; a backward pass twice that. Recomputed work is not counted: it is not needed.
"""

from hf_lomdm import LoMDMConfig
from hf_lomdm.modeling.backbone_lomdm import chunk_positions

SYSTEMS = ("mdlm_reference", "mdlm", "naive_lomdm", "lomdm")


def layer(config: LoMDMConfig, keys: float) -> float:
    """One transformer block forward, per token that attends to `keys` positions."""
    return 2 * (4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size) + _attention(
        config, keys
    )


def _attention(config: LoMDMConfig, keys: float) -> float:
    return 4 * config.hidden_size * keys


def backbone(config: LoMDMConfig, keys: float) -> float:
    """All blocks forward, per token; embeddings are looked up."""
    return config.num_hidden_layers * layer(config, keys)


def projection(config: LoMDMConfig) -> float:
    """To the vocabulary, forward, per position that is projected."""
    return 2 * config.hidden_size * config.vocab_size


def order_head(config: LoMDMConfig, keys: float) -> float:
    """An order head forward, per token."""
    return layer(config, keys) + 2 * config.hidden_size * (config.hidden_size + 1)


def training(system: str, config: LoMDMConfig, length: int, masked_share: float = 0.5) -> float:
    """Forward and backward of one of `SYSTEMS`, per token of text.

    Args:
        masked_share: of the positions, in the mean over texts and views; the reference projects all of them.
    """
    body, logits = backbone(config, length), projection(config)
    if system == "mdlm_reference":
        return 3 * (body + logits)
    if system == "mdlm":
        return 3 * (body + masked_share * logits)
    heads = 3 * 3 * order_head(config, length)  # phi once, psi on both views
    if system == "naive_lomdm":
        return body + logits + heads + 2 * 3 * (body + logits)
    if system == "lomdm":
        return body + heads + 2 * 3 * (body + masked_share * logits)
    raise ValueError(f"system must be one of {SYSTEMS}, got {system!r}.")


def block_training(config: LoMDMConfig, length: int, masked_share: float = 0.5) -> float:
    """A training step with blocks, per token: the clean text and its views in one row, chunk of queries by chunk."""
    learned = config.rate_type == "learned"
    views = 2 if learned else 1
    copies = views + 1
    keys = block_keys(config, length, copies)
    alone = block_keys(config, length, 1)
    total = 3 * copies * backbone(config, keys) + 3 * views * masked_share * projection(config)
    if not learned:  # of the clean text, the last layer makes keys and values (and queries) alone
        return total - 3 * (layer(config, alone) - 2 * 3 * config.hidden_size**2)
    total += backbone(config, alone) + 3 * order_head(config, alone)
    return total + 3 * copies * order_head(config, keys)


def block_keys(config: LoMDMConfig, length: int, num_copies: int) -> float:
    """Positions to which one attends with blocks, the mean over the copies of a text."""
    pairs = 0
    for queries, keys in chunk_positions(config, length, num_copies):
        pairs += (queries.stop - queries.start) * sum(part.stop - part.start for part in keys)
    return pairs / (num_copies * length)


def sampling_step(config: LoMDMConfig, length: int, projected: float) -> float:
    """One pass of the sampler, per row of `length` positions of which `projected` get logits."""
    head = order_head(config, length) if config.rate_type == "learned" else 0.0
    return length * (backbone(config, length) + head) + projected * projection(config)


def num_weights(config: LoMDMConfig) -> int:
    """Entries of the weight matrices, with embeddings, heads and biases; norms are left out."""
    d, ff = config.hidden_size, config.intermediate_size
    block = 4 * d * d + 2 * d * ff + ff + d
    heads = 2 * (block + d * d + 2 * d) + d if config.rate_type == "learned" else 0
    table = 1 if config.tie_word_embeddings else 2
    return config.num_hidden_layers * block + heads + config.vocab_size * (table * d + 1)
