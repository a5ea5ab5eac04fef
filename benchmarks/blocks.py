"""Blocks: sampling with and without a cache of keys and values, and the training step.

    python benchmarks/blocks.py [--seconds 60]   (section `blocks` of the record)

On a CPU the cache is timed at the tiny size, the training step at both as far as the time goes.
"""

import argparse
import importlib.util
import time

import flops
import torch
from measuring import autocast, build, device_type, interleaved, run_section
from training_step import batch_size

SETTING = {"length": 1024, "block_size": 16, "steps": 4}
TINY, SMALL = {"size": "tiny", "vocab_size": 4096}, {"size": "small", "vocab_size": 50258}
SMOKE = {"length": 32, "block_size": 8, "steps": 2}
TOY = {"size": "toy", "vocab_size": 64}
RATES = {"bd3lm": "uniform", "block_lomdm": "learned"}


def cache_runs(setting: dict, rate_type: str) -> dict:
    """Closures: a row in blocks with the cache and without, the same text."""
    # they need diffusers, the training step does not
    from hf_lomdm import LoMDMPipeline, LoMDMScheduler

    sizes = (setting["size"], setting["vocab_size"], setting["length"])
    model = build(*sizes, rate_type=rate_type, block_size=setting["block_size"]).eval()
    pipe = LoMDMPipeline(model, LoMDMScheduler(mask_token_id=model.config.mask_token_id))
    pipe.set_progress_bar_config(disable=True)

    def run(use_cache: bool):
        settings = {"max_length": setting["length"], "output_type": "seq", "use_cache": use_cache}
        return pipe(None, setting["steps"], generator=torch.Generator().manual_seed(0), **settings)

    return {"cached": lambda: run(True), "recomputed": lambda: run(False)}


def training_runs(setting: dict, rate_type: str, attention: str) -> tuple[dict, dict]:
    """Closures: a training step without blocks and with them, and their operations."""
    sizes, length = (setting["size"], setting["vocab_size"], setting["length"]), setting["length"]
    batch = batch_size(setting["size"], length)
    plain = build(*sizes, rate_type=rate_type)
    blocks = build(
        *sizes, rate_type=rate_type, block_size=setting["block_size"], attn_implementation=attention
    )
    clean = torch.randint(setting["vocab_size"] - 1, (batch, length), device=plain.device)
    quantiles = (torch.arange(batch, device=plain.device) + 0.5) / batch

    def step(model):
        model.zero_grad()
        with autocast():
            loss = model(input_ids=clean, labels=clean, quantiles=quantiles).loss
        loss.backward()

    tokens = batch * length
    paper = {"plain": tokens * flops.training(plain.config, length),
             "blocks": tokens * flops.training(blocks.config, length)}  # fmt: skip
    return {"plain": lambda: step(plain), "blocks": lambda: step(blocks)}, paper


def measure(options: argparse.Namespace) -> dict:
    """The section; training steps that the time does not suffice for are named in `left_out`."""
    setting = SMOKE if options.smoke else SETTING
    sizes = [TOY] if options.smoke else [SMALL] if device_type() == "cuda" else [TINY, SMALL]
    section = {
        "setting": setting,
        "cache_size": sizes[0],
        "cache": {},
        "training": [],
        "left_out": [],
    }
    end = time.perf_counter() + options.seconds
    if importlib.util.find_spec("diffusers"):
        for name, rate_type in RATES.items():
            section["cache"][name] = measure_cache(
                setting | sizes[0], rate_type, options.seconds / 4
            )
    todo = [
        (size, name, kind)
        for size in sizes
        for name in RATES
        for kind in attention_implementations()
    ]
    speed = None
    for index, (size, name, kind) in enumerate(todo):
        left = max(0.0, end - time.perf_counter())
        runs, paper = training_runs(setting | size, RATES[name], kind)
        # one round to warm up, one that counts
        if speed and 2 * sum(paper.values()) / speed > left:
            section["left_out"].append([size["size"], name, kind])
            continue
        taken = interleaved(runs, left / (len(todo) - index))
        ratios = [
            costs["blocks"] / costs["plain"]
            for costs in ({n: t["seconds"] for n, t in taken.items()}, paper)
        ]
        row = size | {"system": name, "attention": kind, "ratio": ratios[0], "analytic": ratios[1]}
        section["training"].append(row | taken)
        speed = min(paper[run] / timing["seconds"] for run, timing in taken.items())
        print(f"  blocks {size['size']} {name} {kind}: {ratios[0]:.2f} of a plain step", flush=True)
    return section


def measure_cache(setting: dict, rate_type: str, seconds: float) -> dict:
    """Seconds with the cache and without, and their quotient."""
    taken = interleaved(cache_runs(setting, rate_type), seconds, rounds=3)
    return taken | {"speedup": taken["recomputed"]["seconds"] / taken["cached"]["seconds"]}


def attention_implementations() -> tuple[str, ...]:
    """What a training step can use here; FlexAttention has no backward pass on a CPU."""
    return ("sdpa", "flex_attention") if device_type() == "cuda" else ("sdpa",)


if __name__ == "__main__":
    run_section("blocks", measure, __doc__.splitlines()[0], seconds=60)
