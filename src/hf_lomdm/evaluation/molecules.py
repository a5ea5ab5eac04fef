"""Molecules as a domain: how much of what a model writes is valid, new, and like a reference.

The measures are those of MOSES (Polykovskiy et al. 2020, arXiv 1811.12823), written after their
definitions; docs/molecules.md says what each means. Needs the extra `molecules`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..data.rows import cut_documents, fill
from .chemnet import activations, moments
from .corpus import evaluate_corpus, special_tokens
from .molecule_descriptors import Molecule, describe
from .molecule_metrics import cosine, frechet, jackknife, nearest, sums_by_group, wasserstein
from .molecule_reference import PROPERTIES, Reference, hashes, packed, properties
from .parts import PartsFile, values_digest

GROUPS = 10  # draws: sample `i` belongs to draw `i % GROUPS`
UNIQUE_AT = {"unique@1k": 1_000, "unique@10k": 10_000}


def molecule_rows(
    smiles: Sequence[str], tokenizer: PreTrainedTokenizerBase, model: nn.Module
) -> list[dict[str, np.ndarray]]:
    """Rows `input_ids` `[L]` int64, filled up with EOS as in training (`fill_with_eos`).

    Args:
        model: whose `max_position_embeddings` is `L`.
    Raises:
        ValueError: a model without EOS, a molecule that is too long, or characters that the
            tokenizer does not know.
    """
    front, _, eos = special_tokens(model, tokenizer)
    length = model.config.max_position_embeddings
    if eos is None:
        raise ValueError(
            "the model has no EOS, so it does not know where molecules end. Train it with "
            "fill_with_eos (configs/moses.yaml)."
        )
    text = "".join(set("".join(smiles)))
    unknown = [one for one in text if tokenizer.unk_token_id in tokenizer(one)["input_ids"]]
    if unknown:
        raise ValueError(
            f"the tokenizer does not know {sorted(unknown)} of the SMILES. Pass molecules of the "
            "alphabet that the model was trained on, or train one on these."
        )
    found = cut_documents(smiles, tokenizer, length, (front, None))
    if found.counts.rows != len(smiles):
        longest = max(smiles, key=len)
        raise ValueError(
            f"a molecule of {len(longest)} characters is longer than the {length} positions of the "
            f"model: {longest[:60]}... Take it out, or train with a larger max_length."
        )
    return [{"input_ids": fill(row["input_ids"], length, eos)} for row in found.rows]


def molecule_likelihood(
    smiles: Sequence[str], tokenizer: PreTrainedTokenizerBase, model: nn.Module, **options
) -> dict[str, Any]:
    """Nats per molecule with their standard error: its characters and its end, by the order bound.

    Of an autoregressive model exact. Every row has `L` tokens, so this is `L` times the value of
    `evaluate_corpus` (whose `options` it takes), and so are its errors.
    """
    rows = molecule_rows(smiles, tokenizer, model)
    record = evaluate_corpus(model, rows, **options)
    length = len(rows[0]["input_ids"])
    names = ("value", "standard_error", "monte_carlo_error")
    errors = {name: record[name] and record[name] * length for name in names}
    told = {name: record[name] for name in ("estimator", "num_samples", "n", "per_text")}
    return {"unit": "nats per molecule", **errors, **told}


def describe_samples(
    smiles: Sequence[str], parts_file: str | Path | None = None, progress: bool = True
) -> list[Molecule | None]:
    """What is measured of each text; `None` = no molecule. `parts_file` keeps what is done."""
    parts = PartsFile(parts_file, {"samples": values_digest(list(smiles))})
    done = parts.read()
    todo = [number for number in range(len(smiles)) if number not in done]
    known: dict[str, dict] = {smiles[number]: row for number, row in done.items()}
    with tqdm(total=len(todo), disable=not progress, unit="molecule", desc="describe") as bar:
        for start in range(0, len(todo), 256):
            batch = todo[start : start + 256]
            for number in batch:
                text = smiles[number]
                if text not in known:
                    molecule = describe(text)
                    known[text] = {"molecule": None if molecule is None else asdict(molecule)}
                done[number] = known[text]
            parts.append({number: done[number] for number in batch})
            bar.update(len(batch))
    rows = (done[number]["molecule"] for number in range(len(smiles)))
    return [None if row is None else Molecule(**row) for row in rows]


def measure_molecules(
    molecules: Sequence[Molecule | None],
    references: Mapping[str, Reference],
    known: np.ndarray | None = None,
    fcd: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """The measures of MOSES, with standard errors by a jackknife over ten draws.

    Args:
        molecules: of `describe_samples`, in the order in which they were written.
        references: by name, the first one that of the properties.
        known: hashes of the training molecules (`known_molecules`), for novelty.
        fcd: measure the Frechet ChemNet distance too.
    Returns:
        `value` and `standard_error` of the share of valid molecules, `n` samples, and under
        `measures` all others in the same form: `unique` of all valid ones, `unique@1k`,
        `unique@10k` of the first (`None` with fewer), `novelty`, `filters`, `int_div`; for each
        reference `snn`, `frag`, `scaf`, `fcd`; `logP`, `SA`, `QED`, `weight`: distances W1.
    Raises:
        ValueError: fewer than two valid molecules.
    """
    table = _Table(molecules, references, known, fcd, progress)
    measures = jackknife(table.measure, GROUPS)
    valid = measures.pop("valid")
    return {"unit": "share of valid molecules", **valid, "n": len(molecules), "measures": measures}


class _Table:
    """Everything of the valid samples that the measures of any choice of draws need."""

    def __init__(self, molecules, references, known, fcd: bool, progress: bool):
        groups = np.arange(len(molecules)) % GROUPS
        valid = np.array([molecule is not None for molecule in molecules], dtype=bool)
        if valid.sum() < 2:
            raise ValueError(
                f"{valid.sum()} of {len(molecules)} samples are molecules, and 2 are the least to "
                "measure. Train for longer, or write more samples."
            )
        self.molecules = [molecule for molecule in molecules if molecule is not None]
        self.written, self.groups = np.bincount(groups, minlength=GROUPS), groups[valid]
        names = [molecule.smiles for molecule in self.molecules]
        self.names, self.is_new = hashes(names), None
        if known is not None:
            self.is_new = ~np.isin(self.names, known)
        self.passes = np.array([molecule.passes_filters for molecule in self.molecules])
        self.properties, self.references = properties(self.molecules), dict(references)
        fingerprints = packed(self.molecules)
        self.pairs = sums_by_group(fingerprints, self.groups, GROUPS)
        self.nearest = {
            name: nearest(fingerprints, one.fingerprints) for name, one in self.references.items()
        }
        self.activations = activations(names, progress=progress) if fcd else None

    def measure(self, draws: np.ndarray) -> dict[str, float | None]:
        """All measures of the samples in `draws` `[GROUPS]` bool."""
        chosen = draws[self.groups]
        count = int(chosen.sum())
        found: dict[str, float | None] = {"valid": count / int(self.written[draws].sum())}
        if count < 2:
            return found
        found |= self._distinct(chosen)
        found["filters"] = float(self.passes[chosen].mean())
        found["int_div"] = 1 - float(self.pairs[np.ix_(draws, draws)].sum()) / count**2
        members = [one for one, is_in in zip(self.molecules, chosen, strict=True) if is_in]
        counts = {
            "frag": Counter(name for one in members for name in one.fragments),
            "scaf": Counter(one.scaffold for one in members if one.scaffold),
        }
        law = None if self.activations is None else moments(self.activations[chosen])
        for name, reference in self.references.items():
            found[f"{name}: snn"] = float(self.nearest[name][chosen].mean())
            found[f"{name}: frag"] = cosine(counts["frag"], reference.fragments)
            found[f"{name}: scaf"] = cosine(counts["scaf"], reference.scaffolds)
            if law is not None:
                found[f"{name}: fcd"] = frechet(law, reference.chemnet)
        return found | self._distances(chosen)

    def _distinct(self, chosen: np.ndarray) -> dict[str, float | None]:
        unique, first = np.unique(self.names[chosen], return_index=True)
        found: dict[str, float | None] = {"unique": len(unique) / int(chosen.sum())}
        for name, size in UNIQUE_AT.items():
            head = self.names[:size][chosen[:size]]
            found[name] = len(np.unique(head)) / len(head) if len(self.names) >= size else None
        if self.is_new is not None:
            found["novelty"] = float(self.is_new[chosen][first].mean())
        return found

    def _distances(self, chosen: np.ndarray) -> dict[str, float]:
        """W1 of each property to the first reference."""
        theirs = next(iter(self.references.values())).properties
        columns = zip(PROPERTIES, self.properties[chosen].T, theirs.T, strict=True)
        return {f"W1 {name}": wasserstein(ours, other) for name, ours, other in columns}
