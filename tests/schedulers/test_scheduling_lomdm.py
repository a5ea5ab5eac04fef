"""The contract of `LoMDMScheduler`: what holds for every step. The laws: test_sampling_laws.py."""

import json

import pytest
import torch
from tiny_scheduler import MASK, VOCAB, generators, make, random_output, run

from hf_lomdm.modeling import token_draw_lomdm as token_draw
from hf_lomdm.modeling.scheduling_lomdm import SAMPLERS, LoMDMScheduler

# every sampler, both grids, with and without blocks
KINDS = [
    dict(sampler=sampler, grid=grid, block_size=block_size)
    for sampler in SAMPLERS
    for grid in (("adaptive", "uniform") if sampler == "ancestral" else ("adaptive",))
    for block_size in (None, 4)
]
kinds = pytest.mark.parametrize(
    "kind", KINDS, ids=lambda kind: "-".join(str(value) for value in kind.values())
)


@kinds
@pytest.mark.parametrize("num_inference_steps", [1, 4, 5, 12, 30])
def test_all_is_revealed_once_and_given_positions_never_change(kind, num_inference_steps):
    logits, rates = random_output(3, 12)
    start = torch.full((3, 12), MASK)
    start[0, :5], start[1, 3:9:2] = 7, 3
    start[2] = 1  # nothing to do
    given = start != MASK
    sample, history = run(
        make(num_inference_steps, **kind), start, logits, rates, generators(1, 2, 3)
    )
    assert (sample != MASK).all()
    assert torch.equal(sample[given], start[given])
    assert torch.equal(torch.stack(history).sum(0), (~given).to(torch.int64))


@kinds
def test_batch_equals_single_and_padded_equals_alone(kind):
    lengths, canvas, seeds = (9, 12, 5), 14, (5, 6, 7)
    logits, rates = random_output(3, canvas)
    for side in ("left", "right"):
        start, mask = torch.full((3, canvas), MASK), torch.zeros(3, canvas, dtype=torch.int64)
        real = [slice(canvas - n, canvas) if side == "left" else slice(0, n) for n in lengths]
        for row in range(3):
            mask[row, real[row]] = 1
            start[row, real[row]][1] = 4  # one given position
        # padding may be the pad token or, as in the other rows, a mask
        start[0, ~mask[0].bool()] = 0
        batch, _ = run(make(3, **kind), start, logits, rates, generators(*seeds), mask)
        assert torch.equal(batch[mask == 0], start[mask == 0])
        for row in range(3):
            at = (slice(row, row + 1), real[row])
            alone, _ = run(
                make(3, **kind), start[at], logits[at], rates[at], generators(seeds[row])
            )
            assert torch.equal(batch[at], alone), (side, row)


@kinds
@pytest.mark.parametrize(
    "other", [dict(temperature=0.0), dict(temperature=0.3), dict(top_p=0.5), dict(top_k=1)]
)
def test_temperature_and_truncation_move_tokens_but_no_position(kind, other):
    logits, rates = random_output(16, 12)
    start = torch.full((16, 12), MASK)
    plain, plain_history = run(make(4, **kind), start, logits, rates, generators(*range(16)))
    changed, history = run(make(4, **kind, **other), start, logits, rates, generators(*range(16)))
    assert all(torch.equal(a, b) for a, b in zip(plain_history, history, strict=True))
    assert not torch.equal(plain, changed)


@kinds
def test_positions_first_equals_step(kind):
    """The fast path: `select`, logits of the revealed positions only, `draw_tokens`."""
    logits, rates = random_output(3, 12)
    start = torch.full((3, 12), MASK)
    start[1, :4] = 2
    mask = torch.ones_like(start)
    mask[2, :3] = 0
    scheduler, slow, fast = make(5, **kind), generators(1, 2, 3), generators(1, 2, 3)
    plain = quick = start
    for t in scheduler.timesteps:
        plain = scheduler.step(logits, t, plain, rates, slow, attention_mask=mask).prev_sample
        needed = logits if scheduler.position_draw_needs_logits else None
        revealed = scheduler.select(rates, t, quick, fast, attention_mask=mask, logits=needed)
        rows, columns = revealed.nonzero(as_tuple=True)
        positions = scheduler.positions(quick, mask)[rows, columns]
        tokens = scheduler.draw_tokens(logits[rows, columns], rows, positions, len(start), fast)
        quick = quick.index_put((rows, columns), tokens)
        assert torch.equal(plain, quick)


