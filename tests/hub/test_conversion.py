"""Public MDLM and BD3-LM checkpoints become Hub folders: compared with logits of the original code
(tests/golden).

The golden weights are written in each public layout, converted by the script and loaded as users
load them.
"""

from pathlib import Path

import pytest
import torch
from tiny_public import (
    ORDER,
    load_golden,
    plain_tokenizer,
    run_script,
    shadow,
    write_hub_folder,
    write_lightning,
)
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion, LoMDMPipeline
from hf_lomdm.hub.conversion import convert_checkpoint, fold_mdlm_state_dict, read_public_checkpoint


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


def shifted(weights: dict) -> dict:
    """Other weights of the same shapes."""
    return {
        name: value + 0.1 if name.startswith("backbone.blocks") else value
        for name, value in weights.items()
    }


def assert_golden(folder: Path, name: str) -> None:
    """The model of `folder` as `AutoModel` loads it against the original code's logits."""
    original, _, golden = load_golden(name)
    model, mask = AutoModel.from_pretrained(folder).eval(), original["mask_token_id"]
    assert model.config.mask_token_id == mask and model.dtype is torch.float32
    with torch.no_grad():
        if name == "mdlm_tiny":
            logits = model(input_ids=golden["input_ids"]).logits
        else:
            noisy, clean = (model.make_batch(golden[name]) for name in ("noisy_ids", "clean_ids"))
            logits = model.token_logits(model.encode_views(noisy, clean)[0])
    # 1e-4: float32 rounding of two different orders of summation
    torch.testing.assert_close(logits[..., :mask], golden["logits"][..., :mask], atol=1e-4, rtol=0)


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
    torch.testing.assert_close(
        logits[masked].log_softmax(-1)[:, :mask], expected, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_folded_bd3_lm_weights_give_the_golden_logits_of_noisy_blocks_behind_clean_ones(
    implementation,
):
    original, weights, golden = load_golden("bd3lm_tiny")
    assert {"sampling_eps_min", "sampling_eps_max"} <= weights.keys()
    model, mask = build_folded(original, weights), original["mask_token_id"]
    model.set_attn_implementation(implementation)
    noisy, clean = golden["noisy_ids"], golden["clean_ids"]
    with torch.no_grad():
        hidden = model.model(clean, views=noisy).last_hidden_state[:, clean.shape[1] :]
        logits = model.token_logits(hidden)
        through_the_loss, _ = model.encode_views(model.make_batch(noisy), model.make_batch(clean))
    # 1e-4: float32 rounding of two different orders of summation
    torch.testing.assert_close(logits[..., :mask], golden["logits"][..., :mask], atol=1e-4, rtol=0)
    assert torch.equal(through_the_loss, hidden)


def test_missing_and_unknown_keys_and_wrong_shapes_are_named():
    _, weights, _ = load_golden()
    with pytest.raises(ValueError, match="unknown keys.*surprise"):
        fold_mdlm_state_dict({**weights, "backbone.surprise": torch.zeros(1)})
    with pytest.raises(
        ValueError,
        match=r"'blocks.1.norm2.weight' of shape \(63,\), its other weights need \(64,\)",
    ):
        fold_mdlm_state_dict({**weights, "backbone.blocks.1.norm2.weight": torch.ones(63)})
    for name in ("blocks.1.norm2.weight", "blocks.0.mlp.0.weight"):
        with pytest.raises(ValueError, match=f"lacks the key '{name}'"):
            fold_mdlm_state_dict(
                {key: value for key, value in weights.items() if key != f"backbone.{name}"}
            )


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("name", ["mdlm_tiny", "bd3lm_tiny"])
def test_a_hub_folder_is_converted_with_the_sizes_of_its_config(tmp_path, name, file):
    original, weights, _ = load_golden(name)
    folder = run_script(
        write_hub_folder(tmp_path / "public", original, weights, file), tmp_path / "out"
    )
    config = LoMDMConfig.from_pretrained(folder)
    assert (config.block_size, config.max_position_embeddings) == (original.get("block_size"), 24)
    assert (config.num_attention_heads, config.vocab_size, config.rate_type) == (4, 41, "uniform")
    assert (
        not (folder / "tokenizer.json").exists()
        and "`public`" in (folder / "README.md").read_text()
    )
    assert_golden(folder, name)


@pytest.mark.parametrize("prefix", ["backbone.", "backbone._orig_mod."])
@pytest.mark.parametrize("name", ["mdlm_tiny", "bd3lm_tiny"])
def test_of_a_lightning_file_the_average_is_converted_by_default(tmp_path, name, prefix):
    original, weights, _ = load_golden(name)
    path = write_lightning(tmp_path / "last.ckpt", shifted(weights), shadow(weights), prefix)
    words = ["--max_length", 24, *(["--block_size", 4] if name == "bd3lm_tiny" else [])]
    folder = run_script(path, tmp_path / "out", *words)
    config = LoMDMConfig.from_pretrained(folder)
    assert (config.num_attention_heads, config.block_size) == (4, original.get("block_size"))
    assert "moving average" in (folder / "README.md").read_text()
    assert_golden(folder, name)


def test_the_weights_themselves_are_converted_if_asked_for_or_if_there_is_nothing_else(tmp_path):
    _, weights, _ = load_golden()
    both = write_lightning(tmp_path / "both.ckpt", weights, shadow(shifted(weights)))
    assert_golden(run_script(both, tmp_path / "raw", "--no_ema", "--max_length", 24), "mdlm_tiny")
    alone = write_lightning(tmp_path / "alone.ckpt", weights, None)
    assert_golden(run_script(alone, tmp_path / "alone", "--max_length", 24), "mdlm_tiny")
    with pytest.raises(SystemExit, match="ema=True, but .* has no moving average"):
        run_script(alone, tmp_path / "none", "--ema", "--max_length", 24)
    public = write_hub_folder(tmp_path / "public", *load_golden()[:2])
    with pytest.raises(SystemExit, match="ema=False is for Lightning files"):
        run_script(public, tmp_path / "none", "--no_ema")


def test_an_average_in_another_order_or_number_is_refused(tmp_path):
    _, weights, _ = load_golden()
    for wrong in (shadow(weights)[::-1], shadow(weights)[:-1], [None] * len(ORDER)):
        path = write_lightning(tmp_path / "last.ckpt", weights, wrong)
        with pytest.raises(ValueError, match="ema of .* does not belong to its weights"):
            read_public_checkpoint(path)
        assert read_public_checkpoint(path, ema=False).averaged is False


def test_mask_and_padding_get_ids_of_their_own_and_the_pipeline_writes_text(tmp_path):
    original, weights, _ = load_golden()
    plain_tokenizer().save_pretrained(tmp_path / "plain")
    public = write_hub_folder(tmp_path / "public", original, weights)
    folder = run_script(public, tmp_path / "out", "--tokenizer", tmp_path / "plain")
    config, tokenizer = LoMDMConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (40, 41, 0)
    assert (config.mask_token_id, config.pad_token_id, config.eos_token_id, config.vocab_size) == (
        40,
        41,
        0,
        42,
    )
    assert_golden(folder, "mdlm_tiny")
    pipe = LoMDMPipeline.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    out = pipe("ab[MASK]d", num_inference_steps=4, generator=generator)
    assert out.sequences[0, [0, 1, 3]].tolist() == [1, 2, 4] and out.order[0].tolist() == [
        -1,
        -1,
        0,
        -1,
    ]
    drawn = pipe(num_inference_steps=24, num_return_sequences=64, generator=generator).sequences
    assert drawn.max() < 40  # neither mask nor padding, of 1,536 tokens
    # the entry that the checkpoint does not have takes nothing from the others
    with torch.no_grad():
        logits = pipe.model(input_ids=torch.full((1, 24), 40)).logits
    assert logits.softmax(-1)[..., 40:].eq(0).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: plain_tokenizer(39), r"mask token '\[MASK\]' at id 39, the checkpoint at 40"),
        (
            lambda: plain_tokenizer(41),
            r"mask token '\[MASK\]' at id 41, the checkpoint at 40 \(there",
        ),
        # the public helper's: [PAD] at the mask's id
        (
            lambda: with_tokens(plain_tokenizer(), pad_token="[PAD]"),
            r"at id 41, .*\(there '\[PAD\]' in the tokenizer",
        ),
        (
            lambda: with_tokens(plain_tokenizer(), mask_token="<m>", cls_token="<c>"),
            "41, which leaves out .'<c>'",
        ),
        (
            lambda: with_tokens(plain_tokenizer(30), mask_token="<m>"),
            "tokenizer has 32 ids, the checkpoint 41",
        ),
    ],
)
def test_a_tokenizer_that_is_not_the_checkpoints_is_refused(tmp_path, make, message):
    public = write_hub_folder(tmp_path / "public", *load_golden()[:2])
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(public, tmp_path / "out", make())
    assert not (tmp_path / "out").exists()


def with_tokens(tokenizer: PreTrainedTokenizerFast, **tokens: str) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(tokens)
    return tokenizer


def test_a_tokenizer_with_a_mask_inside_the_vocabulary_keeps_it(tmp_path):
    original, weights, _ = load_golden()
    # as it stays through the original's training
    weights["backbone.output_layer.linear.weight"][7] = 0.0
    weights["backbone.output_layer.linear.bias"][7] = 0.0
    public = write_hub_folder(tmp_path / "public", original, weights)
    with pytest.raises(SystemExit, match="mask_token_id is 40, but the one row .* is 7"):
        run_script(public, tmp_path / "out")
    tokenizer = plain_tokenizer(41)
    tokenizer.mask_token = "g"  # id 7
    folder = convert_checkpoint(public, tmp_path / "out", tokenizer)
    config = LoMDMConfig.from_pretrained(folder)
    assert (config.mask_token_id, config.pad_token_id, config.vocab_size) == (7, 41, 42)
    run_script(public, tmp_path / "by_hand", "--mask_token_id", 7)
    assert LoMDMConfig.from_pretrained(tmp_path / "by_hand").mask_token_id == 7
