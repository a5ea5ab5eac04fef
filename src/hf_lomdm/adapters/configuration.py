"""The configuration of order heads on a frozen base."""

from collections.abc import Iterable

from hf_lomdm.modeling.configuration_lomdm import LoMDMConfig
from hf_lomdm.modeling.fields_lomdm import NAME, OPTIONAL_TOKEN, TOKEN


class OrderAdapterConfig(LoMDMConfig):
    """Sizes of the order heads, the process, and which base they belong to.

    Args:
        base_name: Hub name or folder of the frozen base. base_revision: its commit, where it is
            known.
        base_fingerprint, base_fingerprint_float16: `fingerprint` of the base's weights, by bfloat16
            and by float16.
        prefix_token_id, suffix_token_id: what the base saw in front of and behind every text (BERT:
            [CLS] and [SEP]). The adapter puts them there by itself: texts have neither, and
            `max_position_embeddings` counts neither.
        suppressed_token_ids: ids besides the mask token that are never revealed: their probability
            is zero.
        kwargs: of `LoMDMConfig`; sizes are those of the base.

    Raises:
        ValueError: a value that is out of range, with the name, the value and the remedy.
    """

    model_type = "lomdm_order_adapter"
    allowed = {
        **LoMDMConfig.allowed,
        "base_name": NAME,
        "base_revision": NAME,
        "base_fingerprint": NAME,
        "prefix_token_id": OPTIONAL_TOKEN,
        "suffix_token_id": OPTIONAL_TOKEN,
    }

    def __init__(
        self,
        base_name: str | None = None,
        base_revision: str | None = None,
        base_fingerprint: str | None = None,
        base_fingerprint_float16: str | None = None,
        prefix_token_id: int | None = None,
        suffix_token_id: int | None = None,
        suppressed_token_ids: Iterable[int] = (),
        **kwargs,
    ):
        super().__init__(**kwargs)
        if self.rate_type != "learned" or self.block_size is not None:
            raise ValueError(
                "an order adapter has rate_type='learned' and block_size=None, got "
                f"{self.rate_type!r} and {self.block_size}. Leave both out."
            )
        self.base_name, self.base_revision = base_name, base_revision
        self.base_fingerprint, self.base_fingerprint_float16 = (
            base_fingerprint,
            base_fingerprint_float16,
        )
        self.prefix_token_id, self.suffix_token_id = prefix_token_id, suffix_token_id
        listed = isinstance(suppressed_token_ids, Iterable)
        suppressed = list(suppressed_token_ids) if listed else [suppressed_token_ids]
        ends = {"prefix_token_id": prefix_token_id, "suffix_token_id": suffix_token_id}
        ids = {name: [token] for name, token in ends.items() if token is not None}
        for name, tokens in {**ids, "suppressed_token_ids": suppressed}.items():
            wrong = [token for token in tokens if token not in TOKEN or token >= self.vocab_size]
            if wrong:
                raise ValueError(
                    f"{name} must be in [0, vocab_size={self.vocab_size}), got {wrong[0]!r}."
                )
        self.suppressed_token_ids = sorted(set(suppressed))
