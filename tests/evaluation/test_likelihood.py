"""Likelihood bounds, their standard errors and the exact likelihood, against enumeration."""

import itertools
import math

import pytest
import torch

import oracles
from hf_lomdm.cli.errors import FROM_OUTSIDE
from hf_lomdm.evaluation import exact_log_likelihood, likelihood, nelbo
from hf_lomdm.evaluation.likelihood import NotFiniteError, weighted_shares

EXACT = {"rtol": 1e-9, "atol": 1e-10}  # float64 against float64, a few hundred operations
# A mean this many standard errors off has probability 6e-5; seeds are fixed.
Z = 4.0
TEXT = torch.tensor([0, 2, 1])


@pytest.fixture
def model(make_model):
    return oracles.vivid(make_model(**oracles.SMALLEST))


@pytest.fixture
def table(model):
    with torch.no_grad():
        return oracles.tables(model, TEXT)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_each(count: int) -> list[torch.Generator]:
    return [seeded(s) for s in range(count)]


# Exact likelihood


def test_exact_likelihood_is_the_sum_over_all_orders(model):
    for text in ([0, 2, 1, 1], [2, 2, 0, 1]):
        ids = torch.tensor(text)
        with torch.no_grad():
            expected = oracles.log_likelihood(oracles.tables(model, ids))
        torch.testing.assert_close(exact_log_likelihood(model, ids[None])[0], expected, **EXACT)


def test_exact_probabilities_of_all_texts_sum_to_one(model):
    texts = torch.tensor(list(itertools.product(range(3), repeat=3)))
    probabilities = exact_log_likelihood(model, texts).exp()
    torch.testing.assert_close(probabilities.sum(), torch.ones((), dtype=torch.float64), **EXACT)
    # forward through all states, not text by text
    law = oracles.sequential_law(oracles.state_tables(model, 3))
    expected = torch.tensor([law[tuple(t)] for t in texts.tolist()], dtype=torch.float64)
    torch.testing.assert_close(probabilities, expected, **EXACT)


