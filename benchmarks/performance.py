"""All measurements of a device in one record, section after section.

    python benchmarks/performance.py (outputs/benchmarks/performance_<device>.json) python
    benchmarks/performance.py --sections blocks import python benchmarks/performance.py --smoke
    --output FILE (toy sizes, seconds)

`--seconds` is shared out; a section that needs less leaves the rest to the next. Sections that were
measured before stay in the record. Exit status 1 if a check of correctness fails.
"""

import argparse
import copy
import importlib.util
import sys
import time

import attention
import blocks
import correctness
import import_time
import sampling
import scaling
import step_memory
import training_step
from measuring import device_type, options, record_path, save_section
from report import tables

from hf_lomdm.cli.errors import user_errors


def measure_correctness(_: argparse.Namespace) -> dict:
    """The device against float64 on the CPU."""
    return correctness.check(device_type())


# name: what measures it, its share of the time
SECTIONS = {
    "correctness": (measure_correctness, 0.05),
    "import": (import_time.measure, 0.05),
    "blocks": (blocks.measure, 0.1),
    "attention": (attention.measure, 0.05),
    "scaling": (scaling.measure, 0.1),
    "sampling": (sampling.measure, 0.2),
    "memory": (step_memory.measure, 0.15),
    "training": (training_step.measure, 0.3),
}
COMPILED = ("attention", "training")
NEED_DIFFUSERS = ("correctness", "sampling")


def main(arguments: list[str] | None = None) -> None:
    parser = options(__doc__.splitlines()[0], seconds=480, compiles=True)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    chosen = parser.parse_args(arguments)
    if chosen.compile and not set(COMPILED) & set(chosen.sections):
        parser.error(f"--compile is for the sections {' and '.join(COMPILED)}. Leave it out.")
    with user_errors(ValueError, OSError):
        path = chosen.output = record_path(chosen)
    end, record = time.perf_counter() + chosen.seconds, {}
    todo = [name for name in SECTIONS if name in chosen.sections]
    for index, name in enumerate(todo):
        if name in NEED_DIFFUSERS and not importlib.util.find_spec("diffusers"):
            print(f"== {name}: left out, diffusers is not installed", flush=True)
            continue
        function, share = SECTIONS[name]
        own = copy.copy(chosen)
        own.seconds = (
            max(0.0, end - time.perf_counter())
            * share
            / sum(SECTIONS[other][1] for other in todo[index:])
        )
        print(f"== {name}, {own.seconds:.0f} s", flush=True)
        record[name] = function(own)
        save_section(path, name, record[name], chosen.smoke)
    print(f"\n{tables(record)}\n\nrecord: {path}")
    failed = record.get("correctness", {}).get("failed")
    sys.exit(f"correctness failed: {failed}" if failed else 0)


if __name__ == "__main__":
    main()
