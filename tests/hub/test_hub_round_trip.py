"""Push to and pull from a Hub over HTTP, on a machine without the package."""

import json
import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from hf_lomdm import LoMDMForMaskedDiffusion, LoMDMPipeline, LoMDMScheduler
from hub_server import HubServer
from tiny_tokenizer import build_tokenizer
from without_package import run_without_package

PUSH = """
import sys
from hf_lomdm import LoMDMPipeline
from hf_lomdm.hub import export_to_hub_folder

folder, again = sys.argv[1:]
upload = {"push_to_hub": True, "repo_id": "tester/tiny", "private": True}
export_to_hub_folder(folder, again, max_shard_size="10KB", model_card="# Written by hand", **upload)
pipe = LoMDMPipeline.from_pretrained("tester/tiny")
pipe.push_to_hub("tester/tiny", commit_message="one file of weights")
"""

PULL = """
import json
import sys
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from diffusers import DiffusionPipeline
from transformers import AutoModel, AutoTokenizer

pipe = DiffusionPipeline.from_pretrained("tester/tiny", trust_remote_code=True)
model = AutoModel.from_pretrained("tester/tiny", trust_remote_code=True)
out = pipe("ab", 5, max_length=20, generator=torch.Generator().manual_seed(3))
pipe.save_pretrained("saved")
auto_map = json.load(open("saved/config.json"))["auto_map"]
older = {"revision": sys.argv[1], "trust_remote_code": True}
old = DiffusionPipeline.from_pretrained("tester/tiny", **older)
old_texts = old("ab", 5, max_length=20, generator=torch.Generator().manual_seed(3)).texts
old_tokenizer = AutoTokenizer.from_pretrained("tester/tiny", **older)
same = old_tokenizer("abc")["input_ids"] == pipe.tokenizer("abc")["input_ids"]
old_total = AutoModel.from_pretrained("tester/tiny", **older).lm_head.weight.sum().item()
total = model.lm_head.weight.sum().item()
print("RESULT", json.dumps([out.texts, total, auto_map, old_texts, same, old_total]))
"""


