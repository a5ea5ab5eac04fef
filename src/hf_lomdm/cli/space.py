"""A page on which a LoMDM writes live: tokens coloured by time of reveal, and the rates.

Laptop:  lomdm space --model checkpoints/lomdm-enwiki
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
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import get_route_path

from hf_lomdm.cli.errors import loading, user_errors
from hf_lomdm.cli.option_types import whole
from hf_lomdm.modeling.scheduling_lomdm import SAMPLERS
from hf_lomdm.pipelines import LoMDMPipeline
from hf_lomdm.visualization.live import live_html, order_frame, stream

WRITERS, WAITING = 4, 32  # texts written at a time, and users who may wait for their turn
LONGEST, MOST_STEPS, PROMPT_CHARACTERS = 1024, 1024, 4000
LARGEST_SEED, HOTTEST = 2**53, 2.0  # numbers of a browser are exact up to that seed
# A request of the page is a few settings and a prompt, of which JSON takes 12 bytes per character.
BODY_BYTES = 2**16
# What the page asks of gradio, by how the paths begin. Uploads, files and all else are closed.
API = ("app_id", "heartbeat/", "info", "queue/data", "startup-events")
FILES = (
    "assets/",
    "config",
    "favicon.ico",
    "manifest.json",
    "pwa_icon",
    "robots.txt",
    "static/",
    "theme.css",
)
OPEN = {
    "GET": (*(f"/{name}" for name in FILES), *(f"/gradio_api/{name}" for name in API)),
    "POST": tuple(f"/gradio_api/{name}" for name in ("cancel", "queue/join", "reset")),
}
FONT = ("system-ui", "sans-serif")
INTRODUCTION = """# LoMDM writes
A masked diffusion language model with a learned order: it starts from blanks and reveals the
positions with a high *rate* first. Colours tell the time of reveal, dark blue early, yellow late.
A prompt is continued; in a template such as `The {mask}{mask} of London` the blanks are filled
in."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = os.environ.get("MODEL")
    parser.add_argument(
        "--model", default=model, help="folder or Hub id; default: the environment variable MODEL"
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


class Gate:
    """In front of gradio: lets through what the page asks for, in small requests.

    The limits of the page's fields hold in the browser alone, and gradio reads whatever it is sent.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        method, path = scope.get("method"), get_route_path(scope)
        if not (method in ("GET", "HEAD") and path == "/" or path.startswith(OPEN.get(method, ()))):
            await PlainTextResponse("closed", 404)(scope, receive, send)
            return
        body, more = b"", True
        while more and len(body) <= BODY_BYTES:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > BODY_BYTES:
            response = PlainTextResponse("too large", 413, {"connection": "close"})
            await response(scope, receive, send)
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> dict:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)


def check(settings: dict[str, Any], longest: int) -> None:
    """Raises `ValueError` for settings that the page would not send, before any work on them."""
    prompt = settings["prompt"]
    if not isinstance(prompt, str) or len(prompt) > PROMPT_CHARACTERS:
        raise ValueError(f"prompt must be a text of at most {PROMPT_CHARACTERS} characters.")
    if settings["sampler"] not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}.")
    ranges = {
        "steps": (1, MOST_STEPS),
        "length": (1, longest),
        "temperature": (0, HOTTEST),
        "seed": (0, LARGEST_SEED),
    }
    for name, (least, most) in ranges.items():
        value, kind = settings[name], "number" if name == "temperature" else "whole number"
        fits = type(value) in (int, float) and least <= value <= most  # NaN is in no range
        if not fits or kind == "whole number" and value != int(value):
            raise ValueError(f"{name} must be a {kind} from {least} to {most}.")


def writer(pipe: LoMDMPipeline, title: str) -> Any:
    """The function behind the button: settings in; live text, text and page of the order out."""
    longest = longest_text(pipe)

    def write(prompt, steps, length, sampler, temperature, seed) -> Iterator[tuple[str, str, str]]:
        settings = {"steps": steps, "length": length, "temperature": temperature, "seed": seed or 0}
        try:
            check({"prompt": prompt or "", "sampler": sampler, **settings}, longest)
            numbers = (int(steps), int(length), sampler, temperature, int(seed or 0))
            for state in stream(pipe, prompt or None, *numbers):
                finished = state.text is not None
                yield (
                    live_html(state),
                    state.text or "",
                    order_frame(state, title) if finished else "",
                )
        except ValueError as error:  # what the user typed; anything else is a bug and stays one
            raise gr.Error(
                str(error), title="This cannot be written", print_exception=False
            ) from error

    return write


def longest_text(pipe: LoMDMPipeline) -> int:
    return min(LONGEST, pipe.model.config.max_position_embeddings)


def build(pipe: LoMDMPipeline, name: str) -> gr.Blocks:
    """The page."""
    longest = longest_text(pipe)
    mask = pipe.tokenizer.mask_token
    with gr.Blocks(title=f"LoMDM: {name}", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION.format(mask=mask) + f" Model: `{name}`.")
        with gr.Row():
            with gr.Column(scale=1):
                prompt = gr.Textbox(
                    label="Prompt or template", lines=2, max_length=PROMPT_CHARACTERS
                )
                steps = gr.Slider(1, MOST_STEPS, value=min(64, longest), step=1, label="Steps")
                length = gr.Slider(
                    1,
                    longest,
                    value=min(64, longest),
                    step=1,
                    label="Length in tokens, with the prompt",
                )
                sampler = gr.Dropdown(
                    SAMPLERS, value=pipe.scheduler.config.sampler, label="Sampler"
                )
                temperature = gr.Slider(0, HOTTEST, value=1, step=0.05, label="Temperature")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED)
                with gr.Row():
                    write, stop = gr.Button("Write", variant="primary"), gr.Button("Stop")
                gr.Examples([["The city of"], [f"The {mask}{mask} of London"]], inputs=prompt)
            with gr.Column(scale=2):
                live = gr.HTML(label="Text", elem_id="live")
                text = gr.Textbox(
                    label="Finished text", interactive=False, buttons=["copy"], elem_id="finished"
                )
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
            preprocess=False,  # what is sent is checked by `check` alone
            api_name="write",
        )
        stop.click(None, cancels=[running], queue=False)
    return page.queue(max_size=WAITING, api_open=False)


@user_errors()
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
        app_kwargs={"middleware": [Middleware(Gate)]},
    )
