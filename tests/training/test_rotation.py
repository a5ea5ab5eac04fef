"""Which checkpoint is the newest, which are removed, and what a removal leaves when it is cut
short."""

from pathlib import Path

import pytest

from hf_lomdm.training import checkpointing


def publish(output_dir: Path, *steps: int) -> list[Path]:
    """Complete checkpoints of one small file each."""
    for step in steps:
        staged = checkpointing.staging_folder(output_dir, step)
        staged.mkdir(parents=True)
        (staged / "weights").write_text(f"of step {step}")
        checkpointing.publish(staged, output_dir / f"checkpoint-{step}")
    return [output_dir / f"checkpoint-{step}" for step in steps]


def names(output_dir: Path) -> list[str]:
    return [folder.name for folder in checkpointing.complete_checkpoints(output_dir)]


def test_the_newest_checkpoint_is_that_of_the_highest_step_not_of_the_last_name(tmp_path):
    publish(tmp_path, 1000, 999, 20)
    assert names(tmp_path) == ["checkpoint-20", "checkpoint-999", "checkpoint-1000"]
    assert checkpointing.choose_checkpoint("auto", tmp_path) == tmp_path / "checkpoint-1000"
    checkpointing.rotate(tmp_path, 2, set())
    assert names(tmp_path) == ["checkpoint-999", "checkpoint-1000"]


@pytest.mark.parametrize(
    "limit, kept, left",
    [
        (2, (2, 10), [2, 10]),  # the best one is the oldest: it counts, and the others go
        (2, (4, 10), [4, 10]),
        (3, (2, 10), [2, 8, 10]),
        (1, (2, 10), [2, 10]),  # more are kept than the limit: all else goes
        (2, (), [8, 10]),
        (0, (), [2, 4, 6, 8, 10]),
        (None, (), [2, 4, 6, 8, 10]),
        (9, (), [2, 4, 6, 8, 10]),
    ],
)
def test_kept_checkpoints_count_and_do_not_save_others(tmp_path, limit, kept, left):
    folders = publish(tmp_path, 2, 4, 6, 8, 10)
    keep = {folder for folder in folders if int(folder.name[11:]) in kept}
    checkpointing.rotate(tmp_path, limit, keep)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in left]


@pytest.mark.parametrize("replace", [False, True], ids=["rotated", "replaced"])
def test_a_folder_loses_its_name_before_anything_of_it_is_removed(tmp_path, monkeypatch, replace):
    publish(tmp_path, 4)

    def interrupted(folder, *args, **kwargs):
        if Path(folder).is_dir():
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpointing.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        if replace:
            publish(tmp_path, 4)
        else:
            checkpointing.remove(tmp_path / "checkpoint-4")
    assert not (tmp_path / "checkpoint-4").exists()
    monkeypatch.undo()
    checkpointing.clean(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_removal_that_was_cut_short_does_not_stop_the_next_one(tmp_path):
    publish(tmp_path, 4)
    (tmp_path / "_checkpoint-4-removed").mkdir()
    (tmp_path / "_checkpoint-4-removed" / "weights").write_text("of an earlier one")
    checkpointing.remove(tmp_path / "checkpoint-4")
    assert list(tmp_path.iterdir()) == []
    checkpointing.remove(tmp_path / "checkpoint-4")  # nothing there: nothing to do
