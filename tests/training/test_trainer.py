"""LoMDMTrainer: draws, loss, logs, optimizer, average, evaluation, and what stops it."""

import copy
import importlib
import math
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, RepoUrl
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from safetensors.torch import load_file
from tiny_training import build_causal, collate, make_texts, make_trainer
from transformers import (
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from conftest import build_model
from hf_lomdm import LoMDMForMaskedDiffusion, LoMDMPipeline
from hf_lomdm.data.draws import step_generators, step_quantiles
from hf_lomdm.evaluation import nelbo
from hf_lomdm.evaluation.summary import summarise_texts
from hf_lomdm.modeling.configuration_lomdm import RATE_TYPES
from hf_lomdm.training import checkpointing
from hf_lomdm.training.arguments import LoMDMTrainingArguments
from hf_lomdm.training.causal import CausalTrainer
from hf_lomdm.training.ema import EMA
from hf_lomdm.training.model_card import (
    ORDERS,
    TrainingRecord,
    describe_diffusion,
    model_card,
    say_value,
)
from hf_lomdm.training.trainer import EVALUATION_SEED, LoMDMTrainer, gradient_norm, maskable
from tiny_tokenizer import build_tokenizer

httpx = importlib.import_module(HTTPError.__module__)  # or httpx2, whichever the Hub's client uses
SGD = {
    "optim": "sgd",
    "learning_rate": 0.1,
    "head_learning_rate": 0.1,
    "lr_scheduler_type": "constant",
}


def steps_of(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def first_batch(trainer) -> dict[str, torch.Tensor]:
    """The first global batch, and the draws that belong to it."""
    batch = next(iter(trainer.get_train_dataloader()))
    texts = range(len(batch["input_ids"]))
    seed = trainer.args.seed
    return {
        **batch,
        "quantiles": step_quantiles(seed, 0, texts, len(texts)),
        "generator": step_generators(seed, 0, texts),
    }


# --------------------------------------------------------------------------- the loss and its split


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("rate_type", ["learned", "uniform", "token", "score"])
def test_four_accumulated_batches_of_two_equal_one_batch_of_eight(
    tmp_path, make_model, unequal, rate_type
):
    runs = []
    for name, split in {"one": (8, 1), "four": (2, 4)}.items():
        sizes = {"per_device_train_batch_size": split[0], "gradient_accumulation_steps": split[1]}
        trainer = make_trainer(
            tmp_path / name, make_model(rate_type=rate_type), unequal, **SGD, **sizes
        )
        trainer.train()
        runs.append(trainer)
    start, losses = (
        make_model(rate_type=rate_type).state_dict(),
        [[e["loss"] for e in steps_of(t)] for t in runs],
    )
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # float32 sums in another order
    for name, weight in runs[0].model.state_dict().items():
        torch.testing.assert_close(weight, runs[1].model.state_dict()[name], rtol=0, atol=1e-5)
        if name != "phi.given":  # nothing is given in these texts
            # all of them moved, by far more than the tolerance
            assert not torch.equal(weight, start[name])
    assert gradient_moved(start, runs[0].model.state_dict()) > 1e-2


def gradient_moved(before: dict, after: dict) -> float:
    return max(float((before[name] - after[name]).abs().max()) for name in before)


def test_logged_terms_equal_the_bound_of_the_global_batch(tmp_path, make_model):
    trainer = make_trainer(
        tmp_path,
        unequal=True,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_steps=1,
    )
    batch = first_batch(make_trainer(tmp_path, unequal=True, max_steps=1))
    trainer.train()
    model = make_model().train()
    out = model(**batch)
    out.loss.backward()
    real = maskable(batch)
    tokens, texts = real.sum(), len(real)
    spread = sum(out.forward_rates[b][real[b]].std(correction=0) for b in range(texts)) / texts
    share = out.score / real.sum(-1)
    phi = torch.sqrt(sum(weight.grad.square().sum() for weight in model.phi.parameters()))
    expected = {
        "loss": out.nelbo.sum() / tokens,
        "main": out.main.sum() / tokens,
        "velocity": out.velocity.sum() / tokens,
        "score": out.score.sum() / tokens,
        "score_std": share.std(correction=0),
        "forward_spread": spread,
        "reverse_spread": sum(out.rates[b][real[b]].std(correction=0) for b in range(texts))
        / texts,
        "rate_ratio": out.rate_ratio.mean(),
        "phi_grad_norm": phi,
        "grad_norm": torch.sqrt(sum(weight.grad.square().sum() for weight in model.parameters())),
    }
    logged = steps_of(trainer)[0]
    for name, value in expected.items():
        assert logged[name] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name  # float32
    assert (
        logged["forward_spread"] > 0.01 < logged["reverse_spread"] and abs(logged["score"]) > 1e-4
    )


def test_logged_terms_are_means_over_the_steps_of_a_window(tmp_path):
    each, window = (make_trainer(tmp_path, logging_steps=steps) for steps in (1, 4))
    each.train()
    window.train()
    assert len(steps_of(window)) == 1
    for name in ("loss", "main", "velocity", "rate_ratio", "phi_grad_norm", "reverse_spread"):
        values = [entry[name] for entry in steps_of(each)]
        assert steps_of(window)[0][name] == pytest.approx(sum(values) / 4, rel=1e-5), name


RATE_TERMS = {
    "score",
    "score_std",
    "forward_spread",
    "reverse_spread",
    "rate_ratio",
    "phi_grad_norm",
}


@pytest.mark.parametrize(
    "rate_type, terms",
    [
        ("learned", RATE_TERMS),
        ("token", RATE_TERMS - {"reverse_spread", "phi_grad_norm"}),  # there is no psi and no phi
        ("uniform", set()),
        ("score", set()),
    ],
)
def test_what_a_model_does_not_have_is_not_logged(tmp_path, make_model, rate_type, terms):
    trainer = make_trainer(tmp_path, make_model(rate_type=rate_type), max_steps=1)
    trainer.train()
    assert {"main", "velocity"} <= steps_of(trainer)[0].keys()
    assert RATE_TERMS & steps_of(trainer)[0].keys() == terms


# ---------------------------------------------------------------------------------------- optimizer


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


# ---------------------------------------------------------------------------------------------- EMA


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


# --------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("unequal", [False, True])
def test_evaluation_is_the_order_bound_of_the_average_on_fixed_draws_for_any_batch_size(
    tmp_path, unequal
):
    trainer = make_trainer(
        tmp_path, unequal=unequal, eval_num_samples=4, per_device_eval_batch_size=4
    )
    trainer.train()
    model = copy.deepcopy(trainer.model)
    model.load_state_dict({**model.state_dict(), **trainer.ema.average})
    batch = collate(make_texts(count=6, unequal=unequal, seed=1))
    estimate = nelbo(
        model, **batch, num_samples=4, generator=step_generators(EVALUATION_SEED, 0, range(6))
    )
    tokens = maskable(batch).sum(-1).double()
    value = float(estimate.nelbo.sum() / tokens.sum())
    variance = (
        sum(float(bound - value * n) ** 2 for bound, n in zip(estimate.nelbo, tokens, strict=True))
        * 6
        / 5
    )
    metrics = trainer.evaluate()
    expected = {
        "nelbo": value,
        "loss": value,
        "perplexity": math.exp(value),
        "nelbo_standard_error": variance**0.5 / float(tokens.sum()),
        "nelbo_monte_carlo_error": float(
            estimate.standard_error.square().sum().sqrt() / tokens.sum()
        ),
        "main": float(estimate.main.sum() / tokens.sum()),
        "velocity": float(estimate.velocity.sum() / tokens.sum()),
        "tokens": float(tokens.sum()),
    }
    for name, number in expected.items():
        # float32 with another padding
        assert metrics[f"eval_{name}"] == pytest.approx(number, rel=1e-4), name


def test_standard_error_covers_the_spread_over_texts():
    generator = torch.Generator().manual_seed(0)
    values, errors = [], []
    for _ in range(2000):
        tokens = torch.randint(5, 15, (30,), generator=generator).float()
        main = 2 * tokens + tokens.sqrt() * torch.randn(30, generator=generator)
        metrics = summarise_texts(
            torch.stack([tokens, main, 0 * main, main.new_full((30,), math.nan)], dim=-1)
        )
        values.append(metrics["nelbo"])
        errors.append(metrics["nelbo_standard_error"])
        assert "nelbo_monte_carlo_error" not in metrics
    covered = sum(
        abs(value - 2) < 2.045 * error for value, error in zip(values, errors, strict=True)
    )
    # t with 29 degrees of freedom: 95 %; binomial sd 9.7, the rest: a ratio's bias
    assert abs(covered - 1900) < 60


def test_a_single_text_has_no_standard_error_but_that_of_its_draws():
    metrics = summarise_texts(torch.tensor([[4.0, 6.0, 2.0, 0.5]]))
    assert metrics["nelbo"] == 2.0 and "nelbo_standard_error" not in metrics
    # a perplexity of 1 it is not
    with pytest.raises(ValueError, match="2 texts hold no token to count"):
        summarise_texts(torch.zeros(2, 4))
    # nor does a text of no token
    assert summarise_texts(torch.tensor([[4.0, 6.0, 2.0, 0.5], [0.0] * 4])) == metrics
    assert metrics["nelbo_monte_carlo_error"] == 0.125


def test_evaluation_between_steps_does_not_change_training(tmp_path):
    runs = []
    for settings in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        trainer = make_trainer(tmp_path, **settings)
        trainer.train()
        runs.append(trainer)
    plain, evaluated = (trainer.model.state_dict() for trainer in runs)
    assert all(torch.equal(plain[name], evaluated[name]) for name in plain)
    assert len([entry for entry in runs[1].state.log_history if "eval_nelbo" in entry]) == 4


def test_evaluation_without_order_has_equal_rates_and_restores_the_learned_ones(
    tmp_path, make_model
):
    trainer = make_trainer(tmp_path, make_model())
    metrics, plain = trainer.evaluate_without_order(), trainer.evaluate()
    assert (
        metrics["eval_without_order_velocity"] == pytest.approx(0, abs=1e-6)
        and plain["eval_velocity"] > 1e-4
    )
    assert trainer.model.rate_law == make_model().rate_law
    equal = make_trainer(tmp_path, make_model(c2=0.0)).evaluate()
    assert metrics["eval_without_order_nelbo"] == pytest.approx(equal["eval_nelbo"], rel=1e-6)


# --------------------------------------------------------------------------------------- what stops


class Poison(TrainerCallback):
    """Before step 3 puts a NaN into a weight, or infinity into a gradient."""

    def __init__(self, gradient: bool):
        self.gradient = gradient

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step != 2:
            return
        if self.gradient:
            model.lm_head.bias.register_hook(lambda grad: grad * torch.inf)
        else:
            model.psi.dense.bias.data[0] = torch.nan
        self.before = copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("gradient", [False, True])
def test_a_loss_or_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(
    tmp_path, gradient
):
    poison = Poison(gradient)
    trainer = make_trainer(tmp_path, callbacks=[poison], save_strategy="steps", save_steps=1)
    with pytest.raises(
        FloatingPointError, match="stopped at step 3: .*checkpoint-2. Look for faulty data"
    ):
        trainer.train("auto")
    after = trainer.model.state_dict()
    assert all(
        torch.equal(after[name].nan_to_num(), value.nan_to_num())
        for name, value in poison.before.items()
    )
    assert sorted(path.name for path in tmp_path.glob("*checkpoint*")) == [
        "checkpoint-1",
        "checkpoint-2",
    ]
    make_trainer(tmp_path, save_strategy="steps", save_steps=1).train("auto")
    assert (tmp_path / "checkpoint-4").is_dir()


def test_settings_that_cannot_work_are_errors_with_a_remedy(tmp_path, monkeypatch):
    for settings, message in [
        ({"fp16": True}, "fp16=True is not supported.*bf16"),
        ({"ema_decay": 1.0}, "ema_decay must be a number, at least 0 and below 1, got 1.0"),
        ({"eval_num_samples": 0}, "eval_num_samples must be a whole number, at least 1, got 0"),
        ({"learning_rate": -1e-4}, "learning_rate must be a number, at least 0, got -0.0001"),
        ({"weight_decay": math.nan}, "weight_decay must be a number, at least 0, got nan"),
        (
            {"muon_learning_rate": math.inf},
            "muon_learning_rate must be a number, at least 0, got inf",
        ),
        (
            {"per_device_train_batch_size": 2.5},
            "batch_size must be a whole number, at least 1, got 2.5",
        ),
        ({"seed": -1}, "seed must be a whole number, at least 0 and below 4294967296, got -1"),
        (
            {"label_smoothing_factor": 0.1},
            "label_smoothing_factor=0.1 is not supported: the loss is the bound",
        ),
        (
            {"neftune_noise_alpha": 5.0},
            "neftune_noise_alpha=5.0 is not supported: the loss is the bound",
        ),
        (
            {"bf16_full_eval": True},
            "bf16_full_eval=True is not supported: evaluation has the precision of training",
        ),
        ({"lr_scheduler_kwargs": "{min_lr"}, "'{min_lr' is no JSON"),
    ]:
        with pytest.raises(ValueError, match=message):
            LoMDMTrainingArguments(str(tmp_path), **settings)
    with pytest.raises(ValueError, match="leaves nothing to train"):
        make_trainer(tmp_path, frozen_modules=["model", "lm_head", "phi", "psi"])
    with pytest.raises(
        ValueError, match="args must be LoMDMTrainingArguments, got TrainingArguments"
    ):
        LoMDMTrainer(
            model=build_model(),
            args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"),
        )
    monkeypatch.setattr(LoMDMTrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="2 GPUs in one process.*accelerate launch"):
        make_trainer(tmp_path)


@pytest.mark.parametrize("trainer_class", [LoMDMTrainer, CausalTrainer])
def test_a_collator_that_masks_is_refused_before_it_reaches_the_weights(tmp_path, trainer_class):
    model = build_causal() if trainer_class is CausalTrainer else build_model()
    start = copy.deepcopy(model.state_dict())
    trainer = make_trainer(tmp_path, model, trainer_class=trainer_class)
    trainer.data_collator = DataCollatorForLanguageModeling(build_tokenizer(), seed=0)
    for call in (trainer.train, trainer.evaluate):
        with pytest.raises(
            ValueError,
            match=(
                "(the collator masks, as|labels differ from input_ids.*) "
                "DataCollatorForLanguageModeling"
            ),
        ):
            call()
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    # labels are the tokens
    trainer.data_collator = DataCollatorForLanguageModeling(build_tokenizer(), mlm=False)
    trainer.train()


@pytest.mark.parametrize(
    "name", ["compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func"]
)
def test_arguments_of_the_trainer_without_effect_are_refused(tmp_path, name):
    args = LoMDMTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match=f"{name} is not supported: "):
        LoMDMTrainer(model=build_model(), args=args, **{name: lambda *_: {}})


@pytest.mark.parametrize(
    "settings",
    [
        {"dataloader_drop_last": True, "per_device_train_batch_size": 32},
        {
            "dataloader_drop_last": True,
            "per_device_train_batch_size": 32,
            "max_steps": -1,
            "num_train_epochs": 2,
        },
        {"max_steps": 0},
        {"max_steps": -1, "num_train_epochs": 0},
    ],
)
def test_a_run_that_takes_no_step_is_an_error(tmp_path, settings):
    with pytest.raises(ValueError, match="no step to take: train_dataset has 24 rows"):
        make_trainer(tmp_path, **settings).train("auto")


def test_a_single_validation_text_has_no_error_and_no_nan_anywhere(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    trainer.eval_dataset = make_texts(count=1)
    metrics = trainer.evaluate() | trainer.evaluate_without_order()
    trainer.save_model()
    assert all(math.isfinite(value) for value in metrics.values())
    assert say_value(metrics, "eval_nelbo") == f"{metrics['eval_nelbo']:.4f} nats per token"
    text = (tmp_path / "README.md").read_text()
    assert "nan" not in text.lower() and "| unknown, from a single text |" in text


def test_gradient_norm_is_the_euclidean_norm_of_all_or_of_one_head(make_model):
    model = make_model().train()
    assert float(gradient_norm(model)) == 0
    model(**collate(make_texts(count=4))).loss.backward()
    square = sum(float(weight.grad.square().sum()) for weight in model.phi.parameters())
    assert float(gradient_norm(model, "phi")) == pytest.approx(square**0.5, rel=1e-5)
    assert float(gradient_norm(model)) > float(gradient_norm(model, "phi")) > 0


def test_uploads_see_complete_checkpoints_and_then_the_average(tmp_path, monkeypatch):
    uploads = []

    def upload_checkpoint(trainer, folder: str) -> None:
        uploads.append((folder, checkpointing.is_complete(Path(folder))))

    monkeypatch.setattr(Trainer, "init_hf_repo", lambda trainer, *_: None)
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", upload_checkpoint)
    monkeypatch.setattr(
        Trainer, "push_to_hub", lambda trainer, **kwargs: uploads.append(("final", True))
    )
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=2, push_to_hub=True)
    trainer.train()
    trainer.save_model()
    assert uploads == [(str(tmp_path / f"checkpoint-{step}"), True) for step in (2, 4)] + [
        ("final", True)
    ]
    stored = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in trainer.ema.average.items())


