"""What `import hf_lomdm` adds to torch, and to torch with the models of transformers.

python benchmarks/import_time.py     (section `import` of the record)
"""

import argparse
import subprocess
import sys
import time

from measuring import run_section

LINES = {
    "torch": "import torch",
    "torch, transformers": "import torch; from transformers import AutoModel, PreTrainedModel",
    "torch, hf_lomdm": "import torch; import hf_lomdm",
}


def seconds(line: str) -> float:
    """Seconds of a fresh interpreter that runs `line` and ends."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", line], check=True)
    return time.perf_counter() - start


def measure(options: argparse.Namespace) -> dict:
    """The section: the best of a few starts of each, with a warm file cache."""
    taken, start, rounds = {name: [] for name in LINES}, time.perf_counter(), 0
    while (
        not rounds
        or (time.perf_counter() - start) * (rounds + 1) / rounds < options.seconds
        and rounds < 5
    ):
        for name, line in LINES.items():
            taken[name].append(seconds(line))
        rounds += 1
    best = {name: min(values) for name, values in taken.items()}
    torch, transformers, package = best.values()
    added = {
        "hf_lomdm over torch": package - torch,
        "over torch, transformers": package - transformers,
    }
    return {"seconds": best, "rounds": rounds, "added": added}


if __name__ == "__main__":
    run_section("import", measure, __doc__.splitlines()[0], seconds=60)
