"""The functions of process_lomdm.py and random_lomdm.py against enumeration, closed forms and
counted draws."""

import math

import pytest
import torch

import oracles
from hf_lomdm.evaluation import nelbo
from hf_lomdm.modeling import process_lomdm as process
from hf_lomdm.modeling.blocks_lomdm import Blocks
from hf_lomdm.modeling.random_lomdm import position_exponentials, row_seeds

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64 sums of a few dozen terms
# A chi-square statistic this many standard deviations out has probability 3e-5; seeds are fixed.
Z = 4.0
RATES = torch.tensor([[0.9, 0.2, 1.3, 0.05]], dtype=torch.float64)
DRAWS = 40_000


def exponentials(draws: int, length: int, seed: int = 0) -> torch.Tensor:
    seeds = row_seeds(torch.Generator().manual_seed(seed), draws, "cpu")
    return position_exponentials(seeds, torch.arange(length)[None])


def bits(masked: torch.Tensor) -> torch.Tensor:
    return (masked * 2 ** torch.arange(masked.shape[-1])).sum(-1)


def table(n: int = 4, seed: int = 0) -> oracles.Tables:
    """A made-up network: random losses and rates for every state."""
    generator = torch.Generator().manual_seed(seed)
    nll, reverse = (
        torch.rand(2**n, n, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2)
    )
    return oracles.Tables(oracles.subsets(n), nll, reverse, RATES[0, :n].clone().requires_grad_())


def view(masked: torch.Tensor, weight: float = 1.0) -> process.View:
    rates = torch.full((len(masked), 1), weight, dtype=torch.float64)
    return process.View(masked, torch.zeros_like(rates), rates)


# Time and rates


def test_velocity_is_minus_the_slope_of_alpha_over_one_minus_alpha():
    time = torch.tensor([[0.3], [0.9]], dtype=torch.float64, requires_grad=True)
    alpha = process.alpha(process.local_time(time).log(), RATES.expand(2, -1))
    for i in range(RATES.shape[1]):
        (slope,) = torch.autograd.grad(alpha[:, i].sum(), time, retain_graph=True)
        expected = -slope[:, 0] / (1 - alpha[:, i])
        actual = process.velocity(time, RATES)[:, i]
        torch.testing.assert_close(actual, expected, **EXACT)


def test_windows_put_the_leftmost_block_last():
    blocks = Blocks(torch.tensor([[0, 0, 1, 1, 2, 2]]), size=2, num_blocks=3)
    time = torch.tensor([[0.5]], dtype=torch.float64)
    local = process.local_time(time, blocks.of_position, blocks.num_blocks)
    # windows from the left: [2/3, 1], [1/3, 2/3], [0, 1/3]
    torch.testing.assert_close(
        local, torch.tensor([[0.0, 0.0, 0.5, 0.5, 1.0, 1.0]], dtype=torch.float64), **EXACT
    )


def test_velocity_in_a_window_counts_the_number_of_blocks():
    blocks = Blocks(torch.tensor([[0, 1]]), size=1, num_blocks=2)
    time = torch.tensor([[0.2]], dtype=torch.float64, requires_grad=True)
    alpha = process.alpha(
        process.local_time(time, blocks.of_position, blocks.num_blocks).log(), RATES[:, :2]
    )
    (slope,) = torch.autograd.grad(alpha[0, 1], time)
    expected = -slope[0, 0] / (1 - alpha[0, 1])
    torch.testing.assert_close(
        process.velocity(time, RATES[:, :2], blocks.of_position, blocks.num_blocks)[0, 1],
        expected,
        **EXACT,
    )


def test_reveal_probability_is_the_ratio_of_mask_probabilities_and_one_at_the_end():
    u, s = (torch.tensor([[value]], dtype=torch.float64).log() for value in (0.7, 0.2))
    expected = 1 - (0.2 / 0.7) ** RATES
    torch.testing.assert_close(process.reveal_probability(u, s, RATES), expected, **EXACT)
    end = torch.full_like(u, -torch.inf)
    assert (process.reveal_probability(u, end, RATES) == 1).all()


def test_alpha_keeps_its_precision_in_float32_near_both_ends():
    log_u = torch.tensor([[-1e-6], [-1.0], [-60.0]])
    exact = torch.log(-torch.expm1(RATES * log_u.double()))
    # one float32 rounding of the exponent and one of the result; the last alphas are 1 - 1e-24,
    # whose log is ~1e-24
    torch.testing.assert_close(
        process.alpha(log_u, RATES.float()).log().double(), exact, rtol=3e-6, atol=1e-7
    )


