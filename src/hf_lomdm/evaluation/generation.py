"""The quality of written text: a system writes, a judge reads, one record says both.

Every text has its own generator, seeded by a hash of seed and index, so that batches and
interruptions change no text (beyond what rounding moves).
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import DynamicCache, PreTrainedTokenizerBase

from ..data.draws import step_generators
from ..pipelines.canvas_lomdm import end_of_text
from ..pipelines.prompts_lomdm import MAX_POSITIONS
from .judge import entropy, judge_texts, load_judge
from .parts import PartsFile, beside
from .records import environment

__all__ = [
    "Written",
    "WrittenTexts",
    "changed_pipeline",
    "evaluate_generation",
    "judge_texts",
    "judge_written",
    "load_judge",
    "pass_counts",
    "sweep",
    "write_causal_texts",
    "write_texts",
]

EXAMPLES = 4  # texts that a record quotes


@dataclass(frozen=True)
class Written:
    """One text and what it cost.

    Attributes:
        text: up to its first EOS, without special tokens. ids: the model's token ids of it.
        tokens: tokens written, those behind the EOS included. passes: forward passes that had
            something to reveal in it.
        seconds: its share of the wall time of its batch.
    """

    text: str
    ids: list[int]
    tokens: int
    passes: int
    seconds: float


@dataclass(frozen=True)
class WrittenTexts:
    """The texts of one system with the `setting` of their writing, a dict that JSON takes."""

    items: list[Written]
    setting: dict[str, Any]


def evaluate_generation(
    pipe: Any,
    judge: nn.Module,
    judge_tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 16,
    parts_file: str | Path | None = None,
    progress: bool = True,
    **options,
) -> dict[str, Any]:
    """A record of `judge_texts` on texts of `write_texts`, and of what writing them cost.

    `parts_file` keeps finished texts, and the file `name-judge.jsonl` beside it what the judge has
    read.
    """
    common = {"batch_size": batch_size, "progress": progress, "parts_file": parts_file}
    return judge_written(write_texts(pipe, **common, **options), judge, judge_tokenizer, **common)


def sweep(
    pipe: Any,
    judge: nn.Module,
    judge_tokenizer: PreTrainedTokenizerBase,
    *,
    steps: Sequence[int] | None = None,
    max_length: int | None = None,
    parts_file: str | Path | None = None,
    **options,
) -> Iterator[dict[str, Any]]:
    """A record of `evaluate_generation` for each number of steps, each as soon as it is there.

    Args:
        steps: default `pass_counts(max_length)`: 8, 16, ... and the length. options: of
            `evaluate_generation`.
        parts_file: `name.jsonl` becomes `name-8.jsonl` and so on.
    """
    length = max_length or pipe.model.config.max_position_embeddings
    for count in pass_counts(length) if steps is None else steps:
        own = {
            "num_inference_steps": count,
            "max_length": max_length,
            "parts_file": beside(parts_file, count),
        }
        yield evaluate_generation(pipe, judge, judge_tokenizer, **own, **options)


def pass_counts(length: int) -> list[int]:
    """8, 16, 32, ... below `length`, and `length`, where one token is written at a time."""
    return [count for count in (2**power for power in range(3, 31)) if count < length] + [length]


def write_texts(
    pipe: Any,
    *,
    num_samples: int,
    num_inference_steps: int,
    max_length: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    sampler: str | None = None,
    grid: str | None = None,
    learned_order: bool = True,
    parts_file: str | Path | None = None,
    progress: bool = True,
) -> WrittenTexts:
    """Writes texts without a prompt; the pipeline is as before afterwards.

    Args:
        pipe: a `LoMDMPipeline` with a tokenizer; its scheduler holds temperature, top-p and top-k.
        num_inference_steps, max_length, sampler: as in the call of the pipeline.
        grid: of the sampler `"ancestral"`; default the scheduler's.
        learned_order: `False` writes with equal rates (`c2 = 0`): every masked position is as
            likely to be next as any other (the paper's ablation). For `rate_type="learned"` only.
        parts_file: finished texts are appended here and not written again.
    Raises:
        ValueError: counts below 1, options that do not fit the model or the sampler, no tokenizer,
            or a parts file of another model or setting.
    """
    _check_counts(num_samples=num_samples, batch_size=batch_size)
    if pipe.tokenizer is None:
        raise ValueError(
            "pipe.tokenizer is None, but a judge reads text. Pass a pipeline with its tokenizer."
        )
    limits = {"num_inference_steps": num_inference_steps, "max_length": max_length}
    with changed_pipeline(pipe, sampler, grid, learned_order):
        setting = _setting(pipe.scheduler) | limits
        setting |= {"learned_order": _learned(pipe.model), "draw_precision": "float64"}

        def write(indices: Sequence[int]) -> list[Written]:
            generators = step_generators(seed, 0, indices)
            out = pipe(None, **limits, num_return_sequences=len(indices), generator=generators)
            return _written(out, pipe)

        return _write(
            write, pipe.model, setting, num_samples, batch_size, seed, parts_file, progress
        )


def _written(out: Any, pipe: Any) -> list[Written]:
    """The texts of one call of the pipeline."""
    tokens, passes = (out.order >= 0).sum(-1).tolist(), out.row_passes.tolist()
    rows = zip(out.texts, out.sequences.tolist(), tokens, passes, strict=True)
    return [
        Written(text, _content(ids, pipe), tokens, passes, 0.0)
        for text, ids, tokens, passes in rows
    ]


def _setting(scheduler: Any) -> dict[str, Any]:
    names = ("sampler", "grid", "temperature", "top_p", "top_k", "block_size")
    return {name: scheduler.config[name] for name in names} | count_setting(scheduler)


def count_setting(scheduler: Any) -> dict[str, Any]:
    """What decides the number of reveals, for a record; nothing where the steps do."""
    kind = scheduler.count_of_reveals
    return {} if kind == "steps" else {"count": kind, kind: scheduler.config[kind]}


@contextlib.contextmanager
def changed_pipeline(
    pipe: Any, sampler: str | None, grid: str | None, learned_order: bool
) -> Iterator[None]:
    """Within this context the pipeline has this sampler and grid, or no learned order."""
    model, scheduler, bar = pipe.model, pipe.scheduler, getattr(pipe, "_progress_bar_config", {})
    changes = {
        name: value for name, value in (("sampler", sampler), ("grid", grid)) if value is not None
    }
    changed = type(scheduler).from_config(scheduler.config, **changes)
    if grid is not None and changed.config.sampler != "ancestral":
        raise ValueError(
            f"grid={grid!r} is for sampler='ancestral', got {changed.config.sampler!r}. Leave it "
            "out."
        )
    if not learned_order and model.config.rate_type != "learned":
        raise ValueError(
            "learned_order=False needs a model with rate_type='learned', got "
            f"{model.config.rate_type!r}. Pass sampler='random' to write in a random order."
        )
    try:
        pipe.scheduler = changed
        pipe.set_progress_bar_config(disable=True)
        with contextlib.nullcontext() if learned_order else model.without_order():
            yield
    finally:
        pipe.scheduler = scheduler
        pipe.set_progress_bar_config(**bar)


def write_causal_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_samples: int,
    max_length: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    parts_file: str | Path | None = None,
    progress: bool = True,
) -> WrittenTexts:
    """Texts of an autoregressive baseline, drawn from its law as `causal_nll` reads it.

    The first token is drawn behind `config.bos_token_id`, which is drawn nowhere. Draws are in
    float64, by inverse distribution function, one generator for each text.

    Args:
        max_length: tokens of a row; default `config.max_position_embeddings`.
    Raises:
        ValueError: counts below 1, more tokens than memory holds, a model without a start token, a
            parts file of another model or setting.
    """
    length = _causal_length(model.config, num_samples, batch_size, max_length)
    special, end = set(tokenizer.all_special_ids), model.config.eos_token_id

    def write(indices: Sequence[int]) -> list[Written]:
        rows = _draw_causal(model, length, step_generators(seed, 0, indices)).tolist()
        ends = [row.index(end) + 1 if end in row else len(row) for row in rows]
        passes = max(ends)
        ids = [
            [i for i in row[:stop] if i not in special]
            for row, stop in zip(rows, ends, strict=True)
        ]
        texts = [tokenizer.decode(row) for row in ids]
        return [Written(*written, passes, 0.0) for written in zip(texts, ids, ends, strict=True)]

    setting = {"sampler": "autoregressive", "max_length": max_length, "draw_precision": "float64"}
    return _write(write, model, setting, num_samples, batch_size, seed, parts_file, progress)


def _causal_length(config: Any, num_samples: int, batch_size: int, max_length: int | None) -> int:
    """Tokens of a row of an autoregressive baseline, which has a start token and room for them."""
    least = 1 if max_length is None else max_length
    _check_counts(num_samples=num_samples, batch_size=batch_size, max_length=least)
    if config.bos_token_id is None:
        raise ValueError(
            "model.config.bos_token_id is None. Set it to the token that texts begin with."
        )
    length = max_length or config.max_position_embeddings
    if min(batch_size, num_samples) * length > MAX_POSITIONS:
        raise ValueError(
            f"max_length={length} and batch_size={batch_size} make more than {MAX_POSITIONS} "
            "tokens. Lower one of them."
        )
    return length


@torch.no_grad()
def _draw_causal(model, length: int, generators: Sequence[torch.Generator]) -> Tensor:
    """`[B, length]` token ids; ends early where every row has its EOS."""
    config, device = model.config, next(model.parameters()).device
    uniform = torch.stack(
        [torch.rand(length, generator=generator, dtype=torch.float64) for generator in generators]
    )
    rows, cache = (
        torch.full((len(generators), 1), config.bos_token_id, device=device),
        DynamicCache(),
    )
    ended = torch.zeros(len(rows), dtype=torch.bool)
    for column in uniform.unbind(-1):
        logits = (
            model(rows[:, -1:], past_key_values=cache, use_cache=True, return_dict=True)
            .logits[:, -1]
            .double()
        )
        logits[:, config.bos_token_id] = -torch.inf
        edges = logits.softmax(-1).cumsum(-1).cpu()
        # the first edge above the draw; the sum may end below 1, so the draw is scaled to it
        token = torch.searchsorted(edges, (column * edges[:, -1])[:, None], right=True)
        rows = torch.cat([rows, token.to(device)], dim=-1)
        ended |= token[:, 0] == config.eos_token_id if config.eos_token_id is not None else False
        if ended.all():
            break
    return rows[:, 1:]


def judge_written(
    written: WrittenTexts,
    judge: nn.Module,
    judge_tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 8,
    parts_file: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """The record of a system: `judge_texts` of what it wrote, and what writing cost.

    Args:
        parts_file: of the texts; what the judge has read is kept beside it.
    Returns:
        What `judge_texts` returns, and `entropy` (unigram, nats, of the model's own ids),
        `tokens_per_text` (before the EOS), `forward_passes` per text (the mean),
        `tokens_per_forward` (tokens written per forward pass, those behind an EOS included),
        `seconds` of writing, the setting, some texts and the environment.
    """
    items = written.items
    texts, ids = [item.text for item in items], [item.ids for item in items]
    options = {
        "batch_size": batch_size,
        "parts_file": beside(parts_file, "judge"),
        "progress": progress,
    }
    return {
        **judge_texts(texts, judge, judge_tokenizer, **options),
        **entropy(ids, "entropy"),
        "tokens_per_text": sum(map(len, ids)) / len(ids),
        **costs(written),
        **written.setting,
        "examples": texts[:EXAMPLES],
    }


def costs(written: WrittenTexts) -> dict[str, float]:
    """`forward_passes` per text, `tokens_per_forward` and `seconds` of writing."""
    items = written.items
    passes, tokens = (sum(getattr(item, name) for item in items) for name in ("passes", "tokens"))
    return {
        "forward_passes": passes / len(items),
        "tokens_per_forward": tokens / passes,
        "seconds": sum(item.seconds for item in items),
    }


def _write(
    write: Callable[[Sequence[int]], list[Written]],
    model: nn.Module,
    setting: dict[str, Any],
    num_samples: int,
    batch_size: int,
    seed: int,
    parts_file: str | Path | None,
    progress: bool,
) -> WrittenTexts:
    """Calls `write` for batches of the indices that the parts file does not have."""
    weights = next(model.parameters())
    identity = {**setting, "seed": seed}
    parts = PartsFile(parts_file, identity, model)
    done = {index: Written(**item) for index, item in parts.read().items()}
    todo = [index for index in range(num_samples) if index not in done]
    with tqdm(total=len(todo), disable=not progress, unit="text", desc="write") as bar:
        for batch in (
            todo[start : start + batch_size] for start in range(0, len(todo), batch_size)
        ):
            started = time.perf_counter()
            items = write(batch)  # ids are on the host: the device has finished
            seconds = (time.perf_counter() - started) / len(batch)
            items = [Written(**{**asdict(item), "seconds": seconds}) for item in items]
            parts.append({index: asdict(item) for index, item in zip(batch, items, strict=True)})
            done |= zip(batch, items, strict=True)
            bar.update(len(batch))
    setting = {
        **setting,
        "batch_size": batch_size,
        **environment(weights.device, weights.dtype, seed),
    }
    return WrittenTexts([done[index] for index in range(num_samples)], setting)


def _content(row: list[int], pipe: Any) -> list[int]:
    """The ids of a text as the pipeline decodes it: up to the first EOS, nothing special."""
    config, special = pipe.model.config, set(pipe.tokenizer.all_special_ids)
    first = int(row[0] == config.bos_token_id)  # a BOS may be the EOS too: GPT-2's is
    end = end_of_text(row, config.eos_token_id, first)
    return [token for token in row[first:end] if token not in special]


def _learned(model: nn.Module) -> bool:
    return model.rate_law.uses_psi and model.config.c2 > 0


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(
                f"{name} must be a whole number of at least 1, got {value!r}. Pass for example 32."
            )
