"""The checkpoints of the repository: small, without code, and they do what they say."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import ModelCard

from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion, LoMDMPipeline
from hf_lomdm.hub import export_to_hub_folder
from hf_lomdm.modeling.checkpoint_lomdm import weight_shapes
from without_package import run_without_package

ROOT = Path(__file__).parents[1]
NAMES = ("lomdm-enwiki", "lomdm-sudoku", "lomdm-moses", "lomdm-sudoku-order")
FOLDERS = tuple(ROOT / "checkpoints" / name for name in NAMES)
FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
FILES |= {"scheduler/scheduler_config.json", "training_record.json", "order.png"}
AUTO_CLASSES = """
import json, sys
import torch
import hf_lomdm
from transformers import AutoModel, AutoTokenizer
folder = sys.argv[1]
model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
print(type(model).__module__, tokenizer.mask_token_id == model.config.mask_token_id)
"""
REMOTE_CODE = """
import json
import torch
from diffusers import DiffusionPipeline
from transformers import AutoModel
folder = sys.argv[1]
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
out = pipe(sys.argv[2], num_inference_steps=8, generator=torch.Generator().manual_seed(0))
print("RESULT", json.dumps([out.sequences.tolist(), model.num_parameters(), type(pipe).__module__]))
"""
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SOLUTION = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def load(folder: Path) -> LoMDMPipeline:
    pipe = LoMDMPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_they_carry_weights_configurations_tokenizer_and_card_and_no_code(folder):
    actual = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert actual <= FILES and FILES - actual <= {"training_record.json", "order.png"}
    assert "auto_map" not in json.loads((folder / "config.json").read_text())


# the fast suite loads one of them so in tests/test_import.py
@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_auto_classes_load_them_with_the_package_and_do_not_ask_to_run_code(folder):
    command = [sys.executable, "-c", AUTO_CLASSES, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.stdout.split() == ["hf_lomdm.modeling.modeling_lomdm", "True"], done.stderr[-2000:]


# and folders without the package in tests/pipelines/test_pipeline_remote_code.py
@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_their_exported_hub_folders_write_the_same_without_the_package(folder, tmp_path):
    exported = export_to_hub_folder(folder, tmp_path / "export")
    prompts = {"lomdm-enwiki": "The city of", "lomdm-moses": "c1ccccc1"}
    prompt = prompts.get(folder.name, PUZZLE)
    code, arguments = REMOTE_CODE, (exported, prompt)
    sequences, size, module = run_without_package(code, *arguments, folder=tmp_path)
    pipe = load(folder)
    out = pipe(prompt, num_inference_steps=8, generator=torch.Generator().manual_seed(0))
    assert sequences == out.sequences.tolist() and size == pipe.model.num_parameters()
    assert module.startswith("diffusers_modules.")
    assert (exported / "README.md").read_text() == (folder / "README.md").read_text()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_they_are_small_and_name_no_place_of_a_machine(folder):
    assert (folder / "model.safetensors").stat().st_size <= 25e6
    assert not any("/tmp" in path.read_text() for path in folder.glob("*.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_they_load_by_what_their_cards_name(folder):
    card = ModelCard.load(folder / "README.md").data
    assert card.to_dict()["library_name"] == "transformers"
    fill = transformers.pipeline(card.pipeline_tag, model=str(folder), top_k=2)
    assert len(fill(fill.tokenizer.mask_token)) == 2


def test_the_one_of_enwiki_writes_text_with_a_learned_order():
    pipe = load(FOLDERS[0])
    out = pipe("The city of", num_inference_steps=8, generator=torch.Generator().manual_seed(0))
    assert (
        out.texts[0].startswith("The city of")
        and not (out.sequences == pipe.model.config.mask_token_id).any()
    )
    rates = pipe.model(input_ids=out.sequences).rates
    assert rates.std() > 0.01


def test_the_one_of_sudoku_solves_a_puzzle_of_30_clues():
    out = load(FOLDERS[1])(
        PUZZLE, num_inference_steps=81, generator=torch.Generator().manual_seed(0)
    )
    assert out.texts == [SOLUTION]


def test_the_one_with_an_order_of_its_own_solves_it_in_that_order():
    generator = [torch.Generator().manual_seed(seed) for seed in range(8)]
    how = {"num_inference_steps": 81, "num_return_sequences": 8, "generator": generator}
    solved = {
        folder.name: load(folder)(PUZZLE, sampler="sequential", **how).texts.count(SOLUTION)
        for folder in (FOLDERS[1], FOLDERS[3])
    }
    assert load(FOLDERS[3]).scheduler.config.sampler == "sequential"
    assert solved["lomdm-sudoku"] < 4 < solved["lomdm-sudoku-order"]


def test_the_one_of_moses_writes_molecules_that_end():
    pipe = load(FOLDERS[2])
    generator = torch.Generator().manual_seed(0)
    out = pipe(num_inference_steps=58, num_return_sequences=4, generator=generator)
    assert out.sequences.shape == (4, 58) and pipe.model.config.bos_token_id is None
    assert all(
        0 < len(text) < 58 and set(text) <= set("BCFHNOSclnors()[]=#-123456") for text in out.texts
    )


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_stripping_an_exported_folder_gives_the_checkpoint_again(folder, tmp_path, monkeypatch):
    exported = export_to_hub_folder(folder, tmp_path / "export")
    monkeypatch.setattr(sys, "argv", ["strip_code.py", str(exported)])
    runpy.run_path(str(ROOT / "tools" / "strip_code.py"), run_name="__main__")
    for path in (path for path in folder.rglob("*") if path.suffix in (".md", ".safetensors")):
        assert (exported / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name
    assert not [
        path
        for path in exported.rglob("*")
        if path.name not in {Path(f).name for f in FILES} and path.is_file()
    ]
    config, shipped = (
        json.loads((where / "config.json").read_text()) for where in (exported, folder)
    )
    assert config == shipped


def test_the_adapter_of_smollm2_fits_a_model_of_its_base_and_names_it():
    folder = ROOT / "checkpoints" / "lomdm-smollm2"
    config = LoMDMConfig.from_pretrained(folder)
    assert config.base["name"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert not config.backbone_config.name_or_path and not list(folder.rglob("*.py"))
    path = folder / "model.safetensors"
    assert path.stat().st_size < 15e6
    # its factors have the shapes of the layers that they change; its heads those of the model
    with torch.device("meta"):
        model = LoMDMForMaskedDiffusion(config)
    shapes = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    found = weight_shapes([str(path)])
    layers = {name.partition(".lora_")[0] for name in found if ".lora_" in name}
    assert len(layers) == 7 * 30
    for layer in layers:
        down, up = (found[f"{layer}.lora_{part}.weight"] for part in "AB")
        assert [up[0], down[1]] == shapes[f"{layer}.weight"] and down[0] == up[1] == 8
    heads = {name: shape for name, shape in shapes.items() if name.startswith(("phi.", "psi."))}
    assert {name: shape for name, shape in found.items() if ".lora_" not in name} == heads
