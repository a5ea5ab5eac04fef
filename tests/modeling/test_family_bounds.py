"""Both bounds of every system of the family (rate types, blocks) against enumeration, block by
block."""

import math

import pytest
import torch

import oracles
from hf_lomdm.modeling import loss_lomdm
from hf_lomdm.modeling.blocks_lomdm import block_quantiles

EXACT = {"rtol": 1e-9, "atol": 1e-10}  # float64 against float64, a few hundred operations
# A mean this many standard errors off has probability 6e-5; seeds are fixed.
Z = 4.0
COPIES = 6_000
# Rate type, block size, text. Learned and uniform rates in one window are in test_bounds.py.
FAMILY = (
    ("token", None, [0, 2, 1]),
    ("score", None, [0, 2, 1]),
    ("uniform", 2, [0, 2, 1, 1, 2]),
    ("learned", 2, [0, 2, 1, 1, 2]),
    ("learned", 3, [2, 0, 1, 1, 2, 0]),
    ("token", 2, [0, 2, 1, 1]),
    ("token", 1, [0, 2, 1, 1]),
    ("score", 3, [2, 0, 1, 1]),
    ("score", 1, [0, 2, 1, 1]),
)
systems = pytest.mark.parametrize(("rate_type", "block_size", "text"), FAMILY)
bounds = pytest.mark.parametrize("bound", ["order", "time"])


@pytest.fixture
def build(make_model):
    def build(rate_type, block_size, **overrides):
        settings = {
            **oracles.SMALLEST,
            "rate_type": rate_type,
            "block_size": block_size,
            **overrides,
        }
        # of the first few, the one with orders in all systems
        return oracles.vivid(make_model(**settings), seed=1)

    return build


def run(model, text, labels=None, copies=COPIES, **options):
    """The loss output for many copies of one text; independent draws, stratified quantiles."""
    batch = text.expand(copies, -1)
    labels = batch if labels is None else labels.expand(copies, -1)
    return model(
        input_ids=batch, labels=labels, generator=torch.Generator().manual_seed(0), **options
    )


def exact_bound(parts, bound):
    return oracles.add_up(oracles.order_bound if bound == "order" else oracles.time_bound, parts)


def assert_mean(drawn, exact):
    """The mean of the draws is `exact`, which the test could tell from one that is 5 % off;
    constants are exact."""
    if drawn.std() < 1e-9:
        torch.testing.assert_close(drawn.mean(), exact, **EXACT)
        return
    assert abs(oracles.z_score(drawn, exact)) < Z
    assert drawn.std() / math.sqrt(len(drawn)) < 0.05 * exact


@torch.no_grad()
@systems
@bounds
def test_bound_is_the_enumerated_one_part_by_part(build, rate_type, block_size, text, bound):
    model, text = build(rate_type, block_size), torch.tensor(text)
    out = run(model, text, bound=bound)
    main, velocity = exact_bound(oracles.block_tables(model, text), bound)
    assert velocity > 0.05 or rate_type == "uniform" or block_size == 1
    for drawn, exact in ((out.main, main), (out.velocity, velocity), (out.nelbo, main + velocity)):
        assert_mean(drawn, exact)
    torch.testing.assert_close(out.loss, out.nelbo.mean() / len(text), **EXACT)


@torch.no_grad()
@systems
def test_likelihood_is_below_the_order_bound_which_is_below_the_time_bound(
    build, rate_type, block_size, text
):
    model = build(rate_type, block_size)
    parts = oracles.block_tables(model, torch.tensor(text))
    order, time = exact_bound(parts, "order"), exact_bound(parts, "time")
    torch.testing.assert_close(order[0], time[0], **EXACT)  # the main parts are equal
    gaps = (sum(order) + oracles.add_up(oracles.log_likelihood, parts), sum(time) - sum(order))
    # one position per block leaves no order to hide, rates of one hide no level
    assert gaps[0] > 1e-3 or (block_size == 1 and abs(gaps[0]) < 1e-9)
    assert gaps[1] > 1e-3 or (rate_type == "uniform" and abs(gaps[1]) < 1e-9)


