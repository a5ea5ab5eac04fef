"""Activations of ChemNet, the network of the Frechet ChemNet distance (package `fcd-torch`)."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

SIZE = 512  # activations of a molecule


def require_chemnet() -> None:
    """Raises `ValueError` where `fcd-torch`, which brings the weights, is not installed."""
    if importlib.util.find_spec("fcd_torch") is None:
        raise ValueError(
            "the Frechet ChemNet distance needs fcd-torch, which is not installed. Run pip install "
            "'hf-lomdm[molecules]', or pass --no_fcd."
        )


@torch.no_grad()
def activations(smiles: Sequence[str], batch_size: int = 64, progress: bool = True) -> np.ndarray:
    """ChemNet's last hidden state `[N, 512]` float32 of canonical SMILES."""
    from fcd_torch.utils import SmilesDataset

    model, found = load(), np.zeros((len(smiles), SIZE), dtype=np.float32)
    encoded = SmilesDataset(smiles, canonize=False)
    with tqdm(total=len(smiles), disable=not progress, unit="molecule", desc="ChemNet") as bar:
        for start in range(0, len(smiles), batch_size):
            end = min(start + batch_size, len(smiles))
            features = torch.tensor(np.stack([encoded[i] for i in range(start, end)])).float()
            found[start:end] = model(features.transpose(1, 2))
            bar.update(end - start)
    return found


def load() -> Any:
    """ChemNet of `fcd-torch`, in eval mode on the CPU."""
    import fcd_torch
    from fcd_torch.utils import load_imported_model

    weights = Path(fcd_torch.__file__).with_name("ChemNet_v0.13_pretrained.pt")
    return load_imported_model(torch.load(weights, map_location="cpu", weights_only=True)).eval()


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[D]` and covariance `[D, D]` of `values` `[N, D]`, both float64."""
    values = values.astype(np.float64)
    return values.mean(0), np.cov(values, rowvar=False)
