"""Who attends to whom with blocks: the rule position by position, and views against plain passes of
the model."""

import itertools

import pytest
import torch
from transformers import DynamicCache

import oracles
from hf_lomdm.modeling import attention_lomdm
from hf_lomdm.modeling.attention_lomdm import LoMDMAttention, attention_inputs, chunk_positions

EXACT = {"rtol": 1e-9, "atol": 1e-10}  # float64, another order of summation
RATE_TYPES = ("learned", "uniform", "token", "score")
MASK = 10


@pytest.fixture(autouse=True, params=[256, 3], ids=["whole", "chunks"])
def query_chunk(request, monkeypatch):
    """Every test with all queries of a copy at once, and with chunks that end within blocks."""
    monkeypatch.setattr(attention_lomdm, "QUERY_CHUNK", request.param)


@pytest.fixture
def build(make_model):
    return lambda **overrides: oracles.vivid(make_model(**overrides))


def texts(batch, length, seed=0):
    return torch.randint(3, 10, (batch, length), generator=torch.Generator().manual_seed(seed))


def noisy_views(clean, views, seed=1):
    """Views `[K * B, L]` in which about half of the positions of every block are masked."""
    stacked = clean.repeat(views, 1)
    drawn = torch.rand(stacked.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    return stacked.masked_fill(drawn, MASK)


def law_and_rates(model, views, clean, attention_mask=None):
    """Token law and reverse rates of views, as the loss reads them."""
    mask = None if attention_mask is None else attention_mask.repeat(len(views) // len(clean), 1)
    batch = model.make_batch(clean, attention_mask)
    hidden, rates = model.encode_views(model.make_batch(views, mask), batch)
    logits = model.token_logits(hidden)
    return logits, model.rates_of_logits(logits) if model.rates_need_logits else rates


def influences(model, clean, views):
    """`[Q, K]` bool: whether the hidden state of each of the `(1 + K) L` positions depends on each
    embedding."""
    leaves = []

    def keep(module, args, output):
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = model.model.embed_tokens.register_forward_hook(keep)
    hidden = model.model(clean, views=views).last_hidden_state[0]
    handle.remove()
    weight = torch.randn(
        hidden.shape[-1], generator=torch.Generator().manual_seed(0), dtype=hidden.dtype
    )
    rows = [
        torch.autograd.grad((state * weight).sum(), leaves[0], retain_graph=True)[0][0]
        for state in hidden
    ]
    return torch.stack(rows).abs().sum(-1) > 0


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("size", "context"), [(1, 32), (2, 32), (3, 32), (2, 4), (2, 3), (3, 1)])
def test_every_position_sees_what_the_rule_of_bd3_lm_says(build, implementation, size, context):
    # one layer, so that nothing is seen through others
    model = build(
        block_size=size, num_hidden_layers=1, max_position_embeddings=context, rate_type="uniform"
    )
    model.set_attn_implementation(implementation)
    length, copies = 7, 3
    clean = texts(1, length)
    actual = influences(model, clean, noisy_views(clean, copies - 1))
    reach = -(-context // size)  # blocks, the own one included
    for query in range(copies * length):
        for key in range(copies * length):
            ahead = query % length // size - key % length // size
            own = ahead == 0 and query // length == key // length
            before = 0 < ahead < reach and key // length == 0
            assert actual[query, key] == (own or before), (query, key)


@torch.no_grad()
@pytest.mark.parametrize(
    ("rate_type", "size"),
    [*itertools.product(RATE_TYPES, [2, 4]), ("uniform", 1), ("token", 1), ("score", 1)],
)
def test_a_block_of_a_view_is_the_model_on_the_clean_text_before_it(build, rate_type, size):
    model, length = build(rate_type=rate_type, block_size=size), 7
    clean = texts(3, length)
    views = noisy_views(clean, 2)  # every block of a view is noisy at once
    logits, rates = law_and_rates(model, views, clean)
    for start in range(0, length, size):
        at = slice(start, start + size)
        plain = torch.cat([clean.repeat(2, 1)[:, :start], views[:, at], texts(6, 3, seed=5)], dim=1)
        # whatever comes after a whole block
        plain = plain if start + size < length else plain[:, :length]
        out = model(input_ids=plain)
        torch.testing.assert_close(logits[:, at], out.logits[:, at], **EXACT)
        torch.testing.assert_close(rates[:, at], out.rates[:, at], **EXACT)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "made again"])
