"""The training step of LoMDM under `sdpa` and `eager` attention, at several lengths of rows.

    python benchmarks/attention.py [--seconds 60]     (section `attention` of the record)

In bfloat16 on a CPU the backward pass of SDPA's kernel is slow for short rows, while eager
attention makes all pairs of positions. Size `tiny` (heads of 64); what the two take depends on the
device, the dtype and the size of the heads too.
"""

import argparse

from measuring import interleaved, run_section
from training_step import batch_size, steps

IMPLEMENTATIONS = ("sdpa", "eager")
LENGTHS = (64, 128, 256, 512, 1024)
VOCABULARY = 4096


def measure(options: argparse.Namespace) -> dict:
    """The section: seconds of a step for each length and implementation, and their ratio."""
    size, lengths = ("toy", (8, 16)) if options.smoke else ("tiny", LENGTHS)
    rows = []
    for length in lengths:
        batch = batch_size(size, length)
        cell = (["lomdm"], size, VOCABULARY, length, batch)
        runs = {
            name: steps(*cell, options.compile, attention=name)["lomdm"] for name in IMPLEMENTATIONS
        }
        taken = interleaved(runs, options.seconds / len(lengths))
        ratio = taken["eager"]["seconds"] / taken["sdpa"]["seconds"]
        rows.append({"size": size, "length": length, "batch": batch, **taken, "ratio": ratio})
        print(f"  attention, length {length}: eager takes {ratio:.2f} of sdpa", flush=True)
    return {"rows": rows}


if __name__ == "__main__":
    run_section("attention", measure, __doc__.splitlines()[0], seconds=60, compiles=True)
