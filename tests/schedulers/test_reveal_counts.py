"""How many positions a step reveals where the token laws decide."""

import itertools

import pytest
import torch

import oracles
from hf_lomdm import LoMDMPipeline
from hf_lomdm.modeling.process_lomdm import entropy_bound_prefix, threshold_prefix
from hf_lomdm.modeling.scheduling_lomdm import LoMDMScheduler

MASK, VOCAB, BOS = 10, 11, 1
ORDERS = ("sequential", "random", "left_to_right", "confidence", "margin", "entropy")
COUNTS = ("threshold", "entropy_bound")


def make(steps: int, **config) -> LoMDMScheduler:
    scheduler = LoMDMScheduler(MASK, **config)
    scheduler.set_timesteps(steps)
    return scheduler


def output(batch: int, length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of very different certainty, and rates."""
    generator = torch.Generator().manual_seed(seed)
    sharp = 8 * torch.rand(batch, length, 1, generator=generator)
    logits = sharp * torch.randn(batch, length, VOCAB, generator=generator)
    logits[..., MASK] = -torch.inf
    return logits, 0.05 + 1.3 * torch.rand(batch, length, generator=generator)


def law_of(logits: torch.Tensor) -> torch.Tensor:
    return logits.double().softmax(-1)


def reveal(logits, rates, masked, **config) -> list[int]:
    """Columns of one row that the first of many steps reveals."""
    sample = torch.where(masked, MASK, 3)
    scheduler = make(config.pop("steps", 1000), **config)
    generator = torch.Generator().manual_seed(5)
    revealed = scheduler.select(rates, 1.0, sample, generator, logits=logits)
    return revealed[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("tau", [0.0, 0.5, 0.9, 0.99])
def test_threshold_reveals_who_exceeds_it_or_the_surest_one(seed, tau):
    logits, rates = output(1, 12, seed)
    masked = torch.arange(12)[None] % 4 != 1
    best = law_of(logits).amax(-1)[0]
    expected = [i for i in range(12) if masked[0, i] and best[i] > tau]
    surest = max((i for i in range(12) if masked[0, i]), key=lambda i: best[i])
    for config in (
        dict(sampler="threshold"),
        dict(sampler="confidence", count="threshold"),
    ):
        found = reveal(logits, rates, masked, threshold=tau, **config)
        assert found == (expected or [surest]), config


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("gamma", [0.0, 0.05, 0.5, 2.0, 100.0])
def test_entropy_bound_reveals_the_longest_prefix_within_it(seed, gamma):
    logits, rates = output(1, 12, seed)
    masked = torch.arange(12)[None] % 4 != 1
    entropy = torch.special.entr(law_of(logits)).sum(-1)[0].tolist()
    ascending = sorted((i for i in range(12) if masked[0, i]), key=lambda i: entropy[i])
    prefixes = [ascending[:n] for n in range(1, len(ascending) + 1)]
    fits = [
        one
        for one in prefixes
        if sum(entropy[i] for i in one) - max(entropy[i] for i in one) <= gamma
    ]
    for config in (
        dict(sampler="entropy_bound"),
        dict(sampler="entropy", count="entropy_bound"),
    ):
        assert reveal(logits, rates, masked, entropy_bound=gamma, **config) == sorted(fits[-1])
    assert gamma != 0.0 or len(fits[-1]) == 1
    assert gamma != 100.0 or len(fits[-1]) == 9


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("order", ORDERS)
def test_another_order_goes_as_far_as_the_bound_lets_it(order, count):
    """A prefix of its own order of one at a time, the longest that keeps to the bound."""
    settings = {"threshold": 0.6} if count == "threshold" else {"entropy_bound": 0.8}
    lengths = set()
    for seed in range(30):
        logits, rates = output(1, 12, seed)
        masked = torch.ones(1, 12, dtype=torch.bool)
        # the order of the same draws, by how far each is from the first
        by_count = [
            reveal(logits, rates, masked, sampler=order, steps=steps)
            for steps in (12, 6, 4, 3, 2, 1)
        ]
        found = reveal(logits, rates, masked, sampler=order, count=count, **settings)
        law = law_of(logits)[0]
        entropy = torch.special.entr(law).sum(-1)
        if count == "threshold":
            keeps = all(law[i].max() > 0.6 for i in found)
        else:
            keeps = entropy[found].sum() - entropy[found].max() <= 0.8
        assert keeps or len(found) == 1
        for shorter in by_count:
            small, large = sorted((shorter, found), key=len)
            assert set(small) <= set(large)
        lengths.add(len(found))
    assert len(lengths) > 1


def test_prefixes_are_those_of_enumeration():
    generator = torch.Generator().manual_seed(0)
    for length in range(1, 6):
        values = torch.rand(200, length, generator=generator, dtype=torch.float64)
        values[:50, -1] = torch.inf  # not masked
        for row in values:
            exceeds = [n for n in range(length + 1) if all(v > 0.4 for v in row[:n].tolist())]
            assert threshold_prefix(row[None], 0.4).item() == max(exceeds)
            sums = [float(row[:n].sum() - row[:n].max()) for n in range(1, length + 1)]
            # an infinite one ends the prefix, and is part of none
            fits = [n for n, value in enumerate(sums, 1) if value <= 0.7 and row[n - 1] < torch.inf]
            fits = fits or [0]
            assert entropy_bound_prefix(row[None], 0.7).item() == max(fits)


def total_correlation(joint: torch.Tensor) -> float:
    parts = [joint.sum([j for j in range(joint.ndim) if j != i]) for i in range(joint.ndim)]
    return float(sum(torch.special.entr(p).sum() for p in parts) - torch.special.entr(joint).sum())


def test_sum_minus_largest_bounds_what_tokens_know_of_each_other():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        joint = torch.rand(3, 3, 3, generator=generator, dtype=torch.float64) ** 6
        joint /= joint.sum()
        parts = [joint.sum([j for j in range(3) if j != i]) for i in range(3)]
        entropies = torch.stack([torch.special.entr(p).sum() for p in parts])
        bound = float(entropies.sum() - entropies.max())
        assert total_correlation(joint) <= bound + 1e-12
        assert entropy_bound_prefix(entropies[None], bound + 1e-9).item() == 3


@pytest.mark.parametrize("count", COUNTS)
def test_steps_are_a_limit_that_is_kept_evenly(count):
    logits, rates = output(2, 12)
    nothing_is_sure = dict(threshold=1.0, entropy_bound=0.0)
    for steps in (1, 3, 4, 12, 30):
        scheduler = make(steps, sampler="sequential", count=count, **nothing_is_sure)
        sample, history = torch.full((2, 12), MASK), []
        sample[1, :8] = 3
        for t in scheduler.timesteps:
            out = scheduler.step(logits, t, sample, rates, torch.Generator().manual_seed(0))
            sample, revealed = out.prev_sample, out.revealed
            history.append(revealed.sum(1).tolist())
        assert (sample != MASK).all()
        plain = make(steps, sampler="random").num_reveals([12, 4], 1.0)
        assert history[0] == plain and sum(n for n, _ in history) == 12


@pytest.mark.parametrize("count", COUNTS)
def test_no_certainty_is_one_at_a_time_with_the_law_of_one_at_a_time(make_model, count):
    """`threshold=1` and `entropy_bound=0`: the exact process, in the order of certainty too."""
    pipe = make_pipe(make_model().double())
    limit = {"threshold": 1.0, "entropy_bound": 0.0}[count]
    for sampler in ORDERS:
        plain, bounded = (
            pipe(
                [[BOS, 3], [BOS, 4, 5, 6]],
                20,
                max_new_tokens=7,
                sampler=sampler,
                generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
                **options,
            )
            for options in ({}, {"count": count, count: limit})
        )
        assert torch.equal(plain.sequences, bounded.sequences)
        assert torch.equal(plain.order, bounded.order)
        assert bounded.num_forward_passes == 7 and bounded.tokens_per_pass == 1


# ------------------------------------------------------------------------------------ the pipeline


def make_pipe(model, **settings) -> LoMDMPipeline:
    size = model.config.block_size
    pipe = LoMDMPipeline(model, LoMDMScheduler(MASK, block_size=size, **settings))
    pipe.set_progress_bar_config(disable=True)
    return pipe


PROMPTS = [[BOS, 3, 4, 5], [BOS, 6], [BOS, 7, MASK, MASK, 8, 9, MASK], [BOS, 3, 4, 5, 6, 7]]
KINDS = [("learned", None), ("token", None), ("score", 4), ("learned", 4), ("uniform", 4)]
BOUNDS = {"threshold": 0.3, "entropy_bound": 2.2}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("sampler", ["sequential", "confidence", "random"])
@pytest.mark.parametrize("rate_type, block_size", KINDS)
def test_rows_are_what_they_are_alone_with_and_without_cache(
    make_model, rate_type, block_size, sampler, count
):
    model = make_model(rate_type=rate_type, block_size=block_size, eos_token_id=None).double()
    pipe = make_pipe(model, sampler=sampler, count=count, **BOUNDS)
    seeds = range(len(PROMPTS))

    def write(prompts, seeds, **options):
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(prompts, 16, max_length=17, generator=generator, **options)

    together, plain = (write(PROMPTS, seeds, use_cache=cached) for cached in (True, False))
    assert torch.equal(together.sequences, plain.sequences)
    assert torch.equal(together.order, plain.order)
    assert not (together.sequences == MASK).any()
    for row, prompt in enumerate(PROMPTS):
        alone = write([prompt], [row])
        length = alone.sequences.shape[1]
        assert torch.equal(together.sequences[row, :length], alone.sequences[0])
        assert torch.equal(together.order[row, :length], alone.order[0])
        assert alone.num_forward_passes == alone.row_passes == together.row_passes[row]
    written = int((together.order >= 0).sum())
    assert together.tokens_per_pass == written / int(together.row_passes.sum())
    assert together.tokens_per_pass > 1 and together.seconds > 0


@pytest.mark.parametrize("sampler", ["threshold", "entropy_bound"])
def test_the_names_are_an_order_with_a_count(make_model, sampler):
    pipe = make_pipe(make_model().double())
    order = {"threshold": "confidence", "entropy_bound": "entropy"}[sampler]
    named, spelt = (
        pipe(
            *(None, 31),
            generator=torch.Generator().manual_seed(0),
            **options,
            **{sampler: BOUNDS[sampler]},
        )
        for options in (dict(sampler=sampler), dict(sampler=order, count=sampler))
    )
    assert torch.equal(named.sequences, spelt.sequences) and torch.equal(named.order, spelt.order)
    assert named.num_forward_passes == int(named.order.max()) + 1 < 32


def test_counts_are_settings_of_the_call_and_of_the_configuration(make_model, tmp_path):
    pipe = make_pipe(make_model(), sampler="threshold", threshold=0.3, entropy_bound=0.7)
    pipe.scheduler.save_pretrained(tmp_path)
    stored = LoMDMScheduler.from_pretrained(tmp_path).config
    assert (stored.sampler, stored.threshold, stored.entropy_bound) == ("threshold", 0.3, 0.7)
    few = pipe(None, 32, threshold=0.0).num_forward_passes
    assert few == 1 and pipe(None, 32, threshold=1.0).num_forward_passes == 32
    assert pipe.scheduler.config.threshold == 0.3


@pytest.mark.parametrize(
    "config, message",
    [
        ({"count": "best"}, "count must be one of steps, threshold, entropy_bound, got 'best'"),
        ({"threshold": 1.5}, "threshold must be a number from 0.0 to 1.0, got 1.5. Pass thresh"),
        ({"threshold": None}, "threshold must be a number .* got None"),
        ({"entropy_bound": -1}, "entropy_bound must be a number from 0.0 .* got -1. Pass entropy"),
        ({"entropy_bound": float("nan")}, "entropy_bound must be .* got nan"),
        (
            {"sampler": "threshold", "count": "steps"},
            "count='steps' contradicts sampler='threshold'.* Pass count='threshold' or another",
        ),
        (
            {"sampler": "ancestral", "count": "threshold"},
            "count='threshold' contradicts sampler='ancestral'.* Leave count out",
        ),
    ],
)
def test_bad_counts_are_one_clear_line(make_model, config, message):
    with pytest.raises(ValueError, match=message) as caught:
        LoMDMScheduler(MASK, **config)
    assert "\n" not in str(caught.value)
    pipe = make_pipe(make_model())
    if None not in config.values():
        with pytest.raises(ValueError, match=message):
            pipe(None, 4, **config)


def test_a_consistent_network_keeps_its_law_at_any_pace():
    """Independent positions: what is revealed together cannot contradict itself."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    logits[:, 3] = -torch.inf
    law = {
        text: float(sum(logits.log_softmax(-1)[i, y] for i, y in enumerate(text)).exp())
        for text in itertools.product(range(3), repeat=3)
    }
    for count in COUNTS:
        scheduler = LoMDMScheduler(3, "random", count=count, threshold=0.3, entropy_bound=1.2)
        scheduler.set_timesteps(3)
        sample, generator = torch.full((20_000, 3), 3), torch.Generator().manual_seed(1)
        for t in scheduler.timesteps:
            model = logits.expand(len(sample), -1, -1)
            sample = scheduler.step(model, t, sample, None, generator).prev_sample
        counts = torch.tensor([int((sample == torch.tensor(text)).all(1).sum()) for text in law])
        exact = torch.tensor(list(law.values()), dtype=torch.float64)
        assert abs(oracles.chi_square_z(counts.double(), exact)) < 4