def test_learned_rates_average_to_c1_over_real_positions_whatever_padding_holds():
    scores = torch.tensor([[0.3, -2.0, 5.0, 100.0]], dtype=torch.float64)
    real = torch.tensor([[True, True, True, False]])
    rates = process.learned_rates(scores, 0.7, 0.65, real)
    sigmoid = scores[:, :3].sigmoid()
    torch.testing.assert_close(rates[:, :3], 0.7 + 0.65 * (sigmoid - sigmoid.mean()), **EXACT)
    assert rates[0, :3].mean().item() == pytest.approx(0.7, abs=1e-12) and (rates > 0).all()


# Draws


def test_uniforms_behind_the_draws_are_uniform_and_uncorrelated():
    uniform = (-exponentials(DRAWS, 3)).exp()  # [DRAWS, 3]
    cells = 100
    for i in range(3):
        counts = torch.histc(uniform[:, i], cells, 0, 1)
        assert (
            abs(oracles.chi_square_z(counts, torch.full((cells,), 1 / cells, dtype=torch.float64)))
            < Z
        )
    neighbours, rows = uniform[:, :2].T, torch.stack([uniform[:-1, 0], uniform[1:, 0]])
    for pair in (neighbours, rows):
        assert abs(torch.corrcoef(pair)[0, 1]) < Z / math.sqrt(DRAWS)


def test_uniforms_behind_the_draws_are_uniform_in_their_late_bits_too():
    uniform = (-exponentials(4_000, 50)).exp()
    counts = torch.histc(((uniform * 2.0**36) % 1).flatten(), 64, 0, 1)
    assert abs(oracles.chi_square_z(counts, torch.full((64,), 1 / 64, dtype=torch.float64))) < Z


def test_uniforms_of_consecutive_seeds_are_uncorrelated():
    value = position_exponentials(torch.arange(DRAWS), torch.arange(2)[None])
    pair = torch.stack([value[:-1, 0], value[1:, 0]])
    assert abs(torch.corrcoef(pair)[0, 1]) < Z / math.sqrt(DRAWS)
    assert abs(value.mean() - 1) < Z / math.sqrt(2 * DRAWS)


def test_draws_depend_on_the_seed_and_the_unpadded_position_alone():
    seeds = torch.tensor([5, 7])
    alone = position_exponentials(seeds[1:], torch.tensor([[0, 1]]))
    padded = position_exponentials(seeds, torch.tensor([[0, 1, 2, 3], [-1, -1, 0, 1]]))
    assert torch.equal(padded[1:, 2:], alone)


@pytest.mark.parametrize("generator", [0, [0], "1", [None]])
def test_what_is_no_generator_is_refused(make_model, generator):
    model, ids = make_model(), torch.tensor([[3, 4, 5]])
    calls = (
        lambda: row_seeds(generator, 1, "cpu"),
        lambda: model(ids, labels=ids, generator=generator),
    )
    for call in (*calls, lambda: nelbo(model, ids, generator=generator)):
        with pytest.raises(
            ValueError, match="generator must be a torch.Generator.*Pass torch.Generator"
        ):
            call()


def test_row_seeds_follow_each_text_and_reject_a_list_of_the_wrong_length():
    one_by_one = [row_seeds(torch.Generator().manual_seed(s), 1, "cpu") for s in (1, 2)]
    together = row_seeds([torch.Generator().manual_seed(s) for s in (1, 2)], 2, "cpu")
    assert torch.equal(torch.cat(one_by_one), together)
    with pytest.raises(ValueError, match="generator has 1 entries for a batch of 2"):
        row_seeds([torch.Generator()], 2, "cpu")


@pytest.mark.parametrize("u", [0.05, 0.5])
def test_masks_have_the_enumerated_law(u):
    rates = RATES.expand(DRAWS, -1)
    maskable = torch.ones_like(rates, dtype=torch.bool)
    log_u = torch.full((DRAWS, 1), math.log(u), dtype=torch.float64)
    drawn = bits(process.draw_masks(exponentials(DRAWS, 4), log_u, rates, maskable))
    law = oracles.time_law(table(), torch.tensor([u], dtype=torch.float64))[0].detach()
    assert abs(oracles.chi_square_z(torch.bincount(drawn, minlength=16).double(), law)) < Z