@pytest.mark.slow
def test_push_and_pull_over_http(make_model, tmp_path):
    pipe = LoMDMPipeline(make_model(), LoMDMScheduler(mask_token_id=10), build_tokenizer())
    pipe.save_pretrained(tmp_path / "out")
    hub_settings = {
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    with HubServer() as hub:
        settings = {**hub_settings, "HF_ENDPOINT": hub.endpoint}
        environment = {
            **os.environ,
            **settings,
            "HF_HOME": str(tmp_path / "push"),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", PUSH, str(tmp_path / "out"), str(tmp_path / "again")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        repo = hub.find("model", "tester/tiny")
        snapshots = [set(files) for files in repo.commits.values()]
        sharded = list(repo.commits)[1]
        texts, total, auto_map, *older = run_without_package(
            PULL, sharded, folder=tmp_path, **settings
        )
        card = repo.commits[repo.refs["main"]]["README.md"]["data"].decode()
        pulled = {
            path
            for method, path in hub.requests
            if method == "GET" and path.endswith(".safetensors")
        }
    written = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")
    }
    assert repo.private and len(snapshots) == 3
    assert any(name.startswith("model-00001-of-") for name in snapshots[1])
    assert snapshots[2] == written  # shards of the first push are gone
    assert card.endswith("# Written by hand")  # a later push without a card leaves it
    assert "/tester/tiny/resolve/main/model.safetensors" in {
        p.replace(repo.refs["main"], "main") for p in pulled
    }
    # revision=
    assert any(
        path.startswith(f"/tester/tiny/resolve/{sharded}/model-00001-of-") for path in pulled
    )
    assert older == [texts, True, total]
    assert texts == pipe("ab", 5, max_length=20, generator=torch.Generator().manual_seed(3)).texts
    assert total == pipe.model.lm_head.weight.sum().item()
    assert auto_map == json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"]


EXPORT = """
import os, sys
from hf_lomdm.hub import export_to_hub_folder

try:
    export_to_hub_folder(sys.argv[1], "exported", push_to_hub=True, repo_id="tester/tiny")
except ConnectionError as error:
    print("REFUSED", error)
"""

PLAIN = """
import sys
from hf_lomdm import LoMDMForMaskedDiffusion
model = LoMDMForMaskedDiffusion.from_pretrained(sys.argv[1])
model.push_to_hub("tester/plain")
"""

PULL_PLAIN = """
import json
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

name, revision = "tester/plain", sys.argv[1]
settings = {"trust_remote_code": True, "revision": revision}
config = AutoConfig.from_pretrained(name, **settings)
options = ({}, {"dtype": torch.bfloat16}, {"device_map": "cpu"}, {"device_map": "auto"})
models = [AutoModel.from_pretrained(name, **settings, **one) for one in options]
models.append(AutoModelForMaskedLM.from_pretrained(name, **settings))
ids = torch.tensor([[1, 3, 4, 10, 10]])
rates = [model(ids.to(model.device)).rates.tolist() for model in models]
try:
    AutoModel.from_pretrained("tester/absent", trust_remote_code=True)
except OSError as error:
    absent = str(error)
print("RESULT", json.dumps([config.c1, [str(model.dtype) for model in models], rates, absent]))
"""


def run_with_package(code: str, *arguments, folder, **settings) -> str:
    """What `code` prints, in a process of its own with the package and a fresh cache; fails if it
    fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(folder / "push"), "OMP_NUM_THREADS": "1", **settings}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def hub_settings(hub: HubServer) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


@pytest.mark.slow
def test_an_upload_that_breaks_off_says_so_and_a_second_try_completes_it(make_model, tmp_path):
    LoMDMPipeline(
        make_model(), LoMDMScheduler(mask_token_id=10), build_tokenizer()
    ).save_pretrained(tmp_path / "out")
    with HubServer() as hub:
        settings = hub_settings(hub)
        output = run_with_package(EXPORT, tmp_path / "out", folder=tmp_path, **settings)
        # no token
        assert (
            "exported is written, but was not uploaded to tester/tiny" in output
            and "HF_TOKEN" in output
        )
        hub.drop("POST", "/commit/", after=1000)
        output = run_with_package(
            EXPORT, tmp_path / "out", folder=tmp_path, HF_TOKEN="hf_test", **settings
        )
        assert (
            "was not uploaded to tester/tiny" in output
            and "Try again: the same call completes it" in output
        )
        assert hub.files("tester/tiny") == []  # a commit is whole or absent
        hub.drop("PUT", "/_lfs/")  # the weights are on the server already: they are not sent again
        output = run_with_package(
            EXPORT, tmp_path / "out", folder=tmp_path, HF_TOKEN="hf_test", **settings
        )
        assert output == "" and hub.drops_left == 1
        assert {"model.safetensors", "model_index.json", "model/config.json"} <= set(
            hub.files("tester/tiny")
        )


@pytest.mark.slow
def test_a_pushed_model_alone_brings_its_code(make_model, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "out")
    with HubServer() as hub:
        settings = {**hub_settings(hub), "HF_TOKEN": "hf_test"}
        hub.drop("PUT", "/_lfs/", after=1000)  # the client sends the weights again by itself
        run_with_package(PLAIN, tmp_path / "out", folder=tmp_path, **settings)
        assert hub.drops_left == 0
        revision = hub.find("model", "tester/plain").refs["main"]
        c1, dtypes, rates, absent = run_without_package(
            PULL_PLAIN, revision, folder=tmp_path, **settings
        )
    with torch.no_grad():
        expected = model(torch.tensor([[1, 3, 4, 10, 10]])).rates
    assert c1 == 0.7 and dtypes == ["torch.float32", "torch.bfloat16", *["torch.float32"] * 3]
    assert "tester/absent is not a local folder and is not a valid model identifier" in absent
    for dtype, values in zip(dtypes, rates, strict=True):
        # threads may sum in another order; bfloat16 keeps 8 bits
        assert torch.allclose(
            torch.tensor(values), expected, atol=1e-6 if dtype == "torch.float32" else 0.1
        )


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch):
    asked = []

    def unreachable(name, file, **_):
        asked.append(file)
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", unreachable)
    for name in ("nowhere", "nowhere/at-all"):
        with pytest.raises(OSError, match="couldn't connect"):
            LoMDMForMaskedDiffusion.from_pretrained(name)
    assert asked == ["config.json"] * 2  # each question waits for a connection
