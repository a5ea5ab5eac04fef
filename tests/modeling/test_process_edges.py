"""The process where float32 is thin: local times near 1."""

import math

import torch

from hf_lomdm.modeling import process_lomdm as process


def test_log_prob_of_masks_keeps_its_precision_where_almost_nothing_is_revealed():
    # 1 - exp(-1e-9) is 0 in float32, and its logarithm is not finite
    masked, rates = (
        torch.tensor([[False, True, False]]),
        torch.tensor([[1.0, 2.0, 0.25]], requires_grad=True),
    )
    log_u, maskable = torch.tensor([[-1e-9]]), torch.ones(1, 3, dtype=torch.bool)
    value = process.log_prob_masks(masked, log_u, rates, maskable)
    torch.testing.assert_close(
        value, torch.tensor([[2 * math.log(1e-9) + math.log(0.25)]]), rtol=1e-6, atol=0
    )
    (gradient,) = torch.autograd.grad(value.sum(), rates)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -1e-9, 4.0]]), rtol=1e-5, atol=0)
