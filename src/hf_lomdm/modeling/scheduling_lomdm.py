"""Scheduler of the family: which positions a step reveals, then which token each gets.

This file travels to the Hub. Its formulas are those of `process_lomdm.py` (docs/method.md,
"sampler").

Every draw depends on two numbers only: a 64-bit seed of its row, drawn once per call, and its
position counted from the first real token. So a row alone, padded, in a batch, on the plain or on
the fast path gets the same tokens.
"""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Generator, Tensor

from .process_lomdm import (
    adaptive_log_ratio,
    alpha,
    float64_device,
    local_time,
    position_ids,
    position_uniforms,
    reveal_probability,
    row_seeds,
    velocity,
)

RATE_SAMPLERS = ("sequential", "ancestral")
LOGIT_SAMPLERS = ("confidence", "margin", "entropy")
SAMPLERS = (*RATE_SAMPLERS, "random", "left_to_right", *LOGIT_SAMPLERS)
GRIDS = ("adaptive", "uniform")

# float64 entries of one slice of a token draw (128 MB): all positions of a text at once do not fit
# for large V.
SLICE_SIZE = 2**24
# Certainties that differ by no more than this are a tie, which goes to the left. Rounding, which
# depends on the batch and on the processor, moves them by up to 3e-6 in float32; and positions
# without any context have equal certainties.
TIE = 2**-13
# Every setting: its type, its values or their range, and what to pass instead of others.
SETTINGS: dict[str, tuple[type, tuple, str]] = {
    "mask_token_id": (Integral, (0, 2**31 - 1), "tokenizer.mask_token_id"),
    "sampler": (str, SAMPLERS, "sampler='sequential'"),
    "grid": (str, GRIDS, "grid='adaptive'"),
    "block_size": (Integral, (1, 2**31 - 1), "None for one window"),
    "temperature": (Real, (0.0, 1e30), "1.0 for the model's own law"),
    "top_p": (Real, (1e-30, 1.0), "None to keep all tokens"),
    "top_k": (Integral, (1, 2**31 - 1), "None to keep all tokens"),
    "num_inference_steps": (Integral, (1, 10**5), "the number of reveal steps, for example 256"),
}
OPTIONAL = ("block_size", "top_p", "top_k")


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
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits or not (value in allowed if kind is str else allowed[0] <= value <= allowed[1]):
        rule += "" if kind is str else f" from {allowed[0]} to {allowed[1]}"
        raise ValueError(f"{name} must be {rule}, got {value!r}. Pass {remedy}.")
    return value if kind is str else int(value) if kind is Integral else float(value)


@dataclass
class LoMDMSchedulerOutput(BaseOutput):
    """What one reveal step gives.

    Args:
        prev_sample: `[B, L]` int64, the sample at the next, earlier time.
        revealed: `[B, L]` bool, the positions that this step revealed.
    """

    prev_sample: Tensor
    revealed: Tensor


