"""The training step of MDLM and LoMDM against plain versions of what peers do, cell by cell.

    python benchmarks/training_step.py [--seconds 240] [--compile] (section `training` of the
    record)

A step is forward and backward of one batch; the optimizer does the same on all sides and is left
out. Texts have fixed quantiles whose mean masks half of the positions. Each cell prints the ratio
of floating point operations on paper (`flops.py`) beside the measured one.
"""

import argparse
import time
from collections.abc import Callable

import flops
import reference
import torch
from measuring import autocast, build, device_type, interleaved, matmul_ceiling, run_section

VOCABULARIES = (4096, 50258)
LENGTHS = (128, 256, 1024)
# of a batch, or one row if that is longer
TOKENS = {"cuda": 32768, "cpu": {"tiny": 2048, "small": 256, "toy": 32}}
RATIOS = {  # name: numerator, denominator, texts or views
    "mdlm / reference": ("mdlm", "mdlm_reference", 1),
    "lomdm / reference": ("lomdm", "mdlm_reference", 1),
    "lomdm / reference, per view": ("lomdm", "mdlm_reference", 2),
    "lomdm / naive": ("lomdm", "naive_lomdm", 1),
}


def batch_size(size: str, length: int) -> int:
    """Texts in a batch of a cell on the device at hand."""
    tokens = TOKENS["cuda"] if device_type() == "cuda" else TOKENS["cpu"][size]
    return max(1, tokens // length)


def steps(
    systems,
    size: str,
    vocab_size: int,
    length: int,
    batch: int,
    compile: bool = False,
    checkpointing: bool = False,
    attention: str | None = None,
) -> dict[str, Callable]:
    """Forward and backward of one batch for each system, with the weights of one backbone.

    `attention` is the model's `attn_implementation`.
    """
    learned = build(size, vocab_size, length, attn_implementation=attention)
    uniform = build(size, vocab_size, length, rate_type="uniform", attn_implementation=attention)
    uniform.model, uniform.lm_head = learned.model, learned.lm_head
    if checkpointing:
        learned.gradient_checkpointing_enable()
    if compile:
        for module in (learned.model, learned.phi, learned.psi):
            module.compile()
    device = learned.device
    clean = torch.randint(vocab_size - 1, (batch, length), device=device)
    quantiles = (torch.arange(batch, device=device) + 0.5) / batch
    losses = {
        "mdlm_reference": lambda: reference.mdlm_loss(
            uniform, clean, reference.draw_masks(quantiles, length)
        ),
        "mdlm": lambda: uniform(input_ids=clean, labels=clean, quantiles=quantiles).loss,
        "naive_lomdm": lambda: reference.naive_lomdm_loss(
            learned, clean, quantiles, tuple(-torch.rand(2, batch, length, device=device).log())
        ),
        "lomdm": lambda: learned(input_ids=clean, labels=clean, quantiles=quantiles).loss,
    }
    return {name: _step(losses[name], (learned, uniform)) for name in systems}


def _step(loss: Callable, models) -> Callable:
    _clear_gradients(models)

    def step() -> None:
        _clear_gradients(models)
        with autocast():
            value = loss()
        value.backward()

    return step


def _clear_gradients(models) -> None:
    """Zeros, not `None`: the memory of gradients is then no matter of the step."""
    for weight in {weight for model in models for weight in model.parameters()}:
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad.zero_()


def measure_cell(size: str, vocab_size: int, length: int, seconds: float, compile: bool) -> dict:
    """Seconds, FLOP/s and the ratios of one cell."""
    batch = batch_size(size, length)
    taken = interleaved(steps(flops.SYSTEMS, size, vocab_size, length, batch, compile), seconds)
    config = build(size, vocab_size, length).config
    paper = {name: flops.of_system(name, config, length) for name in flops.SYSTEMS}
    cell = {"size": size, "vocab_size": vocab_size, "length": length, "batch": batch, "ratios": {}}
    for name, timing in taken.items():
        speed = {"tokens_per_second": batch * length / timing["seconds"]}
        speed["flops_per_second"] = paper[name] * speed["tokens_per_second"]
        cell[name] = timing | speed
    for name, (ours, theirs, views) in RATIOS.items():
        measured = taken[ours]["seconds"] / taken[theirs]["seconds"] / views
        analytic = paper[ours] / paper[theirs] / views
        cell["ratios"][name] = {
            "measured": measured,
            "analytic": analytic,
            "excess": measured / analytic,
        }
    return cell


def cells(smoke: bool) -> list[tuple[str, int, int]]:
    """Sizes, vocabularies and lengths, the cheapest first."""
    if smoke:
        return [("toy", 64, 16)]
    return [
        (size, vocab, length)
        for size in ("tiny", "small")
        for length in LENGTHS
        for vocab in VOCABULARIES
    ]


def measure(options: argparse.Namespace) -> dict:
    """The section: cells until the time is spent; those left out with their expected seconds."""
    start = time.perf_counter()
    ceiling = matmul_ceiling(
        64 if options.smoke else 4096 if device_type() == "cuda" else 1024, options.seconds / 100
    )
    section = {
        "compile": options.compile,
        "matmul_flops_per_second": ceiling,
        "cells": [],
        "left_out": [],
    }
    todo, speed = cells(options.smoke), None
    for index, cell in enumerate(todo):
        left = options.seconds - (time.perf_counter() - start)
        size, vocab_size, length = cell
        config = build(size, vocab_size, length).config
        work = (
            sum(flops.of_system(name, config, length) for name in flops.SYSTEMS)
            * batch_size(size, length)
            * length
        )
        if speed is not None and work / speed > left:
            section["left_out"].append([*cell, work / speed])
            continue
        result = measure_cell(*cell, max(left, 0) / (len(todo) - index), options.compile)
        section["cells"].append(result)
        speed = min(result[name]["flops_per_second"] for name in flops.SYSTEMS)
        print(f"  training {cell}: {result['lomdm']['seconds']:.3g} s per LoMDM step", flush=True)
    return section


if __name__ == "__main__":
    run_section("training", measure, __doc__.splitlines()[0], seconds=240, compiles=True)
