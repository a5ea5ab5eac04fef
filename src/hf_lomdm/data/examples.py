"""Prompts and answers from jsonl files of texts or conversations; the prompt is given."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..pipelines.canvas_lomdm import end_of_text
from .reading import read_jsonl
from .tokenizers import check_known, encode_texts

# What a tokenizer without a chat template gets: `role: content`, a line each; EOS behind each
# answer.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
REMEDY = (
    'Write {"prompt": "...", "completion": "..."} or '
    '{"messages": [..., {"role": "assistant", ...}]} in each line.'
)
# Around a special token that a content spells out while a template writes; Unicode keeps them free
# for such uses.
HIDDEN = "\ufdd0\ufdd1"


@dataclass(frozen=True)
class Example:
    """Ids of a prompt (BOS in front, if the model has one) and of its answer with EOS."""

    prompt: list[int]
    answer: list[int]


def read_examples(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, bos: int | None, eos: int | None
) -> list[Example]:
    """Examples of a jsonl file, tokenised as `LoMDMPipeline` tokenises a prompt.

    A line holds `prompt` and `completion`, two texts that are joined as they are, or `messages`, a
    list of `{"role", "content"}` whose last role is `assistant`: the tokenizer's chat template
    makes the texts, and everything in front of the last content is the prompt. A list of messages
    in each of `prompt` and `completion` is the same. A content may be a list of parts of type
    `text`. Special tokens that texts and contents spell out are text; those that the template
    writes are special. Blank lines are skipped.

    Args:
        bos, eos: those of the model's configuration; `None` = its texts have none.
    Raises:
        ValueError: a line that is none of these, an empty answer, or the word of the mask token;
            names file and line. More than 1 % of the tokens are unknown.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist. {REMEDY}")
    examples = []
    for number, record in read_jsonl(Path(path)):
        place = f"{path}, line {number}"
        try:
            front, back = _encode(record, tokenizer, place)
        except _NoExample as error:
            raise ValueError(f"{place}{error} {REMEDY}") from error
        examples.append(_example(front, back, bos, eos, place))
    if not examples:
        raise ValueError(f"{path} holds no example. {REMEDY}")
    tokens = [token for example in examples for token in example.prompt + example.answer]
    if tokenizer.unk_token_id not in (bos, eos):
        check_known(tokens.count(tokenizer.unk_token_id), len(tokens), str(path))
    return examples


class _NoExample(ValueError):
    """What is wrong with a line, to be read behind its number."""


def _encode(
    record: dict[str, Any], tokenizer: PreTrainedTokenizerBase, place: str
) -> list[list[int]]:
    """Ids of the prompt and of the answer of a line, as it is tokenised."""
    if "messages" in record:
        return _encode_messages(record["messages"], record, tokenizer, place)
    if not {"prompt", "completion"} <= record.keys():
        raise _NoExample(
            f" has neither messages nor prompt and completion: {json.dumps(record)[:80]}."
        )
    prompt, answer = record["prompt"], record["completion"]
    if isinstance(prompt, list) and isinstance(answer, list) and len(answer) == 1:
        return _encode_messages(prompt + answer, record, tokenizer, place)
    if not isinstance(prompt, str) or not isinstance(answer, str):
        raise _NoExample(
            ": prompt and completion must be texts, or lists of messages with one in completion, "
            f"got {json.dumps(record)[:80]}."
        )
    return encode_texts(tokenizer, [prompt, answer], lambda _: place)


def _encode_messages(
    messages: Any, record: dict, tokenizer: PreTrainedTokenizerBase, place: str
) -> list[list[int]]:
    """Ids in front of the last content, and from it on, by the tokenizer's chat template."""
    unread = sorted(record.keys() & {"tools", "functions", "chat_template"})
    if unread:
        raise _NoExample(f" has {unread[0]}, which nothing reads here.")
    if not isinstance(messages, list) or not messages:
        raise _NoExample(": messages must be a list of roles and contents.")
    words = re.compile(
        "|".join(sorted(map(re.escape, tokenizer.all_special_tokens), key=len, reverse=True))
    )
    plain = [_plain(message, words) for message in messages]
    if plain[-1]["role"] != "assistant":
        raise _NoExample(": messages must be roles and contents, the last by the assistant.")
    try:
        prompt = str(
            tokenizer.apply_chat_template(plain[:-1], tokenize=False, add_generation_prompt=True)
        )
        whole = str(tokenizer.apply_chat_template(plain, tokenize=False))
    except Exception as error:  # a template is a program of its author's
        raise ValueError(
            f"{place}: the tokenizer's chat template does not take the conversation: {error}"
        ) from error
    if not whole.startswith(prompt):
        raise ValueError(
            f"{place}: by the tokenizer's chat template the conversation does not begin with its "
            f"own prompt {prompt[-40:]!r}. Set tokenizer.chat_template to one that only adds text, "
            "or give prompt and completion."
        )
    return [
        _encode_rendered(text, words, tokenizer, place) for text in (prompt, whole[len(prompt) :])
    ]


