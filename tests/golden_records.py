"""What every system of the family computes from fixed seeds: losses, gradients, rates, samples,
evaluations.

    python tests/golden_records.py > before.json    # then > after.json; cmp before.json after.json
    python tests/golden_records.py --write          # where a behaviour was changed on purpose

The models are in float64, so that processors agree to five digits (rotary tables are float32); on
one machine the records are equal bit for bit.
"""

import json
import sys
from pathlib import Path

import torch

from conftest import build_model
from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.evaluation import exact_log_likelihood, nelbo

FILE = Path(__file__).parent / "golden" / "records.json"
FAMILY = [
    (rate_type, size)
    for rate_type in ("learned", "uniform", "token", "score")
    for size in (None, 4)
]
FAMILY.append(("uniform", 1))
SAMPLERS = ("sequential", "ancestral", "random", "left_to_right", "confidence", "margin", "entropy")
TEXTS = torch.tensor([[1, 3, 4, 5, 6, 7, 8, 9, 3, 2], [1, 9, 8, 7, 6, 5, 4, 3, 2, 0]])
MASK = torch.tensor([[1] * 10, [1] * 9 + [0]])
PROMPTS = [[1, 3, 4, 5, 6], [1, 7, 10, 10, 8, 10], [1]]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(values: torch.Tensor) -> list:
    return values.detach().to(torch.float64).tolist()


def loss_record(model, bound: str) -> dict:
    """The loss of two texts in training, its terms, and for each weight the sum and a projection of
    its gradient."""
    model.train().zero_grad()
    labels = TEXTS.masked_fill(MASK == 0, -100)
    labels[0, 2] = -100  # given
    quantiles = torch.tensor([0.3, 0.8], dtype=torch.float64)
    out = model(
        TEXTS, MASK, labels=labels, quantiles=quantiles, generator=generator(1), bound=bound
    )
    out.loss.backward()
    model.eval()
    record = {
        name: numbers(out[name]) for name in ("loss", "nelbo", "main", "velocity", "forward_rates")
    }
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            ramp = torch.linspace(-1, 1, weight.numel(), dtype=torch.float64).view_as(weight)
            record[f"gradient of {name}"] = numbers(
                torch.stack((weight.grad.sum(), (weight.grad * ramp).sum()))
            )
    return record


def sampling_record(model) -> dict:
    """Sequences and orders of every sampler, from prefixes and templates of unequal length."""
    size, record = model.config.block_size, {}
    for sampler in SAMPLERS:
        pipe = LoMDMPipeline(
            model, LoMDMScheduler(mask_token_id=10, sampler=sampler, block_size=size)
        )
        pipe.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 5, "max_length": 12, "output_type": "seq"}
        out = pipe(PROMPTS, generator=[generator(seed) for seed in (1, 2, 3)], **options)
        long = pipe(num_inference_steps=3, max_length=44, generator=generator(4), output_type="seq")
        record[sampler] = {"sequences": out.sequences.tolist(), "order": out.order.tolist()}
        record[sampler] |= {
            "beyond the context": long.sequences.tolist(),
            "passes": long.num_forward_passes,
        }
    return record


@torch.no_grad()
def evaluation_record(model) -> dict:
    """Estimates of both bounds, and the exact likelihood of the first six positions."""
    record = {}
    for bound in ("order", "time"):
        estimate = nelbo(model, TEXTS, MASK, bound=bound, num_samples=4, generator=generator(5))
        record[bound] = [numbers(estimate.nelbo), numbers(estimate.standard_error)]
    labels = TEXTS.clone()
    labels[:, 6:] = -100
    record["exact"] = numbers(exact_log_likelihood(model, TEXTS[:1], labels=labels[:1]))
    return record


def scheduler_record(size: int | None) -> dict:
    """The forward process of the scheduler."""
    scheduler = LoMDMScheduler(mask_token_id=10, block_size=size)
    rates = torch.linspace(0.1, 1.3, 20, dtype=torch.float64).view(2, 10)
    noisy = scheduler.add_noise(TEXTS, rates, 0.6, generator(6), attention_mask=MASK)
    alpha, velocity = (f(0.55, rates, MASK) for f in (scheduler.alpha, scheduler.velocity))
    return {"add_noise": noisy.tolist(), "alpha": numbers(alpha), "velocity": numbers(velocity)}


def records() -> dict:
    """Everything, by system."""
    records = {f"scheduler, block_size={size}": scheduler_record(size) for size in (None, 4)}
    for rate_type, size in FAMILY:
        model = build_model(rate_type=rate_type, block_size=size).double()
        record = {f"{bound} loss": loss_record(model, bound) for bound in ("order", "time")}
        record |= {"samples": sampling_record(model), "evaluation": evaluation_record(model)}
        records[f"{rate_type}, block_size={size}"] = record
    return records


if __name__ == "__main__":
    text = json.dumps(records(), separators=(",", ":"))
    if "--write" in sys.argv:
        FILE.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
