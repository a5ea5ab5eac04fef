"""Every system learns: tiny.yaml with each overlay ends below the bigram entropy of its text, and
its folder loads."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from hf_lomdm import LoMDMPipeline
from hf_lomdm.data.splits import load_data
from hf_lomdm.training.parsing import parse_arguments

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "training_scripts" / "configs"
# Optimizer steps of 32 rows of 64 characters: about as few as end clearly below the bigram entropy.
STEPS = {
    "lomdm": 700,
    "mdlm": 700,
    "mdlm_two_views": 700,
    "polynomial": 700,
    "uniform_psi": 700,
    "sedd": 700,
    "genmd4": 700,
    "bd3lm_4": 500,
    "bd3lm_8": 600,
    "bd3lm_16": 700,
    "bd3lm_16_two_views": 700,
    "block_lomdm": 700,
    "ar": 200,
}


def test_every_overlay_has_its_number_of_steps():
    assert STEPS.keys() == {path.stem for path in (CONFIGS / "systems").glob("*.yaml")}


def bigram_entropy(rows: list[list[int]], vocab_size: int) -> float:
    """Nats per character: the entropy of one given the one before it, by the counts of `rows`
    without BOS and EOS."""
    counts = torch.zeros(vocab_size, vocab_size, dtype=torch.float64)
    for row in rows:
        ids = torch.as_tensor(row)[1:-1]
        counts.index_put_(
            (ids[:-1].long(), ids[1:].long()), torch.ones((), dtype=torch.float64), accumulate=True
        )
    joint, before = counts / counts.sum(), counts.sum(1) / counts.sum()
    return float(torch.special.entr(joint).sum() - torch.special.entr(before).sum())


def test_bigram_entropy_is_that_of_a_known_chain():
    half = [[3, 0, 1, 4], [3, 0, 2, 4]] * 50  # after 0 either of two, nothing else follows anything
    assert bigram_entropy(half, 5) == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-7)
    assert bigram_entropy([[3, 0, 1, 0, 1, 0, 1, 4]], 5) == pytest.approx(0, abs=1e-12)


def assert_folder_loads(folder: Path, system: str) -> None:
    """The weights come back, and write a text."""
    if system == "ar":
        model, tokenizer = (
            AutoModelForCausalLM.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
        )
        ids = model.generate(num_return_sequences=2)[:, 1:]
        assert len(tokenizer.decode(ids[0], skip_special_tokens=True)) > 0
    else:
        model, pipe = AutoModel.from_pretrained(folder), LoMDMPipeline.from_pretrained(folder)
        output = pipe(
            num_inference_steps=64,
            num_return_sequences=2,
            generator=torch.Generator().manual_seed(0),
        )
        ids = output.sequences
        assert len(output.texts[0]) > 0 and not (ids == model.config.mask_token_id).any()
        loaded = pipe.model.state_dict()
        assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
    assert ids.shape[1] <= 64


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("system", STEPS)
def test_every_system_ends_below_the_bigram_entropy_of_its_text(
    tmp_path, monkeypatch, capsys, system
):
    script = str(ROOT / "training_scripts" / "train.py")
    words = [
        "--config",
        str(CONFIGS / "tiny.yaml"),
        "--config",
        str(CONFIGS / "systems" / f"{system}.yaml"),
    ]
    words += ["--output_dir", str(tmp_path), "--max_steps", str(STEPS[system])]
    monkeypatch.setattr(sys, "argv", [script, *words])
    runpy.run_path(script, run_name="__main__")
    assert capsys.readouterr().out.count("--- sample") == 3
    texts, tokenizer = load_data(parse_arguments(words)[0], tmp_path)
    goal = bigram_entropy(texts["train"]["input_ids"], len(tokenizer))
    metrics = json.loads((tmp_path / "eval_results.json").read_text())
    print(f"{system}: {metrics['eval_nelbo']:.3f} nats per token, bigram entropy {goal:.3f}")
    assert 2 < goal < 3
    # the validation text is what it is: of the error only that of the draws counts
    assert metrics["eval_nelbo"] + 4 * metrics["eval_nelbo_monte_carlo_error"] < goal
    assert_folder_loads(tmp_path, system)
