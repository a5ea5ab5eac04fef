"""Sets of molecules to compare with: what is known of a file of SMILES, computed once and kept."""

import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from tqdm.auto import tqdm

from ..data.text import documents, load_files
from .chemnet import activations, moments
from .molecule_descriptors import Molecule, canonical, describe
from .records import write_file

COLUMNS = ("SMILES", "smiles", "text")  # of a file that has columns, the first that is there
PROPERTIES = ("log_p", "sa", "qed", "weight")
# Part of the name of a cached file: raise it when the same molecules come to mean other numbers.
VERSION = 1


@dataclass(frozen=True)
class Reference:
    """Statistics of a set of `N` molecules.

    Attributes:
        fingerprints: `[N, 128]` uint8, packed bits. properties: `[N, 4]`, as in `PROPERTIES`.
        fragments, scaffolds: how often each occurs.
        chemnet: mean `[512]` and covariance `[512, 512]` of ChemNet's activations, or `None`.
    """

    fingerprints: np.ndarray
    properties: np.ndarray
    fragments: Counter
    scaffolds: Counter
    chemnet: tuple[np.ndarray, np.ndarray] | None

    def save(self, path: str | Path) -> None:
        """Writes a .npz file of plain arrays."""
        arrays = {"fingerprints": self.fingerprints, "properties": self.properties}
        for name, counts in (("fragments", self.fragments), ("scaffolds", self.scaffolds)):
            # utf-8 lines: an array of strings would be as wide as its longest one everywhere
            arrays[name] = np.frombuffer("\n".join(counts).encode(), dtype=np.uint8)
            arrays[f"{name}_counts"] = np.fromiter(counts.values(), dtype=np.int64)
        if self.chemnet is not None:
            arrays |= dict(zip(("mean", "covariance"), self.chemnet, strict=True))
        stream = io.BytesIO()
        np.savez_compressed(stream, **arrays)
        write_file(path, stream.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        """Reads the file of `save`.

        Raises:
            ValueError: it is none.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            counters = [
                Counter(
                    dict(
                        zip(
                            arrays[name].tobytes().decode().split("\n"),
                            arrays[f"{name}_counts"].tolist(),
                            strict=False,  # no line is one empty string
                        )
                    )
                )
                for name in ("fragments", "scaffolds")
            ]
            own = arrays["fingerprints"], arrays["properties"], *counters
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} holds no statistics of molecules: {error}. Pass a file of SMILES, or what "
                "Reference.save wrote."
            ) from error
        known = "mean" in arrays
        return cls(*own, (arrays["mean"], arrays["covariance"]) if known else None)


def read_smiles(path: str | Path) -> list[str]:
    """The SMILES of a file, one a line of a .txt, else its column SMILES, smiles or text.

    Raises:
        ValueError: a file that cannot be read or holds none.
    """
    lines = [text.strip() for text in documents(load_files(path, "line", COLUMNS))]
    if not lines:
        raise ValueError(f"{path} holds no SMILES. Put one a line into it, or check the path.")
    return lines


def reference_of(path: str | Path, fcd: bool = True, progress: bool = True) -> Reference:
    """The statistics of a file of SMILES, or of a .npz file; kept in the cache of `datasets`.

    Args:
        fcd: read the molecules by ChemNet too.
    Raises:
        ValueError: as `read_smiles` and `Reference.load`; a line that is no molecule; statistics
            without ChemNet's although `fcd`.
    """
    if Path(path).suffix == ".npz":
        reference = Reference.load(path)
        if fcd and reference.chemnet is None:
            raise ValueError(
                f"{path} knows nothing of ChemNet. Pass the file of SMILES, or --no_fcd."
            )
        return reference
    smiles = read_smiles(path)
    kept = _cache_file("reference", (smiles, fcd))
    if not kept.is_file():
        described = describe_known(smiles, path, progress)
        summarise(described, fcd, progress).save(kept)
    return Reference.load(kept)


def describe_known(smiles: Sequence[str], path: str | Path, progress: bool) -> list[Molecule]:
    """The molecules of a file, all of them valid."""
    found = []
    for number, one in enumerate(tqdm(smiles, disable=not progress, desc=Path(path).name), start=1):
        molecule = describe(one, filters=False)
        if molecule is None:
            raise _no_molecule(path, number, one)
        found.append(molecule)
    return found


def _no_molecule(path: str | Path, number: int, smiles: str) -> ValueError:
    return ValueError(
        f"{path}, molecule {number}: RDKit reads no molecule in {smiles[:60]!r}. Mend it, or take "
        "it out."
    )


def summarise(molecules: Sequence[Molecule], fcd: bool, progress: bool = True) -> Reference:
    """The statistics of molecules; at least two."""
    if len(molecules) < 2:
        raise ValueError(f"a set of molecules needs at least 2, got {len(molecules)}. Pass more.")
    chemnet = None
    if fcd:
        chemnet = moments(activations([one.smiles for one in molecules], progress=progress))
    return Reference(
        fingerprints=packed(molecules),
        properties=properties(molecules),
        fragments=Counter(name for one in molecules for name in one.fragments),
        scaffolds=Counter(one.scaffold for one in molecules if one.scaffold),
        chemnet=chemnet,
    )


def packed(molecules: Sequence[Molecule]) -> np.ndarray:
    """Fingerprints `[N, 128]` uint8."""
    whole = b"".join(bytes.fromhex(one.fingerprint) for one in molecules)
    return np.frombuffer(whole, dtype=np.uint8).reshape(len(molecules), -1)


def properties(molecules: Sequence[Molecule]) -> np.ndarray:
    """`[N, 4]` float64, as in `PROPERTIES`."""
    return np.array([[getattr(one, name) for name in PROPERTIES] for one in molecules])


def known_molecules(path: str | Path, progress: bool = True) -> np.ndarray:
    """Hashes `[N]` uint64, sorted, of the canonical SMILES of a file; kept in the cache.

    Raises:
        ValueError: as `read_smiles`; a line that is no molecule.
    """
    smiles = read_smiles(path)
    kept = _cache_file("known", smiles)
    if not kept.is_file():
        names = []
        for number, one in enumerate(tqdm(smiles, disable=not progress, desc=Path(path).name), 1):
            name = canonical(one)
            if name is None:
                raise _no_molecule(path, number, one)
            names.append(name)
        stream = io.BytesIO()
        np.savez_compressed(stream, hashes=np.unique(hashes(names)))
        write_file(kept, stream.getvalue())
    with np.load(kept, allow_pickle=False) as file:
        return file["hashes"]


def hashes(names: Sequence[str]) -> np.ndarray:
    """A number `[N]` uint64 for each name; two names share one once in 1.8e19."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype=np.uint64)


def _cache_file(kind: str, content: object) -> Path:
    """Where what follows from `content` is kept; another RDKit may see molecules differently."""
    from rdkit import rdBase

    key = hashlib.sha256(repr((VERSION, rdBase.rdkitVersion, content)).encode()).hexdigest()[:32]
    return Path(datasets.config.HF_DATASETS_CACHE) / "hf_lomdm" / f"molecules-{kind}-{key}.npz"
