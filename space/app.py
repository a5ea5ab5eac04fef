"""A page on which a LoMDM writes text live, every token coloured by its time of reveal, with the rates that decide.

Laptop:  python space/app.py --model checkpoints/lomdm-enwiki
Space:   set the variable MODEL to a Hub id; the Hub starts this file by itself
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before gradio is imported: no message leaves the machine.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import torch
from safetensors import SafetensorError

from hf_lomdm import LoMDMPipeline
from hf_lomdm.visualization.live import live_html, order_frame, stream

SAMPLERS = ("sequential", "ancestral", "random", "left_to_right", "confidence", "margin", "entropy")
WRITERS, WAITING = 4, 32  # texts written at a time, and users who may wait for their turn
LONGEST, MOST_STEPS, PROMPT_CHARACTERS = 1024, 1024, 4000
FONT = ("system-ui", "sans-serif")
INTRODUCTION = """# LoMDM writes
A masked diffusion language model with a learned order: it starts from blanks and reveals the positions with a high
*rate* first. Colours tell the time of reveal, dark blue early, yellow late. A prompt is continued; in a template
such as `The {mask}{mask} of London` the blanks are filled in."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = os.environ.get("MODEL")
    parser.add_argument("--model", default=model, help="folder or Hub id; default: the environment variable MODEL")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    options = parser.parse_args(arguments)
    if not options.model:
        parser.error("no model: pass --model FOLDER_OR_HUB_ID or set the environment variable MODEL")
    return options


def load(model: str) -> LoMDMPipeline:
    """The pipeline, on a GPU if there is one. The package's own classes load it: no code of the repository runs."""
    try:
        pipe = LoMDMPipeline.from_pretrained(model, dtype=None if torch.cuda.is_available() else torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SystemExit(f"--model {model} is not a folder or Hub id that can be loaded: {reason}") from error
    if pipe.tokenizer is None:
        raise SystemExit(f"--model {model} has no tokenizer (tokenizer_config.json), so there is no text to show.")
    pipe.model.eval()  # once: users share the model, and no call may change its mode
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


def writer(pipe: LoMDMPipeline, title: str) -> Any:
    """The function behind the button: settings in; live text, finished text, page of the order out, step by step."""

    def write(
        prompt: str, steps: int, length: int, sampler: str, temperature: float, seed: int | None
    ) -> Iterator[tuple[str, str, str]]:
        try:
            for state in stream(pipe, prompt or None, steps, length, sampler, temperature, seed or 0):
                finished = state.text is not None
                yield live_html(state), state.text or "", order_frame(state, title) if finished else ""
        except ValueError as error:  # what the user typed; anything else is a bug and stays one
            raise gr.Error(str(error), title="This cannot be written", print_exception=False) from error

    return write


def build(pipe: LoMDMPipeline, name: str) -> gr.Blocks:
    """The page."""
    longest = min(LONGEST, pipe.model.config.max_position_embeddings)
    mask = pipe.tokenizer.mask_token
    with gr.Blocks(title=f"LoMDM: {name}", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION.format(mask=mask) + f" Model: `{name}`.")
        with gr.Row():
            with gr.Column(scale=1):
                prompt = gr.Textbox(label="Prompt or template", lines=2, max_length=PROMPT_CHARACTERS)
                steps = gr.Slider(1, MOST_STEPS, value=min(64, longest), step=1, label="Steps")
                length = gr.Slider(
                    1, longest, value=min(64, longest), step=1, label="Length in tokens, with the prompt"
                )
                sampler = gr.Dropdown(SAMPLERS, value=pipe.scheduler.config.sampler, label="Sampler")
                temperature = gr.Slider(0, 2, value=1, step=0.05, label="Temperature")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**53)
                with gr.Row():
                    write, stop = gr.Button("Write", variant="primary"), gr.Button("Stop")
                gr.Examples([["The city of"], [f"The {mask}{mask} of London"]], inputs=prompt)
            with gr.Column(scale=2):
                live = gr.HTML(label="Text", elem_id="live")
                text = gr.Textbox(label="Finished text", interactive=False, buttons=["copy"], elem_id="finished")
        order = gr.HTML(label="Order", elem_id="order")
        settings = [prompt, steps, length, sampler, temperature, seed]
        function = writer(pipe, f"Order of reveal: {name}")
        running = gr.on(
            [write.click, prompt.submit],
            function,
            settings,
            [live, text, order],
            concurrency_limit=WRITERS,
            show_progress="hidden",
            api_name="write",
        )
        stop.click(None, cancels=[running], queue=False)
    return page.queue(max_size=WAITING, api_open=False)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    name = Path(options.model).name if Path(options.model).is_dir() else options.model
    page = build(load(options.model), name)
    page.launch(
        server_port=options.port,
        share=False,
        ssr_mode=False,
        theme=gr.themes.Default(font=FONT, font_mono=("ui-monospace", "monospace")),
        footer_links=[],
    )


if __name__ == "__main__":
    main()
