"""What the Space knows of a model: how it is shown, what it may be asked, how it writes a run.

Three kinds: a text, a Sudoku as two grids, a molecule with its drawing. All text is escaped.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Literal

import torch

from hf_lomdm.data import sudoku
from hf_lomdm.data.molecules import smiles_template
from hf_lomdm.modeling.settings_lomdm import RATE_SAMPLERS, SAMPLERS
from hf_lomdm.pipelines import LoMDMPipeline
from hf_lomdm.pipelines.prompts_lomdm import encode
from hf_lomdm.visualization.html import order_frame, text_element
from hf_lomdm.visualization.live import LiveState, live_html, stream
from hf_lomdm.visualization.molecules import molecule_svg

LONGEST, MOST_STEPS, PROMPT_CHARACTERS = 1024, 1024, 4000
LARGEST_SEED, HOTTEST = 2**53, 2.0  # numbers of a browser are exact up to that seed
PAUSE = 0.25  # seconds between two states of a run that a visitor is sent
SEEDS = 32  # tried for an opening molecule
ORDERS = {
    "sequential": "learned: by the rates, one at a time",
    "ancestral": "learned: by the rates, in random clusters",
    "random": "random",
    "left_to_right": "left to right",
    "confidence": "surest token first",
    "margin": "clearest choice first",
    "entropy": "least doubt first",
    "threshold": "all sure tokens at once",
    "entropy_bound": "tokens with little doubt, together",
}
SUDOKU_ORDERS = {"sequential": "Learned order", "confidence": "Surest cell first"}
BEGINNING = "The city of"
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
LETTERS = frozenset("#%()*+-./0123456789:=@BCFHIKLNOPS[\\]abcegilnoprst")  # of SMILES
Kind = Literal["text", "sudoku", "molecules"]


class Refused(ValueError):
    """What a visitor asked for cannot be written; says why in the words of the page."""


@dataclass(frozen=True)
class Settings:
    """The fields of the page, as they were sent: of any type until `Shown.check` has seen them."""

    prompt: Any
    steps: Any
    length: Any
    sampler: Any
    temperature: Any = 1.0
    seed: Any = 0


@dataclass(frozen=True)
class Shown:
    """A model of the page under its name."""

    name: str
    pipe: LoMDMPipeline

    @cached_property
    def kind(self) -> Kind:
        tokenizer, config = self.pipe.tokenizer, self.pipe.model.config
        special = set(tokenizer.all_special_tokens)
        words = {word for word in tokenizer.get_vocab() if word not in special}
        if config.max_position_embeddings == sudoku.CELLS and words <= set("0123456789"):
            return "sudoku"
        return "molecules" if {"C", "c", "=", "("} <= words <= LETTERS else "text"

    @property
    def words(self) -> str:
        """What it writes."""
        return {"text": "texts", "sudoku": "Sudokus", "molecules": "molecules"}[self.kind]

    @property
    def longest(self) -> int:
        return min(LONGEST, self.pipe.model.config.max_position_embeddings)

    @property
    def start(self) -> Settings:
        """Settings that suit the model."""
        mask = self.pipe.tokenizer.mask_token
        scaffold = f"c1ccc({mask * 4})cc1C(=O)N{mask * 3}"
        prompt = {"text": BEGINNING, "sudoku": PUZZLE, "molecules": scaffold}[self.kind]
        length = min(64, self.longest) if self.kind == "text" else self.longest
        steps = self.pipe.model.config.block_size or length
        return Settings(prompt, steps, length, self.pipe.scheduler.config.sampler)

    @property
    def hint(self) -> str:
        """What the prompt may be."""
        mask = self.pipe.tokenizer.mask_token
        return {
            "text": f"It is continued. In a template such as The {mask}{mask} of London the "
            f"blanks ({mask}) are filled in.",
            "sudoku": "81 cells, line by line: a digit, or a dot for an empty cell.",
            "molecules": f"A SMILES; each {mask} in it is a character to be written. Without one "
            "it is continued; without any text a molecule is made up.",
        }[self.kind]

    def check(self, settings: Settings) -> Settings:
        """The settings with whole numbers as such.

        Raises:
            Refused: settings that the page would not send, before any work on them.
        """
        prompt = "" if settings.prompt is None else settings.prompt
        if not isinstance(prompt, str) or len(prompt) > PROMPT_CHARACTERS:
            raise Refused(f"Prompt must be a text of at most {PROMPT_CHARACTERS} characters.")
        if settings.sampler not in SAMPLERS:
            raise Refused("Order must be one of those in the list.")
        seed = 0 if settings.seed is None else settings.seed
        if not _between(settings.temperature, 0, HOTTEST):
            raise Refused(f"Temperature must be a number from 0 to {HOTTEST:g}.")
        ranges = {
            "Steps": (settings.steps, 1, MOST_STEPS),
            "Length": (settings.length, 1, self.longest),
            "Seed": (seed, 0, LARGEST_SEED),
        }
        for name, (value, least, most) in ranges.items():
            if not _between(value, least, most) or value != int(value):
                raise Refused(f"{name} must be a whole number from {least} to {most}.")
        steps, length, seed = (int(value) for value, *_ in ranges.values())
        return replace(settings, prompt=prompt, steps=steps, length=length, seed=seed)

    def row(self, settings: Settings) -> tuple[list[int] | None, dict[int, list[int]] | None]:
        """The token ids of a prompt, and the tokens allowed at positions.

        Raises:
            Refused: a prompt that the model cannot take.
        """
        if self.kind == "sudoku":
            return _puzzle(settings.prompt), None
        if not settings.prompt:
            return None, None
        if self.kind == "molecules":
            return self._scaffold(settings.prompt)
        config = self.pipe.model.config
        ids = encode(config, self.pipe.tokenizer, settings.prompt)[0]
        is_template = config.mask_token_id in ids
        most = self.longest if is_template else settings.length - 1
        if len(ids) > most:
            where = (
                "the model takes" if is_template else f"Length {settings.length} leaves room for"
            )
            remedy = "" if is_template else ", or raise Length"
            raise Refused(
                f"The prompt has {len(ids)} tokens, and {where} {most}. Shorten the prompt{remedy}."
            )
        return ids, None

    def _scaffold(self, prompt: str) -> tuple[list[int], dict[int, list[int]] | None]:
        tokenizer, longest = self.pipe.tokenizer, self.longest
        mask = tokenizer.mask_token
        pieces = re.split(f"((?:{re.escape(mask)})+)", prompt)
        parts = [len(p) // len(mask) if p.startswith(mask) else p for p in pieces if p]
        known = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
        written = [letter for part in parts if isinstance(part, str) for letter in part]
        if unknown := sorted(set(written) - known):
            raise Refused(f"The model does not know the character {unknown[0]!r}.")
        count = len(written) + sum(part for part in parts if isinstance(part, int))
        most = longest if mask in prompt else longest - 1
        if count > most:
            raise Refused(
                f"The prompt has {count} characters, and the model takes {most}. Shorten it."
            )
        row, allowed = smiles_template(parts, tokenizer, longest, ends=mask in prompt)
        return row, allowed or None

    def write(self, settings: Settings) -> Iterator[tuple[str, str]]:
        """Writes a run: HTML of what there is yet, a few times a second; at last all of it.

        Yields:
            HTML, and the text, `""` until it is finished.
        Raises:
            Refused: as `check` and `row`.
        """
        settings = self.check(settings)
        row, allowed = self.row(settings)
        two = self.kind == "sudoku"
        orders = SUDOKU_ORDERS if two else {settings.sampler: ""}
        panels, texts = [], []
        for sampler, title in orders.items():
            limits = settings.steps, settings.length, sampler, settings.temperature, settings.seed
            rates: dict[int, list[float | None]] = {}
            due = 0.0
            for state in stream(self.pipe, row, *limits, allowed_tokens=allowed):
                state = self._without_special(state)
                if state.text is None and sampler in RATE_SAMPLERS:
                    rates[state.step - 1] = state.rates
                if state.text is None and time.monotonic() >= due:
                    yield live_html(state, title, "grid" if two else "text"), ""
                    due = time.monotonic() + PAUSE
            panels.append(self._panel(state, rates, title))
            texts.append((f"{title}: " if two else "") + state.text)
        sample = f'<div class="panels">{"".join(panels)}</div>' if two else panels[0]
        yield order_frame(sample, f"Order of reveal: {self.name}"), "\n".join(texts)

    def _without_special(self, state: LiveState) -> LiveState:
        special = self._special
        return replace(state, tokens=["" if one in special else one for one in state.tokens])

    @cached_property
    def _special(self) -> frozenset[str]:
        return frozenset(self.pipe.tokenizer.all_special_tokens)

    def _panel(self, state: LiveState, rates: dict[int, list[float | None]], title: str) -> str:
        order = [step for step in state.order if step is not None]
        if self.kind == "sudoku":
            grid = text_element(state.tokens, order, title, rates, "grid")
            note = _verdict([int(one) for one in state.tokens])
            return f'<div><h2>{title}</h2>{grid}<p class="note">{note}</p></div>'
        element = text_element(state.tokens, order, "the text", rates)
        return element + _drawing(state.tokens, order) if self.kind == "molecules" else element

    def open(self) -> tuple[Settings, str, str]:
        """Settings with which the page opens, and the run that they give.

        Of molecules it is the first that is one, of seeds from 0 on.
        """
        draws = self.kind == "molecules" and find_spec("rdkit") is not None
        for seed in range(SEEDS if draws else 1):
            settings = replace(self.start, seed=seed)
            *_, (run, text) = self.write(settings)
            if "&lt;svg" in run:
                break
        return settings, run, text


def _between(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most  # NaN is in no range


def _puzzle(prompt: str) -> list[int]:
    cells = "".join(prompt.split())
    if wrong := sorted(set(cells) - set("0123456789.")):
        raise Refused(f"A cell is a digit or a dot, and the prompt has {wrong[0]!r}.")
    if len(cells) != sudoku.CELLS:
        raise Refused(f"A puzzle has {sudoku.CELLS} cells, and the prompt has {len(cells)}.")
    row = [digit or sudoku.MASK for digit in sudoku.encode(cells)]
    if sudoku.MASK not in row:
        raise Refused("No cell is empty. Put dots where the model shall write.")
    return row


def _verdict(digits: list[int]) -> str:
    grid = torch.tensor(digits)
    wrong = sum(len(set(grid[unit].tolist())) < 9 for unit in sudoku.UNITS)
    if not wrong:
        return "Solved."
    return f"Not solved: {wrong} of 27 rows, columns and boxes are wrong."


def _drawing(tokens: list[str], order: list[int]) -> str:
    try:
        svg = molecule_svg(tokens, order)
    except ValueError:
        return (
            '<p class="note">The drawing needs RDKit: pip install &#x27;hf-lomdm[molecules]&#x27;'
            "</p>"
        )
    return svg or '<p class="note">This text is no molecule, so there is nothing to draw.</p>'
