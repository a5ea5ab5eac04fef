"""Folders that are broken or want to do harm are refused, and their code does not run unless it is
trusted."""

import importlib
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from conftest import TINY
from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion, LoMDMModel, LoMDMPipeline, LoMDMScheduler
from hf_lomdm.cli import convert, evaluate, finetune, sample
from hf_lomdm.data.tokenizers import load_tokenizer
from hf_lomdm.modeling.pretrained_lomdm import load_tokenizer as of_base
from hf_lomdm.training.models import copy_trunk
from tiny_tokenizer import build_tokenizer
from without_package import run_without_package

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(make_model, tmp_path) -> Path:
    LoMDMPipeline(
        make_model(), LoMDMScheduler(mask_token_id=10), build_tokenizer()
    ).save_pretrained(tmp_path / "hub")
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
    header = json.dumps(
        {"lm_head.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}
    ).encode()
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
    (folder / INDEX).write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, target)})
    )


def index_to_a_system_file(folder: Path) -> None:
    point_index_to(folder, "../../../../../../../../etc/passwd")
    (folder / WEIGHTS).unlink()


def index_to_weights_outside(folder: Path) -> None:
    point_index_to(folder, "../outside.safetensors")
    shutil.move(folder / WEIGHTS, folder.parent / "outside.safetensors")


def index_without_a_map(folder: Path) -> None:
    (folder / INDEX).write_text("[]")
    (folder / WEIGHTS).unlink()


def index_to_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "weights.bin")
    point_index_to(folder, "weights.bin")
    (folder / WEIGHTS).unlink()


def index_to_numbers(folder: Path) -> None:
    (folder / INDEX).write_text(
        json.dumps({"weight_map": {"lm_head.weight": 3, "lm_head.bias": ["a"]}})
    )
    (folder / WEIGHTS).unlink()


def index_too_deep(folder: Path) -> None:
    (folder / INDEX).write_text("[" * 100_000)
    (folder / WEIGHTS).unlink()


def width_of_a_million(folder: Path) -> None:
    edit(folder / "config.json", hidden_size=2**20, intermediate_size=2**24)


def vocabulary_without_weights(folder: Path) -> None:
    weights = {
        name: value for name, value in load_file(folder / WEIGHTS).items() if "lm_head" not in name
    }
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def layers_without_end(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=10**9)


def many_layers(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=4000)


def many_quantized_layers(folder: Path) -> None:
    edit(
        folder / "config.json", num_hidden_layers=4000, quantization_config={"quant_method": "fp8"}
    )


def a_billion_labels(folder: Path) -> None:
    edit(folder / "config.json", num_labels=10**9)


def positions_without_end(folder: Path) -> None:
    edit(folder / "config.json", max_position_embeddings=10**12)


def size_in_words(folder: Path) -> None:
    edit(folder / "config.json", hidden_size="16")


def a_kernel_to_run(folder: Path) -> None:
    edit(folder / "config.json", attn_implementation="somebody/kernel")


def weights_of_its_own(folder: Path) -> None:
    edit(folder / "config.json", transformers_weights="../outside.safetensors")


def foreign_pipeline(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(folder.parent / 'canary')!r}, 'w')\n")
    edit(folder / "model_index.json", _class_name=["evil", "Evil"])


def foreign_component(folder: Path) -> None:
    edit(folder / "model_index.json", scheduler=["os", "system"])


def foreign_tokenizer(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(folder.parent / 'canary')!r}, 'w')\n")
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="Evil",
        auto_map={"AutoTokenizer": ["evil.Evil", None]},
    )


