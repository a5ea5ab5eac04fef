"""The tiny scheduler of these tests, its loop, and what a model would give it."""

import torch

from hf_lomdm.modeling.scheduling_lomdm import LoMDMScheduler

MASK, VOCAB = 10, 11


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def random_output(batch: int, length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[B, L, V]` with the mask token at -inf and rates `[B, L]` in (0.05, 1.35), as a model
    gives them."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, length, VOCAB, generator=generator)
    logits[..., MASK] = -torch.inf
    return logits, 0.05 + 1.3 * torch.rand(batch, length, generator=generator)


def make(num_inference_steps: int, **config) -> LoMDMScheduler:
    scheduler = LoMDMScheduler(MASK, **config)
    scheduler.set_timesteps(num_inference_steps)
    return scheduler


def run(
    scheduler, sample, logits, rates, generator, attention_mask=None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The whole loop with a network that says the same at every step; the final sample and what
    each step revealed."""
    history = []
    for t in scheduler.timesteps:
        sample, revealed = scheduler.step(
            logits, t, sample, rates, generator, False, attention_mask=attention_mask
        )
        history.append(revealed)
    return sample, history
