"""The order policy by enumeration: what orders earn, its gradient in psi, and the law of the next
position, over all orders of three positions; and the trainer around it."""

import itertools
from functools import partial

import pytest
import torch
from tiny_training import StopAfter, make_texts, make_trainer

import oracles
from conftest import build_model
from hf_lomdm import LoMDMScheduler
from hf_lomdm.training import order_policy
from hf_lomdm.training.order_policy import (
    WIDTH,
    OrderPolicyTrainer,
    certainty_objective,
    draw_reveals,
    log_next_position,
    order_objective,
)

EXACT = {"rtol": 1e-8, "atol": 1e-10}
TEXT = torch.tensor([0, 2, 1, 1])
FREE = [0, 1, 3]  # the position 2 is given
NUM_ORDERS = 2
SURE = 0.853  # once the position 1 is known, 3 is surer, and at the start none


def make_vivid(**settings):
    return oracles.vivid(build_model(**{**oracles.SMALLEST, **settings}))


@pytest.fixture(params=[None, 3.0], ids=["normsig", "exponential"])
def model(request):
    return make_vivid(log_rate_range=request.param)


def make_batch(model, count: int = 1):
    maskable = torch.isin(torch.arange(len(TEXT)), torch.tensor(FREE))
    return model.make_batch(TEXT.repeat(count, 1), maskable=maskable.repeat(count, 1))


def largest_probabilities(model):
    """`[2^n, n]`, of the token law at each position of each state, in the order of the oracles."""
    masked = oracles.subsets(len(FREE))
    states = TEXT.repeat(len(masked), 1)
    states[:, FREE] = torch.where(masked, model.config.mask_token_id, TEXT[FREE])
    return model(states).logits.softmax(-1).amax(-1)[:, FREE].detach()


def ways(model, table, sure=1.0):
    """Every way to reveal a text: its steps `(state, positions, drawn)`, its probability by the
    reverse rates, and uniforms that make `draw_reveals` take it."""
    most = largest_probabilities(model)

    def go_on(state, probability, uniforms, steps):
        if state == 0:
            padded = uniforms + [0.5] * (len(FREE) - len(uniforms))
            yield steps, probability, torch.tensor(padded, dtype=torch.float64)
            return
        at = [i for i in range(len(FREE)) if table.masked[state, i]]
        certain = [i for i in at if most[state, i] > sure]
        if certain:
            after = state - sum(2**i for i in certain)
            yield from go_on(after, probability, [*uniforms, 0.5], [*steps, (state, certain, 0)])
            return
        rates = torch.where(table.masked[state], table.reverse[state], 0.0)
        share = rates / rates.sum()
        for i in at:
            middle = float((share[:i].sum() + share[i] / 2).detach())
            step = (state, [i], 1)
            yield from go_on(
                state - 2**i, probability * share[i], [*uniforms, middle], [*steps, step]
            )

    yield from go_on(2 ** len(FREE) - 1, torch.ones((), dtype=torch.float64), [], [])


def log_probability(table, steps):
    """`log p` of the text that is revealed so."""
    return -sum(table.nll[state, i].detach() for state, revealed, _ in steps for i in revealed)


def exact_value(model, table, credit, sure):
    """The mean over orders of what they earn."""
    total = 0.0
    for steps, probability, _ in ways(model, table, sure):
        log_p = log_probability(table, steps)
        total = total + probability * (log_p if credit == "log_likelihood" else log_p.exp())
    return total


@pytest.mark.parametrize("sure", [1.0, SURE])
@pytest.mark.parametrize("credit", ["log_likelihood", "likelihood"])
def test_mean_of_value_and_gradient_over_all_draws_is_exact(model, credit, sure, monkeypatch):
    table = oracles.tables(model, TEXT, FREE)
    psi, found = list(model.psi.parameters()), None
    exact = exact_value(model, table, credit, sure)
    expected = torch.autograd.grad(exact, psi, retain_graph=True)
    each = list(ways(model, table, sure))
    bound = -sum(probability * log_probability(table, steps) for steps, probability, _ in each)
    value, cost, seeds = 0.0, 0.0, torch.zeros(NUM_ORDERS, dtype=torch.int64)
    for drawn in itertools.product(each, repeat=NUM_ORDERS):
        uniforms = torch.stack([noise for *_, noise in drawn])
        monkeypatch.setattr(order_policy, "position_uniforms", lambda *_, u=uniforms: u)
        earned, spent = order_objective(model, make_batch(model), seeds, NUM_ORDERS, credit, sure)
        weight = torch.stack([probability for _, probability, _ in drawn]).prod().detach()
        value, cost = value + weight * earned[0].detach(), cost + weight * spent[0]
        parts = [weight * part for part in torch.autograd.grad(earned[0], psi)]
        found = parts if found is None else [a + b for a, b in zip(found, parts, strict=True)]
    torch.testing.assert_close(value, exact.detach(), **EXACT)
    torch.testing.assert_close(cost, bound.detach(), **EXACT)
    torch.testing.assert_close(found, list(expected), **EXACT)
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-6


