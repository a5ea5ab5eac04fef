"""Molecules as pictures in which the colour of each atom tells when it was revealed, by RDKit."""

import os
import re
from collections.abc import Sequence
from typing import Any

from ..evaluation.molecule_descriptors import parse, require_rdkit
from ..evaluation.records import write_file
from .picture import light
from .terminal import COLOURS

# The atoms of SMILES: whatever stands in brackets, two letters, one letter, or a dummy.
ATOMS = re.compile(r"\[[^\]]*\]|Cl|Br|[A-Za-z*]")
GIVEN_COLOUR = (0.91, 0.91, 0.91)
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


def write_molecules_svg(
    path: str | os.PathLike, tokens: Sequence[Sequence[str]], order: Sequence[Sequence[int]]
) -> int:
    """Draws the molecules among some texts: early atoms blue, late ones red, given ones grey.

    Args:
        path: file to write, SVG. tokens, order: of each text, as in `atom_steps`.
    Returns:
        How many of them are molecules and were drawn.
    Raises:
        ValueError: none of them is, or RDKit is missing.
    """
    require_rdkit()
    texts = ["".join(one) for one in tokens]
    drawn = [(one, index) for index, text in enumerate(texts) if (one := parse(text)) is not None]
    if not drawn:
        raise ValueError(
            f"none of {len(texts)} texts is a molecule, the first is {texts[0][:60]!r}. Write more "
            "(num_return_sequences)."
        )
    molecules = [molecule for molecule, _ in drawn]
    colours = [_colours(atom_steps(tokens[index], order[index])) for _, index in drawn]
    write_file(path, _draw(molecules, colours, [texts[index] for _, index in drawn]).encode())
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


def _draw(molecules: list[Any], colours: list[dict[int, Any]], legends: list[str]) -> str:
    from rdkit.Chem.Draw import rdMolDraw2D

    across = min(ACROSS, len(molecules))
    down = -(-len(molecules) // across)
    canvas = rdMolDraw2D.MolDraw2DSVG(across * WIDTH, down * HEIGHT, WIDTH, HEIGHT)
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
    return canvas.GetDrawingText()
