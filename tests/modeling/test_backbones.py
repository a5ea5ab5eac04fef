"""Backbones of transformers: the causal model itself, and the oracles of our own trunk."""

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DynamicCache,
    LlavaConfig,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
)

import oracles
from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion, LoMDMPipeline, LoMDMScheduler
from hf_lomdm.evaluation import exact_log_likelihood, nelbo
from hf_lomdm.modeling.pretrained_lomdm import choose_mask_token, with_mask_token

EXACT = {"rtol": 1e-9, "atol": 1e-10}  # float64, another order of summation
SIZES = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 1}
DECODERS = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "mistral": {**GROUPED, "sliding_window": None},
    "gpt2": {},
    "gpt_neox": {},
    "gemma": {**GROUPED, "head_dim": 8},
    "smollm3": GROUPED,
    "olmo": {},
    "olmo2": {},
}
ENCODERS = {
    "bert": {},
    "roberta": {"pad_token_id": 1, "max_position_embeddings": 66},
    "modernbert": {"local_attention": 256, "cls_token_id": 3, "sep_token_id": 4},
}
decoders = pytest.mark.parametrize("family", DECODERS)
families = pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])


def base(family, seed=0, **overrides):
    """A random language model of a family, in float64."""
    torch.manual_seed(seed)
    kind = AutoModelForMaskedLM if family in ENCODERS else AutoModelForCausalLM
    own = {**DECODERS, **ENCODERS}[family]
    config = AutoConfig.for_model(family, **{**SIZES, **own, **overrides})
    return oracles.vivid(kind.from_config(config)).eval()


def convert(family, block_size=None, rate_type="uniform", settings=None, whole=None, **options):
    """It, or another `whole` model, as a diffusion model, whose order heads are random, too."""
    settings = {"num_attention_heads": 2, "intermediate_size": 32, **(settings or {})}
    how = {"block_size": block_size, "rate_type": rate_type, "settings": settings}
    whole = base(family) if whole is None else whole
    torch.manual_seed(0)
    if family in ENCODERS:
        model = LoMDMForMaskedDiffusion.from_masked_lm(whole, **how, **options)
    else:
        model = LoMDMForMaskedDiffusion.from_causal_lm(whole, **how, **options)
    for name, weight in model.double().named_parameters():
        if name.startswith(("phi", "psi")):
            torch.nn.init.normal_(weight, std=0.5)
    return model.requires_grad_(False)


def texts(batch, length, low=3, high=19, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (batch, length), generator=generator)


@decoders
def test_blocks_of_one_position_with_the_shift_are_the_causal_model(family):
    whole, ids = base(family), texts(3, 9)
    labels = ids.clone()
    labels[:, 0] = -100
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(
            whole(ids).logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"
        )
    model = convert(family, block_size=1)
    assert model.config.mask_token_id == 20  # a new row, which the law leaves out
    torch.testing.assert_close(nelbo(model, ids, labels=labels).nelbo, losses.sum(-1), **EXACT)
    torch.testing.assert_close(
        exact_log_likelihood(model, ids, labels=labels), -losses.sum(-1), **EXACT
    )


@families
def test_weights_keep_their_names_and_the_given_configuration_stays(family):
    whole = base(family)
    before, prefix = whole.config.to_dict(), f"{whole.base_model_prefix}."
    names = {
        f"model.{name.removeprefix(prefix)}" if name.startswith(prefix) else name
        for name in whole.state_dict()
    }
    model = LoMDMForMaskedDiffusion(
        LoMDMConfig(backbone_config=whole.config, mask_token_id=19, rate_type="uniform")
    )
    assert set(model.state_dict()) == names
    assert whole.config.to_dict() == before


NO_ENDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
WHOLE_GRID = [
    (family, block_size, rate_type)
    for family in ("llama", "gpt2", "bert")
    for block_size in (None, 2, 3)
    for rate_type in ("uniform", "learned", "token", "score")
]
OTHERS = [
    (family, block_size, "learned")
    for family in [*DECODERS, *ENCODERS]
    for block_size in (None, 2)
    if family not in ("llama", "gpt2", "bert")
]


