"""What the scheduler may be given. This file travels to the Hub.

Each error is one line that names the argument, the value and the remedy.
"""

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .random_lomdm import float64_device


def check_shapes(
    sample: Tensor,
    rates: Tensor | None,
    attention_mask: Tensor | None,
    logits: Tensor | None = None,
) -> None:
    """Raises `ValueError` for what is no sample `[B, L]`, or does not fit it."""
    ids = (
        isinstance(sample, Tensor)
        and sample.ndim == 2
        and sample.dtype in (torch.int64, torch.int32)
    )
    require(ids, f"sample must be token ids [B, L], got {describe(sample)}. Pass int64.")
    for name, value in (("rates", rates), ("attention_mask", attention_mask)):
        fits = value is None or (isinstance(value, Tensor) and value.shape == sample.shape)
        shape = f"{name} must have the shape {tuple(sample.shape)} of sample"
        require(fits, f"{shape}, got {describe(value)}. Pass one value per position.")
    fits = logits is None or (logits.ndim == 3 and logits.shape[:2] == sample.shape)
    shape = f"logits must have the shape [{sample.shape[0]}, {sample.shape[1]}, V]"
    require(fits, f"{shape}, got {describe(logits)}. Pass one row per text.")


def check_given(sample: Tensor, given: Tensor | None) -> None:
    """Raises `ValueError` for what does not say of each position whether it is given."""
    fits = isinstance(given, Tensor) and given.dtype == torch.bool
    wrong = f"given must be bool of the shape {tuple(sample.shape)} of sample for remasking"
    require(
        fits and given.shape == sample.shape,
        f"{wrong}, got {describe(given)}. Pass True where a position must not change.",
    )


def check_certainties(sample: Tensor, certainties: Tensor | None) -> None:
    """Raises `ValueError` for what is no number of each position."""
    fits = isinstance(certainties, Tensor) and certainties.is_floating_point()
    wrong = f"certainties must be numbers of the shape {tuple(sample.shape)} of sample"
    require(
        fits and certainties.shape == sample.shape,
        f"{wrong}, got {describe(certainties)}. Pass what each token's probability was.",
    )


def check_timestep(timestep: float | Tensor) -> None:
    """Raises `ValueError` for what is no number, or more than one."""
    number = isinstance(timestep, Real)
    if isinstance(timestep, Tensor):
        number = timestep.numel() == 1
    wrong = f"timestep must be one number, got {describe(timestep)}. Pass timesteps[i]."
    require(number, wrong)


def describe(value: object) -> str:
    """What an error says of a value: dtype and shape of a tensor, anything else as it is."""
    return (
        f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    )


def require(condition: bool, message: str) -> None:
    """Raises `ValueError` with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def float64_rates(rates: Tensor, where: Tensor | None) -> Tensor:
    """Rates `[B, L]` in float64, 1 outside of `where` `[B, L]` (`None` = everywhere).

    They are checked on the CPU.
    """
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
    times: Any = (
        torch.tensor(timesteps, dtype=torch.float64) if isinstance(timesteps, Real) else timesteps
    )
    fits = isinstance(times, Tensor) and times.is_floating_point() and times.ndim <= 2
    wrong = f"timesteps must be one floating number, or one for each of {len(rates)} rows, got "
    wrong += f"{describe(timesteps)}. "
    require(fits and times.numel() in (1, len(rates)), wrong + "0 is data, 1 is all masked.")
    times = times.to(rates.device).to(torch.float64)
    if times.device.type == "cpu" and not ((times >= 0) & (times <= 1)).all():
        raise ValueError(
            f"timesteps must lie in [0, 1], got {times.flatten().tolist()}. 0 is data, 1 is all "
            "masked."
        )
    return times.reshape(-1, 1)
