"""The `README.md` of a trained model: what its training record knows, and no more."""

import importlib.util
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PretrainedConfig, TrainingArguments

from ..adapters import OrderAdapterConfig
from ..data.arguments import DataArguments
from ..visualization import order_picture, token_texts

# A card without this line was written by hand and stays.
MARKER = "<!-- Written by LoMDMTrainer, which replaces this file as long as this line is in it. -->"
ORDERS = {
    "learned": "a learned order",
    "uniform": "a uniformly random order",
    "token": "an order by learned rates, one for each entry of the vocabulary",
    "score": "an order by the sums of its scores",
}
SETTINGS = (
    "learning_rate",
    "head_learning_rate",
    "muon_learning_rate",
    "frozen_modules",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "lr_scheduler_type",
    "ema_decay",
    "bf16",
    "seed",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
)
RECORD_FILE = "training_record.json"
PICTURE_FILE = "order.png"
PICTURE_TOKENS, PICTURE_SEED = 96, 0


@dataclass(frozen=True)
class Description:
    """What can be said of every model of a kind; the words are in `card_template.md`.

    Attributes:
        kind: which parts of the template are for it.
        tags: of its repository.
        measures: in words, what each metric of the evaluation is.
        length: tokens of the longest text.
        rate_type, order, block_size, objective: of a diffusion model or order adapter; `order` and
            `objective` in words.
        base_name: the model that an order adapter needs. base_model: its name on the Hub, where it
            has one.
    """

    kind: Literal["diffusion", "order adapter", "causal"]
    tags: tuple[str, ...]
    measures: dict[str, str]
    length: int | None = None
    rate_type: str | None = None
    order: str | None = None
    block_size: int | None = None
    objective: str | None = None
    base_name: str | None = None
    base_model: str | None = None


@dataclass
class TrainingRecord:
    """What a run knows of its model, as plain data, in `training_record.json` beside the weights.

    Attributes:
        steps: optimizer steps taken.
        settings: those of `SETTINGS`, and `eval_num_samples`.
        metrics: of `LoMDMTrainer.evaluate` for these weights; may be empty.
        data: what the model was trained on, in words; `None` if nobody said.
        data_fingerprint: of its rows and the tokenizer; `None` if nobody said.
        base_model: Hub name of the model that was fine-tuned, if it has one.
    """

    steps: int
    settings: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    data: str | None = None
    data_fingerprint: str | None = None
    base_model: str | None = None

    @classmethod
    def of(
        cls, args: TrainingArguments, steps: int, metrics: dict[str, float], data: str | None
    ) -> "TrainingRecord":
        """The record of a run with these arguments."""
        names = [name for name in (*SETTINGS, "eval_num_samples") if hasattr(args, name)]
        return cls(
            steps, {name: _plain(getattr(args, name)) for name in names}, dict(metrics), data
        )

    @classmethod
    def load(cls, folder: Path) -> "TrainingRecord | None":
        """The record in `folder`, or `None`; `ValueError` for a file that is no such record."""
        path = folder / RECORD_FILE
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no training record: {error}. Remove it, or pass a model card."
            ) from error

    def save(self, folder: Path) -> None:
        """Writes `training_record.json` into `folder`."""
        partial = folder / f"{RECORD_FILE}.partial"  # the file itself is always complete
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        partial.replace(folder / RECORD_FILE)


def describe_diffusion(config: PretrainedConfig) -> Description:
    """Of a `LoMDMForMaskedDiffusion`, or of an `OrderAdapter`, with this configuration."""
    measures = {
        "eval_nelbo": "order bound",
        "eval_without_order_nelbo": "order bound with c2 = 0 at evaluation",
    }
    process = {
        "length": config.max_position_embeddings,
        "rate_type": config.rate_type,
        "order": ORDERS[config.rate_type],
        "block_size": config.block_size,
        "objective": _objective(config),
    }
    if isinstance(config, OrderAdapterConfig):
        process["base_name"] = config.base_name
        # a local folder is no model name for the Hub
        process["base_model"] = config.base_name if config.base_revision else None
        return Description(
            "order adapter", ("lomdm", "masked-diffusion", "order-adapter"), measures, **process
        )
    return Description(
        "diffusion", ("lomdm", "masked-diffusion", "diffusers", "custom_code"), measures, **process
    )


def _objective(config: PretrainedConfig) -> str:
    if config.time_range is not None:
        return (
            f"the terms of the time bound at times clipped to {list(config.time_range)}, which is "
            "no bound"
        )
    cut = (
        f", cut at {config.time_epsilon} and with its reconstruction term"
        if config.time_epsilon
        else ""
    )
    return f"the {config.bound} bound{cut if config.bound == 'time' else ''}"


def describe_causal() -> Description:
    """Of an autoregressive model of `CausalTrainer`."""
    return Description(
        "causal", ("autoregressive",), {"eval_nelbo": "negative log-likelihood (exact)"}
    )


def describe_data(arguments: DataArguments) -> str:
    """The text of a run and how it was cut, in words."""
    source = _public_name(arguments.dataset_name or arguments.train_file)
    if arguments.task == "sudoku":
        return f"`{source}`: Sudokus in many guises, from their own clues to 64 of 81 cells given"
    parts = [
        arguments.dataset_config,
        arguments.dataset_revision and f"revision {arguments.dataset_revision}",
    ]
    details = [part for part in parts if part] + [f"split {arguments.train_split}"] * bool(
        arguments.dataset_name
    )
    named = f"`{source}`" + (f" ({', '.join(details)})" if details else "")
    rows = "packed into rows" if arguments.packing else "one document per row,"
    length = f"{arguments.max_length} tokens" + ", filled up with EOS" * arguments.fill_with_eos
    tokenizer = arguments.train_tokenizer or _public_name(arguments.tokenizer)
    return f"{named}, {rows} of {length}, tokenizer `{tokenizer}`"


