"""LoMDMTrainer: draws, loss, logs, optimizer, average, evaluation, and what stops it."""

import copy
import importlib
import math

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file
from tiny_training import collate, make_texts, make_trainer

from hf_lomdm import LoMDMPipeline
from hf_lomdm.data.draws import step_generators, step_quantiles
from hf_lomdm.evaluation import nelbo
from hf_lomdm.evaluation.summary import summarise_texts
from hf_lomdm.modeling.configuration_lomdm import RATE_TYPES
from hf_lomdm.training.arguments import LoMDMTrainingArguments
from hf_lomdm.training.model_card import (
    ORDERS,
    TrainingRecord,
    describe_diffusion,
    model_card,
)
from hf_lomdm.training.trainer import EVALUATION_SEED, maskable
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