@pytest.mark.parametrize("settings, expected", [({}, 0), ({"hub_strategy": "every_save"}, 2)])
def test_by_default_nothing_is_uploaded_before_the_average(
    tmp_path, monkeypatch, settings, expected
):
    uploads, done = [], Future()
    done.set_result(None)
    named = {"hub_model_id": "me/tiny", "push_in_progress": None}
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda trainer, *_: vars(trainer).update(named))
    monkeypatch.setattr(
        HfApi, "upload_folder", lambda _, **options: uploads.append(options) or done
    )
    make_trainer(
        tmp_path, save_strategy="steps", save_steps=2, push_to_hub=True, **settings
    ).train()
    assert len(uploads) == expected and (tmp_path / "model.safetensors").exists() == bool(expected)


def refusal(status: int) -> HfHubHTTPError:
    return HfHubHTTPError(
        "refused", response=httpx.Response(status, request=httpx.Request("POST", "http://hub"))
    )


def test_uploads_that_fail_say_what_holds_and_what_to_do_and_the_card_names_the_repository(
    tmp_path, monkeypatch
):
    failures = [refusal(401), httpx.ReadError("broken off"), refusal(500)]

    def fail(*arguments, **options):
        raise failures.pop(0)

    monkeypatch.setattr(HfApi, "create_repo", fail)
    with pytest.raises(
        ConnectionError, match="no repository me/tiny to push to.* refused. Log in with a token"
    ):
        make_trainer(tmp_path, push_to_hub=True, hub_model_id="me/tiny")
    monkeypatch.setattr(
        HfApi,
        "create_repo",
        lambda *arguments, **options: RepoUrl("https://huggingface.co/me/tiny"),
    )
    monkeypatch.setattr(HfApi, "upload_folder", fail)
    trainer = make_trainer(tmp_path, push_to_hub=True)
    for _ in range(2):
        with pytest.raises(
            ConnectionError, match="is written, but was not uploaded to me/tiny: .* Try again: the"
        ):
            trainer.save_model()
    assert 'DiffusionPipeline.from_pretrained("me/tiny"' in (tmp_path / "README.md").read_text()
    assert LoMDMPipeline.from_pretrained(tmp_path).model.config.vocab_size == 11


