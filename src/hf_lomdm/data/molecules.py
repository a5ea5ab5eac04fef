"""Templates of SMILES: given pieces with windows between them, for models whose rows end in EOS."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from .tokenizers import encode_texts


def smiles_template(
    parts: Sequence[str | int], tokenizer: PreTrainedTokenizerBase, length: int, ends: bool = True
) -> tuple[list[int], dict[int, list[int]]]:
    """A row of token ids to be filled in, and the tokens that its windows may hold.

    Args:
        parts: SMILES that are given, and lengths of windows, in their order: `["CC(", 4, ")O"]`.
        length: of the rows of the model, its `max_position_embeddings`.
        ends: the molecule ends behind the last part; `False`: the model goes on as long as it
            likes.
    Returns:
        Ids `[length]` and `{position: ids}`: no window may hold EOS, or another special token.
        They are the `prompt` and `allowed_tokens` of a `LoMDMPipeline`.
    Raises:
        ValueError: parts of another kind, without a mask, longer than `length`, or with characters
            that the tokenizer does not know.
    """
    row: list[int] = []
    windows: list[int] = []
    for part in parts:
        if isinstance(part, str):
            row += encode_texts(tokenizer, [part], lambda _: "a part of the template")[0]
        elif isinstance(part, int) and part > 0:
            windows += range(len(row), len(row) + part)
            row += [tokenizer.mask_token_id] * part
        else:
            raise ValueError(
                f"parts must be SMILES and lengths of windows of at least 1, got {part!r}. For "
                "example: ['CC(', 4, ')O']."
            )
    if tokenizer.unk_token_id in row:
        raise ValueError(f"the tokenizer does not know all characters of {list(parts)!r}.")
    if len(row) > length or (ends and not windows) or (not ends and len(row) == length):
        raise ValueError(
            f"parts {list(parts)!r} have {len(row)} characters, {len(windows)} of them to fill in, "
            f"and a row has {length}. Shorten them, or give a window."
        )
    last = tokenizer.eos_token_id if ends else tokenizer.mask_token_id
    special = set(tokenizer.all_special_ids)
    letters = sorted(index for index in tokenizer.get_vocab().values() if index not in special)
    return row + [last] * (length - len(row)), dict.fromkeys(windows, letters)
