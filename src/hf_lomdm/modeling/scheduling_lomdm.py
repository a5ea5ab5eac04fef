"""Scheduler of LoMDM's family: which positions are revealed, then which token each gets.

This file travels to the Hub. Its formulas are those of `process_lomdm.py` (docs/method.md).
Every draw depends on two numbers only: a 64-bit seed of its row, drawn once per call, and its
position from the first real token. So a row alone, padded, in a batch, fast or plain is the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Generator, Tensor

from .blocks_lomdm import Blocks  # noqa: F401  diffusers copies what this file imports
from .corrections_lomdm import Corrections
from .forward_lomdm import ForwardProcess  # noqa: F401  diffusers copies what this file imports
from .input_checks_lomdm import (
    check_certainties,
    check_given,
    check_shapes,
    check_timestep,
    float64_rates,
    require,
)
from .position_draw_lomdm import (
    adaptive_grid_probability,
    level,
    order_of_reveal,
    share,
    uniform_grid_probability,
)
from .process_lomdm import at_least_float32, entropy_bound_prefix, guided_logits, threshold_prefix
from .random_lomdm import float64_device, position_uniforms, row_seeds
from .settings_lomdm import (
    COUNTING_SAMPLERS,
    LOGIT_SAMPLERS,
    RATE_SAMPLERS,
    SAMPLERS,  # noqa: F401  scripts offer them
    SETTINGS,
    check_pairs,
    check_setting,
    check_used,
)
from .token_draw_lomdm import certainty, draw_from_law, slice_rows, slices, token_probability


@dataclass
class LoMDMSchedulerOutput(BaseOutput):
    """What one reveal step gives.

    Args:
        prev_sample: `[B, L]` int64, the sample at the next, earlier time.
        revealed: `[B, L]` bool, the positions that this step revealed.
    """

    prev_sample: Tensor
    revealed: Tensor


class LoMDMScheduler(Corrections, SchedulerMixin, ConfigMixin):
    """Reveals masked positions step by step, from all masked (`t = 1`) to data (`t = 0`).

    Args:
        mask_token_id: id of the mask token; positions that hold it are masked. It is never drawn.
        sampler: how positions are drawn. `"sequential"`: without replacement, weighted by the rates
            `v` (one position at a time is the exact process). `"ancestral"`: each position
            independently, with the probability that its rate gives for the step.
            Reference orders: `"random"`, `"left_to_right"`, `"confidence"` (largest probability
            first), `"margin"` (largest difference of the two best first), `"entropy"` (lowest
            first). The last three use the model's own token law: temperature, `top_p` and `top_k`
            do not change the positions. `"threshold"` is `"confidence"`, and `"entropy_bound"` is
            `"entropy"`, each with the count of that name.
        grid: times of `ancestral`. `"adaptive"`: each row chooses its step so that `remaining /
            steps left` reveals are expected. `"uniform"`: equal steps of time (the paper's).
        count: how many positions a step reveals, in the order of the sampler. `"steps"`:
            `ceil(remaining / steps left)`. `"threshold"`: the longest prefix in which every largest
            probability exceeds `threshold`. `"entropy_bound"`: the longest prefix whose entropies,
            without the largest of them, sum to at most `entropy_bound`. The last two reveal at
            least as many as `"steps"`, so the number of steps is a limit. `None`: the count of the
            sampler. `"ancestral"` takes no count.
        threshold: a probability; 1 reveals one position at a time.
        entropy_bound: in nats; 0 reveals one position at a time.
        remasking: the probability with which a revealed position is masked again (ReMDM), for the
            sampler `"ancestral"` on the `"uniform"` grid. `limit` is the largest probability that
            keeps the marginals. `"cap"` is `min(sigma, limit)`, `"rescale"` is `sigma * limit`,
            `"confidence"` is `sigma * limit` times the softmax of minus the probability that a
            token had when it was revealed. `None`: a reveal is final.
        sigma: the strength of `remasking`; 0 is none.
        loop_start, loop_stop: two times. In the steps between them time stands still and positions
            are masked again. In the other steps none is masked again; they share the time evenly.
            `None`: remasking in all steps.
        corrector_steps: number of corrections of a text, or of each block, after all is revealed.
        corrector_k: positions that a correction masks and reveals again with the same sampler and
            count (`"ancestral"`: as `"sequential"`).
        corrector_selection: the positions to mask. `"random"` keeps the law of a consistent
            network. `"confidence"`: those whose tokens were the least probable when revealed.
        block_size: positions per block, counted from the first real token; `None`: no blocks.
            Blocks are revealed left to right; a step that finishes a block continues in the next.
            On the adaptive grid the expected reveals of a step go to the leftmost blocks first.
        temperature: divides the logits of the token draw; 0 takes the most likely token.
        top_p: keep the most likely tokens up to this total probability, after `top_k`; `None`
            keeps all.
        top_k: keep this many of the most likely tokens; `None` keeps all.

    Raises:
        ValueError: if a value is out of range, with the name, the value and the remedy.
    """

    check_used = staticmethod(check_used)  # for the pipeline, which imports no scheduler

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
        count: str | None = None,
        threshold: float = 0.95,
        entropy_bound: float = 0.1,
        remasking: str | None = None,
        sigma: float = 0.02,
        loop_start: float | None = None,
        loop_stop: float | None = None,
        corrector_steps: int = 0,
        corrector_k: int = 1,
        corrector_selection: str = "random",
    ):
        self.num_inference_steps: int | None = None
        self.timesteps: Tensor | None = None

    @classmethod
    def from_config(cls, config: Any = None, **kwargs) -> Any:
        """As in diffusers, which takes what is no mapping for the name of a repository to load."""
        wrong = f"config must be a mapping of settings, got {config!r}. Pass scheduler.config."
        require(isinstance(config, Mapping), wrong)
        return super().from_config(config, **kwargs)

    def register_to_config(self, **kwargs) -> None:
        """Changes settings; the constructor does it too. Each is checked (`check_setting`)."""
        # `from_config` would drop what diffusers lists here, also where it was passed by position
        # or set since
        kwargs.pop("_use_default_values", None)
        checked = {
            name: check_setting(name, value) for name, value in kwargs.items() if name in SETTINGS
        }
        before = dict(getattr(self, "_internal_dict", {}))
        check_pairs(before | checked)
        super().register_to_config(**kwargs | checked)

    @property
    def order_of_reveals(self) -> str:
        """By what positions are ordered: the sampler, or the one that it is another name for."""
        return COUNTING_SAMPLERS.get(self.config.sampler, self.config.sampler)

    @property
    def count_of_reveals(self) -> str:
        """What decides how many positions a step reveals, one of `COUNTS`."""
        own = self.config.sampler if self.config.sampler in COUNTING_SAMPLERS else "steps"
        return self.config.count or own

    @property
    def position_draw_needs_logits(self) -> bool:
        """Whether `select` needs logits; if not, the vocabulary projection may come after."""
        return self.order_of_reveals in LOGIT_SAMPLERS or self.count_of_reveals != "steps"

    @property
    def position_draw_needs_rates(self) -> bool:
        """Whether `select` needs the reverse rates."""
        return self.config.sampler in RATE_SAMPLERS

    @property
    def num_reveals_is_random(self) -> bool:
        """Whether the number of reveals of a step is drawn or follows from the token laws.

        If not, it is `num_reveals`.
        """
        return self.config.sampler == "ancestral" or self.count_of_reveals != "steps"

    def num_reveals(self, num_masked: list[int], timestep: float | Tensor) -> list[int]:
        """Positions that this step reveals in each row: `ceil(remaining / steps left)`.

        Args:
            num_masked: masked positions of each row.
            timestep: an entry of `timesteps`, on the host.
        """
        steps_left = self._steps_left(timestep, torch.device("cpu"))
        return [share(count, steps_left) for count in num_masked]

    def num_useful_steps(self, num_inference_steps: int, num_masked: int) -> int:
        """How many of `num_inference_steps` can change a text of `num_masked` masks."""
        if self.config.sampler == "ancestral":
            return num_inference_steps
        return max(1, min(num_inference_steps, num_masked))

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Set `timesteps` to the float32 `[K]` times `1, 1 - 1/K, ..., 1/K`; then comes 0.

        `K` is a whole number from 1 to 100,000: in float32 more steps cannot be told apart by their
        times.
        """
        self.num_inference_steps = num_inference_steps = check_setting(
            "num_inference_steps", num_inference_steps
        )
        left = torch.arange(num_inference_steps, 0, -1, dtype=torch.float64)
        self.timesteps = (left / num_inference_steps).to(torch.float32).to(device)

    # ---------------------------------------------------------------------------------------------
    # reverse process

    def select(
        self,
        rates: Tensor | None,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generator | list[Generator] | None = None,
        *,
        attention_mask: Tensor | None = None,
        logits: Tensor | None = None,
        given: Tensor | None = None,
        certainties: Tensor | None = None,
    ) -> Tensor:
        """Draw the positions that a step reveals, and with remasking those it masks again.

        Takes one seed per row from `generator`, whatever the sampler and the number of masked
        positions.

        Args:
            rates: `[B, L]`, reverse rates `v > 0`; `None` is allowed for samplers without rates.
            timestep: an entry of `timesteps`, a float or a tensor with one element.
            sample: `[B, L]` token ids, masks among them.
            generator: one for the batch, a list with one per row, or `None` for the global one.
            attention_mask: `[B, L]`, 1 = real; `None` if nothing is padding.
            logits: `[B, L, V]`, only for samplers with `position_draw_needs_logits`.
            given: `[B, L]` bool, positions that are never masked; only for remasking.
            certainties: `[B, L]`, the probability that each revealed token had when it was
                revealed; only for `remasking="confidence"`.
        Returns:
            `[B, L]` bool, the positions that change: masked ones are revealed, others masked again.
        Raises:
            ValueError: for missing input, wrong shapes, an unknown `timestep`, and, on the CPU,
                where looking costs no synchronisation, rates that are not positive or logits that
                are not a law at masked positions.
        """
        check_shapes(sample, rates, attention_mask, logits)
        self._check_needed(rates, logits)
        if self.config.remasking is not None:
            check_given(sample, given)
        if self.config.remasking == "confidence":
            check_certainties(sample, certainties)
        home, device = sample.device, float64_device(sample.device)
        steps_left = self._steps_left(timestep, device)
        seeds = row_seeds(generator, len(sample), device)
        positions = self.positions(sample, attention_mask).to(device)
        masked = (sample == self.config.mask_token_id).to(device)
        if attention_mask is not None:
            masked &= attention_mask.bool().to(device)
        block, num_blocks = self.blocks(positions, attention_mask)
        uniforms = position_uniforms(seeds[:, None], positions)
        remaskable = torch.zeros_like(masked)
        if self.config.remasking is not None:
            real = True if attention_mask is None else attention_mask.bool().to(device)
            remaskable = ~masked & ~given.to(device) & real
        v = None
        if self.position_draw_needs_rates:
            v = float64_rates(rates.detach().to(device), masked | remaskable)
        if self.config.remasking is not None:
            place = block, num_blocks, steps_left
            chances = self.chances_of_change(v, masked, remaskable, place, certainties)
            return (uniforms < chances).to(home)
        if self.config.sampler == "ancestral":
            chances = self._ancestral(v, masked, block, num_blocks, steps_left)
            return (masked & (uniforms < chances)).to(home)
        measures = self._measures(logits, masked)
        priority = self._reveal_priority(v, uniforms, positions, measures)
        return self._first_in_order(priority, measures, masked, block, steps_left).to(home)

    def _first_in_order(
        self, priority: Tensor, measures, masked: Tensor, block: Tensor, steps_left: int | Tensor
    ) -> Tensor:
        """The masked positions that come first by `priority`, as many as the step reveals."""
        count: Tensor = share(masked.sum(1, keepdim=True), steps_left)
        apart = torch.zeros_like(count, dtype=torch.bool)
        if self.count_of_reveals != "steps":
            certain = self._num_certain(priority, masked, block, measures)
            # who exceeds a threshold is told apart by it
            apart = (certain >= count) & (self.count_of_reveals == "threshold")
            count = count.maximum(certain)
        if self.order_of_reveals in LOGIT_SAMPLERS:
            levelled = level(priority, masked, block, count)
            priority = torch.where(apart, priority, levelled)
        return order_of_reveal(priority, masked, block).argsort(dim=1) < count

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
            width = width if isinstance(steps_left, Tensor) else share(width, steps_left)
        return revealed.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]

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
        parts = zip(slices(logits), uniforms.reshape(-1).split(slice_rows(logits)), strict=True)
        config = self.config
        law = config.mask_token_id, config.temperature, config.top_p, config.top_k
        tokens = torch.cat([draw_from_law(*part, *law) for part in parts])
        return tokens.reshape(logits.shape[:-1]).to(logits.device)

    @staticmethod
    def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """Guided logits `[..., V]`, float32 or wider (`guided_logits`)."""
        return guided_logits(at_least_float32(conditional), at_least_float32(unconditional), scale)

    def probability(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Probability `[...]` of `tokens` `[...]` in the law of `[..., V]` logits, float64."""
        pieces = zip(slices(logits), tokens.reshape(-1).split(slice_rows(logits)), strict=True)
        found = [token_probability(*piece, self.config.mask_token_id) for piece in pieces]
        return torch.cat(found).reshape(tokens.shape)

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
        given: Tensor | None = None,
        certainties: Tensor | None = None,
    ) -> LoMDMSchedulerOutput | tuple[Tensor, Tensor]:
        """Reveal positions and give each its token: `select`, then `draw_tokens`.

        With remasking others are masked again.

        Args:
            model_output: `[B, L, V]` logits, unnormalised.
            timestep, sample, rates, generator: as in `select`.
            return_dict: `False` returns the tuple `(prev_sample, revealed)`.
            attention_mask, given, certainties: as in `select`.
        Raises:
            ValueError: as `select` and `draw_tokens`.
        """
        known = {"attention_mask": attention_mask, "given": given, "certainties": certainties}
        changed = self.select(rates, timestep, sample, generator, logits=model_output, **known)
        masked = sample == self.config.mask_token_id
        revealed = changed & masked
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
        prev_sample = prev_sample.masked_fill(changed & ~masked, self.config.mask_token_id)
        return (
            LoMDMSchedulerOutput(prev_sample, revealed) if return_dict else (prev_sample, revealed)
        )

    # -------------------------------------------------------------------------------------- parts

    def _check_needed(self, rates: Tensor | None, logits: Tensor | None) -> None:
        needed = (rates, self.position_draw_needs_rates), (logits, self.position_draw_needs_logits)
        names = f"sampler={self.config.sampler!r}, count={self.config.count!r}"
        for name, (value, is_needed) in zip(("rates", "logits"), needed, strict=True):
            wrong = f"{name} is None, but {names} draws by them. Pass the model's {name}."
            require(value is not None or not is_needed, wrong)

    def _steps_left(self, timestep: float | Tensor, device: torch.device) -> int | Tensor:
        """`K` minus the index of `timestep`; a 0-dim tensor if reading it would synchronise."""
        total = self.num_inference_steps
        require(
            total is not None, "timesteps is None. Call set_timesteps(num_inference_steps) first."
        )
        check_timestep(timestep)
        if isinstance(timestep, Tensor) and timestep.device.type not in ("cpu", "mps"):
            return (timestep.reshape(()) * total).round().clamp(1, total).to(device, torch.int64)
        steps_left = float(timestep) * total
        if not 0.5 <= steps_left <= total + 0.5 or abs(steps_left - round(steps_left)) > 0.01:
            raise ValueError(
                f"timestep {float(timestep)} is not in the grid of {total} steps. Pass an entry of "
                "scheduler.timesteps."
            )
        return round(steps_left)

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
            size = self.config.block_size
            return adaptive_grid_probability(rates, masked, block, size, steps_left)
        total = self.num_inference_steps
        return uniform_grid_probability(rates, block, num_blocks, steps_left, total)

    def _measures(self, logits: Tensor | None, masked: Tensor) -> dict[str, Tensor]:
        """Certainties `[B, L]` of the token laws, by each measure that order and count need."""
        of_count = COUNTING_SAMPLERS.get(self.count_of_reveals)
        needed = {self.order_of_reveals, of_count} & {*LOGIT_SAMPLERS}
        found = {name: self._measure(logits, masked, name) for name in needed}
        for values in found.values():
            if masked.device.type == "cpu" and not (values.isfinite() | ~masked).all():
                raise ValueError(
                    "logits give no law at a masked position (NaN or infinite). Check the weights."
                )
        return found

    def _measure(self, logits: Tensor, masked: Tensor, name: str) -> Tensor:
        """Certainties `[B, L]` by one measure; on the CPU 0 where nothing is masked."""
        options = self.config.mask_token_id, name
        if masked.device.type != "cpu":  # where they are would have to be waited for
            return torch.cat([certainty(part, *options) for part in slices(logits)]).view_as(masked)
        rows, places = logits.flatten(0, 1), masked.flatten().nonzero()[:, 0]
        parts = [certainty(rows[part], *options) for part in places.split(slice_rows(logits))]
        found = torch.zeros(masked.numel(), dtype=torch.float64)
        return found.index_copy(0, places, torch.cat(parts)).view_as(masked)

    def _reveal_priority(
        self,
        rates: Tensor | None,
        uniforms: Tensor,
        positions: Tensor,
        measures: dict[str, Tensor],
    ) -> Tensor:
        """Values `[B, L]` whose largest are revealed first."""
        order = self.order_of_reveals
        if order == "sequential":
            # minus an exponential of rate v: ascending order is Plackett-Luce
            return uniforms.log() / rates
        if order == "random":
            return uniforms
        return -positions if order == "left_to_right" else measures[order]

    def _num_certain(
        self, priority: Tensor, masked: Tensor, block: Tensor, measures: dict[str, Tensor]
    ) -> Tensor:
        """How many masked positions `[B, 1]`, in order of reveal, the token laws let go at once."""
        order = order_of_reveal(priority, masked, block)
        if self.count_of_reveals == "threshold":
            certainties = measures["confidence"].masked_fill(~masked, 0.0).gather(1, order)
            return threshold_prefix(certainties, self.config.threshold)
        entropies = (-measures["entropy"]).masked_fill(~masked, torch.inf).gather(1, order)
        return entropy_bound_prefix(entropies, self.config.entropy_bound)
