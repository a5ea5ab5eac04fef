r"""Makes rows of tasks whose best order is known, and says what they cost in it.

    python studies/known_orders/tasks.py latents --rows 20000 --seed 1 --output latents.train.txt

In a second. A row is a line of characters. Some positions are free: uniform and independent. All
others follow from them, step by step, each from positions of earlier steps. So the entropy of a row
is known exactly, and whoever writes the steps in turn pays no more than it:

- `latents`: free bits, then letters, each telling whether `--inputs` fixed bits are not all equal.
  With the bits known a letter is a small function; with the letters known the bits have to be
  inferred together, which is the harder, the more inputs a letter has.
- `hashes`: a block of `--width` bits, hashed again and again by the step `x_j ^ (~x_{j+1} &
  x_{j+2})` of SHA-3. Forward each bit sees three; backwards its degree grows with the width, and
  with an even width what was before cannot be known.
- `sums`: two numbers and their sum in a `--base`, the highest digit first. A digit of the sum needs
  the carry from its right.
- `pairs`: the control. Each character stands twice, and either may come first.

`--wiring` seeds what is fixed for all rows of a task, `--seed` draws the rows.
"""

import argparse
import math
import string
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hf_lomdm.cli.errors import user_errors
from hf_lomdm.cli.option_types import whole

SYMBOLS = string.digits + string.ascii_lowercase


class Task(NamedTuple):
    """Rows whose best order is known.

    Attributes:
        alphabet: values that a free position takes, each equally likely.
        num_free: free positions.
        complete: rows `[N, L]` of symbols, from free values `[N, num_free]` in `[0, alphabet)`.
        steps: of each position in the best order, `[L]` int64; those of a step may come in any
            order.
    """

    alphabet: int
    num_free: int
    complete: Callable[[Tensor], Tensor]
    steps: Tensor

    @property
    def entropy(self) -> float:
        """Nats per row, exact: the free positions determine the row and are read from it."""
        return self.num_free * math.log(self.alphabet)

    def rows(self, count: int, seed: int) -> Tensor:
        """`count` random rows `[count, L]`."""
        generator = torch.Generator().manual_seed(seed)
        return self.complete(
            torch.randint(self.alphabet, (count, self.num_free), generator=generator)
        )


def latents(latents: int = 6, observations: int = 12, inputs: int = 3, wiring: int = 0) -> Task:
    """Bits, then letters that tell whether `inputs` fixed bits are not all equal."""
    generator = torch.Generator().manual_seed(wiring)
    drawn = [torch.randperm(latents, generator=generator)[:inputs] for _ in range(observations)]
    wires = torch.stack(drawn)  # [observations, inputs]

    def complete(free: Tensor) -> Tensor:
        high = free[:, wires].sum(-1)
        return torch.cat([free, 2 + ((high > 0) & (high < inputs)).long()], dim=1)

    steps = torch.tensor([0] * latents + [1] * observations)
    return Task(2, latents, complete, steps)


def hashes(width: int = 7, blocks: int = 3, wiring: int = 0) -> Task:
    """A block of bits and its hashes; nothing is wired at random."""

    def complete(free: Tensor) -> Tensor:
        chain = [free]
        for _ in range(blocks - 1):
            bits = chain[-1]
            chain.append(bits ^ ((1 - bits.roll(-1, 1)) & bits.roll(-2, 1)))
        return torch.cat(chain, dim=1)

    return Task(2, width, complete, torch.arange(blocks).repeat_interleave(width))


def sums(digits: int = 3, base: int = 3, wiring: int = 0) -> Task:
    """Two numbers of `digits` and their sum, one digit longer; nothing is wired at random."""

    def complete(free: Tensor) -> Tensor:
        carry, total = torch.zeros_like(free[:, 0]), []
        for place in reversed(range(digits)):
            carry = carry + free[:, place] + free[:, digits + place]
            total.append(carry % base)
            carry = carry // base
        return torch.cat([free, torch.stack([carry, *reversed(total)], dim=1)], dim=1)

    steps = torch.cat([torch.zeros(2 * digits), torch.arange(digits + 1, 0, -1)]).long()
    return Task(base, 2 * digits, complete, steps)


def pairs(pairs: int = 8, alphabet: int = 4, wiring: int = 0) -> Task:
    """Characters that stand twice, in the same order: every order costs the same."""
    return Task(
        alphabet, pairs, lambda free: torch.cat([free, free], dim=1), torch.zeros(2 * pairs).long()
    )


TASKS = {"latents": latents, "hashes": hashes, "sums": sums, "pairs": pairs}
# options of the script, with their help, in the words of the functions above
KNOBS = {
    "latents": "of task latents: free bits",
    "observations": "of task latents: letters that follow from them",
    "inputs": "of task latents: bits per letter; more are harder to infer",
    "width": "of task hashes: bits of a block",
    "blocks": "of task hashes: the first one and its hashes",
    "digits": "of task sums: of each number",
    "base": "of task sums",
    "pairs": "of task pairs",
    "alphabet": "of task pairs: different characters",
    "wiring": "seed of what is fixed for all rows",
}


def write_rows(rows: Tensor, path: Path) -> None:
    """A line of characters for each row of symbols."""
    lines = ["".join(SYMBOLS[symbol] for symbol in row) for row in rows.tolist()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_task(name: str, knobs: dict[str, int | None]) -> Task:
    """A task of `TASKS`; knobs that are `None` keep their defaults.

    Raises:
        ValueError: a knob that the task does not have, or one out of range.
    """
    given = {knob: value for knob, value in knobs.items() if value is not None}
    maker = TASKS[name]
    known = maker.__code__.co_varnames[: maker.__code__.co_argcount]
    for knob in given:
        if knob not in known:
            raise ValueError(f"--{knob} is no knob of task {name}. Pass {', '.join(known)}.")
    values = dict(zip(known, maker.__defaults__ or (), strict=True)) | given
    if values.get("inputs", 0) > values.get("latents", 0):
        raise ValueError(
            f"--inputs must be at most --latents {values['latents']}, got {values['inputs']}."
        )
    for knob in {"base", "alphabet"} & values.keys():
        if not 2 <= values[knob] <= len(SYMBOLS):
            raise ValueError(f"--{knob} must be 2 to {len(SYMBOLS)}, got {values[knob]}.")
    return maker(**given)


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the task and its knobs."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("task", choices=TASKS)
    for knob, text in KNOBS.items():
        parser.add_argument(f"--{knob}", type=whole(0 if knob == "wiring" else 1), help=text)
    return parser


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=whole(1), default=20000)
    parser.add_argument("--seed", type=whole(0), default=1)
    parser.add_argument("--output", type=Path, required=True, help="the text file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    with user_errors():
        task = make_task(options.task, {knob: getattr(options, knob) for knob in KNOBS})
        write_rows(task.rows(options.rows, options.seed), options.output)
    length = len(task.steps)
    print(f"{options.output}: {options.rows} rows of {length} characters")
    print(f"entropy: {task.entropy:.4f} nats per row, {task.entropy / length:.4f} per character")
    print(f"best order, steps of the positions: {' '.join(map(str, task.steps.tolist()))}")


if __name__ == "__main__":
    main()