@pytest.mark.parametrize(("family", "block_size", "rate_type"), WHOLE_GRID + OTHERS)
def test_the_loss_is_the_bound_by_enumeration(family, block_size, rate_type):
    model = convert(family, block_size, rate_type, NO_ENDS, mask_token=19)
    text = torch.tensor([4, 7, 5, 9])
    parts = oracles.block_tables(model, text)
    main, velocity = oracles.add_up(oracles.order_bound, parts)
    batch = text.expand(2000, -1)
    out = model(batch, labels=batch, generator=torch.Generator().manual_seed(0))
    for drawn, exact in ((out.main, main), (out.velocity, velocity)):
        if drawn.std() < 1e-9:
            torch.testing.assert_close(drawn.mean(), exact, **EXACT)
        else:
            assert abs(oracles.z_score(drawn, exact)) < 4
    exact = oracles.add_up(oracles.log_likelihood, parts)
    torch.testing.assert_close(exact_log_likelihood(model, text[None])[0], exact, **EXACT)


# their bounds, caches and padding are those of every family above and below
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[] if name in ("llama", "gpt2", "roberta") else pytest.mark.slow)
        for name in [*DECODERS, *ENCODERS]
    ],
)
@pytest.mark.parametrize("block_size", [None, 2])
def test_written_texts_have_the_law_of_the_model(family, block_size):
    whole = base(family, vocab_size=5)
    model = convert(family, block_size, "learned", NO_ENDS, whole, mask_token=4)
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)  # [64, 3]
    law = exact_log_likelihood(model, every).exp()
    torch.testing.assert_close(law.sum(), torch.ones_like(law.sum()), **EXACT)
    pipe = LoMDMPipeline(model, LoMDMScheduler(mask_token_id=4, block_size=block_size))
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    how = {"max_length": 3, "num_inference_steps": 3, "output_type": "seq"}
    written = pipe(num_return_sequences=1000, generator=generator, **how).sequences
    counts = torch.bincount((written * torch.tensor([16, 4, 1])).sum(-1), minlength=64)
    assert abs(oracles.chi_square_z(counts.double(), law)) < 4
    assert oracles.chi_square_z(counts.double(), torch.full_like(law, 1 / 64)) > 4


@families
@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_packed_views_equal_block_by_block(family, block_size):
    rate_type = "uniform" if block_size == 1 else "learned"
    model, ids = convert(family, block_size, rate_type, mask_token=19), texts(2, 7)
    noisy = torch.where(torch.rand(ids.shape, generator=torch.manual_seed(1)) < 0.5, 19, ids)
    hidden, rates = model.encode_views(model.make_batch(noisy), model.make_batch(ids))
    for start in range(0, 7, block_size):
        stop = min(start + block_size, 7)
        out = model(torch.cat((ids[:, :start], noisy[:, start:stop]), dim=1))
        torch.testing.assert_close(
            hidden[:, start:stop], out.last_hidden_state[:, start:stop], **EXACT
        )
        torch.testing.assert_close(rates[:, start:stop], out.rates[:, start:stop], **EXACT)


@decoders
@pytest.mark.parametrize("shift", [False, True])
def test_a_cache_equals_one_pass(family, shift):
    model = convert(family, 2, "learned", logit_shift=shift)
    ids, cache, parts = texts(2, 7), DynamicCache(), []
    for start in range(0, 7, 2):
        for tokens in (torch.full_like(ids[:, start : start + 2], 20), ids[:, start : start + 2]):
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys[:, :, :start], layer.values[:, :, :start]
            out = model(tokens, past_key_values=cache)
        parts.append((out.logits, out.rates))
    expected = model(ids)
    logits, rates = (torch.cat(values, dim=1) for values in zip(*parts, strict=True))
    torch.testing.assert_close(logits, expected.logits, **EXACT)
    torch.testing.assert_close(rates, expected.rates, **EXACT)


@families
@pytest.mark.parametrize("block_size", [None, 2])
def test_padded_equals_alone(family, block_size):
    model, ids = convert(family, block_size, "learned", mask_token=19), texts(1, 5)
    alone, filler = model(ids), texts(1, 3, seed=1)
    for left in (True, False):
        padded = torch.cat((filler, ids) if left else (ids, filler), dim=1)
        mask = torch.ones_like(padded)
        where = slice(3, None) if left else slice(5)
        mask[:, slice(3) if left else slice(5, None)] = 0
        out = model(padded, mask)
        torch.testing.assert_close(out.logits[:, where], alone.logits, **EXACT)
        torch.testing.assert_close(out.rates[:, where], alone.rates, **EXACT)


@families
def test_saved_and_loaded_it_is_the_same(family, tmp_path):
    model, ids = convert(family, 2, "learned", mask_token=19), texts(2, 6)
    model.save_pretrained(tmp_path)
    again = LoMDMForMaskedDiffusion.from_pretrained(tmp_path, dtype=torch.float64)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(again.get_buffer(name).double(), buffer.double())
    torch.testing.assert_close(again(ids).logits, model(ids).logits, **EXACT)
    for name in ("mask_token_id", "block_size", "logit_shift", "hidden_size", "vocab_size"):
        assert getattr(again.config, name) == getattr(model.config, name)


