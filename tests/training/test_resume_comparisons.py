"""Which checkpoint a run may resume from: its settings, its data and its model are compared."""

import json
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import RUN, StopAfter, make_trainer

from hf_lomdm.training import checkpointing, resuming
from hf_lomdm.training.arguments import REFUSED, LoMDMTrainingArguments


def test_checkpoints_of_the_version_before_resume_and_their_settings_are_compared(tmp_path):
    make_trainer(tmp_path, **{**RUN, "max_steps": 2, "frozen_modules": ["psi"]}).train()
    folder = tmp_path / "checkpoint-2"
    (folder / resuming.RUN_FILE).unlink()
    entries = json.loads((folder / checkpointing.MANIFEST).read_text())
    del entries[resuming.RUN_FILE]
    sizes = {name: size for name, (size, _) in entries.items()}
    (folder / checkpointing.MANIFEST).write_text(json.dumps(sizes))
    settings = {**RUN, "max_steps": 3, "frozen_modules": ["psi"]}
    for change, named in (
        ({"seed": 7}, "seed=42, not 7"),
        ({"system": {"c2": 0.1}}, "c2=0.65, not 0.1"),
    ):
        with pytest.raises(ValueError, match=f"checkpoint-2 was trained with {named}, and"):
            make_trainer(tmp_path, **{**settings, **change}).train("auto")
    assert make_trainer(tmp_path, **settings).train("auto").global_step == 3


def test_another_split_of_the_same_step_goes_on_with_the_same_texts(tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "unequal": True}
    make_trainer(tmp_path / "whole", **settings).train()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "parts", callbacks=[StopAfter(3)], **settings).train("auto")
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    make_trainer(tmp_path / "parts", **settings, **split).train("auto")
    ours, theirs = (
        load_file(tmp_path / run / "checkpoint-4" / "model.safetensors")
        for run in ("whole", "parts")
    )
    for name, value in ours.items():  # float32 sums in another order, through two steps of AdamW
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-4)


def test_other_data_are_refused_and_named_in_the_record_and_on_the_card(tmp_path):
    def run(steps: int, data: str, fingerprint: str | None):
        trainer = make_trainer(tmp_path, **{**RUN, "max_steps": steps})
        trainer.data, trainer.data_fingerprint = data, fingerprint
        trainer.train("auto")
        return trainer

    run(2, "`old.txt`", "00aa")
    with pytest.raises(
        ValueError,
        match=(
            "checkpoint-2 was trained with other data or another tokenizer .`old.txt`, fingerprint "
            "00aa, not `new.txt`, fingerprint 11bb., and cannot go on"
        ),
    ):
        run(4, "`new.txt`", "11bb")
    run(4, "`moved.txt`", "00aa").save_model()  # another name of the same
    assert json.loads((tmp_path / "training_record.json").read_text())["data_fingerprint"] == "00aa"
    assert (
        "Fingerprint of the rows and the tokenizer: `00aa`." in (tmp_path / "README.md").read_text()
    )
    run(5, "`old.txt`", None)  # nobody says: nothing to compare


def test_every_training_argument_is_compared_refused_or_harmless_by_name():
    harmless = set(" ".join(resuming.HARMLESS_ARGUMENTS.values()).split())
    names = {argument.name for argument in fields(LoMDMTrainingArguments)}
    compared = {
        *(
            "learning_rate",
            "head_learning_rate",
            "muon_learning_rate",
            "frozen_modules",
            "ema_decay",
        ),
        *("seed", "data_seed", "order_search"),
        *(
            "lr_scheduler_type",
            "lr_scheduler_kwargs",
            "warmup_steps",
            "optim",
            "optim_args",
            "optim_target_modules",
        ),
        *(
            "weight_decay",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "max_grad_norm",
            "bf16",
            "accelerator_config",
        ),
        *(
            "dataloader_drop_last",
            "dataloader_in_order",
            "train_sampling_strategy",
            "length_column_name",
        ),
    }
    assert names - harmless - set(REFUSED) == compared and not harmless & (compared | set(REFUSED))


