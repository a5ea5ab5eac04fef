"""Blocks in the loss and in plain passes: padding, given positions, and a quantile for each
block."""

import pytest
import torch

import oracles
from hf_lomdm.modeling import process_lomdm as process
from hf_lomdm.modeling.blocks_lomdm import block_quantiles, make_blocks
from hf_lomdm.modeling.random_lomdm import position_exponentials

EXACT = {"rtol": 1e-9, "atol": 1e-10}  # float64, a few hundred operations
# A statistic this many standard deviations out has probability 6e-5; seeds are fixed.
Z = 4.0
RATE_TYPES = ("learned", "uniform", "token", "score")


@pytest.fixture
def build(make_model):
    return lambda **overrides: oracles.vivid(make_model(**{"block_size": 2, **overrides}))


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def padded(left, width=9):
    """Texts `[L]` of unequal lengths, and their batch with its mask; the padding would show if
    anything read it."""
    texts = [torch.tensor([3, 5, 4]), torch.tensor([5, 4, 3, 3, 4, 9, 8]), torch.tensor([7])]
    ids, mask = torch.full((3, width), 6), torch.zeros(3, width, dtype=torch.long)
    for row, text in enumerate(texts):
        at = slice(width - len(text), width) if left else slice(0, len(text))
        ids[row, at], mask[row, at] = text, 1
    return texts, ids, mask


@torch.no_grad()
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("rate_type", RATE_TYPES)
def test_padding_changes_neither_token_laws_nor_rates(build, rate_type, left):
    model = build(rate_type=rate_type)
    texts, ids, mask = padded(left)
    noisy = torch.where((torch.arange(9) + torch.arange(3)[:, None]) % 2 == 1, 10, ids)
    out, forward = model(input_ids=noisy, attention_mask=mask), model.forward_rates(ids, mask)
    for row, text in enumerate(texts):
        real = mask[row].bool()
        alone = model(input_ids=noisy[row, real][None])
        torch.testing.assert_close(out.logits[row, real], alone.logits[0], **EXACT)
        torch.testing.assert_close(out.rates[row, real], alone.rates[0], **EXACT)
        torch.testing.assert_close(forward[row, real], model.forward_rates(text[None])[0], **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("rate_type", RATE_TYPES)
@pytest.mark.parametrize("bound", ["order", "time"])
def test_padding_changes_nothing_in_the_loss(build, rate_type, bound, left):
    model = build(rate_type=rate_type).train()
    texts, ids, mask = padded(left)
    labels = ids.clone()
    labels[1, mask[1].bool().nonzero()[2]] = -100  # a given position in a block of its text
    together = model(ids, mask, labels=labels, bound=bound, generator=generators(1, 2, 3))
    losses = 0.0
    for row, text in enumerate(texts):
        given = labels[row, mask[row].bool()][None]
        alone = model(text[None], labels=given, bound=bound, generator=generators(row + 1))
        losses += alone.loss * (given != -100).sum()
        for name in ("nelbo", "main", "velocity", "rate_ratio", "score"):
            if name in alone:  # the score is missing where rates are not learned
                torch.testing.assert_close(together[name][row], alone[name][0], **EXACT)
    torch.testing.assert_close(together.loss, losses / (3 + 6 + 1), **EXACT)


@torch.no_grad()
def test_learned_rates_average_to_c1_over_each_block(build):
    model = build(block_size=3)
    texts, ids, mask = padded(left=True)
    for rates in (model(input_ids=ids, attention_mask=mask).rates, model.forward_rates(ids, mask)):
        assert rates.std() > 0.05
        for row in range(len(texts)):
            for block in rates[row, mask[row].bool()].split(3):
                torch.testing.assert_close(
                    block.mean(), torch.tensor(0.7, dtype=torch.float64), **EXACT
                )


@torch.no_grad()
@pytest.mark.parametrize("bound", ["order", "time"])
def test_blocks_with_nothing_maskable_count_zero_and_have_no_part_in_the_rate_ratio(
    build, monkeypatch, bound
):
    model, text, seen = build(rate_type="score"), torch.tensor([[3, 5, 4, 9, 8, 7]]), []
    estimate = model.estimate_bound
    monkeypatch.setattr(
        model, "estimate_bound", lambda *args: seen.append(estimate(*args)) or seen[-1]
    )
    out = model(
        text,
        labels=torch.tensor([[-100, -100, 4, 9, 8, -100]]),
        bound=bound,
        generator=generators(4),
    )
    terms, log_q, _ = seen[0]
    for values in (terms.main, terms.velocity, log_q):
        assert values[0, 0] == 0 and terms.rate_ratio[0, 0] == 1
    assert (terms.rate_ratio[0, 1:] > 1.05).any()
    torch.testing.assert_close(out.rate_ratio, terms.rate_ratio[:, 1:].mean(-1), **EXACT)
    none = model(text, labels=torch.full_like(text, -100), bound=bound)
    assert none.rate_ratio == 1 and none.nelbo == 0 and none.loss == 0


# Quantiles


def lay(length, size, mask=None):
    position = torch.arange(length)[None] if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    return make_blocks(position, size)


def test_the_quantile_of_each_block_is_uniform_and_independent_of_where_the_text_has_its_own():
    count, cells = 20_000, 20
    blocks = lay(7, 2)._replace(of_position=lay(7, 2).of_position.expand(count, -1))
    offset = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    quantiles = block_quantiles(offset, torch.arange(count), blocks)
    assert quantiles.shape == (count, 4) and quantiles.min() > 0 and quantiles.max() < 1
    uniform = torch.full((cells,), 1 / cells, dtype=torch.float64)
    for block in range(4):
        assert abs(oracles.chi_square_z(torch.histc(quantiles[:, block], cells, 0, 1), uniform)) < Z
    shift = ((quantiles - offset[:, None]) % 1 * 4).round().long() % 4
    # one in each stratum of the text
    assert shift.sort(-1).values.equal(torch.arange(4).expand(count, -1))
    orders = torch.bincount((shift * torch.tensor([64, 16, 4, 1])).sum(-1), minlength=256)
    law = (orders > 0) / 24  # every order of the strata, equally often
    assert (orders > 0).sum() == 24 and abs(oracles.chi_square_z(orders.double(), law.double())) < Z


def test_quantiles_of_a_block_stay_stratified_over_the_draws_of_a_text():
    strata = (torch.arange(8, dtype=torch.float64) + 0.3) / 8
    blocks = lay(6, 2)._replace(of_position=lay(6, 2).of_position.expand(8, -1))
    quantiles = block_quantiles(strata, torch.full((8,), 11), blocks)
    for block in range(3):
        steps = quantiles[:, block].sort().values.diff()
        # float32 strata
        torch.testing.assert_close(steps, torch.full_like(steps, 1 / 8), rtol=0, atol=1e-6)


def test_quantiles_of_blocks_do_not_depend_on_padding_or_the_batch():
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    quantiles, seeds = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64), torch.tensor([3, 4, 5])
    together = block_quantiles(quantiles, seeds, lay(6, 2, mask))
    for row, length in enumerate((3, 5, 6)):
        alone = block_quantiles(quantiles[row : row + 1], seeds[row : row + 1], lay(length, 2))
        assert torch.equal(together[row, : alone.shape[1]], alone[0])


