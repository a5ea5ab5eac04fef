"""MDLM and BD3-LM weights fold into the backbone: compared with logits of the original code (tests/golden)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion
from hf_lomdm.hub.conversion import fold_mdlm_state_dict

GOLDEN = Path(__file__).parent.parent / "golden"


def load_golden(name: str = "mdlm_tiny") -> tuple[dict, dict, dict]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        original = json.loads(file.metadata()["config"])
    weights = {key: value for key, value in tensors.items() if not key.startswith("golden.")}
    golden = {key.removeprefix("golden."): value for key, value in tensors.items() if key.startswith("golden.")}
    return original, weights, golden


def build_folded(original: dict, weights: dict) -> LoMDMForMaskedDiffusion:
    config = LoMDMConfig(
        vocab_size=original["vocab_size"],
        hidden_size=original["hidden_dim"],
        num_hidden_layers=original["n_blocks"],
        num_attention_heads=original["n_heads"],
        max_position_embeddings=original["model_length"],
        mask_token_id=original["mask_token_id"],
        rate_type="uniform",
        block_size=original.get("block_size"),
    )
    model = LoMDMForMaskedDiffusion(config).eval()
    model.load_state_dict(fold_mdlm_state_dict(weights), strict=True)
    return model


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_folded_mdlm_weights_give_the_golden_logits(implementation):
    original, weights, golden = load_golden()
    model = build_folded(original, weights)
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        logits = model(input_ids=golden["input_ids"]).logits
    mask = original["mask_token_id"]
    # 1e-4: float32 rounding of two different orders of summation
    torch.testing.assert_close(logits[..., :mask], golden["logits"][..., :mask], atol=1e-4, rtol=0)
    masked = golden["input_ids"] == mask
    expected = golden["masked_log_probs"][masked][:, :mask]
    torch.testing.assert_close(logits[masked].log_softmax(-1)[:, :mask], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_folded_bd3_lm_weights_give_the_golden_logits_of_noisy_blocks_behind_clean_ones(implementation):
    original, weights, golden = load_golden("bd3lm_tiny")
    assert {"sampling_eps_min", "sampling_eps_max"} <= weights.keys()
    model, mask = build_folded(original, weights), original["mask_token_id"]
    model.set_attn_implementation(implementation)
    noisy, clean = golden["noisy_ids"], golden["clean_ids"]
    with torch.no_grad():
        hidden = model.model(clean, views=noisy).last_hidden_state[:, clean.shape[1] :]
        logits = model.token_logits(hidden)
        through_the_loss, _ = model.read_views(noisy, clean)
    # 1e-4: float32 rounding of two different orders of summation
    torch.testing.assert_close(logits[..., :mask], golden["logits"][..., :mask], atol=1e-4, rtol=0)
    assert torch.equal(through_the_loss, hidden)


def test_missing_and_unknown_keys_are_named():
    _, weights, _ = load_golden()
    with pytest.raises(ValueError, match="unknown keys.*surprise"):
        fold_mdlm_state_dict({**weights, "backbone.surprise": torch.zeros(1)})
    weights.pop("backbone.blocks.1.norm2.weight")
    with pytest.raises(ValueError, match="lacks the key 'blocks.1.norm2.weight'"):
        fold_mdlm_state_dict(weights)
