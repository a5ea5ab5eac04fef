"""An order that is given: the rates are those of the law, the bound is of its order, and the script trains in it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.evaluation import nelbo

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from fixed_order import fix_order, parse_options  # noqa: E402
from sudoku_oracle import make_law  # noqa: E402


@pytest.fixture
def fixed(monkeypatch):
    """Fixes an order until the end of the test."""
    for name in ("forward_rates", "_reverse_rates"):
        monkeypatch.setattr(LoMDMForMaskedDiffusion, name, getattr(LoMDMForMaskedDiffusion, name))
    return lambda words: fix_order(make_law(words, 0.7, 0.65))


@torch.no_grad()
def test_forward_and_reverse_rates_are_the_law_of_the_position(make_model, fixed):
    fixed("exp 0.5")
    model, text = make_model(rate_type="uniform").eval(), torch.tensor([[3, 4, 5, 6], [0, 7, 8, 9]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])  # padding on the left: positions count from the first token
    expected = (-0.5 * torch.tensor([[0.0, 1, 2, 3], [0, 0, 1, 2]])).exp()
    torch.testing.assert_close(model.forward_rates(text, mask), expected)
    torch.testing.assert_close(model(text, mask).rates, expected)


@torch.no_grad()
def test_bound_of_a_steep_law_is_the_cost_from_left_to_right(make_model, fixed):
    fixed("exp 9")  # the last of the weights is 1e-12 of the first
    model, text = make_model(rate_type="uniform").eval(), torch.tensor([[3, 4, 5, 6]])
    expected = 0.0
    for place in range(4):
        state = text.clone()
        state[:, place:] = model.config.mask_token_id
        expected -= model(state).logits[0, place].log_softmax(-1)[text[0, place]]
    # as many draws as positions: each number of reveals has its share
    found = nelbo(model, text, num_samples=4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.nelbo[0].float(), expected, rtol=2e-3, atol=0)
    assert found.velocity.abs().max() < 1e-6


@pytest.mark.parametrize(
    "words, message",
    [
        (["--law", "steep"], "laws must be"),
        (["--law", "uniform", "--block_size", "4"], "without --block_size"),
        (["--law", "uniform", "--objective", "ar"], "--objective diffusion"),
    ],
)
def test_what_has_an_order_of_its_own_is_refused(words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse_options([*words, "--output", "x.json", "--output_dir", str(tmp_path)])


@pytest.mark.slow
def test_the_script_trains_and_records_the_bound_in_its_order(tmp_path):
    config, output = ROOT / "training_scripts" / "configs" / "tiny.yaml", tmp_path / "found.json"
    command = [sys.executable, ROOT / "benchmarks" / "fixed_order.py", "--law", "exp 0.1", "--output", output]
    words = ["--config", config, "--max_steps", "5", "--hidden_size", "32", "--max_validation_rows", "8"]
    subprocess.run([*command, *words, "--output_dir", tmp_path / "run"], check=True)
    record = json.loads(output.read_text())
    assert record["law"] == "exp 0.1" and record["n"] == 8 and record["velocity"] == pytest.approx(0, abs=1e-6)
    assert record["value"] > 0 and (tmp_path / "run" / "model.safetensors").exists()
