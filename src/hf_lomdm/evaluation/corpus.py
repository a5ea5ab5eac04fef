"""The likelihood of a corpus: resumable, the same on any number of processes.

Every text has its own generator, seeded by a hash of seed and index, so that neither batches nor
processes nor interruptions move a number by more than the rounding of its sums.
"""

import hashlib
import math
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..data.batches import Text, batches_by_length, collate, read_rows
from ..data.draws import step_generators
from .causal import causal_nll
from .likelihood import nelbo
from .parts import PartsFile
from .records import environment
from .summary import summarise_texts

Z95 = 1.96  # half the width of a 95 % interval, in standard errors
# of each text: counted tokens, nats, nats, Monte-Carlo error or None
VALUES = ("tokens", "main", "velocity", "error")


class Draws(NamedTuple):
    """What decides the estimate of a row, as in `evaluate_corpus`."""

    bound: str
    num_samples: int
    num_orders: int | None
    seed: int
    density: Sequence[float] | None


def evaluate_corpus(
    model: nn.Module,
    rows: Iterable[dict],
    *,
    bound: str = "order",
    num_samples: int = 2,
    num_orders: int | None = None,
    groups: Sequence[int] | None = None,
    batch_tokens: int = 8192,
    seed: int = 0,
    characters: int | None = None,
    num_bytes: int | None = None,
    parts_file: str | Path | None = None,
    progress: bool = True,
    density: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Nats per token of a corpus with standard errors: a bound, or an exact value.

    With several processes (`accelerate launch`) each evaluates its share and all return the same
    record.

    Args:
        model: a `LoMDMForMaskedDiffusion`, or a causal language model, on the device where it is to
            run.
        rows: dicts of `input_ids` (at most the model's context) and, optionally, `labels`: the
            same, -100 = given.
        bound, num_samples, num_orders: as in `nelbo`; without meaning for a causal model.
        groups: for each row the index of its text, where a text is cut into rows (`roll`); default:
            one row is a text.
        batch_tokens: padded tokens per pass, at least one row. Rows of similar length go together.
        characters, num_bytes: how much text the counted tokens of all rows make, for bits per
            character and byte.
        parts_file: finished rows are appended here and not computed again; further processes add
            `.1`, `.2`, ...
        progress: on the first process, print what it costs and show a bar.
        density: of the shares revealed, as in `nelbo`, by `density.measured_density`; none for a
            causal model.
    Returns:
        A record that JSON takes: `value` in nats per token, `standard_error` (over texts as a
        sample, Monte-Carlo error included; `None` for a single text), `monte_carlo_error` (for the
        given texts; `None` from one sample), `perplexity` with its 95 % interval, `tokens` counted,
        `n` texts, `per_text` values, and the environment.
    Raises:
        ValueError: rows that are empty, too long or without anything to count, options that do not
            fit, or a parts file of another model or setting.
    """
    started = time.perf_counter()
    texts = read_rows(rows, model.config.max_position_embeddings)
    if groups is not None and len(groups) != len(texts):
        raise ValueError(
            f"groups has {len(groups)} entries for {len(texts)} rows. Pass the text of each row."
        )
    draws = Draws(bound, num_samples, num_orders, seed, density)
    setting = _setting(model, texts, draws, groups)
    parts = PartsFile(parts_file, setting, model)
    show = progress and process_state().is_main_process
    if show:
        print(_cost(model, texts, num_samples, num_orders), file=sys.stderr, flush=True)
    done = _evaluate_rows(
        model, texts, draws, batch_tokens, parts, setting["estimator"] if show else None
    )
    table = _per_text([done[i] for i in range(len(texts))], groups)
    measures = summarise(table, characters, num_bytes)
    weights = next(model.parameters())
    record = {**measures, **setting, "seconds": time.perf_counter() - started}
    return record | environment(weights.device, weights.dtype, seed) | {"per_text": table}


def process_state() -> PartialState:
    """This process among those of `accelerate launch` or `torchrun`: which it is, and its device.

    Without being told that there is nothing but a CPU, accelerate would take every process for the
    only one.
    """
    return PartialState(
        cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    )


def is_diffusion(model: nn.Module) -> bool:
    """Whether `model` is of the masked diffusion family; else it counts as autoregressive."""
    return getattr(getattr(model, "config", None), "rate_type", None) is not None


class SpecialTokens(NamedTuple):
    """Token ids, `None` = none: `front`, `back` of rows, `separator` behind packed documents."""

    front: int | None
    back: int | None
    separator: int | None


def special_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """BOS and EOS as in the rows that the model was trained on, by its configuration.

    Without a BOS nothing is put around rows.

    The BOS of an autoregressive one is the start token, which `causal_nll` puts in front by itself;
    ours say what their rows have beside it (`causal_config`), others have nothing.
    """
    config = model.config
    if is_diffusion(model):
        bos, eos = config.bos_token_id, config.eos_token_id
    elif hasattr(config, "text_bos_token_id"):
        bos, eos = config.text_bos_token_id, config.text_eos_token_id
    else:
        bos, eos = None, tokenizer.eos_token_id
    return SpecialTokens(None, None, eos) if bos is None else SpecialTokens(bos, eos, eos)


def estimator_name(model: nn.Module, bound: str, num_orders: int | None) -> str:
    """What is measured, in words."""
    if not is_diffusion(model):
        return "exact"
    return f"{bound} bound" if num_orders is None else f"{bound} bound, {num_orders} orders"


def summarise(
    per_text: dict[str, list], characters: int | None = None, num_bytes: int | None = None
) -> dict[str, Any]:
    """The measures of a corpus from the values of its texts (`VALUES`)."""
    columns = [
        [math.nan if value is None else value for value in per_text[name]] for name in VALUES
    ]
    table = torch.tensor(columns, dtype=torch.float64).T
    means = summarise_texts(table)
    value, monte_carlo = means["nelbo"], means.get("nelbo_monte_carlo_error")
    error = means.get("nelbo_standard_error")
    if error is not None and monte_carlo is not None:
        # the Monte-Carlo error is part of it, and few texts estimate the spread poorly
        error = max(error, monte_carlo)
    total_error = monte_carlo if error is None else error
    interval = (
        None if total_error is None else [math.exp(value + z * total_error) for z in (-Z95, Z95)]
    )
    tokens = int(means["tokens"])
    measures = {
        "unit": "nats per token",
        "value": value,
        "standard_error": error,
        "monte_carlo_error": monte_carlo,
        "main": means["main"],
        "velocity": means["velocity"],
        "perplexity": means["perplexity"],
        "perplexity_interval": interval,
        "tokens": tokens,
        "n": len(table),
    }
    for unit, count in (("character", characters), ("byte", num_bytes)):
        if count:
            bits = tokens / count / math.log(2)
            measures[f"bits_per_{unit}"] = value * bits
            measures[f"bits_per_{unit}_standard_error"] = None if error is None else error * bits
            measures[f"{unit}s"] = count
    return measures


def _setting(
    model: nn.Module, texts: list[Text], draws: Draws, groups: Sequence[int] | None
) -> dict[str, Any]:
    """What a record says of how its value came about."""
    diffusion, density = is_diffusion(model), draws.density
    rows = np.concatenate([part for text in texts for part in ([len(text.ids)], *text)])
    return {
        "estimator": estimator_name(model, draws.bound, draws.num_orders),
        "num_samples": draws.num_samples if diffusion else None,
        "seed": draws.seed,
        "density": list(density) if diffusion and density is not None else None,
        "rows": _digest(rows),
        "groups": None if groups is None else _digest(np.asarray(groups, dtype=np.int64)),
    }


def _digest(values: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(values, dtype=np.int64), digest_size=16).hexdigest()


def _evaluate_rows(
    model: nn.Module,
    texts: list[Text],
    draws: Draws,
    batch_tokens: int,
    parts: PartsFile,
    title: str | None,
) -> dict[int, dict]:
    """The values of every row: those in `parts`, and this process's share of the others."""
    state = process_state()
    done = parts.read()
    state.wait_for_everyone()  # no process may read what another has just added
    batches = batches_by_length(
        texts, [i for i in range(len(texts)) if i not in done], batch_tokens
    )
    own = batches[state.process_index :: state.num_processes]
    computed: dict[int, dict] = {}
    with tqdm(total=sum(map(len, own)), disable=title is None, unit="row", desc=title) as bar:
        for batch in own:
            values = _evaluate_batch(model, texts, batch, draws)
            parts.append(values, state.process_index)
            computed |= values
            bar.update(len(batch))
    return done | dict(gather_object(list(computed.items())))


def _evaluate_batch(model, texts, batch, draws: Draws) -> dict[int, dict]:
    inputs = collate([texts[i] for i in batch], next(model.parameters()).device)
    if is_diffusion(model):
        density = draws.density
        estimate = nelbo(
            model,
            **inputs,
            bound=draws.bound,
            num_samples=draws.num_samples,
            num_orders=draws.num_orders,
            generator=step_generators(draws.seed, 0, batch),
            density=None if density is None else torch.tensor(density, dtype=torch.float64),
        )
    else:
        estimate = causal_nll(model, **inputs)
    counted = [int((texts[i].labels != -100).sum()) for i in batch]
    error = (
        [None] * len(batch) if estimate.standard_error is None else estimate.standard_error.tolist()
    )
    columns = (counted, estimate.main.tolist(), estimate.velocity.tolist(), error)
    return {
        i: dict(zip(VALUES, values, strict=True))
        for i, *values in zip(batch, *columns, strict=True)
    }


def _per_text(rows: list[dict], groups: Sequence[int] | None) -> dict[str, list]:
    """The values of the texts, summed over their rows (errors: squares, draws independent)."""
    if groups is None:
        return {name: [row[name] for row in rows] for name in VALUES}
    texts: dict[int, list[dict]] = {}
    for row, group in zip(rows, groups, strict=True):
        texts.setdefault(group, []).append(row)
    table = {
        name: [sum(row[name] for row in text) for text in texts.values()] for name in VALUES[:-1]
    }
    errors = [[row["error"] for row in text] for text in texts.values()]
    return table | {"error": [None if None in text else math.hypot(*text) for text in errors]}


def _cost(model: nn.Module, texts: list[Text], num_samples: int, num_orders: int | None) -> str:
    """One line: how much there is to do."""
    counted = [text.labels != -100 for text in texts]
    line = f"{len(texts):,} rows, {sum(int(mask.sum()) for mask in counted):,} tokens to count; "
    if not is_diffusion(model):
        return line + f"one pass per row, {len(texts):,} in all"
    if num_orders is None:
        return line + f"{num_samples} passes per row, {num_samples * len(texts):,} in all"
    size = model.config.block_size or model.config.max_position_embeddings
    longest = [
        max(int(mask[i : i + size].sum()) for i in range(0, len(mask), size)) for mask in counted
    ]
    passes = num_samples * num_orders * sum(longest)
    return line + (
        f"num_samples x num_orders x reveals = {num_samples} x {num_orders} x up to {max(longest)} "
        f"passes per row, {passes:,} in all"
    )
