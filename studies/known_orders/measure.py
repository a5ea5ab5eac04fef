r"""The prize of a task, and how much of it each system wins.

    python studies/known_orders/measure.py latents --output outputs/known_orders/latents.json

Ten minutes for a seed on one core; in two minutes, and too short to win anything, with `--seeds 1
--max_steps 100 --order_search 20`. `--systems best backwards mdlm` prints the prize alone, before
anything is learned about orders.

The rows are those of `tasks.py`, with its knobs. Systems, each trained by
`training_scripts/train.py` with the configuration of the task, on two masked views of each text:

- `best`: in the best order, which is given (`position_log_rates`): `--gap` between steps;
- `backwards`: in the same order backwards;
- `mdlm`: in random order;
- `lomdm`: LoMDM as the configuration has it: it searches an order, then learns rates;
- `no_search`: LoMDM without the search;
- `paper`: without it and by the paper's time bound, cut at 1e-3;
- `cut`: the same without the reconstruction term for what lies behind the cut. Its record has the
  estimate by the same cut, `cut_estimate`, beside the bound.

The share of the prize is 0 for `mdlm` and 1 for `best`. Kendall tau compares the forward rates with
the best order, over pairs of positions of different steps: 1 is the best order, 0 a random one.
Operations are those of training, search included (`benchmarks/flops.py`). All other words go to
`train.py`, for all systems alike. Finished runs are not run again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion
from hf_lomdm.cli.errors import user_errors
from hf_lomdm.cli.option_types import positive, whole
from hf_lomdm.evaluation.records import environment, write_record
from hf_lomdm.training.checkpointing import complete_checkpoints
from hf_lomdm.training.order_search import FILE

STUDY = Path(__file__).resolve().parent
ROOT = STUDY.parents[1]
sys.path += [str(STUDY), str(ROOT / "benchmarks")]

import flops
from tasks import KNOBS, SYMBOLS, Task, make_parser, make_task, write_rows

TRAIN = ROOT / "training_scripts" / "train.py"
ROWS = {"train": (20000, 1), "valid": (1000, 2)}  # rows and seed
TAU_ROWS = 256
CUT_DRAWS = 64  # of all these rows, for the estimate by a cut bound
# further configurations of the systems, in the folder `systems`
SYSTEMS = {
    "best": ["given_order.yaml"],
    "backwards": ["given_order.yaml"],
    "mdlm": ["given_order.yaml"],
    "lomdm": [],
    "no_search": ["no_search.yaml"],
    "paper": ["paper.yaml"],
    "cut": ["cut.yaml"],
}


def given_order(system: str, steps: Tensor, gap: float) -> list[float] | None:
    """`position_log_rates` of a system: `gap` between the steps of the best order."""
    late = {"best": steps, "backwards": steps.max() - steps}.get(system)
    return None if late is None else (-gap * late).tolist()


def tau_to_best(rates: Tensor, steps: Tensor) -> float | None:
    """Expected Kendall tau of Plackett-Luce orders with `rates` `[B, L]` to the best order.

    Over pairs of positions of different steps; `None` where there are none.
    """
    first = rates[:, :, None] / (rates[:, :, None] + rates[:, None, :])  # P(i before j)
    ordered = steps[:, None] < steps[None, :]
    return float((2 * first[:, ordered] - 1).mean()) if ordered.any() else None


def share_of_prize(bound: float, mdlm: float, best: float) -> float | None:
    """0 for the bound of `mdlm`, 1 for that of `best`; `None` where there is no prize."""
    return (mdlm - bound) / (mdlm - best) if mdlm - best > 1e-9 else None


def run(options: argparse.Namespace, task: Task, system: str, seed: int) -> dict[str, Any]:
    """Trains one system from one seed, unless it is finished; its record."""
    folder = options.folder / f"{system}-{seed}"
    record = folder.with_suffix(".json")
    if record.exists():
        return _read(record)
    files = [
        STUDY / f"{options.task}.yaml",
        *(STUDY / "systems" / name for name in SYSTEMS[system]),
    ]
    words = [word for file in files for word in ("--config", str(file))] + options.words
    words += ["--max_length", str(len(task.steps)), "--seed", str(seed)]
    words += ["--train_file", str(options.folder / "train.txt")]
    words += ["--validation_file", str(options.folder / "valid.txt"), "--output_dir", str(folder)]
    order = given_order(system, task.steps.float(), options.gap)
    words += [] if order is None else ["--position_log_rates", *map(str, order)]
    subprocess.run([sys.executable, str(TRAIN), *words], check=True, stdout=sys.stderr)
    write_record(record, measured(folder, task))
    return _read(record)


def measured(folder: Path, task: Task) -> dict[str, Any]:
    """What a finished run gave: its bound, its order, what was spent."""
    results = _read(folder / "eval_results.json")
    config = LoMDMConfig.from_pretrained(folder)
    texts = reader(folder)(task.rows(TAU_ROWS, ROWS["valid"][1]))
    rates = forward_rates(folder, texts)
    search = _read(folder / FILE) if (folder / FILE).exists() else None
    return {
        "bound": results["eval_nelbo"],
        "standard_error": results["eval_nelbo_standard_error"],
        "velocity": results["eval_velocity"],
        "tau": tau_to_best(rates.double(), task.steps),
        "cut_estimate": cut_estimate(folder, texts) if config.time_range else None,
        "log_rates_by_step": {
            int(checkpoint.name.split("-")[1]): forward_rates(checkpoint, texts)
            .log()
            .mean(0)
            .tolist()
            for checkpoint in complete_checkpoints(folder)
        },
        "operations": operations(folder, config, len(task.steps), search),
        "search": search,
        **environment(rates.device, rates.dtype, None),
    }


@torch.no_grad()
def forward_rates(folder: Path, texts: Tensor) -> Tensor:
    """Rates `[B, L]` of texts by the model of a folder."""
    return LoMDMForMaskedDiffusion.from_pretrained(folder).eval().forward_rates(texts)


@torch.no_grad()
def cut_estimate(folder: Path, texts: Tensor) -> dict[str, float]:
    """Nats per token by the bound that the training of a folder has cut, and the error of draws."""
    model = LoMDMForMaskedDiffusion.from_pretrained(folder, dtype=torch.float32).train()
    generators = [torch.Generator().manual_seed(seed) for seed in range(CUT_DRAWS)]
    draws = [model(input_ids=texts, labels=texts, generator=g).nelbo.mean() for g in generators]
    low, high = model.config.time_range  # training has the density 1 / (high - low) for its times
    values = torch.stack(draws).double() * (high - low) / texts.shape[1]
    return {"value": float(values.mean()), "standard_error": float(values.std() / CUT_DRAWS**0.5)}


def reader(folder: Path):
    """From rows of symbols `[N, L]` to ids, by the tokenizer of a run."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(SYMBOLS)))
    return lambda rows: ids[rows]


