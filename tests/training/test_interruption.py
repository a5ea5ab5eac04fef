"""Signals, and two processes in one folder: a checkpoint is saved, and one of the two is told."""

import fcntl
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from tiny_training import FORKS, checkpoint_tensors, make_trainer, start
from transformers import TrainerCallback

from hf_lomdm.training import checkpointing
from hf_lomdm.training.interruption import SIGNALS, Interruption

# Dropout on, a worker: the random state matters, and workers receive what the terminal sends to the
# whole group.
RUN = {
    "dropout": 0.1,
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 4,
    "dataloader_num_workers": 1,
}
RUN |= {"per_device_train_batch_size": 4, "dataloader_prefetch_factor": 1}
RUN |= {"dataloader_multiprocessing_context": "fork"}  # the default of tests starts them slowly


class Send(TrainerCallback):
    """Sends a signal to the process group of this process, as a terminal does, behind step `step`.

    The rows of the next step are still to be fetched by the worker, which receives it too.
    """

    def __init__(self, number: int, step: int):
        self.number, self.step = number, step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.global_step == self.step and "loss" in logs:
            os.killpg(0, self.number)
            time.sleep(0.5)  # a worker that dies of it has died then


def train_until(output_dir: Path, number: int, **settings) -> None:
    os.setpgid(0, 0)
    # as at a terminal, also where nohup or a shell in the background has signals ignored
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.dup2(os.open(output_dir.with_suffix(".log"), os.O_CREAT | os.O_WRONLY), 2)
    torch.set_num_threads(1)
    make_trainer(output_dir, callbacks=[Send(number, step=1)], **settings).train("auto")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, torch.Tensor]:
    """What is in the last checkpoint of a run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    start(folder, **RUN).join()
    return checkpoint_tensors(folder / "checkpoint-4")


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=[pytest.mark.slow] if number is signal.SIGHUP else [])
        for number in SIGNALS
    ],
    ids=lambda number: number.name,
)
def test_a_signal_saves_a_checkpoint_says_so_and_the_same_command_goes_on_bit_by_bit(
    tmp_path, whole, number
):
    process = FORKS.Process(target=train_until, args=(tmp_path / "run", number), kwargs=RUN)
    process.start()
    process.join()
    assert process.exitcode == 128 + number
    output = (tmp_path / "run.log").read_text()
    assert f"{number.name}: training stops after this step and saves a checkpoint." in output
    assert (
        f"Stopped by {number.name} after step 2: {tmp_path}/run/checkpoint-2 is saved, the same "
        "command goes" in output
    )
    assert "Traceback" not in output
    start(tmp_path / "run", **RUN).join()
    ours = checkpoint_tensors(tmp_path / "run" / "checkpoint-4")
    assert ours.keys() == whole.keys() and all(
        torch.equal(ours[name], whole[name]) for name in ours
    )


def test_a_signal_behind_the_last_step_ends_the_process_too(tmp_path):
    class AtTheEnd(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as stopped:
        make_trainer(
            tmp_path, callbacks=[AtTheEnd()], max_steps=1, save_strategy="steps", save_steps=1
        ).train("auto")
    assert stopped.value.code == 143 and checkpointing.find_fault(tmp_path / "checkpoint-1") is None
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_handlers_come_back_what_is_ignored_stays_ignored_and_the_second_signal_acts():
    # a shell in the background has SIGINT ignored
    before = {signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Interruption(once=True) as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interruption.signal is None
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.signal is signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        with Interruption(once=False):  # a launcher passes on what the terminal has sent already
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hold(folder: Path, held) -> None:
    checkpointing.lock(folder)
    held.set()
    time.sleep(600)


def test_a_second_process_is_told_that_the_folder_is_in_use_and_a_kill_frees_it(tmp_path):
    held = FORKS.Event()
    holder = FORKS.Process(target=hold, args=(tmp_path, held))
    holder.start()
    assert held.wait(timeout=300)
    with pytest.raises(
        ValueError, match="another process is training in output_dir='.*'. Wait for it or stop it"
    ):
        make_trainer(tmp_path, max_steps=1).train("auto")
    holder.kill()
    holder.join()
    make_trainer(tmp_path, max_steps=1).train("auto")
    make_trainer(tmp_path, max_steps=1).train("auto")  # the same process may


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch, caplog):
    def refuse(*arguments):
        raise OSError("No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    checkpointing.lock(tmp_path)
    assert "cannot be locked (No locks available)" in caplog.text
