"""Public MDLM and BD3-LM checkpoints become Hub folders: compared with logits of the original code
(tests/golden).

The golden weights are written in each public layout, converted by the script and loaded as users
load them.
"""

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion, LoMDMPipeline
from hf_lomdm.hub.conversion import convert_checkpoint, fold_mdlm_state_dict, read_public_checkpoint
from hub.test_export import load_script

GOLDEN = Path(__file__).parent.parent / "golden"
# Parameters in the order in which the public module makes them, read in its code: a moving average
# has no names.
BLOCK = [
    "norm1.weight",
    "attn_qkv.weight",
    "attn_out.weight",
    "norm2.weight",
    "mlp.0.weight",
    "mlp.0.bias",
]
BLOCK += ["mlp.2.weight", "mlp.2.bias", "adaLN_modulation.weight", "adaLN_modulation.bias"]
FIRST = [
    "vocab_embed.embedding",
    *(f"sigma_map.mlp.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")),
]
LAST = [
    "norm_final.weight",
    "linear.weight",
    "linear.bias",
    "adaLN_modulation.weight",
    "adaLN_modulation.bias",
]
ORDER = [*FIRST, *(f"blocks.{index}.{name}" for index in range(3) for name in BLOCK)]
ORDER += [f"output_layer.{name}" for name in LAST]


def load_golden(name: str = "mdlm_tiny") -> tuple[dict, dict, dict]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
        original = json.loads(file.metadata()["config"])
    weights = {key: value for key, value in tensors.items() if not key.startswith("golden.")}
    golden = {
        key.removeprefix("golden."): value
        for key, value in tensors.items()
        if key.startswith("golden.")
    }
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


def plain_tokenizer(size: int = 40) -> PreTrainedTokenizerFast:
    """As GPT-2's: one end token (id 0) that is BOS and EOS too, no mask, no padding; characters
    besides."""
    vocabulary = {"<end>": 0, **{chr(96 + index): index for index in range(1, size)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>")


class Settings:
    """Stands for the classes of other packages among Lightning's hyperparameters."""

    def __init__(self):
        self.content = {"model": {"length": 24}}


class Malicious:
    """Runs a command where it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def write_hub_folder(
    folder: Path, original: dict, weights: dict, file: str = "model.safetensors"
) -> Path:
    """The layout of kuleshov-group/mdlm-owt, whose config does not name the mask's id."""
    folder.mkdir()
    settings = {key: value for key, value in original.items() if key != "mask_token_id"}
    (folder / "config.json").write_text(
        json.dumps({"model_type": "mdlm", "return_dict": False, **settings})
    )
    if file.endswith(".safetensors"):
        save_file(weights, folder / file)
    else:
        torch.save(weights, folder / file)
    return folder


def write_lightning(
    path: Path, weights: dict, average: list | None, prefix: str = "backbone.", **content
) -> Path:
    """What the public code's trainer saves: names in the order of the module, the average without
    names."""
    state = {
        f"{prefix}{name}": weights[f"backbone.{name}"] for name in ["rotary_emb.inv_freq", *ORDER]
    }
    buffers = {
        name: weights[name] for name in ("sampling_eps_min", "sampling_eps_max") if name in weights
    }
    ema = (
        {}
        if average is None
        else {"ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": average}}
    )
    file = {
        "epoch": 0,
        "state_dict": {**state, **buffers},
        "hyper_parameters": {"config": Settings(), "root": Path("data")},
        **ema,
        **content,
    }
    torch.save(file, path)
    return path


def shadow(weights: dict) -> list[torch.Tensor]:
    return [weights[f"backbone.{name}"] for name in ORDER]


def shifted(weights: dict) -> dict:
    """Other weights of the same shapes."""
    return {
        name: value + 0.1 if name.startswith("backbone.blocks") else value
        for name, value in weights.items()
    }


def run_script(checkpoint: Path, output: Path, *words) -> Path:
    load_script("convert").main(
        ["--checkpoint", str(checkpoint), "--output", str(output), *map(str, words)]
    )
    return output


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


# -------------------------------------------------------------------------------------- the folding


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


# -------------------------------------------------------------------------------- the three layouts


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


# ------------------------------------------------------------------------------------ hostile files


def test_objects_of_foreign_classes_in_a_lightning_file_are_neither_imported_nor_called(tmp_path):
    _, weights, _ = load_golden()
    Settings.__module__ = "a_package_that_is_not_installed"  # found by nobody who reads the file
    trace = tmp_path / "trace"
    module = ModuleType("a_package_that_is_not_installed")
    module.Settings = Settings
    sys.modules[module.__name__] = module
    try:
        attack = Malicious(exec, f"open({str(trace)!r}, 'w').close()")
        path = write_lightning(
            tmp_path / "last.ckpt", weights, shadow(weights), callbacks={"one": attack}
        )
    finally:
        del sys.modules[module.__name__]
        Settings.__module__ = __name__
    with pytest.raises(ModuleNotFoundError):
        torch.load(path, weights_only=False)
    checkpoint = read_public_checkpoint(path)
    assert all(torch.equal(checkpoint.state[name], weights[f"backbone.{name}"]) for name in ORDER)
    assert not trace.exists()


def test_a_file_that_would_run_something_is_refused_and_runs_nothing(tmp_path):
    original, weights, _ = load_golden()
    trace = tmp_path / "trace"
    system = Malicious(os.system, f"touch {trace}")
    for name, content in {
        "callbacks": {"one": system},
        "state_dict": {"backbone.blocks.0.norm1.weight": system},
    }.items():
        path = write_lightning(
            tmp_path / f"{name}.ckpt", weights, shadow(weights), **{name: content}
        )
        with pytest.raises(
            ValueError, match="holds more than weights.*posix.*nothing of it was run"
        ):
            read_public_checkpoint(path)
    # Inert, but no weight: in the place of weights that is an error too
    inert = Malicious(exec, f"open({str(trace)!r}, 'w').close()")
    path = write_lightning(
        tmp_path / "inert.ckpt", weights, None, state_dict={"backbone.blocks.0.norm1.weight": inert}
    )
    with pytest.raises(ValueError, match="entries that are no weights: .*norm1"):
        read_public_checkpoint(path)
    public = write_hub_folder(
        tmp_path / "public", original, {**weights, "attack": inert}, "pytorch_model.bin"
    )
    with pytest.raises(ValueError, match="holds more than weights"):
        read_public_checkpoint(public)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the attack is a real one
    assert trace.exists()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "last.ckpt"])
