"""Pilot, order against time, and the true gap: against repeated draws and enumeration."""

import math

import pytest
import torch
from test_causal import build_causal

import oracles
from hf_lomdm.evaluation import nelbo
from hf_lomdm.evaluation.accuracy import compare_bounds, exact_gap, pilot
from hf_lomdm.evaluation.corpus import evaluate_corpus

TEXTS = [[0, 2, 1, 1], [2, 2, 0, 1], [1, 0, 0, 0], [2, 1, 0, 0], [0, 0, 2, 0], [1, 1, 2, 2]]
ROWS = [{"input_ids": text} for text in TEXTS]
QUIET = {"progress": False}


@pytest.fixture
def smallest(make_model):
    return oracles.vivid(make_model(**oracles.SMALLEST))


def test_the_samples_that_the_pilot_asks_for_reach_the_target(smallest):
    target = 0.2
    actual = pilot(smallest, ROWS, num_texts=6, num_samples=400, target=target, **QUIET)
    assert 20 < actual["samples_needed"] < 2_000
    record = evaluate_corpus(smallest, ROWS, num_samples=actual["samples_needed"], **QUIET)
    width = 1.96 * record["perplexity"] * record["monte_carlo_error"]
    assert target / 2 < width < 1.4 * target  # the error of an error; strata of other sizes
    assert actual["perplexity"] == pytest.approx(record["perplexity"], abs=3 * target)
    assert actual["texts_measured"] == actual["texts"] == 6 and actual["seconds_per_sample"] > 0


def test_what_the_texts_leave_open_is_the_spread_of_their_exact_values(smallest):
    actual = pilot(smallest, ROWS, num_texts=6, num_samples=400, **QUIET)
    with torch.no_grad():
        exact = [
            float(sum(oracles.order_bound(oracles.tables(smallest, torch.tensor(text)))))
            for text in TEXTS
        ]
    exact = torch.tensor(exact, dtype=torch.float64)
    expected = 1.96 * math.exp(float(exact.sum()) / 24) * float(exact.std()) * math.sqrt(6) / 24
    assert actual["perplexity_text_error"] == pytest.approx(expected, rel=0.1)


def test_equal_texts_leave_nothing_open_however_noisy_their_values(smallest):
    rows = [{"input_ids": TEXTS[0]}] * 200
    actual = pilot(smallest, rows, num_texts=200, num_samples=4, **QUIET)
    width = 1.96 * actual["perplexity"] / (4 * 200)
    # what the draws alone add to the spread
    noise = width * math.sqrt(200 * actual["variance_per_sample"] / 4)
    # of 200 texts the variance is known to a tenth
    assert 0 <= actual["perplexity_text_error"] < 0.6 * noise


def test_the_pilot_draws_some_texts_for_all(smallest):
    shortened = pilot(smallest, ROWS * 4, num_texts=5, num_samples=4, seed=3, **QUIET)
    assert shortened["texts_measured"] == 5 and shortened["texts"] == 24
    assert shortened != pilot(smallest, ROWS * 4, num_texts=5, num_samples=4, seed=4, **QUIET)


def test_time_over_order_is_the_ratio_of_variances_of_repeated_draws(smallest):
    actual = compare_bounds(smallest, ROWS, num_texts=6, num_samples=400, **QUIET)
    variances = {}
    for bound in ("order", "time"):
        draws = torch.tensor(TEXTS).repeat(800, 1)
        samples = nelbo(
            smallest, draws, bound=bound, num_samples=4, generator=torch.Generator().manual_seed(1)
        )
        variances[bound] = float(samples.nelbo.view(800, 6).var(0).mean())
        deviation = actual[bound]["deviation_per_sample"] * 24 / 6
        # 20 strata against 2: variances within 15 %, strata narrow them further
        assert deviation**2 / 4 == pytest.approx(variances[bound], rel=0.6)
    low, high = actual["time_over_order_interval"]
    assert 1 < low < actual["time_over_order"] < high
    assert actual["time"]["samples_needed"] > actual["order"]["samples_needed"]


def test_half_the_error_takes_four_times_the_samples(smallest):
    options = {"num_texts": 6, "num_samples": 40, **QUIET}
    few, many = (
        pilot(smallest, ROWS, target=target, **options)["samples_needed"] for target in (0.1, 0.05)
    )
    assert 1 < 4 * (few - 1) < many <= 4 * few  # both are rounded up


