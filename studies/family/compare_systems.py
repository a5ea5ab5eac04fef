r"""Trains systems at a matched budget, evaluates them on the same rows, prints one table.

On a GPU:

    python studies/family/compare_systems.py \
        --config training_scripts/configs/owt.yaml --budget flops=1e18

On a laptop, a few minutes for each system:

    python studies/family/compare_systems.py \
        --config training_scripts/configs/tiny.yaml --systems lomdm mdlm ar --budget tokens=1e6 \
        --output outputs/compare_tiny.json

A budget is the same for every system and buys each as many optimizer steps as fit into it:

- `tokens`: tokens of text that are read, BOS and EOS included. A text counts once, however many
  masked views are made of it and however often the network reads it.
- `flops`: floating point operations of training, counted by `benchmarks/flops.py`.
- `seconds`: of optimizer steps on this machine, without start, checkpoints and evaluation, as two
  runs of a few steps measure it first.

A system is a file in `training_scripts/configs/systems`, or any other overlay (`--systems
mine.yaml`). Every other option goes to `training_scripts/train.py` (`--hidden_size 64`,
`--warmup_steps 0.1`), for all systems alike: mind the warm-up, which a small budget may never
leave. The runs are in `--output_dir`. The same command started again continues there: finished
systems are not run again, one that was killed resumes from its newest checkpoint, or in its
evaluation. All of it runs in one process, on one device.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM, PreTrainedModel

from hf_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.data.arguments import DataArguments
from hf_lomdm.data.splits import load_data, model_token_ids
from hf_lomdm.evaluation.compare import comparison_table, difference
from hf_lomdm.evaluation.corpus import evaluate_corpus, process_state
from hf_lomdm.evaluation.parts import PartsFile
from hf_lomdm.evaluation.records import check_output, write_record
from hf_lomdm.training.arguments import LoMDMTrainingArguments, ModelArguments
from hf_lomdm.training.models import causal_config, diffusion_config
from hf_lomdm.training.parsing import parse_arguments, read_config

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import flops

TRAIN = Path(__file__).resolve().parents[2] / "training_scripts" / "train.py"
SYSTEMS = TRAIN.parent / "configs" / "systems"
DEFAULT_SYSTEMS = ("lomdm", "mdlm", "sedd", "genmd4", "bd3lm_16", "block_lomdm", "ar")
BUDGETS = ("tokens", "flops", "seconds")
# of the two runs that measure a step; what comes before the first step is the same for both
PROBE_STEPS = (4, 14)
EVALUATION_SEED = 0


class Budget(NamedTuple):
    """What each system may spend: `amount` of `kind`, one of `BUDGETS`."""

    kind: str
    amount: float

    def __str__(self) -> str:
        return f"{self.kind}={self.amount:g}"


class Run(NamedTuple):
    """One system: the words for `train.py` but for its folder and steps, and what they mean.

    `setting` names all that its values depend on, but not the places of files, which may differ
    between two starts.
    """

    name: str
    words: list[str]
    setting: dict[str, Any]
    data: DataArguments
    model: ModelArguments
    training: LoMDMTrainingArguments


# --------------------------------------------------------------------------------------- the budget


def parse_budget(text: str) -> Budget:
    """`tokens=1e6` and the like.

    Raises:
        argparse.ArgumentTypeError: another form, an unknown kind, or an amount that is not positive
        and finite.
    """
    kind, _, number = text.partition("=")
    try:
        amount = float(number)
    except ValueError:
        amount = 0.0
    if kind not in BUDGETS or not 0 < amount < float("inf"):
        forms = ", ".join(f"{name}=NUMBER" for name in BUDGETS)
        raise argparse.ArgumentTypeError(
            f"must be {forms} with a positive number, got {text!r}. For example tokens=1e6."
        )
    return Budget(kind, amount)


def steps_within(budget: Budget, cost: float) -> int:
    """Optimizer steps that `budget` buys at `cost` each, in the unit of the budget.

    Raises:
        ValueError: it does not buy a single one.
    """
    # what divides evenly may fall short by the last digit
    steps = int(budget.amount / cost * (1 + 1e-12))
    if steps < 1:
        raise ValueError(
            f"--budget {budget} is less than one optimizer step, which costs {cost:.4g} "
            f"{budget.kind}. Raise it, or lower --per_device_train_batch_size or "
            "--gradient_accumulation_steps."
        )
    return steps


def tokens_per_step(training: LoMDMTrainingArguments, rows: Dataset) -> float:
    """Tokens of text in the batch of one optimizer step, the mean over `rows`, without padding."""
    lengths = sum(len(row["input_ids"]) for row in rows)
    return (
        training.per_device_train_batch_size
        * training.gradient_accumulation_steps
        * lengths
        / len(rows)
    )


def step_seconds(short: float, long: float) -> float:
    """Seconds of a step, from runs of `PROBE_STEPS`; the longer alone where noise wins."""
    fewer, more = PROBE_STEPS
    return (long - short) / (more - fewer) if long > short else long / more


def measure_step(run: Run) -> float:
    """Seconds of an optimizer step of `run` on this machine."""
    seconds = []
    for steps in PROBE_STEPS:
        print(f"  measuring {steps} steps", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            train(run, Path(folder), steps, ["--save_strategy", "no", "--max_validation_rows", "1"])
            seconds.append(_read(Path(folder) / "train_results.json")["train_runtime"])
    return step_seconds(*seconds)


# ----------------------------------------------------------------------------------------- the runs


def make_runs(options: argparse.Namespace, words: list[str]) -> list[Run]:
    """What is to be trained.

    Raises:
        ValueError: options of `train.py` that are wrong or set by the budget, systems twice or on
            different text.
    """
    for name in ("--max_steps", "--num_train_epochs", "--resume_from_checkpoint"):
        if any(word.split("=")[0].replace("-", "_") == name.replace("-", "_") for word in words):
            raise ValueError(f"{name} is set by --budget. Leave it out.")
    files = [
        Path(name) if name.endswith(".yaml") else SYSTEMS / f"{name}.yaml"
        for name in options.systems
    ]
    if len({file.stem for file in files}) < len(files):
        raise ValueError(f"--systems {' '.join(options.systems)} has a name twice. Pass each once.")
    runs = []
    for file in files:
        line = [
            "--config",
            str(options.config),
            "--config",
            str(file),
            *words,
            "--eval_strategy",
            "no",
        ]
        setting = {"settings": read_config(options.config) | read_config(file), "options": words}
        setting["budget"] = str(options.budget)
        runs.append(
            Run(
                file.stem,
                line,
                setting,
                *parse_arguments([*line, "--output_dir", str(options.output_dir)]),
            )
        )
        if runs[-1].data != runs[0].data:
            raise ValueError(
                f"{file} changes the text or its rows, so values do not compare. Set them in "
                "--config."
            )
    return runs


def planned_steps(
    run: Run, options: argparse.Namespace, model: PreTrainedModel, tokens: float
) -> dict[str, Any]:
    """The plan of `run`: its steps and what they spend.

    It is kept in the folder, so that resuming plans nothing anew.

    Args:
        model: of the system, on any device. tokens: of text per step.
    Raises:
        ValueError: the folder holds the same system with other settings.
    """
    path = options.output_dir / f"{run.name}.plan.json"
    if path.exists():
        plan = _read(path)
        if any(plan[key] != value for key, value in run.setting.items()):
            raise ValueError(
                f"{path} is of other settings or another budget. Pass another --output_dir, or "
                "delete it."
            )
        return plan
    operations = tokens * flops.training(model.config, run.data.max_length)
    costs = {
        "tokens": lambda: tokens,
        "flops": lambda: operations,
        "seconds": lambda: measure_step(run),
    }
    steps = steps_within(options.budget, costs[options.budget.kind]())
    spent = {
        "train_tokens": steps * tokens,
        "train_flops": steps * operations,
        "parameters": model.num_parameters(),
    }
    write_record(path, run.setting | {"steps": steps} | spent)
    return _read(path)


def new_model(run: Run, token_ids: dict[str, int | None]) -> PreTrainedModel:
    """The model that `train.py` makes, without memory for its weights."""
    with torch.device("meta"):
        if run.model.objective == "ar":
            return GPTNeoXForCausalLM(causal_config(run.model, run.data.max_length, token_ids))
        return LoMDMForMaskedDiffusion(diffusion_config(run.model, run.data.max_length, token_ids))


def train(run: Run, folder: Path, steps: int, extra: list[str]) -> None:
    """Runs `train.py` in its own process, from the newest checkpoint of `folder` if any.

    Raises:
        subprocess.CalledProcessError: it failed; its reason is on the screen.
    """
    command = [
        sys.executable,
        str(TRAIN),
        *run.words,
        "--output_dir",
        str(folder),
        "--max_steps",
        str(steps),
        *extra,
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)


def evaluate(run: Run, folder: Path, rows: Dataset, parts: Path) -> dict[str, Any]:
    """The record of the trained model of `folder` on `rows`; finished rows are kept in `parts`."""
    model_class = AutoModelForCausalLM if run.model.objective == "ar" else LoMDMForMaskedDiffusion
    model = (
        model_class.from_pretrained(folder, dtype=torch.float32).eval().to(process_state().device)
    )
    setting = {"num_samples": run.training.eval_num_samples, "seed": EVALUATION_SEED}
    batch_tokens = run.training.per_device_eval_batch_size * run.data.max_length
    return evaluate_corpus(model, rows, **setting, batch_tokens=batch_tokens, parts_file=parts)


def finish(run: Run, plan: dict[str, Any], folder: Path, rows: Dataset) -> dict[str, Any]:
    """The record of `run`: read if it is finished, else after training and evaluating."""
    path = folder / f"{run.name}.json"
    if path.exists():
        print("  finished before", flush=True)
        return _read(path)
    train(run, folder / run.name, plan["steps"], [])
    parts = folder / f"{run.name}.parts.jsonl"
    likelihood = evaluate(run, folder / run.name, rows, parts)
    # not there if it was killed between two lines of train.py
    results = folder / run.name / "train_results.json"
    runtime = _read(results)["train_runtime"] if results.exists() else None
    record = {
        "task": "likelihood",
        "model": run.name,
        **plan,
        "train_seconds_of_last_start": runtime,
        **likelihood,
    }
    record["curve"] = training_curve(folder / run.name)
    write_record(path, record)
    PartsFile(parts, {}).delete()
    return record


def training_curve(folder: Path) -> list[list[float]]:
    """Pairs of optimizer step and bound of the batches since the last line, nats per token."""
    states = [_read(path) for path in folder.rglob("trainer_state.json")]
    newest = max(states, key=lambda state: state["global_step"])
    return [[line["step"], line["loss"]] for line in newest["log_history"] if "loss" in line]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------------- the script


def compare(options: argparse.Namespace, words: list[str]) -> dict[str, dict[str, Any]]:
    """Trains and evaluates what is not finished; returns the records of all systems by name."""
    runs = make_runs(options, words)
    texts, tokenizer = load_data(runs[0].data, options.output_dir)
    token_ids = model_token_ids(tokenizer, runs[0].data)
    records = {}
    for number, run in enumerate(runs, start=1):
        if run.data.train_tokenizer:  # one tokenizer for all, so that rows are the same
            run.words.extend(
                ["--train_tokenizer", "", "--tokenizer", str(options.output_dir / "tokenizer")]
            )
        print(f"[{number}/{len(runs)}] {run.name}", flush=True)
        tokens = tokens_per_step(run.training, texts["train"])
        plan = planned_steps(run, options, new_model(run, token_ids), tokens)
        print(f"  {plan['steps']:,} steps for {plan['budget']}", flush=True)
        records[run.name] = finish(run, plan, options.output_dir, texts["validation"])
    return records


def summary(records: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The records without values of single texts, with the differences that need them."""
    first = next(iter(records.values()))
    return {
        name: {key: value for key, value in record.items() if key != "per_text"}
        | {"minus_first": difference(record, first)._asdict()}
        for name, record in records.items()
    }


