"""What comes back after a reveal: remasking and the corrector. This file travels to the Hub."""

from typing import Any

import torch
from torch import Generator, Tensor

from .forward_lomdm import ForwardProcess
from .input_checks_lomdm import check_certainties, check_shapes
from .position_draw_lomdm import (
    level,
    order_of_reveal,
    remasking_probability,
    steps_beside_loop,
)
from .process_lomdm import local_time
from .random_lomdm import float64_device, position_uniforms, row_seeds


class Corrections(ForwardProcess):
    """The part of a scheduler with a configuration that masks revealed positions again."""

    num_inference_steps: int | None

    @property
    def needs_certainties(self) -> bool:
        """Whether `select` or `correct` needs what the tokens' probabilities were."""
        corrects = self.config.corrector_steps and self.config.corrector_selection == "confidence"
        return self.config.remasking == "confidence" or bool(corrects)

    @property
    def num_corrector_steps(self) -> int:
        """Steps of all corrections of a text, or of a block, behind those of `timesteps`."""
        return self.config.corrector_steps * self.config.corrector_k

    def correct(
        self,
        sample: Tensor,
        given: Tensor,
        generator: Generator | list[Generator] | None = None,
        *,
        attention_mask: Tensor | None = None,
        certainties: Tensor | None = None,
    ) -> Tensor:
        """Draw the `corrector_k` revealed positions that a correction masks.

        Takes one seed per row from `generator`.

        Args:
            given: `[B, L]` bool, positions that are never masked.
            certainties: as in `select`, for `corrector_selection="confidence"`.
            sample, generator, attention_mask: as in `select`.
        Returns:
            `[B, L]` bool; fewer than `corrector_k` in a row that has no more.
        """
        check_shapes(sample, None, attention_mask)
        device = float64_device(sample.device)
        positions = self.positions(sample, attention_mask).to(device)
        uniforms = position_uniforms(row_seeds(generator, len(sample), device)[:, None], positions)
        free = (~given & (sample != self.config.mask_token_id)).to(device)
        if attention_mask is not None:
            free &= attention_mask.bool().to(device)
        count = free.sum(1, keepdim=True).clamp(max=self.config.corrector_k)
        block = torch.zeros_like(positions)
        priority = uniforms
        if self.config.corrector_selection == "confidence":
            check_certainties(sample, certainties)
            priority = level(-certainties.to(device, torch.float64), free, block, count)
        order = order_of_reveal(priority, free, block)
        return (order.argsort(dim=1) < count).to(sample.device)

    def for_correction(self) -> Any:
        """The scheduler that reveals what a correction has masked, its timesteps set."""
        sampler = "sequential" if self.config.sampler == "ancestral" else self.config.sampler
        no_loop = {"remasking": None, "loop_start": None, "loop_stop": None}
        settings = {"sampler": sampler, "corrector_steps": 0, **no_loop}
        kind: Any = type(self)
        scheduler = kind.from_config(self.config, **settings)
        scheduler.set_timesteps(self.config.corrector_k)
        return scheduler

    def chances_of_change(
        self,
        rates: Tensor,
        masked: Tensor,
        remaskable: Tensor,
        place: tuple[Tensor, int | Tensor, int | Tensor],
        certainties: Tensor | None,
    ) -> Tensor:
        """Probability that a step with remasking reveals a position or masks it again: `[B, L]`.

        Args:
            rates, certainties: as in `select`, `rates` float64. masked, remaskable: `[B, L]` bool.
            place: the blocks `[B, L]`, their number, and the steps left.
        """
        log_u = self.local_times(*place)
        known = None if certainties is None else certainties.to(masked.device, torch.float64)
        how = self.config.remasking, self.sigma_of_step(place[-1]), known
        return remasking_probability(rates, masked, remaskable, log_u, *how)

    def local_times(
        self, block: Tensor, num_blocks: int | Tensor, steps_left: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log local times `[B, L]` before and after a step of the uniform grid without its loop."""
        total = self.num_inference_steps
        before, after = self._beside_loop(steps_left), self._beside_loop(steps_left - 1)
        whole: Any = self._beside_loop(total)
        u = (local_time(step, block, num_blocks, whole) for step in (before, after))
        u_from, u_to = u
        return u_from.log(), u_to.log()

    def _beside_loop(self, steps_left: int | Tensor) -> int | Tensor:
        config = self.config
        if config.loop_start is None:
            return steps_left
        total = self.num_inference_steps
        return steps_beside_loop(steps_left, total, config.loop_start, config.loop_stop)

    def sigma_of_step(self, steps_left: int | Tensor) -> float | Tensor:
        """The strength of remasking in this step: none beside a loop."""
        if self.config.loop_start is None:
            return self.config.sigma
        inside = self._beside_loop(steps_left) == self._beside_loop(steps_left - 1)
        return self.config.sigma * inside
