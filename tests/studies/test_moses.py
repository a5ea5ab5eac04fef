"""The scripts of studies/moses: templates of scaffolds, and their tables."""

import json
import random
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from conftest import build_model
from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.evaluation.token_classes import SmilesClasses
from tiny_tokenizer import build_tokenizer

ROOT = Path(__file__).parents[2] / "studies" / "moses"


def test_dummies_take_the_places_of_hydrogens_and_leave_the_scaffold():
    pytest.importorskip("rdkit")
    from hf_lomdm.evaluation.molecule_descriptors import canonical, parse

    decorate = runpy.run_path(str(ROOT / "decorate.py"))
    numbers = random.Random(0)
    for scaffold in ("c1ccc2[nH]ccc2c1", "O=C(NC1CCc2ccccc2C1)c1ccncc1"):
        for _ in range(20):
            text = decorate["with_dummies"](scaffold, numbers)
            assert 1 <= text.count("*") <= 3
            decorated = parse(canonical(text.replace("*", "C")))
            assert decorated.HasSubstructMatch(parse(scaffold))


def test_the_error_of_a_ratio_is_that_of_scaffolds():
    ratio = runpy.run_path(str(ROOT / "decorate.py"))["ratio"]
    top, bottom = np.array([1.0, 3.0, 2.0]), np.array([4.0, 4.0, 4.0])
    found = ratio(top, bottom)
    assert found["value"] == 0.5
    assert found["standard_error"] == pytest.approx((top / 4).std(ddof=1) / np.sqrt(3))


def test_a_figure_without_an_error_is_shown():
    show = runpy.run_path(str(ROOT / "passes.py"))["show"]
    assert [show(0.5, 0.01), show(0.5, None), show(None, None)] == ["0.500 +- 0.010", "0.500", "-"]


def test_randomised_smiles_are_the_same_molecule_written_otherwise(tmp_path, monkeypatch, capsys):
    pytest.importorskip("rdkit")
    from hf_lomdm.evaluation.molecule_descriptors import canonical

    (tmp_path / "in.txt").write_text("CC(=O)Nc1ccc(O)cc1\nC[C@H](N)C(=O)O\n")
    paths = [str(tmp_path / name) for name in ("in.txt", "out.txt", "again.txt")]
    for output in paths[1:]:
        words = ["randomise.py", paths[0], output, "--copies", "8", "--seed", "3"]
        monkeypatch.setattr("sys.argv", words)
        runpy.run_path(str(ROOT / "randomise.py"), run_name="__main__")
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert lines == (tmp_path / "again.txt").read_text().splitlines()
    assert {canonical(line) for line in lines[:8]} == {canonical("CC(=O)Nc1ccc(O)cc1")}
    assert {canonical(line) for line in lines[8:]} == {canonical("C[C@H](N)C(=O)O")}
    assert len(set(lines[:8])) > 4
    assert f"max_length {max(map(len, lines)) + 1}" in capsys.readouterr().out


def test_a_line_that_is_no_molecule_is_named_and_nothing_is_written(tmp_path, monkeypatch):
    pytest.importorskip("rdkit")
    (tmp_path / "in.txt").write_text("CC\nC(C\n")
    words = ["randomise.py", str(tmp_path / "in.txt"), str(tmp_path / "out.txt")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match=r"'C\(C' is no molecule"):
        runpy.run_path(str(ROOT / "randomise.py"), run_name="__main__")
    assert not (tmp_path / "out.txt").exists()


def test_an_autoregressive_model_writes_on_behind_a_scaffold(tmp_path):
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    write_on = runpy.run_path(str(ROOT / "decorate_causal.py"))["write_on"]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "vocab_size": 11, "max_position_embeddings": 9}
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**ids, **sizes)).eval()
    texts = write_on(model, build_tokenizer(), "ab", 20)
    assert len(texts) == 20 and all(text.startswith("ab") for text in texts)
    assert len(set(texts)) > 10


def test_an_order_by_kind_reveals_that_kind_first_and_the_rest_at_random():
    script = runpy.run_path(str(ROOT / "fixed_orders.py"))
    model = str(ROOT.parents[1] / "checkpoints" / "lomdm-moses")
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    orders = script["orders_of"](SmilesClasses(tokenizer, len(tokenizer)))
    ids = torch.tensor(tokenizer.encode("C1CCN(C)C1", add_special_tokens=False))[None]
    noise = torch.rand(1, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state = script["text_orders"].State(ids >= 0, noise, noise, noise, ids)
    at_random = noise.argsort(-1, descending=True)[0].tolist()
    for name, places in (("rings_first", {1, 9}), ("branches_first", {5, 7})):
        ranked = orders[name](state).argsort(-1, descending=True)[0].tolist()
        assert set(ranked[:2]) == places
        assert ranked[2:] == [place for place in at_random if place not in places]


def test_fixed_orders_are_measured_on_whole_rows(tmp_path, capsys):
    pipe = LoMDMPipeline(build_model(), LoMDMScheduler(mask_token_id=10), build_tokenizer())
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "three.txt").write_text("abc\nabcdefg\ngab\n")
    output = tmp_path / "record.json"
    main = runpy.run_path(str(ROOT / "fixed_orders.py"))["main"]
    main(
        ["--model", str(tmp_path / "model"), "--file", str(tmp_path / "three.txt")]
        + ["--output", str(output)]
    )
    record = json.loads(output.read_text())
    assert record["length"] == 32 and record["orders"]["random"]["value"] > 0
    assert record["orders"]["random"]["minus_first"]["value"] == 0
    assert "rings_first" in record["orders"] and "rings_first" in capsys.readouterr().out
