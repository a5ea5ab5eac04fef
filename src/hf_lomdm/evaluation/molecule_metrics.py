"""Distances between sets of molecules, and their errors, in plain numpy."""

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

# Rows of fingerprints that are compared at once: bounds the memory to some hundred megabytes.
CHUNK = 512


def unpack(fingerprints: np.ndarray) -> np.ndarray:
    """Bits `[N, 8 B]` float32 of packed fingerprints `[N, B]` uint8."""
    return np.unpackbits(fingerprints, axis=1).astype(np.float32)


def similarities(ours: np.ndarray, theirs: np.ndarray) -> Iterator[np.ndarray]:
    """Tanimoto similarities of packed fingerprints, `[<= CHUNK, M]` float32, rows in their order.

    Of two fingerprints: common bits by bits of either; 0 where both are empty.
    """
    other = unpack(theirs)
    sizes = other.sum(1)
    for start in range(0, len(ours), CHUNK):
        part = unpack(ours[start : start + CHUNK])
        common = part @ other.T
        either = part.sum(1)[:, None] + sizes - common
        yield common / np.maximum(either, 1)


def nearest(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The largest similarity `[N]` of each of `ours` to any of `theirs`, as packed fingerprints."""
    best = np.zeros(len(ours), dtype=np.float32)
    for begin in range(0, len(theirs), 1 << 15):
        parts = similarities(ours, theirs[begin : begin + (1 << 15)])
        np.maximum(best, np.concatenate([part.max(1) for part in parts]), out=best)
    return best


def sums_by_group(fingerprints: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Sums `[count, count]` of the similarities of all pairs, themselves included, by groups."""
    membership = np.eye(count)[groups]
    rows = [part.astype(np.float64) @ membership for part in similarities(*[fingerprints] * 2)]
    return membership.T @ np.concatenate(rows)


def cosine(ours: Counter, theirs: Counter) -> float:
    """Cosine of two vectors of counts; 0 where one of them is empty."""
    product = sum(number * theirs[name] for name, number in ours.items())
    lengths = [np.sqrt(sum(number**2 for number in one.values())) for one in (ours, theirs)]
    return float(product / (lengths[0] * lengths[1])) if all(lengths) else 0.0


def wasserstein(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The 1-Wasserstein distance of two samples `[N]` and `[M]`: area between their distributions.

    The expected length of the way if each value moves to its place in the other sample.
    """
    ours, theirs = np.sort(ours), np.sort(theirs)
    values = np.sort(np.concatenate([ours, theirs]))
    shares = [np.searchsorted(one, values[:-1], "right") / len(one) for one in (ours, theirs)]
    return float((np.abs(shares[0] - shares[1]) * np.diff(values)).sum())


def frechet(ours: tuple, theirs: tuple) -> float:
    """The squared Frechet distance of two normal laws, each a mean `[D]` and covariance `[D, D]`.

    `|m - n|^2 + tr(S + T - 2 (S T)^(1/2))`; the trace of the root is that of the symmetric
    `(S^(1/2) T S^(1/2))^(1/2)`, which needs no root of a matrix that is not symmetric.
    """
    (mean, covariance), (other_mean, other) = ours, theirs
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ other @ root)
    cross = np.sqrt(np.maximum(mixed, 0)).sum()
    distance = np.square(mean - other_mean).sum() + np.trace(covariance) + np.trace(other)
    return float(distance - 2 * cross)


def jackknife(measure: Callable[[np.ndarray], dict], groups: int) -> dict[str, dict]:
    """Measures of all groups with standard errors by leaving out one at a time.

    Args:
        measure: numbers by name, of the groups where its argument `[groups]` bool is true.
    Returns:
        `value` and `standard_error` by name; a value that is `None` has no error.
    """
    whole = measure(np.ones(groups, dtype=bool))
    parts = [measure(np.arange(groups) != left_out) for left_out in range(groups)]
    found = {}
    for name, value in whole.items():
        values = [part.get(name) for part in parts]
        error = None
        if value is not None and None not in values:
            error = float(np.sqrt((groups - 1) * np.var(values)))
        found[name] = {"value": value, "standard_error": error}
    return found