WEIGHT_HARMS = [
    (pickle_alone, r"offers its weights as pickles \(pytorch_model.bin\)"),
    (bomb_alone, r"offers its weights as pickles \(pytorch_model.bin\)"),
    (bomb_called_safetensors, "header too large.*is cut off, or no safetensors file"),
    (cut_in_half, "not fully covered.*is cut off, or no safetensors file"),
    (header_of_an_exabyte, "header too large"),
    (tensor_of_a_terabyte, "not fully covered"),
    (tensor_beyond_all_numbers, "overflow"),
    (
        wrong_shape,
        r"1 weights of .* have other shapes.*lm_head.weight \[3, 4\] instead of \[11, 16\]",
    ),
    (
        vocabulary_without_weights,
        r"does not fit its configuration: missing \['lm_head.bias', 'lm_head.weight'\]",
    ),
    (
        index_to_a_system_file,
        "names '../../../../../../../../etc/passwd', which is no safetensors file of its",
    ),
    (
        index_to_weights_outside,
        "names '../outside.safetensors', which is no safetensors file of its folder",
    ),
    (index_to_a_pickle, "names 'weights.bin', which is no safetensors file of its folder"),
    (index_to_numbers, "names 3, which is no safetensors file of its folder"),
    (index_too_deep, "index.json cannot be read: maximum recursion depth"),
    (index_without_a_map, "has no weight_map"),
    (
        width_of_a_million,
        r"weights of .* have other shapes .* \[11, 16\] instead of \[11, 1048576\]",
    ),
    (layers_without_end, "num_hidden_layers must be an int in .*got 1000000000"),
    (many_layers, "weights of .* have 2 layers, its configuration says num_hidden_layers=4000"),
    (
        many_quantized_layers,
        "weights of .* have 2 layers, its configuration says num_hidden_layers=4000",
    ),
    (a_billion_labels, "num_labels must be an int in .*got 1000000000"),
    (positions_without_end, "max_position_embeddings must be an int in .*got 1000000000000"),
    (size_in_words, "hidden_size must be an int in .*got '16'"),
    (
        weights_of_its_own,
        r"config.json has \['transformers_weights'\], which the caller of from_pretrained chooses",
    ),
    (
        a_kernel_to_run,
        r"config.json has \['attn_implementation'\], which the caller of from_pretrained chooses",
    ),
]
LOADERS = {
    "pipeline": LoMDMPipeline,
    "model": LoMDMForMaskedDiffusion,
    "backbone": LoMDMModel,
    "auto": AutoModel,
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("harm", "message"), WEIGHT_HARMS, ids=[harm.__name__ for harm, _ in WEIGHT_HARMS]
)
def test_every_loader_refuses_before_it_builds(
    folder, loader, harm: Callable, message: str, monkeypatch
):
    if loader == "backbone" and harm in (wrong_shape, vocabulary_without_weights):
        pytest.skip("the backbone reads no LM head")
    harm(folder)
    built = LoMDMForMaskedDiffusion.__init__

    def no_memory(model, config, *arguments):
        assert torch.empty(()).device.type == "meta", "a model was built for the weights"
        built(model, config, *arguments)

    monkeypatch.setattr(LoMDMForMaskedDiffusion, "__init__", no_memory)
    with pytest.raises(ValueError, match=message) as error:
        LOADERS[loader].from_pretrained(folder)
    assert "\n" not in str(error.value) and not (folder.parent / "canary").exists()


def scripts() -> dict[str, Callable]:
    """What loads a model in the scripts, as a function of its folder."""

    def start_from(folder):
        model = LoMDMForMaskedDiffusion(LoMDMConfig(**TINY))
        copy_trunk(model, str(folder))

    return {
        "evaluate": lambda folder: evaluate.load(
            evaluate.parse_arguments(["order", "--file", "x", "--model", str(folder)])
        ),
        "finetune": lambda folder: finetune.load_finetuned(
            SimpleNamespace(model=str(folder), block_size=None, rate_type=None), None
        ),
        "sample": lambda folder: sample.load(
            sample.parse_arguments(["--model", str(folder)]), "cpu"
        ),
        "init_from": start_from,
    }


@pytest.mark.parametrize("entrance", ["evaluate", "finetune", "sample", "init_from"])
@pytest.mark.parametrize(
    "harm", [index_to_weights_outside, index_to_a_pickle, many_layers, a_billion_labels]
)
def test_scripts_have_the_same_gate(folder, entrance, harm):
    harm(folder)
    message = dict(WEIGHT_HARMS)[harm]
    with pytest.raises((ValueError, SystemExit), match=message):
        scripts()[entrance](folder)