class LoMDMScheduler(SchedulerMixin, ConfigMixin):
    """Reveals masked positions step by step, from all masked (`t = 1`) to data (`t = 0`).

    Args:
        mask_token_id: id of the mask token; positions that hold it are masked. It is never drawn.
        sampler: how positions are drawn. `"sequential"`: `ceil(remaining / steps left)` per step,
            without replacement with weights `v` (one at a time it is the exact process).
            `"ancestral"`: each by itself with the probability that its rate gives for the step.
            Reference orders, with the counts of `sequential`: `"random"`, `"left_to_right"`,
            `"confidence"` (largest probability first), `"margin"` (largest difference of the two
            best), `"entropy"` (lowest first), the last three of the token law as it is:
            temperature, `top_p` and `top_k` move no position.
        grid: times of `ancestral`. `"adaptive"`: each row chooses its step so that `remaining /
            steps left` reveals are expected. `"uniform"`: equal steps of time (the paper's).
        block_size: positions per block, counted from the first real token, or `None` for one
            window. Blocks are revealed from left to right; a step goes on to the next block when it
            finishes one. On the adaptive grid the expected reveals of a step go to the leftmost
            blocks first.
        temperature: divides the logits of the token draw; 0 takes the likeliest token.
        top_p: keep the likeliest tokens up to this probability, after `top_k`; `None` keeps all.
        top_k: keep this many of the likeliest tokens; `None` keeps all.

    Raises:
        ValueError: if a value is out of range, with the name, the value and the remedy.
    """

    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        sampler: str = "sequential",
        grid: str = "adaptive",
        block_size: int | None = None,
        temperature: float = 1.0,
        top_p: float | None = None,
        top_k: int | None = None,
    ):
        self.num_inference_steps: int | None = None
        self.timesteps: Tensor | None = None

    def register_to_config(self, **kwargs) -> None:
        """Changes settings; the constructor does it too. Each is checked (`check_setting`)."""
        # `from_config` would drop what diffusers lists here, also where it was passed by position
        # or set since
        kwargs.pop("_use_default_values", None)
        checked = {
            name: check_setting(name, value) for name, value in kwargs.items() if name in SETTINGS
        }
        super().register_to_config(**kwargs | checked)

    @property
    def position_draw_needs_logits(self) -> bool:
        """Whether `select` needs logits; if not, the vocabulary projection may come after."""
        return self.config.sampler in LOGIT_SAMPLERS

    @property
    def position_draw_needs_rates(self) -> bool:
        """Whether `select` needs the reverse rates."""
        return self.config.sampler in RATE_SAMPLERS

    @property
    def num_reveals_is_random(self) -> bool:
        """Whether the number of positions that a step reveals is drawn; else `num_reveals`."""
        return self.config.sampler == "ancestral"

    def num_reveals(self, num_masked: list[int], timestep: float | Tensor) -> list[int]:
        """Positions that this step reveals in each row: `ceil(remaining / steps left)`.

        Args:
            num_masked: masked positions of each row.
            timestep: an entry of `timesteps`, on the host.
        """
        steps_left = self._steps_left(timestep, torch.device("cpu"))
        return [_share(count, steps_left) for count in num_masked]

    def num_useful_steps(self, num_inference_steps: int, num_masked: int) -> int:
        """How many of `num_inference_steps` can change a text of `num_masked` masks."""
        return (
            num_inference_steps
            if self.num_reveals_is_random
            else max(1, min(num_inference_steps, num_masked))
        )

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Set `timesteps` to the float32 `[K]` times `1, 1 - 1/K, ..., 1/K`; 0 follows the last.

        `K` is a whole number from 1 to 100,000: in float32 more steps cannot be told apart by their
        times.
        """
        self.num_inference_steps = num_inference_steps = check_setting(
            "num_inference_steps", num_inference_steps
        )
        left = torch.arange(num_inference_steps, 0, -1, dtype=torch.float64)
        self.timesteps = (left / num_inference_steps).to(torch.float32).to(device)

    # ------------------------------------------------------------------------------ forward process

    def alpha(
        self, timesteps: float | Tensor, rates: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """`alpha_i(t) = 1 - u_i(t)^w_i`, the probability that a position is not masked at time `t`.

        Args:
            timesteps: times in `[0, 1]`, one for all or one per row (`[B]` or `[B, 1]`).
            rates: `[B, L]`, forward rates `w > 0`.
            attention_mask: `[B, L]`, 1 = real; it matters for the windows of blocks only.
        Returns:
            `[B, L]` in the dtype of `rates`.
        Raises:
            ValueError: for wrong shapes and dtypes; on the CPU, where looking costs no
                synchronisation, also for times outside `[0, 1]` and real positions whose rates are
                not positive and finite.
        """
        w = _float64_rates(rates, attention_mask)
        log_u = local_time(_times(timesteps, w), *self._blocks(w, attention_mask)).log()
        return alpha(log_u, w).to(rates.device).to(rates.dtype)

    def velocity(
        self, timesteps: float | Tensor, rates: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """The paper's velocity `A = -alpha' / (1 - alpha) = w / (t - a)` in the window, else 0.

        Per unit of global time; infinite at `t = a_i`. Arguments, result and errors as in `alpha`.
        """
        w = _float64_rates(rates, attention_mask)
        values = velocity(_times(timesteps, w), w, *self._blocks(w, attention_mask))
        return values.to(rates.device).to(rates.dtype)

    def add_noise(
        self,
        original_samples: Tensor,
        rates: Tensor,
        timesteps: float | Tensor,
        generator: Generator | list[Generator] | None = None,
        *,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Mask each real position with probability `1 - alpha_i(t)`; errors as in `alpha`.

        Args:
            original_samples: `[B, L]` token ids.
            rates: `[B, L]`, forward rates `w > 0`.
            timesteps: times in `[0, 1]`, one for all or one per row (`[B]` or `[B, 1]`).
            generator: one for the batch, a list with one per row, or `None` for the global one.
            attention_mask: `[B, L]`, 1 = real; padding is never masked.
        Returns:
            `[B, L]`, a copy with masks.
        """
        self._check_shapes(original_samples, rates, attention_mask)
        home, device = original_samples.device, float64_device(original_samples.device)
        seeds = row_seeds(generator, len(original_samples), device)
        positions = self.positions(original_samples, attention_mask).to(device)
        alpha = self.alpha(
            timesteps, _float64_rates(rates.to(device), attention_mask), attention_mask
        )
        masked = (position_uniforms(seeds[:, None], positions) < 1 - alpha).to(home)
        if attention_mask is not None:
            masked &= attention_mask.bool()
        return original_samples.masked_fill(masked, self.config.mask_token_id)

    # ------------------------------------------------------------------------------ reverse process

    @staticmethod
    def positions(sample: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Index of each position from the first real token: `[B, L]` int64, at least 0."""
        real = None if attention_mask is None else attention_mask.bool()
        return position_ids(real, sample.shape[1], sample.device).expand(sample.shape)

    def select(
        self,
        rates: Tensor | None,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generator | list[Generator] | None = None,
        *,
        attention_mask: Tensor | None = None,
        logits: Tensor | None = None,
    ) -> Tensor:
        """Draw the positions that are revealed in the step that starts at `timestep`.

        Takes one seed per row from `generator`, whatever the sampler and the number of masked
        positions.

        Args:
            rates: `[B, L]`, reverse rates `v > 0`; `None` is allowed for samplers without rates.
            timestep: an entry of `timesteps`, a float or a tensor with one element.
            sample: `[B, L]` token ids, masks among them.
            generator: one for the batch, a list with one per row, or `None` for the global one.
            attention_mask: `[B, L]`, 1 = real; `None` if nothing is padding.
            logits: `[B, L, V]`, only for samplers with `position_draw_needs_logits`.
        Returns:
            `[B, L]` bool, a subset of the masked positions.
        Raises:
            ValueError: for missing input, wrong shapes, an unknown `timestep`, and, on the CPU,
                where looking costs no synchronisation, rates that are not positive or logits that
                are not a law at masked positions.
        """
        self._check_shapes(sample, rates, attention_mask, logits)
        home, device = sample.device, float64_device(sample.device)
        steps_left = self._steps_left(timestep, device)
        seeds = row_seeds(generator, len(sample), device)
        positions = self.positions(sample, attention_mask).to(device)
        masked = (sample == self.config.mask_token_id).to(device)
        if attention_mask is not None:
            masked &= attention_mask.bool().to(device)
        block, num_blocks = self._blocks(positions, attention_mask)
        uniforms = position_uniforms(seeds[:, None], positions)
        v = (
            _float64_rates(rates.detach().to(device), masked)
            if self.position_draw_needs_rates
            else None
        )
        if self.num_reveals_is_random:
            return (
                masked & (uniforms < self._ancestral(v, masked, block, num_blocks, steps_left))
            ).to(home)
        priority = self._reveal_priority(v, uniforms, positions, masked, logits)
        count = _share(masked.sum(1, keepdim=True), steps_left)
        if self.position_draw_needs_logits:
            priority = _level(priority, masked, block, count)
        return (_order(priority, masked, block).argsort(dim=1) < count).to(home)

    def revealed_columns(self, revealed: Tensor, timestep: float | Tensor) -> Tensor:
        """Columns of the revealed positions, for gathering with fixed shapes: `[B, W]` int64.

        Revealed columns come first, from left to right; a row with fewer than `W` of them is filled
        up with others. On the CPU `W` is the largest number of reveals in a row. Elsewhere, where
        reading it would synchronise, it is an upper bound: `ceil(L / steps left)`, or `L` for
        `ancestral` and for timesteps that lie on the device.
        """
        width = revealed.shape[1]
        if revealed.device.type == "cpu":
            width = int(revealed.sum(1).max()) if revealed.numel() else 0
        elif not self.num_reveals_is_random:
            steps_left = self._steps_left(timestep, revealed.device)
            width = width if isinstance(steps_left, Tensor) else _share(width, steps_left)
        return revealed.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]

    def revealed_places(
        self, revealed: Tensor, timestep: float | Tensor, num_masked: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Rows and columns of the revealed positions, to index `[B, L]` values.

        If `num_reveals` is known they are `[B, 1]` and `[B, W]`, filled up as in
        `revealed_columns`. Else they are `[M]`, the revealed positions alone, for whose number the
        host waits.

        Args:
            revealed: `[B, L]` bool, from `select`. timestep: that of the step, on the host.
            num_masked: masked positions of each row before the step.
        """
        if self.num_reveals_is_random:
            rows, columns = revealed.nonzero(as_tuple=True)
            return rows, columns
        rows = torch.arange(len(revealed), device=revealed.device)[:, None]
        most = max(self.num_reveals(num_masked, timestep))
        return rows, self.revealed_columns(revealed, timestep)[:, :most]

    def draw_tokens(
        self,
        logits: Tensor,
        rows: Tensor,
        positions: Tensor,
        batch_size: int,
        generator: Generator | list[Generator] | None = None,
    ) -> Tensor:
        """Draw a token at each place: inverse CDF in float64 of `softmax(logits / temperature)`.

        `step` is `select` followed by this. Takes one seed per row of the batch from `generator`,
        also for rows without a place; a draw depends on the seed of its row and on `positions`
        alone, not on the other places.

        Args:
            logits: `[..., V]`, at the places of the draw only.
            rows: `[...]` int64, row in the batch of each place. `rows` and `positions` broadcast:
                `[B, W, V]` logits go with rows `[B, 1]`.
            positions: `[...]` int64, index of each place counted from the first real token (see
                `positions`).
            batch_size: number of rows of the batch.
            generator: one for the batch, a list with one per row, or `None` for the global one.
        Returns:
            `[...]` int64 token ids, never the mask token.
        Raises:
            ValueError: on the CPU, if logits hold NaN or +inf or leave no token.
        """
        device = float64_device(logits.device)
        seeds = row_seeds(generator, batch_size, device)
        uniforms = position_uniforms(seeds[rows.to(device)], positions.to(device)).expand(
            logits.shape[:-1]
        )
        parts = zip(_slices(logits), uniforms.reshape(-1).split(_slice_rows(logits)), strict=True)
        tokens = torch.cat([self._draw(*part) for part in parts])
        return tokens.reshape(logits.shape[:-1]).to(logits.device)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        rates: Tensor | None = None,
        generator: Generator | list[Generator] | None = None,
        return_dict: bool = True,
        *,
        attention_mask: Tensor | None = None,
    ) -> LoMDMSchedulerOutput | tuple[Tensor, Tensor]:
        """Reveal positions and give each its token: `select`, then `draw_tokens`.

        Args:
            model_output: `[B, L, V]` logits, unnormalised.
            timestep, sample, rates, generator: as in `select`.
            return_dict: `False` returns the tuple `(prev_sample, revealed)`.
            attention_mask: as in `select`.
        Raises:
            ValueError: as `select` and `draw_tokens`.
        """
        revealed = self.select(
            rates, timestep, sample, generator, attention_mask=attention_mask, logits=model_output
        )
        rows = torch.arange(len(sample), device=sample.device)[:, None]
        columns = self.revealed_columns(revealed, timestep)
        is_revealed = revealed.gather(1, columns)
        # logits of columns that only fill up a row must not raise
        logits = model_output[rows, columns].masked_fill(~is_revealed[..., None], 0.0)
        positions = self.positions(sample, attention_mask).gather(1, columns)
        tokens = self.draw_tokens(logits, rows, positions, len(sample), generator).to(sample.dtype)
        prev_sample = sample.scatter(
            1, columns, torch.where(is_revealed, tokens, sample.gather(1, columns))
        )
        return (
            LoMDMSchedulerOutput(prev_sample, revealed) if return_dict else (prev_sample, revealed)
        )

    # ---------------------------------------------------------------------------------------- parts

    def _check_shapes(
        self,
        sample: Tensor,
        rates: Tensor | None,
        attention_mask: Tensor | None,
        logits: Tensor | None = None,
    ) -> None:
        ids = (
            isinstance(sample, Tensor)
            and sample.ndim == 2
            and sample.dtype in (torch.int64, torch.int32)
        )
        _require(ids, f"sample must be token ids [B, L], got {_describe(sample)}. Pass int64.")
        needed = (rates, self.position_draw_needs_rates), (logits, self.position_draw_needs_logits)
        for name, (value, is_needed) in zip(("rates", "logits"), needed, strict=True):
            wrong = f"{name} is None, but sampler={self.config.sampler!r} draws by them. "
            _require(value is not None or not is_needed, f"{wrong}Pass the model's {name}.")
        for name, value in (("rates", rates), ("attention_mask", attention_mask)):
            fits = value is None or (isinstance(value, Tensor) and value.shape == sample.shape)
            shape = f"{name} must have the shape {tuple(sample.shape)} of sample"
            _require(fits, f"{shape}, got {_describe(value)}. Pass one value per position.")
        fits = logits is None or (logits.ndim == 3 and logits.shape[:2] == sample.shape)
        shape = f"logits must have the shape [{sample.shape[0]}, {sample.shape[1]}, V]"
        _require(fits, f"{shape}, got {_describe(logits)}. Pass one row per text.")

    def _steps_left(self, timestep: float | Tensor, device: torch.device) -> int | Tensor:
        """`K` minus the index of `timestep`; a 0-dim tensor if reading it would synchronise."""
        total = self.num_inference_steps
        _require(
            total is not None, "timesteps is None. Call set_timesteps(num_inference_steps) first."
        )
        number = (
            timestep.numel() == 1 if isinstance(timestep, Tensor) else isinstance(timestep, Real)
        )
        _require(
            number, f"timestep must be one number, got {_describe(timestep)}. Pass timesteps[i]."
        )
        if isinstance(timestep, Tensor) and timestep.device.type not in ("cpu", "mps"):
            return (timestep.reshape(()) * total).round().clamp(1, total).to(device, torch.int64)
        steps_left = float(timestep) * total
        if not 0.5 <= steps_left <= total + 0.5 or abs(steps_left - round(steps_left)) > 0.01:
            raise ValueError(
                f"timestep {float(timestep)} is not in the grid of {total} steps. Pass an entry of "
                "scheduler.timesteps."
            )
        return round(steps_left)

    def _blocks(
        self, positions: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, int | Tensor]:
        """Block of each position `[B, L]`, and how many each row has (`[B, 1]` or a number)."""
        size = self.config.block_size
        if size is None:
            return torch.zeros(positions.shape, dtype=torch.int64, device=positions.device), 1
        if attention_mask is None:
            return self.positions(positions) // size, -(-positions.shape[1] // size)
        attention_mask = attention_mask.to(positions.device)
        count = (attention_mask.bool().sum(1, keepdim=True) + size - 1) // size
        return self.positions(positions, attention_mask) // size, count

    def _ancestral(
        self,
        rates: Tensor,
        masked: Tensor,
        block: Tensor,
        num_blocks: int | Tensor,
        steps_left: int | Tensor,
    ) -> Tensor:
        """Probability `[B, L]` that a masked position is revealed in this step."""
        if self.config.grid == "adaptive":
            return self._adaptive(rates, masked, block, steps_left)
        total = self.num_inference_steps
        u_from = local_time(steps_left, block, num_blocks, total)
        u_to = local_time(steps_left - 1, block, num_blocks, total)
        return torch.where(
            u_to > 0, reveal_probability(u_from.log(), u_to.log(), rates), torch.ones_like(rates)
        )

    def _adaptive(
        self, rates: Tensor, masked: Tensor, block: Tensor, steps_left: int | Tensor
    ) -> Tensor:
        """Reveal probabilities `[B, L]` of sum `remaining / steps left`, leftmost blocks first.

        Blocks that fit into this share are revealed, the one that fits in part gets the `rho` that
        meets its rest.
        """
        size = self.config.block_size or masked.shape[1]
        counts = torch.zeros(
            len(masked), -(-masked.shape[1] // size), dtype=torch.int64, device=masked.device
        )
        counts = counts.scatter_add(1, block, masked.to(torch.int64))
        before = (counts.cumsum(1) - counts).gather(1, block)
        share = masked.sum(1, keepdim=True).to(torch.float64) / steps_left
        fraction = ((share - before) / counts.gather(1, block).clamp(min=1)).clamp(0, 1)
        partial = masked & (fraction > 0) & (fraction < 1)
        goal = torch.where(partial, fraction, torch.zeros_like(fraction)).amax(1, keepdim=True)
        within = reveal_probability(
            torch.zeros_like(goal), adaptive_log_ratio(rates, partial, goal), rates
        )
        return torch.where(partial, within, fraction)

    def _reveal_priority(
        self,
        rates: Tensor | None,
        uniforms: Tensor,
        positions: Tensor,
        masked: Tensor,
        logits: Tensor | None,
    ) -> Tensor:
        """Values `[B, L]` whose largest are revealed first."""
        if self.config.sampler == "sequential":
            # minus an exponential of rate v: ascending order is Plackett-Luce
            return uniforms.log() / rates
        if self.config.sampler == "random":
            return uniforms
        if self.config.sampler == "left_to_right":
            return -positions
        priority = torch.cat([self._certainty(slice_) for slice_ in _slices(logits)]).reshape(
            masked.shape
        )
        if priority.device.type == "cpu" and not (priority.isfinite() | ~masked).all():
            raise ValueError(
                "logits give no law at a masked position (NaN or infinite). Check the model's "
                "weights."
            )
        return priority

    def _certainty(self, logits: Tensor) -> Tensor:
        """Certainty `[M]` of the token law of `[M, V]` logits, by the measure of the sampler."""
        law = self._without_mask_token(logits).softmax(-1)
        if self.config.sampler == "confidence":
            return law.amax(-1)
        if self.config.sampler == "margin":
            best = law.topk(2).values
            return best[:, 0] - best[:, 1]
        return -torch.special.entr(law).sum(-1)

    def _without_mask_token(self, logits: Tensor) -> Tensor:
        """A float64 copy of `[M, V]` logits in which the mask token has probability 0."""
        logits = logits.detach().to(float64_device(logits.device)).to(torch.float64, copy=True)
        if self.config.mask_token_id < logits.shape[1]:
            logits[:, self.config.mask_token_id] = -torch.inf
        return logits

    def _draw(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Tokens `[M]` at the quantiles `uniforms` `[M]` of the law of `[M, V]` logits."""
        logits = self._without_mask_token(logits)
        best = logits.amax(-1, keepdim=True)
        if best.device.type == "cpu" and not best.isfinite().all():
            raise ValueError(
                "logits give no law at a place of the draw (NaN or infinite). Check the model's "
                "weights."
            )
        if self.config.temperature == 0:
            return logits.argmax(-1)
        logits = (logits - best) / self.config.temperature
        weights = logits.exp()
        if self.config.top_k is not None or self.config.top_p is not None:
            # stable: the order of ties, frequent in bfloat16, must not depend on the batch
            best, tokens = (
                part[:, : self.config.top_k]
                for part in weights.sort(dim=-1, descending=True, stable=True)
            )
            if self.config.top_p is not None:
                total = best.cumsum(-1)
                best = best.masked_fill(total - best >= self.config.top_p * total[:, -1:], 0.0)
            # sort by id again: rounding may swap tokens of nearly equal weight, which must not
            # change the draw
            weights = torch.zeros_like(weights).scatter(1, tokens, best)
        return _inverse_cdf(weights, uniforms)


# ----------------------------------------------------------------------------------- pure functions


def _share(count: Any, steps_left: int | Tensor) -> Any:
    """`ceil(count / steps_left)`, a number of numbers, else a tensor."""
    return (count + steps_left - 1) // steps_left


def _order(priority: Tensor, masked: Tensor, block: Tensor) -> Tensor:
    """Columns `[B, L]` in order of reveal: masked first, by block, descending priority, column."""
    order = priority.argsort(dim=1, descending=True, stable=True)
    group = torch.where(masked, block, masked.shape[1])
    return order.gather(1, group.gather(1, order).argsort(dim=1, stable=True))


def _level(priority: Tensor, masked: Tensor, block: Tensor, count: Tensor) -> Tensor:
    """`priority` `[B, L]`, made equal within `TIE` of the last of `count` `[B, 1]` reveals."""
    last = priority.gather(1, _order(priority, masked, block).gather(1, (count - 1).clamp(min=0)))
    return torch.where((priority - last).abs() <= TIE, last, priority)


def _float64_rates(rates: Tensor, where: Tensor | None) -> Tensor:
    """Rates `[B, L]` in float64, 1 outside of `where` (`None` = everywhere); CPU: checked."""
    floating = isinstance(rates, Tensor) and rates.ndim == 2 and rates.is_floating_point()
    _require(
        floating,
        f"rates must be a floating tensor [B, L], got {_describe(rates)}. Pass rates.float().",
    )
    fits, wrong = (
        where is None or where.shape == rates.shape,
        "attention_mask must have the shape of rates",
    )
    _require(
        fits, f"{wrong}, {tuple(rates.shape)}, got {_describe(where)}. Pass 1 for real tokens."
    )
    rates = rates.to(float64_device(rates.device)).to(torch.float64)
    if where is not None:
        rates = torch.where(where.to(rates.device).bool(), rates, torch.ones_like(rates))
    if rates.device.type == "cpu" and not (fine := (rates > 0) & rates.isfinite()).all():
        worst = rates[~fine][0].item()
        raise ValueError(
            f"rates must be positive and finite where they count, got {worst}. Check the weights."
        )
    return rates


def _inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """First entry `[M]` at which cumulative `weights` `[M, V]` reach `uniforms` of their total.

    An entry of weight 0 is never met: the target lies strictly between 0 and the total.
    """
    cumulative = weights.cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    entries = torch.searchsorted(cumulative, target)[:, 0]
    # NaN, which only the CPU can look for, is not above any target
    return entries.clamp(max=weights.shape[1] - 1)


def _slice_rows(logits: Tensor) -> int:
    return max(1, SLICE_SIZE // logits.shape[-1])


def _slices(logits: Tensor) -> tuple[Tensor, ...]:
    """`[..., V]` logits as `[M, V]` slices that bound the memory of float64 work."""
    return logits.reshape(-1, logits.shape[-1]).split(_slice_rows(logits))


def _times(timesteps: float | Tensor, rates: Tensor) -> Tensor:
    """Times `[1, 1]` or `[B, 1]` in float64 on the device of `rates` `[B, L]`."""
    times: Any = timesteps
    if isinstance(timesteps, Real):
        times = torch.tensor(timesteps, dtype=torch.float64)
    fits = isinstance(times, Tensor) and times.is_floating_point() and times.ndim <= 2
    wrong = (
        f"timesteps must be one floating number, or one for each of {len(rates)} rows, got "
        f"{_describe(timesteps)}. "
    )
    _require(fits and times.numel() in (1, len(rates)), wrong + "0 is data, 1 is all masked.")
    times = times.to(rates.device).to(torch.float64)
    if times.device.type == "cpu" and not ((times >= 0) & (times <= 1)).all():
        raise ValueError(
            f"timesteps must lie in [0, 1], got {times.flatten().tolist()}. 0 is data, 1 is all "
            "masked."
        )
    return times.reshape(-1, 1)


def _describe(value: object) -> str:
    return (
        f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
