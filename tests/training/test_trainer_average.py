"""LoMDMTrainer: the moving average of the weights."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import make_trainer
from transformers import (
    TrainerCallback,
)

from hf_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.training.arguments import LoMDMTrainingArguments
from hf_lomdm.training.ema import EMA


class Watch(TrainerCallback):
    """Copies one weight after every step."""

    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(model.lm_head.weight.detach().clone())


def test_the_average_follows_its_recursion_with_warm_up(tmp_path, make_model):
    watch, start = Watch(), make_model().lm_head.weight.detach().double()
    trainer = make_trainer(tmp_path, callbacks=[watch], ema_decay=0.15)
    trainer.train()
    expected = start
    # (1 + 1) / (10 + 1) > 0.15
    for decay, weight in zip([1 / 10, 0.15, 0.15, 0.15], watch.weights, strict=True):
        expected = decay * expected + (1 - decay) * weight.double()
    torch.testing.assert_close(
        trainer.ema.average["lm_head.weight"].double(), expected, rtol=0, atol=1e-6
    )


def test_average_is_swapped_in_saved_and_loaded_exactly(tmp_path, make_model):
    model, other = make_model(), make_model(seed=1)
    own = copy.deepcopy(model.state_dict())
    ema = EMA(other, 0.5)
    with pytest.raises(KeyboardInterrupt), ema.weights_of(model):
        assert all(
            torch.equal(value, other.state_dict()[name])
            for name, value in model.state_dict().items()
        )
        raise KeyboardInterrupt
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    ema.update(model)
    ema.save(tmp_path / "ema.safetensors")
    reloaded = EMA(model, 0.5)
    reloaded.load(tmp_path / "ema.safetensors")
    assert reloaded.num_updates == 1 and all(
        torch.equal(reloaded.average[name], ema.average[name]) for name in ema.average
    )
    with pytest.raises(ValueError, match="Resume with the model that was saved"):
        EMA(make_model(hidden_size=20), 0.5).load(tmp_path / "ema.safetensors")


def test_average_of_bfloat16_weights_is_kept_in_float32_and_frozen_weights_are_left_out(make_model):
    model = make_model().bfloat16()
    model.lm_head.requires_grad_(False)
    ema = EMA(model, 0.9)
    assert {value.dtype for value in ema.average.values()} == {
        torch.float32
    } and "lm_head.weight" not in ema.average
    with ema.weights_of(model):
        assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}


def test_the_final_folder_holds_the_average_and_checkpoints_the_training_weights(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    training = trainer.model.state_dict()
    final = LoMDMForMaskedDiffusion.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(final[name], trainer.ema.average[name]) for name in training)
    assert all(
        torch.equal(
            load_file(tmp_path / "checkpoint-4" / "model.safetensors")[name], training[name]
        )
        for name in training
    )
    assert not torch.equal(final["lm_head.weight"], training["lm_head.weight"])


def test_without_average_the_training_weights_are_evaluated_and_saved(tmp_path):
    trainer = make_trainer(tmp_path, ema_decay=0)
    trainer.train()
    trainer.save_model()
    final = LoMDMForMaskedDiffusion.from_pretrained(tmp_path).state_dict()
    assert trainer.ema is None and torch.equal(
        final["lm_head.weight"], trainer.model.lm_head.weight
    )


@pytest.mark.parametrize("name", ["loss", "nelbo", "eval_perplexity"])
def test_the_best_model_is_the_one_with_the_lowest_metric(tmp_path, name):
    assert (
        LoMDMTrainingArguments(str(tmp_path), metric_for_best_model=name).greater_is_better is False
    )


def test_the_best_model_comes_back_with_its_average(tmp_path):
    settings = {
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "nelbo",
        "greater_is_better": True,
    }
    trainer = make_trainer(tmp_path, max_steps=6, save_total_limit=1, **settings, **best)
    trainer.train()
    values = [entry["eval_nelbo"] for entry in trainer.state.log_history if "eval_nelbo" in entry]
    folder = tmp_path / f"checkpoint-{1 + values.index(max(values))}"
    assert folder.name != "checkpoint-6" and trainer.state.best_model_checkpoint == str(folder)
    average = load_file(folder / "ema.safetensors")
    assert all(torch.equal(average[name], value) for name, value in trainer.ema.average.items())
    trainer.save_model()
    # those of step 6 were
    assert "These weights were not evaluated." in (tmp_path / "README.md").read_text()
    assert trainer.evaluate()["eval_nelbo"] == pytest.approx(max(values), abs=1e-6)
