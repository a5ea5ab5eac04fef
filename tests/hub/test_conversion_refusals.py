"""What the conversion refuses: files that would run something, other networks, contradictions."""

import os
import sys
from types import ModuleType

import pytest
import torch
from tiny_public import (
    ORDER,
    Settings,
    load_golden,
    run_script,
    shadow,
    write_hub_folder,
    write_lightning,
)

from hf_lomdm.hub.conversion import read_public_checkpoint


class Malicious:
    """Runs a command where it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


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
