"""Folders that are broken or want to do harm are refused, and their code does not run unless it is trusted."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from tiny_tokenizer import build_tokenizer
from without_package import run_without_package

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(make_model, tmp_path) -> Path:
    LoMDMPipeline(make_model(), LoMDMScheduler(mask_token_id=10), build_tokenizer()).save_pretrained(tmp_path / "hub")
    return tmp_path / "hub"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickle_alone(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def bomb_alone(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(folder.parent / "canary")))


def bomb_called_safetensors(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps(Bomb(folder.parent / "canary")) + bytes(64))


def cut_in_half(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def header_of_an_exabyte(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**60) + (folder / WEIGHTS).read_bytes()[8:])


def declare(folder: Path, shape: list[int], end: int) -> None:
    header = json.dumps({"lm_head.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))


def tensor_of_a_terabyte(folder: Path) -> None:
    declare(folder, [2**20, 2**18], 2**40)


def tensor_beyond_all_numbers(folder: Path) -> None:
    declare(folder, [2**40, 2**40], 2**62)


def wrong_shape(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS) | {"lm_head.weight": torch.zeros(3, 4)}
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def point_index_to(folder: Path, target: str) -> None:
    names = list(load_file(folder / WEIGHTS))
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, target)}))


def index_to_a_system_file(folder: Path) -> None:
    point_index_to(folder, "../../../../../../../../etc/passwd")
    (folder / WEIGHTS).unlink()


def index_to_weights_outside(folder: Path) -> None:
    point_index_to(folder, "../outside.safetensors")
    shutil.move(folder / WEIGHTS, folder.parent / "outside.safetensors")


def index_without_a_map(folder: Path) -> None:
    (folder / INDEX).write_text("[]")
    (folder / WEIGHTS).unlink()


def width_of_a_million(folder: Path) -> None:
    edit(folder / "config.json", hidden_size=2**20, intermediate_size=2**24)


def layers_without_end(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=10**9)


def size_in_words(folder: Path) -> None:
    edit(folder / "config.json", hidden_size="16")


def weights_of_its_own(folder: Path) -> None:
    edit(folder / "config.json", transformers_weights="../outside.safetensors")


def foreign_pipeline(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(folder.parent / 'canary')!r}, 'w')\n")
    edit(folder / "model_index.json", _class_name=["evil", "Evil"])


def foreign_component(folder: Path) -> None:
    edit(folder / "model_index.json", scheduler=["os", "system"])


def foreign_tokenizer(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(folder.parent / 'canary')!r}, 'w')\n")
    edit(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (pickle_alone, r"offers its weights as pickles \(pytorch_model.bin\)"),
        (bomb_alone, r"offers its weights as pickles \(pytorch_model.bin\)"),
        (bomb_called_safetensors, "header too large.*is cut off, or no safetensors file"),
        (cut_in_half, "not fully covered.*is cut off, or no safetensors file"),
        (header_of_an_exabyte, "header too large"),
        (tensor_of_a_terabyte, "not fully covered"),
        (tensor_beyond_all_numbers, "overflow"),
        (wrong_shape, r"1 weights of .* have other shapes.*lm_head.weight \[3, 4\] instead of \[11, 16\]"),
        (index_to_a_system_file, "names '../../../../../../../../etc/passwd', which is no safetensors file of its"),
        (index_to_weights_outside, "names '../outside.safetensors', which is no safetensors file of its folder"),
        (index_without_a_map, "has no weight_map"),
        (width_of_a_million, r"other shapes .* lm_head.weight \[11, 16\] instead of \[11, 1048576\]"),
        (layers_without_end, "says num_hidden_layers=1000000000, the weights have 2"),
        (size_in_words, "config.json holds a value of a wrong type"),
        (weights_of_its_own, "names a weight file of its own"),
        (foreign_pipeline, r"names \['evil', 'Evil'\] as _class_name.*not a folder of LoMDMPipeline"),
        (foreign_component, r"names \['os', 'system'\] as scheduler"),
        (foreign_tokenizer, "trust_remote_code"),
    ],
)
def test_the_pipeline_refuses(folder, harm: Callable, message: str):
    harm(folder)
    with pytest.raises(ValueError, match=message):
        LoMDMPipeline.from_pretrained(folder, trust_remote_code=True)
    assert not (folder.parent / "canary").exists()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (bomb_alone, "no file named model.safetensors"),
        (bomb_called_safetensors, "header too large"),
        (cut_in_half, "not fully covered"),
        (header_of_an_exabyte, "header too large"),
        (tensor_of_a_terabyte, "not fully covered"),
        (tensor_beyond_all_numbers, "overflow"),
        (wrong_shape, "ignore_mismatched_sizes"),
        (width_of_a_million, "ignore_mismatched_sizes"),
        (index_to_a_system_file, "list index out of range"),  # of transformers, which has read nothing
    ],
)
def test_auto_model_refuses_with_the_package_too(folder, harm: Callable, message: str):
    harm(folder)
    errors = (OSError, RuntimeError, IndexError, SafetensorError)  # they share no class
    with pytest.raises(errors, match=message):
        AutoModel.from_pretrained(folder)
    assert not (folder.parent / "canary").exists()


UNTRUSTED = """
import json
import os
from diffusers import DiffusionPipeline
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

folder, canary = sys.argv[1:]
found = []
for loader in (AutoConfig, AutoModel, AutoModelForMaskedLM, DiffusionPipeline):
    for settings in ({}, {"trust_remote_code": False}):
        try:
            loader.from_pretrained(folder, **settings)
            found.append([loader.__name__, "loaded"])
        except ValueError as error:
            found.append([loader.__name__, str(error), os.path.exists(canary)])
DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
print("RESULT", json.dumps([found, os.path.exists(canary)]))
"""


@pytest.mark.slow
def test_nothing_of_a_folder_runs_before_it_is_trusted(folder, tmp_path):
    canary = tmp_path / "canary"
    for path in folder.rglob("*.py"):
        path.write_text(path.read_text() + f"\nopen({str(canary)!r}, 'a').write({path.name!r})\n")
    found, ran = run_without_package(UNTRUSTED, folder, canary, folder=tmp_path)
    assert len(found) == 8
    for name, message, harmed in found:
        assert "trust_remote_code=True" in message and not harmed, name
    assert ran  # trusted, it does run: the canary lives
