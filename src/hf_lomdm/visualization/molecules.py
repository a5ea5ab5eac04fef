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
STYLES = re.compile("style='([^']*)'")
RINGS = re.compile(r"(<ellipse [^>]*class='atom-(\d+)')")
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
    drawn = [
        (one, index) for index, text in enumerate(texts) if (one := _molecule(text)) is not None
    ]
    if not drawn:
        raise ValueError(
            f"none of {len(texts)} texts is a molecule, the first is {texts[0][:60]!r}. Write more "
            "(num_return_sequences)."
        )
    canvas = _canvas(len(drawn), Path(path).suffix == ".svg")
    for number, (molecule, index) in enumerate(drawn):
        canvas.SetOffset(number % ACROSS * WIDTH, number // ACROSS * HEIGHT)
        steps = atom_steps(tokens[index], order[index])
        _draw(canvas, molecule, steps, max(order[index]), texts[index])
    canvas.FinishDrawing()
    picture = canvas.GetDrawingText()
    write_file(path, picture.encode() if isinstance(picture, str) else picture)
    return len(drawn)


def molecule_svg(tokens: Sequence[str], order: Sequence[int]) -> str | None:
    """A molecule as an SVG element for a page; rings of revealed atoms have `data-step`.

    It has no attribute `style`, which a page with a content security policy would not take.

    Args:
        tokens, order: of one text, as in `atom_steps`.
    Returns:
        `None` if the text is no molecule.
    Raises:
        ValueError: RDKit is missing, or lengths differ.
    """
    require_rdkit()
    molecule = _molecule("".join(tokens))
    if molecule is None:
        return None
    canvas, steps = _canvas(1, is_svg=True), atom_steps(tokens, order)
    _draw(canvas, molecule, steps, max(order))
    canvas.FinishDrawing()
    svg = canvas.GetDrawingText()
    svg = STYLES.sub(lambda style: _attributes(style[1]), svg[svg.index("<svg") :])
    svg = svg.replace("<svg", '<svg role="img" aria-label="the molecule, its atoms in colours"', 1)

    def timed(ring: re.Match) -> str:
        step = steps[int(ring[2])]
        return f'{ring[1]} data-step="{step}"' if step >= 0 else ring[1]

    return RINGS.sub(timed, svg)


def _attributes(style: str) -> str:
    """`fill:none;stroke:#000` as attributes of SVG."""
    pairs = (part.split(":", 1) for part in style.split(";") if ":" in part)
    return " ".join(f'{name.strip()}="{value.strip()}"' for name, value in pairs)


def _molecule(smiles: str) -> Any:
    """The molecule with every atom of the SMILES; `None` where it is none."""
    from rdkit import Chem

    if parse(smiles) is None:
        return None
    parameters = Chem.SmilesParserParams()
    parameters.removeHs = False  # a written [H] is an atom, with a time of its own
    # a name behind a SMILES would be letters without an atom
    parameters.parseName = parameters.allowCXSMILES = False
    return Chem.MolFromSmiles(smiles, parameters)


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


def _draw(canvas: Any, molecule: Any, steps: list[int], last: int, legend: str = "") -> None:
    """Draws a molecule, the ring of each atom in the colour of its step of `last + 1`."""
    colours = [GIVEN_COLOUR if step < 0 else COLOURS[colour_index(step, 0, last)] for step in steps]
    rings = {
        atom: [tuple(channel / 255 for channel in channels(colour))]
        for atom, colour in enumerate(colours)
    }
    canvas.DrawMoleculeWithHighlights(molecule, legend, rings, {}, {}, {})
