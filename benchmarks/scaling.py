"""Scaling: cost by length, batch, vocabulary, threads, steps; two processes; the plan.

    python benchmarks/scaling.py [--seconds 80]   (section `scaling`, and a picture)

One thing varies at a time, the rest is as in `BASE`. Where the two-process efficiency is measured
(CPU, gloo), each process has one thread and a batch of its own: 1 means that two do twice the work
of one in the same time.
"""

import argparse
import importlib.util
import os
import socket
import statistics
import tempfile
from pathlib import Path

import sampling
import torch
from measuring import build, device_type, interleaved, run_section, timed
from training_step import steps

from hf_lomdm.visualization.colours import spread
from hf_lomdm.visualization.plots import DPI, add_legend, figure_and_axes

BASE = {"length": 128, "batch": 4, "vocab_size": 4096}
AXES = {
    "length": (64, 128, 256, 512),
    "batch": (1, 2, 4, 8),
    "vocab_size": (1024, 4096, 16384, 50258),
}
SAMPLING_STEPS = (8, 16, 32, 64)
SMOKE_AXES = {"length": (8, 16), "batch": (1, 2)}
DDP_STEPS = 4


def training_axis(size: str, axis: str, values, seconds: float) -> list[dict]:
    """Median seconds of a LoMDM training step at each of `values`."""
    rows = []
    for value in values:
        setting = BASE | {axis: value}
        runs = steps(["lomdm"], size, setting["vocab_size"], setting["length"], setting["batch"])
        rows.append({axis: value, **interleaved(runs, seconds / len(values))["lomdm"]})
    return rows


def threads_axis(size: str, seconds: float) -> list[dict]:
    """The same for 1, 2, 4, ... threads, up to those that torch uses; a CPU only."""
    most, rows = torch.get_num_threads(), []
    counts = [2**power for power in range(most.bit_length())]
    runs = steps(["lomdm"], size, BASE["vocab_size"], BASE["length"], BASE["batch"])
    try:
        for count in counts:
            torch.set_num_threads(count)
            rows.append({"threads": count, **interleaved(runs, seconds / len(counts))["lomdm"]})
    finally:
        torch.set_num_threads(most)
    return rows


def steps_axis(size: str, values) -> list[dict]:
    """Seconds of a batch of texts at each number of sampling steps."""
    model, rows = build(size, BASE["vocab_size"], BASE["length"]).eval(), []
    for value in values:
        setting = {"length": BASE["length"], "steps": value}
        rows.append(
            {
                "steps": value,
                "seconds": timed(sampling.runner(model, "sequential", setting, BASE["batch"])),
            }
        )
    return rows


# ------------------------------------------------------------------------------------ two processes


def ddp_efficiency(size: str, vocab_size: int, length: int) -> dict:
    """Seconds of a step with one and two processes, and the gain from the second."""
    alone = _processes(1, size, vocab_size, length)
    together = _processes(2, size, vocab_size, length)
    return {"one_process": alone, "two_processes": together, "efficiency": alone / together}


def _processes(world_size: int, *cell) -> float:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        arguments = (world_size, port, folder, *cell)
        torch.multiprocessing.spawn(_ddp_worker, arguments, nprocs=world_size)
        return float(Path(folder, "seconds").read_text())


def _ddp_worker(
    rank: int, world_size: int, port: int, folder: str, size: str, vocab_size: int, length: int
) -> None:
    """Trains a few steps under DDP; process 0 writes the median seconds of a step."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    model = torch.nn.parallel.DistributedDataParallel(build(size, vocab_size, length))
    clean = torch.randint(vocab_size - 1, (BASE["batch"], length))

    def step() -> None:
        model.zero_grad()
        model(input_ids=clean, labels=clean).loss.backward()

    seconds = [timed(step) for _ in range(DDP_STEPS + 1)][1:]
    if rank == 0:
        Path(folder, "seconds").write_text(str(statistics.median(seconds)))
    torch.distributed.destroy_process_group()


# -------------------------------------------------------------------------------------- the section


def plot(axes: dict[str, list[dict]], path: Path) -> None:
    """One panel for each axis, seconds against its values, both logarithmic."""
    note = (
        "What to see: a curve steeper than its dotted line grows faster than what is varied, a "
        "flatter one slower. Both axes are logarithmic."
    )
    figure, panels = figure_and_axes(3 * len(axes), 3.4, note, len(axes))
    for panel, (axis, rows) in zip(panels, axes.items(), strict=True):
        values, seconds = [row[axis] for row in rows], [row["seconds"] for row in rows]
        panel.loglog(values, seconds, "o-", label="measured", color=spread(1)[0])
        panel.loglog(
            values,
            [seconds[0] * value / values[0] for value in values],
            ":",
            color="grey",
            label="linear",
        )
        panel.set_xlabel(axis.replace("_", " "))
        panel.set_xticks(values, [str(value) for value in values], minor=False)
        panel.minorticks_off()
    panels[0].set_ylabel("seconds")
    add_legend(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def measure(options: argparse.Namespace) -> dict:
    """The section."""
    size, axes = ("toy", SMOKE_AXES) if options.smoke else ("tiny", AXES)
    share = options.seconds / (len(axes) + 3)
    curves = {axis: training_axis(size, axis, values, share) for axis, values in axes.items()}
    if device_type() == "cpu":
        curves["threads"] = threads_axis(size, share)
    if not options.smoke and _has("diffusers"):
        curves["steps"] = steps_axis(size, SAMPLING_STEPS)
    section = {"base": BASE | {"size": size}, "axes": curves}
    print(f"  scaling: {', '.join(curves)} done", flush=True)
    if _has("matplotlib"):
        plot(curves, options.output.with_name(f"{options.output.stem}_scaling.png"))
    if device_type() == "cpu" and not options.smoke:
        section["ddp"] = ddp_efficiency(size, BASE["vocab_size"], BASE["length"])
    return section


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


if __name__ == "__main__":
    run_section("scaling", measure, __doc__.splitlines()[0], seconds=80)
