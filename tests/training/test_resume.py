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
from safetensors import SafetensorError
from tiny_training import FORKS, RUN, StopAfter, checkpoint_tensors, make_trainer, start, train
from transformers import TrainerCallback

from hf_lomdm.training import checkpointing


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
        pytest.param({"muon_learning_rate": 0.02}, marks=pytest.mark.slow),
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
        json.loads((tmp_path / run / "checkpoint-8" / "trainer_state.json").read_text())
        for run in ("whole", "parts")
    ]
    assert history[0]["global_step"] == history[1]["global_step"] == 8
    losses = [
        [entry["loss"] for entry in state["log_history"] if "loss" in entry] for state in history
    ]
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
    ours, theirs = (
        checkpoint_tensors(tmp_path / run / "checkpoint-4") for run in ("whole", "parts")
    )
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


@pytest.mark.parametrize("stride", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_event_of_saving_and_resumed_equals_uninterrupted_bit_by_bit(
    tmp_path, stride
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    reference = start(whole, **RUN)
    seen, event = [], 0
    # dies a little later in its first save each time, then in the next one, until it gets through
    while True:
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
    assert [path.name for path in killed.iterdir() if path.name.startswith("_")] == [
        checkpointing.LOCK
    ]


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_equals_uninterrupted_bit_by_bit(tmp_path):
    settings = {**RUN, "max_steps": 20}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    clock = random.Random(0)
    start(whole, **settings).join()
    for _ in range(30):
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
    assert (
        "checkpoint-4 could not be written" in message
        and "checkpoint-2" in message
        and "Make room" in message
    )
    assert [path.name for path in (tmp_path / "small").iterdir() if "checkpoint" in path.name] == [
        "checkpoint-2"
    ]
    train(tmp_path / "small", **RUN)
    train(tmp_path / "whole", **RUN)
    assert_same_checkpoint(tmp_path / "whole" / "checkpoint-8", tmp_path / "small" / "checkpoint-8")


def test_a_full_disk_at_the_end_is_an_oserror(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()

    def fill(*arguments, **options):
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr(trainer, "write_model", fill)
    with pytest.raises(
        OSError, match="could not be written: .*No space left.* Make room on the disk"
    ):
        trainer.save_model()


def train_on_a_small_disk(output_dir: Path, errors) -> None:
    """Trains until, after the first checkpoint, no file may grow beyond 4 kB; reports the error."""
    try:
        train(output_dir, callbacks=[FillDisk()], **RUN)
    except OSError as error:
        errors.put(str(error))


class FillDisk(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_a_failing_write_is_a_clear_error_and_training_goes_on_from_the_checkpoint_before(
    tmp_path, monkeypatch
):
    trainer = make_trainer(tmp_path, **RUN)
    monkeypatch.setattr(trainer, "_save_scaler", lambda folder: fail_when(folder, "checkpoint-6"))
    with pytest.raises(
        OSError, match="checkpoint-6 could not be written: No space left.*checkpoint-4"
    ):
        trainer.train("auto")
    assert [path.name for path in checkpointing.complete_checkpoints(tmp_path)] == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    assert [path.name for path in tmp_path.glob("_*")] == [checkpointing.LOCK]


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
    assert [path.name for path in checkpointing.complete_checkpoints(tmp_path)] == ["checkpoint-2"]
    with pytest.raises(ValueError, match="checkpoint-6.*not a complete checkpoint"):
        make_trainer(tmp_path, **RUN).train(str(tmp_path / "checkpoint-6"))


def flip(path: Path) -> None:
    """64 bytes in the middle of a file, its size as it was."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 - 32
    content[middle : middle + 64] = bytes(byte ^ 0xFF for byte in content[middle : middle + 64])
    path.write_bytes(content)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_text("{}")


@pytest.mark.parametrize(
    "name, damage, fault",
    [
        ("model.safetensors", flip, "model.safetensors has changed since it was written"),
        *(
            pytest.param(
                name, flip, f"{name} has changed since it was written", marks=pytest.mark.slow
            )
            for name in ("ema.safetensors", "optimizer.pt", "rng_state.pth")
        ),
        ("trainer_state.json", half, "trainer_state.json is missing or cut"),
        (checkpointing.MANIFEST, half, "complete.json is missing or damaged (JSONDecodeError)"),
        (checkpointing.MANIFEST, flip, "complete.json is missing or damaged (UnicodeDecodeError)"),
        (checkpointing.MANIFEST, empty, "complete.json is empty"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_named_in_one_line(
    tmp_path, caplog, name, damage, fault
):
    make_trainer(tmp_path, **{**RUN, "max_steps": 4}).train()
    damage(tmp_path / "checkpoint-4" / name)
    caplog.clear()
    make_trainer(tmp_path, **{**RUN, "max_steps": 5}).train("auto")
    output = [
        record.getMessage() for record in caplog.records if record.name.startswith("hf_lomdm")
    ]
    assert output == [
        f"{tmp_path}/checkpoint-4 is passed over: {fault}.",
        f"Resuming from {tmp_path}/checkpoint-2.",
    ]
    with pytest.raises(ValueError, match="checkpoint-5.* is not a complete checkpoint: "):
        damage(tmp_path / "checkpoint-5" / name)
        make_trainer(tmp_path, **RUN).train(str(tmp_path / "checkpoint-5"))


def test_where_no_checkpoint_is_intact_nothing_is_started_anew_over_them(tmp_path):
    make_trainer(tmp_path, **{**RUN, "max_steps": 2}).train()
    flip(tmp_path / "checkpoint-2" / "optimizer.pt")
    with pytest.raises(
        ValueError,
        match="none is intact; checkpoint-2: optimizer.pt has changed since .* Remove them",
    ):
        make_trainer(tmp_path, **RUN).train("auto")


def test_starting_removes_only_what_interrupted_saving_left(tmp_path):
    left = ["_checkpoint-4-incomplete", "_checkpoint-2-removed", "_" + "0a" * 16, "." + "0a" * 16]
    for name in (*left, "_checkpoint-notes", "checkpoint-2", "notes", "notes/_" + "0a" * 16):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("content")
    checkpointing.clean(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "_checkpoint-notes",
        "checkpoint-2",
        "notes",
    }
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["file"]


def test_old_checkpoints_are_removed_only_after_the_new_one_is_complete(tmp_path, monkeypatch):
    present = []
    publish = checkpointing.publish

    def watched(staged: Path, final: Path) -> None:
        present.append(
            (final.name, {path.name for path in checkpointing.complete_checkpoints(tmp_path)})
        )
        publish(staged, final)

    monkeypatch.setattr(checkpointing, "publish", watched)
    make_trainer(tmp_path, **{**RUN, "save_total_limit": 1}).train()
    before = [set(), {"checkpoint-2"}, {"checkpoint-4"}, {"checkpoint-6"}]
    assert present == list(
        zip([f"checkpoint-{step}" for step in (2, 4, 6, 8)], before, strict=True)
    )
    assert [path.name for path in checkpointing.complete_checkpoints(tmp_path)] == ["checkpoint-8"]


def test_resuming_from_an_earlier_folder_replaces_the_later_checkpoints_by_equal_ones(tmp_path):
    make_trainer(tmp_path, **{**RUN, "save_total_limit": 10}).train()
    shutil.copytree(tmp_path / "checkpoint-8", tmp_path / "first-8")
    make_trainer(tmp_path, **{**RUN, "save_total_limit": 10}).train(str(tmp_path / "checkpoint-4"))
    assert_same_checkpoint(tmp_path / "first-8", tmp_path / "checkpoint-8")


def test_a_finished_run_started_again_takes_no_step_and_keeps_its_weights(tmp_path):
    # 8 steps of 3 an epoch: ends in the middle of an epoch
    make_trainer(tmp_path, **RUN).train("auto")
    repeated = make_trainer(tmp_path, **RUN)
    assert repeated.train("auto").global_step == 8
    tensors = checkpoint_tensors(tmp_path / "checkpoint-8")
    assert all(
        torch.equal(value, tensors[f"weights.{name}"])
        for name, value in repeated.model.state_dict().items()
    )
    assert all(
        torch.equal(value, tensors[f"ema.{name}"]) for name, value in repeated.ema.average.items()
    )
