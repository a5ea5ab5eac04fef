"""The command `lomdm`. Help comes from files, so that it is there before torch is imported."""

import importlib
import sys
from pathlib import Path

COMMANDS = {
    "train": "train a model on text, or on what a configuration names",
    "sample": "write text, and show the order in which it was written",
    "chat": "talk with a model that has a chat template",
    "evaluate": "measure likelihood, texts, order, puzzles, molecules",
    "finetune": "train a model on prompts and answers, with LoRA",
    "export": "make a folder for the Hub, and upload it",
    "convert": "convert a public MDLM or BD3-LM to a model of this library",
    "space": "serve a page that shows models writing",
}
# The option that a first word stands for; that of `evaluate` says what to measure.
FIRST_WORD = {
    **dict.fromkeys(("sample", "chat", "finetune", "export", "space"), ("--model", 0)),
    "convert": ("--checkpoint", 0),
    "evaluate": ("--model", 1),
}
HELP = Path(__file__).parent / "hf_lomdm" / "cli" / "help"


def main(words: list[str] | None = None) -> None:
    """Runs one of `COMMANDS`; `--help` prints a page, `--help-all` every option."""
    words = sys.argv[1:] if words is None else words
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    if command in ("-h", "--help"):
        print((HELP / "lomdm.txt").read_text(encoding="utf-8"), end="")
        return
    if command not in COMMANDS:
        sys.exit(f"error: lomdm has no command {command!r}. It has {', '.join(COMMANDS)}.")
    if {"-h", "--help"} & set(rest):
        print((HELP / f"{command}.txt").read_text(encoding="utf-8"), end="")
        return
    rest = ["--help" if word == "--help-all" else word for word in rest]
    option, place = FIRST_WORD.get(command, ("", len(rest)))
    if rest[place:] and not any(word.startswith("-") for word in rest[: place + 1]):
        rest.insert(place, option)
    sys.argv = [f"lomdm {command}", *rest]
    try:
        module = importlib.import_module(f"hf_lomdm.cli.{command}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("hf_lomdm"):
            raise
        extra = f"the extra {command}: pip install 'hf-lomdm[{command}]'"
        sys.exit(f"error: lomdm {command} needs {error.name}, of {extra}")
    module.main()
