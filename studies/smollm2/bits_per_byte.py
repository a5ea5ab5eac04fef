"""Bits per byte of a text under converted models, and the paired differences to the first one.

    python studies/smollm2/bits_per_byte.py --text enwiki.test.txt --models smollm2 outputs/bd3lm4

A folder of a causal model is measured as it is: in blocks of one position. Folders of `train.py`
with LoRA are put together with their base, in float32.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion
from hf_lomdm.data.tokenizers import load_tokenizer, special_token_ids
from hf_lomdm.evaluation import nelbo
from hf_lomdm.evaluation.records import write_record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--models", nargs="+", required=True, help="folders")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128, help="tokens per row")
    parser.add_argument("--num_samples", type=int, default=4, help="draws per row")
    parser.add_argument("--output", type=Path, required=True, help="JSON record")
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.models[0])
    ids = tokenizer(options.text.read_text(), add_special_tokens=False)["input_ids"]
    width = options.length - 2
    texts = torch.tensor(ids[: options.rows * width]).view(options.rows, width)
    sizes = [len(tokenizer.decode(row).encode()) for row in texts.tolist()]
    # as in training; BOS and EOS are given, and are no part of the text
    ends = [texts.new_full((options.rows, 1), end) for end in special_ids(tokenizer)]
    rows = torch.cat((ends[0], texts, ends[1]), dim=1)
    values = {}
    for name in options.models:
        values[name] = bits(load(name, options.length), rows, options.num_samples) / sum(sizes)
        print(name, say(values[name]), flush=True)
    first = values[options.models[0]]
    record = {"bytes": sum(sizes), "rows": options.rows, "num_samples": options.num_samples}
    record["bits_per_byte"] = {name: summary(value) for name, value in values.items()}
    record["minus_the_one_before"] = {
        name: summary(values[name] - values[before])
        for before, name in zip(options.models, options.models[1:], strict=False)
    }
    print(json.dumps(record["minus_the_one_before"], indent=1), len(first))
    write_record(options.output, record)


def load(name: str, length: int) -> LoMDMForMaskedDiffusion:
    """A converted model, or a causal one in blocks of one position, in float32."""
    if LoMDMConfig.get_config_dict(name)[0].get("model_type") == "lomdm":
        return LoMDMForMaskedDiffusion.from_pretrained(name, dtype=torch.float32)
    how = {"block_size": 1, "rate_type": "uniform", "dtype": torch.float32}
    settings = {"max_position_embeddings": length}
    return LoMDMForMaskedDiffusion.from_causal_lm(name, settings=settings, **how)


@torch.no_grad()
def bits(model: LoMDMForMaskedDiffusion, rows: Tensor, num_samples: int) -> Tensor:
    """Bits of each row by the order bound, the same draws for every model."""
    generators = [torch.Generator().manual_seed(row) for row in range(len(rows))]
    estimates = [
        nelbo(model, row[None], labels=inner(row), num_samples=num_samples, generator=[generator])
        for row, generator in zip(rows, generators, strict=True)
    ]
    return torch.cat([estimate.nelbo for estimate in estimates]) / math.log(2)


def inner(row: Tensor) -> Tensor:
    """Labels `[1, L]` of a row whose ends are given."""
    labels = row[None].clone()
    labels[:, [0, -1]] = -100
    return labels


def special_ids(tokenizer) -> tuple[int, int]:
    """BOS and EOS as rows of a training run have them."""
    ids = special_token_ids(tokenizer)
    return ids["bos_token_id"], ids["eos_token_id"]


def summary(values: Tensor) -> dict[str, float]:
    """Sum over rows, with its error from the spread of the rows."""
    error = values.std().item() * len(values) ** 0.5
    return {"value": values.sum().item(), "standard_error": error}


def say(values: Tensor) -> str:
    found = summary(values)
    return f"{found['value']:.4f} +- {found['standard_error']:.4f} bits per byte"


if __name__ == "__main__":
    main()
