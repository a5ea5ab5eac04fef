"""What a visitor of the Space may ask for, and prompts as rows of token ids."""

import re
from dataclasses import dataclass, replace
from typing import Any

from hf_lomdm.data import sudoku
from hf_lomdm.data.molecules import smiles_template
from hf_lomdm.modeling.settings_lomdm import SAMPLERS
from hf_lomdm.pipelines import LoMDMPipeline
from hf_lomdm.pipelines.prompts_lomdm import encode

LONGEST, MOST_STEPS, PROMPT_CHARACTERS = 1024, 1024, 4000
LARGEST_SEED, HOTTEST = 2**53, 2.0  # numbers of a browser are exact up to that seed
# Token ids of a prompt, `None` = none, and the ids that are allowed at positions, `None` = all.
Row = tuple[list[int] | None, dict[int, list[int]] | None]


class Refused(ValueError):
    """What a visitor asked for cannot be written; says why in the words of the page."""


@dataclass(frozen=True)
class Settings:
    """The fields of the page, as they were sent: of any type until `check` has seen them."""

    prompt: Any
    steps: Any
    length: Any
    sampler: Any
    temperature: Any = 1.0
    seed: Any = 0


def check(settings: Settings, longest: int) -> Settings:
    """The settings with whole numbers as such, for a model of `longest` tokens.

    Raises:
        Refused: settings that the page would not send, before any work on them.
    """
    prompt = "" if settings.prompt is None else settings.prompt
    if not isinstance(prompt, str) or len(prompt) > PROMPT_CHARACTERS:
        raise Refused(f"Prompt must be a text of at most {PROMPT_CHARACTERS} characters.")
    if settings.sampler not in SAMPLERS:
        raise Refused("Order must be one of those in the list.")
    if not _between(settings.temperature, 0, HOTTEST):
        raise Refused(f"Temperature must be a number from 0 to {HOTTEST:g}.")
    ranges = {
        "Steps": (settings.steps, 1, MOST_STEPS),
        "Length": (settings.length, 1, longest),
        "Seed": (0 if settings.seed is None else settings.seed, 0, LARGEST_SEED),
    }
    for name, (value, least, most) in ranges.items():
        if not _between(value, least, most) or value != int(value):
            raise Refused(f"{name} must be a whole number from {least} to {most}.")
    steps, length, seed = (int(value) for value, *_ in ranges.values())
    return replace(settings, prompt=prompt, steps=steps, length=length, seed=seed)


def _between(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most  # NaN is in no range


def text_row(pipe: LoMDMPipeline, settings: Settings, longest: int) -> Row:
    """A prefix or a template of a text.

    Raises:
        Refused: it is longer than the model or the settings allow, or the tokenizer does not know
            some of it.
    """
    if not settings.prompt:
        return None, None
    config = pipe.model.config
    try:
        ids = encode(config, pipe.tokenizer, settings.prompt)[0]
    except ValueError as error:
        raise Refused(str(error)) from error
    if config.mask_token_id in ids:
        most, where, remedy = longest, "the model takes", ""
    else:
        most, remedy = settings.length - 1, ", or raise Length"
        where = f"Length {settings.length} leaves room for"
    if len(ids) > most:
        raise Refused(
            f"The prompt has {len(ids)} tokens, and {where} {most}. Shorten the prompt{remedy}."
        )
    return ids, None


def puzzle_row(prompt: str) -> Row:
    """A Sudoku, its empty cells to be filled in.

    Raises:
        Refused: it is none, or has no empty cell.
    """
    cells = "".join(prompt.split())
    if wrong := sorted(set(cells) - set("0123456789.")):
        raise Refused(f"A cell is a digit or a dot, and the prompt has {wrong[0]!r}.")
    if len(cells) != sudoku.CELLS:
        raise Refused(f"A puzzle has {sudoku.CELLS} cells, and the prompt has {len(cells)}.")
    row = [digit or sudoku.MASK for digit in sudoku.encode(cells)]
    if sudoku.MASK not in row:
        raise Refused("No cell is empty. Put dots where the model shall write.")
    return row, None


def scaffold_row(pipe: LoMDMPipeline, prompt: str, longest: int) -> Row:
    """A SMILES with windows that are filled in, or one that is continued.

    Raises:
        Refused: it is too long, or has characters that the model does not know.
    """
    if not prompt:
        return None, None
    tokenizer = pipe.tokenizer
    mask = tokenizer.mask_token
    pieces = re.split(f"((?:{re.escape(mask)})+)", prompt) if mask else [prompt]
    has_windows = len(pieces) > 1
    parts = [len(p) // len(mask) if has_windows and p.startswith(mask) else p for p in pieces if p]
    known = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    written = [letter for part in parts if isinstance(part, str) for letter in part]
    if unknown := sorted(set(written) - known):
        raise Refused(f"The model does not know the character {unknown[0]!r}.")
    count = len(written) + sum(part for part in parts if isinstance(part, int))
    most = longest if has_windows else longest - 1
    if count > most:
        raise Refused(f"The prompt has {count} characters, and the model takes {most}. Shorten it.")
    row, allowed = smiles_template(parts, tokenizer, longest, ends=has_windows)
    return row, allowed or None
