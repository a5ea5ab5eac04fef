"""One short training run each of MDLM and LoMDM, the same data, steps and seed.

    python benchmarks/short_run.py [--max_steps 60] (outputs/benchmarks/short_run-<device>.json)

The runs are `training_scripts/train.py` on tiny.yaml: characters of the reference that ships with
CPython. They show that training works on this device and what a step costs; they are too short to
compare the systems.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from measuring import record_place

from hf_lomdm.cli.errors import user_errors
from hf_lomdm.cli.option_types import nonempty, whole
from hf_lomdm.evaluation.records import environment, write_record

ROOT = Path(__file__).parent.parent
SYSTEMS = {"mdlm": "uniform", "lomdm": "learned"}
SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--max_steps", type=whole(1), default=60 if not torch.cuda.is_available() else 300
    )
    parser.add_argument(
        "--output", type=nonempty, help="default outputs/benchmarks/short_run-<device>.json"
    )
    options = parser.parse_args()
    steps, device = options.max_steps, "cuda" if torch.cuda.is_available() else "cpu"
    where = environment(device, torch.float32, SEED)
    measured = {"task": f"short_run-{device}", "max_steps": steps, "device": where["device"]}
    with user_errors(ValueError, OSError):
        path = record_place(options.output, measured)
    runs = {name: train(rate_type, steps) for name, rate_type in SYSTEMS.items()}
    write_record(path, {"config": "tiny.yaml", **measured, "runs": runs} | where)
    for name, run in runs.items():
        print(
            f"{name:6s} order bound {run['eval_nelbo']:.3f} +- "
            f"{run['eval_nelbo_standard_error']:.3f} nats/character after {steps} steps, "
            f"{run['train_runtime']:.0f} s"
        )
    print(f"record: {path}")


def train(rate_type: str, steps: int) -> dict[str, float]:
    """Trains in a process of its own and returns its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "training_scripts/train.py"]
        command += ["--config", ROOT / "training_scripts/configs/tiny.yaml", "--output_dir", folder]
        command += ["--rate_type", rate_type, "--max_steps", str(steps), "--seed", str(SEED)]
        command += ["--eval_strategy", "no", "--save_strategy", "no", "--report_to", "none"]
        command += ["--max_validation_rows", "64", "--logging_steps", str(max(steps // 3, 1))]
        subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
        metrics = json.loads((Path(folder) / "eval_results.json").read_text())
        state = json.loads((Path(folder) / "trainer_state.json").read_text())
    metrics["train_runtime"] = next(
        row["train_runtime"] for row in state["log_history"] if "train_runtime" in row
    )
    return metrics


if __name__ == "__main__":
    main()
