"""A key-value cache, block after block, against one pass without it."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

import oracles

EXACT = {"rtol": 1e-9, "atol": 1e-10}  # float64, another order of summation
RATE_TYPES = ("learned", "uniform", "token", "score")
SIZE = 2


@pytest.fixture
def build(make_model):
    return lambda **overrides: oracles.vivid(
        make_model(**{"block_size": SIZE, **overrides})
    ).requires_grad_(False)


def texts(batch, length, seed=0):
    return torch.randint(3, 10, (batch, length), generator=torch.Generator().manual_seed(seed))


def by_blocks(model, ids, attention_mask=None, first=SIZE):
    """Logits and rates of `ids` `[B, L]`: the first columns at once, then block after block from a
    cache.

    Each block is read twice: first noisy and forgotten again, as the sampler does, then clean.
    """
    cache, logits, rates = DynamicCache(), [], []
    for start in (0, *range(first, ids.shape[1], SIZE)):
        stop = first if start == 0 else min(start + SIZE, ids.shape[1])
        mask = None if attention_mask is None else attention_mask[:, :stop]
        for tokens in (torch.full_like(ids[:, start:stop], 10), ids[:, start:stop]):
            for layer in cache.layers:  # crop() does not mean the same in every transformers 5
                layer.keys, layer.values = layer.keys[:, :, :start], layer.values[:, :, :start]
            assert cache.get_seq_length() == start
            out = model(input_ids=tokens, attention_mask=mask, past_key_values=cache)
        logits.append(out.logits)
        rates.append(out.rates)
    assert {cache.get_seq_length(layer) for layer in range(len(cache.layers))} == {ids.shape[1]}
    return torch.cat(logits, dim=1), torch.cat(rates, dim=1)


def assert_same(cached, expected, real=slice(None)):
    torch.testing.assert_close(cached[0][real], expected.logits[real], **EXACT)
    torch.testing.assert_close(cached[1][real], expected.rates[real], **EXACT)


@pytest.mark.parametrize("rate_type", RATE_TYPES)
@pytest.mark.parametrize("first", [2, 4])
def test_block_after_block_from_a_cache_equals_one_pass(build, rate_type, first):
    model, ids = build(rate_type=rate_type), texts(3, 9)  # the last block is short
    assert_same(by_blocks(model, ids, first=first), model(input_ids=ids))


def test_the_cache_holds_the_layer_of_the_order_head_behind_those_of_the_backbone(build):
    for rate_type, layers in (("learned", 3), ("uniform", 2)):
        cache = DynamicCache()
        build(rate_type=rate_type)(input_ids=texts(1, 2), past_key_values=cache)
        assert len(cache.layers) == layers


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("rate_type", ["learned", "score"])
def test_unequal_texts_padded_on_the_left_equal_one_pass_and_each_alone(
    build, rate_type, implementation
):
    model, ids = build(rate_type=rate_type), texts(4, 10)
    model.set_attn_implementation(implementation)
    # whole blocks of padding: of the last text, nothing is in the first two blocks
    mask = (torch.arange(10) >= torch.tensor([0, 2, 2, 4])[:, None]).long()
    cached, real = by_blocks(model, ids, mask, first=4), mask.bool()
    # padding, too: it is in the cache
    assert all(torch.isfinite(values[..., :10]).all() for values in cached)
    assert_same(cached, model(input_ids=ids, attention_mask=mask), real)
    for row in range(4):
        alone = model(input_ids=ids[row, real[row]][None])
        torch.testing.assert_close(cached[0][row, real[row]], alone.logits[0], **EXACT)
        torch.testing.assert_close(cached[1][row, real[row]], alone.rates[0], **EXACT)


def test_padding_within_a_row_is_not_seen(build):
    # a text that is over: its later blocks are padding and leave the rest of the batch alone
    model, ids = build(), texts(2, 8)
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, 4:] = 0
    cached = by_blocks(model, ids, mask)
    assert_same(cached, model(input_ids=ids, attention_mask=mask), mask.bool())
    assert_same([values[:1] for values in cached], model(input_ids=ids[:1]))


@pytest.mark.parametrize("rate_type", RATE_TYPES)
@pytest.mark.parametrize("padded", [False, True])
def test_texts_beyond_the_context_equal_one_pass(build, rate_type, padded):
    model, ids = build(rate_type=rate_type, max_position_embeddings=6), texts(2, 13)
    mask = (torch.arange(13) >= torch.tensor([0, 4])[:, None]).long() if padded else None
    real = slice(None) if mask is None else mask.bool()
    expected = model(input_ids=ids, attention_mask=mask)
    assert_same(by_blocks(model, ids, mask, first=4), expected, real)
    roomy = build(rate_type=rate_type)(input_ids=ids, attention_mask=mask)
    # the context matters
    assert not torch.allclose(roomy.logits[0, -1, :10], expected.logits[0, -1, :10])


# blocks shorter than the context, as long as it is, longer, and a context that is no whole number
# of them
@pytest.mark.parametrize("size, context", [(4, 8), (2, 6), (4, 4), (4, 3), (3, 7), (1, 4), (1, 1)])
@pytest.mark.parametrize("lengths", [[12], [28], [28, 28], [28, 0, 12]])
def test_a_context_reads_prompts_of_any_length_as_one_pass_does(build, size, context, lengths):
    """Positions leave the cache while the prompt is read; what follows stands where it stood."""
    rate_type = "uniform" if size == 1 else "learned"
    model = build(rate_type=rate_type, block_size=size, max_position_embeddings=context)
    lengths = torch.tensor([length // size * size for length in lengths])
    width = int(lengths.max())
    ids, real = (
        texts(len(lengths), width + 3 * size),
        torch.arange(width) >= width - lengths[:, None],
    )
    mask = torch.cat((real, real.new_ones(len(ids), 3 * size)), dim=1).long()
    reader = model.open_context(ids[:, :width], None if real.all() else real.long())
    for start in range(width, ids.shape[1], size):
        stop = start + size
        # a template's block
        whole = torch.cat((ids[:, :start], torch.full((len(ids), size), 10)), dim=1)
        # read while it is masked, and again when it is finished
        for text in (whole, ids[:, :stop]):
            out = reader.read(text[:, start:])
            expected = model(text, attention_mask=mask[:, :stop], logits_to_keep=size)
            torch.testing.assert_close(out.logits, expected.logits, **EXACT)
            torch.testing.assert_close(out.rates, expected.rates, **EXACT)
        reader.extend(ids[:, start:stop])


def test_several_blocks_at_once_behind_a_cache_equal_one_pass(build):
    model, ids, cache = build(), texts(2, 9), DynamicCache()
    model(input_ids=ids[:, :4], past_key_values=cache)
    out, whole = model(input_ids=ids[:, 4:], past_key_values=cache), model(input_ids=ids)
    torch.testing.assert_close(out.logits, whole.logits[:, 4:], **EXACT)
    torch.testing.assert_close(out.rates, whole.rates[:, 4:], **EXACT)


@pytest.mark.parametrize("mask", [None, [[1, 1, 1, 1], [0, 1, 1, 1]]])
def test_a_cache_that_ends_within_a_block_is_refused(build, mask):
    model, cache, past = build(), DynamicCache(), 3 if mask is None else 2
    mask = None if mask is None else torch.tensor(mask)
    ids = texts(2, past + 2)
    model(
        input_ids=ids[:, :past],
        attention_mask=None if mask is None else mask[:, :past],
        past_key_values=cache,
    )
    with pytest.raises(
        ValueError,
        match="past_key_values must hold whole blocks of block_size=2, got texts of .*crop",
    ):
        model(input_ids=ids[:, past:], attention_mask=mask, past_key_values=cache)


def test_an_attention_mask_without_the_cached_positions_is_refused(build):
    model, cache = build(), DynamicCache()
    model(input_ids=texts(1, 2), past_key_values=cache)
    with pytest.raises(
        ValueError, match="with a cache: of all positions\\), \\[1, 4\\], got \\[1, 2\\]"
    ):
        model(input_ids=texts(1, 2), attention_mask=torch.ones(1, 2), past_key_values=cache)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            lambda model: {"past_key_values": DynamicCache(config=model.config)},
            "DynamicCache\\(\\) made without .* 2 layers",
        ),
        (
            lambda model: {"past_key_values": StaticCache(config=model.config, max_cache_len=8)},
            "got StaticCache",
        ),
        (
            lambda model: {"labels": texts(1, 2), "past_key_values": DynamicCache()},
            "labels exclude past_key_values",
        ),
        (
            lambda model: {"labels": texts(1, 2), "logits_to_keep": 1},
            "labels exclude .* logits_to_keep",
        ),
        (lambda model: {"logits_to_keep": 0}, "logits_to_keep must be None .* got 0"),
    ],
)
def test_a_cache_that_cannot_serve_and_arguments_that_do_not_apply_are_refused(
    build, arguments, message
):
    model = build()
    with pytest.raises(ValueError, match=message):
        model(input_ids=texts(1, 2), **arguments(model))


def test_a_cache_that_gradient_checkpointing_would_drop_is_refused(build):
    model = build()
    model.gradient_checkpointing_enable()
    model.eval()(input_ids=texts(1, 2), past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="dropped by gradient checkpointing in training"):
        model.train()(input_ids=texts(1, 2), past_key_values=DynamicCache())
