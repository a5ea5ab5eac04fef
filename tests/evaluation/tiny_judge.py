"""A judge for tests: a random GPT-2 that reads the letters `a` to `g` in pairs, unlike the tiny
models that write."""

import itertools

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from conftest import build_model
from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from tiny_tokenizer import build_tokenizer

LETTERS = "abcdefg"
PIECES = ["<start>", *LETTERS, *map("".join, itertools.product(LETTERS, repeat=2))]


def build_judge_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """Pairs of letters, a single one at the end of a text of odd length; no padding token, BOS 0 or
    none."""
    tokenizer = Tokenizer(
        models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="<start>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("..?"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **({"bos_token": "<start>"} if bos else {})
    )


def build_judge(positions: int = 64) -> GPT2LMHeadModel:
    """A random GPT-2 in eval mode whose probabilities differ clearly."""
    state = torch.get_rng_state()
    torch.manual_seed(5)
    sizes = {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": positions,
        "initializer_range": 0.5,
    }
    judge = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(PIECES), bos_token_id=None, eos_token_id=None, **sizes)
    ).eval()
    torch.set_rng_state(state)
    return judge


def build_pipeline(scheduler: dict | None = None, **overrides) -> LoMDMPipeline:
    """The tiny model with its character tokenizer; `overrides` of its configuration."""
    model = build_model(**overrides)
    settings = {"mask_token_id": model.config.mask_token_id, "block_size": model.config.block_size}
    return LoMDMPipeline(
        model, LoMDMScheduler(**{**settings, **(scheduler or {})}), build_tokenizer()
    )
