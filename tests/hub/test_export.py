"""From a checkpoint to a Hub folder, by the function and by the script; and the sampling script on
that folder."""

import importlib
import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_lomdm import LoMDMPipeline
from hf_lomdm.hub import export_to_hub_folder
from tiny_tokenizer import build_tokenizer
from training.tiny_training import make_trainer


def load_script(name: str):
    return importlib.import_module(f"hf_lomdm.cli.{name}")


@pytest.fixture
def checkpoint(make_model, tmp_path) -> Path:
    make_model().save_pretrained(tmp_path / "checkpoint")
    build_tokenizer().save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_checkpoint_folder_becomes_a_hub_folder(checkpoint, make_model, tmp_path):
    folder = export_to_hub_folder(
        checkpoint,
        tmp_path / "hub",
        scheduler_config={"sampler": "ancestral", "temperature": 0.5},
        dtype=torch.bfloat16,
        model_card="# Tiny\n",
    )
    pipe = LoMDMPipeline.from_pretrained(folder)
    assert pipe.scheduler.config.sampler == "ancestral" and pipe.scheduler.config.temperature == 0.5
    assert pipe.tokenizer.mask_token_id == 10 and (folder / "README.md").read_text().endswith(
        "# Tiny\n"
    )
    for name, value in make_model().state_dict().items():
        assert torch.equal(pipe.model.state_dict()[name], value.to(torch.bfloat16)), name


def test_exported_model_is_left_as_it_is(make_model, tmp_path):
    model = make_model()
    export_to_hub_folder(model, tmp_path / "hub", build_tokenizer(), dtype=torch.float16)
    assert model.dtype is torch.float32
    assert LoMDMPipeline.from_pretrained(tmp_path / "hub").model.dtype is torch.float16


def test_checkpoint_can_become_a_hub_folder_in_place(checkpoint, make_model):
    (checkpoint / "trainer_state.json").write_text("{}")
    export_to_hub_folder(checkpoint, checkpoint)
    assert (checkpoint / "trainer_state.json").exists() and (
        checkpoint / "model_index.json"
    ).exists()
    pipe = LoMDMPipeline.from_pretrained(checkpoint)
    assert (
        torch.equal(pipe.model.lm_head.weight, make_model().lm_head.weight)
        and pipe.tokenizer is not None
    )


