"""Peak memory of a training step of each system, where logits are largest: 50,258 entries, 1,024 tokens.

    python benchmarks/step_memory.py [--seconds 300]     (section `memory` of the record)

Measured twice: as trained, one text on a CPU, where the activations of the layers, which all systems keep, are most of
it; and with gradient checkpointing on all sides, four texts, as large models are trained. Each system has a process of
its own; what that holds after a step of a few tokens is taken off: weights, gradients, libraries.
"""

import argparse
import time

import torch
from measuring import in_own_process, peak_memory_mb, run_section
from training_step import batch_size, steps

SYSTEMS = ("mdlm_reference", "mdlm", "lomdm", "naive_lomdm")  # the last one is first left out
CHECKPOINTED_TEXTS = 4


def step_memory(system: str, size: str, vocab_size: int, length: int, batch: int, checkpointing: bool) -> float:
    """MB that a step adds to the peak of this process, which must be a fresh one."""
    settings = {"checkpointing": checkpointing}
    steps([system], size, vocab_size, 8, 1, **settings)[system]()  # libraries, kernels
    (step,) = steps([system], size, vocab_size, length, batch, **settings).values()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    before = peak_memory_mb()
    step()
    return peak_memory_mb() - before


def measure_setting(size: str, vocab_size: int, length: int, batch: int, checkpointing: bool, seconds: float) -> dict:
    """`step_memory` of each system; those that the time does not suffice for are named in `left_out`."""
    start, memory, left_out = time.perf_counter(), {}, []
    for done, system in enumerate(SYSTEMS):
        spent = time.perf_counter() - start
        if done and spent * (done + 1) / done > seconds:
            left_out.append(system)
        else:
            memory[system] = in_own_process(step_memory, system, size, vocab_size, length, batch, checkpointing)
    setting = {"size": size, "vocab_size": vocab_size, "length": length, "batch": batch}
    return setting | {"gradient_checkpointing": checkpointing, "step_memory_mb": memory, "left_out": left_out}


def measure(options: argparse.Namespace) -> dict:
    """The section: a record for each of the two settings."""
    size, vocab_size, length = ("toy", 64, 16) if options.smoke else ("small", 50258, 1024)
    texts, end = batch_size(size, length), time.perf_counter() + options.seconds
    plain = measure_setting(size, vocab_size, length, texts, False, options.seconds / 4)
    left = end - time.perf_counter()
    texts = max(texts, CHECKPOINTED_TEXTS)
    return {"settings": [plain, measure_setting(size, vocab_size, length, texts, True, left)]}


if __name__ == "__main__":
    run_section("memory", measure, __doc__.splitlines()[0], seconds=300)
