"""Rates times a factor of each position, and rates that are exponentials: what they are, both
bounds, and what is refused."""

import math

import pytest
import torch

import oracles
from hf_lomdm.modeling.process_lomdm import exponential_rates, learned_rates

EXACT = {"rtol": 1e-9, "atol": 1e-10}
Z = 4.0  # a mean this many standard errors off has probability 6e-5; seeds are fixed
COPIES = 6_000
ORDER = [0.0, 1.5, -1.0, 0.5, 2.0, -2.0, 0.0, 3.0]  # one for each position of `oracles.SMALLEST`


@pytest.fixture
def build(make_model):
    """A vivid model of a rate type, with an order or without; the weights are the same."""

    def build(rate_type, order=ORDER, **overrides):
        settings = {**oracles.SMALLEST, "rate_type": rate_type, "position_log_rates": order}
        return oracles.vivid(make_model(**settings, **overrides))

    return build


@torch.no_grad()
@pytest.mark.parametrize("rate_type", ["learned", "uniform"])
def test_rates_are_those_without_an_order_times_the_factor_of_the_position(build, rate_type):
    text, noisy = torch.tensor([[0, 2, 1, 1], [0, 2, 1, 1]]), torch.tensor([[0, 3, 3, 1]] * 2)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])  # positions count from the first real token
    factor = torch.tensor(ORDER).double().exp()[torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2]])]
    ordered, plain = build(rate_type), build(rate_type, None)
    given = noisy != 3
    forward = plain.forward_rates(text, mask, given=given) * factor
    torch.testing.assert_close(ordered.forward_rates(text, mask, given=given), forward, **EXACT)
    reverse = plain(noisy, mask).rates * factor
    torch.testing.assert_close(ordered(noisy, mask).rates, reverse, **EXACT)
    assert torch.equal(ordered(noisy, mask).logits, plain(noisy, mask).logits)


@torch.no_grad()
@pytest.mark.parametrize("order", [None, ORDER])
def test_exponential_rates_are_the_exponential_of_the_scores(build, order):
    text, noisy = torch.tensor([[0, 2, 1, 1], [0, 2, 1, 1]]), torch.tensor([[0, 3, 3, 1]] * 2)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])  # padding counts in no mean
    linear, model = build("learned", order), build("learned", order, log_rate_range=3.0)
    factor = torch.tensor(order or [0.0] * 8).double().exp()
    factor = factor[torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2]])]
    for ours, theirs in (
        (model.forward_rates(text, mask), linear.forward_rates(text, mask)),
        (model(noisy, mask).rates, linear(noisy, mask).rates),
    ):
        normsig = (theirs / factor - 0.7) / 0.65
        expected = (3 * normsig).exp() * factor
        torch.testing.assert_close(ours[mask.bool()], expected[mask.bool()], **EXACT)


@torch.no_grad()
def test_exponential_rates_say_what_normsig_cannot(build):
    high = torch.tensor([[40.0, 40, 40, -40, -40, -40, -40, -40, -40, -40, -40, -40]])
    linear, exponential = learned_rates(high, 0.7, 0.65), exponential_rates(high, 5.0)
    assert linear[0, 0] / linear[0, -1] < 2.21
    torch.testing.assert_close((exponential[0, 0] / exponential[0, -1]).log().item(), 5.0)


@torch.no_grad()
@pytest.mark.parametrize("rate_type", ["learned", "uniform", "exponential"])
@pytest.mark.parametrize("bound", ["order", "time"])
def test_bound_is_the_enumerated_one(build, rate_type, bound):
    text, law = torch.tensor([0, 2, 1]), {}
    if rate_type == "exponential":
        rate_type, law = "learned", {"log_rate_range": 2.0}
    model = build(rate_type, **law)
    table = oracles.tables(model, text)
    main, velocity = getattr(oracles, f"{bound}_bound")(table)
    batch, generator = text.expand(COPIES, -1), torch.Generator().manual_seed(0)
    out = model(batch, labels=batch, bound=bound, generator=generator)
    assert abs(oracles.z_score(out.main, main)) < Z
    if rate_type == "learned":
        assert abs(oracles.z_score(out.velocity, velocity)) < Z and velocity > 0.05
    else:
        assert out.velocity.abs().max() < 1e-9  # forward and reverse rates are the same
    plain = getattr(oracles, f"{bound}_bound")(oracles.tables(build(rate_type, None), text))
    assert abs(main - plain[0]) > 1e-2  # the order matters


@torch.no_grad()
def test_a_steep_order_costs_what_its_one_order_costs(build):
    model, text = build("uniform", [20.0, 0, 60, 40, 0, 0, 0, 0]), torch.tensor([0, 2, 1, 1])
    expected, masked = 0.0, torch.ones(4, dtype=torch.bool)
    for place in (2, 3, 0, 1):
        law = model(text.masked_fill(masked, 3)[None]).logits[0, place].log_softmax(-1)
        expected, masked[place] = expected - law[text[place]], False
    main, _ = oracles.order_bound(oracles.tables(model, text))
    torch.testing.assert_close(main, expected, rtol=1e-8, atol=0)


@torch.no_grad()
def test_without_order_takes_the_given_order_away_too(build):
    model = build("learned", c1=0.5, c2=0.4)
    with model.without_order():
        rates = model.forward_rates(torch.tensor([[0, 2, 1]]))
    assert torch.equal(rates, torch.full_like(rates, 0.5))


def test_an_order_survives_saving(build, tmp_path):
    model = build("uniform")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.position_log_rates == ORDER
    text = torch.tensor([[0, 2, 1]])
    assert torch.equal(again.forward_rates(text), model.forward_rates(text))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"position_log_rates": [1.0] * 7}, "must be 8 numbers"),
        ({"position_log_rates": 2.0}, "must be 8 numbers"),
        ({"position_log_rates": [math.nan] * 8}, "must be 8 numbers"),
        ({"position_log_rates": ["1"] * 8}, "must be 8 numbers"),
        ({"position_log_rates": [0.0] * 7 + [81.0]}, "differ by at most 80"),
        ({"position_log_rates": ORDER, "rate_type": "token"}, "needs rate_type"),
        ({"position_log_rates": ORDER, "rate_type": "score"}, "needs rate_type"),
        ({"position_log_rates": ORDER, "block_size": 2}, "block_size=None"),
        ({"log_rate_range": 0.0}, "log_rate_range must be"),
        ({"log_rate_range": 41.0}, "log_rate_range must be"),
    ],
)
def test_what_is_no_order_is_refused_in_one_line(make_model, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        make_model(**oracles.SMALLEST, **settings)
    assert "\n" not in str(error.value)
