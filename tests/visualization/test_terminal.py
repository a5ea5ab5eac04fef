"""Terminal text of the generation order."""

import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_lomdm.visualization import order_text, token_texts

ESCAPE = re.compile("\x1b\\[[0-9;]*m")
TOKENS = ["Ab", " cd", "\ne", "f", "<pad>"]
ORDER = [-1, 3, 0, 1, -2]


def test_plain_text_has_no_escape_codes_and_shows_the_text_as_it_grew():
    text = order_text(TOKENS, ORDER, color=False)
    assert "\x1b" not in text
    assert text.split("\n\n") == [
        "after step 1: 1 of 3 tokens revealed\nAb···\ne·",
        "after step 2: 2 of 3 tokens revealed\nAb···\nef",
        "after step 4: 3 of 3 tokens revealed\nAb cd\nef",
        "after step 4: 3 of 3 tokens revealed\nAb cd\nef",
    ]


def test_coloured_text_is_the_text_and_colours_run_from_the_first_step_to_the_last():
    first_part = order_text(TOKENS, ORDER, color=True).split("\n\n")[0]
    assert ESCAPE.sub("", first_part) == "Ab cd\nef"
    assert first_part.startswith("Ab\x1b")  # given: no colour
    assert "\x1b[38;5;196m cd\x1b[0m" in first_part and "\x1b[38;5;21m\ne\x1b[0m" in first_part


def test_text_without_reveals_is_given_back():
    assert order_text(["a", "b"], [-1, -1], color=True) == "ab"


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="got 2 and 1"):
        order_text(["a", "b"], [0], color=False)


def test_token_texts_join_to_the_decoded_text_also_within_characters():
    alphabet = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    pieces = token_texts(tokenizer, tokenizer("a é 語")["input_ids"])
    assert pieces == ["a", " ", "", "é", " ", "", "", "語"]
