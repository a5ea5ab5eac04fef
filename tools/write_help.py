"""Writes the pages that `lomdm COMMAND --help` prints, from the parsers of the commands.

    python tools/write_help.py

They are files so that they are there before torch is imported. A test compares them.
"""

import argparse
import contextlib
import importlib
import io
import os
import re
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

import lomdm_command
from hf_lomdm.data.arguments import DataArguments
from hf_lomdm.training.arguments import LoMDMTrainingArguments, ModelArguments
from hf_lomdm.training.finetuning import FinetuningArguments

WIDTH = 100
# Of the options that come from transformers: those that most runs name.
COMMON = [
    "output_dir",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "head_learning_rate",
    "muon_learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "ema_decay",
    "bf16",
    "gradient_checkpointing",
    "seed",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "eval_num_samples",
    "save_steps",
    "save_total_limit",
    "resume_from_checkpoint",
    "use_cpu",
    "report_to",
    "push_to_hub",
    "hub_model_id",
]
MORE = "--help-all lists every option, also those of transformers.TrainingArguments."


def pages() -> dict[str, str]:
    """Name and text of every page."""
    commands = [f"  {name:<9} {what}" for name, what in lomdm_command.COMMANDS.items()]
    front = [
        "usage: lomdm COMMAND ...",
        "",
        *commands,
        "",
        "lomdm COMMAND --help lists the options of a command.",
    ]
    written = {"lomdm": front, "train": train_page(), "finetune": finetune_page()}
    for name in lomdm_command.COMMANDS.keys() - written.keys():
        written[name] = parser_page(name)
    return {name: "\n".join(map(str.rstrip, lines)) + "\n" for name, lines in written.items()}


def train_page() -> list[str]:
    return [
        "usage: lomdm train [TEXT] [--config FILE.yaml ...] [--option value ...]",
        "",
        "  lomdm train my.txt                   a small model of your text, in outputs/my",
        "  lomdm train --config tiny.yaml --config mdlm.yaml",
        "  lomdm train my.txt --init_from HuggingFaceTB/SmolLM2-135M --lora_rank 8",
        "",
        "An interrupted run continues with the same command. A text on the command line replaces",
        f"the text of a configuration. {MORE}",
        *topic("The text", DataArguments),
        *topic("The model", ModelArguments),
        *topic("The training", LoMDMTrainingArguments, COMMON),
    ]


def finetune_page() -> list[str]:
    return [
        "usage: lomdm finetune MODEL --train_file PAIRS.jsonl --output_dir FOLDER [--option value]",
        "",
        MORE,
        *topic("The model and its rows", FinetuningArguments),
        *topic("The training", LoMDMTrainingArguments, COMMON),
    ]


def topic(title: str, arguments: type, names: list[str] | None = None) -> list[str]:
    """A heading, and a line for each field: its name and the first sentence of its help."""
    by_name = {item.name: item for item in fields(arguments)}
    lines = ["", f"{title}:"]
    for name in names or by_name:
        text = str(by_name[name].metadata.get("help", ""))
        sentence = re.split(r"[.;] ", " ".join(text.split()))[0].rstrip(".;:")
        room = WIDTH - 33
        lines.append(f"  --{name:<28} {textwrap.shorten(sentence, room, placeholder=' ...')}")
    return lines


def parser_page(command: str) -> list[str]:
    """What argparse prints of a command; of one with commands of its own, each of them."""
    module = importlib.import_module(f"hf_lomdm.cli.{command}")
    first = printed(module, command, [])
    found = re.search(r"\{([a-z,-]+)\}\s+\.\.\.", first)
    parts = [first] if found is None else [first, *own_options(module, command, found[1])]
    return "\n".join(parts).splitlines()


def own_options(module, command: str, names: str) -> list[str]:
    """The usage of each command of a command, without what all of them share."""
    usages = [printed(module, command, [name]).split("\n\n")[0] for name in names.split(",")]
    return ["", *usages]


def printed(module, command: str, words: list[str]) -> str:
    """What `lomdm command words --help` prints."""
    os.environ["COLUMNS"] = str(WIDTH)  # as wide as argparse writes
    out, before = io.StringIO(), sys.argv
    sys.argv = [f"lomdm {command}"]
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            module.parse_arguments([*words, "--help"])
    finally:
        sys.argv = before
    return out.getvalue().rstrip()


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    lomdm_command.HELP.mkdir(exist_ok=True)
    for name, text in pages().items():
        Path(lomdm_command.HELP, f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
