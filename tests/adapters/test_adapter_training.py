"""Order heads are trained, and measured, on a frozen base, which stays as it is."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_adapter_refusals import save_adapter
from test_order_adapter import SPECIAL, attach, bert, make_base
from transformers import AutoModel

from conftest import build_model
from hf_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.adapters import OrderAdapter
from hf_lomdm.data.arguments import DataArguments
from hf_lomdm.data.splits import load_data
from hf_lomdm.evaluation.corpus import evaluate_corpus
from hf_lomdm.training.arguments import LoMDMTrainingArguments
from hf_lomdm.training.trainer import LoMDMTrainer
from tiny_tokenizer import build_tokenizer

SCRIPT = Path(__file__).parents[2] / "training_scripts" / "train_order_adapter.py"


def make_rows(count: int, seed: int, length: int = 8) -> list[dict]:
    """Texts whose second half follows from the first, but not the other way round.

    The first half is random; each position of the second half is the larger of two neighbours in
    the first.
    """
    half = length // 2
    first = torch.randint(0, 3, (count, half), generator=torch.Generator().manual_seed(seed))
    second = torch.maximum(first, first.roll(1, dims=1))
    return [{"input_ids": row} for row in torch.cat((first, second), dim=1) + 3]


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    texts = torch.stack([row["input_ids"] for row in rows])
    return {"input_ids": texts, "labels": texts}


def make_trainer(folder, adapter, steps: int, **settings) -> LoMDMTrainer:
    quiet = {
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 50,
    }
    rates = {"head_learning_rate": 3e-3, "ema_decay": 0.9, "per_device_train_batch_size": 32}
    return LoMDMTrainer(
        model=adapter,
        args=LoMDMTrainingArguments(
            str(folder), **{**quiet, **rates, "max_steps": steps, **settings}
        ),
        train_dataset=make_rows(512, seed=1),
        eval_dataset=make_rows(16, seed=2),
        data_collator=collate,
    )


def weights_of(module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def test_training_changes_the_heads_and_resumes_bit_by_bit_and_leaves_the_base(tmp_path):
    def run(folder, steps):
        adapter = attach(make_base())
        before = weights_of(adapter.model)
        trainer = make_trainer(
            folder,
            adapter,
            steps,
            save_strategy="steps",
            save_steps=2,
            lr_scheduler_type="constant",
        )
        trainer.train("auto")
        after = weights_of(adapter.model)
        assert all(torch.equal(before[name], after[name]) for name in before)
        return trainer, adapter

    _, whole = run(tmp_path / "whole", 4)
    start = attach(make_base())
    run(tmp_path / "parts", 2)
    trainer, resumed = run(tmp_path / "parts", 4)
    assert trainer.num_steps_trained == 2
    for head in ("phi", "psi"):
        first, second, fresh = (
            weights_of(getattr(model, head)) for model in (whole, resumed, start)
        )
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert not torch.equal(first["out.weight"], fresh["out.weight"])


def test_the_folder_of_a_trained_adapter_loads_as_an_adapter_without_base_weights(
    tmp_path, monkeypatch
):
    make_base().save_pretrained(tmp_path / "base")
    adapter = OrderAdapter.from_pretrained(tmp_path / "base", **SPECIAL)
    trainer = make_trainer(tmp_path / "run", adapter, 2)
    trainer.train()
    trainer.save_model()
    stored = load_file(tmp_path / "run" / "model.safetensors")
    assert {name.split(".")[0] for name in stored} == {"phi", "psi"}
    reloaded = OrderAdapter.from_pretrained(tmp_path / "run")
    averaged = trainer.ema.average["psi.out.weight"]
    assert torch.equal(reloaded.psi.out.weight, averaged)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(
        r"```python\n(.*?)```", (tmp_path / "run" / "README.md").read_text(), flags=re.DOTALL
    )
    names: dict = {}
    exec(code, names)  # the card's
    assert isinstance(names["pipe"].model, OrderAdapter) and not (names["out"].sequences == 7).any()


def test_auto_model_loads_a_saved_adapter_of_this_package(tmp_path):
    model = AutoModel.from_pretrained(save_adapter(tmp_path))
    assert isinstance(model, OrderAdapter) and isinstance(model, LoMDMForMaskedDiffusion)


@pytest.mark.parametrize("kind", ["lomdm", "bert"])
def test_the_script_measures_what_the_order_is_worth_on_the_draws_of_the_base(
    tmp_path, monkeypatch, capsys, kind
):
    base = (
        bert(vocab_size=11)
        if kind == "bert"
        else build_model(rate_type="uniform", max_position_embeddings=8)
    )
    base.save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "text.txt").write_text("abcdefgab\n\ncagdeb\n\nabcabcabcdefggg\n\n" * 8)
    files = {
        "train_file": str(tmp_path / "text.txt"),
        "validation_file": str(tmp_path / "text.txt"),
        "max_length": 8,
    }
    steps = {"max_steps": 3, "head_learning_rate": 0.1, "eval_num_samples": 2, "ema_decay": 0.0}
    quiet = {
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "output_dir": str(tmp_path / "out"),
    }
    words = {"base": tmp_path / "base", **files, **steps, **quiet}
    monkeypatch.setattr(
        sys, "argv", [str(SCRIPT), *(str(word) for pair in words.items() for word in pair)]
    )
    sys.argv[1::2] = [f"--{name}" for name in words]
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "minus the first" in capsys.readouterr().out
    records = [
        json.loads((tmp_path / "out" / f"{name}_order.json").read_text())
        for name in ("random", "learned")
    ]
    random, learned = records
    assert (
        random["rows"] == learned["rows"]
        and random["value"] != learned["value"]
        and learned["velocity"] > 1e-6
    )
    assert OrderAdapter.from_pretrained(tmp_path / "out").psi.out.weight.abs().sum() > 0
    words = [
        "likelihood",
        "--model",
        str(tmp_path / "out"),
        "--file",
        str(tmp_path / "text.txt"),
        "--max_rows",
        "4",
    ]
    monkeypatch.setattr(
        sys, "argv", ["evaluate.py", *words, "--output", str(tmp_path / "own.json"), "--quiet"]
    )
    runpy.run_path(str(SCRIPT.with_name("evaluate.py")), run_name="__main__")
    assert json.loads((tmp_path / "own.json").read_text())["velocity"] > 1e-6
    if kind == "lomdm":  # with all rates equal an adapter is its base
        rows, _ = load_data(DataArguments(**files, tokenizer=str(tmp_path / "base")), tmp_path)
        own = evaluate_corpus(
            LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "base"), rows["validation"]
        )
        assert (
            random["value"] == pytest.approx(own["value"], rel=1e-6)
            and random["rows"] == own["rows"]
        )


@pytest.mark.parametrize(
    ("words", "wrong"), [("--c1 -1", "c1"), ("--max_length 0", "max_length"), ("--x 1", "--x")]
)
def test_the_script_says_in_one_line_what_it_cannot_use(tmp_path, monkeypatch, words, wrong):
    build_model(rate_type="uniform").save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "text.txt").write_text("abc\n\n" * 20)
    given = ["--base", tmp_path / "base", "--train_file", tmp_path / "text.txt"]
    given += ["--output_dir", tmp_path / "out", "--use_cpu", "True"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, given), *words.split()])
    with pytest.raises(SystemExit, match=f"^error: .*{wrong}") as error:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "\n" not in error.value.code
