r"""Measures a model: likelihood, zero-shot likelihood, generation, order, Sudoku, molecules.

On GPUs, on the seven sets of the paper:

    accelerate launch training_scripts/evaluate.py zero-shot --model org/lomdm-owt

On a laptop, in a minute or two:

    lomdm evaluate likelihood outputs/tiny --file valid.txt --max_rows 256
    lomdm evaluate generation outputs/tiny --judge gpt2 --num_samples 16
    lomdm evaluate order outputs/tiny --file valid.txt --max_rows 64

Systems side by side, with error bars:

    lomdm evaluate --compare lomdm.json mdlm.json --plot comparison.png

With `order` records of several `checkpoint-N` of one run the picture shows the order over the steps
of training.

Every command writes one JSON record (`--output`; the default name says what was measured on what)
and prints a table. A record is replaced by one of the same command alone. All but `order` keep what
is finished in `<output>.parts`: the same command, started again after an interruption, continues
there. `likelihood` and `zero-shot` take autoregressive models too, whose likelihood is exact, and
run on several processes by `accelerate launch` or `torchrun`.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from hf_lomdm.adapters import OrderAdapter
from hf_lomdm.cli.errors import loading, user_errors
from hf_lomdm.cli.evaluation_options import (
    check_options,
    check_plots,
    default_output,
    parse_arguments,
    set_files,
)
from hf_lomdm.cli.option_types import refuse_unused
from hf_lomdm.data.rows import Rows, cut_documents, pack_documents
from hf_lomdm.data.sudoku import add_clues, load_puzzles
from hf_lomdm.data.text import read_documents
from hf_lomdm.data.tokenizers import load_tokenizer
from hf_lomdm.evaluation.accuracy import compare_bounds, exact_gap, pilot
from hf_lomdm.evaluation.chemnet import require_chemnet
from hf_lomdm.evaluation.compare import (
    comparison_table,
    measure_table,
    read_records,
)
from hf_lomdm.evaluation.corpus import evaluate_corpus, is_diffusion, process_state, special_tokens
from hf_lomdm.evaluation.density import measured_density
from hf_lomdm.evaluation.generation import (
    WrittenTexts,
    costs,
    write_causal_texts,
    write_texts,
)
from hf_lomdm.evaluation.molecule_descriptors import require_rdkit
from hf_lomdm.evaluation.molecule_reference import known_molecules, read_smiles, reference_of
from hf_lomdm.evaluation.molecules import (
    describe_samples,
    measure_molecules,
    molecule_likelihood,
    molecule_rows,
)
from hf_lomdm.evaluation.parts import delete_parts
from hf_lomdm.evaluation.records import check_output, holds_file, write_record
from hf_lomdm.evaluation.sudoku import evaluate_sudoku
from hf_lomdm.evaluation.token_classes import SmilesClasses
from hf_lomdm.evaluation.zero_shot import evaluate_zero_shot
from hf_lomdm.modeling.modeling_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.modeling.rates_lomdm import EqualRates
from hf_lomdm.pipelines import LoMDMPipeline
from hf_lomdm.training.ema import take_average
from hf_lomdm.visualization import visible
from hf_lomdm.visualization.comparison import plot_comparison

# By the `model_type` of the configuration; all others are AR models.
MODEL_CLASSES = {"lomdm": LoMDMForMaskedDiffusion, "lomdm_order_adapter": OrderAdapter}
# Options on which no value depends: two records that differ in nothing else are of the same
# measurement.
NO_MEASUREMENT = ("model", "output", "quiet", "batch_size", "batch_tokens")
# Options for what an autoregressive model does not have: its likelihood is exact, its order left to
# right.
_OF_BOUNDS = ("bound", "num_samples", "num_orders", "seed", "without_order")
_OF_BOUNDS += ("pilot", "fit_density", "compare_bounds", "exact_gap")
OF_DIFFUSION = {
    "likelihood": _OF_BOUNDS,
    "zero-shot": _OF_BOUNDS,
    "generation": ("num_inference_steps", "sampler", "grid", "without_order", "sweep"),
}


@user_errors()
def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments, __doc__)
    if options.compare:
        compare(options)
    else:
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Runs a command; writes and prints its record, unless it would replace another."""
    check_options(options)
    options.output = Path(options.output or default_output(options))
    given = {key: value for key, value in options.given.items() if key not in NO_MEASUREMENT}
    measured = {"task": options.command, "model": options.model, "options": given}
    check_output(options.output, measured)
    check_plots(options)
    record = measured | COMMANDS[options.command](options)
    if process_state().is_main_process:
        write_record(options.output, record)
        print_measures(record)
        print(f"record: {options.output}")
        if holds_file(options.output):
            delete_parts(_parts_folder(options))


