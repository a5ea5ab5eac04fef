"""The checkpoint of the repository: a valid Hub folder with this version's code, small, and able to write."""

from pathlib import Path

import pytest
import torch

from hf_lomdm import LoMDMPipeline

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "checkpoints" / "lomdm-enwiki"
SOURCES = {
    "configuration_lomdm.py": "modeling",
    "process_lomdm.py": "modeling",
    "backbone_lomdm.py": "modeling",
    "modeling_lomdm.py": "modeling",
    "pipeline_lomdm.py": "pipelines",
    "scheduler/scheduling_lomdm.py": "schedulers",
}


@pytest.mark.parametrize(("file", "room"), SOURCES.items())
def test_its_code_is_that_of_the_package(file, room):
    """If not: training_scripts/export_to_hub.py --model checkpoints/lomdm-enwiki --output checkpoints/lomdm-enwiki."""
    source = ROOT / "src" / "hf_lomdm" / room / Path(file).name
    assert (FOLDER / file).read_bytes() == source.read_bytes()


def test_it_is_small_and_writes_text_with_a_learned_order():
    assert (FOLDER / "model.safetensors").stat().st_size <= 25e6
    pipe = LoMDMPipeline.from_pretrained(FOLDER, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    out = pipe("The city of", num_inference_steps=8, generator=torch.Generator().manual_seed(0))
    assert out.texts[0].startswith("The city of") and not (out.sequences == pipe.model.config.mask_token_id).any()
    rates = pipe.model(input_ids=out.sequences).rates
    assert rates.std() > 0.01
