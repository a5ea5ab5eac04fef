"""Sampling: tokens per second, and the share of time outside the network.

`threshold` and `entropy_bound` count by the token laws of all masked positions, so that they
project all of them to the vocabulary: a second share leaves the LM head to the network.

    python benchmarks/sampling.py [--seconds 150]   (section `sampling` of the record)

MDLM-small, 50,258 tokens, rows of 1024, 256 steps. On a GPU whole runs are timed. On a CPU single
steps are: of one row at the beginning, in the middle and at the end, of more rows in the middle,
from states in which that share of a random text is masked; the record says so (`timed`), and its
tokens per second are those of 256 steps of their mean cost.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager

import reference
import torch
from measuring import autocast, build, device_type, run_section, synchronize, timed

SETTING = {"size": "small", "vocab_size": 50258, "length": 1024, "steps": 256}
SMOKE = {"size": "toy", "vocab_size": 64, "length": 32, "steps": 8}
BATCHES = (1, 8, 32)
PLACES = {"first": 0.0, "middle": 0.5, "last": 1.0}  # share of the steps that lie behind
# rows of the reference: one row's outcomes in float64 take 1.6 GB
DRAWN_AT_ONCE = {"cuda": 32, "cpu": 1}
TIMED_STEPS = 1  # at each place, after one that warms up
SAMPLERS = ("reference", "sequential", "ancestral", "threshold", "entropy_bound")
SYSTEMS = {"mdlm": "uniform", "lomdm": "learned"}


class Enough(Exception):
    """Ends a run whose steps have been timed."""


class StepTimes:
    """Seconds of the steps of a run but the first; after `count` of them `full` is true."""

    def __init__(self, count: int):
        self.count, self.moments = count, []

    def __call__(self) -> bool:
        """Ends a step; true once there are enough."""
        synchronize()
        self.moments.append(time.perf_counter())
        return len(self.moments) > self.count

    @property
    def seconds(self) -> float:
        """Mean of the timed steps."""
        return (self.moments[-1] - self.moments[0]) / (len(self.moments) - 1)


def state(config, setting: dict, batch: int, first_step: int) -> torch.Tensor:
    """Rows `[B, L]` after `first_step` steps: that share is random text, the rest masks."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(config.vocab_size - 1, (batch, setting["length"]), generator=generator)
    rank = torch.rand(text.shape, generator=generator).argsort(-1).argsort(-1)
    return text.masked_fill(
        rank >= setting["length"] * first_step // setting["steps"], config.mask_token_id
    )


def runner(
    model, sampler: str, setting: dict, batch: int, first_step: int = 0, after_step=None
) -> Callable:
    """A closure that samples from `first_step` on, until `after_step()` is true."""
    start, steps = state(model.config, setting, batch, first_step), setting["steps"]
    if sampler == "reference":
        sample = start.to(model.device)
        rows = DRAWN_AT_ONCE[device_type()]
        return lambda: reference.ancestral_sample(
            model, sample, steps, first_step, after_step, rows
        )
    from hf_lomdm import LoMDMPipeline, LoMDMScheduler  # they need diffusers, the rest does not

    pipe = LoMDMPipeline(
        model, LoMDMScheduler(mask_token_id=model.config.mask_token_id, sampler=sampler)
    )
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": steps - first_step, "output_type": "seq"}
    if after_step is not None:
        # not "sample", which a callback might change: it would cost a count in every step
        settings |= {
            "callback_on_step_end": _ending(after_step),
            "callback_on_step_end_tensor_inputs": ["order"],
        }
    return lambda: _until_enough(pipe, start.tolist(), settings)


def _ending(after_step: Callable) -> Callable:
    def callback(pipe, step, timestep, tensors) -> dict:
        if after_step():
            raise Enough
        return {}

    return callback


def _until_enough(pipe, rows: list, settings: dict):
    try:
        return pipe(rows, **settings)
    except Enough:
        return None


