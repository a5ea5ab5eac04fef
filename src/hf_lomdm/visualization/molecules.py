"""Molecules as pictures in which the colour of each atom tells when it was revealed, by RDKit."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..evaluation.molecule_descriptors import parse, require_rdkit
from ..evaluation.records import write_file
from .colours import COLOURS, channels, colour_index

# The atoms of SMILES: whatever stands in brackets, two letters, one letter, or a dummy.
ATOMS = re.compile(r"\[[^\]]*\]|Cl|Br|[A-Za-z*]")
GIVEN_COLOUR = "#cccccc"
ACROSS, WIDTH, HEIGHT = 3, 320, 260  # molecules in a row; pixels of one
BOND, RING = 34, 0.36  # the longest bond in pixels; radius of the ring of an atom, in bonds


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
    """Draws the molecules among some texts: a ring around each atom tells its time.

    Dark blue early, yellow late, grey given.

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
    canvas = _canvas(len(drawn), Path(path).suffix == ".svg")
    for number, (molecule, index) in enumerate(drawn):
        canvas.SetOffset(number % ACROSS * WIDTH, number // ACROSS * HEIGHT)
        _draw(canvas, molecule, atom_steps(tokens[index], order[index]), texts[index])
    canvas.FinishDrawing()
    picture = canvas.GetDrawingText()
    write_file(path, picture.encode() if isinstance(picture, str) else picture)
    return len(drawn)


def _canvas(count: int, is_svg: bool) -> Any:
    from rdkit.Chem.Draw import rdMolDraw2D

    across = min(ACROSS, count)
    kind = rdMolDraw2D.MolDraw2DSVG if is_svg else rdMolDraw2D.MolDraw2DCairo
    canvas = kind(across * WIDTH, -(-count // across) * HEIGHT, WIDTH, HEIGHT)
    options = canvas.drawOptions()
    options.useBWAtomPalette()  # the colours tell the order, not the elements
    options.legendFontSize, options.fixedBondLength = 12, BOND
    # rings: letters on a dark ground could not be read
    options.fillHighlights, options.atomHighlightsAreCircles = False, True
    options.highlightRadius, options.highlightBondWidthMultiplier = RING, 8
    options.scaleBondWidth = False
    return canvas


def _draw(canvas: Any, molecule: Any, steps: list[int], legend: str) -> None:
    """Draws a molecule, the ring of each atom coloured by the place of its step among all."""
    revealed = [step for step in steps if step >= 0] or [0]
    first, last = min(revealed), max(revealed)
    colours = [
        GIVEN_COLOUR if step < 0 else COLOURS[colour_index(step, first, last)] for step in steps
    ]
    rings = {
        atom: [tuple(channel / 255 for channel in channels(colour))]
        for atom, colour in enumerate(colours)
    }
    canvas.DrawMoleculeWithHighlights(molecule, legend, rings, {}, {}, {})
