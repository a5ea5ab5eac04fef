"""Which order a model has learned: Kendall tau, ranks, spread of rates, loss by reveal.

An order is compared with left-to-right within each block (the text, in a model without blocks):
between blocks it is left to right by construction. Ranks are relative: 0 = revealed first in its
block, 1 = last.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.batches import LoMDMDataCollator
from ..data.draws import hashed_generator
from ..modeling.batch_lomdm import Batch, make_batch
from ..modeling.blocks_lomdm import Blocks, block_quantiles, block_sum, broadcast_to_positions
from ..modeling.process_lomdm import at_least_float32, draw_order_view, order_bound
from ..modeling.random_lomdm import position_exponentials, row_seeds
from ..modeling.scheduling_lomdm import LoMDMScheduler
from ..pipelines.pipeline_lomdm import LoMDMPipeline
from .corpus import is_diffusion
from .likelihood import CHUNK_ELEMENTS, clean_texts, evaluating
from .records import environment
from .summary import masked_std
from .token_classes import NUM_DECILES, SmilesClasses, TokenClasses, frequency_deciles

Classes = TokenClasses | SmilesClasses
MAX_REVEAL_BINS = 32
HISTOGRAM_BINS = 40


class State(NamedTuple):
    """One state of the reveal chain of each text: per block `[B, N]` and per text `[B]`.

    `main`, `velocity` `[B, N]`: nats of the next reveal. `bins`, `has_maskable` `[B, N]`: the bin
    of the share revealed, and whether the block has anything to reveal. `spread`, `several` `[B]`:
    of the rates at masked positions, and whether there are two. `moments` `[3, B]`: of rate and
    confidence.
    """

    main: Tensor
    velocity: Tensor
    bins: Tensor
    has_maskable: Tensor
    spread: Tensor
    several: Tensor
    moments: Tensor


class TextMeans:
    """Means of values in groups, with the standard error that comes from the choice of texts.

    A group's mean is the sum of its values over all texts by their number. Texts are the
    independent units: the error is that of a ratio of two means over texts, so several values of
    one text in a group do not feign precision.
    """

    def __init__(self, groups: int):
        self._sums = torch.zeros(5, groups, dtype=torch.float64)
        self._texts = torch.zeros(groups, dtype=torch.float64)

    def add(self, values: Tensor, groups: Tensor, counted: Tensor) -> None:
        """Adds texts: `values`, the group of each (int64) and which count (bool), all `[B, P]`."""
        values, groups, counted = values.cpu().double(), groups.cpu(), counted.cpu()
        empty = torch.zeros(len(values), self._texts.numel(), dtype=torch.float64)
        total = empty.scatter_add(1, groups, values.masked_fill(~counted, 0.0))
        count = empty.scatter_add(1, groups, counted.double())
        terms = torch.stack([total, count, total.square(), total * count, count.square()])
        self._sums += terms.sum(1)
        self._texts += (count > 0).sum(0)

    def add_texts(self, values: Tensor, counted: Tensor) -> None:
        """Adds one value `[B]` per text to the only group."""
        self.add(values[:, None], torch.zeros(len(values), 1, dtype=torch.int64), counted[:, None])

    def estimates(self) -> list[dict]:
        """For each group `value`, `standard_error` (`None` from one text) and `n` texts."""
        total, count, squares, products, counts = self._sums
        mean = total / count
        variance = (squares - 2 * mean * products + mean.square() * counts).clamp(min=0)
        error = (variance * self._texts / (self._texts - 1)).sqrt() / count
        columns = zip(mean.tolist(), error.tolist(), self._texts.long().tolist(), strict=True)
        return [
            {"value": value if n else None, "standard_error": spread if n > 1 else None, "n": n}
            for value, spread, n in columns
        ]


def evaluate_order(
    model: nn.Module,
    rows: Iterable[Sequence[int] | Mapping],
    *,
    tokenizer: Any = None,
    classes: type[Classes] = TokenClasses,
    num_samples: int = 8,
    num_generated: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> dict:
    """What order a model has learned, on given texts and in texts of its own.

    Forward orders are averaged exactly: under Plackett-Luce, position `i` comes before `j` with
    probability `w_i / (w_i + w_j)`, which gives the expected Kendall tau and the expected ranks.
    Errors are those between texts.

    Args:
        model: a `LoMDMForMaskedDiffusion`; evaluated in eval mode, which is restored.
        rows: clean texts, each a sequence of token ids or a mapping with `input_ids` and optionally
            `labels` (-100 = given: not part of the order).
        tokenizer: names the classes of tokens; without it there are no ranks by class.
        classes: which classes: of words, or of the characters of SMILES.
        num_samples: partly masked states per text, spread evenly over the number of reveals.
        num_generated: texts that the model writes, one position per step; 0 = none, `generated` is
            then `None`.
        seed: of all draws; a text's do not depend on the batch it is in.
        progress: show a progress bar.
    Returns:
        Plain data for JSON. `value`, `standard_error`, `n`: Kendall tau of the forward order to
        left-to-right (1 = left to right, -1 = right to left, 0 for a random order) and its texts.
        `forward` and `generated`: `kendall_tau`, `rank_by_position` (in the block),
        `rank_by_class`, `rank_by_frequency` (tenths of the positions, the rarest tokens first).
        `rates`: `w` and `v` (at masked positions) with `mean`, `spread` (standard deviation within
        a text), `minimum`, `maximum`, `histogram`. `by_reveals`: `main` and `velocity` (the KL) in
        nats per reveal, by the `share` of the block revealed so far. `rate_confidence_correlation`:
        of `v` with `max p` at masked positions, within each state.
    Raises:
        ValueError: a model without rates, no rows, or options out of range.
    """
    rows = [dict(row) if isinstance(row, Mapping) else {"input_ids": row} for row in rows]
    _check(model, rows, num_samples, num_generated)
    ids = torch.cat([torch.as_tensor(row["input_ids"], dtype=torch.int64) for row in rows])
    named = None if tokenizer is None else classes(tokenizer, model.config.vocab_size)
    report = _OrderReport(model, ids, max(len(row["input_ids"]) for row in rows), named)
    with (
        evaluating(model),
        tqdm(total=len(rows), desc="order", unit="text", disable=not progress) as bar,
    ):
        for first, batch in _batches(model, rows):
            generators = _generators(seed, range(first, first + len(batch.ids)))
            report.add(batch, generators, num_samples)
            bar.update(len(batch.ids))
    generated = _generate(model, report, num_generated, seed, progress) if num_generated else None
    return report.record(generated, num_samples) | environment(model.device, model.dtype, seed)


def expected_order(rates: Tensor, maskable: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Expected tau to left-to-right and relative ranks of the Plackett-Luce order of `w`.

    Args:
        rates: `[B, L]`, `w`. maskable: `[B, L]` bool. index: `[B, L]`, the block of each position.
    Returns:
        tau `[B]`, ranks `[B, L]` in `[0, 1]`, and which ranks exist `[B, L]` bool (in blocks with
        two maskable positions or more). tau is NaN where no block has two.
    """
    rates = rates.double() if rates.device.type != "mps" else rates.cpu().double()
    maskable, index = maskable.to(rates.device), index.to(rates.device)
    first = rates[:, :, None] / (rates[:, :, None] + rates[:, None, :])  # P(i before j)
    return _pair_statistics(first, maskable, index)


