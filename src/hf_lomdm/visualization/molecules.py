"""Molecules as pictures in which the colour of each atom tells when it was revealed, by RDKit."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..evaluation.molecule_descriptors import parse, require_rdkit
from ..evaluation.records import write_file
from .picture import light
from .terminal import COLOURS

# The atoms of SMILES: whatever stands in brackets, two letters, one letter, or a dummy.
ATOMS = re.compile(r"\[[^\]]*\]|Cl|Br|[A-Za-z*]")
GIVEN_COLOUR = (0.8, 0.8, 0.8)
ACROSS, WIDTH, HEIGHT = 3, 320, 260  # molecules in a row; pixels of one


def atom_steps(tokens: Sequence[str], order: Sequence[int]) -> list[int]:
    """The step in which each atom was complete, in the order of the SMILES; -1 = given.

    Args:
        tokens: text of each token, joined the SMILES. order: step of reveal of each; -1 = given.
    Raises:
        ValueError: they differ in length.
    """
    if len(tokens) != len(order):
        raise ValueError(
            f"tokens and order must have the same length, got {len(tokens)} and {len(order)}."
        )
    steps = [step for token, step in zip(tokens, order, strict=True) for _ in token]
    return [max(steps[slice(*atom.span())]) for atom in ATOMS.finditer("".join(tokens))]


def write_molecules(
    path: str | os.PathLike, tokens: Sequence[Sequence[str]], order: Sequence[Sequence[int]]
) -> int:
    """Draws the molecules among some texts: early atoms blue, late ones red, given ones grey.

    Args:
        path: file to write, .svg or .png. tokens, order: of each text, as in `atom_steps`.
    Returns:
        How many of them are molecules and were drawn.
    Raises:
        ValueError: none of them is, another kind of file, or RDKit is missing.
    """
    require_rdkit()
    if Path(path).suffix not in (".svg", ".png"):
        raise ValueError(f"{path} must end in .svg or .png. For example: molecules.svg.")
    texts = ["".join(one) for one in tokens]
    drawn = [(one, index) for index, text in enumerate(texts) if (one := parse(text)) is not None]
    if not drawn:
        raise ValueError(
            f"none of {len(texts)} texts is a molecule, the first is {texts[0][:60]!r}. Write more "
            "(num_return_sequences)."
        )
    molecules = [molecule for molecule, _ in drawn]
    colours = [_colours(atom_steps(tokens[index], order[index])) for _, index in drawn]
    canvas = _canvas(len(drawn), Path(path).suffix == ".svg")
    _draw(canvas, molecules, colours, [texts[index] for _, index in drawn])
    picture = canvas.GetDrawingText()
    write_file(path, picture.encode() if isinstance(picture, str) else picture)
    return len(drawn)


def _colours(steps: list[int]) -> dict[int, tuple[float, ...]]:
    """The colour of each atom by the place of its step between the first and the last one."""
    revealed = [step for step in steps if step >= 0] or [0]
    first, last = min(revealed), max(revealed)
    places = [(step - first) / max(1, last - first) for step in steps]
    return {
        atom: GIVEN_COLOUR if step < 0 else light(COLOURS[round(place * (len(COLOURS) - 1))])
        for atom, (step, place) in enumerate(zip(steps, places, strict=True))
    }


def _canvas(count: int, is_svg: bool) -> Any:
    from rdkit.Chem.Draw import rdMolDraw2D

    across = min(ACROSS, count)
    kind = rdMolDraw2D.MolDraw2DSVG if is_svg else rdMolDraw2D.MolDraw2DCairo
    return kind(across * WIDTH, -(-count // across) * HEIGHT, WIDTH, HEIGHT)


def _draw(
    canvas: Any, molecules: list[Any], colours: list[dict[int, Any]], legends: list[str]
) -> None:
    canvas.drawOptions().useBWAtomPalette()  # the colours tell the order, not the elements
    canvas.drawOptions().legendFontSize = 12
    canvas.DrawMolecules(
        molecules,
        legends=legends,
        highlightAtoms=[list(one) for one in colours],
        highlightAtomColors=colours,
        highlightBonds=[[]] * len(molecules),
    )
    canvas.FinishDrawing()
