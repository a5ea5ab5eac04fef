"""Draws that depend on seed, step and text alone, never on batches or processes."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def step_quantiles(seed: int, step: int, texts: range, global_size: int) -> Tensor:
    """Quantiles `frac(U + j / global_size)` of texts `j`, `U` hashed from seed and step.

    Stratified over the global batch without communication; the same on every process.
    `[len(texts)]` float32, inside `(0, 1)`.
    """
    offset = hashed_seed(seed, step, -1) / 2**64
    values = torch.tensor([(offset + j / global_size) % 1 for j in texts], dtype=torch.float64)
    return values.float().clamp(2**-25, 1 - 2**-24)


def step_generators(seed: int, step: int, texts: Iterable[int]) -> list[torch.Generator]:
    """A CPU generator for each text `j` of step `step`, seeded by a hash of seed, step and `j`."""
    return [hashed_generator(seed, step, j) for j in texts]


def hashed_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator that depends on `parts` alone: what it is for, and the seed."""
    return torch.Generator().manual_seed(hashed_seed(*parts))


def hashed_seed(*parts: int | str) -> int:
    """64 bits that depend on `parts` alone."""
    text = ",".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
