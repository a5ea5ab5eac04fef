"""The density of shares revealed: unbiased, and worth its pilot."""

import math
from pathlib import Path

import pytest
import torch
from test_causal import build_causal
from test_corpus import TEXTS, Z, as_rows, evaluate
from transformers import PreTrainedTokenizerFast

import oracles
from hf_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.evaluation.density import UNIFORM_PART, _predicted_variance, measured_density

CHECKPOINT = Path(__file__).parents[2] / "checkpoints/lomdm-enwiki"


@pytest.mark.parametrize("block_size", [None, 2])
def test_a_measured_density_keeps_the_value_whatever_the_batches_of_the_pilot(
    make_model, block_size
):
    model, rows = (
        oracles.vivid(make_model(**{**oracles.SMALLEST, "block_size": block_size})),
        as_rows(TEXTS[:4]),
    )
    density = measured_density(model, rows, num_samples=1, bins=4, batch_tokens=8)
    assert density == measured_density(model, rows, num_samples=1, bins=4, batch_tokens=100)
    assert (
        sum(density) == pytest.approx(4, abs=1e-3)
        and min(density) >= UNIFORM_PART
        and len(set(density)) > 1
    )
    even, fitted = (
        evaluate(model, rows * 500, num_samples=2, density=chosen) for chosen in (None, density)
    )
    error = math.hypot(even["monte_carlo_error"], fitted["monte_carlo_error"])
    assert abs(even["value"] - fitted["value"]) < Z * error < 0.1 and fitted["density"] == density


# what decides between densities is computed below, without a trained model
@pytest.mark.slow
def test_a_measured_density_lowers_the_error_of_a_trained_model():
    model = LoMDMForMaskedDiffusion.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    text = (CHECKPOINT.parents[1] / "LICENSE").read_text()  # English that nobody edits
    ids = PreTrainedTokenizerFast.from_pretrained(CHECKPOINT)(text)["input_ids"]
    rows = [{"input_ids": ids[start : start + 64]} for start in range(0, 20 * 64, 64)]
    density = measured_density(model, rows, bins=8, num_texts=12)
    assert density[0] > density[4]  # early reveals cost most, and two samples are one stratum each
    even, fitted = (
        evaluate(model, rows * 4, density=chosen)["monte_carlo_error"] for chosen in (None, density)
    )
    # 0.65 on the text of studies/shipped; each error is known to about a seventh from 80 rows
    assert fitted < 0.85 * even


def test_the_fitted_density_is_even_only_where_that_is_predicted_to_be_best():
    mean, spread = torch.tensor([4.0, 2.0]).double(), torch.tensor([0.1, 0.1]).double()
    even, rms = torch.ones(2).double(), torch.tensor([4 / 3, 2 / 3]).double()
    assert _predicted_variance(rms, mean, spread, 1) < _predicted_variance(even, mean, spread, 1)
    level = torch.full((2,), 3.0).double()
    assert _predicted_variance(even, level, spread, 1) == pytest.approx(0.01)  # noise alone
    assert _predicted_variance(even, level, spread, 1) < _predicted_variance(rms, level, spread, 1)
    # a quarter of the draws falls into the first half and counts 2 each, the others count 2/3
    skew, square = torch.tensor([0.5, 1.5]).double(), 0.25 * 2**2 + 0.75 * (2 / 3) ** 2
    expected = 3.0**2 * (square - 1) + 0.1**2 * square
    assert _predicted_variance(skew, level, spread, 1) == pytest.approx(expected)


def test_input_that_cannot_work_is_an_error_with_a_remedy(make_model):
    for call, message in (
        (
            lambda: measured_density(make_model(), as_rows([[3]]), bins=0),
            "bins must be at least 1, got 0",
        ),
        (lambda: measured_density(make_model(), as_rows([[3, 10]])), "contain the mask token"),
        (lambda: measured_density(build_causal(), as_rows([[3]])), "has an exact likelihood"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
