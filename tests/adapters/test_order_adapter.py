"""Order heads on a frozen base: the contract of LoMDM models, the base as it was, and what the
order is worth."""

import hashlib
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DynamicCache,
    ElectraConfig,
    ElectraForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

import oracles
from conftest import build_model
from hf_lomdm import LoMDMForMaskedDiffusion, LoMDMPipeline, LoMDMScheduler
from hf_lomdm.adapters import OrderAdapter, order_adapter
from hf_lomdm.adapters.frozen_base import is_base
from hf_lomdm.data.arguments import DataArguments
from hf_lomdm.data.splits import load_data
from hf_lomdm.evaluation import exact_log_likelihood, nelbo
from hf_lomdm.evaluation.corpus import evaluate_corpus
from hf_lomdm.training.arguments import LoMDMTrainingArguments
from hf_lomdm.training.trainer import LoMDMTrainer
from tiny_tokenizer import build_tokenizer

SCRIPT = Path(__file__).parents[2] / "training_scripts" / "train_order_adapter.py"

# Ids: pad 0, cls 1, sep 2, ordinary 3 to 5, unknown 6, mask 7
SPECIAL = {
    "mask_token_id": 7,
    "pad_token_id": 0,
    "prefix_token_id": 1,
    "suffix_token_id": 2,
    "suppressed_token_ids": [0, 1, 2, 6],
}
SIZES = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
FEED = {"intermediate_size": 32, "max_position_embeddings": 24, "initializer_range": 0.3}


def bert(**overrides):
    return BertForMaskedLM(BertConfig(**{**SIZES, **FEED, **overrides}))


def modernbert():
    ends = {
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    }
    sizes = {**SIZES, **FEED, "intermediate_size": 16}
    return ModernBertForMaskedLM(
        ModernBertConfig(**sizes, **ends, local_attention=4, initializer_cutoff_factor=3.0)
    )