def test_pilot_and_comparison_ask_for_the_same_samples(smallest):
    options = {"num_texts": 6, "num_samples": 40, "target": 0.2, **QUIET}
    actual = compare_bounds(smallest, ROWS, **options)["order"]["samples_needed"]
    assert actual == pilot(smallest, ROWS, **options)["samples_needed"] > 1


def exact_values(model, bound) -> torch.Tensor:
    """Of each text, by enumeration, in nats per position."""
    with torch.no_grad():
        tables = [oracles.tables(model, torch.tensor(text)) for text in TEXTS]
        return torch.stack([torch.as_tensor(bound(table)) for table in tables]) / 4


def test_gaps_are_those_of_enumeration(smallest):
    actual = exact_gap(smallest, ROWS, positions=4, num_texts=6, num_samples=60, **QUIET)
    exact = exact_values(smallest, lambda table: -oracles.log_likelihood(table))
    assert actual["exact"]["value"] == pytest.approx(float(exact.mean()), rel=1e-5)
    for name, bound in (("order", oracles.order_bound), ("time", oracles.time_bound)):
        gaps, estimate = (
            exact_values(smallest, lambda table, bound=bound: sum(bound(table))) - exact,
            actual[name]["gap"],
        )
        # the error holds the spread of the texts too, which are all of them here: 3 of it is much
        assert (
            abs(estimate["value"] - float(gaps.mean()))
            < 3 * estimate["standard_error"]
            < 3 * float(gaps.mean())
        )
        assert estimate["standard_error"] > 0.6 * float(gaps.std()) / math.sqrt(6)
        assert actual[name]["value"] - actual["exact"]["value"] == pytest.approx(estimate["value"])


def test_several_orders_close_the_gap(smallest):
    actual = exact_gap(
        smallest, ROWS, positions=4, num_texts=6, num_samples=60, num_orders=30, **QUIET
    )
    assert abs(actual["order, 30 orders"]["gap"]["value"]) < 0.5 * actual["order"]["gap"]["value"]


def test_all_but_the_positions_asked_for_are_given(smallest, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "hf_lomdm.evaluation.accuracy.exact_log_likelihood",
        lambda model, ids, labels: (
            seen.append(labels[0].tolist()) or torch.zeros(1, dtype=torch.float64)
        ),
    )
    rows = [{"input_ids": [0, 1, 2, 0, 1, 2, 0], "labels": [-100, 1, 2, 0, 1, 2, -100]}] * 20
    for span in (False, True):
        seen.clear()
        exact_gap(smallest, rows, positions=3, num_texts=20, num_samples=2, span=span, **QUIET)
        places = {tuple(i for i, label in enumerate(labels) if label != -100) for labels in seen}
        assert len(places) > 2 and all(
            len(place) == 3 and place[0] > 0 and place[-1] < 6 for place in places
        )
        assert all(place[-1] - place[0] == 2 for place in places) == span


def test_input_that_cannot_work_is_an_error_with_a_remedy(smallest):
    for call, message in [
        (lambda: exact_gap(smallest, ROWS, positions=15), "positions must be in 1 to 14, got 15"),
        (
            lambda: exact_gap(smallest, ROWS, positions=5),
            "2 or more texts with 5 tokens to count, got 0",
        ),
        (lambda: pilot(smallest, ROWS, num_samples=2), "num_samples of 4 or more"),
        (lambda: pilot(smallest, ROWS[:1]), "2 or more texts, got 16 and 1"),
        (lambda: pilot(smallest, ROWS, num_texts=-1), "2 or more texts, got 16 and -1"),
        (
            lambda: exact_gap(smallest, ROWS, positions=1, num_texts=0),
            "2 or more texts with 1 tokens to count, got 0",
        ),
        (lambda: compare_bounds(smallest, ROWS[:1]), "compare_bounds needs 2 or more texts, got 1"),
        (
            lambda: compare_bounds(smallest, [{"input_ids": [1]}] * 3, **QUIET),
            "no Monte-Carlo error to compare with",
        ),
        (
            lambda: compare_bounds(build_causal(), ROWS),
            "GPTNeoXForCausalLM has an exact likelihood",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_an_interval_of_few_texts_some_without_error_is_finite(smallest):
    given = {"input_ids": [0, 1], "labels": [-100, -100]}  # all resamples of it alone have no error
    actual = compare_bounds(smallest, [ROWS[0], given], **QUIET)
    low, high = actual["time_over_order_interval"]
    assert 0 < low <= actual["time_over_order"] <= high < math.inf
