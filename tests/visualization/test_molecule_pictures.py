"""Molecules as pictures: which step colours which atom."""

import re

import pytest

from hf_lomdm.visualization.molecules import ACROSS, atom_steps, molecule_svg, write_molecules


def test_an_atom_is_there_when_all_its_characters_are():
    tokens = list("CCl(c1[nH]2)Br")
    order = [3, 9, 2, 0, 5, 1, 4, 6, 8, 7, 11, 10, -1, -1]
    assert atom_steps(tokens, order) == [3, 9, 5, 8, -1]
    assert atom_steps(["CC", "[nH]", "Cl"], [4, -1, 2]) == [4, 4, -1, 2]
    with pytest.raises(ValueError, match="same length, got 2 and 1"):
        atom_steps(["C", "C"], [1])


def test_molecules_are_drawn_and_other_texts_left_out(tmp_path):
    pytest.importorskip("rdkit")
    texts = ["c1ccccc1", "C(", "CCO", "C[NH3+]", "CCCl"]
    order = [list(range(len(text))) for text in texts]
    order[2] = [-1, -1, 0]
    path = tmp_path / "molecules.svg"
    assert write_molecules(path, [list(text) for text in texts], order) == 4
    picture = path.read_text()
    assert picture.lstrip().startswith("<?xml") and f"width='{ACROSS * 320}px'" in picture
    assert "#CCCCCC" in picture  # of the given atoms
    assert "stroke:#00224E" in picture and "stroke:#FEE838" in picture  # first and last, cividis
    lone = tmp_path / "one.svg"
    write_molecules(lone, [["C", "C"]], [[0, 1]])
    assert "width='320px'" in lone.read_text()


def test_texts_without_a_molecule_are_refused(tmp_path):
    pytest.importorskip("rdkit")
    with pytest.raises(ValueError, match="none of 1 texts is a molecule, the first is 'C\\('"):
        write_molecules(tmp_path / "none.svg", [["C", "("]], [[0, 1]])
    with pytest.raises(ValueError, match="none.pdf must end in .svg or .png"):
        write_molecules(tmp_path / "none.pdf", [["C"]], [[0]])
    assert not any(tmp_path.iterdir())


def test_a_picture_of_pixels_is_a_png(tmp_path):
    pytest.importorskip("rdkit")
    write_molecules(tmp_path / "one.png", [["C", "O"]], [[0, 1]])
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_a_molecule_for_a_page_times_its_revealed_atoms_and_has_no_styles(tmp_path):
    pytest.importorskip("rdkit")
    svg = molecule_svg(list("c1ccccc1CO"), [*[-1] * 8, 1, 3])
    assert re.findall(r'class=\'atom-(\d)\' data-step="(\d)"', svg) == [("6", "1"), ("7", "3")]
    assert svg.startswith("<svg") and "style" not in svg and svg.count('stroke="#CCCCCC"') == 6
    assert molecule_svg(["C", "("], [0, 1]) is None


def test_a_written_hydrogen_is_an_atom_with_a_time_of_its_own(tmp_path):
    pytest.importorskip("rdkit")
    svg = molecule_svg(["C", "C", "[H]"], [2, 1, 0])
    assert re.findall(r'data-step="(\d)"', svg) == ["2", "1", "0"]
    assert write_molecules(tmp_path / "one.svg", [["C", "[H]"]], [[0, 1]]) == 1


@pytest.mark.parametrize("text", ["CC ethane", "CC |$a;b$|", "CC\tO"])
def test_what_stands_behind_a_molecule_makes_it_none(tmp_path, text):
    texts = [list("CCO"), list(text)]
    order = [list(range(len(tokens))) for tokens in texts]
    assert write_molecules(tmp_path / "one.svg", texts, order) == 1
    assert molecule_svg(texts[1], order[1]) is None