def cost_table(records: dict[str, dict[str, Any]]) -> str:
    """A line per system: what was spent on it."""
    lines = [
        f"{'':14s} {'parameters':>12s} {'steps':>9s} {'tokens':>10s} {'FLOPs':>10s} {'seconds':>9s}"
    ]
    for name, record in records.items():
        seconds = record["train_seconds_of_last_start"]
        lines.append(
            f"{name:14s} {record['parameters']:12,d} {record['steps']:9,d} "
            f"{record['train_tokens']:10.3g} {record['train_flops']:10.3g} "
            f"{'-' if seconds is None else f'{seconds:.0f}':>9s}"
        )
    return "\n".join(lines)


def parse_options(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The options of this script, and the words that are for `train.py`."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="the text and the scale, for all systems"
    )
    parser.add_argument(
        "--systems", nargs="+", default=list(DEFAULT_SYSTEMS), help="the first one is the reference"
    )
    parser.add_argument(
        "--budget",
        type=parse_budget,
        required=True,
        help="tokens=N, flops=N or seconds=N, for each",
    )
    parser.add_argument(
        "--output", type=Path, help="default outputs/studies/compare-<config>-<budget>.json"
    )
    parser.add_argument(
        "--output_dir", type=Path, help="of the runs; default outputs/compare-<config>-<budget>"
    )
    options, words = parser.parse_known_args(arguments)
    options.output = options.output or Path(
        f"outputs/studies/compare-{options.config.stem}-{options.budget}.json"
    )
    options.output_dir = options.output_dir or Path(
        f"outputs/compare-{options.config.stem}-{options.budget}"
    )
    if (
        options.output.parent.resolve() == options.output_dir.resolve()
        and options.output.stem in options.systems
    ):
        parser.error(
            f"--output {options.output} is the place of the record of that system alone. Rename it."
        )
    return options, words


def main(arguments: list[str] | None = None) -> None:
    options, words = parse_options(arguments)
    header = {"config": options.config.name, "budget": str(options.budget)}
    header |= {"options": words, "compared": options.systems}
    try:
        check_output(options.output, header)
        records = compare(options, words)
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"error: training ended with status {error.returncode}. The same command again "
            "continues there."
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    write_record(options.output, header | {"systems": summary(records)})
    print(f"\n{cost_table(records)}\n\n{comparison_table(records)}\n\nrecord: {options.output}")


if __name__ == "__main__":
    main()