@pytest.mark.parametrize("rates", [torch.ones(2, 4).long(), -torch.ones(2, 4), torch.zeros(2, 4)])
def test_rates_that_are_none_are_refused_by_every_draw(rates):
    maskable, quantiles = torch.ones(2, 4, dtype=torch.bool), torch.full((2, 1), 0.5)
    for draw in (process.draw_order_view, process.draw_time_view):
        with pytest.raises(
            ValueError, match=f"rates must be positive floating numbers, got .* of {rates.dtype}"
        ):
            draw(rates, maskable, quantiles, exponentials(2, 4))


def test_orders_have_the_plackett_luce_law_and_given_positions_come_last():
    rates = torch.tensor([[0.9, 7.0, 0.2, 1.3]], dtype=torch.float64).expand(DRAWS, -1)
    maskable = torch.tensor([True, False, True, True]).expand(DRAWS, -1)
    rank = process.draw_order(exponentials(DRAWS, 4), rates, maskable)
    assert (rank[:, 1] == 3).all()
    order = rank[:, [0, 2, 3]].argsort(-1)
    key = (order * torch.tensor([9, 3, 1])).sum(-1)
    law = list(oracles.order_probabilities(rates[0, [0, 2, 3]]))
    counts = torch.stack([(key == a * 9 + b * 3 + c).sum() for (a, b, c), _ in law]).double()
    assert counts.sum() == DRAWS
    assert abs(oracles.chi_square_z(counts, torch.stack([p for _, p in law]))) < Z


@pytest.mark.parametrize("k", [1, 2])
def test_views_of_the_order_bound_have_the_law_of_k_reveals(k):
    rates, quantiles = RATES.expand(DRAWS, -1), torch.full((DRAWS, 1), (k + 0.5) / 4)
    maskable = torch.ones_like(rates, dtype=torch.bool)
    drawn = process.draw_order_view(rates, maskable, quantiles.double(), exponentials(DRAWS, 4))
    assert (drawn.weight == 4).all() and (drawn.masked.sum(-1) == 4 - k).all()
    law = oracles.prefix_law(RATES[0], k)
    assert (
        abs(oracles.chi_square_z(torch.bincount(bits(drawn.masked), minlength=16).double(), law))
        < Z
    )


def test_quantiles_choose_every_k_equally_often_and_never_n():
    rates = torch.ones(7, 3, dtype=torch.float32)
    quantiles = torch.tensor([1e-9, 0.33, 0.34, 0.66, 0.67, 0.99, 1 - 2**-24])[:, None]
    maskable = torch.ones(7, 3, dtype=torch.bool)
    drawn = process.draw_order_view(rates, maskable, quantiles, exponentials(7, 3))
    assert (3 - drawn.masked.sum(-1)).tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_a_text_without_maskable_positions_has_empty_views_and_zero_bounds():
    rates, none = RATES.clone().requires_grad_(), torch.zeros(1, 4, dtype=torch.bool)
    half = torch.full((1, 1), 0.5, dtype=torch.float64)
    for draw, bound in (
        (process.draw_order_view, process.order_bound),
        (process.draw_time_view, process.time_bound),
    ):
        drawn = draw(rates, none, half, exponentials(1, 4))
        terms = bound(torch.ones_like(rates), rates, rates * 2, drawn)
        assert not drawn.masked.any() and terms.main.item() == 0 and terms.velocity.item() == 0
        (gradient,) = torch.autograd.grad((terms.main + terms.velocity + drawn.log_q).sum(), rates)
        assert (gradient == 0).all()


# Probabilities of draws


def test_log_prob_of_masks_and_its_gradient_equal_the_enumerated_ones():
    tables = table()
    rates = tables.forward[None].expand(16, -1)
    log_u = torch.full((16, 1), math.log(0.3), dtype=torch.float64)
    maskable = torch.ones(16, 4, dtype=torch.bool)
    actual = process.log_prob_masks(tables.masked, log_u, rates, maskable)[:, 0]
    exact = oracles.time_law(tables, torch.tensor([0.3], dtype=torch.float64))[0].log()
    torch.testing.assert_close(actual, exact, **EXACT)
    weight = torch.linspace(-1, 1, 16, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((law * weight).sum(), tables.forward)[0] for law in (actual, exact)
    ]
    torch.testing.assert_close(*gradients, **EXACT)


