"""What `LoMDMScheduler` refuses: settings, steps, times, rates and tensors, each by its name."""

import itertools

import pytest
import torch
from tiny_scheduler import MASK, generators, make, random_output

from hf_lomdm.modeling.scheduling_lomdm import LoMDMScheduler


@pytest.mark.parametrize(
    "config",
    [
        dict(mask_token_id=-1),
        dict(mask_token_id=10.0),
        dict(mask_token_id=None),
        dict(mask_token_id=2**31),
        dict(sampler="greedy"),
        dict(sampler=None),
        dict(sampler=["margin"]),
        dict(block_size=2.5),
        dict(block_size="4"),
        dict(block_size=True),
        dict(block_size=10**30),
        dict(temperature="1"),
        dict(temperature=None),
        dict(temperature=[1.0]),
        dict(top_p=float("nan")),
        dict(top_k=2.0),
        dict(top_k=float("inf")),
        dict(grid="cosine"),
        dict(block_size=0),
        dict(temperature=-0.1),
        dict(temperature=float("nan")),
        dict(temperature=float("inf")),
        dict(top_p=0.0),
        dict(top_p=1.5),
        dict(top_k=0),
    ],
    ids=str,
)
def test_bad_config_names_the_argument(config):
    (name,) = config
    for act in (
        lambda: LoMDMScheduler(**{"mask_token_id": MASK} | config),
        lambda: make(2).register_to_config(**config),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be .*got .*Pass .*$"):
            act()


def test_bad_steps_and_times_are_refused():
    with pytest.raises(
        ValueError, match="num_inference_steps must be a whole number from 1 to 100000, got 0. Pass"
    ):
        LoMDMScheduler(MASK).set_timesteps(0)
    for bad in (2.5, 2.0, "2", None, True, 10**9, float("inf"), float("nan")):
        with pytest.raises(
            ValueError, match=f"num_inference_steps must be a whole number .*got {bad!r}. Pass"
        ):
            LoMDMScheduler(MASK).set_timesteps(bad)
    whole = LoMDMScheduler(MASK)
    whole.set_timesteps(torch.tensor([2]).numpy()[0])  # an integer of numpy
    assert whole.timesteps.tolist() == [1.0, 0.5]
    logits, rates = random_output(1, 4)
    sample = torch.full((1, 4), MASK)
    with pytest.raises(ValueError, match="Call set_timesteps"):
        LoMDMScheduler(MASK).step(logits, 1.0, sample, rates)
    for bad in (0.9, 0.0, 1.25, float("nan"), torch.tensor(0.3)):
        with pytest.raises(ValueError, match="not in the grid of 4 steps"):
            make(4).step(logits, bad, sample, rates)
    with pytest.raises(ValueError, match="timestep must be one number"):
        make(4).step(logits, torch.tensor([1.0, 0.5]), sample, rates)
    for bad in ("1", None, [1.0]):
        with pytest.raises(ValueError, match="timestep must be one number, got"):
            make(4).step(logits, bad, sample, rates)
    bad_times = (
        1.5,
        -0.1,
        torch.tensor([0.1, 0.2]),
        float("nan"),
        torch.tensor([500]),
        "0.5",
        [0.5],
        None,
    )
    for bad, name in itertools.product(bad_times, ("alpha", "velocity")):
        with pytest.raises(ValueError, match="timesteps must .*0 is data"):
            getattr(LoMDMScheduler(MASK), name)(bad, rates)
        with pytest.raises(ValueError, match="timesteps must .*0 is data"):
            LoMDMScheduler(MASK).add_noise(sample, rates, bad)
    assert LoMDMScheduler(MASK).alpha(1, rates).eq(0).all()  # a whole number that is a time


def test_bad_rates_are_refused_by_the_forward_process():
    _, rates = random_output(1, 4)
    text, scheduler, real = (
        torch.tensor([[1, 2, 3, 4]]),
        LoMDMScheduler(MASK),
        torch.tensor([[1, 1, 0, 1]]),
    )

    def calls(rates, **mask):
        yield lambda: scheduler.alpha(0.5, rates, **mask)
        yield lambda: scheduler.velocity(0.5, rates, **mask)
        yield lambda: scheduler.add_noise(text, rates, 0.5, **mask)

    for bad in (0.0, -1.0, float("nan"), float("inf")):
        wrong = rates.index_fill(1, torch.tensor([2]), bad)
        for call in calls(wrong):
            with pytest.raises(
                ValueError, match="rates must be positive and finite where they count, got"
            ):
                call()
        for call in calls(wrong, attention_mask=real):  # padding may hold anything
            call()
    for bad in (rates.long(), rates > 0, rates.tolist(), None, rates[0], rates[:, :3]):
        with pytest.raises(ValueError, match="rates"):
            scheduler.add_noise(text, bad, 0.5)
    for call in (*calls(2 * torch.ones(1, 4).long()), *calls(rates, attention_mask=real[:, :3])):
        with pytest.raises(
            ValueError, match="rates must be a floating tensor|attention_mask must have the shape"
        ):
            call()
    assert torch.equal(scheduler.alpha(0.5, 2 * torch.ones(1, 4)), torch.full((1, 4), 0.75))


def test_bad_tensors_are_refused():
    logits, rates = random_output(2, 4)
    sample = torch.full((2, 4), MASK)
    step = make(2).step
    with pytest.raises(ValueError, match="rates is None.*sequential"):
        step(logits, 1.0, sample)
    with pytest.raises(ValueError, match="logits is None.*entropy"):
        make(2, sampler="entropy").select(None, 1.0, sample)
    with pytest.raises(ValueError, match="rates must have the shape"):
        step(logits, 1.0, sample, rates[:1])
    with pytest.raises(ValueError, match="logits must have the shape"):
        step(logits[:, :3], 1.0, sample, rates)
    with pytest.raises(ValueError, match="attention_mask must have the shape"):
        step(logits, 1.0, sample, rates, attention_mask=torch.ones(2, 5))
    with pytest.raises(ValueError, match="sample must be token ids"):
        step(logits, 1.0, sample[0], rates)
    with pytest.raises(ValueError, match="sample must be token ids"):
        step(logits, 1.0, sample.bool(), rates)
    for bad in (0, [0, 1], "1", [None, None]):
        with pytest.raises(
            ValueError, match="generator must be a torch.Generator.*Pass torch.Generator"
        ):
            step(logits, 1.0, sample, rates, bad)
    with pytest.raises(ValueError, match="generator has 3 entries for a batch of 2"):
        step(logits, 1.0, sample, rates, generators(1, 2, 3))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_rates_are_refused_where_they_count(bad):
    logits, rates = random_output(1, 4)
    rates[0, 2] = bad
    sample = torch.full((1, 4), MASK)
    for sampler in ("sequential", "ancestral"):
        with pytest.raises(ValueError, match="rates must be positive and finite"):
            make(2, sampler=sampler).step(logits, 1.0, sample, rates)
        sample_with_given = sample.index_fill(1, torch.tensor([2]), 3)
        make(2, sampler=sampler).step(logits, 1.0, sample_with_given, rates)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("sampler", ["sequential", "confidence", "entropy"])
def test_bad_logits_are_refused_where_they_count(bad, sampler):
    logits, rates = random_output(1, 4)
    logits[0, 2] = bad
    sample = torch.full((1, 4), MASK)
    for temperature in (0.0, 1.0):
        scheduler = make(1, sampler=sampler, temperature=temperature)
        with pytest.raises(ValueError, match="logits give no law"):
            scheduler.step(logits, 1.0, sample, rates)
        given = sample.index_fill(1, torch.tensor([2]), 3)
        assert (scheduler.step(logits, 1.0, given, rates).prev_sample != MASK).all()