def run_likelihood(options: argparse.Namespace) -> dict[str, Any]:
    model, tokenizer = load(options)
    text = read_text(options, model, tokenizer)
    record: dict[str, Any] = {"source": Path(options.file).name, "documents": text.counts.documents}
    show, extra = not options.quiet, {"seed": options.seed, "num_texts": options.num_texts}
    if options.pilot:
        keep = {"parts_file": _parts(options, "pilot"), "progress": show}
        record["pilot"] = pilot(model, text.rows, bound=options.bound, **extra, **keep)
        if process_state().is_main_process:
            print_pilot(record["pilot"])
    if options.compare_bounds:
        keep = {"parts_file": _parts(options, "bounds"), "progress": show}
        record["compare_bounds"] = compare_bounds(model, text.rows, **extra, **keep)
    if options.exact_gap is not None:
        gap = {
            "positions": options.exact_gap,
            "span": options.span,
            "num_orders": options.num_orders,
        }
        keep = {"parts_file": _parts(options, "exact_gap"), "progress": show}
        record["exact_gap"] = exact_gap(model, text.rows, **gap, **extra, **keep)
    density = None
    if options.fit_density:
        if options.bound != "order" or options.num_orders is not None:
            raise ValueError(
                "--fit_density is for the order bound without --num_orders. Leave one of them out."
            )
        names = ("num_samples", "num_texts", "batch_tokens", "seed")
        density = measured_density(
            model, text.rows, **{name: getattr(options, name) for name in names}
        )
    size = {"characters": text.characters, "num_bytes": text.num_bytes, "groups": text.groups}
    parts = _parts(options, "likelihood")
    return record | evaluate_corpus(
        model, text.rows, **size, **_bound(options), parts_file=parts, density=density
    )


def run_zero_shot(options: argparse.Namespace) -> dict[str, Any]:
    model, tokenizer = load(options)
    keep = {"max_rows": options.max_rows, "parts_folder": _parts_folder(options)}
    return evaluate_zero_shot(
        model, tokenizer, options.sets, files=set_files(options), **keep, **_bound(options)
    )


def run_generation(options: argparse.Namespace) -> dict[str, Any]:
    from hf_lomdm.evaluation.generation import (
        evaluate_generation,
        judge_written,
        load_judge,
        sweep,
        write_causal_texts,
    )

    with loading("--judge", options.judge):
        judge, judge_tokenizer = load_judge(options.judge)
    model, tokenizer = load(options)
    parts = _parts(options, "generation")
    if not is_diffusion(model):
        common = {
            "batch_size": options.batch_size,
            "progress": not options.quiet,
            "parts_file": parts,
        }
        size = {
            "num_samples": options.num_samples,
            "max_length": options.max_length,
            "seed": options.seed,
        }
        written = write_causal_texts(model, tokenizer, **size, **common)
        return judge_written(written, judge, judge_tokenizer, **common)
    pipe = LoMDMPipeline.from_pretrained(options.model, model=model, tokenizer=tokenizer)
    names = ("num_samples", "max_length", "batch_size", "seed", "sampler", "grid")
    settings = {name: getattr(options, name) for name in names}
    settings |= {
        "learned_order": not options.without_order,
        "progress": not options.quiet,
        "parts_file": parts,
    }
    if options.sweep:
        records = list(sweep(pipe, judge, judge_tokenizer, **settings))
        return records[-1] | {"sweep": records}
    return evaluate_generation(
        pipe, judge, judge_tokenizer, num_inference_steps=options.num_inference_steps, **settings
    )


def run_order(options: argparse.Namespace) -> dict[str, Any]:
    from hf_lomdm.evaluation.order import evaluate_order

    model, tokenizer = load(options)
    text = read_text(options, model, tokenizer)
    settings = {
        "num_samples": options.num_samples,
        "seed": options.seed,
        "progress": not options.quiet,
    }
    record = evaluate_order(model, text.rows, tokenizer=tokenizer, **settings)
    if options.plots:
        from hf_lomdm.visualization.plots import plot_order

        for path in plot_order(record, options.plots):
            print(f"plot: {path}")
    return {"source": Path(options.file).name} | record


def run_sudoku(options: argparse.Namespace) -> dict[str, Any]:
    model, _ = load(options)
    puzzles = load_puzzles(options.file, options.start, options.max_rows)
    if options.clues is not None:
        generator = torch.Generator().manual_seed(options.seed)
        puzzles = [add_clues(puzzle, options.clues, generator) for puzzle in puzzles]
    pipe = LoMDMPipeline.from_pretrained(options.model, model=model)
    names = ("num_inference_steps", "batch_size", "seed", "sampler")
    settings = {name: getattr(options, name) for name in names}
    settings |= {"learned_order": not options.without_order, "progress": not options.quiet}
    settings["parts_file"] = _parts(options, "sudoku")
    where = {"source": Path(options.file).name, "start": options.start, "clues": options.clues}
    return where | evaluate_sudoku(pipe, puzzles, **settings)


