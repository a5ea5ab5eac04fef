"""Remasking and the Gibbs corrector: what stays, what is counted, the law of an exact network."""

import pytest
import torch
from tiny_pipeline import BOS, MASK, generators, make_pipe

import oracles
from exact_model import MASK as EXACT_MASK
from exact_model import TEXTS, N, exact_pipe
from hf_lomdm import LoMDMScheduler

VOCAB = 11
Z = 4.0  # of a chi-square statistic; seeds are fixed
ANCESTRAL = dict(sampler="ancestral", grid="uniform")
REMASKING = [
    dict(ANCESTRAL, remasking="cap", sigma=0.2),
    dict(ANCESTRAL, remasking="rescale", sigma=0.5),
    dict(ANCESTRAL, remasking="confidence", sigma=1.0),
    dict(ANCESTRAL, remasking="cap", sigma=0.4, loop_start=0.7, loop_stop=0.2),
]
CORRECTORS = [
    dict(corrector_steps=3, corrector_k=2),
    dict(corrector_steps=3, corrector_k=2, corrector_selection="confidence"),
    dict(corrector_steps=2, corrector_k=3, sampler="threshold", threshold=0.3),
    dict(corrector_steps=2, sampler="ancestral"),
    dict(REMASKING[0], corrector_steps=2, corrector_k=40),
]
PROMPTS = [[BOS, 3, 4, 5], [BOS, 6], [BOS, 7, MASK, MASK, 8, 9, MASK], [BOS, 3, 4, 5, 6, 7]]


def name(settings: dict) -> str:
    return "-".join(str(value) for value in settings.values())


# ----------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("settings", REMASKING + CORRECTORS, ids=name)
def test_given_positions_stay_and_the_last_reveals_are_counted(make_model, settings, block_size):
    pipe, reveals = make_pipe(make_model(block_size=block_size, eos_token_id=None)), []

    def watch(pipe, step, timestep, tensors):
        reveals.append((step, tensors["revealed"].clone(), tensors["sample"].clone()))

    out = pipe(
        [PROMPTS[2]],
        8,
        generator=generators(2),
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=["revealed", "sample"],
        **settings,
    )
    given = torch.tensor(PROMPTS[2]) != MASK
    assert torch.equal(out.sequences[0, given], torch.tensor(PROMPTS[2])[given])
    assert not (out.sequences == MASK).any()
    assert (out.order[0, given] == -1).all() and (out.num_reveals[0, given] == 0).all()
    if block_size is None:
        count = sum(revealed for _, revealed, _ in reveals)
        last = torch.full((1, 7), -1)
        for step, revealed, _ in reveals:
            last[revealed] = step
        assert torch.equal(out.num_reveals, count) and torch.equal(out.order, last)
        assert [step for step, *_ in reveals] == list(range(pipe.num_timesteps))


# every way in blocks, and one of each kind without blocks and with rates of tokens
ALONE = [("learned", 4, settings) for settings in REMASKING + CORRECTORS]
ALONE += [("learned", None, REMASKING[0]), ("token", 4, CORRECTORS[0])]
MORE_ALONE = [
    (*kind, settings)
    for kind in (("learned", None), ("token", 4))
    for settings in REMASKING + CORRECTORS
    if (*kind, settings) not in ALONE
]


@pytest.mark.parametrize(
    "rate_type, block_size, settings",
    [*ALONE, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_ALONE)],
    ids=lambda value: name(value) if isinstance(value, dict) else None,
)
def test_rows_are_what_they_are_alone_with_and_without_cache(
    make_model, rate_type, block_size, settings
):
    model = make_model(rate_type=rate_type, block_size=block_size, eos_token_id=None).double()
    pipe = make_pipe(model)

    def write(prompts, seeds, **options):
        return pipe(prompts, 6, max_length=17, generator=generators(*seeds), **settings, **options)

    together, plain = (write(PROMPTS, range(4), use_cache=cached) for cached in (True, False))
    fields = "sequences", "order", "num_reveals"
    assert all(torch.equal(together[field], plain[field]) for field in fields)
    assert not (together.sequences == MASK).any()
    assert together.num_reveals.max() > 1
    for row, prompt in enumerate(PROMPTS):
        alone = write([prompt], [row])
        length = alone.sequences.shape[1]
        for field in fields:
            assert torch.equal(together[field][row, :length], alone[field][0]), field


