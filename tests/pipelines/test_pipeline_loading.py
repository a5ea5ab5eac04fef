"""The options of diffusers' loader in `LoMDMPipeline.from_pretrained`: each is honoured or refused
by name."""

import socket
from pathlib import Path

import pytest
import torch
from diffusers import PipelineQuantizationConfig

from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from tiny_tokenizer import build_tokenizer
from without_package import run_without_package

BF16 = torch.bfloat16


@pytest.fixture
def folder(make_model, tmp_path) -> Path:
    LoMDMPipeline(
        make_model(), LoMDMScheduler(mask_token_id=10), build_tokenizer()
    ).save_pretrained(tmp_path / "hub")
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (None, torch.float32),
        (BF16, BF16),
        ("bfloat16", BF16),
        ("auto", torch.float32),
        ({"model": BF16}, BF16),
        ({"model": "bfloat16", "default": torch.float64}, BF16),
        ({"default": BF16}, BF16),
        ({"scheduler": BF16}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_a_dtype_for_all_or_for_each_component(folder, name, dtype, expected):
    assert LoMDMPipeline.from_pretrained(folder, **{name: dtype}).model.dtype is expected


def test_options_of_diffusers_that_change_nothing_are_taken(folder):
    options = {
        **{
            "custom_pipeline": None,
            "safety_checker": None,
            "output_loading_info": False,
            "low_cpu_mem_usage": False,
        },
        **{
            "use_safetensors": True,
            "variant": None,
            "device_map": None,
            "max_memory": None,
            "trust_remote_code": False,
        },
        **{
            "use_onnx": False,
            "load_connected_pipeline": False,
            "quantization_config": None,
            "proxies": None,
        },
    }
    assert LoMDMPipeline.from_pretrained(folder, **options).tokenizer is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"custom_pipeline": "other"}, "custom_pipeline='other' has no effect"),
        ({"use_safetensors": False}, "use_safetensors=False has no effect"),
        ({"output_loading_info": True}, "output_loading_info=True has no effect"),
        ({"use_onnx": True}, "use_onnx=True has no effect"),
        ({"proxies": {"https": "x"}}, "proxies=.* has no effect"),
        ({"safety_checker": 3}, "'safety_checker'"),
        ({"dtype": {"transformer": BF16}}, r"dtype names \['transformer'\].*Name model or default"),
        ({"dtype": "bf16"}, "dtype must be a dtype of torch.*'bf16'"),
        ({"torch_dtype": 16}, "dtype must be a dtype of torch.*16"),
        ({"dtype": {"model": None}}, "dtype must be a dtype of torch.*None"),
        ({"model": None}, "model=None: a LoMDMPipeline needs one"),
        ({"scheduler": None}, "scheduler=None: a LoMDMPipeline needs one"),
        ({"c1": "0.5"}, "c1 must be a number"),
        ({"dtype": BF16, "torch_dtype": torch.float32}, "dtype=.* and torch_dtype=.* differ"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(folder, options, message):
    with pytest.raises(ValueError, match=message) as error:
        LoMDMPipeline.from_pretrained(folder, **options)
    assert "\n" not in str(error.value)


def test_options_of_the_stored_model_are_refused_beside_another_model(folder, make_model):
    with pytest.raises(
        ValueError, match=r"\['dtype'\] are of the stored model, but model= is given"
    ):
        LoMDMPipeline.from_pretrained(folder, model=make_model(), dtype=BF16)


def test_a_variant_of_the_weights_is_loaded_and_judged(folder, make_model):
    make_model(seed=1).save_pretrained(folder, variant="fp16")
    pipe = LoMDMPipeline.from_pretrained(folder, variant="fp16")
    assert torch.equal(pipe.model.lm_head.weight, make_model(seed=1).lm_head.weight)
    (folder / "model.fp16.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="model.fp16.safetensors is cut off"):
        LoMDMPipeline.from_pretrained(folder, variant="fp16")
    with pytest.raises(OSError, match="no file named model.int4.safetensors"):
        LoMDMPipeline.from_pretrained(folder, variant="int4")


def test_a_quantization_per_component_reaches_the_model(folder):
    quantization = pytest.importorskip("torchao.quantization")
    from diffusers import TorchAoConfig as OfDiffusers
    from transformers import TorchAoConfig

    skipped = ["lm_head", "phi", "psi"]
    config = TorchAoConfig(
        quantization.Int8WeightOnlyConfig(version=2), modules_to_not_convert=skipped
    )
    pipe = LoMDMPipeline.from_pretrained(
        folder, quantization_config=PipelineQuantizationConfig(quant_mapping={"model": config})
    )
    weight = pipe.model.model.layers[0].mlp.up_proj.weight
    assert (
        type(weight) is not torch.nn.Parameter
        and type(pipe.model.lm_head.weight) is torch.nn.Parameter
    )
    assert pipe([[3, 4]], 2, max_length=8).sequences.shape == (1, 8)
    other = OfDiffusers(quantization.Int8WeightOnlyConfig(version=2))
    with pytest.raises(ValueError, match=r"quantization_config names \['transformer'\]"):
        LoMDMPipeline.from_pretrained(
            folder,
            quantization_config=PipelineQuantizationConfig(quant_mapping={"transformer": other}),
        )


REMOTE = """
import json
import torch
from diffusers import DiffusionPipeline

folder = sys.argv[1]
trust = {"trust_remote_code": True}
first = DiffusionPipeline.from_pretrained(folder, **trust)
scheduler = type(first.scheduler).from_config(first.scheduler.config, temperature=0.5)
found = []
parts = {"scheduler": scheduler}, {"model": first.model}, {"tokenizer": first.tokenizer}
for given in (*parts, {"tokenizer": None}):
    pipe = DiffusionPipeline.from_pretrained(folder, **trust, **given)
    taken = all(getattr(pipe, name) is value for name, value in given.items())
    found.append(taken and len(pipe.components) == 3)
half = DiffusionPipeline.from_pretrained(folder, **trust, dtype={"model": torch.bfloat16})
print("RESULT", json.dumps([found, str(half.model.dtype)]))
"""


@pytest.mark.slow
def test_components_that_are_passed_to_remote_code_are_taken(folder, tmp_path):
    actual, dtype = run_without_package(REMOTE, folder, folder=tmp_path)
    assert actual == [True] * 4 and dtype == "torch.bfloat16"


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "config.json",
        "scheduler/scheduler_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
)
@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[1]", "3", "", '"org/name"'], ids=range(6))
def test_a_file_that_is_no_mapping_is_refused_in_one_line(folder, name, text, monkeypatch):
    """diffusers takes a string in the scheduler's file for a repository, and would fetch it."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("it asks the network"))
    (folder / name).write_text(text)
    with pytest.raises((ValueError, OSError)) as error:
        LoMDMPipeline.from_pretrained(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
