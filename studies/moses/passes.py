r"""Molecules against passes: how few forward passes write as well as a character at a time.

    python studies/moses/passes.py --model checkpoints/lomdm-moses --num_samples 1000 \
        --reference moses.test.npz --settings "sequential, 58 steps" "threshold 0.9"

Each setting writes molecules without a prompt; measured as by `evaluate.py molecules`. A finished
setting is kept beside `--output` and not written again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from hf_lomdm import LoMDMPipeline
from hf_lomdm.cli.errors import loading, user_errors
from hf_lomdm.cli.option_types import nonempty, whole
from hf_lomdm.evaluation.generation import costs, write_texts
from hf_lomdm.evaluation.molecule_descriptors import require_rdkit
from hf_lomdm.evaluation.molecule_reference import Reference, reference_of
from hf_lomdm.evaluation.molecules import describe_samples, measure_molecules
from hf_lomdm.evaluation.records import write_record

UNIFORM = {"sampler": "ancestral", "grid": "uniform"}
SETTINGS: dict[str, dict[str, Any]] = {
    **{
        f"{sampler}, {steps} steps": {"sampler": sampler, "steps": steps}
        for sampler in ("sequential", "random", "left_to_right", "confidence")
        for steps in (58, 29, 15, 8)
    },
    **{
        f"sequential, 58 steps, temperature {value}": {
            **{"sampler": "sequential", "steps": 58, "temperature": value}
        }
        for value in (0.8, 0.5)
    },
    "without order, 58 steps": {"sampler": "sequential", "steps": 58, "learned_order": False},
    **{f"threshold {tau}": {"sampler": "threshold", "threshold": tau} for tau in (0.99, 0.9, 0.7)},
    **{
        f"entropy bound {gamma}": {"sampler": "entropy_bound", "entropy_bound": gamma}
        for gamma in (0.1, 0.5)
    },
    **{
        f"sequential, entropy bound {gamma}": {
            **{"sampler": "sequential", "count": "entropy_bound", "entropy_bound": gamma}
        }
        for gamma in (0.1, 0.5)
    },
    **{
        f"remasking cap {sigma}, {steps} steps": {
            **UNIFORM,
            **{"remasking": "cap", "sigma": sigma, "steps": steps},
        }
        for sigma in (0.02, 0.1)
        for steps in (58, 116)
    },
}
COLUMNS = ("unique", "novelty", "filters", "test: snn", "test: scaf", "test: fcd")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=nonempty, required=True)
    parser.add_argument("--reference", type=nonempty, required=True)
    parser.add_argument("--num_samples", type=whole(2), default=1000)
    parser.add_argument("--batch_size", type=whole(1), default=64)
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--output", type=nonempty, default="outputs/studies/moses_passes.json")
    return parser.parse_args()


@user_errors()
def main() -> None:
    options = parse_options()
    require_rdkit()
    reference = reference_of(options.reference)
    output = Path(options.output)
    record = json.loads(output.read_text()) if output.exists() else {"settings": {}}
    names = {"task": "moses passes", "model": options.model, "num_samples": options.num_samples}
    record |= names | {"seed": options.seed}
    for name in options.settings:
        if name not in record["settings"]:
            record["settings"][name] = measure(name, reference, options)
            write_record(output, record)
        print(line(name, record["settings"][name]), flush=True)


def measure(name: str, reference: Reference, options: argparse.Namespace) -> dict[str, Any]:
    """The record of a setting."""
    setting = dict(SETTINGS[name])
    with loading("--model", options.model):
        pipe = LoMDMPipeline.from_pretrained(options.model, dtype=torch.float32)
    length = pipe.model.config.max_position_embeddings
    steps, learned = setting.pop("steps", length), setting.pop("learned_order", True)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **setting)
    output = Path(options.output)
    written = write_texts(
        pipe,
        num_samples=options.num_samples,
        num_inference_steps=steps,
        batch_size=options.batch_size,
        seed=options.seed,
        learned_order=learned,
        parts_file=output.with_suffix(f".{list(SETTINGS).index(name)}.jsonl"),
    )
    described = describe_samples([item.text for item in written.items])
    found = measure_molecules(described, {"test": reference}, progress=False)
    output.with_suffix(f".{list(SETTINGS).index(name)}.jsonl").unlink()
    return found | costs(written) | written.setting


def line(name: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [found, *(found["measures"].get(column) for column in COLUMNS)]
    numbers = [show(cell["value"], cell["standard_error"]) for cell in cells if cell]
    return " | ".join([name, f"{found['forward_passes']:.1f}", *numbers])


def show(value: float | None, error: float | None) -> str:
    """A figure with its error; neither is known of a few molecules."""
    if value is None:
        return "-"
    return f"{value:.3f}" + ("" if error is None else f" +- {error:.3f}")


if __name__ == "__main__":
    main()
