"""The generation order as one HTML page: tokens coloured by their step of reveal, to be stepped through and played.

The page loads nothing and runs no script but its own (a content security policy with hashes says so to the browser).
"""

import base64
import hashlib
import html
import os
from collections.abc import Sequence

from ..evaluation.records import write_file
from .terminal import visible

# Cividis, from early (dark blue) to late (yellow): the same to eyes with and without colour blindness, and it grows
# steadily in lightness.
COLOURS = (
    *("#00224e", "#002e6c", "#1a386f", "#2f436d", "#3f4d6b", "#4c576c", "#58616f", "#646c73", "#707678"),
    *("#7d8078", "#8b8b77", "#999674", "#a8a26f", "#b8ae68", "#c9bb5f", "#dcc954", "#fee838"),
)

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1a1a1a, #ececec); --paper: light-dark(#fff, #16181c);
  --soft: light-dark(#5a5f66, #a7adb5); --line: light-dark(#c8ccd1, #454a52); --mask: light-dark(#e6e8eb, #2b2f36);
  --accent: light-dark(#b3261e, #ff8a80); }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.25rem; margin: 0 0 .75rem; }
.bar { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: .5rem 0; }
.bar input[type=range] { flex: 1 1 12rem; }
button, select { font: inherit; padding: .25rem .6rem; color: inherit; background: var(--paper);
  border: 1px solid var(--soft); border-radius: .3rem; cursor: pointer; }
:focus-visible { outline: 3px solid light-dark(#005fcc, #7db8ff); outline-offset: 2px; }
#status { min-height: 1.5em; margin: .25rem 0; font-variant-numeric: tabular-nums; }
.text { font: 1rem/1.9 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  border: 1px solid var(--line); border-radius: .4rem; padding: .8rem; margin: .5rem 0; }
.text[hidden] { display: none; }
.t { border-radius: .2rem; padding: .1rem 0; box-shadow: inset 1px 0 var(--paper); }
.t:empty::before { content: "\\25AB"; }
.t.masked { background: var(--mask); color: transparent; user-select: none; }
.t.now { outline: 2px solid var(--accent); }
.given { text-decoration: underline dotted var(--soft); text-underline-offset: .3em; }
.legend { color: var(--soft); font-size: .9rem; }
.legend i { font-style: normal; display: inline-block; width: .8em; height: 1em; vertical-align: -.1em; }
.legend .t { padding: 0 .4em; box-shadow: none; }
kbd { border: 1px solid var(--line); border-radius: .2rem; padding: 0 .3em; font: .85em ui-monospace, monospace; }
"""

SCRIPT = """
"use strict";
const $ = id => document.getElementById(id);
const texts = [...document.querySelectorAll(".text")];
const motions = [$("first"), $("back"), $("play"), $("forward"), $("last")];
let text, tokens, steps, step, timer = null;

function show(next) {
  step = Math.max(0, Math.min(steps, next));
  let revealed = 0;
  for (const token of tokens) {
    const at = Number(token.dataset.step), masked = at >= step;
    revealed += !masked;
    token.classList.toggle("masked", masked);
    token.classList.toggle("now", at === step - 1 && step < steps);
    masked ? token.setAttribute("aria-hidden", "true") : token.removeAttribute("aria-hidden");
  }
  $("step").value = step;
  const said = `step ${step} of ${steps}: ${revealed} of ${tokens.length} tokens revealed`;
  $("step").setAttribute("aria-valuetext", said);
  $("status").textContent = said;
}

function pause() {
  clearInterval(timer);
  timer = null;
  $("play").textContent = "Play";
  $("status").setAttribute("aria-live", "polite");
}

function play() {
  if (timer !== null) return pause();
  if (step === steps) show(0);
  $("play").textContent = "Pause";
  $("status").setAttribute("aria-live", "off");  // a screen reader would speak every step
  timer = setInterval(() => { show(step + 1); if (step === steps) pause(); }, Number($("speed").value));
}

function choose(number) {
  pause();
  texts.forEach((one, index) => { one.hidden = index !== number; });
  text = texts[number];
  tokens = [...text.querySelectorAll("[data-step]")];
  steps = Math.max(0, ...tokens.map(token => Number(token.dataset.step) + 1));
  $("step").max = steps;
  $("sample").value = number;
  show(steps);
}

const moves = {
  first: () => show(0), back: () => show(step - 1), forward: () => show(step + 1), last: () => show(steps),
};
for (const [id, move] of Object.entries(moves)) $(id).onclick = () => { pause(); move(); };
$("play").onclick = play;
$("step").oninput = () => { pause(); show(Number($("step").value)); };
$("speed").onchange = () => { if (timer !== null) { pause(); play(); } };
$("sample").onchange = () => choose(Number($("sample").value));
$("theme").onchange = () => { document.documentElement.style.colorScheme = $("theme").value; };
const keys = { ArrowLeft: "back", ArrowRight: "forward", Home: "first", End: "last", " ": "play" };
document.addEventListener("keydown", event => {
  const busy = event.target.closest("input, select") || (event.key === " " && event.target.closest("button"));
  if (busy || event.ctrlKey || event.altKey || event.metaKey || !(event.key in keys)) return;
  event.preventDefault();
  $(keys[event.key]).click();
});
choose(0);
"""


def write_order_html(
    path: str | os.PathLike, tokens: Sequence[list[str]], order: Sequence[list[int]], title: str = "Order of reveal"
) -> None:
    """Writes texts as a page on which the colour of each token tells its step of reveal.

    The page shows one text at a time, finished at first; buttons, a slider and keys (arrows, Home, End, space) go
    through the steps. A masked token keeps the room of the token to come. All text is escaped; control characters and
    marks of direction are shown as signs.

    Args:
        path: file to write.
        tokens: for each text the text of each token (`token_texts`).
        order: for each text the step of reveal of each token; -1 = given, -2 = padding (left out).
        title: heading of the page.
    Raises:
        ValueError: no text, or `tokens` and `order` that differ in length.
    """
    if not tokens or len(tokens) != len(order):
        raise ValueError(f"tokens and order must hold the same texts, at least one, got {len(tokens)}, {len(order)}.")
    for number, (one, steps) in enumerate(zip(tokens, order, strict=True)):
        if len(one) != len(steps):
            raise ValueError(
                f"tokens and order of text {number} must have the same length, got {len(one)} and {len(steps)}."
            )
    texts = "\n".join(_text(number, *pair) for number, pair in enumerate(zip(tokens, order, strict=True)))
    write_file(path, _page(_escape(title), texts, len(tokens)).encode())


def _text(number: int, tokens: list[str], order: list[int]) -> str:
    """A text as spans; without the script all texts are there, finished and coloured."""
    last = max(order, default=0)
    spans = (_token(token, step, last) for token, step in zip(tokens, order, strict=True) if step > -2)
    return f'<div class="text" dir="auto" role="group" aria-label="text {number + 1}">{"".join(spans)}</div>'


def _token(token: str, step: int, last: int) -> str:
    if step < 0:
        return f'<span class="given" title="given">{_escape(token)}</span>'
    colour = round(step / max(1, last) * (len(COLOURS) - 1))
    attributes = f'class="t c{colour}" data-step="{step}" title="step {step + 1} of {last + 1}"'
    return f"<span {attributes}>{_escape(token)}</span>"


def _escape(text: str) -> str:
    """HTML of a text: what HTML or the eye would take for something else is escaped or shown as a sign."""
    return html.escape(visible(text)).replace("\n", "\u21b5\n")


def _black_or_white(colour: str) -> str:
    """Whichever of the two stands out more on a background, by the WCAG's contrast ratio (never below 4.5)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#fff"


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def _page(title: str, texts: str, count: int) -> str:
    colours = "".join(
        f".c{number}:not(.masked) {{ background: {colour}; color: {_black_or_white(colour)}; }}\n"
        for number, colour in enumerate(COLOURS)
    )
    style = STYLE + colours
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(SCRIPT)}"
    samples = "".join(f'<option value="{number}">text {number + 1}</option>' for number in range(count))
    ramp = "".join(f'<i class="c{number}"></i>' for number in range(len(COLOURS)))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<div class="bar">
<button id="first" type="button">First</button>
<button id="back" type="button">Back</button>
<button id="play" type="button">Play</button>
<button id="forward" type="button">Forward</button>
<button id="last" type="button">Last</button>
<input id="step" type="range" min="0" max="0" value="0" step="1" aria-label="step of reveal">
</div>
<div class="bar">
<label>Text <select id="sample">{samples}</select></label>
<label>Speed <select id="speed"><option value="600">slow</option><option value="200" selected>normal</option>
<option value="50">fast</option></select></label>
<label>Theme <select id="theme"><option value="light dark">system</option><option value="light">light</option>
<option value="dark">dark</option></select></label>
</div>
<p id="status" role="status" aria-live="polite"></p>
{texts}
<p class="legend">revealed first
<span role="img" aria-label="colours from early, dark blue, to late, yellow">{ramp}</span> revealed last &nbsp;
<span class="given">given</span> &nbsp; <span class="t masked" aria-hidden="true">masked</span> masked &nbsp;
<span class="t now">revealed in this step</span></p>
<p class="legend">Keys: <kbd>&larr;</kbd> <kbd>&rarr;</kbd> one step, <kbd>Home</kbd> <kbd>End</kbd> first and last,
<kbd>space</kbd> play or pause.</p>
<script>{SCRIPT}</script>
</body>
</html>
"""
