"""The randomness of draws: what they are given, seeds of texts, a variable for each position.

This file travels to the Hub. A seed and a position alone decide a variable, so that a text sees the
same draws alone, padded or in a batch.
"""

import torch
from torch import Tensor


def check_generator(generator) -> None:
    """Raises `ValueError` for what is neither a generator, nor a list of them, nor `None`."""
    sources = (
        generator
        if isinstance(generator, (list, tuple))
        else []
        if generator is None
        else [generator]
    )
    if not all(isinstance(source, torch.Generator) for source in sources):
        raise ValueError(
            "generator must be a torch.Generator, a list with one per text, or None, got "
            f"{type(generator).__name__}. Pass torch.Generator().manual_seed(0)."
        )


def check_rates(rates: Tensor) -> None:
    """Raises `ValueError` for rates `w` that are no floating numbers or, on the CPU, not positive.

    Elsewhere the host would wait for them. NaN passes: it shows in the loss.
    """
    readable = rates.device.type == "cpu" and not torch.compiler.is_compiling()
    if not rates.is_floating_point() or (readable and bool((rates <= 0).any())):
        least = rates.min().item() if readable and rates.numel() else "no floating numbers"
        raise ValueError(
            f"rates must be positive floating numbers, got {least} of {rates.dtype}. Check the "
            "weights."
        )


def row_seeds(generator, batch_size: int, device) -> Tensor:
    """One 64-bit seed per text `[B]`, from the global generator, a given one, or one per text."""
    check_generator(generator)
    if isinstance(generator, (list, tuple)):
        if len(generator) != batch_size:
            raise ValueError(
                f"generator has {len(generator)} entries for a batch of {batch_size}. Pass one, or "
                "one per text."
            )
        seeds = torch.cat([row_seeds(source, 1, source.device) for source in generator])
    else:
        source = device if generator is None else generator.device
        seeds = torch.randint(
            -(2**63),
            2**63 - 1,
            (batch_size,),
            generator=generator,
            device=source,
            dtype=torch.int64,
        )
    return copy_to_device(seeds, device)


def stratified_quantiles(batch: int, generator, device) -> Tensor:
    """Default quantiles `[B]`: evenly spread; independent with a generator per text."""
    check_generator(generator)
    if isinstance(generator, (list, tuple)):
        quantiles = torch.cat(
            [stratified_quantiles(1, source, source.device) for source in generator]
        )
        return copy_to_device(quantiles, device)
    source = device if generator is None else generator.device
    offset = copy_to_device(torch.rand(1, generator=generator, device=source), device)
    quantiles = (offset + torch.arange(batch, device=device) / batch) % 1
    return quantiles.clamp(2**-25, 1 - 2**-24)  # inside (0, 1): log and floor are taken


def _shift(values: Tensor, bits: int) -> Tensor:
    # >> on int64 copies the sign bit; a hash needs zeros there
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _mix(values: Tensor) -> Tensor:
    # the finaliser of splitmix64 in wrapping int64 arithmetic (constants are the unsigned ones
    # minus 2^64)
    values = (values ^ _shift(values, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    values = (values ^ _shift(values, 27)) * (0x94D049BB133111EB - 2**64)
    return values ^ _shift(values, 31)


def position_uniforms(seeds: Tensor, position: Tensor) -> Tensor:
    """float64 uniforms in `(0, 1)`, one for each pair of a seed and a position (they broadcast).

    They depend on the seed of the text and the position counted from its first real token alone: a
    text alone, padded or in a larger batch sees the same draws. They have 52 bits: float32 noise
    would cut the tail that small rates live in.
    """
    bits = _mix(_mix(seeds) + (position + 1) * (0x9E3779B97F4A7C15 - 2**64))
    # with one bit more, the largest sum with 0.5 would round to 1 and its logarithm to 0
    return (_shift(bits, 12).to(torch.float64) + 0.5) * 2.0**-52


def position_exponentials(seeds: Tensor, position: Tensor) -> Tensor:
    """`Exp(1)` variables from `position_uniforms`.

    Args:
        seeds: `[B]` int64. position: `[B, L]` or `[1, L]` int64, counted from the first real token.
    Returns:
        `[B, L]` float64 (computed on the CPU for devices without it), positive and finite.
    """
    device = float64_device(seeds.device)
    return -torch.log(position_uniforms(seeds.to(device)[:, None], position.to(device)))


def float64_device(device: torch.device) -> torch.device:
    """`device`, or the CPU for one without float64: MPS."""
    return torch.device("cpu") if device.type == "mps" else device


def copy_to_device(values: Tensor, device) -> Tensor:
    """A copy of small `values` on another device; the host waits for it only where it has to.

    It has to for copies to the host, which would be read too soon, and on MPS, which may read
    memory that is freed already (pytorch issue 189690).
    """
    return values.to(device, non_blocking=torch.device(device).type not in ("cpu", "mps"))
