"""Prompts to rows of token ids, and rows back to texts. This file travels to the Hub."""

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral

from .canvas_lomdm import Canvas, end_of_row, new_canvas, require

# Positions of all rows of a call. The host keeps about 50 bytes of each; their hidden states, of
# 768 units, take 6 GB.
MAX_POSITIONS = 2**21


def make_canvas(
    config, tokenizer, prompt, max_length: int | None, max_new_tokens: int | None, repeats: int
) -> Canvas:
    """The canvas of a call: every prompt `repeats` times."""
    limits = {"max_length": max_length, "max_new_tokens": max_new_tokens}
    counts = {
        "num_return_sequences": repeats,
        **{name: one for name, one in limits.items() if one is not None},
    }
    for name, value in counts.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool) and value >= 1
        require(
            whole,
            f"{name} must be a whole number of at least 1, got {value!r}. Pass for example 32.",
        )
    require(
        None in limits.values(),
        f"{max_length=} and {max_new_tokens=} exclude each other: pass one of them.",
    )
    prompts = [[]] if prompt is None else encode(config, tokenizer, prompt)
    lengths = [_length(config, i, ids, max_length, max_new_tokens) for i, ids in enumerate(prompts)]
    total = int(repeats) * sum(lengths)
    given = ", ".join(f"{name}={value}" for name, value in counts.items())
    wrong = f"{len(prompts)} prompts with {given} make {total} tokens, more than {MAX_POSITIONS}. "
    require(total <= MAX_POSITIONS, wrong + "Lower them, or call more than once.")
    pairs = [pair for pair in zip(prompts, lengths, strict=True) for _ in range(repeats)]
    mask = config.mask_token_id
    return new_canvas([ids + [mask] * (length - len(ids)) for ids, length in pairs], mask)


def encode(config, tokenizer, prompt) -> list[list[int]]:
    """Token ids of prompts.

    BOS stands in front of texts that are prefixes, if the model has one.
    """
    prompt = [prompt] if isinstance(prompt, str) else prompt
    listed = isinstance(prompt, (list, tuple)) and len(prompt) > 0
    require(
        listed,
        f"prompt must be None, a string or a list with at least one entry, got {prompt!r}.",
    )
    if all(isinstance(text, str) for text in prompt):
        return _tokenize(config, tokenizer, list(prompt))
    if all(
        isinstance(ids, (list, tuple)) and all(isinstance(i, int) for i in ids) for ids in prompt
    ):
        return [list(ids) for ids in prompt]
    wrong = (
        "prompt must be a list of strings or of lists of int token ids, not a mixture, got "
        f"{prompt[:3]!r}."
    )
    raise ValueError(f"{wrong} Put a single list of ids into a list.")


def _tokenize(config, tokenizer, texts: list[str]) -> list[list[int]]:
    require(
        tokenizer is not None,
        f"prompt {texts[0]!r} is a text, which needs a tokenizer. Pass token id lists instead.",
    )
    bos, mask = config.bos_token_id, config.mask_token_id
    rows = tokenize(tokenizer, texts)
    plain = [bos is None or mask in row or row[:1] == [bos] for row in rows]
    return [row if as_it_is else [bos, *row] for row, as_it_is in zip(rows, plain, strict=True)]