def test_exact_likelihood_given_some_positions_is_conditional_and_free_of_padding(model):
    texts = torch.tensor([[0, 0, 1, 2, 0, 2], [1, 2, 0, 0, 0, 0]])
    labels = torch.tensor([[-100, 0, 1, -100, 0, 2], [1, 2, 0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    actual = exact_log_likelihood(model, texts, labels, attention_mask=mask)
    with torch.no_grad():
        first = oracles.log_likelihood(oracles.tables(model, texts[0], maskable=[1, 2, 4, 5]))
        second = oracles.log_likelihood(oracles.tables(model, texts[1, :3]))
    torch.testing.assert_close(actual, torch.stack([first, second]), **EXACT)
    assert exact_log_likelihood(model, texts[:1], torch.full_like(texts[:1], -100)).tolist() == [
        0.0
    ]


def test_chunks_of_passes_change_nothing(model, monkeypatch):
    whole = exact_log_likelihood(model, TEXT[None])
    orders = nelbo(model, TEXT[None], num_orders=5, generator=seeded())
    monkeypatch.setattr(likelihood, "CHUNK_ELEMENTS", 1)  # one row per pass
    torch.testing.assert_close(exact_log_likelihood(model, TEXT[None]), whole, **EXACT)
    torch.testing.assert_close(
        nelbo(model, TEXT[None], num_orders=5, generator=seeded()).nelbo, orders.nelbo, **EXACT
    )


def test_too_many_positions_for_the_exact_value_is_an_error_that_says_what_to_do(make_model):
    with pytest.raises(ValueError, match="15 maskable positions.*at most 14.*-100"):
        exact_log_likelihood(make_model(), torch.full((1, 15), 3))


# Bounds


@pytest.mark.parametrize("bound", ["order", "time"])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_bound_is_unbiased_part_by_part_for_each_text(model, table, bound, num_samples):
    copies = 6_000
    estimate = nelbo(
        model, TEXT.expand(copies, -1), bound=bound, num_samples=num_samples, generator=seeded()
    )
    exact = oracles.order_bound(table) if bound == "order" else oracles.time_bound(table)
    for drawn, expected in zip(
        (estimate.main, estimate.velocity, estimate.nelbo), (*exact, sum(exact)), strict=True
    ):
        assert drawn.dtype == torch.float64
        assert abs(oracles.z_score(drawn, expected)) < Z
        assert drawn.std() / math.sqrt(copies) < 0.05 * expected  # the test could tell
    torch.testing.assert_close(estimate.nelbo, estimate.main + estimate.velocity, **EXACT)
    assert (estimate.standard_error is None) == (num_samples == 1)


def test_int32_ids_give_the_same_bound_and_the_same_exact_value(model):
    same = [nelbo(model, ids[None], generator=seeded()).nelbo for ids in (TEXT, TEXT.int())]
    assert torch.equal(*same)
    assert torch.equal(*(exact_log_likelihood(model, ids[None]) for ids in (TEXT, TEXT.int())))


def test_time_bound_is_not_cut_even_if_training_is(make_model, table):
    model = oracles.vivid(make_model(**oracles.SMALLEST, time_epsilon=0.3)).train()
    estimate = nelbo(model, TEXT.expand(6_000, -1), bound="time", generator=seeded())
    assert abs(oracles.z_score(estimate.main, oracles.time_bound(table)[0])) < Z
    cut = oracles.time_bound(table, cut=0.3)[0]
    assert oracles.z_score(estimate.main, cut) > 2 * Z


@pytest.mark.parametrize("num_orders", [1, 2])
def test_bound_with_several_orders_is_the_enumerated_one(model, table, num_orders):
    copies = 2_000
    batch = TEXT.expand(copies, -1)
    estimate = nelbo(model, batch, num_orders=num_orders, num_samples=1, generator=seeded())
    assert abs(oracles.z_score(estimate.nelbo, oracles.multi_order_bound(table, num_orders))) < Z
    assert abs(oracles.z_score(estimate.main, oracles.order_bound(table)[0])) < Z
    torch.testing.assert_close(estimate.nelbo, estimate.main + estimate.velocity, **EXACT)


def test_more_orders_tighten_the_bound_down_to_the_likelihood(model, table):
    exact = -oracles.log_likelihood(table)
    enumerated = [oracles.multi_order_bound(table, count) for count in (1, 2, 3)]
    torch.testing.assert_close(enumerated[0], sum(oracles.order_bound(table)), **EXACT)
    assert enumerated[0] > enumerated[1] > enumerated[2] > exact
    many = nelbo(model, TEXT[None], num_orders=4_000, num_samples=4, generator=seeded())
    # the remaining gap is about var / (2 * 4000), far below the standard error
    assert abs(many.nelbo[0] - exact) < 5 * many.standard_error[0] < 0.1


def test_strata_cover_the_unit_interval_once_per_replicate(model, monkeypatch):
    seen, estimate_bound = [], model.estimate_bound

    def recording(batch, rates, quantiles, *rest):
        seen.append(quantiles)
        return estimate_bound(batch, rates, quantiles, *rest)

    monkeypatch.setattr(model, "estimate_bound", recording)
    nelbo(model, TEXT.expand(5, -1), num_samples=11, generator=seeded())
    quantiles = torch.cat(seen, dim=-1).T  # one window; 3 replicates of 4, 4 and 3 strata, [11, 5]
    for part in quantiles.split([4, 4, 3]):
        size = len(part)
        assert (part * size).floor().equal(torch.arange(size).double()[:, None].expand(-1, 5))
    assert quantiles[:, 0].unique().numel() == 11 and quantiles[0].unique().numel() == 5


def test_weighted_shares_give_every_number_of_reveals_its_due():
    # bins that do not divide the numbers of reveals: the integral over a fine grid of quantiles
    density, n, points = torch.tensor([3.0, 1.0, 0.5, 2.0, 0.2]), 7, 700_000
    quantiles = (torch.arange(points).double() + 0.5) / points
    shares, weights = weighted_shares(quantiles, density)
    due = torch.zeros(n, dtype=torch.float64).index_add(0, (shares * n).long(), weights) / points
    # a bin's edge may cut a point: weights of at most 7 / 700,000
    torch.testing.assert_close(due, torch.full((n,), 1 / n, dtype=torch.float64), atol=2e-5, rtol=0)
    counts = torch.histc(shares, 5, 0, 1) / points
    torch.testing.assert_close(counts, (density / density.sum()).double(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("num_samples", [1, 3])
def test_a_density_leaves_the_bound_unbiased_and_changes_the_draws(model, table, num_samples):
    batch, density = TEXT.expand(6_000, -1), torch.tensor([0.3, 1.0, 2.0, 0.5])
    estimate = nelbo(model, batch, num_samples=num_samples, generator=seeded(), density=density)
    exact = oracles.order_bound(table)
    for drawn, expected in zip((estimate.main, estimate.velocity), exact, strict=True):
        assert abs(oracles.z_score(drawn, expected)) < Z
    even = nelbo(model, batch, num_samples=num_samples, generator=seeded())
    assert not torch.allclose(even.nelbo, estimate.nelbo)
    flat = nelbo(
        model, batch, num_samples=num_samples, generator=seeded(), density=torch.full((4,), 5.0)
    )
    torch.testing.assert_close(flat.nelbo, even.nelbo, **EXACT)


def test_a_density_leaves_the_bound_of_each_block_unbiased(make_model):
    model = oracles.vivid(make_model(**{**oracles.SMALLEST, "block_size": 2}))
    text = torch.tensor([0, 2, 1, 1, 2])
    with torch.no_grad():
        exact = oracles.add_up(oracles.order_bound, oracles.block_tables(model, text))
    density = torch.tensor([0.3, 2.0, 0.5])
    estimate = nelbo(
        model, text.expand(6_000, -1), num_samples=1, generator=seeded(), density=density
    )
    assert abs(oracles.z_score(estimate.main, exact[0])) < Z
    assert abs(oracles.z_score(estimate.velocity, exact[1])) < Z


def test_standard_error_measures_the_spread_and_covers_the_exact_value(model, table):
    copies, num_samples = 1_500, 25  # 5 replicates of 5 strata
    estimate = nelbo(model, TEXT.expand(copies, -1), num_samples=num_samples, generator=seeded())
    exact = sum(oracles.order_bound(table))
    squares = estimate.standard_error**2
    spread = (estimate.nelbo - exact) ** 2
    # unbiased: the mean squared error equals the mean squared standard error
    assert abs(oracles.z_score(squares - spread, 0.0)) < Z
    # and coverage: Student's t with 4 degrees of freedom, 97.5 % quantile 2.776; 1.5 % more for
    # replicates that are not normal, and a binomial bound
    covered = ((estimate.nelbo - exact).abs() < 2.776 * estimate.standard_error).double().mean()
    assert abs(covered - 0.95) < 0.015 + Z * math.sqrt(0.95 * 0.05 / copies)


def test_standard_error_with_several_orders_measures_the_spread(model):
    copies = 400
    estimate = nelbo(
        model, TEXT.expand(copies, -1), num_orders=1, num_samples=4, generator=seeded()
    )
    squares, spread = estimate.standard_error**2, (estimate.nelbo - estimate.nelbo.mean()) ** 2
    assert abs(oracles.z_score(squares - spread * copies / (copies - 1), 0.0)) < Z


def padded(left: bool) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    texts = [torch.tensor([0, 2, 1]), torch.tensor([2, 1, 0, 0, 1])]
    ids, mask = torch.ones(2, 7, dtype=torch.long), torch.zeros(2, 7, dtype=torch.long)
    for b, text in enumerate(texts):
        at = slice(7 - len(text), 7) if left else slice(0, len(text))
        ids[b, at], mask[b, at] = text, 1
    return texts, ids, mask


@pytest.mark.parametrize("options", [{"bound": "order"}, {"bound": "time"}, {"num_orders": 3}])
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_a_text_alone_padded_or_in_a_batch_has_the_same_estimate(model, left, options):
    texts, ids, mask = padded(left)
    together = nelbo(model, ids, mask, num_samples=4, generator=one_each(2), **options)
    for b, text in enumerate(texts):
        alone = nelbo(model, text[None], num_samples=4, generator=one_each(2)[b : b + 1], **options)
        for name in ("nelbo", "standard_error", "main", "velocity"):
            torch.testing.assert_close(getattr(together, name)[b], getattr(alone, name)[0], **EXACT)


@pytest.mark.parametrize("options", [{"bound": "order"}, {"bound": "time"}, {"num_orders": 3}])
def test_given_positions_condition_the_estimate(model, options):
    text, labels = torch.tensor([0, 2, 1, 2]), torch.tensor([0, -100, -100, 2])
    with torch.no_grad():
        table = oracles.tables(model, text, maskable=[0, 3])
    expected = {"order": oracles.order_bound, "time": oracles.time_bound}.get(options.get("bound"))
    expected = sum(expected(table)) if expected else oracles.multi_order_bound(table, 3)
    batch = text.expand(3_000, -1)
    estimate = nelbo(
        model, batch, labels=labels.expand(3_000, -1), num_samples=1, generator=seeded(), **options
    )
    assert abs(oracles.z_score(estimate.nelbo, expected)) < Z


@pytest.mark.parametrize("options", [{"bound": "order"}, {"bound": "time"}, {"num_orders": 2}])
def test_a_text_with_nothing_to_mask_is_zero(model, options):
    labels = torch.stack([torch.full_like(TEXT, -100), TEXT])
    estimate = nelbo(
        model, TEXT.expand(2, -1), labels=labels, num_samples=16, generator=seeded(), **options
    )
    assert estimate.nelbo[0] == 0 and estimate.standard_error[0] == 0 and estimate.nelbo[1] != 0


def test_all_bounds_agree_where_the_law_has_no_order_left(make_model):
    # one maskable position: -log p of that token, whatever is drawn
    model = make_model(**oracles.SMALLEST).double()
    labels = torch.tensor([[-100, 2, -100]])
    expected = -exact_log_likelihood(model, TEXT[None], labels)
    for options in ({"bound": "order"}, {"num_orders": 1}, {"num_orders": 4}):
        estimate = nelbo(model, TEXT[None], labels=labels, generator=seeded(), **options)
        torch.testing.assert_close(estimate.nelbo, expected, **EXACT)


def test_modes_of_all_modules_are_restored_and_evaluation_has_no_dropout(make_model):
    model = make_model(dropout=0.5)
    text = torch.arange(3, 10)[None]
    expected = nelbo(model, text, generator=seeded()).nelbo
    model.train()
    model.lm_head.eval()
    estimate = nelbo(model, text, generator=seeded())
    assert torch.equal(estimate.nelbo, expected) and not estimate.nelbo.requires_grad
    assert model.training and model.model.training and not model.lm_head.training
    with pytest.raises(ValueError, match="generator has 2 entries for a batch of 1"):
        nelbo(model, text, generator=[seeded(), seeded()])
    assert model.training and not model.lm_head.training


def test_the_global_generator_is_left_alone_when_one_is_given(model):
    state = torch.get_rng_state()
    for options in ({"bound": "time"}, {"num_orders": 2}):
        nelbo(model, TEXT[None], generator=seeded(), **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(
        nelbo(model, TEXT[None], generator=seeded()).nelbo,
        nelbo(model, TEXT[None], generator=seeded()).nelbo,
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"bound": "elbo"}, "bound must be one of"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"num_orders": 0}, "num_orders must be None or at least 1, got 0"),
        ({"density": torch.ones(2), "bound": "time"}, "density is for bound='order'"),
        (
            {"density": torch.ones(2), "num_orders": 2},
            "density is for bound='order' without num_orders",
        ),
        ({"density": torch.tensor([1.0, 0.0])}, r"density must be \[bins\], finite and positive"),
        ({"num_orders": 2, "bound": "time"}, "num_orders=2 needs bound='order'"),
        (
            {"labels": torch.zeros(1, 2, dtype=torch.long)},
            "labels must have the shape of input_ids",
        ),
        ({"attention_mask": torch.ones(1, 2)}, "attention_mask must have the shape of input_ids"),
        ({"input_ids": torch.tensor([[0, 3, 1]])}, "input_ids contain the mask token"),
        ({"input_ids": torch.tensor([[0, 9, 1]])}, "input_ids must be in"),
        ({"input_ids": TEXT}, "input_ids must have the shape"),
    ],
)
def test_bad_input_names_the_argument_and_the_remedy(model, options, message):
    with pytest.raises(ValueError, match=message):
        nelbo(model, **{"input_ids": TEXT[None], **options})


def test_weights_with_nan_are_an_error_and_not_a_number(model):
    with torch.no_grad():
        model.lm_head.bias[0] = torch.nan
    # which ends a training run that has diverged in one line
    assert issubclass(NotFiniteError, FROM_OUTSIDE) and issubclass(NotFiniteError, ValueError)
    with pytest.raises(NotFiniteError, match=r"nelbo of texts \[0\] is not finite"):
        nelbo(model, TEXT[None])
    with pytest.raises(ValueError, match=r"log-likelihood of texts \[0\] is not finite"):
        exact_log_likelihood(model, TEXT[None])