@contextmanager
def call_times(*modules):
    """Within this context the list collects the seconds of each call of the modules."""
    calls, begun, handles = [], {}, []

    def begin(module, *_) -> None:
        synchronize()
        begun[module] = time.perf_counter()

    def end(module, *_) -> None:
        synchronize()
        calls.append(time.perf_counter() - begun[module])

    for module in modules:
        if module is not None:
            handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def timed_steps(
    model, sampler: str, setting: dict, batch: int, place: str, count: int
) -> tuple[float, float, float]:
    """Mean seconds of a step at one of `PLACES`, and two shares of them.

    They are those outside backbone and psi, and outside these and the LM head.
    """
    first = min(int(setting["steps"] * PLACES[place]), setting["steps"] - count - 1)
    times = StepTimes(count)
    trunk, head = call_times(model.model, model.psi), call_times(model.lm_head)
    with autocast(), trunk as in_trunk, head as in_head:
        runner(model, sampler, setting, batch, first, times)()
    # per step, but for the first, which warms up
    trunk, head = (sum(calls[len(calls) // (count + 1) :]) / count for calls in (in_trunk, in_head))
    whole = times.seconds
    return whole, 1 - trunk / whole, 1 - (trunk + head) / whole


def measure_sampler(model, sampler: str, setting: dict, batch: int) -> dict:
    """Seconds of a step, tokens per second and share outside the network of one sampler."""
    if device_type() == "cuda":
        run = runner(model, sampler, setting, batch)
        with autocast():
            run()
            seconds = {"whole": timed(run) / setting["steps"]}
        timings = {"middle": timed_steps(model, sampler, setting, batch, "middle", TIMED_STEPS + 1)}
    else:
        places = PLACES if batch == 1 else ("middle",)
        timings = {
            place: timed_steps(model, sampler, setting, batch, place, TIMED_STEPS)
            for place in places
        }
        seconds = {place: timing[0] for place, timing in timings.items()}
    speed = batch * setting["length"] / (setting["steps"] * statistics.mean(seconds.values()))
    _, outside, outside_head = zip(*timings.values(), strict=True)
    return {
        "seconds_per_step": seconds,
        "tokens_per_second": speed,
        "share_outside_network": statistics.mean(outside),
        "share_outside_network_and_head": statistics.mean(outside_head),
    }


def measure_cell(setting: dict, system: str, batch: int) -> dict:
    """One system at one batch size: the reference and our samplers."""
    model = build(
        setting["size"], setting["vocab_size"], setting["length"], rate_type=SYSTEMS[system]
    ).eval()
    cell = {"system": system, "batch": batch}
    cell |= {sampler: measure_sampler(model, sampler, setting, batch) for sampler in SAMPLERS}
    for sampler in SAMPLERS[1:]:
        cell[sampler]["speedup"] = (
            cell[sampler]["tokens_per_second"] / cell["reference"]["tokens_per_second"]
        )
    return cell


def measure(options: argparse.Namespace) -> dict:
    """The section; what the time does not suffice for is named in `left_out`."""
    setting = SMOKE if options.smoke else SETTING
    timed_part = f"{TIMED_STEPS} step each at {', '.join(PLACES)} of one row, in the middle of more"
    timed_part = "whole runs" if device_type() == "cuda" else timed_part
    section = {"setting": setting, "timed": timed_part, "cells": [], "left_out": []}
    start, row_seconds = time.perf_counter(), 0.0
    for batch in (2,) if options.smoke else BATCHES:
        for system in SYSTEMS:
            began = time.perf_counter()
            if began - start + row_seconds * batch > options.seconds and row_seconds:
                section["left_out"].append([system, batch])
                continue
            section["cells"].append(measure_cell(setting, system, batch))
            taken = time.perf_counter() - began
            row_seconds = taken / batch
            print(f"  sampling {system}, batch {batch}: {taken:.0f} s", flush=True)
    return section


if __name__ == "__main__":
    run_section("sampling", measure, __doc__.splitlines()[0], seconds=150)
