"""Values of both bounds: the model's estimates against enumeration over orders, masks and local
times."""

import math

import pytest
import torch

import oracles
from hf_lomdm.modeling import process_lomdm as process
from hf_lomdm.modeling.random_lomdm import position_exponentials

EXACT = {"rtol": 1e-9, "atol": 1e-10}  # float64 against float64, a few hundred operations
# A mean this many standard errors off has probability 6e-5; seeds are fixed.
Z = 4.0
COPIES = 8_000
TEXT = torch.tensor([0, 2, 1])


@pytest.fixture
def model(make_model):
    return oracles.vivid(make_model(**oracles.SMALLEST))


def run(model, text=TEXT, labels=None, copies=COPIES, seed=0, **options):
    """The loss output for many copies of one text; independent draws, stratified quantiles."""
    batch = text.expand(copies, -1)
    labels = batch if labels is None else labels.expand(copies, -1)
    return model(
        input_ids=batch, labels=labels, generator=torch.Generator().manual_seed(seed), **options
    )


def exact_bound(table, bound):
    return oracles.order_bound(table) if bound == "order" else oracles.time_bound(table)


@torch.no_grad()
@pytest.mark.parametrize("bound", ["order", "time"])
def test_bound_of_the_model_is_the_enumerated_one_part_by_part(model, bound):
    out = run(model, bound=bound)
    main, velocity = exact_bound(oracles.tables(model, TEXT), bound)
    assert velocity > 0.05  # the rates differ enough for a missing part to show
    # stratified quantiles only make the true error smaller than the one z_score divides by
    for drawn, exact in ((out.main, main), (out.velocity, velocity), (out.nelbo, main + velocity)):
        assert abs(oracles.z_score(drawn, exact)) < Z
        assert drawn.std() / math.sqrt(COPIES) < 0.05 * exact  # and the test could tell
    torch.testing.assert_close(out.loss, out.nelbo.mean() / len(TEXT), **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("text", [[0, 0, 0], [0, 2, 1], [1, 2, 0, 2]])
def test_likelihood_is_below_the_order_bound_which_is_below_the_time_bound(model, text):
    table = oracles.tables(model, torch.tensor(text))
    order, time = oracles.order_bound(table), oracles.time_bound(table)
    torch.testing.assert_close(order[0], time[0], **EXACT)  # the main parts are equal
    assert -oracles.log_likelihood(table) < sum(order) < sum(time)


@torch.no_grad()
def test_velocity_parts_differ_by_the_stated_amount_over_the_chain(model):
    table = oracles.tables(model, TEXT)
    excess = 0.0
    for k in range(len(TEXT)):
        for state, probability in enumerate(oracles.prefix_law(table.forward, k)):
            at = table.masked[state]
            if at.any():
                ratio = table.reverse[state, at].sum() / table.forward[at].sum()
                excess += probability * (ratio - 1 - ratio.log())
    order, time = oracles.order_bound(table), oracles.time_bound(table)
    torch.testing.assert_close(time[1] - order[1], excess, **EXACT)


@torch.no_grad()
def test_quadrature_agrees_with_the_integral_in_closed_form(model):
    # prod (u^w or 1 - u^w) expands into powers of u, and int u^(a-1) du = 1/a
    table = oracles.tables(model, TEXT)
    main, _ = oracles.rate_terms(table)
    closed = 0.0
    for state, masked in enumerate(table.masked.tolist()):
        for extra, also in enumerate(table.masked.tolist()):
            if state and not state & extra:
                power = table.forward[torch.tensor(masked) | torch.tensor(also)].sum()
                closed += main[state] * (-1) ** sum(also) / power
    torch.testing.assert_close(oracles.time_bound(table)[0], closed, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("bound", ["order", "time"])
def test_value_of_the_training_loss_is_the_bound(model, bound):
    evaluated, trained = (
        run(model, copies=64, bound=bound),
        run(model.train(), copies=64, bound=bound),
    )
    assert evaluated.score is None and trained.score.abs().max() > 0
    torch.testing.assert_close(trained.loss, evaluated.loss, **EXACT)


@torch.no_grad()
def test_cut_time_bound_with_reconstruction_is_unbiased_for_the_cut_bound(make_model):
    model = oracles.vivid(make_model(**oracles.SMALLEST, time_epsilon=0.05)).train()
    table = oracles.tables(model, TEXT)
    cut = oracles.time_bound(table, cut=0.05)
    rest = oracles.reconstruction(table, cut=0.05)
    out = run(model, bound="time")
    assert abs(oracles.z_score(out.nelbo, sum(cut) + rest)) < Z
    assert abs(oracles.z_score(out.velocity, cut[1])) < Z
    assert rest > 5 * out.nelbo.std() / math.sqrt(COPIES)  # the cut bound alone would not pass


@torch.no_grad()
def test_cut_bound_with_reconstruction_tends_to_the_uncut_bound(model):
    table = oracles.tables(model, TEXT)
    uncut = sum(oracles.time_bound(table))
    gaps = [
        abs(sum(oracles.time_bound(table, cut=e)) + oracles.reconstruction(table, e) - uncut)
        for e in (1e-3, 1e-6, 1e-12, 1e-24)
    ]
    # the gap shrinks at least as fast as eps^(smallest rate), and rates are above 0.05
    assert (
        all(after < before / 5 for before, after in zip(gaps[:-1], gaps[1:], strict=True))
        and gaps[-1] < 1e-6
    )


@torch.no_grad()
def test_evaluation_is_never_cut(make_model):
    model = oracles.vivid(make_model(**oracles.SMALLEST, time_epsilon=0.3))
    plain = oracles.vivid(make_model(**oracles.SMALLEST))
    torch.testing.assert_close(
        run(model, bound="time").nelbo, run(plain, bound="time").nelbo, **EXACT
    )


@torch.no_grad()
def test_rates_of_one_give_the_mdlm_loss_on_identical_masks(make_model):
    epsilon, quantile = 0.01, torch.tensor([0.2, 0.5, 0.9])
    model = make_model(c1=1.0, c2=0.0, time_epsilon=epsilon).train()
    clean = torch.randint(3, 10, (3, 12), generator=torch.Generator().manual_seed(0))
    maskable, seeds = torch.ones_like(clean, dtype=torch.bool), torch.arange(3)
    rates = model.forward_rates(clean)
    terms, *_ = model.estimate_bound(
        model.make_batch(clean, maskable=maskable), rates, quantile[:, None], seeds, bound="time"
    )
    # MDLM: mask probability t, weight 1/t; a share of the draws is kept for the reconstruction term
    share = process.RECONSTRUCTION_SHARE
    t = epsilon + (1 - epsilon) * (quantile - share) / (1 - share)
    uniform = torch.exp(-position_exponentials(seeds, torch.arange(12)[None]))
    masked = uniform < t[:, None].double()
    assert masked.any(-1).all() and not masked.all()
    logits = model(input_ids=clean.masked_fill(masked, 10)).logits
    nll = -logits.log_softmax(-1).gather(-1, clean[..., None]).squeeze(-1)
    expected = (nll * masked).sum(-1) / t * (1 - epsilon) / (1 - share)
    assert torch.equal(rates, torch.ones_like(rates)) and terms.velocity.abs().max() < 1e-6
    torch.testing.assert_close(terms.main[:, 0], expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("bound", ["order", "time"])
def test_uniform_rates_equal_learned_rates_without_a_range(make_model, bound):
    learned = make_model(**oracles.SMALLEST, c1=1.0, c2=0.0)
    uniform = make_model(**oracles.SMALLEST, rate_type="uniform")
    uniform.load_state_dict(learned.state_dict(), strict=False)
    batch = TEXT.expand(4, -1)
    quantiles, seeds = torch.tensor([0.1, 0.4, 0.6, 0.9]), torch.arange(4)
    maskable = torch.ones_like(batch, dtype=torch.bool)
    ours, theirs = (
        m.estimate_bound(
            m.make_batch(batch, maskable=maskable),
            m.forward_rates(batch),
            quantiles[:, None],
            seeds,
            bound=bound,
        )[0]
        for m in (learned, uniform)
    )
    torch.testing.assert_close(ours.main, theirs.main, rtol=1e-5, atol=1e-6)  # float32
    assert uniform.num_views == 1 and theirs.velocity.abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("bound", ["order", "time"])
def test_given_positions_condition_the_bound_and_are_not_counted(model, bound):
    labels = torch.tensor([0, -100, 1, 2])
    text = torch.tensor([0, 2, 1, 2])
    table = oracles.tables(model, text, maskable=[0, 2, 3])
    out = run(model, text, labels, bound=bound)
    main, velocity = exact_bound(table, bound)
    assert (
        abs(oracles.z_score(out.main, main)) < Z
        and abs(oracles.z_score(out.velocity, velocity)) < Z
    )
    torch.testing.assert_close(out.loss, out.nelbo.mean() / 3, **EXACT)


def padded(texts: list[torch.Tensor], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch `[B, L]` with its attention mask; the padding holds tokens that would show if
    anything read them."""
    width = max(len(text) for text in texts) + 2
    ids, mask = (
        torch.ones(len(texts), width, dtype=torch.long),
        torch.zeros(len(texts), width, dtype=torch.long),
    )
    for b, text in enumerate(texts):
        at = slice(width - len(text), width) if left else slice(0, len(text))
        ids[b, at], mask[b, at] = text, 1
    return ids, mask


@torch.no_grad()
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_padding_changes_neither_token_laws_nor_rates_nor_bounds(model, left):
    texts = [torch.tensor([0, 2, 1]), torch.tensor([2, 1, 0, 0, 1])]
    ids, mask = padded(texts, left)
    noisy = ids.clone()
    noisy[:, 3 if left else 1] = 3
    out, rates = model(input_ids=noisy, attention_mask=mask), model.forward_rates(ids, mask)
    for b in range(2):
        real = mask[b].bool()
        alone = model(input_ids=noisy[b, real][None])
        torch.testing.assert_close(out.logits[b, real], alone.logits[0], **EXACT)
        torch.testing.assert_close(out.rates[b, real], alone.rates[0], **EXACT)
        torch.testing.assert_close(rates[b, real], model.forward_rates(texts[b][None])[0], **EXACT)
    for bound in ("order", "time"):
        together = model(
            ids,
            mask,
            labels=ids,
            bound=bound,
            generator=[torch.Generator().manual_seed(b) for b in (1, 2)],
        )
        for b, text in enumerate(texts):
            generator = [torch.Generator().manual_seed(b + 1)]
            alone = model(text[None], labels=text[None], bound=bound, generator=generator)
            for name in ("nelbo", "main", "velocity", "rate_ratio"):
                torch.testing.assert_close(together[name][b], alone[name][0], **EXACT)


@torch.no_grad()
def test_a_fully_given_text_has_a_zero_bound_and_does_not_disturb_others(model):
    batch = TEXT.expand(2, -1)
    labels = torch.stack([torch.full_like(TEXT, -100), TEXT])
    for bound in ("order", "time"):
        generators = [torch.Generator().manual_seed(b) for b in (0, 1)]
        out = model(batch, labels=labels, bound=bound, generator=generators)
        alone = model(
            batch[1:], labels=labels[1:], bound=bound, generator=[torch.Generator().manual_seed(1)]
        )
        assert out.nelbo[0] == 0 and out.rate_ratio[0] == 1
        torch.testing.assert_close(out.nelbo[1], alone.nelbo[0], **EXACT)
        torch.testing.assert_close(out.loss, alone.loss, **EXACT)