def run_molecules(options: argparse.Namespace) -> dict[str, Any]:
    require_rdkit()
    if not options.no_fcd:
        require_chemnet()
    model, tokenizer = load(options)
    show = not options.quiet
    sets = {"test": options.reference, "scaffolds": options.scaffold_reference}
    fcd = {"fcd": not options.no_fcd, "progress": show}
    references = {name: reference_of(file, **fcd) for name, file in sets.items() if file}
    known = known_molecules(options.train_file, show) if options.train_file else None
    record = {"reference": Path(options.reference).name}
    if options.file:
        record |= _given_molecules(options, model, tokenizer)
    written = _write_molecules(options, model, tokenizer)
    texts = [item.text for item in written.items]
    described = describe_samples(texts, _parts(options, "descriptors"), show)
    record |= measure_molecules(described, references, known, **fcd)
    return record | costs(written) | written.setting


def _given_molecules(options: argparse.Namespace, model, tokenizer) -> dict[str, Any]:
    """The likelihood of `--file`, and the order of its characters."""
    smiles = read_smiles(options.file)[: options.max_rows]
    common = {"seed": options.seed, "progress": not options.quiet}
    parts = {"parts_file": _parts(options, "likelihood")}
    record = {"likelihood": molecule_likelihood(smiles, tokenizer, model, **common, **parts)}
    if is_diffusion(model):
        from hf_lomdm.evaluation.order import evaluate_order

        rows = molecule_rows(smiles, tokenizer, model)
        named = {"tokenizer": tokenizer, "classes": SmilesClasses}
        record["order"] = evaluate_order(model, rows, **named, **common)
    return record


def _write_molecules(options: argparse.Namespace, model, tokenizer) -> WrittenTexts:
    names = ("num_samples", "batch_size", "seed")
    settings = {name: getattr(options, name) for name in names}
    settings |= {"parts_file": _parts(options, "samples"), "progress": not options.quiet}
    if not is_diffusion(model):
        return write_causal_texts(model, tokenizer, **settings)
    pipe = LoMDMPipeline.from_pretrained(options.model, model=model, tokenizer=tokenizer)
    steps = options.num_inference_steps or model.config.max_position_embeddings
    settings |= {"sampler": options.sampler, "grid": options.grid}
    settings |= {"num_inference_steps": steps, "learned_order": not options.without_order}
    return write_texts(pipe, **settings)


COMMANDS = {
    "likelihood": run_likelihood,
    "zero-shot": run_zero_shot,
    "generation": run_generation,
    "order": run_order,
    "sudoku": run_sudoku,
    "molecules": run_molecules,
}


def compare(options: argparse.Namespace) -> None:
    if options.plot and not Path(options.plot).suffix:
        raise ValueError(
            f"--plot {options.plot} must end in the format, for example {options.plot}.png."
        )
    if options.plot and Path(options.plot).exists():
        raise ValueError(
            f"--plot {options.plot} is there already. Pass another name, or delete it."
        )
    records = read_records(options.compare)
    try:
        print(visible(comparison_table(records)))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"--compare: a record is not one of this script, or not whole: {error!r}."
        ) from error
    if options.plot:
        by_step = checkpoints_by_step(records)
        if by_step:
            from hf_lomdm.visualization.plots import plot_order_over_steps

            Path(options.plot).parent.mkdir(parents=True, exist_ok=True)
            plot_order_over_steps(by_step, options.plot)
        else:
            plot_comparison(records, options.plot)
        print(f"plot: {options.plot}")


