"""Bounds, bounds with several orders and the exact likelihood of every system of the family,
against enumeration."""

import itertools

import pytest
import torch

import oracles
from hf_lomdm.evaluation import exact_log_likelihood, likelihood, nelbo

EXACT = {"rtol": 1e-9, "atol": 1e-10}  # float64 against float64, a few hundred operations
# A mean this many standard errors off has probability 6e-5; seeds are fixed.
Z = 4.0
# Rate type, block size, text. Learned rates in one window are in test_likelihood.py.
FAMILY = (
    ("token", None, [0, 2, 1]),
    ("score", None, [0, 2, 1]),
    ("learned", 2, [0, 2, 1, 1, 2]),
    ("learned", 3, [2, 0, 1, 1, 2, 0]),
    ("uniform", 3, [2, 0, 1, 1]),
    ("token", 2, [0, 2, 1, 1]),
    ("score", 2, [0, 2, 1, 1, 2]),
    ("uniform", 1, [0, 2, 1]),
)
systems = pytest.mark.parametrize(("rate_type", "block_size", "text"), FAMILY)
OPTIONS = ({"bound": "order"}, {"bound": "time"}, {"num_orders": 3})


@pytest.fixture
def build(make_model):
    def build(rate_type, block_size):
        settings = {**oracles.SMALLEST, "rate_type": rate_type, "block_size": block_size}
        return oracles.vivid(make_model(**settings), seed=1)

    return build


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
@systems
def test_exact_likelihood_is_the_sum_over_the_orders_of_each_block(
    build, rate_type, block_size, text
):
    model, ids = build(rate_type, block_size), torch.tensor(text)
    expected = oracles.add_up(oracles.log_likelihood, oracles.block_tables(model, ids))
    torch.testing.assert_close(exact_log_likelihood(model, ids[None])[0], expected, **EXACT)


@pytest.mark.parametrize(
    ("rate_type", "block_size"), [("token", None), ("score", None), ("learned", 2), ("token", 2)]
)
def test_exact_probabilities_of_all_texts_sum_to_one(build, rate_type, block_size):
    texts = torch.tensor(list(itertools.product(range(3), repeat=3)))
    total = exact_log_likelihood(build(rate_type, block_size), texts).exp().sum()
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64), **EXACT)


@torch.no_grad()
@systems
@pytest.mark.parametrize("bound", ["order", "time"])
def test_bound_is_unbiased_part_by_part(build, rate_type, block_size, text, bound):
    model, ids = build(rate_type, block_size), torch.tensor(text)
    exact = oracles.add_up(
        oracles.order_bound if bound == "order" else oracles.time_bound,
        oracles.block_tables(model, ids),
    )
    estimate = nelbo(model, ids.expand(3_000, -1), bound=bound, num_samples=2, generator=seeded())
    for drawn, expected in zip(
        (estimate.main, estimate.nelbo), (exact[0], sum(exact)), strict=True
    ):
        if drawn.std() < 1e-9:  # an AR model has no variance
            torch.testing.assert_close(drawn.mean(), expected, **EXACT)
        else:
            assert abs(oracles.z_score(drawn, expected)) < Z
    # the standard error that comes with each text is that of its mean
    spread = (estimate.nelbo - sum(exact)) ** 2
    assert (
        spread.max() < 1e-15 or abs(oracles.z_score(estimate.standard_error**2 - spread, 0.0)) < Z
    )


