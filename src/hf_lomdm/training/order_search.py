"""Finds an order that pays: copies of a network are trained in different orders, the best stays.

What an order is worth shows only in what training in it makes of the network, so no gradient of the
bound points to it (docs/method.md, "an order that is given"). Each candidate is tried alone, on the
same texts and draws: by successive halving, with a copy in random order beside them to the end.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..evaluation.compare import difference
from ..evaluation.corpus import evaluate_corpus
from ..evaluation.records import write_record
from .arguments import LoMDMTrainingArguments
from .checkpointing import is_complete
from .trainer import LoMDMTrainer

RANDOM = "random"
# How late a position comes, in [0, 1], of its place in the row, in [0, 1].
LATENESS: dict[str, Callable[[float], float]] = {
    "left_to_right": lambda place: place,
    "right_to_left": lambda place: 1 - place,
    "inside_out": lambda place: abs(2 * place - 1),
    "outside_in": lambda place: 1 - abs(2 * place - 1),
}
# Log of the ratio of the largest rate to the smallest. Wider ones leave one loss for each state to
# learn from, and learn later.
SPREAD = 6.0
# An order counts as better than none if its bound is this many standard errors lower.
Z = 3.0
FILE = "order_search.json"


class Found(NamedTuple):
    """The winner: its name, its `position_log_rates` (`None` = none), its trained copy."""

    name: str
    log_rates: list[float] | None
    checkpoint: Path


def candidate_orders(length: int) -> dict[str, list[float] | None]:
    """Log rates of the positions of each candidate; `None` for a random order."""
    last = max(length - 1, 1)
    orders: dict[str, list[float] | None] = {RANDOM: None}
    for name, lateness in LATENESS.items():
        orders[name] = [-SPREAD * lateness(place / last) for place in range(length)]
    return orders


def search_order(
    make_trainer: Callable[[list[float] | None, LoMDMTrainingArguments], LoMDMTrainer],
    args: LoMDMTrainingArguments,
    length: int,
) -> Found:
    """The best of `candidate_orders`, each tried in `output_dir/order_search`.

    All candidates train for `order_search` steps, the better half of the orders goes on for as
    many, and so on until one is left; this one goes on as long as it loses its lead over the random
    order. It wins if it is clearly better than no order. The record of all rounds is
    `output_dir/order_search.json`. Killed and started again, the search goes on from its
    checkpoints.

    Args:
        make_trainer: a trainer with a new model of `position_log_rates`, for these arguments.
        length: positions of a row.
    """
    orders, folder = candidate_orders(length), Path(args.output_dir) / "order_search"
    names, rounds = list(LATENESS), []
    while len(names) > 1 or _loses_its_lead(rounds, names[0]):
        steps = (len(rounds) + 1) * args.order_search
        records = {
            name: _try(make_trainer, orders[name], _audition(args, folder / name, steps))
            for name in (RANDOM, *names)
        }
        rounds.append(_summary(records, steps))
        print(f"order search, {steps} steps: {_line(rounds[-1])}", flush=True)
        names = sorted(names, key=lambda name: records[name]["value"])[: -(-len(names) // 2)]
    gain, error, _ = difference(records[RANDOM], records[names[0]])
    clear = error is not None and gain > Z * error
    winner = names[0] if clear else RANDOM
    found = Found(winner, orders[winner], folder / winner / f"checkpoint-{steps}")
    if args.should_save:
        write_record(Path(args.output_dir) / FILE, {"winner": winner, "rounds": rounds})
    print(f"order search: {winner}", flush=True)
    return found


def _loses_its_lead(rounds: list[dict[str, Any]], name: str) -> bool:
    """Whether an order leads clearly, and clearly by less than one round before.

    A steady order is learned sooner than a random one. Where that is all, the lead goes away.
    """
    before, now = (tried["bounds"][name] for tried in rounds[-2:])
    if now["standard_error"] is None:
        return False
    lost = now["minus_random"] - before["minus_random"]
    leads = -now["minus_random"] > Z * now["standard_error"]
    return leads and lost > Z * math.hypot(now["standard_error"], before["standard_error"])


def _audition(args: LoMDMTrainingArguments, folder: Path, steps: int) -> LoMDMTrainingArguments:
    """The arguments of one trial: a constant learning rate, no evaluation, a checkpoint a round."""
    end = folder / f"checkpoint-{steps}"
    return dataclasses.replace(
        args,
        output_dir=str(folder),
        max_steps=steps,
        lr_scheduler_type="constant_with_warmup",
        lr_scheduler_kwargs=None,
        warmup_steps=max(1, args.order_search // 5),
        ema_decay=0.0,  # of a short run the average would lag behind
        eval_strategy="no",
        save_strategy="steps",
        save_steps=args.order_search,
        save_total_limit=None,  # a search that is started again reads those of earlier rounds
        resume_from_checkpoint=str(end) if is_complete(end) else "auto",
        load_best_model_at_end=False,
        push_to_hub=False,
        report_to="none",
        disable_tqdm=True,
    )


def _try(make_trainer, log_rates, args: LoMDMTrainingArguments) -> dict[str, Any]:
    """Trains one candidate as far as `args` say; the record of its bound on validation rows."""
    trainer = make_trainer(log_rates, args)
    trainer.train(args.resume_from_checkpoint)
    model, rows = trainer.accelerator.unwrap_model(trainer.model), trainer.eval_dataset
    return evaluate_corpus(model, rows, num_samples=args.eval_num_samples, progress=False)


def _summary(records: dict[str, dict[str, Any]], steps: int) -> dict[str, Any]:
    bounds = {}
    for name, record in records.items():
        against = difference(record, records[RANDOM])
        bounds[name] = {
            "value": record["value"],
            "minus_random": against.value,
            "standard_error": against.standard_error,
        }
    return {"steps": steps, "bounds": bounds}


def _line(tried: dict[str, Any]) -> str:
    return ", ".join(f"{name} {found['value']:.4f}" for name, found in tried["bounds"].items())
