"""What the Space knows of a model: how it is shown, what it may be asked, how it writes a run.

Three kinds: a text, a Sudoku as two grids, a molecule with its drawing. All text is escaped.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import compress
from typing import Literal

from hf_lomdm.cli.space_settings import (
    LONGEST,
    Row,
    Settings,
    check,
    puzzle_row,
    scaffold_row,
    text_row,
)
from hf_lomdm.data import sudoku
from hf_lomdm.modeling.settings_lomdm import RATE_SAMPLERS
from hf_lomdm.pipelines import LoMDMPipeline
from hf_lomdm.visualization.html import order_frame, text_element
from hf_lomdm.visualization.live import LiveState, live_html, stream
from hf_lomdm.visualization.molecules import molecule_svg

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
    def mask(self) -> str:
        """What stands for a blank in a prompt; `""` where the tokenizer has nothing for it."""
        return self.pipe.tokenizer.mask_token or ""

    @property
    def longest(self) -> int:
        return min(LONGEST, self.pipe.model.config.max_position_embeddings)

    @property
    def start(self) -> Settings:
        """Settings that suit the model."""
        mask = self.mask
        scaffold = f"c1ccc({mask * 4})cc1C(=O)N{mask * 3}"
        prompt = {"text": BEGINNING, "sudoku": PUZZLE, "molecules": scaffold}[self.kind]
        length = min(64, self.longest) if self.kind == "text" else self.longest
        steps = self.pipe.model.config.block_size or length
        return Settings(prompt, steps, length, self.pipe.scheduler.config.sampler)

    @property
    def hint(self) -> str:
        """What the prompt may be."""
        mask = self.mask
        blanks = f" In a template such as The {mask}{mask} of London the blanks are filled in."
        return {
            "text": "It is continued." + (blanks if mask else ""),
            "sudoku": "81 cells, line by line: a digit, or a dot for an empty cell.",
            "molecules": (
                f"A SMILES; each {mask} in it is a character to be written. Without one "
                "it is continued; "
                if mask
                else "A SMILES, which is continued; "
            )
            + "without any text a molecule is made up.",
        }[self.kind]

    def row(self, settings: Settings) -> Row:
        """The prompt as token ids; raises `Refused` for one that the model cannot take."""
        if self.kind == "sudoku":
            return puzzle_row(settings.prompt)
        if self.kind == "molecules":
            return scaffold_row(self.pipe, settings.prompt, self.longest)
        return text_row(self.pipe, settings, self.longest)

    def write(self, settings: Settings) -> Iterator[tuple[str, str]]:
        """Writes a run: HTML of what there is yet, a few times a second; at last all of it.

        Yields:
            HTML, and the text, `""` until it is finished.
        Raises:
            Refused: settings that the page would not send, or a prompt that the model cannot take.
        """
        settings = check(settings, self.longest)
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
            note = _verdict(state.tokens)
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


def _verdict(cells: list[str]) -> str:
    """Whether a finished grid is a solution; a cell without a digit is wrong."""
    units = ([*compress(cells, unit)] for unit in sudoku.UNITS.tolist())
    wrong = sum(set(unit) != set("123456789") for unit in units)
    if not wrong:
        return "Solved."
    return f"Not solved: {wrong} of 27 rows, columns and boxes are wrong."


def _drawing(tokens: list[str], order: list[int]) -> str:
    if find_spec("rdkit") is None:
        return (
            '<p class="note">The drawing needs RDKit: pip install &#x27;hf-lomdm[molecules]&#x27;'
            "</p>"
        )
    return (
        molecule_svg(tokens, order)
        or '<p class="note">This text is no molecule, so there is nothing to draw.</p>'
    )
