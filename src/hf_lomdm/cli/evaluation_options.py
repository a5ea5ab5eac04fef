"""The command line of `training_scripts/evaluate.py`, checked before anything is loaded."""

import argparse
from pathlib import Path

from ..data.detokenizers import DETOKENIZERS
from ..data.sudoku import CELLS
from ..evaluation.likelihood import MAX_EXACT_POSITIONS
from ..evaluation.records import record_name
from ..evaluation.zero_shot import SETS
from .option_types import SEED, nonempty, refuse_unused, whole

DTYPES = ("float32", "bfloat16", "float64")
# Options that need one of others beside them.
COMPANIONS = {
    "stride": ("documents",),
    "span": ("exact_gap",),
    "num_texts": ("pilot", "fit_density", "compare_bounds", "exact_gap"),
}


def parse_arguments(
    arguments: list[str] | None = None, description: str | None = None
) -> argparse.Namespace:
    """The options; `given` holds those that have another value than their default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--compare", nargs="+", metavar="RECORD", help="compare these records of one task"
    )
    parser.add_argument(
        "--plot", type=nonempty, help="write a picture of the comparison to this new file"
    )
    commands = parser.add_subparsers(dest="command")

    _add_likelihood(commands)
    _add_zero_shot(commands)
    _add_generation(commands)
    _add_order(commands)
    _add_sudoku(commands)
    _add_molecules(commands)
    options = parser.parse_args(arguments)
    if (options.command is None) == (options.compare is None):
        parser.error(f"give a command ({', '.join(commands.choices)}) or --compare RECORD ...")
    if options.plot and not options.compare:
        parser.error("--plot is for --compare RECORD ... Leave it out.")
    if options.command:
        default = commands.choices[options.command].get_default
        options.given = {
            key: value for key, value in vars(options).items() if value != default(key)
        }
        for key in ("command", "compare", "plot"):
            options.given.pop(key, None)
    return options


def _add_likelihood(commands) -> None:
    parser = _command(commands, "likelihood", "nats per token of a text")
    _add_text(parser)
    _add_bound(parser)
    parser.add_argument(
        "--pilot", action="store_true", help="first estimate how many samples +-0.1 of PPL needs"
    )
    parser.add_argument(
        "--fit_density",
        action="store_true",
        help="fit the density of the share revealed to the loss of a pilot",
    )
    parser.add_argument(
        "--compare_bounds",
        action="store_true",
        help="also estimate how many samples each bound needs for the same error",
    )
    positions = whole(1, MAX_EXACT_POSITIONS)
    parser.add_argument(
        "--exact_gap",
        type=positions,
        metavar="N",
        help="also measure the gap between the bounds and the exact value of N positions",
    )
    parser.add_argument(
        "--span", action="store_true", help="the N positions of --exact_gap are neighbours"
    )
    parser.add_argument(
        "--num_texts",
        type=whole(2),
        default=32,
        help="rows for --pilot, --fit_density, --compare_bounds and --exact_gap",
    )


def _add_zero_shot(commands) -> None:
    parser = _command(commands, "zero-shot", "nats per token of the seven sets")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="SET=PATH",
        help="read this set from a file instead of the Hub; may be repeated",
    )
    parser.add_argument("--max_rows", type=whole(1), help="measure only the first rows of each set")
    _add_bound(parser)


def _add_generation(commands) -> None:
    parser = _command(commands, "generation", "quality of samples under a judge")
    parser.add_argument(
        "--judge",
        type=nonempty,
        default="gpt2-large",
        help="a causal language model; or a .gguf file",
    )
    parser.add_argument("--num_samples", type=whole(1), default=64)
    parser.add_argument(
        "--num_inference_steps", type=whole(1), default=256, help="of a diffusion model"
    )
    parser.add_argument(
        "--sweep", action="store_true", help="measure 8, 16, 32, ... steps and one step per token"
    )
    parser.add_argument("--max_length", type=whole(1), help="tokens; default: the model's longest")
    parser.add_argument("--batch_size", type=whole(1), default=16)
    parser.add_argument("--sampler", help="default: the folder's")
    parser.add_argument("--grid", help="default: the folder's")
    parser.add_argument("--without_order", action="store_true", help="all rates equal: c2 = 0")


def _add_order(commands) -> None:
    parser = _command(commands, "order", "what order was learned")
    _add_text(parser)
    parser.add_argument("--num_samples", type=whole(1), default=16, help="draws per text")
    parser.add_argument("--plots", type=nonempty, help="write pictures to this folder")


def _add_sudoku(commands) -> None:
    parser = _command(commands, "sudoku", "puzzles solved, by a model of --task sudoku")
    parser.add_argument(
        "--file",
        type=nonempty,
        required=True,
        help="a .csv file with the columns puzzle and solution",
    )
    parser.add_argument(
        "--start",
        type=whole(0),
        default=0,
        help="the first puzzle; take some that training has not seen",
    )
    parser.add_argument("--max_rows", type=whole(1), default=256, help="puzzles")
    parser.add_argument(
        "--clues",
        type=whole(0, CELLS),
        help="clues of each puzzle, more than its own; default: its own",
    )
    parser.add_argument(
        "--num_inference_steps", type=whole(1), default=CELLS, help="default: one cell per step"
    )
    parser.add_argument("--batch_size", type=whole(1), default=64)
    parser.add_argument("--sampler", help="default: the folder's")
    parser.add_argument("--without_order", action="store_true", help="all rates equal: c2 = 0")


def _add_molecules(commands) -> None:
    parser = _command(commands, "molecules", "the measures of MOSES, by a model of SMILES")
    smiles = "one SMILES a line, or a column SMILES; or a .npz of their statistics"
    parser.add_argument("--reference", type=nonempty, required=True, help=f"test set: {smiles}")
    parser.add_argument(
        "--scaffold_reference", type=nonempty, help="test set with scaffolds not in training"
    )
    parser.add_argument("--train_file", type=nonempty, help="training molecules, for novelty")
    parser.add_argument("--num_samples", type=whole(2), default=30_000, help="molecules written")
    parser.add_argument(
        "--num_inference_steps", type=whole(1), help="default: one position per step"
    )
    parser.add_argument("--batch_size", type=whole(1), default=64)
    parser.add_argument("--sampler", help="default: the folder's")
    parser.add_argument("--grid", help="default: the folder's")
    parser.add_argument("--without_order", action="store_true", help="all rates equal: c2 = 0")
    parser.add_argument("--no_fcd", action="store_true", help="without the distance by ChemNet")
    parser.add_argument(
        "--file", type=nonempty, help="SMILES whose likelihood and order are measured too"
    )
    parser.add_argument("--max_rows", type=whole(1), help="measure only the first of --file")


def _command(commands, command: str, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(command, help=summary, description=summary)
    parser.add_argument(
        "--model", type=nonempty, required=True, help="folder or repository of a model"
    )
    if command != "sudoku":
        parser.add_argument("--tokenizer", type=nonempty, help="default: the model's")
    parser.add_argument(
        "--output",
        type=nonempty,
        help=f"the record; default outputs/evaluation/{command}-MODEL-DATA.json",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def _add_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--file",
        type=nonempty,
        required=True,
        help="a .txt, .jsonl, .csv or .parquet file, or a folder of them",
    )
    parser.add_argument("--column", default="text", help="column that holds the text")
    parser.add_argument(
        "--sample_by",
        default="paragraph",
        help="what one document of a .txt file is: line, paragraph, document",
    )
    parser.add_argument("--detokenizer", choices=list(DETOKENIZERS))
    parser.add_argument(
        "--documents", action="store_true", help="measure each document alone; default: packed rows"
    )
    parser.add_argument(
        "--stride", type=whole(1), help="tokens counted per further window of a long document"
    )
    parser.add_argument(
        "--max_rows", type=whole(1), help="measure only the first packed rows, or documents"
    )


def _add_bound(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bound", default="order", help="order or time")
    parser.add_argument(
        "--num_samples", type=whole(1), default=2, help="draws per text; 2 or more for an error"
    )
    parser.add_argument(
        "--num_orders", type=whole(1), help="orders per draw of a tighter, more expensive bound"
    )
    parser.add_argument("--batch_tokens", type=whole(1), default=8192)
    parser.add_argument("--without_order", action="store_true", help="all rates equal: c2 = 0")


def check_options(options: argparse.Namespace) -> None:
    """Refuses missing files and options without effect, before anything is loaded.

    Raises:
        ValueError: says which.
    """
    given = options.given
    for option, companions in COMPANIONS.items():
        if option in given and not given.keys() & set(companions):
            raise ValueError(
                f"--{option} needs {' or '.join(f'--{companion}' for companion in companions)}. "
                "Leave it out."
            )
    if "sweep" in given:
        refuse_unused(given, {"num_inference_steps": "is set by --sweep"})
    files = (
        list(set_files(options).values())
        if options.command == "zero-shot"
        else [getattr(options, "file", None)]
    )
    others = ("reference", "scaffold_reference", "train_file")
    for option, file in [
        *(("file", file) for file in files),
        *((option, getattr(options, option, None)) for option in others),
        ("judge", getattr(options, "judge", None)),
    ]:
        local = option != "judge" or str(file).endswith(".gguf")
        if file is not None and local and not Path(file).exists():
            raise ValueError(f"--{option} {file} does not exist. Check the path.")
    if (
        "sample_by" in given
        and Path(options.file).is_file()
        and ".txt" not in Path(options.file).suffixes
    ):
        raise ValueError(
            f"--sample_by is for .txt files, and --file is {options.file}. Leave it out."
        )


def set_files(options: argparse.Namespace) -> dict[str, str]:
    """The files of `zero-shot --file SET=PATH` by set.

    Raises:
        ValueError: another form, or a set that is unknown, not measured, or there twice.
    """
    files: dict[str, str] = {}
    for words in options.file:
        name, _, path = words.partition("=")
        if not path.strip():
            raise ValueError(
                f"--file must be SET=PATH, got {words!r}. For example: ptb=ptb.valid.txt."
            )
        if name not in options.sets or name in files:
            raise ValueError(
                f"--file {words}: {name!r} must be one of --sets, once: {' '.join(options.sets)}."
            )
        files[name] = path
    return files


def default_output(options: argparse.Namespace) -> str:
    """A name that says what is measured on what."""
    sets = (
        "all"
        if getattr(options, "sets", None) == list(SETS)
        else "-".join(getattr(options, "sets", ()))
    )
    data = {
        "zero-shot": sets,
        "generation": getattr(options, "judge", ""),
        "molecules": getattr(options, "reference", ""),
    }.get(options.command) or options.file
    return f"outputs/evaluation/{record_name(options.command, options.model, data)}"


def check_plots(options: argparse.Namespace) -> None:
    """Refuses a folder that holds pictures, unless they are of the record that is measured again.

    Raises:
        ValueError: it does.
    """
    plots = getattr(options, "plots", None)
    if plots and not options.output.is_file() and any(Path(plots).glob("order_*.png")):
        raise ValueError(
            f"--plots {plots} holds pictures of another record. Pass another folder, or delete "
            "them."
        )