OTHER_SETTINGS = [
    ({"learning_rate": 1e-5}, "learning_rate="),
    ({"bound": "time"}, "bound='order', not 'time'"),
    ({"rate_type": "uniform"}, "rate_type='learned', not 'uniform'"),
    ({"num_attention_heads": 4}, "num_attention_heads=2, not 4"),  # the same shapes
    (
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 1}},
        "lr_scheduler_type=.*; lr_scheduler_kwargs=None, not {'",
    ),
    ({"ema_decay": 0.5}, "ema_decay="),
    ({"frozen_modules": ["psi"]}, r"frozen_modules=None, not \['psi'\]"),
    (
        {"gradient_accumulation_steps": 2},
        r"per_device_train_batch_size \* gradient_accumulation_steps \* world_size=8, not 16",
    ),
]
# compared in the same way as one of those
MORE_SETTINGS = [
    ({"seed": 7}, "seed="),
    ({"c2": 0.1}, "c2="),
    ({"max_position_embeddings": 64}, "max_position_embeddings="),
    ({"weight_decay": 0.1}, "weight_decay="),
    ({"adam_beta1": 0.5}, "adam_beta1="),
    ({"warmup_steps": 1}, "warmup_steps="),
    ({"lr_scheduler_type": "constant"}, "lr_scheduler_type='linear', not 'constant'"),
    ({"max_grad_norm": 0.5}, "max_grad_norm="),
    ({"dataloader_drop_last": True}, "dataloader_drop_last="),
    (
        {"per_device_train_batch_size": 4},
        r"per_device_train_batch_size \* gradient_accumulation_steps \* world_size=8, not 4",
    ),
]


@pytest.mark.parametrize(
    "change, named",
    [*OTHER_SETTINGS, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_SETTINGS)],
)
def test_a_checkpoint_of_a_run_with_other_settings_is_an_error_that_names_the_setting(
    tmp_path, make_model, change, named
):
    make_trainer(tmp_path, **{**RUN, "max_steps": 2}).train()
    of_model = {key: value for key, value in change.items() if hasattr(make_model().config, key)}
    of_run = {key: value for key, value in change.items() if key not in of_model}
    model = make_model(**{"dropout": 0.1, **of_model})
    trainer = make_trainer(tmp_path, model=model, **{**RUN, "max_steps": 4, **of_run})
    with pytest.raises(
        ValueError, match=f"checkpoint-2 was trained with {named}.*another output_dir"
    ):
        trainer.train("auto")
    # these may change
    make_trainer(tmp_path, **{**RUN, "max_steps": 3, "logging_steps": 2}).train("auto")
    assert (tmp_path / "checkpoint-3").is_dir()


def test_a_checkpoint_without_its_optimizer_is_not_resumed_from(tmp_path):
    make_trainer(tmp_path, **RUN, save_only_model=True).train()
    with pytest.raises(ValueError, match="has no optimizer state .save_only_model"):
        make_trainer(tmp_path, **RUN, save_only_model=True).train("auto")


def test_auto_starts_anew_in_an_empty_folder_and_true_does_not(tmp_path):
    assert checkpointing.choose_checkpoint("auto", tmp_path) is None
    assert checkpointing.choose_checkpoint(None, tmp_path) is None
    with pytest.raises(ValueError, match="has no complete one"):
        checkpointing.choose_checkpoint(True, tmp_path)


def test_a_checkpoint_of_another_model_or_without_average_is_an_error(tmp_path, make_model):
    without = {**RUN, "ema_decay": 0}
    make_trainer(tmp_path, model=make_model(rate_type="uniform"), **without).train()
    with pytest.raises(
        ValueError, match="checkpoint-8 was trained with num_hidden_layers=2, not 3, and"
    ):
        make_trainer(
            tmp_path, model=make_model(rate_type="uniform", num_hidden_layers=3), **without
        ).train("auto")
    with pytest.raises(ValueError, match="checkpoint-8 was trained with ema_decay=0, not 0.9, and"):
        make_trainer(tmp_path, model=make_model(rate_type="uniform"), **RUN).train("auto")