def test_log_prob_of_masks_has_a_finite_gradient_when_everything_is_masked():
    rates, log_u = RATES.clone().requires_grad_(), torch.zeros(1, 1, dtype=torch.float64)
    everything = torch.ones(1, 4, dtype=torch.bool)
    (gradient,) = torch.autograd.grad(
        process.log_prob_masks(everything, log_u, rates, everything).sum(), rates
    )
    assert (gradient == 0).all()


@pytest.mark.parametrize("k", [0, 1, 3, 4])
def test_log_prob_of_a_prefix_and_its_gradient_equal_the_product_of_choices(k):
    # position 1 is given: it has a rank behind all others and no part in the probability
    rates = torch.tensor([0.9, 7.0, 0.2, 1.3, 0.05], dtype=torch.float64, requires_grad=True)
    maskable, places = torch.tensor([[True, False, True, True, True]]), [0, 2, 3, 4]
    for order, _ in oracles.order_probabilities(rates[places]):
        rank = torch.full((1, 5), 4)
        for j, i in enumerate(order):
            rank[0, places[i]] = j
        left, exact = list(places), torch.zeros((), dtype=torch.float64)
        for i in order[:k]:
            exact = exact + (rates[places[i]] / rates[left].sum()).log()
            left.remove(places[i])
        actual = process.log_prob_prefix(rank, torch.tensor([[k]]), rates[None], maskable)[0, 0]
        torch.testing.assert_close(actual, exact, **EXACT)
        (gradient,) = torch.autograd.grad(actual, rates)
        expected = (
            torch.autograd.grad(exact, rates)[0] if k else torch.zeros(5, dtype=torch.float64)
        )
        torch.testing.assert_close(gradient, expected, **EXACT)


# Bounds


def test_order_bound_of_every_state_is_the_divergence_of_the_reveal_laws():
    tables = table()
    w = tables.forward.detach()[None].expand(16, -1)
    terms = process.order_bound(tables.nll, w, tables.reverse, view(tables.masked, weight=4.0))
    for state in range(1, 16):
        main, velocity = oracles.order_terms(tables, state)
        torch.testing.assert_close(terms.main[state, 0], 4 * main.detach(), **EXACT)
        torch.testing.assert_close(terms.velocity[state, 0], 4 * velocity.detach(), **EXACT)
        assert velocity >= 0


def test_time_bound_of_every_state_is_the_divergence_of_the_jump_rates():
    tables = table()
    w = tables.forward.detach()[None].expand(16, -1)
    terms = process.time_bound(tables.nll, w, tables.reverse, view(tables.masked, weight=2.5))
    main, velocity = oracles.rate_terms(oracles.keep_gradient(tables))
    torch.testing.assert_close(terms.main[:, 0], 2.5 * main, **EXACT)
    torch.testing.assert_close(terms.velocity[:, 0], 2.5 * velocity, **EXACT)
    assert (velocity >= 0).all()


def test_velocity_parts_of_one_reveal_differ_by_the_stated_amount():
    tables = table()
    w = tables.forward.detach()[None].expand(15, -1)
    nll, v, masked = tables.nll[1:], tables.reverse[1:], tables.masked[1:]
    total = (w * masked).sum(-1, keepdim=True)
    by_order = process.order_bound(nll, w, v, view(masked)).velocity
    by_time = process.time_bound(nll, w, v, view(masked)).velocity / total  # per reveal
    ratio = (v * masked).sum(-1, keepdim=True) / total
    torch.testing.assert_close(by_time - by_order, ratio - 1 - ratio.log(), **EXACT)


def test_rate_ratio_is_the_total_of_v_over_the_total_of_w_at_masked_positions():
    tables = table()
    w = tables.forward.detach()[None].expand(15, -1)
    masked, v = tables.masked[1:], tables.reverse[1:]
    expected = (v * masked).sum(-1, keepdim=True) / (w * masked).sum(-1, keepdim=True)
    for bound in (process.order_bound, process.time_bound):
        torch.testing.assert_close(
            bound(tables.nll[1:], w, v, view(masked)).rate_ratio, expected, **EXACT
        )


