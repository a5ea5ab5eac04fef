"""The evaluation command on a tiny model, and tiny models of others."""

import json
from pathlib import Path

from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from conftest import build_model
from hf_lomdm.cli import evaluate
from hf_lomdm.data.tokenizers import train_tokenizer
from tiny_tokenizer import build_tokenizer

ROOT = Path(__file__).parents[2]


def write_folder(path: Path) -> Path:
    """A tiny model with its tokenizer, and some text."""
    build_model(max_position_embeddings=8).save_pretrained(path / "model")
    build_tokenizer().save_pretrained(path / "model")
    (path / "text.txt").write_text("abcdefgab\n\ncagdeb\n\nabcabcabcdefggg")
    (path / "ptb.txt").write_text("abc\ndefg\n")
    return path


def run_command(folder: Path, output_folder: Path, command: str, *words: str) -> dict:
    """Runs a command on the model of `write_folder` and returns its record."""
    output = output_folder / f"{command}.json"
    output.unlink(missing_ok=True)
    common = ["--model", str(folder / "model"), "--output", str(output), "--quiet"]
    evaluate.main([command, *common, *map(str, words)])
    assert not output.with_name(output.name + ".parts").exists()
    return json.loads(output.read_text())


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
