"""LoMDMTrainer: what stops it, and uploads that fail."""

import copy
import importlib
import math
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, RepoUrl
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from safetensors.torch import load_file
from tiny_training import build_causal, collate, make_texts, make_trainer
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from conftest import build_model
from hf_lomdm import LoMDMPipeline
from hf_lomdm.training import checkpointing
from hf_lomdm.training.arguments import LoMDMTrainingArguments
from hf_lomdm.training.causal import CausalTrainer
from hf_lomdm.training.model_card import (
    say_value,
)
from hf_lomdm.training.trainer import LoMDMTrainer, gradient_norm
from tiny_tokenizer import build_tokenizer

httpx = importlib.import_module(HTTPError.__module__)  # or httpx2, whichever the Hub's client uses


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


@pytest.mark.parametrize("collator", [DataCollatorWithPadding, DataCollatorForSeq2Seq])
def test_batches_without_labels_are_refused_with_the_remedy(tmp_path, collator):
    trainer = make_trainer(tmp_path)
    trainer.data_collator = collator(build_tokenizer())
    trainer.train_dataset = trainer.eval_dataset = [{"input_ids": [3, 4, 5]}] * 8
    for call in (trainer.train, trainer.evaluate):
        with pytest.raises(ValueError, match="batches have no labels.*LoMDMDataCollator"):
            call()


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


@pytest.mark.parametrize("how", ["label_smoothing_factor", "compute_loss_func"])
def test_a_plain_trainer_that_takes_the_labels_out_is_refused_at_its_first_step(tmp_path, how):
    smoothed = {"label_smoothing_factor": 0.1} if how == "label_smoothing_factor" else {}
    own = {} if smoothed else {how: lambda outputs, labels, **_: outputs.logits.sum()}
    args = TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True, **smoothed
    )
    model = build_model()
    trainer = Trainer(model, args, collate, train_dataset=make_texts(), **own)
    with pytest.raises(ValueError, match="labels: none given, .* set it to 0"):
        trainer.train()


def test_training_without_labels_goes_on_once_a_mask_was_seen():
    model, clean = build_model().train(), torch.full((2, 6), 3)
    masked = clean.index_fill(1, torch.tensor([0]), model.config.mask_token_id)
    model(input_ids=clean).last_hidden_state.sum().backward()  # states alone may be what is trained

    def step(ids):
        model(input_ids=ids).logits[..., :10].sum().backward()

    with pytest.raises(ValueError, match="no position of input_ids is masked"):
        step(clean)
    weights = dict(model.named_parameters())
    sums = torch.func.grad(
        lambda own: torch.func.functional_call(model, own, (masked,)).logits[..., :10].sum()
    )(weights)
    assert sums["lm_head.bias"].abs().sum() > 0
    model.has_trained_on_masks = False
    model.eval()
    step(clean)  # gradients for their own sake
    model.train()
    step(masked)
    step(clean)  # a batch in which chance masked nothing


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
