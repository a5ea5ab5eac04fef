"""What an order adapter refuses: bases, folders and heads that do not fit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_order_adapter import SIZES, SPECIAL, attach, bert, make_base, refused
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from conftest import build_model
from hf_lomdm import LoMDMForMaskedDiffusion, LoMDMPipeline
from hf_lomdm.adapters import OrderAdapter, order_adapter
from hf_lomdm.adapters.frozen_base import is_base
from hf_lomdm.evaluation import nelbo


def test_bases_that_do_not_fit_are_refused(tmp_path):
    refused("order of its own", attach, build_model())
    refused("bidirectional", attach, bert(is_decoder=True))
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=32))
    refused("goes to from_causal_lm", attach, llama)
    assert getattr(llama.config, "is_causal", True)
    converted = LoMDMForMaskedDiffusion.from_masked_lm(
        make_base(), rate_type="uniform", mask_token=7
    )
    refused("bert that was converted", attach, converted)
    make_base().save_pretrained(tmp_path / "bare")
    refused("no tokenizer", OrderAdapter.from_pretrained, tmp_path / "bare")
    refused("attach", OrderAdapter.from_pretrained, tmp_path / "bare", base=make_base())
    refused("neither an adapter nor", OrderAdapter.from_pretrained, str(tmp_path / "nothing"))
    gone = save_adapter(tmp_path, gone=True)
    refused("could not be loaded.*Pass base= and", OrderAdapter.from_pretrained, gone)


def test_heads_that_are_missing_are_missed_also_within_another_module():
    adapter = attach(make_base())
    whole = torch.nn.ModuleDict({"adapter": adapter, "other": torch.nn.Linear(2, 2)})
    state = whole.state_dict()
    assert {name.split(".")[1] for name in state if name.startswith("adapter")} == {"phi", "psi"}
    whole.load_state_dict(state)
    with pytest.raises(RuntimeError, match="adapter.psi.out.weight"):
        whole.load_state_dict({})
    with pytest.raises(RuntimeError, match="phi.out.weight"):
        adapter.load_state_dict({})


def save_adapter(folder, gone: bool = False):
    base = make_base()
    base.save_pretrained(folder / "base")
    OrderAdapter.from_pretrained(folder / "base", **SPECIAL).save_pretrained(folder / "adapter")
    if gone:
        (folder / "base").rename(folder / "moved")
    return folder / "adapter"


def test_a_base_that_moved_or_changed_is_found_or_refused(tmp_path):
    folder = save_adapter(tmp_path, gone=True)
    moved = OrderAdapter.from_pretrained(folder, base=tmp_path / "moved")
    other = make_base()
    with torch.no_grad():
        other.cls.predictions.bias[3] += 0.01
    refused("not have the weights", OrderAdapter.from_pretrained, folder, base=other)
    taken = OrderAdapter.from_pretrained(folder, base=other, verify_base=False)
    assert taken.model is other.base_model and not is_base(other, moved.config)
    wider = bert(vocab_size=9)
    refused("vocab_size=9", OrderAdapter.from_pretrained, folder, base=wider, verify_base=False)


def test_heads_are_judged_before_the_base_is_loaded_and_before_memory_is_asked_for(
    tmp_path, monkeypatch
):
    folder = tmp_path / "adapter"
    OrderAdapter.attach(make_base(), mask_token_id=7).save_pretrained(folder)
    monkeypatch.setattr(
        order_adapter, "load_pretrained", lambda *_, **__: pytest.fail("the base was loaded")
    )
    content = json.loads((folder / "config.json").read_text())
    for field, value, message in (
        ("intermediate_size", 2**24, "does not fit its config.json"),
        ("num_labels", 10**9, "num_labels must be"),
        ("prefix_token_id", "4", "prefix_token_id must be"),
        ("base_name", ["x"], "base_name must be"),
    ):
        (folder / "config.json").write_text(json.dumps({**content, field: value}))
        for loader in (OrderAdapter, LoMDMPipeline):
            refused(message, loader.from_pretrained, folder)
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "model.safetensors").write_bytes(b"cut")
    refused("is cut off, or no safetensors file", OrderAdapter.from_pretrained, folder)


def test_the_base_is_fetched_at_the_commit_of_the_adapter_and_one_that_is_passed_as_it_is(
    tmp_path, monkeypatch
):
    folder, asked = save_adapter(tmp_path), []
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "base_name": "me/base", "base_revision": "v1"})
    )

    def load_base(_, name, options):
        asked.append((str(name), options["revision"]))
        return make_base()

    monkeypatch.setattr("hf_lomdm.adapters.order_adapter.load_pretrained", load_base)
    OrderAdapter.from_pretrained(folder)
    OrderAdapter.from_pretrained(folder, base="me/moved")
    assert asked == [("me/base", "v1"), ("me/moved", None)]


def test_checkpoints_of_heads_that_do_not_fit_are_refused(tmp_path):
    folder = save_adapter(tmp_path)
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "psi.out.weight": torch.zeros(1, 3)}, path)
    refused("psi.out.weight has the shape", OrderAdapter.from_pretrained, folder)
    save_file({name: weight for name, weight in weights.items() if name != "phi.out.weight"}, path)
    refused("phi.out.weight has the shape None", OrderAdapter.from_pretrained, folder)
    path.write_bytes(path.read_bytes()[:100])
    refused("is cut off, or no safetensors file", OrderAdapter.from_pretrained, folder)


def test_a_checkpoint_without_a_prediction_head_is_refused(tmp_path):
    make_base().bert.save_pretrained(tmp_path)
    refused("lacks the weights", OrderAdapter.from_pretrained, tmp_path, **SPECIAL)


def test_tokens_that_are_never_revealed_are_given_or_refused():
    adapter, texts = attach(make_base()), torch.tensor([[3, 2, 4]])
    assert adapter.labels_for(texts).tolist() == [[3, -100, 4]]
    assert nelbo(adapter, texts, labels=adapter.labels_for(texts)).nelbo.isfinite().all()
    refused("labels contain 2", nelbo, adapter, texts)
    refused("labels contain 2", adapter, input_ids=texts, labels=texts)
    refused("frozen", adapter.resize_token_embeddings, 20)
    refused("need blocks", adapter, texts, past_key_values=DynamicCache())
    refused("suffix_token_id must be in", attach, make_base(), suffix_token_id=8)
    for ids in ([8], [-1], ["1"], [True], 5.0, None):
        refused("suppressed_token_ids must be in", attach, make_base(), suppressed_token_ids=ids)
    refused("prefix_token_id must be None or an int", attach, make_base(), prefix_token_id=[1])