def test_a_truncated_file_is_refused_and_nothing_is_written(tmp_path, file):
    original, weights, _ = load_golden()
    if file.endswith(".ckpt"):
        path = checkpoint = write_lightning(tmp_path / file, weights, shadow(weights))
    else:
        checkpoint = write_hub_folder(tmp_path / "public", original, weights, file)
        path = checkpoint / file
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(SystemExit, match=f"{file} is truncated"):
        run_script(checkpoint, tmp_path / "out", "--max_length", 24)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------- tokenizer


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


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "settings, words, message",
    [
        ({"vocab_size": 50}, [], "config has vocab_size=50, the weights 41"),
        ({"n_blocks": 2}, [], "config has n_blocks=2, the weights 3"),
        ({"n_heads": 2}, [], "config has n_heads=2, the rotary frequencies are those of 4 heads"),
        ({"causal": True}, [], "autoregressive cannot be converted"),
        ({"time_conditioning": True}, [], "conditioned on the time cannot be converted"),
        ({}, ["--max_length", 12], "max_length is 12, but the checkpoint's config says 24"),
        (
            {"block_size": 4},
            ["--block_size", 8],
            "block_size is 8, but the checkpoint's config says 4",
        ),
        ({"model_length": None}, [], "max_length is not in the file. Pass --max_length"),
    ],
)
def test_sizes_that_contradict_each_other_or_are_nowhere_are_errors(
    tmp_path, settings, words, message
):
    original, weights, _ = load_golden()
    public = write_hub_folder(tmp_path / "public", {**original, **settings}, weights)
    with pytest.raises(SystemExit, match=message):
        run_script(public, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_weights_of_another_network_are_errors(tmp_path):
    _, weights, _ = load_golden("bd3lm_tiny")
    path = write_lightning(tmp_path / "last.ckpt", weights, None)
    with pytest.raises(SystemExit, match="those of a BD3-LM, whose block_size is not in the file"):
        run_script(path, tmp_path / "out", "--max_length", 24)
    other = {
        **weights,
        "backbone.rotary_emb.inv_freq": weights["backbone.rotary_emb.inv_freq"] ** 2,
    }
    path = write_lightning(tmp_path / "last.ckpt", other, None)
    with pytest.raises(SystemExit, match="inv_freq is not of base 10000"):
        run_script(path, tmp_path / "out", "--max_length", 24, "--block_size", 4)


def test_paths_without_a_checkpoint_and_outputs_that_exist_are_errors(tmp_path):
    public = write_hub_folder(tmp_path / "public", *load_golden()[:2])
    with pytest.raises(SystemExit, match="output .* exists already"):
        run_script(public, public)
    with pytest.raises(SystemExit, match="checkpoint .*nowhere does not exist"):
        run_script(tmp_path / "nowhere", tmp_path / "out")
    (public / "config.json").write_text("[1, 2]")
    with pytest.raises(SystemExit, match="must hold a mapping, got list"):
        run_script(public, tmp_path / "out")
    (public / "config.json").unlink()
    with pytest.raises(SystemExit, match="must hold config.json and one of"):
        run_script(public, tmp_path / "out")
    torch.save({"weights": torch.ones(1)}, tmp_path / "other.ckpt")
    with pytest.raises(SystemExit, match="is no Lightning file: it has no state_dict"):
        run_script(tmp_path / "other.ckpt", tmp_path / "out")
    with pytest.raises(
        SystemExit, match="error: --tokenizer .* cannot be loaded: there is no such folder"
    ):
        run_script(public, tmp_path / "out", "--tokenizer", tmp_path / "nowhere")


@pytest.mark.parametrize(
    "kind", ["nothing", "empty folder", "text", "other weights", "bad tokenizer"]
)
def test_the_script_says_in_one_line_what_it_cannot_convert(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path, words = tmp_path / "checkpoint", []
    if kind == "empty folder":
        path.mkdir()
    if kind == "text":
        path.write_text("x")
    if kind in ("other weights", "bad tokenizer"):
        torch.save({"state_dict": {"a": torch.zeros(3)}}, path)
    if kind == "bad tokenizer":
        (tmp_path / "tokenizer").mkdir()
        (tmp_path / "tokenizer" / "tokenizer_config.json").write_text("[]")
        words = ["--tokenizer", str(tmp_path / "tokenizer")]
    with pytest.raises(SystemExit, match="^error: .") as error:
        run_script(path, tmp_path / "out", *words)
    assert "\n" not in error.value.code and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", ["--block_size 0", "--max_length -1", "--mask_token_id x", "--ema --no_ema"]
)
def test_the_script_refuses_options_out_of_range(tmp_path, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_script(tmp_path, tmp_path / "out", *words.split())
    assert "error: argument --" in capsys.readouterr().err
