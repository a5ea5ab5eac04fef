r"""Continuations against passes: what a judge thinks of them, and how far their law is from text.

    python studies/passes/texts.py --model checkpoints/lomdm-enwiki --judge SmolLM2-135M \
        --file enwiki.valid.txt

The first half of held-out rows is given, the second half written. A judge (a causal model) reads
both: its nats per token of the continuation, beside the entropy of the tokens, for dull text has
few nats; and the divergence of MAUVE (arXiv 2102.01454) between the written and the true
continuations in the judge's last state, which dull text does not pass. The record is a study's:
`passes.py plot` draws it. What the judge has read is kept beside `--output` and not read again.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from passes import ORDERS, UNIFORM, record_place, show
from torch import Tensor
from tqdm.auto import tqdm

from hf_lomdm import LoMDMPipeline
from hf_lomdm.cli.errors import loading, user_errors
from hf_lomdm.cli.option_types import nonempty, whole
from hf_lomdm.data.draws import step_generators
from hf_lomdm.evaluation.judge import entropy, load_judge
from hf_lomdm.evaluation.parts import PartsFile, beside
from hf_lomdm.evaluation.records import write_record

FULL = "learned, 32 steps"  # what all others are compared with
SETTINGS: dict[str, dict[str, Any]] = {
    **{
        f"{order}, {steps} steps": {"sampler": sampler, "num_inference_steps": steps}
        for sampler, order in ORDERS.items()
        for steps in (32, 16, 8)
    },
    **{f"threshold {tau}": {"sampler": "threshold", "threshold": tau} for tau in (0.9, 0.5)},
    **{
        f"{order}, entropy bound {gamma}": {
            **{"sampler": sampler, "count": "entropy_bound", "entropy_bound": gamma},
        }
        for sampler, order in (("sequential", "learned"), ("random", "random"))
        for gamma in (0.1, 1.0, 2.0)
    },
    "ancestral, 16 steps": UNIFORM | {"num_inference_steps": 16},
    "remasking cap 0.1, 16 steps": {
        **UNIFORM,
        **{"num_inference_steps": 16, "remasking": "cap", "sigma": 0.1},
    },
}
TRUE = "other held-out text"
FEATURES, SCALE, RESAMPLES = 64, 5.0, 200  # numbers kept of a state; c of MAUVE; for the errors


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=nonempty, required=True)
    parser.add_argument("--judge", type=nonempty, required=True, help="a causal model or .gguf")
    parser.add_argument("--file", type=nonempty, required=True, help="held-out text")
    parser.add_argument("--max_rows", type=whole(20), default=512, help="continuations")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--output", type=nonempty)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    with user_errors():
        run(options)


def run(options: argparse.Namespace) -> None:
    """Writes and reads the continuations of all settings, and the record."""
    settings = list(dict.fromkeys([FULL, *options.settings]))
    measured = {"task": "passes_texts", "source": Path(options.file).name}
    measured |= {"model": options.model, "max_rows": options.max_rows, "settings": settings}
    path = record_place(options.output, measured, "studies")
    with loading("--model", options.model):
        pipe = LoMDMPipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    judge, judge_tokenizer = load_judge(options.judge)
    mine, others = held_out(pipe, options.file, options.max_rows)
    prompts, tokens = mine[0], mine[1].shape[1]
    written = {"true": mine[1], TRUE: others[1]}
    costs: dict[str, dict] = {}
    for name in tqdm(settings, desc="write"):
        written[name], costs[name] = write(pipe, prompts, SETTINGS[name], tokens)
    states, nats, decode = {}, {}, pipe.tokenizer.decode
    parts = str(path) + ".parts.jsonl"
    for index, (name, ids) in enumerate(tqdm(written.items(), desc="judge")):
        starts = others[0] if name == TRUE else prompts
        sides = (starts.tolist(), ids.tolist())
        texts = [[decode(row, skip_special_tokens=True) for row in side] for side in sides]
        states[name], nats[name] = read(judge, judge_tokenizer, *texts, beside(parts, index))
    values = compare(states)
    found = {}
    for name in written:
        found[name] = values[name] | reading(nats[name], nats[FULL])
        found[name] |= entropy(written[name].tolist(), "entropy") | costs.get(name, {})
    text = {name: found.pop(name) for name in ("true", TRUE)}
    for name, one in found.items():
        show(name, one)
    unit = "MAUVE of continuations (1 = as text is)"
    record = {"unit": unit, "judge": Path(options.judge).name, "text": text}
    write_record(path, measured | record | {"n": len(prompts), "found": found})
    print(f"record: {path}")


def held_out(pipe, file: str, count: int) -> list[tuple[Tensor, Tensor]]:
    """Halves of rows to continue, and of as many others: BOS and text to be given, the rest."""
    config = pipe.model.config
    start = [] if config.bos_token_id is None else [config.bos_token_id]
    length = config.max_position_embeddings - len(start) - (config.eos_token_id is not None)
    with open(file, encoding="utf-8") as stream:
        text = stream.read(20 * length * count)
    ids = pipe.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) < 2 * count * length:
        raise ValueError(f"--file {file} has {len(ids)} tokens, but {2 * count * length} are read.")
    rows = torch.tensor(ids[: 2 * count * length]).view(2, count, length)
    first = torch.tensor(start, dtype=torch.int64).expand(count, -1)
    cut = length // 2
    return [(torch.cat((first, part[:, :cut]), 1), part[:, cut:]) for part in rows]


def write(pipe, prompts: Tensor, setting: dict, tokens: int) -> tuple[Tensor, dict]:
    """Continuations `[B, tokens]` of one setting, and what they cost; the place of EOS is cut."""
    start, room = prompts.shape[1], pipe.model.config.max_position_embeddings - prompts.shape[1]
    settings = {"num_inference_steps": room, **setting}
    steps = settings.pop("num_inference_steps")
    pipe.scheduler = type(pipe.scheduler)(pipe.model.config.mask_token_id, **settings)
    rows, passes, seconds = [], [], 0.0
    for indices in torch.arange(len(prompts)).split(64):
        out = pipe(
            prompts[indices].tolist(),
            steps,
            max_new_tokens=room,
            generator=step_generators(0, 0, indices.tolist()),
            output_type="seq",
        )
        rows.append(out.sequences[:, start : start + tokens])
        passes += out.row_passes.tolist()
        seconds += out.seconds
    cost = {"forward_passes": sum(passes) / len(passes), "seconds": seconds}
    cost["tokens_per_forward"] = room / cost["forward_passes"]
    return torch.cat(rows), cost | {"setting": setting}


@torch.no_grad()
def read(judge, tokenizer, starts: list[str], ends: list[str], parts: Path | None):
    """States `[B, FEATURES]` at the end of each text, and nats and tokens `[B, 2]` of its end.

    The states have length one, and are projected on random directions of a fixed seed.
    """
    texts = [start + end for start, end in zip(starts, ends, strict=True)]
    kept = PartsFile(parts, {"texts": texts}, judge)
    done = kept.read()
    generator = torch.Generator().manual_seed(0)
    width = judge.config.get_text_config().hidden_size
    directions = torch.randn(width, FEATURES, generator=generator) / FEATURES**0.5
    for index, (start, text) in enumerate(zip(starts, texts, strict=True)):
        if index in done:
            continue
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        ids = torch.tensor([bos + encoded["input_ids"]])
        first = sum(a < len(start) for a, _ in encoded["offset_mapping"]) + len(bos)
        out = judge(ids, output_hidden_states=True, return_dict=True)
        law = out.logits[0, first - 1 : -1].float().log_softmax(-1)
        nats = -law.gather(1, ids[0, first:, None]).sum()
        state = torch.nn.functional.normalize(out.hidden_states[-1][0, -1].float(), dim=0)
        numbers = [round(number, 5) for number in (state @ directions).tolist()]
        done[index] = {"state": numbers, "nats": [float(nats), len(ids[0]) - first]}
        kept.append({index: done[index]})
    return (
        torch.tensor([done[i][key] for i in range(len(texts))]).double()
        for key in ("state", "nats")
    )


def reading(nats: Tensor, full: Tensor) -> dict[str, float]:
    """Nats per judge token of texts `[B, 2]`, and less those of `FULL`, paired, with errors."""
    (value, parts), (base, base_parts) = map(ratio, (nats, full))
    error, paired = (part.std() / len(nats) ** 0.5 for part in (parts, parts - base_parts))
    return {
        "judge_nats": value,
        "judge_nats_standard_error": float(error),
        "judge_nats_minus_full": value - base,
        "judge_nats_minus_full_standard_error": float(paired),
    }


def ratio(nats: Tensor) -> tuple[float, Tensor]:
    """Nats per token of texts `[B, 2]`, and how much each text moves it `[B]` (delta method)."""
    total, tokens = nats.unbind(-1)
    value = total.sum() / tokens.sum()
    return float(value), (total - value * tokens) / tokens.mean()


def compare(states: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """MAUVE of each against the true ones, with errors, and less that of `FULL`, paired by prompt.

    The clusters are those of all states together; the errors are those of resampled texts.
    """
    size = len(states["true"])
    count, every = max(2, size // 10), torch.cat(list(states.values()))
    labels = dict(zip(states, k_means(every, count).split(size), strict=True))
    generator = torch.Generator().manual_seed(0)
    draws = [torch.arange(size)]
    draws += [torch.randint(size, (size,), generator=generator) for _ in range(RESAMPLES)]
    table = {}
    for name, label in labels.items():
        true = [histogram(labels["true"][draw], count) for draw in draws]
        own = [histogram(label[draw], count) for draw in draws]
        table[name] = torch.stack([mauve(p, q) for p, q in zip(true, own, strict=True)])
    full = table[FULL]
    return {
        name: {
            **{"value": float(value[0]), "standard_error": float(value[1:].std())},
            **{"minus_full": float((value - full)[0])},
            **{"minus_full_standard_error": float((value - full)[1:].std())},
        }
        for name, value in table.items()
    }


def k_means(points: Tensor, count: int, rounds: int = 50) -> Tensor:
    """The cluster of each point, of `count`, by Lloyd's rounds."""
    generator = torch.Generator().manual_seed(0)
    centres = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    for _ in range(rounds):
        label = torch.cdist(points, centres).argmin(-1)
        sums = torch.zeros_like(centres).index_add(0, label, points)
        sizes = label.bincount(minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return torch.cdist(points, centres).argmin(-1)


def histogram(labels: Tensor, count: int) -> Tensor:
    """Shares `[count]`, each with half a text more, so that none is zero."""
    sizes = labels.bincount(minlength=count).double() + 0.5
    return sizes / sizes.sum()


def mauve(p: Tensor, q: Tensor) -> Tensor:
    """The area under the divergence curve of two laws: 1 if they are equal, towards 0 if apart."""
    weights = torch.linspace(0, 1, 101, dtype=p.dtype)[1:-1, None]
    mixed = weights * p + (1 - weights) * q
    x, y = (torch.exp(-SCALE * (law * (law / mixed).log()).sum(-1)) for law in (q, p))
    zero, one = x.new_zeros(1), x.new_ones(1)
    # from (0, 1), where the mixture is p, to (1, 0)
    x, y = torch.cat([zero, x.flip(0), one]), torch.cat([one, y.flip(0), zero])
    return torch.trapezoid(y, x)


if __name__ == "__main__":
    main()
