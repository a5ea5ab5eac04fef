r"""Scaffolds that training lacks, decorated: what only a model that fills in templates can do.

    python studies/moses/decorate.py --model checkpoints/lomdm-moses --num_scaffolds 200 \
        --file moses.test_scaffolds.txt --train_file moses.train.txt --num_samples 100

A scaffold is a Bemis-Murcko scaffold of a molecule of `--file`. For each sample one to three of its
atoms that have a hydrogen are drawn, and a window of 1 to 8 characters takes the place of the
hydrogen of each: a window at the start or the end of the SMILES, or a branch. Everything else is
given. Measured: valid, still containing the scaffold, distinct among these, not in training.
"""

import argparse
import random
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_lomdm import LoMDMPipeline
from hf_lomdm.cli.errors import loading, user_errors
from hf_lomdm.cli.option_types import nonempty, whole
from hf_lomdm.data.draws import step_generators
from hf_lomdm.data.molecules import smiles_template
from hf_lomdm.evaluation.molecule_descriptors import canonical, parse, require_rdkit, scaffold
from hf_lomdm.evaluation.molecule_reference import hashes, known_molecules, read_smiles
from hf_lomdm.evaluation.records import environment, write_record
from hf_lomdm.visualization.molecules import write_molecules

MOST_WINDOWS, LONGEST_WINDOW = 3, 8
MOST_DRAWN = 24


