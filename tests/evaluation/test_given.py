"""Every measure tells phi which positions are given, as training does: else it would be of another
forward process."""

import pytest
import torch

from hf_lomdm.evaluation import nelbo
from hf_lomdm.evaluation.likelihood import loss_by_share
from hf_lomdm.evaluation.order import evaluate_order

TEXT, LABELS = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[-100, 4, -100, 6]])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


MEASURES = {
    "bound": lambda model: nelbo(model, TEXT, labels=LABELS, generator=seeded()),
    "several orders": lambda model: nelbo(
        model, TEXT, labels=LABELS, generator=seeded(), num_orders=2
    ),
    "loss by share": lambda model: loss_by_share(
        model, TEXT, labels=LABELS, bins=2, generators=[seeded()]
    ),
    "order": lambda model: evaluate_order(
        model,
        [{"input_ids": TEXT[0].tolist(), "labels": LABELS[0].tolist()}] * 2,
        num_generated=1,
        progress=False,
    ),
}


@pytest.mark.parametrize("measure", MEASURES)
def test_phi_is_told_what_is_given(make_model, monkeypatch, measure):
    model, told = make_model(), []
    plain = model.forward_rates
    monkeypatch.setattr(
        model,
        "forward_rates",
        lambda *args, given=None: told.append(given) or plain(*args, given=given),
    )
    MEASURES[measure](model)
    assert told and all((given == (LABELS == -100)).all() for given in told)
