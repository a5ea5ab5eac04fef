"""Molecules written in random orders of their atoms: more text of the same molecules to train on.

python studies/moses/randomise.py moses.train.txt moses.random.txt --copies 5 --seed 0
"""

import argparse
import random
from pathlib import Path

from tqdm.auto import tqdm

from hf_lomdm.cli.errors import user_errors
from hf_lomdm.cli.option_types import nonempty, whole
from hf_lomdm.evaluation.molecule_descriptors import parse, require_rdkit
from hf_lomdm.evaluation.molecule_reference import read_smiles


def randomised(smiles: str, copies: int, numbers: random.Random) -> list[str]:
    """`copies` ways to write a molecule, in orders of its atoms drawn by `numbers`.

    Raises:
        ValueError: no molecule.
    """
    from rdkit import Chem

    molecule = parse(smiles)
    if molecule is None:
        raise ValueError(f"{smiles!r} is no molecule. Take it out of the file.")
    order, written = list(range(molecule.GetNumAtoms())), []
    for _ in range(copies):
        numbers.shuffle(order)
        shuffled = Chem.RenumberAtoms(molecule, order)
        written.append(Chem.MolToSmiles(shuffled, canonical=False))
    return written


@user_errors()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=nonempty, help="SMILES, as for evaluate.py molecules")
    parser.add_argument("output", type=nonempty, help="a .txt file, one SMILES a line")
    parser.add_argument("--copies", type=whole(1), default=1, help="ways to write each molecule")
    parser.add_argument("--seed", type=whole(0), default=0)
    options = parser.parse_args()
    require_rdkit()
    numbers, longest = random.Random(options.seed), 0
    unfinished = Path(f"{options.output}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        for smiles in tqdm(read_smiles(options.file), unit=" molecules"):
            for text in randomised(smiles, options.copies, numbers):
                longest = max(longest, len(text))
                file.write(f"{text}\n")
    unfinished.replace(options.output)
    print(f"{options.output}: at most {longest} characters. Train with max_length {longest + 1}.")


if __name__ == "__main__":
    main()
