"""The settings of the scheduler, and the checks of what it is given. This file travels to the Hub."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .process_lomdm import float64_device

RATE_SAMPLERS = ("sequential", "ancestral")
LOGIT_SAMPLERS = ("confidence", "margin", "entropy")
# Samplers that decide by the token laws how many are revealed, and the order of each.
COUNTING_SAMPLERS = {"threshold": "confidence", "entropy_bound": "entropy"}
SAMPLERS = (*RATE_SAMPLERS, "random", "left_to_right", *LOGIT_SAMPLERS, *COUNTING_SAMPLERS)
COUNTS = ("steps", *COUNTING_SAMPLERS)
GRIDS = ("adaptive", "uniform")

# Every setting: its type, its values or their range, and what to pass instead of others.
SETTINGS = {
    "mask_token_id": (Integral, (0, 2**31 - 1), "tokenizer.mask_token_id"),
    "sampler": (str, SAMPLERS, "sampler='sequential'"),
    "grid": (str, GRIDS, "grid='adaptive'"),
    "count": (str, COUNTS, "None for the sampler's own"),
    "threshold": (Real, (0.0, 1.0), "threshold=0.95"),
    "entropy_bound": (Real, (0.0, 1e30), "entropy_bound=0.1"),
    "block_size": (Integral, (1, 2**31 - 1), "None for one window"),
    "temperature": (Real, (0.0, 1e30), "1.0 for the model's own law"),
    "top_p": (Real, (1e-30, 1.0), "None to keep all tokens"),
    "top_k": (Integral, (1, 2**31 - 1), "None to keep all tokens"),
    "num_inference_steps": (Integral, (1, 10**5), "the number of reveal steps, for example 256"),
}
OPTIONAL = ("block_size", "top_p", "top_k", "count")


def check_setting(name: str, value: object) -> str | int | float | None:
    """`value` of the setting `name` as a plain string, number or `None`; `ValueError` if it cannot
    be one."""
    kind, allowed, remedy = SETTINGS[name]
    if value is None and name in OPTIONAL:
        return None
    rule = (
        f"one of {', '.join(allowed)}"
        if kind is str
        else "a whole number"
        if kind is Integral
        else "a number"
    )
    known = isinstance(value, kind) and not isinstance(value, bool)
    if not known or not (value in allowed if kind is str else allowed[0] <= value <= allowed[1]):
        rule += "" if kind is str else f" from {allowed[0]} to {allowed[1]}"
        raise ValueError(f"{name} must be {rule}, got {value!r}. Pass {remedy}.")
    return value if kind is str else int(value) if kind is Integral else float(value)


def check_pairs(settings: Mapping[str, Any]) -> None:
    """Raises `ValueError` for settings that contradict each other."""
    sampler, count = settings["sampler"], settings["count"]
    wrong = f"count={count!r} contradicts sampler={sampler!r}"
    require(
        sampler not in COUNTING_SAMPLERS or count in (None, sampler),
        f"{wrong}, which decides the count. Pass count={sampler!r} or another sampler.",
    )
    require(
        sampler != "ancestral" or count in (None, "steps"),
        f"{wrong}, whose grid decides the count. Leave count out or pass sampler='sequential'.",
    )


def describe(value: object) -> str:
    return (
        f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    )


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def float64_rates(rates: Tensor, where: Tensor | None) -> Tensor:
    """Rates `[B, L]` in float64, 1 outside of `where` `[B, L]` (`None` = everywhere), checked on
    the CPU."""
    floating = isinstance(rates, Tensor) and rates.ndim == 2 and rates.is_floating_point()
    require(
        floating,
        f"rates must be a floating tensor [B, L], got {describe(rates)}. Pass rates.float().",
    )
    fits, wrong = (
        where is None or where.shape == rates.shape,
        "attention_mask must have the shape of rates",
    )
    require(fits, f"{wrong}, {tuple(rates.shape)}, got {describe(where)}. Pass 1 for real tokens.")
    rates = rates.to(float64_device(rates.device)).to(torch.float64)
    if where is not None:
        rates = torch.where(where.to(rates.device).bool(), rates, torch.ones_like(rates))
    if rates.device.type == "cpu" and not (fine := (rates > 0) & rates.isfinite()).all():
        worst = rates[~fine][0].item()
        raise ValueError(
            f"rates must be positive and finite where they count, got {worst}. Check the weights."
        )
    return rates


def times_of_rows(timesteps: float | Tensor, rates: Tensor) -> Tensor:
    """Times `[1, 1]` or `[B, 1]` in float64 on the device of `rates` `[B, L]`."""
    times = (
        torch.tensor(timesteps, dtype=torch.float64) if isinstance(timesteps, Real) else timesteps
    )
    fits = isinstance(times, Tensor) and times.is_floating_point() and times.ndim <= 2
    wrong = f"timesteps must be one floating number, or one for each of {len(rates)} rows, got {describe(timesteps)}. "
    require(fits and times.numel() in (1, len(rates)), wrong + "0 is data, 1 is all masked.")
    times = times.to(rates.device).to(torch.float64)
    if times.device.type == "cpu" and not ((times >= 0) & (times <= 1)).all():
        raise ValueError(
            f"timesteps must lie in [0, 1], got {times.flatten().tolist()}. 0 is data, 1 is all masked."
        )
    return times.reshape(-1, 1)