def test_the_likelihood_of_orders_is_the_probability_of_the_text_by_the_sampler(model):
    table = oracles.tables(model, TEXT, FREE)
    exact = exact_value(model, table, "likelihood", sure=1.0)
    torch.testing.assert_close(exact, oracles.log_likelihood(table).exp())


def test_certainty_is_the_distance_from_the_log_rates_of_the_entropies():
    model = make_vivid(log_rate_range=3.0)
    masked = torch.tensor([[True, True, False, False], [True, True, False, True]])
    batch = make_batch(model, 2)
    earned = certainty_objective(model, batch, masked)
    for row, at in enumerate(masked):
        out = model(TEXT.masked_fill(at, model.config.mask_token_id)[None])
        entropy = torch.distributions.Categorical(logits=out.logits[0, at].detach()).entropy()
        exact = -(out.rates[0, at].log() - 3 * (-entropy / WIDTH).exp()).var(unbiased=False)
        torch.testing.assert_close(earned[row], exact, **EXACT)
        psi = list(model.psi.parameters())
        found, expected = (
            torch.autograd.grad(value, psi, retain_graph=True) for value in (earned[row], exact)
        )
        torch.testing.assert_close(found, expected, **EXACT)


def test_what_is_sure_is_revealed_at_once_and_nothing_is_drawn(model):
    table = oracles.tables(model, TEXT, FREE)
    assert len(list(ways(model, table, SURE))) == 5  # of 6
    reveals = draw_reveals(model, make_batch(model), torch.zeros(1, dtype=torch.int64), sure=0.8)
    assert len(reveals.chosen) == 0
    torch.testing.assert_close(
        reveals.log_p[0], torch.tensor([-table.nll[-1].detach().sum(), 0.0, 0.0]).to(reveals.log_p)
    )


def test_the_law_of_the_next_position_is_that_of_the_sampler(model):
    batch, count = make_batch(model, 4000), 4000
    states = batch._replace(ids=batch.ids.masked_fill(batch.maskable, model.config.mask_token_id))
    out = model(states.ids[:1])
    law = log_next_position(model, out.last_hidden_state, states.rows(slice(1)), batch.maskable[:1])
    scheduler = LoMDMScheduler(model.config.mask_token_id, sampler="sequential")
    scheduler.set_timesteps(len(FREE))
    generator = torch.Generator().manual_seed(0)
    drawn = scheduler.select(
        out.rates.expand(count, -1), scheduler.timesteps[0], states.ids, generator
    )
    expected = law[0].exp().detach() * count
    chi2 = ((drawn.sum(0) - expected)[FREE] ** 2 / expected[FREE]).sum()
    assert chi2 < 13.8  # 0.1 % at two degrees of freedom
    assert expected[2] == 0


def test_without_a_learned_part_the_law_is_uniform():
    model = make_vivid(c2=0.0)
    batch = make_batch(model)
    law = log_next_position(model, model.encode(batch), batch, batch.maskable).exp()
    torch.testing.assert_close(law[0, FREE], torch.full((3,), 1 / 3, dtype=torch.float64))


def test_seeds_draw_orders_by_their_law_and_the_true_tokens_are_revealed(model):
    table, count = oracles.tables(model, TEXT, FREE), 2000
    reveals = draw_reveals(model, make_batch(model, count), torch.arange(count))
    chosen = torch.full((count, len(FREE)), -1).index_put(reveals.place, reveals.chosen)
    chi2 = 0.0
    for steps, probability, _ in ways(model, table):
        order = [FREE[revealed[0]] for _, revealed, _ in steps]
        drawn = (chosen == torch.tensor(order)).all(-1)
        expected = float(probability.detach()) * count
        chi2 += (int(drawn.sum()) - expected) ** 2 / expected
        log_p = torch.stack([-table.nll[state, revealed[0]] for state, revealed, _ in steps])
        torch.testing.assert_close(reveals.log_p[drawn][0], log_p.detach(), **EXACT)
    assert chi2 < 20.5  # 0.1 % at five degrees of freedom


