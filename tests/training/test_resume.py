"""Training that is interrupted, killed or out of disk: nothing is lost, and resuming is exact."""

import json
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from tiny_training import FORKS, checkpoint_tensors, make_trainer, start, train
from transformers import TrainerCallback

from hf_lomdm.training import checkpointing

# Three optimizer steps an epoch, dropout on: the data position and the random state matter.
RUN = {"dropout": 0.1, "max_steps": 8, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}


class StopAfter(TrainerCallback):
    """Raises after a step, as an interrupt from outside would."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def assert_same_checkpoint(left: Path, right: Path) -> None:
    ours, theirs = checkpoint_tensors(left), checkpoint_tensors(right)
    assert ours.keys() == theirs.keys() and len(ours) > 100
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


@pytest.mark.parametrize(
    "settings",
    [
        {"save_steps": 1},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "unequal": True},
        {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 3},
        {"muon_learning_rate": 0.02},
    ],
    ids=["every step", "accumulation", "evaluation between, at the end of an epoch", "muon"],
)
def test_interrupted_and_resumed_equals_uninterrupted_bit_by_bit(tmp_path, settings):
    settings = {**RUN, **settings}
    make_trainer(tmp_path / "whole", **settings).train()
    for stop in (2, 5, 7):
        with pytest.raises(KeyboardInterrupt):
            make_trainer(tmp_path / "parts", callbacks=[StopAfter(stop)], **settings).train("auto")
    make_trainer(tmp_path / "parts", **settings).train("auto")
    assert_same_checkpoint(tmp_path / "whole" / "checkpoint-8", tmp_path / "parts" / "checkpoint-8")
    history = [
        json.loads((tmp_path / run / "checkpoint-8" / "trainer_state.json").read_text()) for run in ("whole", "parts")
    ]
    assert history[0]["global_step"] == history[1]["global_step"] == 8
    losses = [[entry["loss"] for entry in one["log_history"] if "loss" in entry] for one in history]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "system",
    [{"rate_type": "token"}, {"rate_type": "score", "block_size": 4}, {"block_size": 4}],
    ids=["token", "score, blocks", "learned, blocks"],
)
def test_every_system_resumes_bit_by_bit(tmp_path, system):
    settings = {**RUN, "unequal": True, "system": system, "max_steps": 4}
    make_trainer(tmp_path / "whole", **settings).train()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "parts", callbacks=[StopAfter(3)], **settings).train("auto")
    make_trainer(tmp_path / "parts", **settings).train("auto")
    ours, theirs = (checkpoint_tensors(tmp_path / run / "checkpoint-4") for run in ("whole", "parts"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_event_of_saving_and_resumed_equals_uninterrupted_bit_by_bit(tmp_path, stride):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    reference = start(whole, **RUN)
    seen, event = [], 0
    while True:  # dies a little later in its first save each time, then in the next one, until it gets through
        process = start(killed, die_at=event, **RUN)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        seen.append({path.name for path in killed.iterdir()})
        event += stride
        assert event < 200
    reference.join()
    assert len(seen) > 20 / stride  # one save alone has more than 20 events
    assert any("_checkpoint-2-incomplete" in names for names in seen)
    assert_same_checkpoint(whole / "checkpoint-8", killed / "checkpoint-8")
    assert not [path.name for path in killed.iterdir() if path.name.startswith("_")]


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed_equals_uninterrupted_bit_by_bit(tmp_path, kills):
    settings = {**RUN, "max_steps": 20}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    clock = random.Random(0)
    start(whole, **settings).join()
    for _ in range(kills):
        process = start(killed, **settings)
        while process.is_alive() and not list(killed.glob("*checkpoint-*")):
            time.sleep(0.01)  # what happens before the first save is not of interest
        process.join(timeout=clock.uniform(0, 2))
        process.kill()
        process.join()
    last = start(killed, **settings)
    last.join()
    assert last.exitcode == 0
    assert_same_checkpoint(whole / "checkpoint-20", killed / "checkpoint-20")


def test_a_full_disk_is_a_clear_error_and_the_checkpoints_before_it_are_kept(tmp_path):
    errors = FORKS.SimpleQueue()
    process = FORKS.Process(target=train_on_a_small_disk, args=(tmp_path / "small", errors))
    process.start()
    message = errors.get()
    process.join()
    assert "checkpoint-4 could not be written" in message and "checkpoint-2" in message and "Make room" in message
    assert [path.name for path in (tmp_path / "small").iterdir() if "checkpoint" in path.name] == ["checkpoint-2"]
    train(tmp_path / "small", **RUN)
    train(tmp_path / "whole", **RUN)
    assert_same_checkpoint(tmp_path / "whole" / "checkpoint-8", tmp_path / "small" / "checkpoint-8")


def train_on_a_small_disk(output_dir: Path, errors) -> None:
    """Trains until, after the first checkpoint, no file may grow beyond 4 kB; reports the error."""
    try:
        train(output_dir, callbacks=[FillDisk()], **RUN)
    except OSError as error:
        errors.put(str(error))


class FillDisk(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_a_failing_write_is_a_clear_error_and_training_goes_on_from_the_checkpoint_before(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, **RUN)
    monkeypatch.setattr(trainer, "_save_scaler", lambda folder: fail_when(folder, "checkpoint-6"))
    with pytest.raises(OSError, match="checkpoint-6 could not be written: No space left.*checkpoint-4"):
        trainer.train("auto")
    assert [path.name for path in checkpointing.complete_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    assert not list(tmp_path.glob("_*"))


def fail_when(folder: str, name: str) -> None:
    if folder.endswith(name):
        raise RuntimeError("No space left")


def test_a_checkpoint_with_a_missing_or_cut_file_is_ignored(tmp_path):
    make_trainer(tmp_path, **{**RUN, "save_total_limit": 10}).train()
    (tmp_path / "checkpoint-8" / "optimizer.pt").unlink()
    weights = tmp_path / "checkpoint-6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (tmp_path / "checkpoint-4" / checkpointing.MANIFEST).unlink()
    assert checkpointing.choose_checkpoint("auto", tmp_path) == tmp_path / "checkpoint-2"
    with pytest.raises(ValueError, match="checkpoint-6.*not a complete checkpoint"):
        make_trainer(tmp_path, **RUN).train(str(tmp_path / "checkpoint-6"))


def test_starting_removes_only_what_interrupted_saving_left(tmp_path):
    for name in ("_checkpoint-4-incomplete", "_checkpoint-2-removed", "_checkpoint-notes", "checkpoint-2", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("content")
    checkpointing.clean(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"_checkpoint-notes", "checkpoint-2", "notes"}


def test_old_checkpoints_are_removed_only_after_the_new_one_is_complete(tmp_path, monkeypatch):
    present = []
    publish = checkpointing.publish

    def watched(staged: Path, final: Path) -> None:
        present.append((final.name, {path.name for path in checkpointing.complete_checkpoints(tmp_path)}))
        publish(staged, final)

    monkeypatch.setattr(checkpointing, "publish", watched)
    make_trainer(tmp_path, **{**RUN, "save_total_limit": 1}).train()
    before = [set(), {"checkpoint-2"}, {"checkpoint-4"}, {"checkpoint-6"}]
    assert present == list(zip([f"checkpoint-{step}" for step in (2, 4, 6, 8)], before, strict=True))
    assert [path.name for path in checkpointing.complete_checkpoints(tmp_path)] == ["checkpoint-8"]


def test_resuming_from_an_earlier_folder_replaces_the_later_checkpoints_by_equal_ones(tmp_path):
    make_trainer(tmp_path, **{**RUN, "save_total_limit": 10}).train()
    shutil.copytree(tmp_path / "checkpoint-8", tmp_path / "first-8")
    make_trainer(tmp_path, **{**RUN, "save_total_limit": 10}).train(str(tmp_path / "checkpoint-4"))
    assert_same_checkpoint(tmp_path / "first-8", tmp_path / "checkpoint-8")


def test_a_finished_run_started_again_takes_no_step_and_keeps_its_weights(tmp_path):
    make_trainer(tmp_path, **RUN).train("auto")  # 8 steps of 3 an epoch: ends in the middle of an epoch
    again = make_trainer(tmp_path, **RUN)
    assert again.train("auto").global_step == 8
    tensors = checkpoint_tensors(tmp_path / "checkpoint-8")
    assert all(torch.equal(value, tensors[f"weights.{name}"]) for name, value in again.model.state_dict().items())
    assert all(torch.equal(value, tensors[f"ema.{name}"]) for name, value in again.ema.average.items())


@pytest.mark.parametrize(
    "change, named",
    [
        ({"learning_rate": 1e-5}, "learning_rate="),
        ({"seed": 7}, "seed="),
        ({"bound": "time"}, "bound='order', not 'time'"),
        ({"rate_type": "uniform"}, "rate_type='learned', not 'uniform'"),
        ({"c2": 0.1}, "c2="),
    ],
)
def test_a_checkpoint_of_a_run_with_other_settings_is_an_error_that_names_the_setting(
    tmp_path, make_model, change, named
):
    make_trainer(tmp_path, **{**RUN, "max_steps": 2}).train()
    of_model = {key: change[key] for key in ("bound", "c2", "rate_type") if key in change}
    of_run = {key: value for key, value in change.items() if key not in of_model}
    trainer = make_trainer(tmp_path, model=make_model(**of_model), **{**RUN, "max_steps": 4, **of_run})
    with pytest.raises(ValueError, match=f"checkpoint-2 was trained with {named}.*another output_dir"):
        trainer.train("auto")
    make_trainer(tmp_path, **{**RUN, "max_steps": 3, "logging_steps": 2}).train("auto")  # these may change
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
    make_trainer(tmp_path, model=make_model(rate_type="uniform"), **{**RUN, "ema_decay": 0}).train()
    with pytest.raises(ValueError, match="does not fit the model: missing .*layers.2"):
        make_trainer(tmp_path, model=make_model(rate_type="uniform", num_hidden_layers=3), **RUN).train("auto")
    with pytest.raises(ValueError, match="ema.safetensors does not exist.*--ema_decay 0"):
        make_trainer(tmp_path, model=make_model(rate_type="uniform"), **RUN).train("auto")