def checkpoints_by_step(records: dict[str, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Order records of two or more `checkpoint-N` of one run, by `N`; else nothing."""
    by_step, runs = {}, set()
    for record in records.values():
        folder = Path(str(record.get("model", "")))
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if record["task"] != "order" or match is None:
            return {}
        by_step[int(match[1])] = record
        runs.add(folder.parent)
    return by_step if len(runs) == 1 and len(by_step) == len(records) > 1 else {}


def load(options: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The model on this process's device, in eval mode, and its tokenizer if needed."""
    with loading("--model", options.model):
        kind = AutoConfig.from_pretrained(options.model, trust_remote_code=False).model_type
        model_class = MODEL_CLASSES.get(kind, AutoModelForCausalLM)
        model = model_class.from_pretrained(
            options.model, dtype=getattr(torch, options.dtype)
        ).eval()
        if take_average(model, Path(options.model)) and process_state().is_main_process:
            print(
                f"{options.model} is a checkpoint: its averaged weights are measured, as by the "
                "trainer",
                flush=True,
            )
    if not is_diffusion(model):
        purpose = f"is for diffusion models, and {options.model} is autoregressive"
        refuse_unused(options.given, dict.fromkeys(OF_DIFFUSION.get(options.command, ()), purpose))
    elif getattr(options, "without_order", False) and model.config.rate_type != "learned":
        purpose = (
            f"is for learned rates, and those of {options.model} are {model.config.rate_type!r}"
        )
        refuse_unused(options.given, {"without_order": purpose})
    if options.command in ("likelihood", "zero-shot") and options.without_order:
        model.rate_law = EqualRates(model.config.c1)
    model = model.to(process_state().device)
    if options.command == "sudoku":
        return model, None
    with loading("--tokenizer", options.tokenizer or options.model):
        return model, load_tokenizer(options.tokenizer or options.model)


def read_text(
    options: argparse.Namespace, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Rows:
    """The rows of `--file`, and a line about them."""
    texts = read_documents(options.file, options.column, options.sample_by, options.detokenizer)
    *ends, separator = special_tokens(model, tokenizer)
    length = model.config.max_position_embeddings
    if options.documents:
        rows = cut_documents(
            texts, tokenizer, length, ends, options.stride or max(1, length // 2), options.max_rows
        )
    else:
        rows = pack_documents(texts, tokenizer, length, ends, separator, options.max_rows)
    if process_state().is_main_process:
        print(rows.describe(Path(options.file).name), flush=True)
    return rows


def print_measures(record: dict[str, Any]) -> None:
    """A table of the record: a column per set (zero-shot) or per number of steps (sweep)."""
    columns = {
        name: {"task": "likelihood", **likelihood}
        for name, likelihood in record.get("sets", {}).items()
    }
    columns |= {
        f"{step['num_inference_steps']} steps": record | step for step in record.get("sweep", ())
    }
    print(visible(measure_table(columns or {record["task"]: record})))
    for name, show in EXTRAS.items():
        if name in record:
            show(record[name])


def print_pilot(record: dict[str, Any]) -> None:
    print(
        f"pilot on {record['texts_measured']} of {record['texts']} texts: perplexity "
        f"{record['perplexity']:.2f}; +-{record['target']} of it takes "
        f"{record['samples_needed']:,} samples per text, "
        f"{record['samples_needed'] * record['texts'] * record['seconds_per_sample'] / 60:,.1f} "
        f"minutes here; the choice of the texts leaves +-{record['perplexity_text_error']:.2f} in "
        "any case"
    )


def print_bounds(record: dict[str, Any]) -> None:
    low, high = record["time_over_order_interval"]
    print(
        f"samples for equal error, time : order = {record['time_over_order']:.1f} ({low:.1f} to "
        f"{high:.1f})"
    )
    for bound in ("order", "time"):
        measured = record[bound]
        print(
            f"  {bound} bound: {measured['value']:.4f} +- {measured['monte_carlo_error']:.4f}, "
            f"standard deviation of one sample {measured['deviation_per_sample']:.2f} nats per "
            f"token; +-0.1 of PPL takes {measured['samples_needed']:,} per text"
        )


def print_gap(record: dict[str, Any]) -> None:
    where = "neighbouring" if record["span"] else "scattered"
    exact = record["exact"]
    print(
        f"{record['positions']} {where} positions of {record['n']} texts, given the rest: "
        f"exact {exact['value']:.4f} +- {exact['standard_error']:.4f} nats per position"
    )
    for name, estimate in record.items():
        if isinstance(estimate, dict) and "gap" in estimate:
            print(
                f"  {name}: gap {estimate['gap']['value']:.4f} +- "
                f"{estimate['gap']['standard_error']:.4f}"
            )


EXTRAS = {"compare_bounds": print_bounds, "exact_gap": print_gap}


def _bound(options: argparse.Namespace) -> dict[str, Any]:
    names = ("bound", "num_samples", "num_orders", "batch_tokens", "seed")
    return {**{name: getattr(options, name) for name in names}, "progress": not options.quiet}


def _parts(options: argparse.Namespace, part: str) -> Path | None:
    folder = _parts_folder(options)
    return None if folder is None else folder / f"{part}.jsonl"


def _parts_folder(options: argparse.Namespace) -> Path | None:
    """Beside the record; none beside a device or a pipe."""
    return (
        options.output.with_name(options.output.name + ".parts")
        if holds_file(options.output)
        else None
    )
