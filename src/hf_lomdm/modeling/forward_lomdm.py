"""The forward process of the scheduler: what is masked at a time. This file travels to the Hub."""

from typing import Any

import torch
from torch import Generator, Tensor

from .blocks_lomdm import position_ids
from .input_checks_lomdm import check_shapes, float64_rates, times_of_rows
from .process_lomdm import alpha, local_time, velocity
from .random_lomdm import float64_device, position_uniforms, row_seeds


class ForwardProcess:
    """What a scheduler with a configuration knows of the forward process, and of its blocks."""

    config: Any

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
        w = float64_rates(rates, attention_mask)
        log_u = local_time(times_of_rows(timesteps, w), *self.blocks(w, attention_mask)).log()
        return alpha(log_u, w).to(rates.device).to(rates.dtype)

    def velocity(
        self, timesteps: float | Tensor, rates: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """The paper's velocity `A = -alpha' / (1 - alpha) = w / (t - a)` in the window, else 0.

        Per unit of global time; infinite at `t = a_i`. Arguments, result and errors as in `alpha`.
        """
        w = float64_rates(rates, attention_mask)
        found = velocity(times_of_rows(timesteps, w), w, *self.blocks(w, attention_mask))
        return found.to(rates.device).to(rates.dtype)

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
        check_shapes(original_samples, rates, attention_mask)
        home, device = original_samples.device, float64_device(original_samples.device)
        seeds = row_seeds(generator, len(original_samples), device)
        positions = self.positions(original_samples, attention_mask).to(device)
        w = float64_rates(rates, attention_mask).to(device)
        alpha = self.alpha(timesteps, w, attention_mask)
        masked = (position_uniforms(seeds[:, None], positions) < 1 - alpha).to(home)
        if attention_mask is not None:
            masked &= attention_mask.bool()
        return original_samples.masked_fill(masked, self.config.mask_token_id)

    @staticmethod
    def positions(sample: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Positions `[B, L]` int64 counted from the first real token.

        They are clamped at 0 on left padding.
        """
        real = None if attention_mask is None else attention_mask.bool()
        return position_ids(real, sample.shape[1], sample.device).expand(sample.shape)

    def blocks(
        self, positions: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, int | Tensor]:
        """Block of each position `[B, L]` and number of blocks (`[B, 1]`, or one for all)."""
        size = self.config.block_size
        if size is None:
            return torch.zeros(positions.shape, dtype=torch.int64, device=positions.device), 1
        if attention_mask is None:
            return self.positions(positions) // size, -(-positions.shape[1] // size)
        attention_mask = attention_mask.to(positions.device)
        count = (attention_mask.bool().sum(1, keepdim=True) + size - 1) // size
        return self.positions(positions, attention_mask) // size, count
