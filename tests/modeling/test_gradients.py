"""Mean gradients of the training loss against autograd through the enumerated bounds: exact, no
draw is left.

The noise behind the views is replaced by values that produce every pair of views in turn; each pair
counts with its probability. What comes out is the expected gradient of the loss at one quantile.
"""

import itertools

import pytest
import torch

import oracles
from hf_lomdm.modeling import loss_lomdm
from hf_lomdm.modeling import process_lomdm as process

# float64, the sum of up to 324 gradients
EXACT = {"rtol": 1e-8, "atol": 1e-10}
TEXT = torch.tensor([0, 2, 1])
# Through which quantity of the bound a part of the model may get its gradient
THROUGH = {
    "learned": {"phi": ["forward"], "psi": ["reverse"], "model": ["nll"], "lm_head": ["nll"]},
    "uniform": {"model": ["nll"], "lm_head": ["nll"]},
    "token": {
        "omega": ["forward", "reverse", "nll"],
        "model": ["reverse", "nll"],
        "lm_head": ["reverse", "nll"],
    },
    "score": {"model": ["reverse", "nll"], "lm_head": ["reverse", "nll"]},
}
# Rate type, block size, text; texts whose block lengths divide the longest one, so that equal
# quantiles give every block each of its numbers of reveals equally often
FAMILY = (
    ("learned", None, [0, 2, 1]),
    ("uniform", None, [0, 2, 1]),
    ("token", None, [0, 2, 1]),
    ("score", None, [0, 2, 1]),
    ("learned", 3, [2, 0, 1, 1]),
    ("uniform", 2, [0, 2, 1, 1, 2]),
    ("token", 2, [0, 2, 1, 1, 2]),
    ("score", 3, [2, 0, 1, 1]),
    ("token", 1, [0, 2]),
)


@pytest.fixture
def model(make_model):
    return oracles.vivid(make_model(**oracles.SMALLEST)).train()


def parameters(model, group):
    return dict(getattr(model, group).named_parameters())


def joint(draws_of_blocks):
    """Noise `[L]` of a text and its probability, from those of its blocks, which are
    independent."""
    for draws in itertools.product(*draws_of_blocks):
        yield (
            torch.cat([noise for noise, _ in draws]),
            torch.stack([probability for _, probability in draws]).prod(),
        )


def order_noise(table):
    """Noise `[n]` of a block that produces each order, with the order's probability."""
    for order, probability in oracles.order_probabilities(table.forward.detach()):
        noise = torch.empty(len(order), dtype=torch.float64)
        for rank, i in enumerate(order):
            # reveal time of the rank, times the rate
            noise[i] = (rank + 1) * table.forward[i].detach()
        yield noise, probability


def mask_noise(table, log_u):
    """Noise `[n]` of a block that produces each set of masked positions at a local time, with its
    probability."""
    law = oracles.time_law(table, log_u.exp()[None])[0].detach()
    for masked, probability in zip(table.masked, law, strict=True):
        yield torch.where(masked, 1e9, 1e-300), probability


def mean_gradient(model, monkeypatch, text, draws, bound, quantile):
    """Adds the expected gradient of the loss of one text at one quantile, over all tuples of
    independent views.

    Returns the expected bound.
    """
    total = 0.0
    num_blocks = len(oracles.blocks_of(model, text))
    monkeypatch.setattr(
        loss_lomdm, "block_quantiles", lambda q, *_: q[:, None].expand(-1, num_blocks)
    )
    for views in itertools.product(list(draws), repeat=model.num_views):
        noise = torch.stack([n for n, _ in views])
        monkeypatch.setattr(loss_lomdm, "position_exponentials", lambda *_, noise=noise: noise)
        probability = torch.stack([p for _, p in views]).prod()
        batch = text[None]
        out = model(
            input_ids=batch,
            labels=batch,
            bound=bound,
            quantiles=torch.tensor([quantile], dtype=torch.float64),
        )
        (probability * out.loss * len(text)).backward()
        total = total + probability * out.nelbo[0]
    return total


def check_gradients(model, text, expected, through):
    """Every parameter's gradient equals that of `expected(tables)` through the quantities its part
    may see."""
    for group, visible in through.items():
        names = parameters(model, group)
        value = expected(
            [oracles.keep_gradient(t, *visible) for t in oracles.block_tables(model, text)]
        )
        exact = torch.autograd.grad(value, list(names.values()), allow_unused=True)
        # the test could tell
        assert any(g is not None and g.abs().max() > 1e-3 for g in exact), group
        for (name, parameter), gradient in zip(names.items(), exact, strict=True):
            gradient = torch.zeros_like(parameter) if gradient is None else gradient
            actual = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(
                actual, gradient, msg=lambda m, n=f"{group}.{name}": f"{n}: {m}", **EXACT
            )


