"""Blocks: sampling with a cache of keys and values against computing them again, and the training step of blocks.

python benchmarks/blocks.py [--seconds 60]     (section `blocks` of the record; sampling needs diffusers)
"""

import argparse
import importlib.util

import flops
import torch
from measuring import autocast, build, device_type, interleaved, run_section
from training_step import batch_size

SETTING = {"size": "tiny", "vocab_size": 4096, "length": 1024, "block_size": 16, "steps": 4}
CUDA = {"size": "small", "vocab_size": 50258}
SMOKE = {"size": "toy", "vocab_size": 64, "length": 32, "block_size": 8, "steps": 2}
RATES = {"bd3lm": "uniform", "block_lomdm": "learned"}


def cache_runs(setting: dict, rate_type: str) -> dict:
    """Closures: a row in blocks with the cache and without, the same text."""
    from hf_lomdm import LoMDMPipeline, LoMDMScheduler  # they need diffusers, the training step does not

    sizes = (setting["size"], setting["vocab_size"], setting["length"])
    model = build(*sizes, rate_type=rate_type, block_size=setting["block_size"]).eval()
    pipe = LoMDMPipeline(model, LoMDMScheduler(mask_token_id=model.config.mask_token_id))
    pipe.set_progress_bar_config(disable=True)

    def run(use_cache: bool):
        settings = {"max_length": setting["length"], "output_type": "seq", "use_cache": use_cache}
        return pipe(None, setting["steps"], generator=torch.Generator().manual_seed(0), **settings)

    return {"cached": lambda: run(True), "recomputed": lambda: run(False)}


def training_runs(setting: dict, rate_type: str, attention: str) -> tuple[dict, float]:
    """Closures: a training step without blocks and with them, and the ratio of their operations on paper."""
    sizes, length = (setting["size"], setting["vocab_size"], setting["length"]), setting["length"]
    batch = batch_size(setting["size"], length)
    plain = build(*sizes, rate_type=rate_type)
    blocks = build(*sizes, rate_type=rate_type, block_size=setting["block_size"], attn_implementation=attention)
    clean = torch.randint(setting["vocab_size"] - 1, (batch, length), device=plain.device)
    quantiles = (torch.arange(batch, device=plain.device) + 0.5) / batch

    def step(model):
        model.zero_grad()
        with autocast():
            loss = model(input_ids=clean, labels=clean, quantiles=quantiles).loss
        loss.backward()

    system = "lomdm" if rate_type == "learned" else "mdlm"
    ratio = flops.block_training(blocks.config, length) / flops.training(system, plain.config, length)
    return {"plain": lambda: step(plain), "blocks": lambda: step(blocks)}, ratio


def measure(options: argparse.Namespace) -> dict:
    """The section."""
    setting = SMOKE if options.smoke else SETTING | (CUDA if device_type() == "cuda" else {})
    implementations = ("sdpa", "flex_attention") if device_type() == "cuda" else ("sdpa",)  # no flex backward on a CPU
    share = options.seconds / (len(RATES) * (1 + len(implementations)))
    section = {"setting": setting, "cache": {}, "training": []}
    for name, rate_type in RATES.items():
        if importlib.util.find_spec("diffusers"):
            taken = interleaved(cache_runs(setting, rate_type), share, rounds=3)
            section["cache"][name] = taken | {"speedup": taken["recomputed"]["seconds"] / taken["cached"]["seconds"]}
        for attention in implementations:
            runs, analytic = training_runs(setting, rate_type, attention)
            taken = interleaved(runs, share)
            ratio = taken["blocks"]["seconds"] / taken["plain"]["seconds"]
            row = {"system": name, "attention": attention, "ratio": ratio, "analytic": analytic}
            section["training"].append(row | taken)
        print(f"  blocks {name} done", flush=True)
    return section


if __name__ == "__main__":
    run_section("blocks", measure, __doc__.splitlines()[0], seconds=60)