def roberta():
    return RobertaForMaskedLM(
        RobertaConfig(**SIZES, **FEED, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    )


def distilbert():
    return DistilBertForMaskedLM(
        DistilBertConfig(
            vocab_size=8, dim=16, hidden_dim=32, n_layers=2, n_heads=2, max_position_embeddings=24
        )
    )


def electra():
    return ElectraForMaskedLM(ElectraConfig(**SIZES, **FEED, embedding_size=8))


def uniform():
    ids = {
        "vocab_size": 8,
        "mask_token_id": 7,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return build_model(rate_type="uniform", **ids)


BASES = {
    "bert": bert,
    "modernbert": modernbert,
    "roberta": roberta,
    "distilbert": distilbert,
    "electra": electra,
    "lomdm": uniform,
}


def make_base(kind: str = "bert"):
    torch.manual_seed(0)
    return BASES[kind]().eval()


def attach(base, **settings) -> OrderAdapter:
    """Heads with non-zero last layers, so that rates vary, on a base that is loaded."""
    special = {} if base.config.model_type == "lomdm" else SPECIAL
    adapter = OrderAdapter.attach(base, **{**special, **settings})
    torch.manual_seed(1)
    for head in (adapter.phi, adapter.psi):
        torch.nn.init.normal_(head.out.weight, std=1.0)
    return adapter


@pytest.fixture(params=BASES)
def kind(request):
    return request.param


@pytest.fixture
def adapter(kind):
    return attach(make_base(kind))


TEXTS = torch.tensor([[3, 4, 5, 3, 4], [5, 5, 3, 4, 3]])
NOISY = torch.tensor([[3, 7, 5, 7, 7], [7, 5, 3, 4, 7]])


def same(actual, expected):
    # float32, passes of different shapes
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_token_law_is_that_of_the_base_around_cls_and_sep_without_its_special_tokens(
    kind, adapter
):
    base = make_base(kind)
    framed = NOISY
    if kind != "lomdm":
        framed = torch.cat((torch.full((2, 1), 1), NOISY, torch.full((2, 1), 2)), dim=1)
    expected = base(input_ids=framed).logits
    expected = expected if kind == "lomdm" else expected[:, 1:-1]
    never = [7, *adapter.config.suppressed_token_ids]
    allowed = [token for token in range(8) if token not in never]
    logits = adapter(input_ids=NOISY).logits
    same(logits[..., allowed], expected[..., allowed])
    assert (logits[..., never] == -torch.inf).all()
    assert expected[..., allowed].std() > 0.05  # the test could tell


def test_left_padded_right_padded_and_alone_are_the_same(adapter):
    alone = adapter(input_ids=NOISY[:1, :3])
    for side in ("left", "right"):
        padding = torch.zeros(1, 2, dtype=torch.long)
        parts = [padding, NOISY[:1, :3]] if side == "left" else [NOISY[:1, :3], padding]
        row = torch.cat(parts, dim=1)
        mask = torch.cat([torch.full_like(part, int(part is not padding)) for part in parts], dim=1)
        both = torch.cat([row, NOISY[1:]]), torch.cat([mask, torch.ones(1, 5, dtype=torch.long)])
        out, real = adapter(input_ids=both[0], attention_mask=both[1]), mask[0].bool()
        same(out.logits[:1, real], alone.logits)
        same(out.rates[:1, real], alone.rates)
        same(out.logits[1], adapter(input_ids=NOISY[1:]).logits[0])


def test_a_fresh_adapter_has_equal_rates_and_a_trained_one_has_not(kind):
    fresh = OrderAdapter.attach(make_base(kind), **({} if kind == "lomdm" else SPECIAL))
    same(fresh(input_ids=NOISY).rates, torch.full((2, 5), 0.7))
    assert attach(make_base(kind))(input_ids=NOISY).rates.std() > 0.02


@pytest.mark.parametrize("kind", ["bert", "lomdm"])
def test_bounds_agree_with_enumeration_and_are_ordered(kind):
    model = attach(make_base(kind)).double()
    text = TEXTS[0, :4]
    table = oracles.tables(model, text)
    exact = -oracles.log_likelihood(table)
    same(-exact_log_likelihood(model, text[None])[0], exact.detach())
    values = {"order": sum(oracles.order_bound(table)), "time": sum(oracles.time_bound(table))}
    assert exact < values["order"] < values["time"]
    for bound, value in values.items():
        generator = torch.Generator().manual_seed(0)
        estimate = nelbo(
            model, text.repeat(256, 1), bound=bound, num_samples=8, generator=generator
        ).nelbo
        assert oracles.z_score(estimate, value.detach()).abs() < 4


def test_the_loss_trains_the_heads_by_the_exact_gradient_and_nothing_else():
    model = attach(make_base()).double().train()
    text = TEXTS[0, :3]
    table = oracles.tables(model, text)
    generator = torch.Generator().manual_seed(0)
    parts = {"phi": (model.phi.out.weight, "forward"), "psi": (model.psi.out.weight, "reverse")}
    samples = {name: [] for name in parts}
    for _ in range(40):  # each the mean over 64 texts: near normal
        batch = text.repeat(64, 1)
        model.zero_grad()
        model(input_ids=batch, labels=batch, bound="order", generator=generator).loss.backward()
        for name, (weight, _) in parts.items():
            samples[name].append(weight.grad[0] * len(text))
        assert all(weight.grad is None for weight in model.model.parameters())
    for name, (weight, visible) in parts.items():
        exact = sum(oracles.order_bound(oracles.keep_gradient(table, visible)))
        (gradient,) = torch.autograd.grad(exact, weight, retain_graph=True)
        assert gradient.abs().max() > 0.003, name  # the test could tell
        # 16 dependent components: 4 standard errors, with the tails of Student's t at 39
        # degrees of freedom
        assert oracles.z_score(torch.stack(samples[name]), gradient[0]).abs().max() < 4.5, name


def test_the_base_has_no_dropout_and_no_gradient_in_training_mode():
    adapter = attach(bert(hidden_dropout_prob=0.5)).train()
    assert adapter.phi.training and not any(module.training for module in adapter.model.modules())
    same(adapter(input_ids=NOISY).logits, adapter(input_ids=NOISY).logits)
    assert {
        name.split(".")[0] for name, weight in adapter.named_parameters() if weight.requires_grad
    } == {"phi", "psi"}


def test_a_saved_adapter_holds_the_heads_alone_and_comes_back_with_its_base(tmp_path, kind):
    make_base(kind).save_pretrained(tmp_path / "base")
    special = {} if kind == "lomdm" else SPECIAL
    adapter = OrderAdapter.from_pretrained(tmp_path / "base", c2=0.5, bound="time", **special)
    torch.nn.init.normal_(adapter.psi.out.weight)
    adapter.save_pretrained(tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "model.safetensors")
    assert {name.split(".")[0] for name in stored} == {"phi", "psi"}
    reloaded = OrderAdapter.from_pretrained(tmp_path / "adapter")
    assert (reloaded.config.c2, reloaded.config.bound) == (0.5, "time")
    for first, second in zip(
        reloaded(input_ids=NOISY).to_tuple(), adapter(input_ids=NOISY).to_tuple(), strict=True
    ):
        assert torch.equal(first, second)
    reloaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (
        tmp_path / "adapter" / "config.json"
    ).read_text()


PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("trained", PRECISIONS)
def test_an_adapter_knows_its_base_in_every_precision(tmp_path, kind, trained):
    make_base(kind).save_pretrained(tmp_path / "base")
    special = {} if kind == "lomdm" else SPECIAL
    OrderAdapter.from_pretrained(tmp_path / "base", dtype=trained, **special).save_pretrained(
        tmp_path / "adapter"
    )
    for dtype in PRECISIONS:
        loaded = OrderAdapter.from_pretrained(tmp_path / "adapter", dtype=dtype)
        assert loaded.model.dtype == dtype and loaded(input_ids=NOISY).rates.dtype == torch.float32
        OrderAdapter.from_pretrained(tmp_path / "adapter", base=make_base(kind).to(dtype))
    changed = make_base(kind).to(trained)
    next(changed.parameters()).data[3] += 0.01
    refused(
        "does not have the weights",
        OrderAdapter.from_pretrained,
        tmp_path / "adapter",
        base=changed,
    )


def test_a_folder_of_the_version_before_with_a_hash_of_bfloat16_loads(tmp_path):
    adapter = attach(make_base())
    adapter.config.base_fingerprint, adapter.config.base_fingerprint_float16 = (
        "1ee5cbe0d6a5b8f1",
        None,
    )
    adapter.save_pretrained(tmp_path)
    refused("does not have the weights", OrderAdapter.from_pretrained, tmp_path, base=make_base())
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(make_base().named_parameters()):
        digest.update(f"{name} {list(weight.shape)}".encode())
        digest.update(weight.detach().reshape(-1).to(torch.bfloat16).view(torch.int16).numpy())
    adapter.config.base_fingerprint = digest.hexdigest()
    adapter.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        OrderAdapter.from_pretrained(tmp_path, base=make_base().to(dtype))
    make_base().save_pretrained(tmp_path / "base")
    for dtype in (*PRECISIONS, "float16", "auto"):  # the base is known by its stored weights
        OrderAdapter.from_pretrained(tmp_path, base=tmp_path / "base", dtype=dtype)


def test_loading_takes_what_loading_by_transformers_takes(tmp_path):
    make_base().save_pretrained(tmp_path / "base")
    fresh, info = OrderAdapter.from_pretrained(
        tmp_path / "base", output_loading_info=True, **SPECIAL
    )
    assert info["missing_keys"] == set(fresh.state_dict()) and not info["unexpected_keys"]
    fresh.config.gradient_checkpointing = True
    fresh.save_pretrained(tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    for auto in (OrderAdapter, AutoModel):
        options = {"attn_implementation": "eager", "output_loading_info": True}
        adapter, info = auto.from_pretrained(
            pretrained_model_name_or_path=tmp_path / "adapter", **options
        )
        assert not any(info.values())
        assert (
            adapter.config._attn_implementation
            == adapter.model.config._attn_implementation
            == "eager"
        )
        assert adapter.phi.layer.gradient_checkpointing and adapter.psi.layer.gradient_checkpointing
        adapter.train()(input_ids=TEXTS, labels=TEXTS).loss.backward()
        assert adapter.phi.out.weight.grad is not None


def test_the_settings_of_its_outputs_change_nothing_but_those(kind, adapter):
    expected = adapter(input_ids=NOISY)
    for config in (adapter.config, adapter.model.config):
        config.return_dict, config.output_hidden_states = False, True
    actual = adapter(input_ids=NOISY, return_dict=True)
    assert torch.equal(actual.logits, expected.logits) and torch.equal(actual.rates, expected.rates)
    assert all(states.shape == expected.last_hidden_state.shape for states in actual.hidden_states)
    torch.testing.assert_close(actual.hidden_states[-1], actual.last_hidden_state)
    assert isinstance(adapter(input_ids=NOISY), tuple)
    with pytest.raises(ValueError, match="inputs_embeds is not read by an order adapter"):
        adapter(inputs_embeds=torch.zeros(1, 3, 16), output_hidden_states=False)


def test_a_half_precision_base_carries_float32_heads(tmp_path):
    make_base().save_pretrained(tmp_path / "base")
    adapter = OrderAdapter.from_pretrained(tmp_path / "base", **SPECIAL)
    torch.nn.init.normal_(adapter.psi.out.weight)
    adapter.save_pretrained(tmp_path / "adapter")
    half = OrderAdapter.from_pretrained(tmp_path / "adapter", dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16 and half.psi.out.weight.dtype == torch.float32
    out = half(input_ids=NOISY)
    assert out.logits.dtype == torch.bfloat16 and out.rates.dtype == torch.float32
    # features in 8 bits
    torch.testing.assert_close(out.rates, adapter(input_ids=NOISY).rates, rtol=0, atol=0.1)


def test_the_tokenizer_of_the_base_tells_the_special_tokens(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    make_base().save_pretrained(tmp_path)
    config = OrderAdapter.from_pretrained(tmp_path).config
    ids = (
        config.mask_token_id,
        config.pad_token_id,
        config.prefix_token_id,
        config.suffix_token_id,
    )
    # unknown stays possible
    assert ids == (4, 0, 2, 3) and config.suppressed_token_ids == [0, 2, 3]
    assert config.max_position_embeddings == 22 and config.bos_token_id is None


def test_the_positions_that_roberta_leaves_unused_are_not_counted():
    adapter = attach(make_base("roberta"))
    assert adapter.config.max_position_embeddings == 21  # 24 without position 0, <s> and </s>
    longest = torch.full((1, 21), 7)
    assert adapter(input_ids=longest).rates.shape == (1, 21)
    with pytest.raises((IndexError, RuntimeError)):  # one more is one too many for the base itself
        make_base("roberta")(input_ids=torch.full((1, 24), 7))


@pytest.mark.parametrize("kind", ["bert", "lomdm"])
@pytest.mark.parametrize("sampler", ["sequential", "ancestral", "confidence"])
def test_the_pipeline_continues_fills_and_writes_with_an_adapter(kind, sampler):
    adapter = attach(make_base(kind))
    pipe = LoMDMPipeline(adapter, LoMDMScheduler(mask_token_id=7, sampler=sampler))
    pipe.set_progress_bar_config(disable=True)
    out = pipe([[3, 4], [5, 7, 7, 3]], 4, max_length=8, generator=torch.Generator().manual_seed(0))
    never = [7, *adapter.config.suppressed_token_ids]
    written = out.sequences[out.order >= 0]
    assert len(written) and not torch.isin(written, torch.tensor(never)).any()
    assert out.sequences[0, :2].tolist() == [3, 4] and out.sequences[1, [0, 3]].tolist() == [5, 3]


@pytest.mark.parametrize("kind", ["bert", "lomdm"])
def test_the_exact_sampler_writes_by_the_enumerated_law(kind):
    adapter = attach(make_base(kind))
    law = oracles.sequential_law(oracles.state_tables(adapter, 2))
    pipe = LoMDMPipeline(adapter, LoMDMScheduler(mask_token_id=7))
    pipe.set_progress_bar_config(disable=True)
    count = 2000
    drawn = pipe(
        [[7, 7]], 2, num_return_sequences=count, generator=torch.Generator().manual_seed(0)
    ).sequences
    texts = list(law)
    index = {text: i for i, text in enumerate(texts)}
    counts = torch.bincount(
        torch.tensor([index[tuple(row)] for row in drawn.tolist()]), minlength=len(texts)
    )
    probabilities = torch.tensor([law[text] for text in texts], dtype=torch.float64)
    assert oracles.chi_square_z(counts.double(), probabilities) < 4


def test_a_pipeline_saved_with_an_adapter_comes_back_with_it(tmp_path):
    make_base().save_pretrained(tmp_path / "base")
    adapter = OrderAdapter.from_pretrained(tmp_path / "base", **SPECIAL)
    LoMDMPipeline(adapter, LoMDMScheduler(mask_token_id=7, temperature=0.7)).save_pretrained(
        tmp_path / "pipe"
    )
    pipe = LoMDMPipeline.from_pretrained(tmp_path / "pipe")
    assert pipe.scheduler.config.temperature == 0.7 and isinstance(pipe.model, OrderAdapter)
    same(pipe.model(input_ids=NOISY).logits, adapter(input_ids=NOISY).logits)


# ----------------------------------------------------------------------------------------- refusals


def refused(match, call, *args, **kwargs):
    with pytest.raises(ValueError, match=match):
        call(*args, **kwargs)


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


# ----------------------------------------------------------------------------------------- training


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
