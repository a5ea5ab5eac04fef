"""LoMDMTrainer: learning rates, decay, Muon and frozen modules."""

import pytest
from tiny_training import make_trainer


def test_order_heads_have_their_own_learning_rate_and_biases_and_norms_no_decay(tmp_path):
    trainer = make_trainer(tmp_path, weight_decay=0.1, learning_rate=1e-3, head_learning_rate=1e-5)
    groups = trainer.create_optimizer().param_groups
    actual = {}
    for group in groups:
        for weight in group["params"]:
            assert id(weight) not in actual
            actual[id(weight)] = (group["lr"], group["weight_decay"])
    for name, weight in trainer.model.named_parameters():
        rate = 1e-5 if name.startswith(("phi.", "psi.")) else 1e-3
        decay = 0.0 if name.endswith("bias") or "norm" in name else 0.1
        assert actual.pop(id(weight)) == (rate, decay), name
    assert not actual


def test_muon_takes_the_matrices_of_the_layers_of_the_backbone_and_nothing_else(tmp_path):
    settings = {
        "weight_decay": 0.1,
        "learning_rate": 1e-3,
        "head_learning_rate": 1e-5,
        "muon_learning_rate": 0.02,
    }
    trainer = make_trainer(tmp_path, **settings)
    actual = {
        id(w): group for group in trainer.create_optimizer().param_groups for w in group["params"]
    }
    assert len(actual) == len(list(trainer.model.parameters()))
    for name, weight in trainer.model.named_parameters():
        group = actual[id(weight)]
        assert ("ns_steps" in group) == (name.startswith("model.layers.") and weight.dim() == 2), (
            name
        )
        if "ns_steps" in group:
            assert (group["lr"], group["weight_decay"]) == (0.02, 0.1)
        else:
            assert group["lr"] == (1e-5 if name.startswith(("phi.", "psi.")) else 1e-3)
    start = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    changed = {
        name for name, weight in trainer.model.named_parameters() if (weight != start[name]).any()
    }
    assert changed == start.keys()


def test_muon_where_it_cannot_work_is_refused(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, muon_learning_rate=0.02)
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(ValueError, match="muon_learning_rate=0.02 needs whole matrices"):
        trainer.create_optimizer()
    with pytest.raises(
        ValueError, match="muon_learning_rate=0.02 goes with AdamW for the rest, got optim='sgd'"
    ):
        make_trainer(tmp_path, muon_learning_rate=0.02, optim="sgd").create_optimizer()
    with pytest.raises(ValueError, match="LoMDMForMaskedDiffusion has none to train"):
        make_trainer(tmp_path, muon_learning_rate=0.02, frozen_modules=["model"]).create_optimizer()


def test_rates_of_the_vocabulary_have_the_learning_rate_of_the_backbone_and_no_decay(
    tmp_path, make_model
):
    trainer = make_trainer(
        tmp_path, make_model(rate_type="token"), weight_decay=0.1, learning_rate=1e-3
    )
    omega = {id(weight) for weight in trainer.model.omega.parameters()}
    groups = [
        group
        for group in trainer.create_optimizer().param_groups
        if omega & set(map(id, group["params"]))
    ]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.0)] and omega


def test_frozen_modules_stay_as_they_start_and_the_rest_learns(tmp_path):
    trainer = make_trainer(tmp_path, frozen_modules=["psi"])
    start = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    changed = {
        name.split(".")[0]
        for name, weight in trainer.model.named_parameters()
        if (weight != start[name]).any()
    }
    assert changed == {"model", "lm_head", "phi"}
    assert trainer.evaluate()["eval_nelbo"] > 0  # with the average, which leaves frozen weights out


def test_frozen_modules_that_the_model_lacks_are_an_error_that_names_what_it_has(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"'omega', which the model lacks. It has \['lm_head', 'model', 'phi', 'psi'\]",
    ):
        make_trainer(tmp_path, frozen_modules=["omega"])


def test_a_schedule_scales_both_learning_rates(tmp_path):
    trainer = make_trainer(
        tmp_path, lr_scheduler_type="linear", learning_rate=1e-3, head_learning_rate=1e-5
    )
    trainer.train()
    trainer.create_scheduler(8)
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {1e-3, 1e-5}
    # after the last of 4 steps
    assert all(rate < 1e-9 for rate in trainer.lr_scheduler.get_last_lr())