def _public_name(name: str) -> str:
    """A Hub name as it is; of a path on this machine, which is nobody's business, the last part."""
    return Path(name).name if os.path.exists(name) or os.path.isabs(name) else name


def model_card(
    name: str,
    description: Description,
    record: TrainingRecord,
    tags: Iterable[str] = (),
    dataset: str | list[str] | None = None,
    picture: bool = False,
    **metadata,
) -> str:
    """The text of the card.

    Args:
        name: its title: the repository, or the folder (its code then runs in the folder's parent).
        description: of the model. record: of its training.
        tags: in addition to those of the description.
        dataset: what the model was trained on, in words; default: what the record says.
        picture: whether `order.png` lies beside the card.
        metadata: further fields of the header, such as `license`, `language`, `datasets`,
            `base_model`.
    """
    tags = [*description.tags, *(tag for tag in tags if tag not in description.tags)]
    data = ", ".join(
        [dataset] if isinstance(dataset, str) else dataset or [record.data or "not recorded here"]
    )
    measured = _measured(record, description)
    results = {"eval_results": _results(measured, data), "model_name": name}
    settings = (f"- `{key}`: {value}" for key, value in record.settings.items() if key in SETTINGS)
    template = files(__package__).joinpath("card_template.md").read_text(encoding="utf-8")
    card = ModelCard.from_template(
        _header(description, record, tags, metadata, results),
        template_str=template + "\n",  # Jinja removes one newline
        marker=MARKER,
        name=name,
        model=description,
        record=record,
        measured=measured,
        settings="\n".join(settings),
        dataset=data,
        license=metadata.get("license"),
        picture=picture,
        picture_file=PICTURE_FILE,
        picture_tokens=PICTURE_TOKENS,
        picture_seed=PICTURE_SEED,
    )
    return str(card)


def _header(
    description: Description,
    record: TrainingRecord,
    tags: list[str],
    metadata: dict[str, Any],
    results: dict[str, Any],
) -> ModelCardData:
    fields = {key: value for key, value in metadata.items() if value is not None}
    base_model = record.base_model or description.base_model
    fields = ({"base_model": base_model} if base_model else {}) | fields
    fields |= results if results["eval_results"] else {}
    # what transformers.pipeline makes of the model
    task = "text-generation" if description.kind == "causal" else "fill-mask"
    return ModelCardData(library_name="transformers", pipeline_tag=task, tags=tags, **fields)


def can_draw(pipe: Any) -> bool:
    """Whether `draw_picture` can work: a tokenizer and matplotlib are there."""
    return pipe.tokenizer is not None and importlib.util.find_spec("matplotlib") is not None


def draw_picture(pipe: Any, path: str | os.PathLike) -> None:
    """Draws the order of one text of the model, revealed token by token on a fixed seed."""
    length = min(PICTURE_TOKENS, pipe.model.config.max_position_embeddings)
    quiet = type(pipe)(pipe.model, pipe.scheduler, pipe.tokenizer)
    quiet.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(PICTURE_SEED)
    out = quiet(num_inference_steps=length, max_length=length, generator=generator)
    order = [step for step in out.order[0].tolist() if step > -2]
    order_picture(token_texts(pipe.tokenizer, out.sequences[0].tolist()[: len(order)]), order, path)


def is_written_by_hand(path: Path) -> bool:
    """Whether there is a card at `path` that `model_card` did not write."""
    return path.is_file() and MARKER not in path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class _Measure:
    """A measure in words: nats per token and perplexity, each with its standard error.

    The error is `None` where a single text leaves it unknown.
    """

    label: str
    nats: float
    error: float | None
    perplexity: float
    perplexity_error: float | None


def _measured(record: TrainingRecord, description: Description) -> list[_Measure]:
    measured = []
    for key, label in description.measures.items():
        if key in record.metrics:
            nats, error = record.metrics[key], record.metrics.get(f"{key}_standard_error", math.nan)
            # inf where math.exp would raise
            perplexity = float(torch.tensor(nats, dtype=torch.float64).exp())
            errors = [None if math.isnan(value) else value for value in (error, perplexity * error)]
            measured.append(_Measure(label, nats, errors[0], perplexity, errors[1]))
    return measured


def say_value(metrics: dict[str, float], key: str) -> str:
    """A metric with its standard error, in nats per token; a single text has no error."""
    error = metrics.get(f"{key}_standard_error", math.nan)
    return f"{metrics[key]:.4f}{'' if math.isnan(error) else f' +- {error:.4f}'} nats per token"


def _results(measured: list[_Measure], data: str) -> list[EvalResult]:
    """The evaluation as the Hub reads it: of each measure the nats per token and the perplexity."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="text",
            dataset_name=f"validation text of {data}",
            metric_type=kind,
            metric_name=f"{measure.label}, {unit}"
            + ("" if error is None else f" (standard error {error:.4f})"),
            metric_value=round(value, 4),
        )
        for measure in measured
        for kind, unit, value, error in (
            ("nelbo", "nats per token", measure.nats, measure.error),
            ("perplexity", "perplexity", measure.perplexity, measure.perplexity_error),
        )
        if math.isfinite(value)  # JSON, in which the Hub keeps it, has no infinity
    ]


def _plain(value: Any) -> Any:
    value = getattr(value, "value", value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