def check_order_gradient(model, monkeypatch, text):
    """The expected bound and gradient, over the numbers of reveals and all tuples of views, are the
    enumerated ones."""
    text, parts = torch.tensor(text), oracles.block_tables(model, torch.tensor(text))
    counts = max(len(table.forward) for table in parts)  # of reveals of the longest block
    total = 0.0
    for k in range(counts):
        draws = list(joint(map(order_noise, parts)))
        total += (
            mean_gradient(model, monkeypatch, text, draws, "order", (k + 0.5) / counts) / counts
        )
    torch.testing.assert_close(
        total, sum(oracles.add_up(oracles.order_bound, parts)).detach(), **EXACT
    )
    # gradients add up over k
    check_gradients(
        model,
        text,
        lambda parts: counts * sum(oracles.add_up(oracles.order_bound, parts)),
        THROUGH[model.config.rate_type],
    )


@pytest.mark.parametrize(("rate_type", "block_size", "text"), FAMILY)
def test_mean_gradient_of_the_order_bound_is_the_enumerated_one(
    make_model, monkeypatch, rate_type, block_size, text
):
    model = oracles.vivid(
        make_model(**oracles.SMALLEST, rate_type=rate_type, block_size=block_size)
    ).train()
    check_order_gradient(model, monkeypatch, text)


def test_mean_gradient_on_three_views_is_the_enumerated_one(make_model, monkeypatch):
    model = oracles.vivid(make_model(**oracles.SMALLEST, rate_type="learned", num_views=3)).train()
    check_order_gradient(model, monkeypatch, [0, 2, 1])


def drawn_time(table, quantile):
    """The importance-sampled time of a block and its weight; no gradient flows through them."""
    kappa = table.forward.detach().min() / 2
    return torch.tensor(quantile, dtype=torch.float64).log() / kappa, 1 / (kappa * quantile)


def bound_at_time(table, quantile):
    log_u, weight = drawn_time(table, quantile)
    return oracles.time_law(table, log_u.exp()[None])[0] @ sum(oracles.rate_terms(table)) * weight


@pytest.mark.parametrize("quantile", [0.3, 0.9])
@pytest.mark.parametrize(
    ("rate_type", "block_size"),
    [*itertools.product(THROUGH, [None]), ("learned", 2), ("token", 1), ("score", 2)],
)
def test_mean_gradient_of_the_time_bound_is_the_enumerated_one(
    make_model, monkeypatch, rate_type, block_size, quantile
):
    model = oracles.vivid(
        make_model(**oracles.SMALLEST, rate_type=rate_type, block_size=block_size)
    ).train()
    parts = oracles.block_tables(model, TEXT)
    draws = joint(mask_noise(table, drawn_time(table, quantile)[0]) for table in parts)
    total = mean_gradient(model, monkeypatch, TEXT, draws, "time", quantile)

    def expected(parts):
        return oracles.add_up(bound_at_time, parts, quantile)

    torch.testing.assert_close(total, expected(parts).detach(), **EXACT)
    check_gradients(model, TEXT, expected, THROUGH[rate_type])


