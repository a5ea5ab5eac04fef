"""Tiny public MDLM and BD3-LM checkpoints: the golden weights, in each layout that is published."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hub.test_export import load_script

GOLDEN = Path(__file__).parent.parent / "golden"
# Parameters in the order in which the public module makes them, read in its code: a moving average
# has no names.
BLOCK = [
    "norm1.weight",
    "attn_qkv.weight",
    "attn_out.weight",
    "norm2.weight",
    "mlp.0.weight",
    "mlp.0.bias",
]
BLOCK += ["mlp.2.weight", "mlp.2.bias", "adaLN_modulation.weight", "adaLN_modulation.bias"]
FIRST = [
    "vocab_embed.embedding",
    *(f"sigma_map.mlp.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")),
]
LAST = [
    "norm_final.weight",
    "linear.weight",
    "linear.bias",
    "adaLN_modulation.weight",
    "adaLN_modulation.bias",
]
ORDER = [*FIRST, *(f"blocks.{index}.{name}" for index in range(3) for name in BLOCK)]
ORDER += [f"output_layer.{name}" for name in LAST]


def load_golden(name: str = "mdlm_tiny") -> tuple[dict, dict, dict]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
        original = json.loads(file.metadata()["config"])
    weights = {key: value for key, value in tensors.items() if not key.startswith("golden.")}
    golden = {
        key.removeprefix("golden."): value
        for key, value in tensors.items()
        if key.startswith("golden.")
    }
    return original, weights, golden


def plain_tokenizer(size: int = 40) -> PreTrainedTokenizerFast:
    """As GPT-2's: one end token (id 0) that is BOS and EOS too, no mask, no padding; characters
    besides."""
    vocabulary = {"<end>": 0, **{chr(96 + index): index for index in range(1, size)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>")


class Settings:
    """Stands for the classes of other packages among Lightning's hyperparameters."""

    def __init__(self):
        self.content = {"model": {"length": 24}}


def write_hub_folder(
    folder: Path, original: dict, weights: dict, file: str = "model.safetensors"
) -> Path:
    """The layout of kuleshov-group/mdlm-owt, whose config does not name the mask's id."""
    folder.mkdir()
    settings = {key: value for key, value in original.items() if key != "mask_token_id"}
    (folder / "config.json").write_text(
        json.dumps({"model_type": "mdlm", "return_dict": False, **settings})
    )
    if file.endswith(".safetensors"):
        save_file(weights, folder / file)
    else:
        torch.save(weights, folder / file)
    return folder


def write_lightning(
    path: Path, weights: dict, average: list | None, prefix: str = "backbone.", **content
) -> Path:
    """What the public code's trainer saves: names in the order of the module, the average without
    names."""
    state = {
        f"{prefix}{name}": weights[f"backbone.{name}"] for name in ["rotary_emb.inv_freq", *ORDER]
    }
    buffers = {
        name: weights[name] for name in ("sampling_eps_min", "sampling_eps_max") if name in weights
    }
    ema = (
        {}
        if average is None
        else {"ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": average}}
    )
    file = {
        "epoch": 0,
        "state_dict": {**state, **buffers},
        "hyper_parameters": {"config": Settings(), "root": Path("data")},
        **ema,
        **content,
    }
    torch.save(file, path)
    return path


def shadow(weights: dict) -> list[torch.Tensor]:
    return [weights[f"backbone.{name}"] for name in ORDER]


def run_script(checkpoint: Path, output: Path, *words) -> Path:
    load_script("convert").main(
        ["--checkpoint", str(checkpoint), "--output", str(output), *map(str, words)]
    )
    return output
