"""The page of the Space, in gradio: a run that plays, and the fields to write another one."""

from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import gradio as gr

from hf_lomdm.cli.space_models import ORDERS, Shown
from hf_lomdm.cli.space_settings import (
    HOTTEST,
    LARGEST_SEED,
    MOST_STEPS,
    PROMPT_CHARACTERS,
    Refused,
    Settings,
)

WRITERS, WAITING = 4, 128  # runs written at a time, and requests that may wait for their turn
INTRODUCTION = """# LoMDM writes
A masked diffusion language model with a learned order: it starts from blanks, and reveals the
positions with a high *rate* first. Dark blue was written first, yellow last. The bar in a blank is
its rate."""
# A frame tells how high its page is; it reaches nothing else.
HEAD = """<script>addEventListener("message", event => {
  const frames = [...document.querySelectorAll("#run iframe")];
  const frame = frames.find(one => one.contentWindow === event.source);
  const height = Number(event.data && event.data.orderHeight);
  if (frame && height > 0 && height < 1e5) frame.style.height = `${height}px`;
});</script>"""
STYLE = """#run .html-container { padding: 0; }
@media (max-width: 640px) { .main.fillable.app { padding: .75rem; } }"""
# On a narrow page the fields stand below the run.
SCROLL = '() => { if (innerWidth < 900) document.getElementById("run").scrollIntoView(); }'


def build(models: dict[str, Shown]) -> gr.Blocks:
    """The page of models by name, at least one; writes the run of each that it opens with."""
    opening = {name: model.open() for name, model in models.items()}
    first = next(iter(models))
    with gr.Blocks(title="LoMDM writes", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        chosen = gr.Radio(
            [(f"{name}: {model.words}", name) for name, model in models.items()],
            value=first,
            label="Model",
            visible=len(models) > 1,
        )
        with gr.Row():
            with gr.Column(scale=2):
                run, text = _results(*opening[first][1:])
            with gr.Column(scale=1):
                fields = _fields(models[first], opening[first][0])
                with gr.Row():
                    write, stop = gr.Button("Write", variant="primary"), gr.Button("Stop")
        gr.on([write.click, fields[0].submit], None, js=SCROLL, queue=False)
        running = gr.on(
            [write.click, fields[0].submit],
            _writer(models),
            [chosen, *fields],
            [run, text],
            concurrency_limit=WRITERS,
            show_progress="minimal",
            show_progress_on=text,
            preprocess=False,  # what is sent is checked by `check` alone
            api_name="write",
        )
        stop.click(None, cancels=[running], queue=False)
        chosen.change(
            _chooser(models, opening),
            chosen,
            [*fields, run, text],
            concurrency_limit=None,
            show_progress="hidden",
            preprocess=False,
            api_name="choose",
            cancels=[running],
        )
    return page.queue(max_size=WAITING, api_open=False)


def _results(run: str, text: str) -> tuple[gr.HTML, gr.Textbox]:
    """Where a run and its text are shown."""
    return gr.HTML(run, elem_id="run"), gr.Textbox(
        text, label="Finished text", interactive=False, buttons=["copy"], elem_id="finished"
    )


def _fields(model: Shown, settings: Settings) -> list[Any]:
    """The fields of `Settings`, in their order."""
    options = _options(model, settings)
    return [
        gr.Textbox(
            label="Prompt",
            lines=2,
            max_lines=6,
            max_length=PROMPT_CHARACTERS,
            elem_id="prompt",
            **options[0],
        ),
        gr.Slider(1, MOST_STEPS, step=1, label="Steps", **options[1]),
        gr.Slider(1, step=1, label="Length in tokens, with the prompt", **options[2]),
        gr.Dropdown([(words, name) for name, words in ORDERS.items()], label="Order", **options[3]),
        gr.Slider(0, HOTTEST, step=0.05, label="Temperature (0: the likeliest)", **options[4]),
        gr.Number(label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED, **options[5]),
    ]


def _options(model: Shown, settings: Settings) -> list[dict[str, Any]]:
    """What of each field depends on the model."""
    values = [{"value": value} for value in astuple(settings)]
    values[0] |= {"info": model.hint}
    values[2] |= {"maximum": model.longest, "visible": model.kind == "text"}
    values[3] |= {"visible": model.kind != "sudoku"}  # which shows two orders
    return values


def _chooser(models: dict[str, Shown], opening: dict[str, tuple[Settings, str, str]]) -> Any:
    def choose(name: Any) -> list[Any]:
        model = _find(models, name)
        settings, run, text = opening[model.name]
        return [*(gr.update(**one) for one in _options(model, settings)), run, text]

    return choose


def _writer(models: dict[str, Shown]) -> Any:
    """The function behind the button: fields in; the run and its text out."""

    def write(name: Any, *fields: Any) -> Iterator[tuple[str, str]]:
        try:
            yield from _find(models, name).write(Settings(*fields))
        except Refused as error:  # what the visitor typed; anything else is a bug and stays one
            raise _refusal(str(error)) from error

    return write


def _find(models: dict[str, Shown], name: Any) -> Shown:
    if not isinstance(name, str) or name not in models:
        raise _refusal("Choose one of the models of the page.")
    return models[name]


def _refusal(reason: str) -> gr.Error:
    """What the page shows of a visitor's mistake; the log of the server has nothing to say."""
    return gr.Error(reason, title="Nothing was written", print_exception=False)