def make_parser(description: str | None, output: str) -> argparse.ArgumentParser:
    """The options of whatever decorates scaffolds."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=nonempty, required=True)
    parser.add_argument("--file", type=nonempty, required=True, help="molecules with the scaffolds")
    parser.add_argument("--train_file", type=nonempty, help="what is not new")
    parser.add_argument("--num_scaffolds", type=whole(1), default=200)
    parser.add_argument("--num_samples", type=whole(1), default=100, help="for each")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--output", type=nonempty, default=output)
    return parser


def parse_options() -> argparse.Namespace:
    parser = make_parser(__doc__, "outputs/studies/decorate.json")
    parser.add_argument("--batch_size", type=whole(1), default=64)
    parser.add_argument("--num_inference_steps", type=whole(1), default=24)
    parser.add_argument("--sampler")
    parser.add_argument("--picture", type=nonempty, help="draw the first ones to this file")
    return parser.parse_args()


@user_errors()
def main() -> None:
    options = parse_options()
    require_rdkit()
    with loading("--model", options.model):
        pipe = LoMDMPipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    random_numbers = random.Random(options.seed)
    longest = pipe.model.config.max_position_embeddings
    scaffolds = choose_scaffolds(options, random_numbers, longest - 10)
    tasks = [
        (number, template_of(one, pipe, random_numbers))
        for number, one in enumerate(scaffolds)
        for _ in range(options.num_samples)
    ]
    texts, order = fill_in(pipe, [task for _, task in tasks], options)
    if options.picture:
        write_molecules(options.picture, texts[:MOST_DRAWN], order[:MOST_DRAWN])
    known = known_molecules(options.train_file) if options.train_file else None
    pairs = [(scaffolds[number], text) for (number, _), text in zip(tasks, texts, strict=True)]
    record = {"task": "decorate", "model": options.model, **measure(pairs, known)}
    names = ("num_scaffolds", "num_samples", "num_inference_steps", "sampler")
    record |= {name: getattr(options, name) for name in names}
    write_record(options.output, record | environment("cpu", torch.float32, options.seed))
    print({name: value for name, value in record.items() if name != "examples"})


def choose_scaffolds(options: argparse.Namespace, numbers: random.Random, longest: int) -> list:
    """Different scaffolds of molecules of the file, that leave room for windows."""
    chosen: dict[str, None] = {}
    smiles = read_smiles(options.file)
    numbers.shuffle(smiles)
    for one in smiles:
        molecule = parse(one)
        found = None if molecule is None else scaffold(molecule)
        if found and len(found) <= longest - MOST_WINDOWS * LONGEST_WINDOW // 2:
            chosen[found] = None
        if len(chosen) == options.num_scaffolds:
            break
    return list(chosen)


def template_of(smiles: str, pipe: Any, numbers: random.Random) -> tuple[list[int], dict]:
    """A template with windows for hydrogens of atoms that are drawn."""
    length = pipe.model.config.max_position_embeddings
    while True:
        pieces = with_dummies(smiles, numbers).split("*")
        windows = [numbers.randint(1, LONGEST_WINDOW) for _ in pieces[1:]]
        parts: list[str | int] = [pieces[0]]
        for window, piece in zip(windows, pieces[1:], strict=True):
            parts += [window, piece]
        if sum(map(len, pieces)) + sum(windows) <= length:
            return smiles_template([part for part in parts if part], pipe.tokenizer, length)


def with_dummies(smiles: str, numbers: random.Random) -> str:
    """The SMILES with dummy atoms, written `*`, in place of one to three hydrogens."""
    from rdkit import Chem

    molecule = Chem.RWMol(parse(smiles))
    free = [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetTotalNumHs()]
    for index in numbers.sample(free, min(len(free), numbers.randint(1, MOST_WINDOWS))):
        atom = molecule.GetAtomWithIdx(index)
        atom.SetNumExplicitHs(max(0, atom.GetNumExplicitHs() - 1))  # of [nH]
        molecule.AddBond(index, molecule.AddAtom(Chem.Atom(0)), Chem.BondType.SINGLE)
    Chem.SanitizeMol(molecule)
    return Chem.MolToSmiles(molecule)


def fill_in(
    pipe: Any, templates: list, options: argparse.Namespace
) -> tuple[list[str], list[list[int]]]:
    """The texts of the templates, and the step of reveal of each of their characters."""
    texts: list[str] = []
    order: list[list[int]] = []
    with tqdm(total=len(templates), unit="text") as bar:
        for start in range(0, len(templates), options.batch_size):
            batch = templates[start : start + options.batch_size]
            out = pipe(
                [row for row, _ in batch],
                allowed_tokens=[allowed for _, allowed in batch],
                num_inference_steps=options.num_inference_steps,
                sampler=options.sampler,
                generator=step_generators(options.seed, 0, range(start, start + len(batch))),
            )
            texts += out.texts
            rows = zip(out.texts, out.order.tolist(), strict=True)
            order += [row[: len(text)] for text, row in rows]
            bar.update(len(batch))
    return texts, order


def measure(pairs: list[tuple[str, str]], known: np.ndarray | None) -> dict[str, Any]:
    """Shares of the samples, with errors over scaffolds."""
    scaffolds = sorted({scaffold for scaffold, _ in pairs})
    rows = []
    for one in scaffolds:
        names = [canonical(text) for scaffold, text in pairs if scaffold == one]
        valid = [name for name in names if name is not None]
        kept = [name for name in valid if parse(name).HasSubstructMatch(parse(one))]
        distinct = sorted(set(kept))
        new = None
        if known is not None:
            new = int((~np.isin(hashes(distinct), known)).sum()) if distinct else 0
        rows.append((len(names), len(valid), len(kept), len(distinct), new))
    table = np.array([[value or 0 for value in row] for row in rows], dtype=float)
    found: dict[str, Any] = {"scaffolds": len(scaffolds), "n": int(table[:, 0].sum())}
    ratios = {"valid": (1, 0), "kept": (2, 0), "distinct": (3, 0), "novel": (4, 3)}
    for name, (top, bottom) in ratios.items():
        if name != "novel" or known is not None:
            found[name] = ratio(table[:, top], table[:, bottom])
    found["with_one"] = float((table[:, 3] > 0).mean())
    return found | {"examples": pairs[:: max(1, len(pairs) // 24)]}


def ratio(top: np.ndarray, bottom: np.ndarray) -> dict[str, float]:
    """A ratio of sums over scaffolds with its standard error."""
    value = top.sum() / max(bottom.sum(), 1)
    spread = np.square(top - value * bottom).sum() * len(top) / max(len(top) - 1, 1)
    return {"value": float(value), "standard_error": float(np.sqrt(spread) / max(bottom.sum(), 1))}


if __name__ == "__main__":
    main()