@pytest.mark.parametrize("sampler", [sampler for sampler in SAMPLERS if sampler != "ancestral"])
def test_counts_spread_the_positions_evenly(sampler):
    logits, rates = random_output(2, 11)
    start = torch.full((2, 11), MASK)
    start[1, :8] = 0
    _, history = run(make(4, sampler=sampler), start, logits, rates, None)
    assert [r.sum(1).tolist() for r in history] == [[3, 1], [3, 1], [3, 1], [2, 0]]


def test_reference_orders_reveal_in_their_order():
    law = torch.tensor(
        [[[0.5, 0.3, 0.2], [0.46, 0.45, 0.09], [0.55, 0.4, 0.05], [0.4, 0.35, 0.25]]]
    )
    # the mask token is no candidate
    logits = torch.cat([law.log() + 3, torch.full((1, 4, 1), torch.inf)], -1)
    expected = dict(left_to_right=[0, 1, 2, 3], confidence=[2, 0, 1, 3], margin=[0, 2, 3, 1])
    expected["entropy"] = (law * law.log()).sum(-1)[0].argsort(descending=True).tolist()
    for sampler, order in expected.items():
        scheduler = LoMDMScheduler(3, sampler=sampler)
        scheduler.set_timesteps(4)
        _, history = run(scheduler, torch.full((1, 4), 3), logits, None, None)
        assert [int(r[0].nonzero()) for r in history] == order, sampler
    assert expected["entropy"] not in (expected["margin"], expected["left_to_right"])


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind["block_size"]], ids=lambda kind: kind["sampler"]
)
def test_blocks_are_revealed_from_left_to_right(kind):
    """A step may finish a block and go on to the next; it never leaves masks behind in a block to
    its left."""
    logits, rates = random_output(64, 12)
    sample = torch.full((64, 12), MASK)
    _, history = run(make(6, **kind), sample, logits, rates, torch.Generator().manual_seed(0))
    masked = torch.ones(64, 12, dtype=torch.bool)
    for revealed in history:
        masked = masked & ~revealed
        left_in_block = masked.view(64, 3, 4).any(-1)
        began = (~masked).view(64, 3, 4).any(-1)
        assert not (left_in_block[:, :-1] & began[:, 1:]).any()


def test_masks_left_in_a_window_that_is_over_are_revealed():
    """A loop may start late, on a text whose first blocks hold masks still."""
    logits, rates = random_output(1, 12)
    scheduler = make(6, sampler="ancestral", grid="uniform", block_size=4)
    revealed = scheduler.select(rates, scheduler.timesteps[4], torch.full((1, 12), MASK))
    assert revealed[0, :8].all()


def test_fillers_of_a_gather_may_hold_anything():
    """A row with fewer reveals is filled up with other columns, and padding may hold NaN."""
    logits, rates = random_output(2, 4)
    sample, mask = torch.full((2, 4), MASK), torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    logits[1, 1:], rates[1, 1:] = torch.nan, torch.nan
    prev_sample, revealed = make(1).step(
        logits, 1.0, sample, rates, None, False, attention_mask=mask
    )
    assert torch.equal(revealed, mask.bool()) and torch.equal(prev_sample == MASK, mask == 0)


@kinds
def test_times_that_stay_on_a_device_give_the_same_positions(kind, monkeypatch):
    """There the steps left are a tensor, so that nothing waits for the device."""
    logits, rates = random_output(3, 12)
    scheduler, sample = make(5, **kind), torch.full((3, 12), MASK)
    for t in scheduler.timesteps:
        expected = scheduler.select(rates, t, sample, generators(1, 2, 3), logits=logits)
        with monkeypatch.context() as patch:
            patch.setattr(
                scheduler, "_steps_left", lambda t, device: (t * 5).round().to(torch.int64)
            )
            revealed = scheduler.select(rates, t, sample, generators(1, 2, 3), logits=logits)
        assert torch.equal(revealed, expected)


def test_gather_width_off_the_cpu_is_a_bound_that_needs_no_look_at_the_data():
    revealed = torch.zeros(2, 11, dtype=torch.bool, device="meta")
    widths = [make(4).revealed_columns(revealed, t).shape[1] for t in make(4).timesteps]
    assert widths == [3, 4, 6, 11]
    assert make(4, sampler="ancestral").revealed_columns(revealed, 1.0).shape[1] == 11


def test_ties_go_to_the_left_and_padding_does_not_move_them():
    logits = torch.zeros(1, 40, VOCAB)
    for sampler in ("confidence", "margin", "entropy"):
        revealed = make(4, sampler=sampler).select(
            None, 1.0, torch.full((1, 40), MASK), logits=logits
        )
        assert revealed[0, :10].all() and revealed.sum() == 10
    logits[..., MASK] = -torch.inf
    drawn = LoMDMScheduler(MASK, top_k=1).draw_tokens(
        logits, torch.zeros(1, 1).long(), torch.arange(40)[None], 1
    )
    assert not drawn.any()