def generated_order(order: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tau to left-to-right and relative ranks of the orders in which texts were written.

    Two positions revealed in the same step are in no order: they share their rank, and tau leaves
    the pair out.

    Args:
        order: `[B, L]`, `LoMDMPipelineOutput.order` (-1 given, -2 padding).
        index: `[B, L]`, the block of each position.
    """
    first = (order[:, :, None] < order[:, None, :]).double()
    tied = order[:, :, None] == order[:, None, :]
    return _pair_statistics(first + tied / 2, order >= 0, index, ~tied)


def _pair_statistics(
    first: Tensor, maskable: Tensor, index: Tensor, ordered: Tensor | bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    pair = maskable[:, :, None] & maskable[:, None, :] & (index[:, :, None] == index[:, None, :])
    pair = pair & ~torch.eye(pair.shape[1], dtype=torch.bool, device=pair.device)
    forward = (pair & ordered).triu(1)
    tau = ((2 * first - 1) * forward).sum((1, 2)) / forward.sum((1, 2))
    num_others = pair.sum(-1)
    ranks = (first.transpose(1, 2) * pair).sum(-1) / num_others.clamp(min=1)
    return tau, ranks, maskable & (num_others > 0)


class _RankTables:
    """Means of tau and of relative ranks by position in the block, class and frequency."""

    def __init__(self, width: int, classes: Classes | None, deciles: Tensor):
        self._classes, self._deciles = classes, deciles
        self._tau, self._position = TextMeans(1), TextMeans(width)
        self._names = () if classes is None else classes.names
        self._class, self._frequency = TextMeans(len(self._names)), TextMeans(NUM_DECILES)

    def add(self, ids: Tensor, place: Tensor, tau: Tensor, ranks: Tensor, counted: Tensor) -> None:
        """Adds texts: ids, position in block, ranks, which exist (`[B, L]` each); tau `[B]`."""
        ids = ids.cpu()
        self._tau.add_texts(tau, tau.isfinite())
        self._position.add(ranks, place, counted)
        self._frequency.add(ranks, self._deciles[ids], counted)
        if self._classes is not None:
            self._class.add(ranks, self._classes(ids), counted)

    def record(self) -> dict:
        classes = {
            name: means
            for name, means in zip(self._names, self._class.estimates(), strict=True)
            if means["n"]
        }
        return {
            "kendall_tau": self._tau.estimates()[0],
            "rank_by_position": self._position.estimates(),
            "rank_by_class": classes or None,
            "rank_by_frequency": self._frequency.estimates(),
        }


class _RateTable:
    """Values of rates: their mean, their spread within a text, their histogram."""

    def __init__(self):
        self._values: list[Tensor] = []
        self._spread = TextMeans(1)

    def add(self, rates: Tensor, counted: Tensor) -> None:
        """Adds the rates `[B, L]` where `counted` `[B, L]` is true."""
        self._values.append(rates[counted].float().cpu())

    def add_spread(self, spread: Tensor, counted: Tensor) -> None:
        """Adds deviations of the rates in states of the same texts `[B, S]`, and which count."""
        self._spread.add(spread, torch.zeros_like(spread, dtype=torch.int64), counted)

    def record(self) -> dict:
        values = torch.cat(self._values).double().numpy()
        counts, edges = np.histogram(values, HISTOGRAM_BINS)
        return {
            "mean": float(values.mean()),
            "minimum": float(values.min()),
            "maximum": float(values.max()),
            "spread": self._spread.estimates()[0],
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        }


class _OrderReport:
    """Everything that is summed up over texts."""

    def __init__(self, model: nn.Module, ids: Tensor, longest: int, classes: Classes | None):
        self.model, self.longest, self.tokens = model, longest, 0
        self.width = min(longest, model.config.block_size or longest)
        self._tables = (self.width, classes, frequency_deciles(ids, model.config.vocab_size))
        self.forward, self.w, self.v = self.rank_tables(), _RateTable(), _RateTable()
        self.bins = min(MAX_REVEAL_BINS, self.width)
        self.main, self.velocity, self.correlation = (
            TextMeans(self.bins),
            TextMeans(self.bins),
            TextMeans(1),
        )

    def rank_tables(self) -> _RankTables:
        return _RankTables(*self._tables)

    def place(self, batch: Batch) -> Tensor:
        """Position of each token in its block `[B, L]`."""
        return (batch.position if batch.blocks is None else batch.position % self.width).cpu()

    def add(self, batch: Batch, generators: list[torch.Generator], num_samples: int) -> None:
        w = self.model.forward_rates(batch.ids, batch.attention_mask, given=~batch.maskable)
        self.tokens += int(batch.maskable.sum())
        self.forward.add(
            batch.ids, self.place(batch), *expected_order(w, batch.maskable, batch.block)
        )
        self.w.add(w, batch.maskable)
        self.w.add_spread(
            masked_std(w, batch.maskable)[:, None], batch.maskable.sum(-1, keepdim=True) > 1
        )
        offsets = torch.cat(
            [torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators]
        )
        seeds = row_seeds(generators, len(batch.ids), w.device)
        states = []
        for sample in range(num_samples):
            quantiles = ((offsets + sample) / num_samples).to(w)
            quantiles = block_quantiles(quantiles, seeds, batch.blocks)
            states.append(self._state(batch, w, quantiles, row_seeds(generators, len(w), w.device)))
        self._add_states(states)

    def _state(self, batch: Batch, w: Tensor, quantiles: Tensor, seeds: Tensor) -> State:
        """Reads one state of the reveal chain of each text."""
        exponentials = position_exponentials(seeds, batch.position).to(w)
        view = draw_order_view(w, batch.maskable, quantiles, exponentials, batch.blocks)
        nll, confidence, v = self._read(batch, view.masked, w)
        self.v.add(v, view.masked)
        terms = order_bound(nll, w, v, view, batch.blocks)
        revealed = block_sum((batch.maskable & ~view.masked).long(), batch.blocks)
        has_maskable, size = view.weight > 0, view.weight.clamp(min=1)
        bins = (revealed * self.bins / size).long().clamp(max=self.bins - 1)
        spread, several = masked_std(v, view.masked), view.masked.sum(-1) > 1
        moments = _moments(v, confidence, view.masked, batch.blocks)
        return State(
            terms.main / size, terms.velocity / size, bins, has_maskable, spread, several, moments
        )

    def _add_states(self, states: list[State]) -> None:
        """Adds all states of a batch of texts at once: a text counts as one independent unit."""
        bins, has_maskable = (
            torch.cat([getattr(state, name) for state in states], -1)
            for name in ("bins", "has_maskable")
        )
        self.main.add(torch.cat([state.main for state in states], -1), bins, has_maskable)
        self.velocity.add(torch.cat([state.velocity for state in states], -1), bins, has_maskable)
        spread, several = (
            torch.stack([getattr(state, name) for state in states], -1)
            for name in ("spread", "several")
        )
        self.v.add_spread(spread, several)
        product, rate_squares, confidence_squares = sum(state.moments for state in states)
        scale = (rate_squares * confidence_squares).sqrt()
        self.correlation.add_texts(product / scale, scale > 0)

    def _read(self, batch: Batch, masked: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`-log p_i(x_i)`, `max p_i` at masked positions (else 0), reverse rates: `[B, L]` each."""
        noisy = batch._replace(ids=batch.ids.masked_fill(masked, self.model.config.mask_token_id))
        hidden, v = self.model.encode_views(noisy, batch)
        logits = at_least_float32(self.model.token_logits(hidden[masked]))  # [M, V]
        law = logits.log_softmax(-1)
        nll = -law.gather(-1, batch.ids[masked][:, None]).squeeze(-1)
        if self.model.rates_need_logits:
            v = v.masked_scatter(masked, self.model.rates_of_logits(logits).to(v.dtype))
        zero = torch.zeros_like(w)
        confidence = zero.masked_scatter(masked, law.amax(-1).exp().to(w.dtype))
        return zero.masked_scatter(masked, nll.to(w.dtype)), confidence, v

    def record(self, generated: dict | None, num_samples: int) -> dict:
        forward, config = self.forward.record(), self.model.config
        losses = zip(self.main.estimates(), self.velocity.estimates(), strict=True)
        return {
            "task": "order",
            "metric": "Kendall tau of the forward order to left-to-right, within blocks",
            **forward["kendall_tau"],
            "estimator": "expectation over Plackett-Luce orders, standard error between texts",
            "tokens": self.tokens,
            "num_samples": num_samples,
            **{name: getattr(config, name) for name in ("rate_type", "block_size", "c1", "c2")},
            "forward": forward,
            "generated": generated,
            "rates": {"w": self.w.record(), "v": self.v.record()},
            "by_reveals": [
                {"share": (number + 0.5) / self.bins, "main": main, "velocity": velocity}
                for number, (main, velocity) in enumerate(losses)
            ],
            "rate_confidence_correlation": self.correlation.estimates()[0],
        }


def _moments(v: Tensor, confidence: Tensor, masked: Tensor, blocks: Blocks | None) -> Tensor:
    """Sums of products and squares of two values, centred over the masked ones of a block."""
    count = block_sum(masked.to(v.dtype), blocks).clamp(min=1)
    a, b = (
        (values - broadcast_to_positions(block_sum(values * masked, blocks) / count, blocks))
        * masked
        for values in (v, confidence)
    )
    moments = torch.stack([(a * b).sum(-1), a.square().sum(-1), b.square().sum(-1)]).cpu().double()
    # equal rates differ by rounding only
    noise = torch.finfo(v.dtype).eps ** 2 * masked.sum(-1).cpu() * 16
    return moments * ((moments[1] > noise) & (moments[2] > noise))


def _generate(
    model: nn.Module, report: _OrderReport, count: int, seed: int, progress: bool
) -> dict:
    """Statistics of the orders in which the model writes `count` texts, one position per step."""
    pipe = LoMDMPipeline(model, LoMDMScheduler(mask_token_id=model.config.mask_token_id))
    pipe.set_progress_bar_config(disable=not progress, desc="generated order")
    tables, size = report.rank_tables(), _batch_rows(model, report.longest)
    for first in range(0, count, size):
        generators = _generators(seed, range(-1 - first, -1 - min(count, first + size), -1))
        out = pipe(
            num_inference_steps=report.width,
            max_length=report.longest,
            num_return_sequences=len(generators),
            output_type="seq",
            generator=generators,
        )
        order = out.order.cpu()
        batch = make_batch(out.sequences.cpu(), None, model.config.block_size, order >= 0)
        tables.add(batch.ids, report.place(batch), *generated_order(order, batch.block))
    return tables.record()


def _batches(model: nn.Module, rows: list[dict]) -> Iterable[tuple[int, Batch]]:
    """Batches in the order of the rows, each with the number of its first one."""
    size = _batch_rows(model, max(len(row["input_ids"]) for row in rows))
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        longest = max(len(row["input_ids"]) for row in part)
        values = LoMDMDataCollator(model.config.pad_token_id or 0, longest)(part)
        values = {name: tensor.to(model.device) for name, tensor in values.items()}
        yield (
            first,
            clean_texts(model, values["input_ids"], values.get("attention_mask"), values["labels"]),
        )


def _batch_rows(model: nn.Module, length: int) -> int:
    """Texts per pass that keep logits, activations and pairs of positions within bounds."""
    return max(
        1,
        CHUNK_ELEMENTS
        // (length * max(model.config.vocab_size, model.config.intermediate_size, length)),
    )


def _generators(seed: int, texts: range) -> list[torch.Generator]:
    """A generator for each text, from the seed and its number alone."""
    return [hashed_generator("order", seed, text) for text in texts]


def _check(model: nn.Module, rows: list[dict], num_samples: int, num_generated: int) -> None:
    if not is_diffusion(model):
        kind = type(model).__name__
        raise ValueError(
            f"model is a {kind}, which has no rates: its order is fixed. Pass a "
            "LoMDMForMaskedDiffusion."
        )
    if not rows or any(len(row["input_ids"]) == 0 for row in rows):
        raise ValueError(
            f"rows must be texts with at least one token each, got {len(rows)} rows. Check the "
            "file."
        )
    if all("labels" in row and (np.asarray(row["labels"]) == -100).all() for row in rows):
        raise ValueError(f"rows: {len(rows)} rows hold no token to count. Check the labels.")
    for name, value, least in (
        ("num_samples", num_samples, 1),
        ("num_generated", num_generated, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}. For example: 8.")
