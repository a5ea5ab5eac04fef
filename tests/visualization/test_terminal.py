"""Terminal text of the generation order."""

import re

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.visualization import order_text, token_texts, visible
from tiny_tokenizer import build_tokenizer

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
    late, early = "48;2;254;232;56;38;2;0;0;0", "48;2;0;34;78;38;2;255;255;255"  # cividis
    assert f"\x1b[{late}m cd\x1b[0m" in first_part
    assert f"\n\x1b[{early}me\x1b[0m" in first_part  # a line break is not painted


def test_text_without_reveals_is_given_back():
    assert order_text(["a", "b"], [-1, -1], color=True) == "ab"


def test_texts_of_a_model_with_blocks_grow_block_by_block_behind_what_is_given(make_model):
    model, tokenizer = make_model(block_size=4, eos_token_id=None), build_tokenizer()
    pipe = LoMDMPipeline(model, LoMDMScheduler(mask_token_id=10), tokenizer)
    pipe.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    out = pipe([[3, 4], [6] * 7], num_inference_steps=4, max_new_tokens=6, generator=generator)
    short = out.order[0].tolist()
    assert min(short) == -2 and short[:2] == [-1] * 2 and min(short[4:8]) >= 4 and max(short) < 12
    tokens = token_texts(tokenizer, out.sequences[0].tolist())
    quarter, *_, last = (
        part.split("\n")[-1] for part in order_text(tokens, short, color=False).split("\n\n")
    )
    assert last == "".join(tokens[: short.index(-2)])
    hidden = [text for text, step in zip(tokens, short, strict=True) if step > 3]
    assert len(hidden) == 4  # the second block, still masked when two of six tokens are revealed
    assert quarter == "".join(tokens[:4]) + "·" * len("".join(hidden))


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="got 2 and 1"):
        order_text(["a", "b"], [0], color=False)


def test_token_texts_join_to_the_decoded_text_also_within_characters():
    alphabet = {
        character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    pieces = token_texts(tokenizer, tokenizer("a é 語")["input_ids"])
    assert pieces == ["a", " ", "", "é", " ", "", "", "語"]


def test_control_characters_of_the_text_do_not_reach_the_terminal():
    text = order_text(["a\x1b[2J", "\x9b2J\r\x7f", "b\n\tc"], [0, 1, 2], color=False)
    assert "a␛[2J�2J␍␡b\n\tc" in text and not set(text) & {"\x1b", "\x9b", "\r", "\x7f"}


def test_visible_text_holds_nothing_that_steers_a_terminal_or_turns_a_line():
    hostile = [*map(chr, range(32)), "\x7f", *map(chr, range(0x80, 0xA0)), "\ud83d", "\udce9"]
    hostile += list("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    for character in hostile:
        shown = visible(f"a{character}b")
        assert (character in "\n\t") == (character in shown) and len(shown) == 3
    plain = "naïve 語 é 😀\n\t«»"
    assert visible(plain) == plain and visible("\x1b]0;title\x07") == "␛]0;title␇"
