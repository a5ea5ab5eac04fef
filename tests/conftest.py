"""Fixtures for all tests: the smallest real models."""

import gc
import os
import shutil
import tempfile

# Tiny tensors: a second thread would only wait for the first. Before torch is imported, and for
# subprocesses too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What torch compiled as another processor does not run on this one, but torch would find it again.
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR",
    f"{tempfile.gettempdir()}/hf-lomdm-compiled-{os.environ.get('ATEN_CPU_CAPABILITY', 'unset')}",
)

import pytest

# Tests see processes that die, never a disk without power: nothing has to wait for the disk.
os.fsync = lambda descriptor: None
# The collector of garbage, which each run of a trainer calls, need not search what is there by now:
# in a process that a test forks, all libraries.
gc.freeze()

TINY = {
    "vocab_size": 11,
    "mask_token_id": 10,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "dropout": 0.0,
}


def build_model(**overrides):
    """A random model in eval mode whose token laws and rates differ clearly between positions."""
    # not above: the process that hands out the tests to others would wait for it
    import torch

    from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion

    generator_state = torch.get_rng_state()
    torch.manual_seed(overrides.pop("seed", 0))
    model = LoMDMForMaskedDiffusion(LoMDMConfig(**{**TINY, "initializer_range": 0.3, **overrides}))
    for head in (model.phi, model.psi):
        if head is not None:
            torch.nn.init.normal_(head.out.weight, std=1.0)
    if model.phi is not None:
        torch.nn.init.normal_(model.phi.given)
    torch.set_rng_state(generator_state)
    return model.eval()


@pytest.fixture(scope="module", autouse=True)
def little_to_search():
    """The collector of garbage passes over what has come since: collected tests, more libraries."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """Nothing that `datasets` has kept of another test is found, and nothing of this one stays."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def make_model():
    """The factory `build_model`: keyword arguments override the tiny configuration, `seed` the
    weights."""
    return build_model


@pytest.fixture
def browser():
    """A headless Chromium: that of the variable `CHROMIUM`, or of the path; skips without one."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="drives a browser: pip install playwright"
    )
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=path, args=[*flags, "--disable-background-networking"]
        )
        yield chromium
        chromium.close()
