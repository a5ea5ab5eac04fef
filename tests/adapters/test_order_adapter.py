"""Order heads on a frozen base: the contract of LoMDM models, the base as it was, and what the
order is worth."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

import oracles
from conftest import build_model
from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.adapters import OrderAdapter
from hf_lomdm.evaluation import exact_log_likelihood, nelbo

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


def refused(match, call, *args, **kwargs):
    with pytest.raises(ValueError, match=match):
        call(*args, **kwargs)


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