def operations(
    folder: Path, config: LoMDMConfig, length: int, search: dict[str, Any] | None
) -> float:
    """Of training, and of the search before it."""
    record = _read(folder / "training_record.json")
    rows = record["settings"]["per_device_train_batch_size"]
    total = record["steps"] * flops.training(config, length)
    if search is not None:
        trials = sum(len(tried["bounds"]) for tried in search["rounds"])
        copy = LoMDMConfig(**config.to_dict() | {"rate_type": "uniform", "num_views": None})
        total += trials * search["rounds"][0]["steps"] * flops.training(copy, length)
    return total * rows * length


def summary(records: dict[str, list[dict[str, Any]]], entropy: float) -> dict[str, Any]:
    """For each system the means over seeds with their errors, and each seed's share of the prize.

    Args:
        records: of each system, a record for each seed. entropy: nats per character.
    """
    means = {name: statistics.mean(r["bound"] for r in runs) for name, runs in records.items()}
    systems = {}
    for name, runs in records.items():
        bounds = [record["bound"] for record in runs]
        systems[name] = {
            "bound": means[name],
            "standard_error": statistics.stdev(bounds) / len(bounds) ** 0.5
            if len(bounds) > 1
            else runs[0]["standard_error"],
            "above_entropy": means[name] - entropy,
            "shares": [share_of_prize(b, means["mdlm"], means["best"]) for b in bounds],
            "tau": [record["tau"] for record in runs],
            "found": [record["search"] and record["search"]["winner"] for record in runs],
            "operations": runs[0]["operations"],
        }
    return systems


def table(systems: dict[str, Any]) -> str:
    """A line for each system."""
    lines = [
        f"{'':10s} {'bound':>8s} {'+-':>7s} {'operations':>10s}  share of the prize; tau; found"
    ]
    for name, found in systems.items():
        shares, taus = (
            " ".join("-" if value is None else f"{value:.2f}" for value in found[key])
            for key in ("shares", "tau")
        )
        winners = " ".join(filter(None, found["found"]))
        lines.append(
            f"{name:10s} {found['bound']:8.4f} {found['standard_error']:7.4f} "
            f"{found['operations']:10.3g}  {shares}; {taus}; {winners}"
        )
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--seeds", nargs="+", type=whole(0), default=[1])
    parser.add_argument(
        "--other_seeds", nargs="+", type=whole(0), help="of all systems but lomdm; default --seeds"
    )
    parser.add_argument("--gap", type=positive, default=4.0, help="log ratio of rates of two steps")
    parser.add_argument("--output", type=Path, required=True, help="the record")
    parser.add_argument("--folder", type=Path, help="of the runs; default beside the record")
    options, options.words = parser.parse_known_args(arguments)
    options.other_seeds = options.other_seeds or options.seeds
    options.folder = options.folder or options.output.with_suffix("")
    if missing := {"best", "mdlm"} - set(options.systems):
        parser.error(f"--systems needs {' and '.join(sorted(missing))}: they are the prize")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    with user_errors():
        task = make_task(options.task, {knob: getattr(options, knob) for knob in KNOBS})
        options.folder.mkdir(parents=True, exist_ok=True)
        for name, (count, seed) in ROWS.items():
            write_rows(task.rows(count, seed), options.folder / f"{name}.txt")
    entropy = task.entropy / len(task.steps)
    print(f"entropy: {entropy:.4f} nats per character", flush=True)
    records: dict[str, list[dict[str, Any]]] = {}
    for system in options.systems:
        seeds = options.seeds if system == "lomdm" else options.other_seeds
        records[system] = [run(options, task, system, seed) for seed in seeds]
        print(f"{system}: {[round(record['bound'], 4) for record in records[system]]}", flush=True)
    systems = summary(records, entropy)
    header = {"task": options.task, "words": options.words, "gap": options.gap}
    header |= {"knobs": {k: getattr(options, k) for k in KNOBS if getattr(options, k) is not None}}
    header |= {"seeds": options.seeds, "other_seeds": options.other_seeds, "entropy": entropy}
    write_record(options.output, header | {"systems": systems, "runs": records})
    print(f"\n{table(systems)}\nrecord: {options.output}")


if __name__ == "__main__":
    main()