@pytest.mark.parametrize("other", [{"vocab_size": 12}, {"num_hidden_layers": 1}])
def test_the_folder_of_another_model_is_not_replaced(checkpoint, make_model, tmp_path, other):
    folder = export_to_hub_folder(make_model(**other), tmp_path / "hub", build_tokenizer())
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=f"holds another model, with {next(iter(other))}=1"):
        export_to_hub_folder(checkpoint, folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_exporting_again_keeps_the_settings_of_the_scheduler_but_those_that_are_given(
    checkpoint, tmp_path
):
    settings = {"sampler": "ancestral", "grid": "uniform", "temperature": 0.5, "top_k": 7}
    export_to_hub_folder(checkpoint, tmp_path / "first", scheduler_config=settings)
    export_to_hub_folder(tmp_path / "first", tmp_path / "second")
    export_to_hub_folder(
        tmp_path / "second",
        tmp_path / "third",
        scheduler_config={"sampler": "random", "top_k": None},
    )
    second, third = (
        LoMDMPipeline.from_pretrained(tmp_path / name).scheduler.config
        for name in ("second", "third")
    )
    assert {name: second[name] for name in settings} == settings
    assert {name: third[name] for name in settings} == {
        **settings,
        "sampler": "random",
        "top_k": None,
    }


def test_checkpoint_of_a_trainer_is_exported_with_its_averaged_weights(tmp_path):
    trainer = make_trainer(
        tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=2, ema_decay=0.9
    )
    trainer.train()
    folder, before = (
        tmp_path / "run" / "checkpoint-2",
        dict(load_file(tmp_path / "run/checkpoint-2/model.safetensors")),
    )
    model = LoMDMPipeline.from_pretrained(export_to_hub_folder(folder, tmp_path / "hub")).model
    assert trainer.ema.average.keys() == dict(model.named_parameters()).keys()
    for name, value in model.named_parameters():
        assert torch.equal(value, trainer.ema.average[name]), name
    # the training weights are others
    assert not torch.equal(model.lm_head.weight, before["lm_head.weight"])
    half = LoMDMPipeline.from_pretrained(
        export_to_hub_folder(folder, tmp_path / "half", dtype=torch.bfloat16)
    ).model
    assert torch.equal(half.lm_head.weight, model.lm_head.weight.to(torch.bfloat16))
    with pytest.raises(ValueError, match="is the checkpoint itself.*Pass another folder"):
        export_to_hub_folder(folder, tmp_path / "run" / ".." / "run" / "checkpoint-2")
    after = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_an_average_of_another_model_is_refused(checkpoint, tmp_path):
    for stored in ({"other.weight": torch.zeros(2)}, {"lm_head.weight": torch.zeros(2)}):
        save_file(stored, checkpoint / "ema.safetensors")
        with pytest.raises(
            ValueError, match=rf"holds {next(iter(stored))} with shape \(2,\), the model has"
        ):
            export_to_hub_folder(checkpoint, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_unusable_arguments_are_refused_and_nothing_is_written(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="floating-point"):
        export_to_hub_folder(checkpoint, tmp_path / "hub", dtype=torch.int8)
    with pytest.raises(ValueError, match="sampler"):
        export_to_hub_folder(checkpoint, tmp_path / "hub", scheduler_config={"sampler": "best"})
    with pytest.raises(OSError, match="no file named model.safetensors"):
        export_to_hub_folder(tmp_path, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_export_script_writes_the_folder_and_lists_it(checkpoint, tmp_path, capsys):
    (tmp_path / "card.md").write_text("# From a file\n")
    arguments = [
        "--model",
        str(checkpoint),
        "--output",
        str(tmp_path / "hub"),
        "--dtype",
        "bfloat16",
    ]
    arguments += [
        "--sampler",
        "random",
        "--model_card",
        str(tmp_path / "card.md"),
        "--max_shard_size",
        "10KB",
    ]
    load_script("export").main(arguments)
    listed = capsys.readouterr().out
    assert "scheduler/scheduling_lomdm.py" in listed and "model-00001-of-" in listed
    pipe = LoMDMPipeline.from_pretrained(tmp_path / "hub")
    assert pipe.model.dtype is torch.bfloat16 and pipe.scheduler.config.sampler == "random"
    assert "# From a file" in (tmp_path / "hub" / "README.md").read_text()


@pytest.mark.parametrize("option", ["--push", "--repo_id"])
def test_export_script_uploads_to_the_named_repository(checkpoint, tmp_path, monkeypatch, option):
    script, wanted = load_script("export"), {}

    def export(*arguments, **options):
        wanted.update(options)
        return tmp_path

    monkeypatch.setattr(script, "export_to_hub_folder", export)
    script.main(
        [
            "--model",
            str(checkpoint),
            "--output",
            str(tmp_path / "h"),
            option,
            "me/tiny",
            "--private",
        ]
    )
    assert (wanted["push_to_hub"], wanted["repo_id"], wanted["private"]) == (True, "me/tiny", True)


def test_export_script_does_not_ignore_private_without_a_repository(checkpoint, tmp_path):
    with pytest.raises(SystemExit, match="--private needs --push"):
        load_script("export").main(
            ["--model", str(checkpoint), "--output", str(tmp_path / "h"), "--private"]
        )


def test_sample_script_writes_texts_their_order_and_a_picture(
    checkpoint, tmp_path, capsys, monkeypatch
):
    pytest.importorskip("matplotlib")
    arguments = [
        "--model",
        str(checkpoint),
        "--prompt",
        "ab",
        "--prompt",
        "c<mask>d",
        "--num_return_sequences",
        "2",
    ]
    arguments += [
        "--num_inference_steps",
        "4",
        "--max_length",
        "12",
        "--seed",
        "5",
        "--sampler",
        "random",
    ]
    arguments += ["--temperature", "0.7", "--top_p", "0.9", "--png", str(tmp_path / "order.png")]
    script = load_script("sample")
    script.main(arguments)
    printed = capsys.readouterr().out
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7, 8)]
    settings = {"sampler": "random", "temperature": 0.7, "top_p": 0.9, "num_return_sequences": 2}
    out = LoMDMPipeline.from_pretrained(checkpoint)(
        ["ab", "c<mask>d"], 4, 12, generator=generators, **settings
    )
    for number, text in enumerate(out.texts):
        assert f"--- text {number + 1}, seed {5 + number}\n{text}\n" in printed
    assert (
        "--- 20 tokens in 4 forward passes" in printed
        and (tmp_path / "order.png").stat().st_size > 1000
    )
    script.main([*arguments, "--show_order"])
    assert "tokens revealed\n<bos>ab" in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    script.main([*arguments, "--show_order"])
    assert "\x1b[48;2;" in capsys.readouterr().out


def hostile_model(checkpoint: Path) -> list[str]:
    """The words that make the sampling script write the characters of `a` to `g`, now codes."""
    path, codes = checkpoint / "tokenizer.json", "\x1b\x07\x9b\u202e\u2588\x7f\r"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    for letter, code in zip("abcdefg", codes, strict=True):
        vocabulary[code] = vocabulary.pop(letter)
    path.write_text(json.dumps(content))
    return ["--model", str(checkpoint), "--num_inference_steps", "8", "--max_length", "32"]


@pytest.mark.parametrize("option", [[], ["--show_order"]])
def test_sample_script_prints_no_codes_that_the_model_writes(checkpoint, capsys, option):
    load_script("sample").main([*hostile_model(checkpoint), *option])
    printed = capsys.readouterr().out
    assert "␛" in printed and not set(printed) & set("\x1b\x07\x9b\u202e\x7f\r")


def test_sample_script_writes_its_files_where_the_output_cannot_encode_the_text(
    checkpoint, tmp_path, monkeypatch
):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    load_script("sample").main([*hostile_model(checkpoint), "--html", str(tmp_path / "order.html")])
    assert "\u2588" in (tmp_path / "order.html").read_text(encoding="utf-8")
    assert b"?" in written.getvalue()


def test_sample_script_prints_the_texts_though_a_file_cannot_be_written(checkpoint, capsys):
    arguments = [*hostile_model(checkpoint), "--html", "/dev/full"]
    with pytest.raises(SystemExit, match="^error: .*No space left on device"):
        load_script("sample").main(arguments)
    assert "--- text 1, seed 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    ["--sampler topk", "--temperature -1", "--temperature nan", "--top_p 2", "--seed -1"]
    + [
        "--num_inference_steps 0",
        "--max_length -3",
        "--num_return_sequences 1000000000",
        "--png .",
    ],
)
def test_sample_script_refuses_options_out_of_range_before_it_loads_a_model(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        load_script("sample").main(["--model", "not/there", *words.split()])
    assert f"error: argument {words.split()[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["nothing", "a file", "cut off"])
def test_export_script_says_in_one_line_what_it_cannot_export(checkpoint, tmp_path, kind):
    model = {"cut off": checkpoint}.get(kind, tmp_path / kind)
    if kind == "cut off":
        (model / "model.safetensors").write_bytes(b"cut")
    if kind == "a file":
        model.write_text("x")
    with pytest.raises(SystemExit, match=f"^error: .*{re.escape(str(model))}") as error:
        load_script("export").main(["--model", str(model), "--output", str(tmp_path / "hub")])
    assert "\n" not in error.value.code and not (tmp_path / "hub").exists()


def test_sample_script_computes_in_float32_on_the_cpu_unless_told_otherwise(
    make_model, checkpoint, tmp_path
):
    export_to_hub_folder(checkpoint, tmp_path / "hub", dtype=torch.bfloat16)
    script = load_script("sample")
    for dtype, arguments in ((torch.float32, []), (torch.bfloat16, ["--dtype", "bfloat16"])):
        options = script.parse_arguments(["--model", str(tmp_path / "hub"), *arguments])
        assert script.load(options, "cpu").model.dtype is dtype


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("absent", "there is no such folder, and as a repository of the Hub: "),
        ("empty", ".*no file named model.safetensors"),
        ("file", "it is a file, not the folder of a model"),
        ("foreign", ".*holds a model of type .bert., not .lomdm."),
        ("cut", "Error while deserializing header"),
        ("tokenizer", "the tokenizer of .* cannot be read"),
    ],
)
def test_sample_script_says_in_one_line_what_it_cannot_load(checkpoint, tmp_path, kind, message):
    folder = {"cut": checkpoint, "tokenizer": checkpoint}.get(kind, tmp_path / kind)
    if kind in ("empty", "foreign"):
        folder.mkdir()
    if kind == "foreign":
        (folder / "config.json").write_text('{"model_type": "bert", "vocab_size": 10}')
    if kind == "cut":
        (folder / "model.safetensors").write_bytes(b"cut")
    if kind == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    if kind == "file":
        folder.write_text("x")
    wrong = f"^error: --model {re.escape(str(folder))} cannot be loaded: "
    with pytest.raises(SystemExit, match=wrong + message) as error:
        load_script("sample").main(["--model", str(folder)])
    assert "\n" not in str(error.value)


def test_sample_script_needs_a_tokenizer(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="has no tokenizer"):
        load_script("sample").main(["--model", str(tmp_path)])
