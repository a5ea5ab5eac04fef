"""Optimizers that step together: the same as each alone, also after saving and loading."""

import pytest
import torch

from hf_lomdm.training.optimizer import JoinedOptimizer, with_muon


def make_weights() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(4, 3)),
        torch.nn.Parameter(torch.randn(3)),
        torch.nn.Parameter(torch.ones(2)),
    ]


def put_gradients(weights, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)


def adamw(weights, **options) -> torch.optim.Optimizer:
    groups = [{"params": weights[1:]}, {"params": weights[:1], "lr": 0.3}]
    return torch.optim.AdamW(groups, lr=0.1, weight_decay=0.2, **options)


def joined(weights) -> JoinedOptimizer:
    return with_muon(adamw(weights), weights[:1], lr=0.05, weight_decay=0.1)


def test_each_weight_moves_as_under_its_own_optimizer_alone():
    weights, expected = make_weights(), make_weights()
    optimizer = joined(weights)
    muon = torch.optim.Muon(expected[:1], lr=0.05, weight_decay=0.1)
    alone = torch.optim.AdamW(expected[1:], lr=0.1, weight_decay=0.2)
    for step in range(3):
        put_gradients(weights, step)
        put_gradients(expected, step)
        for part in (optimizer, muon, alone):
            part.step()
        for actual, own in zip(weights, expected, strict=True):
            assert torch.equal(actual, own)
    assert len(optimizer.param_groups) == 2  # the group that Muon emptied is gone


def test_a_schedule_reaches_all_parts():
    weights = make_weights()
    optimizer = joined(weights)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = [weight.clone() for weight in weights]
    put_gradients(weights, 0)
    optimizer.step()
    schedule.step()
    assert all(torch.equal(*pair) for pair in zip(weights, before, strict=True))
    assert schedule.base_lrs == [0.1, 0.05]


@pytest.mark.parametrize("steps_before", [0, 2])
def test_training_goes_on_from_a_saved_state_bit_by_bit(steps_before):
    whole, parted = make_weights(), make_weights()
    optimizer, first = joined(whole), joined(parted)
    for step in range(steps_before):
        for weights, part in ((whole, optimizer), (parted, first)):
            put_gradients(weights, step)
            part.step()
    second = joined(parted)
    second.load_state_dict(first.state_dict())
    for step in range(steps_before, 5):
        for weights, part in ((whole, optimizer), (parted, second)):
            put_gradients(weights, step)
            part.step()
    assert all(torch.equal(*pair) for pair in zip(whole, parted, strict=True))


def test_what_is_added_later_is_refused_because_nobody_would_step_it():
    with pytest.raises(TypeError, match="take no further parameters"):
        joined(make_weights()).add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})


def test_schedules_find_the_defaults_of_the_first_part():
    assert joined(make_weights()).defaults["lr"] == 0.1


def test_a_closure_is_called_once():
    weights, calls = make_weights(), []
    put_gradients(weights, 0)
    assert joined(weights).step(lambda: calls.append(0) or 7.0) == 7.0 and calls == [0]