@pytest.mark.parametrize("epsilon", [None, 0.02])
def test_weights_of_time_draws_integrate_the_enumerated_bound(epsilon):
    # a midpoint rule over the quantile, an exact expectation over the masks at each: no draws
    tables = oracles.keep_gradient(table())
    count = 20_000
    quantiles = ((torch.arange(count, dtype=torch.float64) + 0.5) / count)[:, None]
    rates, maskable = tables.forward.expand(count, -1), torch.ones(count, 4, dtype=torch.bool)
    drawn = process.draw_time_view(
        rates, maskable, quantiles, exponentials(count, 4), epsilon=epsilon
    )
    # local times are read back from the probability of the masks: a state with everything masked
    # has log q = W log u
    everything = exponentials(1, 4).expand(count, -1) * 0 + 1e9
    all_masked = process.draw_time_view(rates, maskable, quantiles, everything, epsilon=epsilon)
    assert all_masked.masked.all()
    u = (all_masked.log_q[:, 0] / tables.forward.sum()).exp()
    law = oracles.time_law(tables, u) * all_masked.weight
    main, velocity = oracles.rate_terms(tables)
    if epsilon is None:
        actual, expected = (law @ (main + velocity)).mean(), sum(oracles.time_bound(tables))
    else:
        plain = law @ (tables.masked * tables.nll).sum(-1)
        actual = torch.where(drawn.reconstruction[:, 0], plain, law @ (main + velocity)).mean()
        expected = sum(oracles.time_bound(tables, cut=epsilon)) + oracles.reconstruction(
            tables, epsilon
        )
    # the integrand behaves as r^(w/kappa - 1) = r at worst: the midpoint rule errs by O(1/count)
    torch.testing.assert_close(actual, expected, rtol=2e-4, atol=0)


def test_rloo_score_of_two_views_is_half_the_product_of_differences_without_gradient_of_bounds():
    bounds = torch.tensor([[[3.0]], [[1.0]]], requires_grad=True)
    log_q = torch.tensor([[[-2.0]], [[-0.5]]], requires_grad=True)
    score = process.rloo_score(bounds, log_q)
    assert score.item() == (3 - 1) * (-2 + 0.5) / 2
    score.sum().backward()
    assert bounds.grad is None and log_q.grad.flatten().tolist() == [1.0, -1.0]


def test_rloo_score_compares_each_view_with_the_mean_of_the_others():
    bounds, log_q = (
        torch.tensor([[[3.0]], [[1.0]], [[8.0]]]),
        torch.tensor([[[-2.0]], [[-0.5]], [[-3.0]]]),
    )
    score = process.rloo_score(bounds, log_q)
    expected = ((3 - 4.5) * -2.0 + (1 - 5.5) * -0.5 + (8 - 2) * -3.0) / 3
    torch.testing.assert_close(score, torch.tensor([[expected]]))


# Blocks


@pytest.mark.parametrize("draw", [process.draw_order_view, process.draw_time_view])
def test_blocks_give_the_draws_and_sums_of_each_block_alone(draw):
    index = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]])
    blocks = Blocks(index.expand(50, -1), size=3, num_blocks=3)
    generator = torch.Generator().manual_seed(3)
    w, v, nll = (
        torch.rand(50, 8, generator=generator, dtype=torch.float64) + 0.1 for _ in range(3)
    )
    maskable = torch.rand(50, 8, generator=generator) < 0.8
    quantiles = torch.rand(50, 3, generator=generator, dtype=torch.float64)
    noise = exponentials(50, 8)
    bound = process.order_bound if draw is process.draw_order_view else process.time_bound
    whole = draw(w, maskable, quantiles, noise, blocks)
    terms = bound(nll, w, v, whole, blocks)
    for b in range(3):
        at = index[0] == b
        alone = draw(w[:, at], maskable[:, at], quantiles[:, b : b + 1], noise[:, at])
        expected = bound(nll[:, at], w[:, at], v[:, at], alone)
        assert torch.equal(whole.masked[:, at], alone.masked)
        pairs = [(whole.log_q, alone.log_q), (whole.weight, alone.weight)]
        pairs += [(getattr(terms, name), getattr(expected, name)) for name in terms._fields]
        for together, by_itself in pairs:
            torch.testing.assert_close(together[:, b : b + 1], by_itself, **EXACT)


def test_learned_rates_of_blocks_equal_those_of_each_block_alone():
    scores = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    real = torch.ones(4, 6, dtype=torch.bool)
    real[1, 4:] = False
    blocks = Blocks(torch.tensor([0, 0, 0, 0, 1, 1]).expand(4, -1), size=4, num_blocks=2)
    whole = process.learned_rates(scores, 0.7, 0.65, real, blocks)
    for at in (slice(0, 4), slice(4, 6)):
        torch.testing.assert_close(
            whole[:, at], process.learned_rates(scores[:, at], 0.7, 0.65, real[:, at]), **EXACT
        )
