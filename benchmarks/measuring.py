"""What all measurements share: models of two sizes, interleaved timing, and the record.

A section of `outputs/benchmarks/performance_<device>.json` is what one script measures. Each is
written when it is finished, beside its place first and then renamed, so that a kill loses nothing
that was measured before. What is in `benchmarks/records/` was put there by hand.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion
from hf_lomdm.cli.errors import user_errors
from hf_lomdm.cli.option_types import nonempty, positive
from hf_lomdm.evaluation.records import check_output, environment, record_name, write_record

SIZES = {
    "small": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},  # MDLM-small
    "tiny": {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3},
    "toy": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},  # of --smoke
}
SEED = 0
MAX_ROUNDS = 20

Section = Callable[[argparse.Namespace], dict]


def device_type() -> str:
    """`"cuda"` where there is a GPU, else `"cpu"`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronize() -> None:
    """Waits until the GPU has done what it was asked to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def build(size: str, vocab_size: int, length: int, **settings) -> LoMDMForMaskedDiffusion:
    """A model of `SIZES[size]` with random weights, the same in every call, in training mode.

    Args:
        vocab_size: the mask token, the last id, included. length: `max_position_embeddings`.
    """
    torch.manual_seed(SEED)
    sizes = SIZES[size] | {
        "vocab_size": vocab_size,
        "mask_token_id": vocab_size - 1,
        "max_position_embeddings": length,
    }
    model = LoMDMForMaskedDiffusion(LoMDMConfig(**sizes | settings))
    for head in (model.phi, model.psi):
        # rates as uneven as after training: all equal, they would take other branches
        if head is not None:
            torch.nn.init.normal_(head.out.weight, std=0.5)
    return model.to(device_type()).train()


def autocast() -> torch.autocast:
    """bfloat16 for the network, on either device."""
    return torch.autocast(device_type(), torch.bfloat16)


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def interleaved(
    runs: dict[str, Callable], seconds: float, rounds: int = MAX_ROUNDS
) -> dict[str, dict]:
    """Times `runs` in turn, round after round, so that a drift of the machine hits all of them.

    Rounds go on until `seconds` are spent or `rounds` are made. The first one warms up, and counts
    only if there is no other.

    Returns:
        For each run `seconds` (the median), `spread` (half of the distance of the quartiles) and
        `rounds` that count.
    """
    taken, start = {name: [] for name in runs}, time.perf_counter()
    for done in range(rounds + 1):
        spent = time.perf_counter() - start
        if done and spent * (done + 1) / done > seconds and (done > 1 or spent > seconds / 2):
            break
        for name, run in runs.items():
            taken[name].append(timed(run))
    return {name: _summary(values[1:] or values) for name, values in taken.items()}


def _summary(values: list[float]) -> dict:
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else (0.0, 0.0, 0.0)
    spread = (quartiles[2] - quartiles[0]) / 2
    return {"seconds": statistics.median(values), "spread": spread, "rounds": len(values)}


def matmul_ceiling(size: int, seconds: float) -> float:
    """FLOP/s of a bfloat16 product of two square matrices, the best of what fits into `seconds`."""
    left, right = (
        torch.randn(size, size, device=device_type(), dtype=torch.bfloat16) for _ in range(2)
    )
    best, start = timed(lambda: left @ right), time.perf_counter()
    while time.perf_counter() - start < seconds:
        best = min(best, timed(lambda: left @ right))
    return 2 * size**3 / best


def record_place(output: str | None, measured: dict, room: str = "benchmarks") -> Path:
    """`output`, or a place in `outputs/<room>` named after what is measured, free to write.

    Args:
        measured: as in `check_output`; `task`, `model` and `source` (of the data), where they are
            there, name it.
    Raises:
        ValueError: a record of something else is there.
    """
    words = [measured[name] for name in ("task", "model", "source") if name in measured]
    path = Path(output or f"outputs/{room}/{record_name(*words)}")
    check_output(path, measured)
    return path


def record_path(options: argparse.Namespace) -> Path:
    """Where the sections of this device lie, those of toy sizes apart.

    Raises:
        ValueError: something else is there.
    """
    toy = "_smoke" if options.smoke else ""
    path = Path(options.output or f"outputs/benchmarks/performance{toy}_{device_type()}.json")
    check_output(path, {})
    expected = {
        "device": environment(device_type(), torch.bfloat16, SEED)["device"],
        "smoke": options.smoke,
    }
    for name, section in (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    ).items():
        where = section.get("environment") if isinstance(section, dict) else None
        present = where and {"device": where["device"], "smoke": section.get("smoke", False)}
        if present != expected:
            raise ValueError(
                f"--output {path} is the record of something else: its {name} is {present}, not "
                f"{expected}. Pass another --output, or delete it."
            )
    return path


def save_section(path: Path, name: str, section: dict, smoke: bool = False) -> None:
    """Puts a section with its environment into the record at `path`; other sections stay."""
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    section = section | {
        "smoke": smoke,
        "environment": environment(device_type(), torch.bfloat16, SEED),
    }
    write_record(path, record | {name: section})


def options(description: str, seconds: float, compiles: bool) -> argparse.ArgumentParser:
    """The command line of all scripts; `compiles`: whether a network can be compiled."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--seconds", type=positive, default=seconds, help="about as long as it may take"
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="toy sizes: shows that it runs, the numbers mean nothing",
    )
    if compiles:
        parser.add_argument(
            "--compile", action="store_true", help="torch.compile the network, on both sides"
        )
    parser.add_argument(
        "--output", type=nonempty, help="default outputs/benchmarks/performance_<device>.json"
    )
    return parser


def run_section(
    name: str, measure: Section, description: str, seconds: float, compiles: bool = False
) -> None:
    """The `main` of a script: measures one section, writes it and prints its tables."""
    from report import tables

    chosen = options(description, seconds, compiles).parse_args()
    with user_errors(ValueError, OSError):
        chosen.output = record_path(chosen)
    section = measure(chosen)
    save_section(chosen.output, name, section, chosen.smoke)
    print(f"{tables({name: section})}\n\nrecord: {chosen.output}")