def test_eager_attention_gives_the_same_as_sdpa():
    ids, outputs = texts(2, 7), []
    for attention in ("sdpa", "eager"):
        model = convert("llama", 3, "learned", mask_token=19)
        model.set_attn_implementation(attention)
        assert model.model.config._attn_implementation == attention
        mask = torch.ones_like(ids)
        mask[1, :2] = 0
        outputs.append(model(ids, mask).logits * mask[..., None])
    # transformers' eager attention has a softmax in float32
    torch.testing.assert_close(*(out.nan_to_num(neginf=0.0) for out in outputs), rtol=0, atol=1e-5)


def test_gradients_reach_what_they_should():
    model = convert("llama", 2, "learned", mask_token=19).requires_grad_(True).train()
    ids = texts(4, 6)
    model(ids, labels=ids, generator=torch.Generator().manual_seed(0)).loss.backward()
    given = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert not given - {"phi.given"}
    model.zero_grad()
    with model.without_order():  # nothing of the heads
        model(ids, labels=ids, generator=torch.Generator().manual_seed(0)).loss.backward()
    names = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert not any(name.startswith(("phi", "psi")) for name in names)
    assert any(name.startswith("model.") for name in names)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = convert("qwen3", 2, "learned", mask_token=19).requires_grad_(True).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        ids = texts(4, 6)
        model(ids, labels=ids, generator=torch.Generator().manual_seed(0)).loss.backward()
        gradients.append({n: w.grad for n, w in model.named_parameters() if w.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, **EXACT)


# --------------------------------------------------------------------------------- bad input


def test_what_cannot_be_a_backbone_is_refused_by_name():
    tiny = MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ValueError, match="^mamba "):
        LoMDMForMaskedDiffusion.from_causal_lm(MambaForCausalLM(tiny))
    with pytest.raises(ValueError, match="t5, which is an encoder with a decoder"):
        LoMDMConfig(backbone_config=T5Config(), mask_token_id=5)
    with pytest.raises(ValueError, match="llava, which has no vocab_size of its own"):
        LoMDMConfig(backbone_config=LlavaConfig(), mask_token_id=5)
    with pytest.raises(ValueError, match="Pass max_position_embeddings=8"):
        LoMDMForMaskedDiffusion.from_causal_lm(
            base("mistral", sliding_window=8), block_size=2, rate_type="uniform"
        )
    with pytest.raises(ValueError, match="logit_shift=True needs backbone_config"):
        LoMDMConfig(logit_shift=True)


@pytest.mark.parametrize("mask_token", [-1, 21, "nothing", True, 2.5])
def test_a_mask_token_that_is_not_there_is_refused(mask_token):
    with pytest.raises(ValueError, match="mask_token"):
        LoMDMForMaskedDiffusion.from_causal_lm(base("llama"), mask_token=mask_token)