@pytest.mark.parametrize(
    ("rate_type", "name"),
    [("token", "omega.rho"), ("token", "lm_head.bias"), ("score", "lm_head.bias")],
)
@pytest.mark.parametrize("bound", ["order", "time"])
def test_gradient_of_the_enumerated_bound_is_its_slope(make_model, rate_type, name, bound):
    # the tables take their gradients from the model: where all of them count, differences of values
    # must agree
    model = oracles.vivid(make_model(**oracles.SMALLEST, rate_type=rate_type), seed=1)
    parameter, step = model.get_parameter(name), 1e-5
    evaluate = oracles.order_bound if bound == "order" else oracles.time_bound
    (gradient,) = torch.autograd.grad(sum(evaluate(oracles.tables(model, TEXT))), parameter)
    slopes = torch.zeros_like(gradient)
    with torch.no_grad():
        for index in range(len(parameter)):
            for sign in (1, -1):
                parameter[index] += sign * step
                slopes[index] += sign * sum(evaluate(oracles.tables(model, TEXT))) / (2 * step)
                parameter[index] -= sign * step
    assert gradient.abs().max() > 1e-2
    # the error of the differences
    torch.testing.assert_close(gradient, slopes, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("quantile", [0.01, 0.6], ids=["reconstruction", "above the cut"])
def test_mean_gradient_of_the_cut_time_bound_is_the_enumerated_one(
    make_model, monkeypatch, quantile
):
    epsilon, share = 0.2, process.RECONSTRUCTION_SHARE
    model = oracles.vivid(make_model(**oracles.SMALLEST, time_epsilon=epsilon)).train()
    table = oracles.tables(model, TEXT)
    u = torch.tensor(
        max(epsilon, epsilon + (1 - epsilon) * (quantile - share) / (1 - share)),
        dtype=torch.float64,
    )

    def expected(parts):
        (table,) = parts
        if quantile < share:
            return oracles.reconstruction(table, epsilon) / share
        return (
            oracles.time_law(table, u[None])[0]
            @ sum(oracles.rate_terms(table))
            * (1 - epsilon)
            / (1 - share)
            / u
        )

    total = mean_gradient(model, monkeypatch, TEXT, mask_noise(table, u.log()), "time", quantile)
    torch.testing.assert_close(total, expected([table]).detach(), **EXACT)
    through = dict(THROUGH["learned"])
    if quantile < share:  # the velocity has no part in the reconstruction term
        assert all(p.grad.abs().max() == 0 for p in model.psi.parameters())
        del through["psi"]
    check_gradients(model, TEXT, expected, through)


@pytest.mark.parametrize(
    "output, reached",
    [("forward_rates", {"phi"}), ("rates", {"psi"}), ("logits", {"model", "lm_head"})],
)
def test_each_output_reaches_only_its_own_parameters(model, output, reached):
    noisy = torch.tensor([[0, 3, 1]])
    value = (
        model.forward_rates(TEXT[None])
        if output == "forward_rates"
        else getattr(model(input_ids=noisy), output)
    )
    # a plain sum of the rates is constant
    weight = torch.arange(value.numel(), dtype=torch.float64).view_as(value)
    (value.clamp(min=-1e3) * weight).sum().backward()
    touched = {
        n.split(".")[0]
        for n, p in model.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }
    assert touched == reached


def test_the_score_is_part_of_the_gradient_in_training_only(model):
    gradients = []
    for mode in (True, False):
        model.train(mode).zero_grad()
        batch = TEXT.expand(16, -1)
        model(batch, labels=batch, generator=torch.Generator().manual_seed(0)).loss.backward()
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
    for name, gradient in gradients[0].items():
        if name.startswith("phi"):
            continue
        torch.testing.assert_close(gradient, gradients[1][name], **EXACT)
    assert (gradients[0]["phi.out.weight"] - gradients[1]["phi.out.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("bound", ["order", "time"])
def test_the_two_views_of_a_text_are_independent(model, monkeypatch, bound):
    # the RLOO term is biased for dependent views; the enumeration above takes their independence
    # for granted
    seen, draw = [], getattr(loss_lomdm, f"draw_{bound}_view")

    def recording(*args, **kwargs):
        seen.append(draw(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(loss_lomdm, f"draw_{bound}_view", recording)
    copies, quantile = 20_000, 0.5
    batch = TEXT.expand(copies, -1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        quantiles = torch.full((copies,), quantile, dtype=torch.float64)
        model(batch, labels=batch, bound=bound, quantiles=quantiles, generator=generator)
        table = oracles.tables(model, TEXT)
    states = (seen[0].masked * 2 ** torch.arange(3)).sum(-1)
    law = oracles.prefix_law(table.forward, 1)
    if bound == "time":
        kappa = table.forward.min() / 2
        law = oracles.time_law(table, torch.tensor([quantile ** (1 / kappa)], dtype=torch.float64))[
            0
        ]
    pairs = torch.bincount(states[:copies] * 8 + states[copies:], minlength=64).double()
    assert abs(oracles.chi_square_z(pairs, torch.outer(law, law).flatten())) < 4  # probability 6e-5


def test_dropout_leaves_the_forward_rates_alone(make_model):
    model = make_model(dropout=0.5)
    text = torch.arange(3, 10)[None]
    evaluated = model.forward_rates(text)
    torch.testing.assert_close(model.train().forward_rates(text), evaluated, rtol=0, atol=0)