def test_one_window_has_the_quantile_of_the_text():
    quantiles = torch.tensor([0.25, 0.75])
    assert torch.equal(block_quantiles(quantiles, torch.arange(2)), quantiles[:, None])


def test_the_order_of_the_quantiles_is_independent_of_the_masks_and_orders():
    # both depend on the text's seed: the first block's stratum, the noise of its first position
    count = 20_000
    seeds, blocks = (
        torch.arange(count),
        lay(4, 2)._replace(of_position=lay(4, 2).of_position.expand(count, -1)),
    )
    first = block_quantiles(torch.full((count,), 0.25), seeds, blocks)[:, 0] > 0.5
    noise = position_exponentials(seeds, torch.arange(4)[None])
    for position in range(4):
        pair = torch.stack([first.double(), noise[:, position]])
        assert abs(torch.corrcoef(pair)[0, 1]) < Z / count**0.5


def test_windows_of_bd3_lm_mask_the_rightmost_block_first():
    # at each global time the blocks before the present one are clean, those behind it masked; the
    # leftmost ends last
    blocks, times = lay(6, 2), torch.linspace(0, 1, 13, dtype=torch.float64)[:, None]
    local = process.local_time(times, torch.arange(3), blocks.num_blocks)
    for time, row in zip(times[:, 0].tolist(), local.tolist(), strict=True):
        for block, u in enumerate(row):
            low, high = 1 - (block + 1) / 3, 1 - block / 3
            assert u == pytest.approx(min(max((time - low) / (high - low), 0), 1), abs=1e-12)
        partly = [block for block, u in enumerate(row) if 0 < u < 1]
        assert len(partly) <= 1
        assert all(u == 0 for u in row[: min(partly, default=0)])