# ----------------------------------------------------------------------- the final folder, the card


def test_the_final_folder_is_a_hub_folder_and_a_checkpoint_is_not(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    trainer.save_model()
    pipe = LoMDMPipeline.from_pretrained(tmp_path)
    assert torch.equal(pipe.model.lm_head.weight, trainer.ema.average["lm_head.weight"])
    layout = {
        "model_index.json",
        "model/config.json",
        "scheduler/scheduling_lomdm.py",
        "pipeline_lomdm.py",
    }
    assert all((tmp_path / name).is_file() for name in (*layout, "training_args.bin"))
    assert not any((tmp_path / "checkpoint-4" / name).exists() for name in (*layout, "README.md"))


@pytest.mark.parametrize("attribute", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_sharded_weights_are_written_as_transformers_does(tmp_path, attribute):
    trainer = make_trainer(tmp_path)
    setattr(trainer, attribute, True)
    state_dict = {
        name: torch.full_like(value, 2.0) for name, value in trainer.model.state_dict().items()
    }
    # what the Trainer calls with the weights that it has gathered
    trainer._save(str(tmp_path), state_dict)
    assert float(load_file(tmp_path / "model.safetensors")["lm_head.weight"].min()) == 2
    assert not (tmp_path / "model_index.json").exists()


def test_the_card_says_what_was_measured_on_these_weights_and_gives_way_to_one_written_by_hand(
    tmp_path,
):
    trainer = make_trainer(tmp_path, eval_on_start=True)
    card = tmp_path / "README.md"
    trainer.train()
    assert any("eval_nelbo" in entry for entry in trainer.state.log_history)
    trainer.save_model()
    assert "These weights were not evaluated." in card.read_text()  # those before training were
    metrics = trainer.evaluate() | trainer.evaluate_without_order()
    trainer.save_model()
    text = card.read_text()
    for key in ("eval_nelbo", "eval_without_order_nelbo"):
        assert f"| {metrics[key]:.4f} | {metrics[f'{key}_standard_error']:.4f} |" in text
    assert "a learned order" in text and "trained for\n4 optimizer steps" in text
    trainer.create_model_card(tags="extra", license="mit", model_name="Name", dataset="some text")
    data = ModelCard.load(card).data
    assert data.license == "mit" and {"extra", "custom_code"} <= set(data.tags)
    assert data.get("library_name") == "transformers"
    assert "# Name\n" in card.read_text() and "some text" in card.read_text()
    card.write_text("# Mine")
    trainer.save_model()
    trainer.create_model_card()
    assert card.read_text() == "# Mine"


def test_every_rate_type_has_a_card(make_model):
    assert ORDERS.keys() == set(RATE_TYPES)
    for rate_type, order in ORDERS.items():
        description = describe_diffusion(make_model(rate_type=rate_type).config)
        record = TrainingRecord.of(LoMDMTrainingArguments("out"), 1, {}, None)
        card = model_card("name", description, record)
        assert f'{order} (`rate_type="{rate_type}"`), trained' in card
    blocks = describe_diffusion(make_model(rate_type="uniform", block_size=4).config)
    card = model_card("name", blocks, record)
    assert '(`rate_type="uniform"`) within blocks of 4, block after block, trained' in card


def test_special_tokens_of_the_model_are_not_taken_over_from_the_tokenizer(tmp_path, make_model):
    trainer = make_trainer(tmp_path, make_model(bos_token_id=None, eos_token_id=3), max_steps=1)
    trainer.processing_class = build_tokenizer()
    trainer.train()
    config = trainer.model.config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, 3, 0)


def test_a_finished_run_started_again_trains_and_logs_no_step(tmp_path):
    make_trainer(tmp_path, save_strategy="steps", save_steps=4).train()
    repeated = make_trainer(tmp_path)
    repeated.train("auto")
    assert repeated.num_steps_trained == 0 and not any(
        "train_loss" in entry for entry in repeated.state.log_history
    )
    longer = make_trainer(tmp_path, max_steps=6)
    longer.train("auto")
    assert longer.num_steps_trained == 2 and "train_loss" in longer.state.log_history[-1]


def test_samples_are_those_of_the_average(tmp_path, monkeypatch):
    trainer, seen = make_trainer(tmp_path, max_steps=2), []
    trainer.processing_class = build_tokenizer()
    trainer.train()
    call = LoMDMPipeline.__call__

    def watched(pipe, **options):
        seen.append(pipe.model.lm_head.weight.detach().clone())
        return call(pipe, **options)

    monkeypatch.setattr(LoMDMPipeline, "__call__", watched)
    trainer.sample_texts(1)
    assert torch.equal(seen[0], trainer.ema.average["lm_head.weight"])
    assert not torch.equal(seen[0], trainer.model.lm_head.weight)
