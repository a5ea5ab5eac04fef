"""Training at scale on paper: memory for each GPU, tokens per second, hours to a number of steps.

    python benchmarks/projection.py --peak 989e12 --utilisation 0.3 0.45

Nothing here is measured. `--peak` is the bfloat16 FLOP/s of one GPU from its data sheet,
`--utilisation` the share of it that training reaches (`benchmarks/training_step.py` measures it on
one GPU; communication is not counted).
"""

import argparse
from dataclasses import asdict, dataclass

import flops
from report import table

from hf_lomdm import LoMDMConfig
from hf_lomdm.cli.errors import user_errors
from hf_lomdm.cli.option_types import positive
from hf_lomdm.modeling.token_losses_lomdm import DEVICE_LOGITS

PAPER = {"length": 1024, "batch": 512, "steps": 1_000_000}  # OpenWebText, MDLM-small
BILLION = {"hidden_size": 1792, "num_hidden_layers": 21, "num_attention_heads": 14}
# bytes for each weight: float32 weight, gradient, two moments of AdamW, moving average
STATE_BYTES = 4 + 4 + 8 + 4
# bytes that a block keeps for its backward pass, per token and hidden unit, in bfloat16 with flash
# attention: inputs of both norms (float32), their outputs, q, k, v, the attention output, the MLP
# before and after its activation (4 D each) and two dropout masks
LAYER_BYTES = 2 * 4 + 2 * 2 + 3 * 2 + 2 + 2 * 4 * 2 + 2
# bytes that a loss keeps of a logit; of half of the positions, the mean share that is masked
LOGIT_BYTES = 2
WIDE_LOGIT_BYTES = 4 + 4  # of a few rows at a time: float32 and its log-softmax


@dataclass
class Projection:
    """Memory of one GPU by parts, speed of all GPUs, hours to the end, weights of the model."""

    gpus: int
    weights: int
    state_gb: float
    activations_gb: float
    memory_gb: float
    tokens_per_second: float
    hours: float


def project(
    config: LoMDMConfig,
    gpus: int,
    peak: float,
    utilisation: float,
    sharded: bool,
    length: int = PAPER["length"],
    batch: int = PAPER["batch"],
    steps: int = PAPER["steps"],
    micro_batch: int = 8,
) -> Projection:
    """What LoMDM (or MDLM, as `config.rate_type` says) takes on `gpus` GPUs.

    Args:
        peak: FLOP/s of one GPU. utilisation: share of it in `(0, 1]`.
        sharded: FSDP2, each GPU holds its part of the state and one block whole in bfloat16; else
            DDP, all of it.
        micro_batch: texts on a GPU at once.
    Raises:
        ValueError: a utilisation outside `(0, 1]`, or a batch that the GPUs do not divide.
    """
    if not 0 < utilisation <= 1:
        raise ValueError(
            f"utilisation must be in (0, 1], got {utilisation}. Pass the measured share, for "
            "example 0.4."
        )
    if batch % gpus:
        raise ValueError(
            f"batch={batch} texts do not divide among gpus={gpus}. Pass a divisor of the batch."
        )
    weights, system = (
        flops.num_weights(config),
        "lomdm" if config.rate_type == "learned" else "mdlm",
    )
    views = 2 if system == "lomdm" else 1
    block = weights_of_block(config)
    state = weights * STATE_BYTES / gpus + 2 * block * 2 if sharded else weights * STATE_BYTES
    tokens = min(micro_batch, batch // gpus) * length * views
    activations = tokens * config.hidden_size * config.num_hidden_layers * LAYER_BYTES
    logits = tokens // 2 * config.vocab_size
    activations += logits * LOGIT_BYTES + min(logits, DEVICE_LOGITS) * WIDE_LOGIT_BYTES
    speed = gpus * peak * utilisation / flops.training(config, length)
    hours = steps * batch * length / speed / 3600
    gb = [part / 1e9 for part in (state, activations, state + activations)]
    return Projection(gpus, weights, *gb, speed, hours)


def weights_of_block(config: LoMDMConfig) -> int:
    """Weights of one transformer block."""
    return 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size


def projections(peak: float, utilisation: float) -> list[dict]:
    """LoMDM at the paper's setting (DDP) and at a billion weights (FSDP2), on 8 and 64 GPUs."""
    rows = []
    for name, sizes, sharded in (("MDLM-small, DDP", {}, False), ("1B, FSDP2", BILLION, True)):
        for gpus in (8, 64):
            row = project(LoMDMConfig(**sizes), gpus, peak, utilisation, sharded)
            rows.append({"setting": name, "peak": peak, "utilisation": utilisation} | asdict(row))
    return rows


def table_of(rows: list[dict]) -> str:
    """The projections as a table in Markdown."""
    header = [
        "setting",
        "GPUs",
        "utilisation",
        "weights",
        "state, GB",
        "activations, GB",
        "tokens/s",
        "hours",
    ]
    names = (
        "setting",
        "gpus",
        "utilisation",
        "weights",
        "state_gb",
        "activations_gb",
        "tokens_per_second",
        "hours",
    )
    return table("LoMDM on paper", header, [[row[name] for name in names] for row in rows])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak", type=positive, required=True, help="bfloat16 FLOP/s of one GPU")
    parser.add_argument(
        "--utilisation",
        type=positive,
        nargs="+",
        required=True,
        help="shares of it that training reaches",
    )
    chosen = parser.parse_args()
    with user_errors():
        print(
            table_of(
                [row for share in chosen.utilisation for row in projections(chosen.peak, share)]
            )
        )
