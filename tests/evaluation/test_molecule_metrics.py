"""Distances between sets of molecules, against closed forms and sums by hand."""

import math
from collections import Counter

import numpy as np
import pytest

from hf_lomdm.evaluation import molecule_metrics
from hf_lomdm.evaluation.molecule_metrics import (
    cosine,
    frechet,
    jackknife,
    nearest,
    similarities,
    sums_by_group,
    wasserstein,
)


@pytest.fixture
def fingerprints(monkeypatch) -> np.ndarray:
    """Eleven fingerprints of 24 bits, one empty, read in chunks of four."""
    monkeypatch.setattr(molecule_metrics, "CHUNK", 4)
    bits = np.random.default_rng(0).random((11, 24)) < 0.3
    bits[5] = False
    return np.packbits(bits, axis=1)


def tanimoto(one: np.ndarray, other: np.ndarray) -> float:
    a, b = (set(np.flatnonzero(np.unpackbits(bits))) for bits in (one, other))
    return len(a & b) / len(a | b) if a | b else 0.0


def test_similarities_are_common_bits_by_bits_of_either(fingerprints):
    whole = np.concatenate(list(similarities(fingerprints, fingerprints[:7])))
    by_hand = [[tanimoto(one, other) for other in fingerprints[:7]] for one in fingerprints]
    assert whole == pytest.approx(np.array(by_hand), abs=1e-6)
    best = nearest(fingerprints, fingerprints[:7])
    assert best == pytest.approx(np.array(by_hand).max(1), abs=1e-6)


def test_sums_by_group_are_those_of_all_pairs(fingerprints):
    groups = np.arange(11) % 3
    sums = np.zeros((3, 3))
    for i, one in enumerate(fingerprints):
        for j, other in enumerate(fingerprints):
            sums[groups[i], groups[j]] += tanimoto(one, other)
    assert sums_by_group(fingerprints, groups, 3) == pytest.approx(sums, rel=1e-5)


def test_cosine_of_counts():
    ours, theirs = Counter("aab"), Counter("abbbc")
    assert cosine(ours, theirs) == pytest.approx((2 + 3) / math.sqrt(5 * 11))
    assert cosine(ours, ours) == pytest.approx(1) and cosine(ours, Counter("x")) == 0
    assert cosine(Counter(), theirs) == cosine(ours, Counter()) == 0


def test_wasserstein_is_the_mean_way_of_sorted_values():
    generator = np.random.default_rng(1)
    ours, theirs = generator.normal(0, 1, 60), generator.normal(0.5, 2, 45)
    # 180 values each, the same two distributions
    pairs = zip(np.sort(np.repeat(ours, 3)), np.sort(np.repeat(theirs, 4)), strict=True)
    assert wasserstein(ours, theirs) == pytest.approx(np.mean([abs(a - b) for a, b in pairs]))
    assert wasserstein(ours, ours) == 0 and wasserstein(ours, ours + 3) == pytest.approx(3)


def test_frechet_is_the_closed_form_for_covariances_that_commute():
    generator = np.random.default_rng(2)
    rotation = np.linalg.qr(generator.normal(size=(5, 5)))[0]
    means, spreads = generator.normal(size=(2, 5)), generator.random((2, 5))
    spreads[0, 0] = 0  # singular, as with fewer molecules than activations
    laws = [
        (mean, rotation * spread**2 @ rotation.T)
        for mean, spread in zip(means, spreads, strict=True)
    ]
    expected = np.square(means[0] - means[1]).sum() + np.square(spreads[0] - spreads[1]).sum()
    assert frechet(*laws) == pytest.approx(expected) == frechet(*laws[::-1])


def test_frechet_has_the_root_of_the_product_where_covariances_do_not_commute():
    linalg = pytest.importorskip("scipy.linalg")
    draws = np.random.default_rng(3).normal(size=(2, 9, 4)) * [1, 2, 3, 4]
    (mean, s), (other, t) = ((one.mean(0), np.cov(one.T)) for one in draws)
    root = linalg.sqrtm(s @ t).real
    expected = np.square(mean - other).sum() + np.trace(s + t - 2 * root)
    assert frechet((mean, s), (other, t)) == pytest.approx(expected)


def test_the_jackknife_error_of_a_mean_is_that_of_the_means_of_its_draws():
    values = np.random.default_rng(4).normal(size=(10, 7))

    def measure(draws: np.ndarray) -> dict:
        return {"mean": values[draws].mean(), "none": None, "some": 1.0 if draws.all() else None}

    found = jackknife(measure, 10)
    assert found["mean"]["value"] == pytest.approx(values.mean())
    error = values.mean(1).std(ddof=1) / math.sqrt(10)
    assert found["mean"]["standard_error"] == pytest.approx(error)
    assert found["none"] == {"value": None, "standard_error": None}
    assert found["some"] == {"value": 1.0, "standard_error": None}
