"""The settings of the scheduler: their types, values and ranges. This file travels to the Hub."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from .input_checks_lomdm import require

RATE_SAMPLERS = ("sequential", "ancestral")
LOGIT_SAMPLERS = ("confidence", "margin", "entropy")
# Samplers that decide by the token laws how many are revealed, and the order of each.
COUNTING_SAMPLERS = {"threshold": "confidence", "entropy_bound": "entropy"}
SAMPLERS = (*RATE_SAMPLERS, "random", "left_to_right", *LOGIT_SAMPLERS, *COUNTING_SAMPLERS)
COUNTS = ("steps", *COUNTING_SAMPLERS)
REMASKINGS = ("cap", "rescale", "confidence")
SELECTIONS = ("random", "confidence")
GRIDS = ("adaptive", "uniform")

# Every setting: its type, its values or their range, and what to pass instead of others.
SETTINGS: dict[str, tuple[type, tuple, str]] = {
    "mask_token_id": (Integral, (0, 2**31 - 1), "tokenizer.mask_token_id"),
    "sampler": (str, SAMPLERS, "sampler='sequential'"),
    "grid": (str, GRIDS, "grid='adaptive'"),
    "count": (str, COUNTS, "None for the sampler's own"),
    "threshold": (Real, (0.0, 1.0), "threshold=0.95"),
    "entropy_bound": (Real, (0.0, 1e30), "entropy_bound=0.1"),
    "remasking": (str, REMASKINGS, "None to mask nothing again"),
    "sigma": (Real, (0.0, 1.0), "sigma=0.02"),
    "loop_start": (Real, (0.0, 1.0), "loop_start=0.55"),
    "loop_stop": (Real, (0.0, 1.0), "loop_stop=0.05"),
    "corrector_steps": (Integral, (0, 10**5), "0 for no corrections"),
    "corrector_k": (Integral, (1, 10**5), "corrector_k=1"),
    "corrector_selection": (str, SELECTIONS, "corrector_selection='random'"),
    "block_size": (Integral, (1, 2**31 - 1), "None for one window"),
    "temperature": (Real, (0.0, 1e30), "1.0 for the model's own law"),
    "top_p": (Real, (1e-30, 1.0), "None to keep all tokens"),
    "top_k": (Integral, (1, 2**31 - 1), "None to keep all tokens"),
    "num_inference_steps": (Integral, (1, 10**5), "the number of reveal steps, for example 256"),
}
OPTIONAL = ("block_size", "top_p", "top_k", "count", "remasking", "loop_start", "loop_stop")


def check_setting(name: str, value: Any) -> Any:
    """`value` of the setting `name` as a plain string, number or `None`, else `ValueError`."""
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
    remasking, grid = settings["remasking"], settings["grid"]
    wrong = f"remasking={remasking!r} needs the times of sampler='ancestral' and grid='uniform'"
    require(
        remasking is None or (sampler, grid) == ("ancestral", "uniform"),
        f"{wrong}, got {sampler!r} and {grid!r}. Pass both, or leave remasking out.",
    )
    start, stop = settings["loop_start"], settings["loop_stop"]
    wrong = f"loop_start={start} and loop_stop={stop} must be two times of remasking={remasking!r}"
    require(
        start is stop is None or (None not in (start, stop, remasking) and stop < start),
        f"{wrong}, the later one first. Pass for example 0.55 and 0.05 with remasking='cap'.",
    )


def check_used(given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises `ValueError` for a setting that a call gives and that its `settings` do not use."""
    count = settings["count"] or settings["sampler"]
    uses = {
        **{name: (count == name, f"count={name!r}") for name in COUNTING_SAMPLERS},
        "grid": (settings["sampler"] == "ancestral", "sampler='ancestral'"),
        "sigma": (settings["remasking"] is not None, "remasking='cap'"),
        "corrector_k": (settings["corrector_steps"] > 0, "corrector_steps=1"),
        "corrector_selection": (settings["corrector_steps"] > 0, "corrector_steps=1"),
    }
    for name in uses.keys() & given.keys():
        used, remedy = uses[name]
        wrong = f"{name}={given[name]!r} has no effect without {remedy}"
        require(used, f"{wrong}. Pass both, or leave it out.")
