"""A page on which LoMDMs write: tokens coloured by time of reveal, rates, puzzles, molecules.

Laptop:  lomdm space checkpoints/lomdm-enwiki checkpoints/lomdm-sudoku checkpoints/lomdm-moses
Space:   set the variable MODEL to Hub ids; the Hub starts this file by itself
"""

import argparse
import os
from pathlib import Path

# Before gradio is imported: no message leaves the machine.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# And it keeps the times of a hundred requests, not of ten thousand.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")

import gradio as gr
import torch
from starlette.middleware import Middleware

from hf_lomdm.cli.errors import loading, user_errors
from hf_lomdm.cli.option_types import whole
from hf_lomdm.cli.space_gate import Gate
from hf_lomdm.cli.space_models import Shown
from hf_lomdm.cli.space_page import HEAD, STYLE, build
from hf_lomdm.pipelines import LoMDMPipeline

SESSIONS = 100  # visitors of whom gradio keeps something; the page needs nothing of them
FONT = ("system-ui", "sans-serif")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        nargs="+",
        default=os.environ.get("MODEL", "").split(),
        help="folders or Hub ids; default: the environment variable MODEL",
    )
    parser.add_argument(
        "--port", type=whole(1, 2**16 - 1), help="default: the first free one from 7860"
    )
    options = parser.parse_args(arguments)
    if not options.model:
        parser.error(
            "no model: pass --model FOLDER_OR_HUB_ID or set the environment variable MODEL"
        )
    return options


def load(model: str) -> LoMDMPipeline:
    """The pipeline, on a GPU if there is one, loaded by the package's own classes."""
    with loading("--model", model):
        pipe = LoMDMPipeline.from_pretrained(
            model, dtype=None if torch.cuda.is_available() else torch.float32
        )
    if pipe.tokenizer is None:
        raise ValueError(
            f"--model {model} has no tokenizer (tokenizer_config.json), so there is no text to "
            "show."
        )
    pipe.model.eval()  # once: users share the model, and no call may change its mode
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


def load_all(models: list[str]) -> dict[str, Shown]:
    """Models by the name that the page shows; what cannot be loaded is left out.

    Raises:
        ValueError: none can be loaded; says why the last one cannot.
    """
    shown: dict[str, Shown] = {}
    for number, model in enumerate(models):
        name = Path(model).name if Path(model).is_dir() else model
        name = model if name in shown else name
        try:
            shown[name] = Shown(name, load(model))
        except ValueError as error:
            if not shown and number == len(models) - 1:
                raise
            print(f"left out: {error}", flush=True)
    return shown


@user_errors()
def main(arguments: list[str] | None = None) -> None:
    page = build(load_all((options := parse_arguments(arguments)).model))
    page.launch(
        server_port=options.port,
        share=False,
        ssr_mode=False,
        theme=gr.themes.Default(font=FONT, font_mono=("ui-monospace", "monospace")),
        head=HEAD,
        css=STYLE,
        footer_links=[],
        state_session_capacity=SESSIONS,
        app_kwargs={"middleware": [Middleware(Gate)]},
    )
