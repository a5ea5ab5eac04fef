"""Push to and pull from a Hub over HTTP, on a machine without the package."""

import json
import os
import subprocess
import sys

import pytest
import torch

from hf_lomdm import LoMDMPipeline, LoMDMScheduler
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
import torch
from diffusers import DiffusionPipeline
from transformers import AutoModel

pipe = DiffusionPipeline.from_pretrained("tester/tiny", trust_remote_code=True)
model = AutoModel.from_pretrained("tester/tiny", trust_remote_code=True)
out = pipe("ab", 5, max_length=20, generator=torch.Generator().manual_seed(3))
pipe.save_pretrained("saved")
auto_map = json.load(open("saved/config.json"))["auto_map"]
print("RESULT", json.dumps([out.texts, model.lm_head.weight.sum().item(), auto_map]))
"""


@pytest.mark.slow
def test_push_and_pull_over_http(make_model, tmp_path):
    pipe = LoMDMPipeline(make_model(), LoMDMScheduler(mask_token_id=10), build_tokenizer())
    pipe.save_pretrained(tmp_path / "out")
    hub_settings = {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with HubServer() as hub:
        settings = {**hub_settings, "HF_ENDPOINT": hub.endpoint}
        environment = {**os.environ, **settings, "HF_HOME": str(tmp_path / "push"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", PUSH, str(tmp_path / "out"), str(tmp_path / "again")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        repo = hub.find("model", "tester/tiny")
        snapshots = [set(files) for files in repo.commits.values()]
        texts, total, auto_map = run_without_package(PULL, folder=tmp_path, **settings)
        card = repo.commits[repo.refs["main"]]["README.md"]["data"].decode()
        pulled = {path for method, path in hub.requests if method == "GET" and path.endswith(".safetensors")}
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert repo.private and len(snapshots) == 3
    assert any(name.startswith("model-00001-of-") for name in snapshots[1])
    assert snapshots[2] == written  # shards of the first push are gone
    assert card.endswith("# Written by hand")  # a later push without a card leaves it
    assert "/tester/tiny/resolve/main/model.safetensors" in {p.replace(repo.refs["main"], "main") for p in pulled}
    assert texts == pipe("ab", 5, max_length=20, generator=torch.Generator().manual_seed(3)).texts
    assert total == pipe.model.lm_head.weight.sum().item()
    assert auto_map == json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"]
