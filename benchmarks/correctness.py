"""Correctness on the device at hand: the same model there and in float64 on the CPU.

    python benchmarks/correctness.py (outputs/benchmarks/correctness-<device>.json; exit 1 if a
    check fails)

Logits, rates, both bounds and their gradients within float32 rounding, samples token for token in
float64.
"""

import argparse
import sys

import torch
from measuring import record_place

from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion, LoMDMPipeline, LoMDMScheduler
from hf_lomdm.cli.errors import user_errors
from hf_lomdm.cli.option_types import nonempty
from hf_lomdm.evaluation.records import environment, write_record

# float32 sums of up to a few hundred terms against float64; TF32 is off
TOLERANCE = 2e-4
BATCH, LENGTH = 8, 32


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=nonempty, help="default outputs/benchmarks/correctness-<device>.json"
    )
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = environment(device, torch.float32, seed=1)
    with user_errors(ValueError, OSError):
        measured = {"task": f"correctness-{device}", "device": where["device"]}
        path = record_place(options.output, measured)
    record = check(device)
    write_record(path, measured | record | where)
    for name, error in record["largest_difference"].items():
        print(f"{name:28s} {error:.2e}")
    sys.exit(f"failed: {record['failed']}" if record["failed"] else 0)


def check(device: str) -> dict:
    """The largest difference of each check, and those above the tolerance (`failed`)."""
    reference, model = build("cpu", torch.float64), build(device, torch.float32)
    clean = torch.randint(3, 40, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    checks = {"logits": compare_logits(reference, model, clean)}
    for bound in ("order", "time"):
        checks |= compare_bound(reference, model, clean, bound)
    for sampler in ("sequential", "ancestral", "confidence"):
        checks[f"sample_{sampler}"] = compare_samples(
            reference, build(device, torch.float64), sampler
        )
    failed = [name for name, error in checks.items() if not error <= TOLERANCE]
    return {"largest_difference": checks, "tolerance": TOLERANCE, "failed": failed}


def build(device: str, dtype: torch.dtype) -> LoMDMForMaskedDiffusion:
    """A small random model with uneven rates, in training mode without dropout."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
    }
    config = LoMDMConfig(
        vocab_size=41, mask_token_id=40, dropout=0.0, initializer_range=0.1, **sizes
    )
    model = LoMDMForMaskedDiffusion(config)
    for head in (model.phi, model.psi):
        torch.nn.init.normal_(head.out.weight, std=0.5)
    return model.to(device, dtype).train()


def difference(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest absolute difference, relative to the largest reference value above 1."""
    value, reference = value.detach().double().cpu(), reference.detach().double().cpu()
    return float((value - reference).abs().max() / reference.abs().max().clamp(min=1))


def compare_logits(reference, model, clean) -> float:
    noisy = clean.masked_fill(torch.arange(LENGTH) % 3 == 0, 40)
    expected, computed = (m(input_ids=noisy.to(m.device)) for m in (reference, model))
    keep = slice(0, 40)  # the mask token is at -inf on both sides
    return max(
        difference(computed.logits[..., keep], expected.logits[..., keep]),
        difference(computed.rates, expected.rates),
    )


def compare_bound(reference, model, clean, bound) -> dict[str, float]:
    outputs = []
    for m in (reference, model):
        m.zero_grad()
        ids = clean.to(m.device)
        outputs.append(
            m(input_ids=ids, labels=ids, bound=bound, generator=torch.Generator().manual_seed(2))
        )
        outputs[-1].loss.backward()
    gradients = zip(model.parameters(), reference.parameters(), strict=True)
    return {
        f"{bound}_bound": difference(outputs[1].nelbo, outputs[0].nelbo),
        f"{bound}_gradient": max(difference(mine.grad, theirs.grad) for mine, theirs in gradients),
    }


def compare_samples(reference, model, sampler) -> float:
    """The share of tokens that differ; draws are float64 on both sides, so it is 0."""
    sequences = []
    for m in (reference.eval(), model.eval()):
        pipe = LoMDMPipeline(m, LoMDMScheduler(mask_token_id=40, sampler=sampler))
        pipe.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(row) for row in range(4)]
        out = pipe(
            None,
            num_inference_steps=8,
            num_return_sequences=4,
            generator=generators,
            output_type="seq",
        )
        sequences.append(torch.as_tensor(out.sequences).cpu())
    return float((sequences[0] != sequences[1]).float().mean())


if __name__ == "__main__":
    main()