def tokenize(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of texts, whose special tokens are special.

    Raises:
        ValueError: something that the tokenizer does not know: the model would read its unknown
            token there, or nothing.
    """
    texts = [well_formed(text) for text in texts]
    batch = tokenizer(texts, add_special_tokens=False)
    for index, text in enumerate(texts):
        encoding = None if batch.encodings is None else batch.encodings[index]
        unknown = list(dict.fromkeys(_unknown(tokenizer, text, encoding)))
        require(
            not unknown,
            f"prompt {index} has {unknown[:10]}, which the tokenizer does not know. Leave that "
            "out, or take a model that was trained on such text.",
        )
    return batch["input_ids"]


def _unknown(tokenizer, text: str, encoding) -> Iterator[str]:
    """What of a text becomes no token, or an unknown one that the text does not spell out."""
    token, index = tokenizer.unk_token, tokenizer.unk_token_id
    if index is None:
        yield from dropped_letters(tokenizer, text)
    elif encoding is None:  # a tokenizer in Python does not tell what its tokens come from
        words = text.replace(token, " ").split()
        rows = tokenizer(words, add_special_tokens=False)["input_ids"] if words else []
        yield from (word for word, ids in zip(words, rows, strict=True) if index in ids)
    else:
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        pieces = (text[slice(*span)] for one, span in spans if one == index)
        yield from (piece for piece in pieces if piece.strip() != token)


def dropped_letters(tokenizer, text: str) -> list[str]:
    """Letters of a text of which a tokenizer without an unknown token makes nothing."""
    for special in tokenizer.all_special_tokens:
        text = text.replace(special, " ")
    letters = [letter for letter in dict.fromkeys(text) if not letter.isspace()]
    rows = tokenizer(letters, add_special_tokens=False)["input_ids"] if letters else []
    return [letter for letter, ids in zip(letters, rows, strict=True) if not ids]


def _length(
    config, index: int, ids: list[int], max_length: int | None, max_new_tokens: int | None
) -> int:
    """Tokens of the row of a prompt: a prefix has masks behind it, a template stays."""
    mask, limit = config.mask_token_id, max_length or config.max_position_embeddings
    outside = next((i for i in ids if not 0 <= i < config.vocab_size), None)
    problem = (
        f"prompt {index} has the token id {outside}, outside the vocabulary of "
        f"{config.vocab_size}. "
    )
    require(outside is None, problem + "Use the tokenizer that the model was trained with.")
    problem = (
        f"prompt {index} contains the mask token ({mask}): it is a template, filled in place. "
    )
    remedy = f"Leave max_new_tokens={max_new_tokens} out, or take the mask token out of the prompt."
    require(mask not in ids or max_new_tokens is None, problem + remedy)
    length = len(ids) if mask in ids else len(ids) + max_new_tokens if max_new_tokens else limit
    problem = (
        f"prompt {index} needs {len(ids)} tokens, more than the limit of {limit} (max_length or "
    )
    remedy = "max_position_embeddings). Shorten the prompt or pass max_new_tokens."
    require(len(ids) <= min(length, max_length or length), problem + remedy)
    problem = f"prompt {index} has {len(ids)} tokens: max_length={limit} leaves nothing to write."
    require(length > len(ids) or mask in ids, problem)
    return length


def encode_messages(tokenizer, messages) -> list[list[int]]:
    """Token ids of a conversation, or of a list of them, by the tokenizer's chat template."""
    listed = isinstance(messages, (list, tuple)) and len(messages) > 0
    each = [messages] if listed and isinstance(messages[0], Mapping) else messages
    fits = listed and all(
        isinstance(chat, (list, tuple))
        and len(chat) > 0
        and all(isinstance(turn, Mapping) and {"role", "content"} <= turn.keys() for turn in chat)
        for chat in each
    )
    require(
        fits,
        f"messages must be dicts with role and content, or a list of such lists, got {messages!r}. "
        "Pass for example [{'role': 'user', 'content': 'Hello'}].",
    )
    require(
        getattr(tokenizer, "chat_template", None) is not None,
        "messages need a tokenizer with a chat template. Set tokenizer.chat_template, or pass "
        "prompt.",
    )
    options = {"tokenize": False, "add_generation_prompt": True}
    return tokenize(
        tokenizer, [tokenizer.apply_chat_template(list(chat), **options) for chat in each]
    )


class StopStrings:
    """The strings that end a text behind its prompt.

    Raises:
        ValueError: what is no string or list of strings, empty strings, no tokenizer.
    """

    def __init__(self, strings: str | Sequence[str] | None, tokenizer):
        each = [strings] if isinstance(strings, str) else [] if strings is None else strings
        self.strings, self.tokenizer = each, tokenizer
        fine = isinstance(each, (list, tuple)) and all(isinstance(one, str) and one for one in each)
        require(
            fine,
            f"stop_strings must be strings that are not empty, got {strings!r}. Pass for example "
            "'.'.",
        )
        require(
            not self.strings or tokenizer is not None,
            f"stop_strings={strings!r} need a tokenizer. Load the pipeline with one.",
        )

    def __call__(self, row: list[int], start: int) -> bool:
        """Whether the text of a row, written from `start` on, has a stop string."""
        return bool(self.strings) and self._first(*self._texts(row, start)) is not None

    def text(self, row: list[int], start: int) -> str:
        """The text of a row, cut before its first stop string behind the prompt."""
        if not self.strings:
            return self.tokenizer.decode(row, skip_special_tokens=True)
        whole, prompt = self._texts(row, start)
        return whole[: self._first(whole, prompt)]

    def _texts(self, row: list[int], start: int) -> tuple[str, str]:
        whole, prompt = (
            self.tokenizer.decode(ids, skip_special_tokens=True) for ids in (row, row[:start])
        )
        return whole, prompt

    def _first(self, whole: str, prompt: str) -> int | None:
        behind = len(prompt) if whole.startswith(prompt) else 0
        places = [whole.find(one, behind) for one in self.strings]
        return min((place for place in places if place >= 0), default=None)


def decode(canvas: Canvas, config, stop: StopStrings) -> list[str]:
    """Texts of the rows, each cut before the first EOS and stop string behind all that is given."""
    rows = zip(canvas.rows, canvas.starts, strict=True)
    return [stop.text(row[: end_of_row(row, start, config)], start) for row, start in rows]


def well_formed(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate, which no tokenizer takes.

    A pair of surrogates becomes its character.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