@pytest.mark.parametrize("kind", ["lomdm", "gpt2"])
def test_a_tokenizer_is_read_behind_the_same_gate(folder, kind):
    """transformers reads the configuration beside it, and makes a word of each label."""
    edit(folder / "config.json", num_labels=10**9, model_type=kind)
    for read in (load_tokenizer, convert.load_tokenizer, lambda name: of_base(name, {})):
        with pytest.raises((ValueError, SystemExit), match="json has num_labels=1000000000"):
            read(str(folder))


def test_a_model_of_another_kind_is_named(folder):
    edit(folder / "config.json", model_type="gpt2")
    for load in (LoMDMForMaskedDiffusion.from_pretrained, LoMDMPipeline.from_pretrained):
        with pytest.raises(ValueError, match="model of type 'gpt2', not 'lomdm'.*from_causal_lm"):
            load(folder)


@pytest.mark.parametrize("command", ["sample", "evaluate", "convert", "train"])
def test_brackets_without_end_are_one_line(folder, command):
    (folder / "config.json").write_text('{"a":' * 50_000)
    text = folder.parent / "a.txt"
    text.write_text("abc")
    words = {
        "sample": ["--model", folder],
        "evaluate": ["likelihood", "--model", folder, "--file", text],
        "convert": ["--checkpoint", folder, "--output", folder.parent / "converted"],
        "train": ["--train_file", text, "--train_tokenizer", "char", "--init_from", folder]
        + ["--output_dir", folder.parent / "run"],
    }
    module = importlib.import_module(f"hf_lomdm.cli.{command}")
    with pytest.raises(SystemExit, match="^error: .*(recursion|nested|no JSON)"):
        module.main([str(word) for word in words[command]])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            foreign_pipeline,
            r"names \['evil', 'Evil'\] as _class_name.*not a folder of LoMDMPipeline",
        ),
        (foreign_component, r"names \['os', 'system'\] as scheduler"),
        (foreign_tokenizer, "contains custom code"),
    ],
)
def test_the_pipeline_refuses(folder, harm: Callable, message: str):
    harm(folder)
    with pytest.raises(ValueError, match=message):
        LoMDMPipeline.from_pretrained(folder, trust_remote_code=True)
    assert not (folder.parent / "canary").exists()


def test_the_model_folder_of_a_hub_folder_may_name_the_weights_above_it_and_none_elsewhere(folder):
    model = AutoModel.from_pretrained(folder / "model")
    assert torch.equal(model.lm_head.weight, load_file(folder / WEIGHTS)["lm_head.weight"])
    point_index_to(folder, "../../outside.safetensors")
    shutil.copy(folder / WEIGHTS, folder.parent / "outside.safetensors")
    shutil.move(folder / INDEX, folder / "model" / INDEX)
    with pytest.raises(
        ValueError, match="names '../../outside.safetensors', which is no safetensors file"
    ):
        AutoModel.from_pretrained(folder / "model")
    shutil.copytree(folder / "model", folder.parent / "model")  # the same beside no Hub folder
    point_index_to(folder, "../outside.safetensors")
    shutil.move(folder / INDEX, folder.parent / "model" / INDEX)
    with pytest.raises(
        ValueError, match="names '../outside.safetensors', which is no safetensors file"
    ):
        AutoModel.from_pretrained(folder.parent / "model")


def test_weights_that_the_caller_accepts_as_missing_or_of_another_shape_are_still_loaded(folder):
    vocabulary_without_weights(folder)
    model, info = LoMDMForMaskedDiffusion.from_pretrained(folder, output_loading_info=True)
    assert set(info["missing_keys"]) == {"lm_head.weight", "lm_head.bias"}
    options = {"vocab_size": 12, "ignore_mismatched_sizes": True, "output_loading_info": True}
    model, info = LoMDMForMaskedDiffusion.from_pretrained(folder, **options)
    assert model.config.vocab_size == 12 and info["mismatched_keys"]


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
    actual, ran = run_without_package(UNTRUSTED, folder, canary, folder=tmp_path)
    assert len(actual) == 8
    for name, message, harmed in actual:
        assert "trust_remote_code=True" in message and not harmed, name
    assert ran  # trusted, it does run: the canary lives
