"""What the measures of molecules need to know of each, by RDKit (extra `molecules`).

RDKit is imported where it is used: everything else works without it.
"""

import csv
import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

FINGERPRINT_BITS, FINGERPRINT_RADIUS = 1024, 2
# Fewer rings make no scaffold worth counting; larger rings and other elements fail the filters.
SCAFFOLD_RINGS, LARGEST_RING = 2, 7
ELEMENTS = frozenset(("C", "N", "S", "O", "F", "Cl", "Br", "H"))
# The medicinal-chemistry filters of MOSES (Polykovskiy et al. 2020), as SMARTS.
MEDICINAL_FILTERS = (
    "[#6]=&!@[#6]-[#6]#[#7]",
    "[#6]=&!@[#6]-[#16](=[#8])=[#8]",
    "[#6]=&!@[#6&!H0]-&!@[#6](=[#8])-&!@[#7]",
    "[H]C([H])([#6])[F,Cl,Br,I]",
    "[#6]1-[#8]-[#6]-1",
    "[#6]-[#7]=[#6]=[#8]",
    "[#6&!H0]=[#8]",
    "[#6](=&!@[#7&!H0])-&!@[#6,#7,#8,#16]",
    "[#6]1-[#7]-[#6]-1",
    "[#6]~&!@[#7]~&!@[#7]~&!@[#6]",
    "[#7]=&!@[#7]",
    "[H][#6]-1=[#6]([H])-[#6]=[#6](-*)-[#8]-1",
    "[H][#6]-1=[#6]([H])-[#6]=[#6](-*)-[#16]-1",
    "[#17,#35,#53]-c(:*):[!#1!#6]:*",
    "[H][#7]([H])-[#6]-1=[#6]-[#6]=[#6]-[#6]=[#6]-1",
    "[#16]~[#16]",
    "[#7]~&!@[#7]~&!@[#7]",
    "[#7]-&!@[#6&!H0&!H1]-&!@[#7]",
    "[#6&!H0](-&!@[#8])-&!@[#8]",
    "[#35].[#35].[#35]",
    "[#17].[#17].[#17].[#17]",
    "[#9].[#9].[#9].[#9].[#9].[#9].[#9]",
)


@dataclass(frozen=True)
class Molecule:
    """One valid molecule.

    Attributes:
        smiles: canonical. fingerprint: Morgan, radius 2, 1,024 bits, as hexadecimal digits.
        fragments: SMILES of its BRICS fragments. scaffold: SMILES of its Bemis-Murcko scaffold,
            `None` with fewer than two rings.
        log_p: Crippen's estimate. sa: synthetic accessibility, 1 (easy) to 10. qed: drug-likeness,
            0 to 1. weight: in daltons.
        passes_filters: whether no filter of MOSES speaks against it; `None` = not asked.
    """

    smiles: str
    fingerprint: str
    fragments: list[str]
    scaffold: str | None
    log_p: float
    sa: float
    qed: float
    weight: float
    passes_filters: bool | None


def require_rdkit() -> None:
    """Raises `ValueError` where RDKit is not installed."""
    if importlib.util.find_spec("rdkit") is None:
        raise ValueError(
            "molecules are read by RDKit, which is not installed. Run pip install "
            "'hf-lomdm[molecules]'."
        )


def parse(smiles: str) -> Any:
    """The molecule of RDKit, `None` where `smiles` is none: empty, broken or impossible."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():  # what is wrong with each would fill the screen
        return Chem.MolFromSmiles(smiles) if smiles and not smiles.isspace() else None


def canonical(smiles: str) -> str | None:
    """The canonical SMILES; `None` where `smiles` is no molecule."""
    from rdkit import Chem

    molecule = parse(smiles)
    return None if molecule is None else Chem.MolToSmiles(molecule)


def describe(smiles: str, filters: bool = True) -> Molecule | None:
    """All that is measured of a molecule; `None` where `smiles` is none.

    Args:
        filters: ask the filters too, which takes half of the time.
    """
    from rdkit import Chem
    from rdkit.Chem import QED, Crippen, Descriptors

    molecule = parse(smiles)
    if molecule is None:
        return None
    return Molecule(
        smiles=Chem.MolToSmiles(molecule),
        fingerprint=_fingerprint(molecule),
        fragments=fragments(molecule),
        scaffold=scaffold(molecule),
        log_p=Crippen.MolLogP(molecule),
        sa=_sa_score().calculateScore(molecule),
        qed=QED.qed(molecule),
        weight=Descriptors.MolWt(molecule),
        passes_filters=passes_filters(molecule) if filters else None,
    )


def _fingerprint(molecule: Any) -> str:
    from rdkit import DataStructs

    bits = _fingerprint_generator().GetFingerprint(molecule)
    return DataStructs.BitVectToBinaryText(bits).hex()


def fragments(molecule: Any) -> list[str]:
    """SMILES of the fragments that breaking all BRICS bonds leaves."""
    from rdkit import Chem
    from rdkit.Chem import BRICS

    return Chem.MolToSmiles(BRICS.BreakBRICSBonds(molecule)).split(".")


def scaffold(molecule: Any) -> str | None:
    """SMILES of the Bemis-Murcko scaffold; `None` with fewer than two rings."""
    from rdkit import Chem
    from rdkit.Chem.Scaffolds import MurckoScaffold

    if molecule.GetRingInfo().NumRings() < SCAFFOLD_RINGS:
        return None
    return Chem.MolToSmiles(MurckoScaffold.GetScaffoldForMol(molecule)) or None


def passes_filters(molecule: Any) -> bool:
    """Whether rings, charges, elements and all patterns of MOSES's filters let it pass."""
    from rdkit import Chem

    if any(len(ring) > LARGEST_RING for ring in molecule.GetRingInfo().AtomRings()):
        return False
    atoms = list(molecule.GetAtoms())
    if any(atom.GetFormalCharge() or atom.GetSymbol() not in ELEMENTS for atom in atoms):
        return False
    whole = Chem.AddHs(molecule)  # patterns name hydrogens
    return not any(whole.HasSubstructMatch(pattern) for pattern in _filters())


@functools.cache
def _filters() -> list[Any]:
    """The patterns of the medicinal-chemistry filters and of PAINS, which come with RDKit."""
    from rdkit import Chem, RDConfig

    path = Path(RDConfig.RDDataDir, "Pains", "wehi_pains.csv")
    with path.open(encoding="utf-8", newline="") as file:
        pains = [row[0].strip() for row in csv.reader(file) if row]
    return [Chem.MolFromSmarts(pattern) for pattern in (*MEDICINAL_FILTERS, *pains)]


@functools.cache
def _fingerprint_generator() -> Any:
    from rdkit.Chem import rdFingerprintGenerator

    return rdFingerprintGenerator.GetMorganGenerator(FINGERPRINT_RADIUS, fpSize=FINGERPRINT_BITS)


@functools.cache
def _sa_score() -> ModuleType:
    """The synthetic accessibility score, a script that RDKit ships beside its modules."""
    from rdkit import RDConfig

    path = Path(RDConfig.RDContribDir, "SA_Score", "sascorer.py")
    return _load_script(path)


def _load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
