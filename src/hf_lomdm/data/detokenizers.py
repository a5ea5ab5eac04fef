"""Undo the word splitting of corpora, so that perplexities compare with published ones.

The rules follow what the public evaluations of MDLM and its successors do, set by set: spaces
before punctuation and inside brackets and quotes go, and the placeholders of a corpus become text.
One document in, one document out.
"""

import re
from collections.abc import Callable

_PUNCTUATION = re.compile(r" ([.,!?:;])(?=\s|$)")
_PAIRS = (
    (re.compile(r'" ([^"]*?) "'), r'"\1"'),
    (re.compile(r"(?<!\S)' ([^']*?) '(?![^\s.,!?:;])"), r"'\1'"),
    (re.compile(r"\( ([^()]*?) \)"), r"(\1)"),
    (re.compile(r"\[ ([^\[\]]*?) \]"), r"[\1]"),
)


def _tighten(text: str) -> str:
    """Close up punctuation, quotes and brackets."""
    # Before the quotes, where a comma still has a space behind it.
    text = _PUNCTUATION.sub(r"\1", text)
    for pattern, replacement in _PAIRS:
        text = pattern.sub(replacement, text)
    return text


def lm1b(text: str) -> str:
    """One Billion Word: `they didn 't pay $ 1 ( or so ) .` -> `they didn't pay $1 (or so).`."""
    text = re.sub(r"\b(https?) : / / ", r"\1://", text)
    text = re.sub(r" '(?=\w)", "'", text)
    text = _tighten(text)
    text = text.replace(" / ", "/")
    return re.sub(r"([$£€]) (?=\d)", r"\1", text)


def ptb(text: str) -> str:
    """Penn Treebank: `it did n't say <unk> 's $ N` -> `it didn't say ?'s $1`.

    Every number is 1, as in the published protocol.
    """
    text = text.replace(" 's", "'s").replace(" n't", "n't").replace("<unk>", "?")
    text = re.sub(r"(?<!\S)N(?!\S)", "1", text)
    return re.sub(r"([$#]) 1\b", r"\g<1>1", text)


def wikitext(text: str) -> str:
    """WikiText: ` = = 5 @-@ 1 ( about 1 @,@ 000 ) = = ` -> ` == 5-1 (about 1,000) == `."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = text.replace(" 's", "'s").replace("s ' ", "s' ")
    text = _tighten(text)
    text = re.sub(r"=(?: =)+", lambda run: run[0].replace(" ", ""), text)
    text = text.replace(" ° ", "° ")
    return re.sub(r" N (?=\S)", " 1 ", text)


def lambada(text: str) -> str:
    """LAMBADA: curly double quotes become straight, a line feed stands before the text."""
    return "\n" + text.replace("“", '"').replace("”", '"').strip()


DETOKENIZERS: dict[str, Callable[[str], str]] = {
    "lm1b": lm1b,
    "ptb": ptb,
    "wikitext": wikitext,
    "lambada": lambada,
}


def get_detokenizer(name: str | None) -> Callable[[str], str] | None:
    """The detokenizer of that name, None for None.

    Raises:
        ValueError: the name is unknown.
    """
    if name is not None and name not in DETOKENIZERS:
        raise ValueError(
            f"detokenizer must be one of {', '.join(DETOKENIZERS)} or left out, got {name!r}."
        )
    return None if name is None else DETOKENIZERS[name]