class LeakingLayer(torch.nn.Module):
    """A layer that adds to each position what stood before it, whatever the mask says."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden, **options):
        hidden = self.layer(hidden, **options)
        return hidden + torch.nn.functional.pad(hidden[:, :-1], (0, 0, 1, 0))


def test_layers_that_mix_positions_beside_attention_are_refused():
    whole = base("llama")
    whole.model.layers[0] = LeakingLayer(whole.model.layers[0])
    with pytest.raises(ValueError, match="llama does not follow the mask"):
        LoMDMForMaskedDiffusion.from_causal_lm(whole, block_size=2, rate_type="uniform")


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_the_vocabulary_can_grow(family, tmp_path):
    model, ids = convert(family, 2, "learned", mask_token=0), texts(2, 6)
    before = model(ids).logits
    model.resize_token_embeddings(25)
    assert model.config.vocab_size == model.config.backbone_config.vocab_size == 25
    torch.testing.assert_close(model(ids).logits[..., : before.shape[-1]], before, **EXACT)
    model.save_pretrained(tmp_path)
    again = LoMDMForMaskedDiffusion.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(again(ids).logits, model(ids).logits, **EXACT)


@families
@pytest.mark.parametrize("block_size", [None, 1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_weights_pass_the_check_in_each_precision(family, block_size, dtype):
    torch.manual_seed(0)
    own = {**DECODERS, **ENCODERS}[family]
    config = AutoConfig.for_model(family, **{**SIZES, "num_hidden_layers": 1, **own})
    if family in ENCODERS:
        kind, convert_from = AutoModelForMaskedLM, LoMDMForMaskedDiffusion.from_masked_lm
    else:
        kind, convert_from = AutoModelForCausalLM, LoMDMForMaskedDiffusion.from_causal_lm
    whole = kind.from_config(config).to(dtype)
    model = convert_from(whole, block_size=block_size, rate_type="uniform", mask_token=0)
    assert model.dtype == dtype and model.config.mask_token_id == 0


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_reads_as_it_was_trained(family):
    ids = texts(2, 9)
    with torch.no_grad():
        expected = base(family)(ids).logits
    logits = convert(family, mask_token=19)(ids).logits
    torch.testing.assert_close(logits[..., :19], expected[..., :19], **EXACT)


def test_the_clean_pass_of_the_forward_rates_has_no_dropout():
    whole = base("llama", attention_dropout=0.5)
    how = {"mask_token": 19, "settings": {"num_attention_heads": 2}}
    model = LoMDMForMaskedDiffusion.from_causal_lm(whole, **how).double()
    for weight in model.phi.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    ids = texts(2, 9)
    with torch.no_grad():
        expected = model.forward_rates(ids)
        model.train()
        assert torch.equal(model.forward_rates(ids), expected)
        first, second = (model(ids).logits for _ in range(2))
    assert model.model.training and not torch.equal(first, second)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_text_longer_than_the_table_of_positions_is_refused(family):
    model = convert(family, 2, mask_token=19)
    model(texts(1, 64))
    with pytest.raises(ValueError, match=r"^a text has 65 positions, .* a table of 64\."):
        model(texts(1, 65))


def test_a_model_of_another_kind_is_refused():
    causal, masked = LoMDMForMaskedDiffusion.from_causal_lm, LoMDMForMaskedDiffusion.from_masked_lm
    for convert_from, model in (
        (causal, base("bert")),
        (masked, base("llama")),
        (causal, base("llama").model),
    ):
        with pytest.raises(ValueError, match="goes to from_"):
            convert_from(model)


def test_a_setting_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="settings has .'nonsense'., which LoMDMConfig has not"):
        LoMDMForMaskedDiffusion.from_causal_lm(base("llama"), settings={"nonsense": 1})


def test_a_truncated_checkpoint_is_one_line(tmp_path):
    base("llama").save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="could not be loaded as CausalLM") as error:
        LoMDMForMaskedDiffusion.from_causal_lm(tmp_path)
    assert "\n" not in str(error.value)


def tokenizer_of(*special: str, words: int = 4, **named) -> PreTrainedTokenizerFast:
    """A tokenizer of a few words and then special tokens."""
    vocabulary = {f"w{index}": index for index in range(words)}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, **named)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def test_the_mask_token_is_the_own_one_or_one_that_no_text_uses_or_a_new_one():
    reserved = tokenizer_of("<|reserved_special_token_3|>", "<|other|>")
    assert choose_mask_token(tokenizer_of("<x>", mask_token="[M]"), 6) == 4
    assert choose_mask_token(reserved, 9) == 6  # rows that no token has
    assert choose_mask_token(reserved, 6) == 4
    assert choose_mask_token(tokenizer_of("<|other|>"), 5) == 5
    assert choose_mask_token(None, 5) == 5
    assert choose_mask_token(reserved, 6, "<|other|>") == 5
    assert choose_mask_token(reserved, 6, 2) == 2
    with pytest.raises(ValueError, match="it is not the model's"):
        choose_mask_token(tokenizer_of(words=7), 6)


@pytest.mark.parametrize("rows", [6, 9])
def test_the_tokenizer_of_a_converted_model_has_its_mask_token(rows):
    tokenizer = tokenizer_of("<|reserved_special_token_3|>", "<|other|>")
    whole = base("llama", vocab_size=rows)
    model = LoMDMForMaskedDiffusion.from_causal_lm(whole, tokenizer=tokenizer)
    tokenizer = with_mask_token(tokenizer, model.config)
    assert tokenizer.mask_token_id == model.config.mask_token_id == {6: 4, 9: 6}[rows]
    assert model.config.vocab_size == rows
    with pytest.raises(ValueError, match="it is not the model's"):
        with_mask_token(tokenizer_of(mask_token="[M]", words=3), model.config)


def test_the_embedding_of_a_new_mask_token_is_the_mean_of_the_others():
    whole = base("gpt_neox")
    table = whole.get_input_embeddings().weight.detach().clone()
    model = convert("gpt_neox")
    expected = torch.cat((table, table.float().mean(0, keepdim=True).double()))
    torch.testing.assert_close(model.get_input_embeddings().weight, expected)