@pytest.mark.parametrize("sampler", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize("block_size", [None, 16])
def test_rounding_breaks_no_tie(sampler, block_size):
    """Laws that are alike but for float32 rounding are revealed from left to right, after those
    that are surer."""
    generator, logits = torch.Generator().manual_seed(0), torch.zeros(30, 40, VOCAB)
    logits[..., 0], logits[..., 1] = 2.0, 1.0
    logits[:, [9, 21, 33], 0] = 5.0  # known better
    logits += 1e-6 * torch.randn(logits.shape, generator=generator)
    logits[..., MASK] = -torch.inf
    surest = [9, 0, 1, 2, 3, 4, 5, 6, 7, 8] if block_size else [9, 21, 33, 0, 1, 2, 3, 4, 5, 6]
    for steps in (40, 20, 14, 10, 7, 4):  # one to ten at a time
        scheduler, count = make(steps, sampler=sampler, block_size=block_size), -(-40 // steps)
        revealed = scheduler.select(None, 1.0, torch.full((30, 40), MASK), logits=logits)
        expected = torch.zeros(40, dtype=torch.bool)
        expected[surest[:count]] = True
        assert (revealed == expected).all(), steps


@pytest.mark.parametrize("other", [dict(top_k=4), dict(top_p=0.9), dict(top_k=5, top_p=0.9)])
def test_tokens_that_rounding_swaps_in_likelihood_are_not_swapped_in_the_draw(other):
    logits = torch.tensor(
        [2.0, 1.0, 2.0, 1.0, 1.0, -3.0, -3.0, -3.0, -3.0, -3.0, -torch.inf]
    ).expand(500, 1, -1)
    noise = 1e-6 * torch.randn(2, 500, 1, VOCAB, generator=torch.Generator().manual_seed(0))
    noise[..., 4] = -1e-3  # who is left out is clear
    scheduler, rows, places = (
        LoMDMScheduler(MASK, **other),
        torch.arange(500)[:, None],
        torch.zeros(500, 1).long(),
    )
    first, second = (
        scheduler.draw_tokens(logits + part, rows, places, 500, generators(0)[0]) for part in noise
    )
    assert torch.equal(first, second) and len(first.unique()) >= 4


def test_keeping_every_token_draws_what_no_limit_draws():
    logits, rows, places = (
        random_output(200, 3)[0],
        torch.arange(200)[:, None],
        torch.arange(3)[None],
    )
    plain, top_k, top_p = (
        LoMDMScheduler(MASK, **limit).draw_tokens(logits, rows, places, 200, generators(0)[0])
        for limit in ({}, {"top_k": VOCAB}, {"top_p": 1.0})
    )
    assert torch.equal(plain, top_k) and torch.equal(plain, top_p)


def test_grid_is_uniform_and_one_generator_or_none_works():
    scheduler = make(4)
    assert (
        scheduler.timesteps.tolist() == [1.0, 0.75, 0.5, 0.25]
        and scheduler.timesteps.dtype == torch.float32
    )
    logits, rates = random_output(2, 6)
    start = torch.full((2, 6), MASK)
    first, _ = run(scheduler, start, logits, rates, torch.Generator().manual_seed(3))
    repeated, _ = run(scheduler, start, logits, rates, torch.Generator().manual_seed(3))
    other, _ = run(scheduler, start, logits, rates, torch.Generator().manual_seed(4))
    assert torch.equal(first, repeated) and not torch.equal(first, other)
    torch.manual_seed(3)
    # no generator is the global one
    assert torch.equal(run(scheduler, start, logits, rates, None)[0], first)


def test_step_takes_float_and_tensor_times_and_returns_an_output_or_a_tuple():
    logits, rates = random_output(1, 6)
    start = torch.full((1, 6), MASK)
    for steps in (3, 7, 1000):
        scheduler = make(steps, sampler="ancestral")
        t = scheduler.timesteps[-1]
        assert (scheduler.step(logits, float(t), start, rates).prev_sample != MASK).all()
        output = scheduler.step(logits, t, start, rates, *generators(0))
        sample, revealed = scheduler.step(
            logits, t[None], start, rates, *generators(0), return_dict=False
        )
        assert torch.equal(output.prev_sample, sample) and torch.equal(output.revealed, revealed)


def test_positional_arguments_have_the_order_of_the_contract_and_the_rest_goes_by_name():
    logits, rates = random_output(1, 6)
    start, mask = torch.full((1, 6), MASK), torch.ones(1, 6)
    sample, revealed = make(3).step(logits, 1.0, start, rates, *generators(0), False)
    assert torch.equal(make(3).select(rates, 1.0, start, *generators(0)), revealed)
    assert torch.equal(
        make(3).step(logits, 1.0, start, rates, *generators(0), attention_mask=mask).prev_sample,
        sample,
    )
    assert LoMDMScheduler(MASK).add_noise(start, rates, 0.5, *generators(0)).shape == start.shape
    calls = [
        (make(3).step, (logits, 1.0, start, rates, None, True)),
        (make(3).select, (rates, 1.0, start, None)),
    ]
    for function, arguments in (*calls, (make(3).add_noise, (start, rates, 0.5, None))):
        with pytest.raises(TypeError, match="positional"):
            function(*arguments, mask)


def test_input_is_left_untouched_and_dtypes_are_kept():
    logits, rates = random_output(2, 6)
    start = torch.full((2, 6), MASK, dtype=torch.int32)
    before = logits.clone(), rates.clone(), start.clone()
    out = make(2).step(logits, 1.0, start, rates)
    assert out.prev_sample.dtype == torch.int32 and out.revealed.dtype == torch.bool
    assert all(torch.equal(a, b) for a, b in zip(before, (logits, rates, start), strict=True))
    out = make(1).step(logits.to(torch.bfloat16), 1.0, start, rates.to(torch.bfloat16))
    assert (out.prev_sample < MASK).all()


def test_slices_of_the_token_draw_change_nothing(monkeypatch):
    logits, rates = random_output(2, 12)
    start = torch.full((2, 12), MASK)
    for sampler in ("sequential", "entropy"):
        whole, _ = run(make(3, sampler=sampler), start, logits, rates, generators(1, 2))
        with monkeypatch.context() as patch:
            patch.setattr(token_draw, "CPU_SLICE_SIZE", 30)  # two positions at a time
            sliced, _ = run(make(3, sampler=sampler), start, logits, rates, generators(1, 2))
        assert torch.equal(whole, sliced)


def test_config_survives_saving(tmp_path):
    config = dict(
        sampler="ancestral", grid="uniform", block_size=4, temperature=0.5, top_p=0.9, top_k=7
    )
    LoMDMScheduler(MASK, **config).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert stored["_class_name"] == "LoMDMScheduler" and stored["mask_token_id"] == MASK
    loaded = LoMDMScheduler.from_pretrained(tmp_path)
    assert {
        key: loaded.config[key] for key in config
    } == config and loaded.config.mask_token_id == MASK
    changed = LoMDMScheduler.from_config(loaded.config, sampler="margin", temperature=1.0)
    assert changed.position_draw_needs_logits and not changed.position_draw_needs_rates
    assert changed.config.top_k == 7 and loaded.config.sampler == "ancestral"
    with pytest.raises(ValueError, match="top_p must be"):
        LoMDMScheduler.from_config(loaded.config, top_p=2.0)


def test_settings_are_kept_however_they_were_given():
    """By position, by name or afterwards: what `from_config` makes is the same scheduler."""
    for scheduler in (
        LoMDMScheduler(3, "margin", temperature=0.5),
        LoMDMScheduler(mask_token_id=3),
    ):
        scheduler.register_to_config(sampler="margin", temperature=0.5, top_k=4)
        copy = LoMDMScheduler.from_config(scheduler.config)
        assert dict(copy.config) == dict(scheduler.config) and copy.config.mask_token_id == 3
        assert (copy.config.sampler, copy.config.temperature, copy.config.top_k) == (
            "margin",
            0.5,
            4,
        )
        assert LoMDMScheduler.from_config(copy.config, top_k=2).config.top_k == 2


def test_settings_of_numpy_are_stored_as_numbers_of_json(tmp_path):
    two, half = torch.tensor(2).numpy()[()], torch.tensor(0.5).numpy()[()]
    LoMDMScheduler(two, block_size=two, temperature=half).save_pretrained(tmp_path)
    loaded = LoMDMScheduler.from_pretrained(tmp_path).config
    assert (loaded.mask_token_id, loaded.block_size, loaded.temperature) == (2, 2, 0.5)


def test_every_time_of_the_longest_grid_is_found():
    scheduler = make(100_000)
    for left in (1, 2, 3, 33_333, 65_537, 99_998, 99_999, 100_000):
        assert scheduler._steps_left(scheduler.timesteps[-left], torch.device("cpu")) == left
