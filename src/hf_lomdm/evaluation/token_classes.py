"""Token classes: of words (special, word start, continuation, ...), and of SMILES."""

import unicodedata
from typing import Any

import torch
from torch import Tensor

CLASSES = ("special", "word start", "continuation", "digit", "punctuation", "space", "other")
SPECIAL, WORD_START, CONTINUATION, DIGIT, PUNCTUATION, SPACE, OTHER = range(len(CLASSES))
NUM_DECILES = 10
# Kinds of the characters of SMILES, for the statistics of orders.
KINDS = {
    "atom": "",  # letters: all that is in no other
    "bond": "-=#:/\\~.",
    "ring digit": "0123456789%",
    "branch": "()",
    "bracket": "[]+@",
    "end": "",  # special tokens, EOS above all
}
ATOM, END = list(KINDS).index("atom"), list(KINDS).index("end")


class TokenClasses:
    """The class of each token, an index into `CLASSES`, by it and the token before it.

    Special tokens of the tokenizer are `special`. Others are judged by what they add to a text that
    ends in a letter: a token with a letter is a `word start` if it brings a space along or if the
    token before does not end in a letter or a digit (at the start of a row: always), else a
    `continuation`; a token without letters is a `digit` if it has one, else `punctuation` if it has
    any visible character, else `space`. Parts of a character and ids that the tokenizer does not
    know are `other`.

    Args:
        tokenizer: a transformers tokenizer. vocab_size: number of ids that the model knows.
    """

    names: tuple[str, ...] = CLASSES

    def __init__(self, tokenizer: Any, vocab_size: int):
        special = set(tokenizer.all_special_ids)
        ids = sorted(index for index in tokenizer.get_vocab().values() if index < vocab_size)
        texts = _texts_behind_letter(tokenizer, [index for index in ids if index not in special])
        self._kind = torch.full((vocab_size,), OTHER)
        self._opens = torch.zeros(vocab_size, dtype=torch.bool)
        self._ends_in_word = torch.zeros(vocab_size, dtype=torch.bool)
        for index in ids:
            text = texts.get(index, "")
            self._kind[index] = SPECIAL if index in special else _kind(text)
            self._opens[index] = text[:1].isspace()
            self._ends_in_word[index] = text[-1:].isalnum()

    def __call__(self, ids: Tensor) -> Tensor:
        """Indices into `CLASSES`, `[B, L]` int64, of texts `[B, L]`."""
        within = self._ends_in_word[ids].roll(1, -1)
        within[:, 0] = False
        kind = self._kind[ids]
        continues = (kind == WORD_START) & within & ~self._opens[ids]
        return torch.where(continues, CONTINUATION, kind)


class SmilesClasses:
    """The kind of each token of SMILES: atom, bond, ring digit, branch, bracket or end.

    A token of several characters has the kind of its first. Special tokens, EOS above all, are
    ends.

    Args:
        tokenizer: of characters or atoms. vocab_size: number of ids that the model knows.
    """

    names = tuple(KINDS)

    def __init__(self, tokenizer: Any, vocab_size: int):
        self._kind = torch.full((vocab_size,), ATOM)
        for token, index in tokenizer.get_vocab().items():
            kinds = (n for n, signs in enumerate(KINDS.values()) if token[:1] in signs and token)
            self._kind[index] = next(kinds, ATOM)
        self._kind[[i for i in tokenizer.all_special_ids if i < vocab_size]] = END

    def __call__(self, ids: Tensor) -> Tensor:
        """Indices into `names`, `[B, L]` int64, of texts `[B, L]`."""
        return self._kind[ids]


def frequency_deciles(ids: Tensor, vocab_size: int) -> Tensor:
    """Decile `[V]` int64 of each id by frequency among `ids` `[n]`: 0 = the rarest tenth.

    All occurrences of a token are in one decile, that of their middle, so a token that fills more
    than a tenth leaves deciles empty. Ids that do not occur are in the first.
    """
    counts = torch.bincount(ids, minlength=vocab_size).double()
    order = counts.argsort(stable=True)
    middle = counts[order].cumsum(0) - counts[order] / 2
    deciles = torch.empty_like(order)
    deciles[order] = (
        (middle * NUM_DECILES / counts.sum().clamp(min=1)).long().clamp(max=NUM_DECILES - 1)
    )
    return deciles


def _texts_behind_letter(tokenizer: Any, ids: list[int]) -> dict[int, str]:
    """What each token adds to a text that ends in a letter, whatever the tokenizer."""
    letter = next((index for index in ids if _decode(tokenizer, [index])[-1:].isalpha()), None)
    front = [] if letter is None else [letter]
    start = len(_decode(tokenizer, front)) if front else 0
    return {index: _decode(tokenizer, [*front, index])[start:] for index in ids}


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _kind(text: str) -> int:
    """The class by characters alone; a token with letters counts as a word start."""
    if not text or "\ufffd" in text:
        return OTHER
    if any(character.isalpha() for character in text):
        return WORD_START
    if any(character.isdigit() for character in text):
        return DIGIT
    visible = (unicodedata.category(character)[0] in "PSMN" for character in text)
    return PUNCTUATION if any(visible) else SPACE