def test_views_alone_equal_the_views_of_the_whole_with_their_gradients(
    build, implementation, checkpointing
):
    model = build(block_size=2, rate_type="uniform").train()
    model.set_attn_implementation(implementation)
    if checkpointing:
        model.gradient_checkpointing_enable()
    clean, mask = texts(2, 8), torch.ones(2, 8, dtype=torch.long)
    mask[1, :3] = 0
    views, actual = noisy_views(clean, 2), []
    for views_only in (False, True):
        model.zero_grad()
        hidden = model.model(
            clean, mask, views=views, deterministic=True, views_only=views_only
        ).last_hidden_state
        hidden = hidden[:, -16:] * mask.repeat(1, 2)[..., None]
        hidden.pow(2).sum().backward()
        actual.append([hidden] + [weight.grad.clone() for weight in model.model.parameters()])
    assert all(gradient.abs().max() > 0 for gradient in actual[1])
    for whole, alone in zip(*actual, strict=True):
        torch.testing.assert_close(alone, whole, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_views_of_padded_texts_equal_those_of_the_texts_alone(build, left):
    model, lengths, width = build(block_size=2), (3, 6), 8
    clean, mask = texts(2, width), torch.zeros(2, width, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, width - length if left else 0 : width if left else length] = 1
    views = noisy_views(clean, 2)
    logits, rates = law_and_rates(model, views, clean, mask)
    assert torch.isfinite(rates).all()
    for row in range(2):
        real = mask[row].bool()
        for view in (row, row + 2):
            alone = law_and_rates(model, views[view, real][None], clean[row, real][None])
            torch.testing.assert_close(logits[view, real], alone[0][0], **EXACT)
            torch.testing.assert_close(rates[view, real], alone[1][0], **EXACT)


@torch.no_grad()
def test_clean_copies_do_not_see_views_and_views_do_not_see_each_other(build):
    model = build(block_size=3)
    clean = texts(2, 8)
    views = noisy_views(clean, 2)
    packed = model.model(clean, views=views).last_hidden_state
    torch.testing.assert_close(packed[:, :8], model.model(clean).last_hidden_state, **EXACT)
    shorter = model.model(clean, views=views[:2]).last_hidden_state
    torch.testing.assert_close(packed[:, :16], shorter, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("rate_type", RATE_TYPES)
def test_a_block_does_not_see_the_clean_text_of_itself_or_after_it(build, rate_type):
    model = build(rate_type=rate_type, block_size=2)
    clean, other, start = texts(2, 8), texts(2, 8, seed=3), 4
    views = noisy_views(clean, 1)
    changed = torch.cat([clean[:, :start], other[:, start:]], dim=1)
    before, after = law_and_rates(model, views, clean), law_and_rates(model, views, changed)
    for first, second in zip(before, after, strict=True):
        torch.testing.assert_close(first[:, : start + 2], second[:, : start + 2], **EXACT)
    assert not torch.allclose(before[0][:, start + 2 :, :10], after[0][:, start + 2 :, :10])


@torch.no_grad()
@pytest.mark.parametrize("bound", ["order", "time"])
@pytest.mark.parametrize("rate_type", RATE_TYPES)
def test_terms_of_a_block_do_not_depend_on_what_comes_after_it(build, rate_type, bound):
    model = build(rate_type=rate_type, block_size=2)
    clean, seeds = texts(4, 7), torch.arange(4)
    changed = torch.cat([clean[:, :4], texts(4, 3, seed=3)], dim=1)
    quantiles = torch.rand(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rates = [model.forward_rates(x) for x in (clean, changed)]
    torch.testing.assert_close(rates[0][:, :4], rates[1][:, :4], **EXACT)
    maskable = torch.ones_like(clean, dtype=torch.bool)
    first, second = (
        model.estimate_bound(
            model.make_batch(x, maskable=maskable), w, quantiles, seeds, bound=bound
        )[0]
        for x, w in zip((clean, changed), rates, strict=True)
    )
    for name in first._fields:
        torch.testing.assert_close(
            first._asdict()[name][:, :2], second._asdict()[name][:, :2], **EXACT
        )
    assert not torch.allclose(first.main, second.main)


@torch.no_grad()
def test_texts_longer_than_the_context_see_its_last_blocks(build):
    # one layer without order heads sees exactly the context: the text before it can be cut off
    model = build(block_size=2, num_hidden_layers=1, max_position_embeddings=6, rate_type="uniform")
    text = texts(1, 12)
    whole = model(input_ids=text).logits
    for start in range(0, 12, 2):
        context = text[:, max(0, start - 4) : start + 2]
        expected = model(input_ids=context).logits[:, -2:]
        # rotary tables are float32: other positions at the same distances differ by their rounding
        torch.testing.assert_close(whole[:, start : start + 2], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_flex_attention_is_told_the_rule_of_bd3_lm(make_model, size):
    model, length, copies = (
        make_model(block_size=size, max_position_embeddings=4, rate_type="uniform"),
        7,
        3,
    )
    model.set_attn_implementation("flex_attention")
    hidden = torch.zeros(1, copies * length, model.config.hidden_size)
    told = attention_inputs(model.config, hidden, None, copies)[0].mask_mod
    at, reach = torch.arange(copies * length), -(-4 // size)
    actual = told(torch.tensor(0), torch.tensor(0), at[:, None], at[None])
    ahead = (at % length // size)[:, None] - (at % length // size)[None]
    copy, other = (at // length)[:, None], (at // length)[None]
    expected = ((ahead == 0) & (copy == other)) | ((ahead > 0) & (ahead < reach) & (other == 0))
    assert torch.equal(actual.expand_as(expected), expected)


# it compiles
@pytest.mark.parametrize("other", ["sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_attention_implementations_agree_with_eager_on_views_of_padded_texts(make_model, other):
    clean = texts(2, 7)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]])
    views, outputs = noisy_views(clean, 2), []
    for implementation in ("eager", other):
        model = make_model(block_size=2)
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            outputs.append(law_and_rates(model, views, clean, mask))
    real = mask.bool().repeat(2, 1)
    for first, second in zip(*outputs, strict=True):
        # float32 rounding of another order of summation
        torch.testing.assert_close(first[real], second[real], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [2, 3])
def test_gradients_of_chunks_are_those_of_the_whole(build, monkeypatch, size):
    clean = texts(2, 11)
    mask = torch.tensor([[0] * 5 + [1] * 6, [1] * 9 + [0] * 2])
    gradients = []
    for queries in (256, 2):
        monkeypatch.setattr(attention_lomdm, "QUERY_CHUNK", queries)
        model = build(block_size=size).train()
        labels = clean.masked_fill(mask == 0, -100)
        draws = {
            "quantiles": torch.tensor([0.3, 0.6]),
            "generator": torch.Generator().manual_seed(0),
        }
        model(input_ids=clean, attention_mask=mask, labels=labels, **draws).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, **EXACT, msg=name)


def test_chunks_leave_out_the_keys_that_nobody_sees(make_model, monkeypatch):
    monkeypatch.setattr(attention_lomdm, "QUERY_CHUNK", 4)
    config = make_model(block_size=2, max_position_embeddings=4).config
    actual = []
    for padded in (False, True):
        chunks = chunk_positions(config, 8, 2, padded=padded)
        actual.append([(q.start, q.stop, [(k.start, k.stop) for k in keys]) for q, keys in chunks])
    assert actual == [
        [
            (0, 4, [(0, 4)]),
            (4, 8, [(2, 8)]),
            (8, 12, [(0, 2), (8, 12)]),
            (12, 16, [(2, 6), (12, 16)]),
        ],
        [
            (0, 4, [(0, 5)]),
            (4, 8, [(0, 8)]),
            (8, 12, [(0, 4), (8, 13)]),
            (12, 16, [(0, 8), (11, 16)]),
        ],
    ]


@pytest.mark.parametrize(("dtype", "autocast", "expected"), [
    (torch.float32, False, torch.float32),
    (torch.float32, True, torch.bfloat16),
    (torch.float64, True, torch.float64),
    (torch.bfloat16, False, torch.bfloat16),
])  # fmt: skip
def test_masks_of_blocks_are_as_wide_as_queries(build, dtype, autocast, expected):
    model, clean = build(block_size=4).to(dtype), texts(2, 12)
    seen, attend = [], LoMDMAttention.attend

    def look(self, query, key, value, mask):
        seen.append((query.dtype, mask.dtype))
        return attend(self, query, key, value, mask)

    with (
        pytest.MonkeyPatch.context() as patch,
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        patch.setattr(LoMDMAttention, "attend", look)
        model.model(clean, views=noisy_views(clean, 1))
    assert set(seen) == {(expected, expected)}


def test_attention_without_masks_of_any_shape_serves_a_single_block_and_is_refused_for_more(
    make_model,
):
    model = make_model(block_size=4)
    model.config._attn_implementation = "flash_attention_2"
    alone, _ = attention_inputs(model.config, torch.zeros(1, 4, 16), None, past_length=8)
    assert alone is None  # all that is there, the cache of two blocks too
    with pytest.raises(ValueError, match="'flash_attention_2' cannot mask blocks .*sdpa"):
        model(input_ids=texts(1, 5))


@pytest.mark.parametrize("argument", ["views", "past_key_values"])
def test_views_and_caches_are_refused_without_blocks(make_model, argument):
    value = texts(1, 4) if argument == "views" else DynamicCache()
    with pytest.raises(ValueError, match="views and past_key_values need blocks"):
        make_model().model(texts(1, 4), **{argument: value})