def _plain(message: Any, words: re.Pattern) -> dict[str, Any]:
    """A message with its content as one string, special tokens hidden from the tokenizer.

    `_encode_rendered` brings them back as text.
    """
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _NoExample(f": messages must be roles and contents, got {json.dumps(message)[:80]}.")
    calls = sorted(name for name in ("tool_calls", "function_call") if message.get(name))
    if calls:
        raise _NoExample(f" has {calls[0]} in a message: a model of this kind writes text alone.")
    parts = message.get("content")
    parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
    texts: list[Any] = [None]
    if isinstance(parts, list):
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
    if len(texts) != len(parts or ()) or not all(isinstance(text, str) for text in texts):
        raise _NoExample(
            ": a content must be a text, or a list of parts of type text, got "
            f"{json.dumps(parts)[:80]}."
        )
    content = words.sub(
        lambda word: f"{HIDDEN[0]}{word[0].encode().hex()}{HIDDEN[1]}", "".join(texts)
    )
    return message | {"content": content}


def _encode_rendered(
    text: str, words: re.Pattern, tokenizer: PreTrainedTokenizerBase, place: str
) -> list[int]:
    """Ids of what a template wrote: special tokens of its own, text where contents had them."""
    if HIDDEN[0] not in text:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        hidden = re.compile(f"{HIDDEN[0]}([0-9a-f]+){HIDDEN[1]}")
        shown = [
            hidden.sub(lambda word: bytes.fromhex(word[1]).decode(), part)
            for part in words.split(text)
        ]
        specials = [*map(tokenizer.convert_tokens_to_ids, words.findall(text)), None]
        ids = []
        for part, special in zip(
            encode_texts(tokenizer, shown, lambda _: place), specials, strict=True
        ):
            ids += part if special is None else [*part, special]
    if tokenizer.mask_token_id in ids:
        raise ValueError(
            f"{place} contains the mask token {tokenizer.mask_token!r}. Take it out of the "
            "template."
        )
    return ids


def _example(
    front: list[int], back: list[int], bos: int | None, eos: int | None, place: str
) -> Example:
    if not [index for index in back if index != eos]:
        raise ValueError(f"{place} has an empty answer. Leave the line out.")
    front = front if bos is None or front[:1] == [bos] else [bos, *front]
    # a chat template may write something behind EOS, where a text has ended
    back = back if eos is None else [*back[: end_of_text(back, eos)], eos]
    return Example(front, back)


def make_rows(
    examples: Sequence[Example], completion_length: int, max_length: int, eos: int | None
) -> tuple[list[dict[str, list[int]]], int]:
    """Rows `input_ids` and `labels` (-100 = given) of the examples that fit.

    Answers are filled up with EOS to `completion_length`: a sampler that is to answer with
    `max_new_tokens` masks must have learned that masks behind the answer end the text. Without an
    EOS they stay as long as they are.

    Returns:
        The rows, and the number of examples left out: their answer is longer than
        `completion_length`, or prompt and canvas are longer than `max_length`.
    Raises:
        ValueError: none fits.
    """
    rows = []
    for example in examples:
        filler = [] if eos is None else [eos] * (completion_length - len(example.answer))
        ids, answer = example.prompt + example.answer + filler, example.answer + filler
        if len(example.answer) <= completion_length and len(ids) <= max_length:
            rows.append({"input_ids": ids, "labels": [-100] * len(example.prompt) + answer})
    if not rows:
        raise ValueError(
            f"none of the {len(examples)} examples fits: completion_length is {completion_length}, "
            f"the model reads {max_length} tokens. Change completion_length, or give shorter "
            "examples."
        )
    return rows, len(examples) - len(rows)


def split_examples(examples: list[Example]) -> tuple[list[Example], list[Example]]:
    """All but the last tenth to train on, and that tenth (one at least) to validate on.

    Raises:
        ValueError: fewer than two examples.
    """
    if len(examples) < 2:
        raise ValueError(
            "train_file holds a single example, which leaves none to validate on. Pass "
            "validation_file."
        )
    cut = len(examples) - max(1, len(examples) // 10)
    return examples[:cut], examples[cut:]
