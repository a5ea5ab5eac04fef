"""`train.py --init_from`: a run that starts from a trained model, sizes and tokenizer included."""

import runpy
import sys
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXForCausalLM

from hf_lomdm import LoMDMForMaskedDiffusion, LoMDMPipeline
from hf_lomdm.evaluation import nelbo
from hf_lomdm.hub import export_to_hub_folder
from hf_lomdm.training.arguments import ModelArguments
from hf_lomdm.training.models import causal_config, check_tokenizer, copy_trunk, diffusion_config
from hf_lomdm.training.parsing import parse_arguments
from tiny_tokenizer import build_tokenizer
from training.tiny_training import build_causal, make_texts, make_trainer

ROOT = Path(__file__).parents[2]
IDS = {
    "vocab_size": 11,
    "mask_token_id": 10,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture
def mdlm(make_model, tmp_path) -> Path:
    """The folder of an MDLM that is random, so that its token laws differ between positions."""
    model = make_model(
        rate_type="uniform", layer_norm_eps=1e-4, rope_theta=500.0, intermediate_size=40
    )
    return export_to_hub_folder(model, tmp_path / "mdlm", build_tokenizer())


def start_lomdm(folder: Path, **settings) -> LoMDMForMaskedDiffusion:
    arguments = ModelArguments(init_from=str(folder), **settings)
    torch.manual_seed(3)
    model = LoMDMForMaskedDiffusion(diffusion_config(arguments, 12, IDS)).eval()
    copy_trunk(model, arguments.init_from)
    return model


def as_rows() -> torch.Tensor:
    return torch.stack([text["input_ids"] for text in make_texts(count=4)])


def test_all_sizes_are_the_folders_and_the_process_is_the_runs(mdlm, capsys):
    arguments = ModelArguments(init_from=str(mdlm), hidden_size=64, dropout=0.3, c1=0.8, c2=0.1)
    config = diffusion_config(arguments, 12, IDS)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 2, 2)
    assert (config.intermediate_size, config.layer_norm_eps, config.rope_theta) == (40, 1e-4, 500.0)
    assert (config.rate_type, config.dropout, config.c1, config.c2) == ("learned", 0.3, 0.8, 0.1)
    assert config.max_position_embeddings == 32
    output = capsys.readouterr().out
    assert (
        "hidden_size 16" in output
        and "num_hidden_layers 2" in output
        and "tie_word_embeddings" not in output
    )


@pytest.mark.parametrize("objective", ["diffusion", "ar"])
def test_attention_of_the_run_is_the_models_and_is_not_saved_with_it(objective, tmp_path):
    arguments = ModelArguments(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, attn_implementation="eager"
    )
    make, model_class = {
        "diffusion": (diffusion_config, LoMDMForMaskedDiffusion),
        "ar": (causal_config, GPTNeoXForCausalLM),
    }[objective]
    model = model_class(make(arguments, 12, IDS))
    assert model.config._attn_implementation == "eager"
    model.save_pretrained(tmp_path)
    assert model_class.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
    arguments.attn_implementation = None
    assert model_class(make(arguments, 12, IDS)).config._attn_implementation == "sdpa"


def test_trunk_and_lm_head_are_copied_and_the_order_heads_are_fresh(mdlm, capsys):
    model, source = start_lomdm(mdlm), LoMDMPipeline.from_pretrained(mdlm).model
    torch.manual_seed(3)  # what a model of these sizes starts with
    fresh = LoMDMForMaskedDiffusion(model.config).state_dict()
    for name, value in model.state_dict().items():
        expected = fresh if name.startswith(("phi.", "psi.")) else source.state_dict()
        assert torch.equal(value, expected[name]), name
    assert "fresh: phi, psi" in capsys.readouterr().out


def test_heads_of_a_trained_lomdm_are_not_copied(make_model, tmp_path):
    make_model().save_pretrained(tmp_path / "lomdm")  # its heads have non-zero last layers
    model = start_lomdm(tmp_path / "lomdm")
    assert not model.phi.out.weight.any() and not model.psi.out.weight.any()
    assert torch.equal(model.lm_head.weight, make_model().lm_head.weight)


@pytest.mark.parametrize(
    "rate_type, bound, c1",
    [("learned", "order", 0.7), ("learned", "time", 1.0), ("token", "order", 0.7)],
)
def test_the_started_model_has_the_bound_of_the_mdlm(mdlm, rate_type, bound, c1):
    """Fresh heads give equal rates: orders are uniform, whatever the level c1, and at level 1 the
    times too."""
    model = start_lomdm(mdlm, rate_type=rate_type, c1=c1).double()
    source = LoMDMPipeline.from_pretrained(mdlm).model.double()
    rows = as_rows()
    bounds = [
        nelbo(
            network, rows, bound=bound, num_samples=8, generator=torch.Generator().manual_seed(0)
        ).nelbo
        for network in (source, model)
    ]
    # 1e-5 of about 50 nats: rates are computed in float32; the draws are the same
    torch.testing.assert_close(bounds[0], bounds[1], rtol=1e-5, atol=0)


def test_a_short_training_lowers_the_bound_of_the_start(mdlm, tmp_path):
    model = start_lomdm(mdlm)
    rows = as_rows()

    def bound() -> float:
        return (
            nelbo(model, rows, num_samples=12, generator=torch.Generator().manual_seed(0))
            .nelbo.sum()
            .item()
        )

    before = bound()
    trainer = make_trainer(tmp_path / "run", model=model, max_steps=25, ema_decay=0.0)
    trainer.train(None)
    assert bound() < 0.9 * before  # measured 0.574; a start that is not trained stays at 1.0


