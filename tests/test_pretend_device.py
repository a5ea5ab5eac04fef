"""Whether everything runs on a device that is not the CPU, with the same results, and how often the
host waits for it.

The checks run in a process of their own, `python tests/test_pretend_device.py`, for a device cannot
be taken back: on three members of the family, or with the argument `all` on all of them.
"""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pretend_device
from conftest import build_model
from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.evaluation.corpus import evaluate_corpus
from hf_lomdm.evaluation.likelihood import exact_log_likelihood, nelbo
from hf_lomdm.evaluation.order import evaluate_order
from hf_lomdm.modeling import token_losses_lomdm
from hf_lomdm.modeling.settings_lomdm import COUNTING_SAMPLERS, SAMPLERS
from pretend_device import waits

WHOLE = len(sys.argv) > 1  # in the process that checks; pytest reads no more than the names
FAMILY = [
    {"rate_type": "learned"},
    {"rate_type": "token"},
    {"rate_type": "learned", "block_size": 4},
]
OTHERS = [
    {"rate_type": "score"},
    {"rate_type": "uniform"},
    {"rate_type": "uniform", "block_size": 4},
]
# samplers by rates, by law and by count, without and with what a member adds
FEW = [("sequential", "ancestral", "confidence", "threshold"), ("sequential",), ("threshold",)]
TEXTS = torch.tensor([[1, 3, 4, 5, 6, 7, 8, 9, 3, 3, 5, 2], [1, 9, 8, 7, 6, 5, 4, 3, 2, 0, 0, 0]])
REAL = TEXTS.ne(0).long()


def numbers(result) -> list[float]:
    """All numbers in a result, but for times."""
    if isinstance(result, Tensor):
        return result.detach().cpu().double().flatten().tolist()
    if isinstance(result, dict):
        return [
            number for key, value in result.items() if key != "seconds" for number in numbers(value)
        ]
    if isinstance(result, (list, tuple)):
        return [number for value in result for number in numbers(value)]
    return [float(result)] if isinstance(result, (int, float)) else []


def on_both(device: torch.device, measure: Callable, **settings) -> None:
    """`measure(model, place)` gives the same numbers on the CPU and on the device; `place` moves a
    tensor there."""
    here = numbers(measure(build_model(**settings), lambda values: values))
    there = numbers(measure(build_model(**settings).to(device), lambda values: values.to(device)))
    assert len(here) > 0
    # both compute with the CPU's kernels, but a CPU reads rows a few at a time and sums a loss in
    # other chunks
    torch.testing.assert_close(
        there, here, rtol=2e-4, atol=2e-5, msg=lambda text: f"{settings}: {text}"
    )


def check_device(device: torch.device) -> None:
    """The device itself: it computes, refuses to mix, and notices waiting."""
    values = torch.arange(3.0).to(device, non_blocking=True)
    assert (values + 1).tolist() == [1, 2, 3] and waits == {"_to_copy": 1}  # back to the host
    assert (
        float(values.sum()) == 3
        and values[values > 0].shape == (2,)
        and waits["_local_scalar_dense"] == 1
    )
    assert waits["index"] == 1 and torch.tensor([1, 2], device=device).device == device
    assert waits["_to_copy"] == 2
    for mixed in (
        lambda: values + torch.ones(3),
        lambda: torch.ones(3)[torch.tensor([0], device=device)],
    ):
        with pytest.raises(RuntimeError, match="all tensors must be on one device"):
            mixed()


def check_losses(device: torch.device) -> None:
    """Loss and gradients of every member of the family; the host waits once, for where the masks
    are."""

    token_losses_lomdm.DEVICE_LOGITS = 40  # several chunks

    def losses(model, place, bound: str, padded: bool, attention: str = "sdpa"):
        model.train().set_attn_implementation(attention)
        if model.config.block_size is None:
            model.gradient_checkpointing_enable()
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        texts, mask = place(TEXTS), place(REAL) if padded else None
        waits.clear()
        out = model(
            input_ids=texts, labels=texts, attention_mask=mask, generator=generators, bound=bound
        )
        out.loss.backward()
        if texts.device == device:
            assert waits == {"nonzero": 1}, (model.config, waits)
        return [
            out.loss,
            out.nelbo,
            *(weight.grad for weight in model.parameters() if weight.grad is not None),
        ]

    for settings in FAMILY + OTHERS * WHOLE:
        for bound, padded in product(("order", "time"), (False, True)):
            if WHOLE or padded == (bound == "order"):
                on_both(device, partial(losses, bound=bound, padded=padded), **settings)
    on_both(device, partial(losses, bound="order", padded=True, attention="eager"))


def check_texts(device: torch.device) -> None:
    """Texts of every sampler. The host waits no more often in more steps, but for its counts.

    Where a count follows from a draw or from the token laws it waits once in each step.
    """

    def write(model, place, sampler: str, steps: int = 3):
        scheduler = LoMDMScheduler(
            mask_token_id=10, sampler=sampler, block_size=model.config.block_size
        )
        pipe = LoMDMPipeline(model=model, scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        waits.clear()
        out = pipe(
            [[1, 3, 4], [1, 5]], steps, max_new_tokens=9, generator=generators, output_type="seq"
        )
        counts[steps] = waits.total()
        order = out.order.cpu()
        last = [order[order // steps == window] for window in range(int(order.max()) // steps + 1)]
        taken[steps] = sum(int(of_window.max()) % steps + 1 for of_window in last)
        return [out.sequences, out.order]

    counts: dict[int, int] = {}
    taken: dict[int, int] = {}  # steps until nothing was left
    for settings, sampler in product(FAMILY, SAMPLERS):
        if not WHOLE and sampler not in FEW[FAMILY.index(settings)]:
            continue
        on_both(device, partial(write, sampler=sampler), **settings)
        write(build_model(**settings).to(device), None, sampler, 6)
        counted = taken[6] - taken[3] if sampler in ("ancestral", *COUNTING_SAMPLERS) else 0
        assert counts[6] - counts[3] == counted, (settings, sampler, counts, taken)


def check_measures(device: torch.device) -> None:
    """Bounds, exact likelihood and what was learned of the order."""

    labels = TEXTS.clone()
    labels[:, 5:] = -100
    rows = [
        {"input_ids": text[real.bool()].tolist()} for text, real in zip(TEXTS, REAL, strict=True)
    ]

    def bound(model, place, **options):
        generator = torch.Generator().manual_seed(1)
        estimate = nelbo(
            model, place(TEXTS), place(REAL), num_samples=2, generator=generator, **options
        )
        return [estimate.nelbo, estimate.standard_error]

    def exact(model, place):
        return exact_log_likelihood(model, place(TEXTS), labels=place(labels))

    def records(model, place):
        return evaluate_corpus(model, rows, progress=False), evaluate_order(
            model, rows, num_samples=2, progress=False
        )

    for settings in FAMILY + OTHERS if WHOLE else FAMILY[2:]:
        for options in ({}, {"bound": "time"}, {"num_orders": 2}):
            on_both(device, partial(bound, **options), **settings)
        on_both(device, exact, **settings)
        on_both(device, records, **settings)


@pytest.mark.skipif(
    not pretend_device.AVAILABLE, reason="this torch has no devices that are written in Python"
)
@pytest.mark.parametrize("words", [[], pytest.param(["all"], marks=pytest.mark.slow)])
def test_on_a_device_that_is_not_the_cpu(words):
    command = [sys.executable, str(Path(__file__)), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]


if __name__ == "__main__":
    started = pretend_device.start()
    for check in (check_device, check_losses, check_texts, check_measures):
        check(started)
