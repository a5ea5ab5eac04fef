"""The tables of `docs/performance.md` from a record of measurements.

python benchmarks/report.py benchmarks/records/performance_cpu.json
"""

import argparse
import json
from pathlib import Path

from hf_lomdm.cli.errors import user_errors

GIGA = 1e9


def tables(record: dict) -> str:
    """Every section of a record that has one as a table in Markdown."""
    return "\n\n".join(TABLES[name](section) for name, section in record.items() if name in TABLES)


def table(title: str, header: list[str], rows: list[list]) -> str:
    """A table in Markdown; numbers with three digits."""
    lines = [f"**{title}**", "", _line(header), _line(["---"] * len(header))]
    return "\n".join(lines + [_line([_cell(value) for value in row]) for row in rows])


def _line(values: list[str]) -> str:
    return "| " + " | ".join(values) + " |"


def _cell(value) -> str:
    return (
        value
        if isinstance(value, str)
        else f"{value:d}"
        if isinstance(value, int)
        else f"{value:.3g}"
    )


def training(section: dict) -> str:
    """Measured ratio, that on paper and their quotient for each cell."""
    names = list(section["cells"][0]["ratios"])
    header = ["size", "vocabulary", "L", "batch", *names, "LoMDM GFLOP/s", "of matmul"]
    rows = []
    for cell in section["cells"]:
        row = [cell["size"], cell["vocab_size"], cell["length"], cell["batch"]]
        row += [
            "{measured:.2f} / {analytic:.2f} = {excess:.2f}".format(**cell["ratios"][name])
            for name in names
        ]
        speed = cell["lomdm"]["flops_per_second"]
        rows.append([*row, speed / GIGA, f"{speed / section['matmul_flops_per_second']:.0%}"])
    text = table("Training step: measured / on paper = quotient", header, rows)
    left_out = [cell[:3] for cell in section["left_out"]]
    return f"{text}\n\nLeft out for want of time: {left_out or 'nothing'}."


def memory(section: dict) -> str:
    """Peak memory of a step, and its ratio to the reference's."""
    header = [
        "size",
        "vocabulary",
        "L",
        "batch",
        "gradient checkpointing",
        "system",
        "MB",
        "of the reference",
    ]
    rows = []
    for setting in section["settings"]:
        place = [setting[name] for name in ("size", "vocab_size", "length", "batch")]
        place.append("yes" if setting["gradient_checkpointing"] else "no")
        reference = setting["step_memory_mb"]["mdlm_reference"]
        for system, value in setting["step_memory_mb"].items():
            rows.append([*place, system, value, f"{value / reference:.2f}" if reference else "-"])
    left_out = [name for setting in section["settings"] for name in setting["left_out"]] + section[
        "left_out"
    ]
    text = table("Peak memory of a step beyond weights and gradients", header, rows)
    return f"{text}\n\nLeft out for want of time or memory: {left_out or 'nothing'}."


def sampling(section: dict) -> str:
    """Tokens per second, speedup and the share outside the network."""
    header, rows = (
        [
            *("system", "batch", "sampler", "tokens/s", "speedup", "outside backbone and psi"),
            "and LM head",
        ],
        [],
    )
    for cell in section["cells"]:
        for sampler in (name for name, value in cell.items() if isinstance(value, dict)):
            measured = cell[sampler]
            beyond = measured.get("share_outside_network_and_head")  # older records lack it
            speed = [measured["tokens_per_second"], measured.get("speedup", 1.0)]
            rows.append(
                [
                    cell["system"],
                    cell["batch"],
                    sampler,
                    *speed,
                    f"{measured['share_outside_network']:.0%}",
                    "" if beyond is None else f"{beyond:.0%}",
                ]
            )
    text = table(f"Sampling ({section['timed']})", header, rows)
    return f"{text}\n\nLeft out for want of time: {section['left_out'] or 'nothing'}."


def blocks(section: dict) -> str:
    """The speedup of the cache, and the cost of a training step with blocks."""
    rows = [[name, times["recomputed"]["seconds"], times["cached"]["seconds"], times["speedup"]]
            for name, times in section["cache"].items()]  # fmt: skip
    first = table("Sampling in blocks", ["system", "recomputed, s", "cached, s", "speedup"], rows)
    header = [
        "size",
        "vocabulary",
        "system",
        "attention",
        "plain step, s",
        "with blocks, s",
        "ratio",
        "on paper",
    ]
    names = ("size", "vocab_size", "system", "attention", "plain", "blocks", "ratio", "analytic")
    timed = ("plain", "blocks")
    rows = [
        [cell[name]["seconds"] if name in timed else cell[name] for name in names]
        for cell in section["training"]
    ]
    left_out = f"Left out for want of time: {section['left_out'] or 'nothing'}."
    return f"{first}\n\n{table('Training step with blocks', header, rows)}\n\n{left_out}"


def attention(section: dict) -> str:
    """Seconds of a LoMDM step under each implementation."""
    rows = []
    for row in section["rows"]:
        seconds = [row[attention]["seconds"] for attention in ("sdpa", "eager")]
        rows.append([row["size"], row["length"], row["batch"], *seconds, row["ratio"]])
    return table(
        "LoMDM step by attention",
        ["size", "L", "batch", "sdpa, s", "eager, s", "eager / sdpa"],
        rows,
    )


def scaling(section: dict) -> str:
    """Seconds along each axis, and the efficiency of two processes."""
    rows = [
        [axis, row[axis], row["seconds"]]
        for axis, points in section["axes"].items()
        for row in points
    ]
    text = table("Scaling", ["axis", "value", "seconds"], rows)
    if "ddp" in section:
        values = [section["ddp"][name] for name in ("one_process", "two_processes", "efficiency")]
        text += "\n\n" + table("Two processes", ["one, s", "two, s", "efficiency"], [values])
    return text


def imports(section: dict) -> str:
    """What the import takes and adds."""
    rows = [[name, value] for name, value in (section["seconds"] | section["added"]).items()]
    return table("Import", ["what", "seconds"], rows)


def correctness(section: dict) -> str:
    """The largest difference of each check."""
    rows = [[name, value] for name, value in section["largest_difference"].items()]
    return table(
        f"Correctness (tolerance {section['tolerance']:g})", ["check", "largest difference"], rows
    )


TABLES = {
    "correctness": correctness,
    "memory": memory,
    "training": training,
    "sampling": sampling,
    "blocks": blocks,
    "attention": attention,
    "scaling": scaling,
    "import": imports,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="such as benchmarks/records/performance_cpu.json")
    path = parser.parse_args().record
    with user_errors():
        try:
            print(tables(json.loads(path.read_text(encoding="utf-8"))))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no record of performance.py.") from error
