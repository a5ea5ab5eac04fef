"""The checkpoints of the repository: valid Hub folders with this version's code, small, that do what they say."""

from pathlib import Path

import pytest
import torch

from hf_lomdm import LoMDMPipeline

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT / "checkpoints" / "lomdm-enwiki", ROOT / "checkpoints" / "lomdm-sudoku")
SOURCES = {
    "configuration_lomdm.py": "modeling",
    "process_lomdm.py": "modeling",
    "backbone_lomdm.py": "modeling",
    "modeling_lomdm.py": "modeling",
    "pipeline_lomdm.py": "pipelines",
    "scheduler/scheduling_lomdm.py": "schedulers",
}
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SOLUTION = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def load(folder: Path) -> LoMDMPipeline:
    pipe = LoMDMPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@pytest.mark.parametrize(("file", "room"), SOURCES.items())
def test_their_code_is_that_of_the_package(folder, file, room):
    """If not: training_scripts/export_to_hub.py --model FOLDER --output FOLDER, for each of them."""
    source = ROOT / "src" / "hf_lomdm" / room / Path(file).name
    assert (folder / file).read_bytes() == source.read_bytes()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_they_are_small_and_name_no_place_of_a_machine(folder):
    assert (folder / "model.safetensors").stat().st_size <= 25e6
    assert not any("/tmp" in path.read_text() for path in folder.glob("*.json"))


def test_the_one_of_enwiki_writes_text_with_a_learned_order():
    pipe = load(FOLDERS[0])
    out = pipe("The city of", num_inference_steps=8, generator=torch.Generator().manual_seed(0))
    assert out.texts[0].startswith("The city of") and not (out.sequences == pipe.model.config.mask_token_id).any()
    rates = pipe.model(input_ids=out.sequences).rates
    assert rates.std() > 0.01


def test_the_one_of_sudoku_solves_a_puzzle_of_30_clues():
    out = load(FOLDERS[1])(PUZZLE, num_inference_steps=81, generator=torch.Generator().manual_seed(0))
    assert out.texts == [SOLUTION]
