"""Tiny models of others, for the tests of training_scripts/evaluate.py."""

import json
from pathlib import Path

from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from hf_lomdm.cli import evaluate
from hf_lomdm.data.tokenizers import train_tokenizer
from tiny_tokenizer import build_tokenizer

ROOT = Path(__file__).parents[2]


def likelihood(model: Path, text: Path, record: Path) -> dict:
    """The record of `evaluate.py likelihood` of a model on a text, written to `record`."""
    words = ["--model", model, "--file", text, "--output", record, "--quiet"]
    evaluate.main(["likelihood", *map(str, words)])
    return json.loads(record.read_text())


def write_judge(path: Path) -> Path:
    config = GPT2Config(
        vocab_size=261,
        n_positions=32,
        n_embd=8,
        n_layer=1,
        n_head=1,
        bos_token_id=1,
        eos_token_id=2,
    )
    GPT2LMHeadModel(config).save_pretrained(path)
    train_tokenizer("byte", []).save_pretrained(path)
    return path


def write_causal(path: Path) -> None:
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 16,
    }
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=11, max_position_embeddings=12, **ids, **sizes)
    ).save_pretrained(path)
    build_tokenizer().save_pretrained(path)