@torch.no_grad()
@pytest.mark.parametrize("rate_type", ["token", "score"])
def test_velocity_is_the_divergence_from_rates_that_the_token_law_defines(build, rate_type):
    # GenMD4: v = sum omega mu, law omega mu / v. SEDD: v = sum s, law s / v, s = exp(logit) / (V -
    # 1)
    model, noisy = build(rate_type, None), torch.tensor([[0, 3, 1, 3]])
    out = model(input_ids=noisy)
    raw = model.lm_head(out.last_hidden_state)[..., :3]  # without the mask token
    if rate_type == "token":
        omega = torch.nn.functional.softplus(model.omega.rho)
        weight, forward = omega[:3] * raw.softmax(-1), omega[noisy]
    else:
        weight, forward = raw.exp() / 3, torch.ones_like(out.rates)
    torch.testing.assert_close(out.rates, weight.sum(-1), **EXACT)
    law = torch.cat(
        [weight / weight.sum(-1, keepdim=True), torch.zeros(1, 4, 1, dtype=torch.float64)], -1
    )
    torch.testing.assert_close(out.logits.softmax(-1), law, **EXACT)
    torch.testing.assert_close(model.forward_rates(noisy), forward, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize(
    ("rate_type", "block_size"), [("token", None), ("learned", 2), ("token", 2), ("score", 2)]
)
@bounds
def test_value_of_the_training_loss_is_the_bound(build, rate_type, block_size, bound):
    model, text = build(rate_type, block_size), torch.tensor([0, 2, 1])
    evaluated = run(model, text, copies=32, bound=bound)
    trained = run(model.train(), text, copies=32, bound=bound)
    assert evaluated.score is None
    assert (trained.score is None) == (rate_type == "score")  # its forward law has nothing to learn
    torch.testing.assert_close(trained.loss, evaluated.loss, **EXACT)


@pytest.mark.parametrize(("rate_type", "num_views"), [("uniform", 2), ("score", 3)])
@bounds
def test_views_of_fixed_forward_rates_are_averaged_in_value_and_gradient(
    build, rate_type, num_views, bound
):
    text = torch.tensor([0, 2, 1]).expand(5, -1)
    options = {
        "input_ids": text,
        "labels": text,
        "quantiles": torch.linspace(0.1, 0.9, 5),
        "bound": bound,
    }
    model, generator = (
        build(rate_type, None, num_views=num_views).train(),
        torch.Generator().manual_seed(0),
    )
    together = model(**options, generator=generator)
    together.loss.backward()
    alone, generator = build(rate_type, None).train(), torch.Generator().manual_seed(0)
    single = [alone(**options, generator=generator) for _ in range(num_views)]
    (sum(out.loss for out in single) / num_views).backward()
    assert (single[0].nelbo - single[1].nelbo).abs().max() > 0.1 and together.score is None
    torch.testing.assert_close(
        together.nelbo, sum(out.nelbo for out in single) / num_views, **EXACT
    )
    for found, expected in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("rate_type", ["learned", "token"])
@bounds
def test_score_of_a_text_adds_up_the_products_of_its_blocks(build, monkeypatch, rate_type, bound):
    seen, rloo = [], loss_lomdm.rloo_score
    monkeypatch.setattr(loss_lomdm, "rloo_score", lambda *args: seen.append(args) or rloo(*args))
    out = run(build(rate_type, 2).train(), torch.tensor([0, 2, 1, 1, 2]), copies=400, bound=bound)
    (bound_1, bound_2), (log_q_1, log_q_2) = seen[0]
    assert bound_1.shape == (400, 3)
    by_block = (bound_1 - bound_2) * (log_q_1 - log_q_2) / 2
    torch.testing.assert_close(out.score, by_block.sum(-1), **EXACT)
    by_text = (bound_1 - bound_2).sum(-1) * (log_q_1 - log_q_2).sum(-1) / 2
    assert (out.score - by_text).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("rate_type", ["learned", "uniform", "token", "score"])
@pytest.mark.parametrize("block_size", [None, 2])
@bounds
def test_given_positions_condition_the_bound_and_are_not_counted(
    build, rate_type, block_size, bound
):
    model, text = build(rate_type, block_size), torch.tensor([0, 2, 1, 1, 2, 0])
    maskable = [0, 3, 4, 5]  # the second block in part, the first one too
    labels = torch.full_like(text, -100)
    labels[maskable] = text[maskable]
    main, velocity = exact_bound(oracles.block_tables(model, text, maskable), bound)
    out = run(model, text, labels, bound=bound)
    assert_mean(out.main, main)
    assert_mean(out.nelbo, main + velocity)
    torch.testing.assert_close(out.loss, out.nelbo.mean() / 4, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("block_size", [None, 3])
def test_phi_is_told_which_positions_are_given(build, block_size):
    model, text = build("learned", block_size), torch.tensor([[0, 2, 1, 1, 2, 0]])
    given = torch.tensor([[True, False, False, False, False, False]])
    told, untold = model.forward_rates(text, given=given), model.forward_rates(text)
    assert (told - untold)[:, 1:3].abs().max() > 0.01  # the rates of the others depend on it
    torch.testing.assert_close(
        model.forward_rates(text, given=torch.zeros_like(given)), untold, **EXACT
    )
    labels = text.masked_fill(given, -100)
    torch.testing.assert_close(model(input_ids=text, labels=labels).forward_rates, told, **EXACT)
    torch.nn.init.zeros_(model.phi.given)  # as at the start of training
    torch.testing.assert_close(model.forward_rates(text, given=given), untold, **EXACT)


# Systems that are special cases of each other


@torch.no_grad()
@pytest.mark.parametrize("rate_type", ["uniform", "token", "score"])
def test_blocks_of_one_with_the_order_bound_are_the_exact_loss_of_an_ar_model(build, rate_type):
    model, length = build(rate_type, 1), 6
    texts = torch.randint(0, 3, (8, length), generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(8, dtype=torch.float64)
    for i in range(length):
        mask = torch.full((8, 1), model.config.mask_token_id)
        prefix = torch.cat([texts[:, :i], mask], dim=1)  # x_<i and the mask in place of x_i
        expected -= (
            model(input_ids=prefix)
            .logits[:, -1]
            .log_softmax(-1)
            .gather(-1, texts[:, i : i + 1])[:, 0]
        )
    for seed in range(3):  # in every row and draw: there is no variance
        out = model(
            input_ids=texts,
            labels=texts,
            bound="order",
            generator=torch.Generator().manual_seed(seed),
        )
        torch.testing.assert_close(out.nelbo, expected, **EXACT)
        assert out.velocity.abs().max() < 1e-12
    single = model.float()(input_ids=texts, labels=texts, bound="order")
    # and so in float32
    torch.testing.assert_close(single.nelbo.double(), expected, rtol=1e-6, atol=1e-6)


def equal_estimates(first, second, text, bound, factor=1.0):
    """Both models draw the same views from the same seeds, and their bounds are the same up to
    `factor`."""
    texts, seeds = text.expand(16, -1), torch.arange(16)
    batches = [
        model.make_batch(texts, maskable=torch.ones_like(texts, dtype=torch.bool))
        for model in (first, second)
    ]
    quantiles = torch.rand(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    estimates = [
        model.estimate_bound(
            batch,
            model.forward_rates(texts),
            block_quantiles(quantiles, seeds, batch.blocks),
            seeds,
            bound=bound,
        )[0]
        for model, batch in zip((first, second), batches, strict=True)
    ]
    torch.testing.assert_close(estimates[0].main, estimates[1].main * factor, **EXACT)
    return estimates


@torch.no_grad()
@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize("c1", [1.0, 0.4])
@pytest.mark.parametrize("frozen", ["no range", "zero last layers"])
@bounds
def test_learned_rates_that_are_equal_are_the_polynomial_schedule(
    build, block_size, c1, frozen, bound
):
    # c1 = 1: MDLM, or BD3-LM with blocks. At equal rates the schedule u^c1 only renames the time:
    # same bound
    learned = build("learned", block_size, c1=c1, c2=0.0 if frozen == "no range" else 0.3)
    if frozen == "zero last layers":
        for head in (learned.phi, learned.psi):
            torch.nn.init.zeros_(head.out.weight)
    uniform = build("uniform", block_size)
    uniform.load_state_dict(learned.state_dict(), strict=False)
    text = torch.tensor([0, 2, 1, 1, 2])
    torch.testing.assert_close(
        learned.forward_rates(text[None]), torch.full((1, 5), c1, dtype=torch.float64)
    )
    ours, theirs = equal_estimates(learned, uniform, text, bound)
    assert ours.velocity.abs().max() < 1e-12 and theirs.velocity.abs().max() < 1e-12


@torch.no_grad()
def test_one_block_that_holds_the_text_is_one_window(build):
    text = torch.tensor([0, 2, 1])
    for rate_type in ("learned", "uniform", "token", "score"):
        for bound in ("order", "time"):
            ours, theirs = equal_estimates(build(rate_type, 4), build(rate_type, None), text, bound)
            torch.testing.assert_close(ours.velocity, theirs.velocity, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize(
    ("rate_type", "c1"), [("uniform", 1.0), ("learned", 1.0), ("learned", 0.4)]
)
def test_clipped_training_is_the_loss_of_bd3_lm_on_identical_masks(build, rate_type, c1):
    low, high = 0.45, 0.95
    model = build(rate_type, 2, c1=c1, c2=0.0, bound="time", time_range=[low, high]).train()
    clean = torch.randint(0, 3, (40, 5), generator=torch.Generator().manual_seed(0))
    seeds, maskable = torch.arange(40), torch.ones_like(clean, dtype=torch.bool)
    quantiles = torch.rand(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch = model.make_batch(clean, maskable=maskable)
    terms, *_ = model.estimate_bound(batch, model.forward_rates(clean), quantiles, seeds)
    uniform = torch.exp(-loss_lomdm.position_exponentials(seeds, torch.arange(5)[None]))
    for block, start in enumerate((0, 2, 4)):
        at = slice(start, start + 2)
        # a time per block; its polynomial schedule
        u = (low + (high - low) * quantiles[:, block : block + 1]) ** c1
        masked = uniform[:, at] < u
        noisy = torch.cat([clean[:, :start], clean[:, at].masked_fill(masked, 3)], dim=1)
        law = model(input_ids=noisy).logits[:, at].log_softmax(-1)
        nll = -law.gather(-1, clean[:, at, None])[..., 0]
        expected = (nll * masked).sum(-1) * c1 / u[:, 0] ** (1 / c1)
        torch.testing.assert_close(terms.main[:, block], expected, **EXACT)


@torch.no_grad()
def test_clipped_times_are_uniform_in_their_range_and_evaluation_is_never_clipped(build):
    text, low, high = torch.tensor([0, 2, 1, 1]), 0.45, 0.95
    clipped = build("uniform", 2, bound="time", time_range=[low, high])
    exact = sum(exact_bound(oracles.block_tables(clipped, text), "time"))
    evaluated = run(clipped, text)
    torch.testing.assert_close(
        evaluated.nelbo, run(build("uniform", 2, bound="time"), text).nelbo, **EXACT
    )
    assert_mean(evaluated.nelbo, exact)
    trained = run(clipped.train(), text)
    # the mean over the range of the integrand, each time with its weight 1/u
    times = low + (high - low) * (torch.arange(2_000, dtype=torch.float64) + 0.5) / 2_000
    integrand = oracles.add_up(
        lambda table: oracles.time_law(table, times) @ oracles.rate_terms(table)[0] / times,
        oracles.block_tables(clipped, text),
    )
    assert_mean(trained.nelbo, integrand.mean())
    assert abs(oracles.z_score(trained.nelbo, exact)) > 2 * Z  # it is no bound
