"""The model as a citizen of transformers: sizes, saving, attention implementations, checkpointing,
bad input."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_texts import IDS, PADDING
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

import oracles
from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion, LoMDMModel
from hf_lomdm.modeling import backbone_lomdm
from hf_lomdm.modeling.random_lomdm import stratified_quantiles

CLEAN = IDS.clamp(max=9)


def test_default_size_is_mdlm_small_without_its_conditioning_plus_two_heads():
    with torch.device("meta"):
        model = LoMDMForMaskedDiffusion(LoMDMConfig())
    conditioning = 12 * 4608 * 129 + 1536 * 129 + 49_408
    norm_biases = 25 * 768  # MDLM has them in its modulation
    block = 4 * 768**2 + 8 * 768**2 + 3072 + 768 + 4 * 768
    head = block + 2 * 768 + 768**2 + 768 + 768
    assert model.num_parameters() == 169_627_218 - conditioning + norm_biases + 2 * head + 768


def test_at_the_start_all_rates_are_c1():
    model = LoMDMForMaskedDiffusion(
        LoMDMConfig(vocab_size=11, mask_token_id=10, hidden_size=16, num_attention_heads=2)
    )
    torch.testing.assert_close(model.forward_rates(IDS), torch.full(IDS.shape, 0.7))
    torch.testing.assert_close(model(input_ids=IDS).rates, torch.full(IDS.shape, 0.7))
    assert (model.phi.out.weight == 0).all() and (model.psi.out.weight == 0).all()


def test_token_rates_start_at_one_and_survive_loading(tmp_path):
    config = LoMDMConfig(
        vocab_size=11, mask_token_id=10, hidden_size=16, num_attention_heads=2, rate_type="token"
    )
    model = AutoModel.from_config(config)
    torch.testing.assert_close(model.forward_rates(IDS), torch.ones(IDS.shape))
    torch.testing.assert_close(model(input_ids=IDS).rates, torch.ones(IDS.shape))
    with torch.no_grad():
        model.omega.rho.copy_(torch.linspace(-2, 2, 11))
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.omega.rho, model.omega.rho)
    torch.testing.assert_close(
        loaded.forward_rates(IDS), torch.linspace(-2, 2, 11).exp().log1p()[IDS]
    )


@pytest.mark.parametrize("rate_type", ["learned", "uniform", "token", "score"])
@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize("bound", ["order", "time"])
def test_one_call_of_the_model_reaches_all_parameters(make_model, rate_type, block_size, bound):
    # data parallel and sharded training see `forward` alone and wait for every gradient
    model = make_model(rate_type=rate_type, block_size=block_size, bound=bound).train()
    ids = IDS.clamp(max=9)
    labels = ids.clone()
    labels[:, 0] = -100  # given: phi reads it
    model(input_ids=ids, labels=labels, generator=torch.Generator().manual_seed(0)).loss.backward()
    untouched = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    silent = [
        name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0
    ]
    assert not untouched and not silent


def test_initial_weights_have_the_spread_of_a_linear_layer_and_residual_branches_start_smaller():
    layer = LoMDMForMaskedDiffusion(
        LoMDMConfig(vocab_size=11, mask_token_id=10, num_hidden_layers=2)
    ).model.layers[0]
    std = torch.nn.Linear(768, 3072).weight.std().item()
    for weight, expected in (
        (layer.attention.o_proj.weight, std / 2),
        (layer.mlp.up_proj.weight, std),
    ):
        # half a million draws: 0.1 % of sampling error
        assert abs(weight.std().item() / expected - 1) < 0.02


def test_the_base_of_the_rotary_embedding_is_that_of_the_configuration(make_model):
    change = make_model(rope_theta=500.0)(IDS).logits - make_model()(IDS).logits
    assert change[..., :10].abs().max() > 1e-2


def test_every_layer_norm_has_the_epsilon_of_the_configuration(make_model):
    norms = [
        module
        for module in make_model(layer_norm_eps=0.1).modules()
        if isinstance(module, torch.nn.LayerNorm)
    ]
    assert len(norms) == 2 * 2 + 1 + 2 * 3 and {norm.eps for norm in norms} == {0.1}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"rate_type": "uniform"},
        {"tie_word_embeddings": True},
        {"rate_type": "token"},
        {"rate_type": "score", "block_size": 1},
        {"rate_type": "uniform", "block_size": 4, "bound": "time", "time_range": [0.45, 0.95]},
        {"block_size": 2},
    ],
)
def test_save_and_load_keep_every_parameter_buffer_and_output(make_model, tmp_path, overrides):
    model = oracles.vivid(make_model(**overrides)).float()
    model.save_pretrained(tmp_path)
    for auto in (AutoModel, AutoModelForMaskedLM):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is LoMDMForMaskedDiffusion
        for kind in ("named_parameters", "named_buffers"):
            mine, theirs = dict(getattr(model, kind)()), dict(getattr(loaded, kind)())
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert (
            loaded.config.rate_type == model.config.rate_type
            and loaded.config.block_size == model.config.block_size
        )
        assert loaded.config.time_range == model.config.time_range
        for name in ("logits", "rates"):
            assert torch.equal(loaded(input_ids=IDS)[name], model(input_ids=IDS)[name])
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == loaded.config.to_dict()
    backbone = LoMDMModel.from_pretrained(tmp_path)
    assert torch.equal(backbone(IDS).last_hidden_state, model(input_ids=IDS).last_hidden_state)


def test_the_mask_token_has_probability_zero_and_rates_are_positive_float32(make_model):
    for dtype in (torch.float32, torch.bfloat16):
        out = make_model().to(dtype)(input_ids=IDS, attention_mask=PADDING)
        assert (out.logits[..., 10] == -torch.inf).all() and out.logits.dtype == dtype
        assert out.rates.dtype == torch.float32 and (out.rates > 0.05).all()
        assert torch.equal(make_model().to(dtype).token_logits(out.last_hidden_state), out.logits)


# FlexAttention is compiled, which torch does for no CPU without vector instructions
COMPILES = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
FLEX = pytest.param(
    "flex_attention", marks=pytest.mark.skipif(not COMPILES, reason="torch cannot compile it here")
)


@pytest.mark.parametrize("implementation", ["sdpa", FLEX])
@pytest.mark.parametrize("padding", [None, PADDING])
def test_attention_implementations_agree_with_eager(make_model, implementation, padding):
    outputs = []
    for name in ("eager", implementation):
        model = make_model()
        model.set_attn_implementation(name)
        with torch.no_grad():
            outputs.append(model(input_ids=IDS, attention_mask=padding))
    real = PADDING.bool()
    # float32 rounding of another order of summation
    torch.testing.assert_close(
        outputs[0].logits[real], outputs[1].logits[real], atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(outputs[0].rates[real], outputs[1].rates[real], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("padding", [False, True], ids=["nothing padded", "padded"])
@pytest.mark.parametrize("block_size", [None, 2])
def test_rows_that_are_read_a_few_at_a_time_give_what_all_give_at_once(
    make_model, monkeypatch, block_size, padding
):
    model = make_model(block_size=block_size).double().eval()
    x = torch.randint(
        model.config.mask_token_id, (5, 6), generator=torch.Generator().manual_seed(1)
    )
    mask = torch.ones_like(x)
    mask[1, 4:] = mask[4, :3] = 0
    mask, views = (
        mask if padding else None,
        {} if block_size is None else {"views": torch.cat([x, x.flip(1)])},
    )
    expected, calls = model.model(x, mask, **views).last_hidden_state, []
    monkeypatch.setattr(backbone_lomdm, "CPU_POSITIONS", 2 * expected.shape[1])
    model.model.layers[0].register_forward_pre_hook(
        lambda module, inputs: calls.append(len(inputs[0]))
    )
    with torch.no_grad():
        actual = model.model(x, mask, **views).last_hidden_state
    assert calls == [2, 2, 1]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    model.model(x, mask, **views)
    assert calls[3:] == [5]  # with gradients the whole batch is one step of the graph


def loss_and_gradients(model) -> list[torch.Tensor]:
    ids = IDS.masked_fill(IDS == 10, 6)
    torch.manual_seed(0)
    loss = model(input_ids=ids, labels=ids, generator=torch.Generator().manual_seed(1)).loss
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    "overrides",
    [{}, {"block_size": 2}, {"block_size": 2, "rate_type": "token"}, {"rate_type": "score"}],
)
def test_gradient_checkpointing_gives_the_same_gradients(make_model, reentrant, overrides):
    plain, saving = (make_model(dropout=0.3, **overrides).train() for _ in range(2))
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for expected, actual in zip(loss_and_gradients(plain), loss_and_gradients(saving), strict=True):
        torch.testing.assert_close(actual, expected)


def test_int32_ids_give_the_same_loss(make_model):
    ids = IDS.clamp(max=9)
    losses = [
        make_model()(input_ids=x, labels=x, generator=torch.Generator().manual_seed(0)).loss
        for x in (ids, ids.int())
    ]
    assert losses[0] == losses[1]


def test_without_return_dict_the_output_is_a_tuple(make_model):
    model, ids = make_model(), IDS.clamp(max=9)
    out = model(input_ids=ids, return_dict=True)
    assert all(
        torch.equal(*pair)
        for pair in zip(model(ids, return_dict=False), out.to_tuple(), strict=True)
    )


def test_forward_rates_have_no_dropout_in_training(make_model):
    model = make_model(dropout=0.5)
    expected = model.forward_rates(IDS)
    assert torch.equal(model.train().forward_rates(IDS), expected)


@pytest.mark.parametrize("silent", ["attention.o_proj", "mlp.down_proj"])
def test_dropout_acts_on_either_branch_in_training(make_model, silent):
    model = make_model(dropout=0.5).train()
    for layer in model.model.layers:
        # what varies comes from the other branch
        torch.nn.init.zeros_(layer.get_submodule(silent).weight)
    first, second = (model.model(IDS).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)


def test_quantiles_drawn_by_default_are_stratified_within_the_batch():
    for seed in range(20):
        quantiles = stratified_quantiles(
            8, torch.Generator().manual_seed(seed), torch.device("cpu")
        )
        assert (quantiles * 8).long().sort().values.tolist() == list(range(8))


def test_the_loss_gives_the_reverse_rates_of_its_first_view(make_model, monkeypatch):
    model, seen, ids = make_model(), [], IDS.clamp(max=9)
    read = model.encode_views
    monkeypatch.setattr(model, "encode_views", lambda *args: seen.append(read(*args)) or seen[-1])
    out = model(input_ids=ids, labels=ids)
    (_, rates), *_ = seen
    assert torch.equal(out.rates, rates[: len(ids)]) and not torch.equal(
        out.rates, out.forward_rates
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rate_type", ["learned", "token"])
def test_embeddings_are_resizable_and_tie(make_model, tied, rate_type):
    model = make_model(tie_word_embeddings=tied, rate_type=rate_type)
    before = model(input_ids=IDS).logits
    model.resize_token_embeddings(13)
    after = model(input_ids=IDS).logits
    assert after.shape[-1] == 13 and model.config.vocab_size == 13
    torch.testing.assert_close(after[..., :10], before[..., :10])
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("rate_type", ["learned", "token", "score"])
def test_a_larger_vocabulary_leaves_what_was_learned_and_can_be_trained(
    make_model, tmp_path, rate_type
):
    model = make_model(rate_type=rate_type)
    model.resize_token_embeddings(13, mean_resizing=False)
    out = model.train()(input_ids=IDS.clamp(max=9), labels=IDS.clamp(max=9))
    out.loss.backward()
    assert torch.isfinite(out.loss) and model.config.mask_token_id == 10
    model.save_pretrained(tmp_path)
    logits = LoMDMForMaskedDiffusion.from_pretrained(tmp_path)(input_ids=IDS).logits
    assert (
        logits.shape[-1] == 13
        and (logits[..., 10] == -torch.inf).all()
        and logits[..., 11:].isfinite().all()
    )


@pytest.mark.parametrize("part", ["whole", "trunk"])
def test_no_special_token_is_cut_off(make_model, part):
    model = make_model(mask_token_id=5, eos_token_id=8)
    part = model if part == "whole" else model.model
    for size, name in ((5, "mask_token_id=5"), (1, "mask_token_id=5"), (8, "eos_token_id=8")):
        with pytest.raises(
            ValueError, match=f"new_num_tokens must be above {name}, got {size}. To make"
        ):
            part.resize_token_embeddings(size)
    assert model.lm_head.out_features == 11 and model.model.embed_tokens.num_embeddings == 11
    assert part.resize_token_embeddings(9).num_embeddings == 9


def test_token_rates_follow_the_vocabulary(make_model):
    model = oracles.vivid(make_model(rate_type="token"))
    before = model.omega().exp().detach()
    model.resize_token_embeddings(13)
    torch.testing.assert_close(
        model.omega().exp(), torch.cat([before, torch.ones(2, dtype=torch.float64)])
    )
    assert model.omega.rho.requires_grad
    model.resize_token_embeddings(11)
    torch.testing.assert_close(model.omega().exp(), before)


def test_attention_keeps_nothing_but_its_inputs_for_the_gradient(make_model):
    model, kept = make_model().train(), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda values: kept.append(values) or values, lambda values: values
    ):
        model.model(IDS)
    heads = [
        values
        for values in kept
        if values.dim() == 4 and values.shape[1] == model.config.num_attention_heads
    ]
    assert len(heads) >= 3 * model.config.num_hidden_layers
    assert all(
        tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        for tensor in heads
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"c2": 0.7}, "c1 > c2 >= 0"),
        ({"c2": -0.1}, "c2 must be a number in"),
        ({"rate_type": "random"}, "rate_type must be one of"),
        ({"bound": "both"}, "bound must be one of"),
        ({"time_epsilon": 1.5}, "time_epsilon"),
        ({"mask_token_id": 11}, "mask_token_id must be in"),
        ({"mask_token_id": None}, "mask_token_id must be an int in"),
        (
            {"num_views": 1},
            "num_views must be None or at least 2, which RLOO compares, got 1 with "
            "rate_type='learned'",
        ),
        ({"num_views": 0, "rate_type": "uniform"}, "num_views must be None or an int in .*got 0"),
        ({"block_size": 0}, "block_size must be None .* got 0"),
        ({"block_size": 1}, "block_size=1 leaves nothing to order.*rate_type='uniform'"),
        ({"bound": "time", "time_range": [0.0, 0.5]}, "time_range must be .* got \\[0.0, 0.5\\]"),
        ({"bound": "time", "time_range": [0.5, 0.5]}, "time_range must be .* got \\[0.5, 0.5\\]"),
        ({"bound": "time", "time_range": [0.5, 1.1]}, "time_range must be .* got \\[0.5, 1.1\\]"),
        ({"bound": "time", "time_range": [0.5]}, "time_range must be .* got \\[0.5\\]"),
        ({"time_range": [0.3, 0.8]}, "time_range=.* needs bound='time'"),
        (
            {"bound": "time", "time_range": [0.3, 0.8], "time_epsilon": 0.1},
            "time_range=.* time_epsilon=0.1",
        ),
        ({"pad_token_id": 10}, "pad_token_id and mask_token_id are both 10"),
        ({"hidden_size": 18}, "hidden_size must be a multiple"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an int in .*got 0"),
        ({"dropout": 1.0}, "dropout must be a number in"),
    ],
)
def test_a_wrong_configuration_is_refused(make_model, overrides, message):
    with pytest.raises(ValueError, match=message):
        make_model(**overrides)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": IDS + 5}, "input_ids must be in .*got 15"),
        ({"input_ids": IDS - 5}, "input_ids must be in .*got -5"),
        ({"input_ids": IDS[0]}, "shape \\[batch, length\\]"),
        ({"input_ids": IDS[:0]}, "not empty, got \\[0, 6\\]"),
        ({"input_ids": IDS.float()}, "token ids of dtype int64, got torch.float32"),
        ({"input_ids": IDS.repeat(1, 6)}, "max_position_embeddings=32"),
        (
            {"input_ids": IDS, "attention_mask": PADDING[:, 1:]},
            "attention_mask must have the shape",
        ),
        ({"input_ids": IDS, "labels": IDS[:, 1:]}, "labels must have the shape"),
        ({"input_ids": IDS, "labels": IDS}, "labels or given positions contain the mask token"),
        (
            {"input_ids": IDS, "labels": torch.full_like(IDS, -100)},
            "labels or given positions contain the mask token",
        ),
        (
            {"input_ids": CLEAN, "labels": CLEAN, "quantiles": torch.tensor([0.5, 1.0])},
            "quantiles must be in",
        ),
        (
            {"input_ids": CLEAN, "labels": CLEAN, "quantiles": torch.rand(3)},
            "quantiles must have the shape",
        ),
        ({"input_ids": CLEAN, "labels": CLEAN, "bound": "both"}, "bound must be one of"),
        (
            {"input_ids": CLEAN, "labels": CLEAN, "generator": [torch.Generator()]},
            "generator has 1 entries",
        ),
        (
            {"input_ids": IDS, "labels": CLEAN},
            "labels differ from input_ids at 3 positions.*DataCollatorForLanguage",
        ),
        (
            {"input_ids": CLEAN.roll(1, 0), "labels": CLEAN.masked_fill(CLEAN != 7, -100)},
            "differ .* at 1 positions",
        ),
    ],
)
def test_bad_input_is_refused_with_its_name(make_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**arguments)


def test_missing_and_unexpected_weights_are_refused(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "surprise": torch.zeros(1)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="unexpected \\['surprise'\\]"):
        LoMDMForMaskedDiffusion.from_pretrained(tmp_path)
    save_file(
        {name: weight for name, weight in weights.items() if name != "model.norm.bias"},
        file,
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match="missing \\['norm.bias'\\]"):
        AutoModel.from_pretrained(tmp_path)


def test_a_text_without_maskable_positions_counts_zero(make_model):
    labels = IDS.clamp(max=9).clone()
    labels[1] = -100
    for bound in ("order", "time"):
        out = make_model().train()(input_ids=IDS.clamp(max=9), labels=labels, bound=bound)
        assert out.nelbo[1] == 0 and torch.isfinite(out.loss)
        all_given = make_model().train()(
            input_ids=IDS.clamp(max=9), labels=torch.full_like(IDS, -100), bound=bound
        )
        all_given.loss.backward()
        assert all_given.loss == 0


def test_a_process_without_the_package_sees_the_auto_map(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == "modeling_lomdm.LoMDMForMaskedDiffusion"
    assert auto_map["AutoConfig"] == "configuration_lomdm.LoMDMConfig"
