"""Peak memory of a training step of each system, at 50,258 entries and 1,024 tokens.

    python benchmarks/step_memory.py [--seconds 300]     (section `memory` of the record)

Measured as trained, one text on a CPU, where copies of the weights in bfloat16 and the activations
of the layers, which all systems keep, are most of it; with gradient checkpointing on all sides,
four texts, as large models are trained; and where the time suffices (`--seconds 3000`, 18 GB) with
16 texts, where the copies of the weights hardly count. Counted is what a step allocates beyond what
is there before it: weights and gradients.
"""

import argparse
import time
from collections.abc import Callable

import torch
from measuring import run_section
from torch.profiler import ProfilerActivity, profile
from training_step import batch_size, steps

SYSTEMS = ("mdlm_reference", "mdlm", "lomdm", "naive_lomdm")  # the last one is first left out
CHECKPOINTED_TEXTS = 4
MANY_TEXTS = 16


def peak_mb(step: Callable) -> float:
    """MB that `step` holds at most beyond what is allocated before it."""
    if torch.cuda.is_available():
        step()  # libraries take memory of their own at first
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # not the peak of the process: what its allocator keeps for later moves that by a third from run
    # to run
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    changes = [
        event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    held = torch.tensor(
        [event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())]
    ).cumsum(0)
    return float(held.max()) / 2**20


def measure_setting(
    size: str,
    vocab_size: int,
    length: int,
    batch: int,
    checkpointing: bool,
    seconds: float,
    systems=SYSTEMS,
) -> dict:
    """`peak_mb` of each system; those without time are named in `left_out`."""
    start, memory, left_out = time.perf_counter(), {}, []
    for done, system in enumerate(systems):
        spent = time.perf_counter() - start
        if done and spent * (done + 1) / done > seconds:
            left_out.append(system)
        else:
            (step,) = steps(
                [system], size, vocab_size, length, batch, checkpointing=checkpointing
            ).values()
            memory[system] = peak_mb(step)
    setting = {"size": size, "vocab_size": vocab_size, "length": length, "batch": batch}
    return setting | {
        "gradient_checkpointing": checkpointing,
        "step_memory_mb": memory,
        "left_out": left_out,
    }


def measure(options: argparse.Namespace) -> dict:
    """The section: a record for each setting."""
    shape = ("toy", 64, 16) if options.smoke else ("small", 50258, 1024)
    texts, start = batch_size(shape[0], shape[2]), time.perf_counter()
    settings = [measure_setting(*shape, texts, False, options.seconds / 4)]
    spent = time.perf_counter() - start
    settings.append(
        measure_setting(*shape, max(texts, CHECKPOINTED_TEXTS), True, options.seconds - spent)
    )
    left = options.seconds - (time.perf_counter() - start)
    section = {"settings": settings, "left_out": []}
    if texts < MANY_TEXTS and (options.smoke or spent * MANY_TEXTS / texts < left):
        settings.append(measure_setting(*shape, MANY_TEXTS, False, left, SYSTEMS[:-1]))
        section["left_out"].append(f"naive_lomdm with {MANY_TEXTS} texts (25 GB)")
    elif texts < MANY_TEXTS:
        section["left_out"].append(f"{MANY_TEXTS} texts")
    return section


if __name__ == "__main__":
    run_section("memory", measure, __doc__.splitlines()[0], seconds=300)