def test_a_text_alone_is_the_same_as_padded_in_a_batch():
    model = make_vivid(pad_token_id=0)
    ids = torch.tensor([[2, 1, 1, 2], [1, 2, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    both = model.make_batch(ids, mask, mask.bool())
    alone = model.make_batch(ids[1:, :2], maskable=torch.ones(1, 2, dtype=torch.bool))
    together = draw_reveals(model, both, torch.tensor([3, 4])).log_p[1]
    torch.testing.assert_close(together[:2], draw_reveals(model, alone, torch.tensor([4])).log_p[0])
    assert (together[2:] == 0).all()


@pytest.mark.parametrize("credit", ["log_likelihood", "likelihood"])
def test_steps_along_the_gradient_find_the_order_in_which_the_text_is_likeliest(credit):
    model = make_vivid(log_rate_range=10.0)
    for weight in model.psi.out.parameters():
        torch.nn.init.zeros_(weight)  # all orders alike
    table = oracles.tables(model, TEXT, FREE)
    best = max(log_probability(table, steps) for steps, *_ in ways(model, table))
    start = oracles.log_likelihood(table)
    optimizer = torch.optim.Adam(model.psi.parameters(), lr=0.01)
    for step in range(40):
        seeds = torch.arange(16) + 16 * step
        earned, _ = order_objective(model, make_batch(model), seeds, 16, credit)
        optimizer.zero_grad()
        (-earned.sum()).backward()
        optimizer.step()
    end = oracles.log_likelihood(oracles.tables(model, TEXT, FREE))
    assert end - start > 0.9 * (best - start) > 1.0


# ------------------------------------------------------------------------------------- the trainer


def policy_trainer(folder, policy=None, **settings):
    make = partial(OrderPolicyTrainer, **{"num_orders": 2, **(policy or {})})
    return make_trainer(folder, trainer_class=make, unequal=True, **settings)


def test_psi_alone_is_trained_and_evaluation_is_the_cost_of_its_orders(tmp_path):
    trainer = policy_trainer(tmp_path, ema_decay=0.0)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    changed = {
        name.split(".")[0]
        for name, value in trainer.model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"psi"}
    metrics = trainer.evaluate()
    assert trainer.describe().measures["eval_nelbo"] == "bound by orders drawn from psi alone"
    assert metrics["eval_velocity"] == 0
    assert metrics["eval_nelbo"] == metrics["eval_main"] > 0
    assert metrics["eval_tokens"] == sum(
        len(text["input_ids"]) for text in make_texts(count=6, unequal=True, seed=1)
    )


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}
    whole = policy_trainer(tmp_path / "whole", **settings)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        policy_trainer(tmp_path / "cut", callbacks=[StopAfter(3)], **settings).train()
    cut = policy_trainer(tmp_path / "cut", **settings)
    cut.train("auto")
    for name, value in whole.model.psi.state_dict().items():
        assert torch.equal(value, cut.model.psi.state_dict()[name]), name


def test_where_all_is_sure_training_changes_nothing(tmp_path):
    trainer = policy_trainer(tmp_path, policy={"sure": 1e-6}, ema_decay=0.0, weight_decay=0.0)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_text_with_nothing_to_reveal_is_refused(tmp_path):
    trainer = policy_trainer(tmp_path)
    batch = {
        "input_ids": torch.tensor([[3, 4], [5, 6]]),
        "labels": torch.tensor([[3, 4], [-100] * 2]),
    }
    with pytest.raises(ValueError, match="nothing to reveal"):
        trainer.objective(trainer.model, batch)


def test_certainty_is_learned(tmp_path):
    trainer = policy_trainer(
        tmp_path,
        policy={"credit": "certainty"},
        ema_decay=0.0,
        max_steps=30,
        system={"log_rate_range": 10.0},
    )
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"system": {"block_size": 4}}, "block_size=4"),
        ({"system": {"rate_type": "uniform"}}, "rate_type='uniform'"),
        ({"policy": {"credit": "entropy"}}, "credit must be one of .* got 'entropy'"),
        ({"policy": {"credit": "certainty"}}, "needs rates .* log_rate_range=None"),
        ({"policy": {"num_orders": 1}}, "num_orders must be at least 2, got 1"),
        ({"policy": {"sure": 0.0}}, r"sure must be in \(0, 1], got 0.0"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        policy_trainer(tmp_path, **settings)
    assert "\n" not in str(error.value)