@pytest.mark.parametrize(
    "settings, ids, max_length, message",
    [
        ({}, {"vocab_size": 12}, 12, r"does not fit init_from=.*'vocab_size': \(11, 12\)"),
        ({}, {"mask_token_id": 9}, 12, r"'mask_token_id': \(10, 9\)"),
        ({}, {"pad_token_id": 3}, 12, r"'pad_token_id': \(0, 3\)"),
        ({}, {}, 64, "max_length=64 is more than the 32 positions .* --max_position_embeddings 64"),
        ({"block_size": 1}, {}, 12, "block_size=1 leaves nothing to order"),
        ({"init_from": "nowhere/at/all"}, {}, 12, "init_from='nowhere/at/all' has no config.json"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_it(mdlm, settings, ids, max_length, message):
    arguments = ModelArguments(**{"init_from": str(mdlm), **settings})
    with pytest.raises(ValueError, match=message):
        diffusion_config(arguments, max_length, {**IDS, **ids})


def test_rows_may_go_without_bos_and_longer_texts_if_asked_for(mdlm):
    arguments = ModelArguments(init_from=str(mdlm), max_position_embeddings=64)
    config = diffusion_config(arguments, 64, {**IDS, "bos_token_id": None})
    assert config.bos_token_id is None and config.max_position_embeddings == 64


def test_a_tokenizer_with_other_tokens_at_the_same_ids_is_an_error(mdlm, make_model, tmp_path):
    other = build_tokenizer()
    check_tokenizer(other, str(mdlm))
    other.add_tokens(["h"])
    with pytest.raises(
        ValueError, match="not that of init_from=.*1 entries differ, the first is .'h', 11"
    ):
        check_tokenizer(other, str(mdlm))
    make_model().save_pretrained(tmp_path / "bare")
    check_tokenizer(other, str(tmp_path / "bare"))  # it has none to compare with
    (tmp_path / "bare" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="the tokenizer of init_from=.*bare' cannot be read: "):
        check_tokenizer(other, str(tmp_path / "bare"))


def test_an_autoregressive_model_starts_from_its_own_kind_alone(mdlm, tmp_path):
    source = build_causal()
    source.save_pretrained(tmp_path / "ar")
    arguments = ModelArguments(objective="ar", init_from=str(tmp_path / "ar"), dropout=0.2)
    config = causal_config(arguments, 12, IDS)
    assert (config.hidden_size, config.num_hidden_layers, config.hidden_dropout) == (16, 2, 0.2)
    model = AutoModelForCausalLM.from_config(config)
    copy_trunk(model, arguments.init_from)
    assert all(
        torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items()
    )
    with pytest.raises(ValueError, match="is a 'lomdm' model, this objective trains 'gpt_neox'"):
        causal_config(ModelArguments(objective="ar", init_from=str(mdlm)), 12, IDS)
    with pytest.raises(
        ValueError,
        match="is a 'gpt_neox' model, this objective trains 'lomdm'.*--objective diffusion",
    ):
        diffusion_config(arguments, 12, IDS)


def test_the_folders_tokenizer_is_the_default_and_a_named_one_wins(tmp_path):
    words = [
        "--output_dir",
        str(tmp_path),
        "--use_cpu",
        "--train_file",
        "text.txt",
        "--init_from",
        "folder",
    ]
    assert parse_arguments(words)[0].tokenizer == "folder"
    assert parse_arguments([*words, "--tokenizer", "gpt2"])[0].tokenizer == "gpt2"
    assert parse_arguments([*words, "--train_tokenizer", "char"])[0].tokenizer is None
    assert parse_arguments(words[:-2])[0].tokenizer is None


def test_the_script_starts_from_a_folder_and_a_second_start_resumes(
    mdlm, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "text.txt").write_text("abcdefg" * 40 + "\n" + "gfedcba" * 40)

    def train(max_steps: int) -> str:
        settings = {
            "train_file": tmp_path / "text.txt",
            "sample_by": "line",
            "output_dir": tmp_path / "run",
        }
        settings |= {
            "init_from": mdlm,
            "max_length": 16,
            "max_steps": max_steps,
            "per_device_train_batch_size": 4,
        }
        settings |= {
            "save_steps": 1,
            "logging_steps": 1,
            "learning_rate": 1e-12,
            "head_learning_rate": 1e-12,
        }
        settings |= {"use_cpu": "true", "disable_tqdm": "true", "report_to": "none", "dropout": 0.0}
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        script = ROOT / "training_scripts" / "train.py"
        monkeypatch.setattr(sys, "argv", [str(script), *words])
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    assert "trunk and LM head copied; fresh: phi, psi" in train(1)
    run, source = (
        load_file(tmp_path / "run" / "model.safetensors"),
        load_file(mdlm / "model.safetensors"),
    )
    # 1e-9: one step at a learning rate of 1e-12; fresh weights would differ by about 0.1
    assert all(
        torch.allclose(run[name], value, rtol=0, atol=1e-9) for name, value in source.items()
    )
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "run").get_vocab() == build_tokenizer().get_vocab()
    )
    # a start that would be seen if it were read again
    moved = {name: value + 1 for name, value in source.items()}
    (mdlm / "model.safetensors").unlink()
    save_file(moved, mdlm / "model.safetensors", metadata={"format": "pt"})
    assert "copied" not in train(2)
    assert (tmp_path / "run" / "checkpoint-2").is_dir()
    reloaded = load_file(tmp_path / "run" / "model.safetensors")
    assert all(
        torch.allclose(reloaded[name], value, rtol=0, atol=1e-9) for name, value in source.items()
    )