def test_beyond_the_context_what_an_earlier_window_wrote_is_given(make_model):
    pipe = make_pipe(make_model(max_position_embeddings=8, eos_token_id=None).double())
    for settings in (REMASKING[1], CORRECTORS[0]):
        windows = []

        def watch(pipe, step, timestep, tensors, windows=windows):
            windows.append((step // pipe.steps_of_window, tensors["sample"].clone()))

        pipe.steps_of_window = 6 + settings.get("corrector_steps", 0) * 2
        out = pipe(
            [[BOS]],
            6,
            max_length=16,
            generator=generators(1),
            callback_on_step_end=watch,
            **settings,
        )
        first = [sample for window, sample in windows if window == 0][-1]
        assert torch.equal(out.sequences[:, :8], first) and out.sequences.shape == (1, 16)


# ------------------------------------------------------------------------------------ remasking


@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("remasking", ["cap", "rescale", "confidence"])
@pytest.mark.parametrize("rate_type", ["learned", "uniform", "token"])
def test_no_strength_is_ancestral_bit_for_bit(make_model, rate_type, remasking, block_size):
    pipe = make_pipe(make_model(rate_type=rate_type, block_size=block_size, eos_token_id=None))
    plain, off = (
        pipe(PROMPTS, 6, max_length=17, generator=generators(*range(4)), **ANCESTRAL, **options)
        for options in ({}, dict(remasking=remasking, sigma=0.0))
    )
    assert torch.equal(plain.sequences, off.sequences) and torch.equal(plain.order, off.order)
    assert (off.num_reveals <= 1).all()


def masked_share(scheduler, rates, steps: int) -> torch.Tensor:
    """Share of rows `[steps, L]` in which a position is masked after each step, and squares."""
    count, length = 20_000, len(rates)
    sample, generator = torch.full((count, length), MASK), torch.Generator().manual_seed(0)
    logits, shares = torch.zeros(1, 1, VOCAB).expand(count, length, -1), []
    known = {"given": torch.zeros(count, length, dtype=torch.bool)}
    for timestep in scheduler.timesteps[:steps]:
        rows = rates.expand(count, -1)
        sample = scheduler.step(logits, timestep, sample, rows, generator, **known).prev_sample
        shares.append((sample == MASK).double().mean(0))
    return torch.stack(shares)


@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize("remasking", ["cap", "rescale"])
def test_shares_of_masked_positions_are_those_of_the_forward_process(remasking, block_size):
    rates = torch.tensor([0.2, 0.7, 1.0, 1.3])
    settings = dict(ANCESTRAL, remasking=remasking, sigma=0.3, block_size=block_size)
    scheduler = LoMDMScheduler(MASK, **settings)
    scheduler.set_timesteps(8)
    shares = masked_share(scheduler, rates, 8)
    times = [*scheduler.timesteps[1:].tolist(), 0.0]
    exact = torch.cat([1 - scheduler.alpha(t, rates[None].double()) for t in times])
    z = (shares - exact) / (exact * (1 - exact) / 20_000).sqrt().clamp(min=1e-9)
    assert z.abs().max() < Z


def test_in_a_loop_time_stands_still_and_the_rest_shares_the_time_evenly():
    rates = torch.tensor([0.5, 1.0, 1.4])
    settings = dict(ANCESTRAL, remasking="rescale", sigma=0.5, loop_start=0.6, loop_stop=0.2)
    scheduler = LoMDMScheduler(MASK, **settings)
    scheduler.set_timesteps(20)
    shares = masked_share(scheduler, rates, 20)
    # 8 steps to the loop, 8 within, 4 behind: times of a grid of 12
    local = [(12 - step) / 12 for step in range(1, 9)] + [4 / 12] * 8 + [3 / 12, 2 / 12, 1 / 12, 0]
    exact = torch.tensor(local, dtype=torch.float64)[:, None] ** rates.double()
    z = (shares - exact) / (exact * (1 - exact) / 20_000).sqrt().clamp(min=1e-9)
    assert z.abs().max() < Z


SMALL = [
    dict(remasking="cap", sigma=0.01),
    dict(remasking="rescale", sigma=0.01),
    dict(remasking="cap", sigma=0.01, loop_start=0.7, loop_stop=0.3),
]


def remask(settings: dict, steps: int) -> torch.Tensor:
    """Texts of the exact network, after a share of reveals that were not the last."""
    model, scheduler = exact_pipe().model, LoMDMScheduler(EXACT_MASK, **ANCESTRAL, **settings)
    scheduler.set_timesteps(steps)
    sample, generator = torch.full((5_000, N), EXACT_MASK), torch.Generator().manual_seed(0)
    # unequal, but the same in every state: a token must not tell how soon it is masked again
    rates = torch.tensor([0.4, 1.0, 1.4]).expand(sample.shape)
    known, reveals = {"given": torch.zeros_like(sample).bool()}, 0.0
    for timestep in scheduler.timesteps:
        logits = model(sample).logits
        step = scheduler.step(logits, timestep, sample, rates, generator, **known)
        sample, reveals = step.prev_sample, reveals + step.revealed.double().mean()
    assert reveals > 1.3 or steps < 100
    return sample


@pytest.mark.parametrize("settings", SMALL, ids=name)
def test_the_law_of_an_exact_network_stays_in_small_steps(settings):
    law = exact_pipe().model.law
    assert distance(remask(settings, 400), law) < Z
    # the test sees positions that do not know each other
    assert distance(remask(settings, 2), law) > Z


def write_exact(pipe, count: int, steps: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe(
        [[EXACT_MASK] * N], steps, num_return_sequences=count, generator=generator
    ).sequences


def distance(samples: torch.Tensor, law: dict) -> float:
    counts = torch.tensor([int((samples == torch.tensor(text)).all(1).sum()) for text in TEXTS])
    exact = torch.tensor([law[text] for text in TEXTS], dtype=torch.float64)
    return abs(oracles.chi_square_z(counts.double(), exact))


# ------------------------------------------------------------------------------------ corrector

SAMPLERS = {"sequential": 1, "random": 2, "left_to_right": 3, "confidence": 2}  # and the fast k


@pytest.mark.parametrize(
    "sampler, corrector_k",
    [
        pytest.param(sampler, k, marks=[] if k == first else pytest.mark.slow)
        for sampler, first in SAMPLERS.items()
        for k in (1, 2, 3)
    ],
)
def test_corrections_keep_the_law_of_an_exact_network(sampler, corrector_k):
    pipe = exact_pipe(sampler=sampler, corrector_steps=3, corrector_k=corrector_k)
    out = write_exact(pipe, 4_000, N)
    # by certainty the first samples have another law: a greedy order of an exact network has not
    assert distance(out, pipe.model.law) < Z


def test_corrections_bring_a_wrong_law_to_that_of_the_network():
    """All at once is a product of marginals; enough Gibbs steps forget it."""
    assert distance(write_exact(exact_pipe(), 2_000, 1), exact_pipe().model.law) > 3 * Z
    for corrector_k in (1, 2):
        pipe = exact_pipe(corrector_steps=16, corrector_k=corrector_k)
        assert distance(write_exact(pipe, 2_000, 1), pipe.model.law) < Z


def test_ancestral_corrections_reveal_one_at_a_time():
    pipe = exact_pipe(sampler="ancestral", corrector_steps=12, corrector_k=2)
    out = pipe([[EXACT_MASK] * N], 1, num_return_sequences=3_000, generator=torch.Generator())
    assert distance(out.sequences, pipe.model.law) < Z
    assert out.num_forward_passes == 1 + 24 and (out.num_reveals.sum(1) == N + 24).all()


def test_the_least_certain_are_corrected_and_ties_go_to_the_left():
    scheduler = LoMDMScheduler(MASK, corrector_k=2, corrector_selection="confidence")
    sample = torch.tensor([[3, 4, 5, 6, MASK, 7], [3, 4, 5, 6, 7, 8]])
    given = torch.tensor([[True, False, False, False, False, False], [False] * 6])
    certainties = torch.tensor(
        [[0.0, 0.5, 0.9, 0.3, 0.1, 0.8], [0.5, 0.5, 0.5 - 1e-6, 0.9, 0.9, 1]]
    )
    real = torch.tensor([[1] * 6, [1] * 6])
    chosen = scheduler.correct(sample, given, certainties=certainties, attention_mask=real)
    assert chosen.nonzero().tolist() == [[0, 1], [0, 3], [1, 0], [1, 1]]


def test_random_corrections_choose_evenly_and_only_what_is_free():
    scheduler = LoMDMScheduler(MASK, corrector_k=2)
    sample = torch.tensor([[3, 4, 5, 6, MASK, 7]]).expand(20_000, -1)
    given, real = torch.zeros_like(sample).bool(), torch.tensor([[1] * 5 + [0]]).expand(20_000, -1)
    given[:, 0] = True
    generator = torch.Generator().manual_seed(0)
    chosen = scheduler.correct(sample, given, generator, attention_mask=real)
    assert (chosen.sum(1) == 2).all() and not chosen[:, [0, 4, 5]].any()
    share = chosen[:, 1:4].double().mean(0)
    assert ((share - 2 / 3).abs() < Z * (2 / 9 / 20_000) ** 0.5).all()


def test_a_callback_that_stops_ends_the_corrections_too(make_model):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = step == 9  # of the first correction

    pipe = make_pipe(make_model(), corrector_steps=3, corrector_k=2)
    out = pipe(None, 8, max_length=8, callback_on_step_end=stop)
    assert out.num_forward_passes == 10 and pipe.num_timesteps == 14


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "config, message",
    [
        ({"remasking": "loop"}, "remasking must be one of cap, rescale, confidence, got 'loop'"),
        ({"remasking": "cap"}, "remasking='cap' needs .* got 'sequential' and 'adaptive'. Pass"),
        ({"remasking": "cap", "sampler": "ancestral"}, "got 'ancestral' and 'adaptive'. Pass both"),
        (dict(ANCESTRAL, remasking="cap", sigma=1.5), "sigma must be a number from 0.0 to 1.0"),
        (dict(ANCESTRAL, loop_start=0.5, loop_stop=0.1), "must be two times of remasking=None"),
        (dict(ANCESTRAL, remasking="cap", loop_start=0.5), "loop_start=0.5 and loop_stop=None"),
        (
            dict(ANCESTRAL, remasking="cap", loop_start=0.1, loop_stop=0.5),
            "the later one first. Pass for example 0.55 and 0.05",
        ),
        ({"corrector_steps": -1}, "corrector_steps must be a whole number from 0 .* got -1"),
        ({"corrector_k": 0}, "corrector_k must be a whole number from 1 .* got 0. Pass corr"),
        ({"corrector_selection": "worst"}, "corrector_selection must be one of random, confidence"),
    ],
    ids=str,
)
def test_bad_corrections_are_one_clear_line(make_model, config, message):
    with pytest.raises(ValueError, match=message) as caught:
        LoMDMScheduler(MASK, **config)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        make_pipe(make_model())(None, 4, **config)


def test_what_remasking_needs_is_asked_for():
    scheduler = LoMDMScheduler(MASK, **dict(ANCESTRAL, remasking="confidence"))
    scheduler.set_timesteps(2)
    sample, logits = torch.full((1, 4), MASK), torch.zeros(1, 4, VOCAB)
    rates, given = torch.ones(1, 4), torch.zeros(1, 4, dtype=torch.bool)
    for bad in (None, given[:, :2], given.long()):
        with pytest.raises(ValueError, match="given must be bool of the shape .* Pass True where"):
            scheduler.step(logits, 1.0, sample, rates, given=bad)
    for bad in (None, rates[:, :2], rates.long()):
        with pytest.raises(ValueError, match="certainties must be numbers of the shape .* Pass"):
            scheduler.step(logits, 1.0, sample, rates, given=given, certainties=bad)
    out = scheduler.step(logits, 1.0, sample, rates, given=given, certainties=rates)
    assert out.revealed.dtype == torch.bool
