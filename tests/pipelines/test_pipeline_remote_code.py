"""A saved folder works on a machine without the package: in a process in which `import hf_lomdm`
fails."""

import pytest
import torch

from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from tiny_tokenizer import build_tokenizer
from without_package import run_without_package

PIPELINE = """
import json
import torch
from diffusers import DiffusionPipeline
from transformers import AutoModel

first, second = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(first, trust_remote_code=True)
pipe.save_pretrained(second, max_shard_size="10KB")
pipe = DiffusionPipeline.from_pretrained(second, trust_remote_code=True)
out = pipe("ab", 5, max_length=20, generator=torch.Generator().manual_seed(3))
same = type(pipe).from_pretrained(first, trust_remote_code=True)
sums = [model.lm_head.weight.sum().item() for model in (pipe.model, same.model)]
written = [out.texts, out.sequences.tolist(), out.order.tolist()]
model = AutoModel.from_pretrained(first, trust_remote_code=True)
options = {"max_new_tokens": 6, "num_inference_steps": 3, "sampler": "threshold"}
options |= {"guidance_scale": 1.5, "generator": torch.Generator().manual_seed(3)}
generated = model.generate(torch.tensor([[1, 3, 4]]), **options).tolist()
print("RESULT", json.dumps([*written, sums, pipe.model.__module__, generated]))
"""

AUTO_CLASSES = """
import builtins
import json
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

first, second = sys.argv[1:]
asked = []
builtins.input = lambda text: asked.append(text) or "n"
config = AutoConfig.from_pretrained(first, trust_remote_code=True)
autos = (AutoModel, AutoModelForMaskedLM)
models = [auto.from_pretrained(first, trust_remote_code=True) for auto in autos]
models[0].save_pretrained(second)  # transformers carries the code along
models.append(AutoModel.from_pretrained(second, trust_remote_code=True))
tokenizer = AutoTokenizer.from_pretrained(first, trust_remote_code=False)
ids = torch.tensor([tokenizer("<bos>ab<mask><mask>")["input_ids"]])
rates = [model(ids).rates.tolist() for model in models]
print("RESULT", json.dumps([config.c1, rates, type(models[0]).__name__, asked]))
"""


@pytest.fixture
def pipe(make_model):
    pipe = LoMDMPipeline(make_model(), LoMDMScheduler(mask_token_id=10), build_tokenizer())
    pipe.set_progress_bar_config(disable=True)
    return pipe


FAMILY = [
    ("learned", 4),
    ("uniform", None),
    ("token", None),
    ("score", None),
    ("uniform", 4),
    ("uniform", 1),
]


@pytest.mark.parametrize(
    "rate_type, block_size",
    [("learned", None), *(pytest.param(*kind, marks=pytest.mark.slow) for kind in FAMILY)],
)
def test_pipeline_and_generate_are_the_same_as_remote_code_after_saving_and_loading(
    pipe, make_model, tmp_path, rate_type, block_size
):
    pipe.model = make_model(rate_type=rate_type, block_size=block_size)
    pipe.save_pretrained(tmp_path / "first")
    code, folders = PIPELINE, (tmp_path / "first", tmp_path / "second")
    texts, sequences, order, sums, module, generated = run_without_package(
        code, *folders, folder=tmp_path
    )
    expected = pipe("ab", 5, max_length=20, generator=torch.Generator().manual_seed(3))
    assert module.startswith("diffusers_modules.")
    assert (
        texts == expected.texts
        and sequences == expected.sequences.tolist()
        and order == expected.order.tolist()
    )
    assert sums == [pipe.model.lm_head.weight.sum().item()] * 2
    reloaded = LoMDMPipeline.from_pretrained(tmp_path / "second")
    assert (
        reloaded("ab", 5, max_length=20, generator=torch.Generator().manual_seed(3)).texts == texts
    )
    options = {"max_new_tokens": 6, "sampler": "threshold", "guidance_scale": 1.5}
    plain = pipe([[1, 3, 4]], 3, generator=torch.Generator().manual_seed(3), **options)
    assert generated == plain.sequences.tolist()


@pytest.mark.slow
def test_auto_classes_load_as_remote_code_with_the_same_weights(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "first")
    folders = (tmp_path / "first", tmp_path / "second")
    c1, rates, name, asked = run_without_package(AUTO_CLASSES, *folders, folder=tmp_path)
    with torch.no_grad():
        expected = pipe.model(torch.tensor([[1, 3, 4, 10, 10]])).rates
    assert c1 == 0.7 and name == "LoMDMForMaskedDiffusion" and not asked
    for values in rates:
        # threads may sum in another order
        assert torch.allclose(torch.tensor(values), expected, atol=1e-6)


ENTRANCES = """
import hashlib, json
from pathlib import Path
import torch
from diffusers import DiffusionPipeline
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

first = sys.argv[1]
trust = {"trust_remote_code": True}
models = {}
ways = {"plain": {}, "bf16": {"dtype": torch.bfloat16}, "auto": {"device_map": "auto"}}
for auto in (AutoModel, AutoModelForMaskedLM):
    for name, options in ways.items():
        models[auto.__name__ + name] = auto.from_pretrained(first, **trust, **options)
half = DiffusionPipeline.from_pretrained(first, **trust, dtype=torch.bfloat16)
dtypes = {name: str(model.dtype) for name, model in models.items()}
dtypes["pipe"] = str(half.model.dtype)

def hashes(folder):
    paths = [path for path in Path(folder).rglob("*") if path.suffix in (".safetensors", ".py")]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return dict(zip([path.relative_to(folder).as_posix() for path in paths], digests))

folders = [first]
for name in ("second", "third"):
    pipe = DiffusionPipeline.from_pretrained(folders[-1], **trust)
    pipe.save_pretrained(name)
    folders.append(name)
pipe = DiffusionPipeline.from_pretrained(folders[-1], **trust)
out = pipe("ab", 5, generator=torch.Generator().manual_seed(3))
config = AutoConfig.from_pretrained(first, **trust)
ids = AutoTokenizer.from_pretrained(first, trust_remote_code=False)("ab<mask>")["input_ids"]
digests = [hashes(folder) for folder in folders]
print("RESULT", json.dumps([dtypes, config.model_type, ids, digests, out.sequences.tolist()]))
"""


@pytest.mark.slow
def test_every_way_in_and_saves_that_are_the_same_byte_for_byte(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "first")
    dtypes, kind, ids, hashes, sequences = run_without_package(
        ENTRANCES, tmp_path / "first", folder=tmp_path
    )
    assert {name: "bfloat16" in dtype for name, dtype in dtypes.items()} == {
        name: "bf16" in name or name == "pipe" for name in dtypes
    }
    assert len(dtypes) == 7 and kind == "lomdm" and ids == [3, 4, 10]
    assert hashes[0] == hashes[1] == hashes[2] and "model.safetensors" in hashes[0]
    expected = pipe("ab", 5, generator=torch.Generator().manual_seed(3))
    assert sequences == expected.sequences.tolist()  # the same seed, with and without the package