@torch.no_grad()
@systems
def test_several_orders_bound_each_block_by_itself(build, rate_type, block_size, text):
    model, ids = build(rate_type, block_size), torch.tensor(text)
    parts = oracles.block_tables(model, ids)
    estimate = nelbo(model, ids.expand(1_000, -1), num_orders=2, num_samples=1, generator=seeded())
    exact = oracles.add_up(oracles.multi_order_bound, parts, 2)
    main = oracles.add_up(oracles.order_bound, parts)[0]
    for drawn, expected in ((estimate.nelbo, exact), (estimate.main, main)):
        if drawn.std() < 1e-9:
            torch.testing.assert_close(drawn.mean(), expected, **EXACT)
        else:
            assert abs(oracles.z_score(drawn, expected)) < Z
    assert exact > -oracles.add_up(oracles.log_likelihood, parts) - 1e-12
    torch.testing.assert_close(estimate.nelbo, estimate.main + estimate.velocity, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize(
    ("rate_type", "block_size"), [("learned", 2), ("token", 2), ("score", 2), ("score", None)]
)
@pytest.mark.parametrize("options", OPTIONS)
def test_given_positions_condition_the_estimate(build, rate_type, block_size, options):
    model, text = build(rate_type, block_size), torch.tensor([0, 2, 1, 2, 1, 0])
    maskable = [1, 4, 5]  # the second block is given
    labels = torch.full_like(text, -100)
    labels[maskable] = text[maskable]
    parts = oracles.block_tables(model, text, maskable)
    function = {"order": oracles.order_bound, "time": oracles.time_bound}.get(options.get("bound"))
    exact = (
        sum(oracles.add_up(function, parts))
        if function
        else oracles.add_up(oracles.multi_order_bound, parts, 3)
    )
    batch = text.expand(2_000, -1)
    estimate = nelbo(
        model, batch, labels=labels.expand(2_000, -1), num_samples=1, generator=seeded(), **options
    )
    assert abs(oracles.z_score(estimate.nelbo, exact)) < Z
    log_likelihood = oracles.add_up(oracles.log_likelihood, parts)
    torch.testing.assert_close(
        exact_log_likelihood(model, text[None], labels[None])[0], log_likelihood, **EXACT
    )


@pytest.mark.parametrize("rate_type", ["learned", "uniform", "token", "score"])
@pytest.mark.parametrize("options", OPTIONS)
def test_an_estimate_adds_up_those_of_the_blocks_on_the_same_draws(build, rate_type, options):
    model, text = build(rate_type, 3), torch.tensor([[0, 2, 1, 2, 1, 0]])
    first, second = text.clone(), text.clone()
    first[:, 3:], second[:, :3] = -100, -100
    if model.phi is not None:  # told what is given, phi gives the same text other rates
        torch.nn.init.zeros_(model.phi.given)
    whole, *parts = (
        nelbo(model, text, labels=labels, num_samples=3, generator=seeded(), **options)
        for labels in (text, first, second)
    )
    for name in ("nelbo", "main", "velocity"):
        total = sum(getattr(part, name) for part in parts)
        torch.testing.assert_close(getattr(whole, name), total, **EXACT)
    assert all(part.nelbo > 0.1 for part in parts)


@pytest.mark.parametrize(
    ("rate_type", "block_size"), [("learned", 2), ("token", 3), ("score", 2), ("score", None)]
)
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_a_text_alone_padded_or_in_a_batch_has_the_same_estimate(
    build, rate_type, block_size, left
):
    model, texts = (
        build(rate_type, block_size),
        [torch.tensor([0, 2, 1]), torch.tensor([2, 1, 0, 0, 1])],
    )
    ids, mask = torch.ones(2, 7, dtype=torch.long), torch.zeros(2, 7, dtype=torch.long)
    for row, text in enumerate(texts):
        at = slice(7 - len(text), 7) if left else slice(0, len(text))
        ids[row, at], mask[row, at] = text, 1
    likelihoods = exact_log_likelihood(model, ids, attention_mask=mask)
    for options in OPTIONS:
        together = nelbo(
            model, ids, mask, num_samples=4, generator=[seeded(0), seeded(1)], **options
        )
        for row, text in enumerate(texts):
            alone = nelbo(model, text[None], num_samples=4, generator=[seeded(row)], **options)
            for name in ("nelbo", "standard_error", "main", "velocity"):
                torch.testing.assert_close(
                    getattr(together, name)[row], getattr(alone, name)[0], **EXACT
                )
            torch.testing.assert_close(
                likelihoods[row], exact_log_likelihood(model, text[None])[0], **EXACT
            )


@pytest.mark.parametrize(("rate_type", "block_size"), [("score", None), ("learned", 2)])
def test_chunks_of_passes_change_nothing(build, monkeypatch, rate_type, block_size):
    model, ids = build(rate_type, block_size), torch.tensor([[0, 2, 1, 1, 2]])
    whole, orders = (
        exact_log_likelihood(model, ids),
        nelbo(model, ids, num_orders=5, generator=seeded()),
    )
    monkeypatch.setattr(likelihood, "CHUNK_ELEMENTS", 1)  # one row per pass
    torch.testing.assert_close(exact_log_likelihood(model, ids), whole, **EXACT)
    torch.testing.assert_close(
        nelbo(model, ids, num_orders=5, generator=seeded()).nelbo, orders.nelbo, **EXACT
    )


def test_the_exact_value_of_long_texts_is_there_for_short_blocks_and_the_limit_counts_a_block(
    make_model,
):
    text = torch.full((1, 20), 3)
    assert torch.isfinite(exact_log_likelihood(make_model(block_size=2), text)).all()
    with pytest.raises(ValueError, match="\\(or block\\) with 15 maskable positions.*at most 14"):
        exact_log_likelihood(make_model(block_size=15), text)


@torch.no_grad()
@pytest.mark.parametrize("rate_type", ["learned", "token"])
def test_texts_beyond_the_context_are_evaluated_as_the_model_reads_them(make_model, rate_type):
    settings = {
        **oracles.SMALLEST,
        "rate_type": rate_type,
        "block_size": 2,
        "max_position_embeddings": 4,
    }
    model, text = oracles.vivid(make_model(**settings), seed=1), torch.tensor([0, 2, 1, 1, 2, 0, 0])
    parts = oracles.block_tables(model, text)
    exact = oracles.add_up(oracles.log_likelihood, parts)
    torch.testing.assert_close(exact_log_likelihood(model, text[None])[0], exact, **EXACT)
    estimate = nelbo(model, text.expand(2_000, -1), generator=seeded())
    assert abs(oracles.z_score(estimate.nelbo, sum(oracles.add_up(oracles.order_bound, parts)))) < Z
