r"""What texts cost a trained network in another order, without training it again.

    python studies/word_orders/text_orders.py \
        --model checkpoints/lomdm-enwiki --file enwiki.test.txt

In seconds, with `--max_rows 4 --orders random left_to_right` besides.

In an order that is fixed by what is already revealed, `-log P(x)` is exactly the sum of `-log
p_i(x_i)` at each reveal; where the order is drawn, this sum is a bound. Every token of a row
counts, BOS and EOS too. Next comes:

- `random`: any position (four orders of each text);
- `learned`: a position drawn with the model's reverse rates (with learned rates; four orders of
  each text);
- `left_to_right`, `right_to_left`;
- `certain`, `uncertain`: where the entropy of the token law is least, or greatest, ties to the
  left;
- `near`, `far`: the position nearest to one that is known, or farthest from all; the first one and
  ties are drawn.

Were the network the exact law of the texts, every order would cost the same. What a network gains
that is trained in an order, `fixed_order.py` measures. Record:
outputs/studies/text_orders-MODEL-FILE.json.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer

from hf_lomdm import LoMDMForMaskedDiffusion
from hf_lomdm.cli.errors import loading, user_errors
from hf_lomdm.cli.option_types import nonempty, whole
from hf_lomdm.data.rows import pack_documents
from hf_lomdm.data.text import read_documents
from hf_lomdm.evaluation.corpus import special_tokens
from hf_lomdm.evaluation.records import environment, write_record
from hf_lomdm.modeling.position_draw_lomdm import TIE

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from measuring import record_place

DRAWN = {"random": 4, "learned": 4}  # orders of each text; one of the others
BATCH_ROWS = 64


def distance_to_known(masked: Tensor) -> Tensor:
    """Positions to the nearest unmasked one: `[B, L]`, 0 where it is known, inf without any."""
    position = torch.arange(masked.shape[1], device=masked.device)
    between = (position[:, None] - position).abs().to(torch.float64)  # [L, L]
    return between.masked_fill(masked[:, None], torch.inf).amin(-1)


class State(NamedTuple):
    """What an order sees, each `[B, L]`: masks, entropy of the token law, rates, noise, texts.

    `noise` is uniform on `[0, 1)` and float64, as all preferences are. `texts` are the finished
    ones, for orders that are told what comes.
    """

    masked: Tensor
    entropy: Tensor
    rates: Tensor
    noise: Tensor
    texts: Tensor

    def position(self) -> Tensor:
        return (
            torch.arange(self.noise.shape[1], device=self.noise.device)
            .expand_as(self.noise)
            .to(self.noise)
        )

    def most(self, values: Tensor) -> Tensor:
        """Whether `values` `[B, L]` are within `TIE` of the largest masked one, as 0 and 1."""
        largest = values.masked_fill(~self.masked, -torch.inf).amax(-1, keepdim=True)
        return (values >= largest - TIE).to(self.noise)

    def distance(self) -> Tensor:
        return distance_to_known(self.masked).clamp(max=self.masked.shape[1])


Orders = dict[str, Callable[[State], Tensor]]  # how much each position is preferred
ORDERS: Orders = {
    "random": lambda state: state.noise,
    # minus the time of an exponential clock: Plackett-Luce
    "learned": lambda state: state.noise.log() / state.rates,
    "left_to_right": lambda state: -state.position(),
    "right_to_left": lambda state: state.position(),
    "certain": lambda state: state.most(-state.entropy),
    "uncertain": lambda state: state.most(state.entropy),
    "near": lambda state: state.noise - state.distance(),
    "far": lambda state: state.noise + state.distance(),
}


@torch.no_grad()
def cost_in_order(
    model: LoMDMForMaskedDiffusion,
    texts: Tensor,
    order: str,
    generator: torch.Generator,
    orders: Orders = ORDERS,
) -> Tensor:
    """`-log p` of each reveal of `texts` `[B, L]` in one of `orders`, by reveal, in nats."""
    masked, costs = torch.ones_like(texts, dtype=torch.bool), []
    for _ in tqdm(range(texts.shape[1]), desc=order, leave=False):
        out = model(texts.masked_fill(masked, model.config.mask_token_id))
        law = out.logits.double().log_softmax(-1)  # [B, L, V]
        noise = torch.rand(texts.shape, generator=generator, dtype=torch.float64).to(texts.device)
        state = State(masked, torch.special.entr(law.exp()).sum(-1), out.rates, noise, texts)
        # [B, 1]
        place = orders[order](state).masked_fill(~masked, -torch.inf).argmax(-1, keepdim=True)
        costs.append(-law.gather(-1, texts[..., None]).squeeze(-1).gather(1, place))
        masked = masked.scatter(1, place, False)
    return torch.cat(costs, dim=1)


def measure(
    model: LoMDMForMaskedDiffusion,
    texts: Tensor,
    order: str,
    orders: Orders = ORDERS,
    drawn: dict[str, int] = DRAWN,
) -> dict:
    """Nats per token of each text in `order`, and its mean cost in each quarter of the reveals."""
    generator = torch.Generator().manual_seed(0)
    repeats = drawn.get(order, 1)
    parts = [
        torch.stack([cost_in_order(model, rows, order, generator, orders) for _ in range(repeats)])
        .mean(0)
        .cpu()
        for rows in texts.split(BATCH_ROWS)
    ]
    costs = torch.cat(parts)
    quarters = [float(part.mean()) for part in costs.tensor_split(4, dim=1)]
    return {"per_text": costs.mean(1).tolist(), "by_quarter": quarters}


def summary(by_order: dict[str, dict]) -> dict[str, dict]:
    """Means with their errors over texts, and the paired difference to the first order."""
    first = torch.tensor(next(iter(by_order.values()))["per_text"])
    return {
        name: _mean(torch.tensor(values["per_text"]))
        | {
            "minus_first": _mean(torch.tensor(values["per_text"]) - first),
            "by_quarter": values["by_quarter"],
        }
        for name, values in by_order.items()
    }


def _mean(values: Tensor) -> dict:
    return {
        "value": float(values.mean()),
        "standard_error": float(values.std() / len(values) ** 0.5),
    }


def load_texts(options: argparse.Namespace, model: LoMDMForMaskedDiffusion) -> Tensor:
    """The first whole rows of the file, `[B, L]`.

    Raises:
        ValueError: fewer than two of them.
    """
    tokenizer, length = (
        AutoTokenizer.from_pretrained(options.model, trust_remote_code=False),
        model.config.max_position_embeddings,
    )
    *ends, separator = special_tokens(model, tokenizer)
    documents = read_documents(options.file, "text", "paragraph")
    packed = pack_documents(documents, tokenizer, length, ends, separator, options.max_rows)
    rows = [row["input_ids"] for row in packed.rows if len(row["input_ids"]) == length]
    if len(rows) < 2:
        raise ValueError(
            f"--max_rows and --file must give 2 rows of {length} tokens for an error, got "
            f"{len(rows)}. Raise --max_rows, or pass a longer file."
        )
    return torch.stack([torch.as_tensor(row) for row in rows])


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        type=nonempty,
        required=True,
        help="folder of a masked diffusion model without blocks",
    )
    parser.add_argument("--file", type=nonempty, required=True, help="text to measure")
    parser.add_argument("--max_rows", type=whole(2), default=128)
    parser.add_argument(
        "--orders",
        nargs="+",
        choices=ORDERS,
        help="the first is the reference; default all there are",
    )
    parser.add_argument(
        "--output", type=nonempty, help="default outputs/studies/text_orders-MODEL-FILE.json"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    with user_errors():
        measured = {"task": "text_orders", "model": options.model, "source": options.file}
        measured |= {"max_rows": options.max_rows, "only": options.orders}
        path = record_place(options.output, measured, "studies")
        with loading("--model", options.model):
            model = LoMDMForMaskedDiffusion.from_pretrained(
                options.model, dtype=torch.float32
            ).eval()
        if model.config.block_size is not None:
            raise ValueError(
                f"--model {options.model} writes block after block. Pass one without blocks."
            )
        learned = model.config.rate_type == "learned"
        options.orders = options.orders or [name for name in ORDERS if learned or name != "learned"]
        if "learned" in options.orders and not learned:
            raise ValueError(
                f"--orders learned needs learned rates, {options.model} has none. Leave it out."
            )
        texts = load_texts(options, model)
    print(
        f"{'order':15s} {'nats per token':>20s} {'minus ' + options.orders[0]:>22s}   in each "
        "quarter of the reveals"
    )
    by_order = {}
    for order in options.orders:
        by_order[order] = measure(model, texts, order)
        result = summary(by_order)[order]
        values = [
            f"{part['value']:.3f} +- {part['standard_error']:.3f}"
            for part in (result, result["minus_first"])
        ]
        quarters = " ".join(f"{part:.2f}" for part in result["by_quarter"])
        print(f"{order:15s} {values[0]:>20s} {values[1]:>22s}   {quarters}", flush=True)
    where = environment("cpu", torch.float32, seed=0)
    write_record(
        path, measured | {"n": len(texts), "orders": summary(by_order), "environment": where}
    )
    print(f"record: {path}")


if __name__ == "__main__":
    main()
