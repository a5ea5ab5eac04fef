"""The `README.md` of a trained model: what its training record knows, and nothing that it does not know."""

import importlib.util
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData
from transformers import PretrainedConfig, TrainingArguments

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
TEXT = """
# {name}

{summary}
{use}{picture}
## Evaluation

{evaluation}

## Training

Text: {dataset}.{fingerprint} Settings:

{settings}

## Limitations

{limitations}

## Licence

{licence} The code files of this folder are those of hf-lomdm, Apache-2.0.

## Citation

{citation}
"""
USE = """
## Use

As a model, without the package `hf_lomdm`; the rates say which masked position is written next:

```python
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True).eval()
masked = torch.full((1, 8), model.config.mask_token_id)
with torch.no_grad():
    output = model(input_ids=masked)
print(output.logits.shape, output.rates)
```

As a pipeline, without the package too; give it a text to continue as the first argument:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}", trust_remote_code=True)
out = pipe(num_inference_steps=16, max_length=24)
print(out.texts, out.order)
```

With the package, without remote code: the bound on `-log P` of a text, in nats:

```python
from hf_lomdm import LoMDMPipeline
from hf_lomdm.evaluation import nelbo

pipe = LoMDMPipeline.from_pretrained("{name}")
out = pipe(num_inference_steps=16, max_length=24)
estimate = nelbo(pipe.model, out.sequences, num_samples=4)
print(estimate.nelbo, estimate.standard_error)
```
"""
PICTURE = f"""
## The order

One text of at most {PICTURE_TOKENS} tokens, drawn from these weights one token at a time with seed {PICTURE_SEED};
the colour of a token is the step of its reveal.

![order of reveal]({PICTURE_FILE})
"""
PROTOCOL = """
Protocol: {weights} on the validation text of the run, {tokens:,.0f} tokens; {protocol} Perplexity is the exponential of
the nats per token, its standard error to first order.
"""
DRAWN = """
{draws} draws per text on fixed seeds (those of `LoMDMTrainer.evaluate`); one standard error over texts and draws. A
bound is an upper bound on the negative log-likelihood, its perplexity one on the perplexity.
"""
EXACT = "the log-likelihood is exact, nothing is drawn; one standard error over texts."
FINGERPRINT = " Fingerprint of the rows and the tokenizer: `{}`."
LIMITATIONS = """
Measured is what the table above says, and nothing else: not the truth of what the model writes, not bias, not
toxicity, not the memory of personal data in its text. It knows texts of at most {length} tokens of the kind that it was
trained on. What it must not be used for was not recorded by those who trained it.
"""
CITATION = """
```bibtex
@inproceedings{hong2026unifying,
  title = {Unifying Masked Diffusion Models with Various Generation Orders and Beyond},
  author = {Hong and Lee and Ye},
  booktitle = {ICML},
  year = {2026},
  note = {arXiv 2602.02112}
}
```
"""
DIFFUSION = """
A masked diffusion language model that reveals its tokens in {order} (`rate_type="{rate_type}"`){blocks}, trained for
{{steps}} optimizer steps on {objective}. It loads as a model
(`AutoModel.from_pretrained`) and as a pipeline (`DiffusionPipeline.from_pretrained`), both with
`trust_remote_code=True`.
"""
ADAPTER = """
An order for `{base}`: the order heads of a LoMDM on that masked language model, which stays as it is and whose weights
are not in this folder. Trained for {{steps}} optimizer steps on {objective}. It loads with the package `hf_lomdm`,
which fetches the base, and not without it.
"""
USE_ADAPTER = """
## Use

With the package `hf_lomdm` and the base:

```python
from hf_lomdm import LoMDMPipeline

pipe = LoMDMPipeline.from_pretrained("{name}")
out = pipe(num_inference_steps=16)
print(out.sequences, out.order)
```
"""
CAUSAL = """
An autoregressive Transformer (GPT-NeoX, sequential residual branches), trained for
{steps} optimizer steps on the exact log-likelihood of whole texts. It loads by
`AutoModelForCausalLM.from_pretrained`, without any code of its own.

Every text begins with a start token, the tokenizer's mask token, which is in no text: its probability is zero
(`suppress_tokens` of `generation_config.json`). `generate()` without a prompt starts from it and gives a whole text;
a prompt stands behind it, and behind BOS where the texts begin with one:

    text = tokenizer.mask_token + tokenizer.bos_token + prompt
    ids = model.generate(tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids)
"""


@dataclass(frozen=True)
class Description:
    """What can be said of every model of a kind.

    Attributes:
        summary: what it is and how it loads, with a place `{steps}` for the optimizer steps.
        tags: of its repository.
        measures: in words, what each metric of the evaluation is.
        protocol: in words, how they are measured, with a place `{draws}` for the draws per text.
        length: tokens of the longest text.
        use: code that loads it, with places `{name}`; empty where the summary has it.
        citation: BibTeX or a sentence.
        base_model: Hub name of the model that it needs.
    """

    summary: str
    tags: tuple[str, ...]
    measures: dict[str, str]
    protocol: str
    length: int | None = None
    use: str = ""
    citation: str = "Nothing to cite is recorded."
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
    def of(cls, args: TrainingArguments, steps: int, metrics: dict[str, float], data: str | None) -> "TrainingRecord":
        """The record of a run with these arguments."""
        names = [name for name in (*SETTINGS, "eval_num_samples") if hasattr(args, name)]
        return cls(steps, {name: _plain(getattr(args, name)) for name in names}, dict(metrics), data)

    @classmethod
    def load(cls, folder: Path) -> "TrainingRecord | None":
        """The record in `folder`, or `None`. Raises `ValueError` for a file that is no such record."""
        path = folder / RECORD_FILE
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is no training record: {error}. Remove it, or pass a model card.") from error

    def save(self, folder: Path) -> None:
        """Writes `training_record.json` into `folder`."""
        partial = folder / f"{RECORD_FILE}.partial"  # whole at any moment
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        partial.replace(folder / RECORD_FILE)


def describe_diffusion(config: PretrainedConfig) -> Description:
    """Of a `LoMDMForMaskedDiffusion`, or of an `OrderAdapter`, with this configuration."""
    measures = {
        "eval_nelbo": "order bound",
        "eval_without_order_nelbo": "order bound with c2 = 0 at evaluation",
    }
    common = {"measures": measures, "protocol": DRAWN, "length": config.max_position_embeddings}
    common["citation"] = CITATION.strip()
    if hasattr(config, "base_name"):
        summary = ADAPTER.format(base=config.base_name, objective=_objective(config))
        base_model = config.base_name if config.base_revision else None  # else a folder: no name that the Hub knows
        tags = ("lomdm", "masked-diffusion", "order-adapter")
        return Description(summary, tags, use=USE_ADAPTER, base_model=base_model, **common)
    blocks = f" within blocks of {config.block_size}, block after block" if config.block_size else ""
    summary = DIFFUSION.format(
        order=ORDERS[config.rate_type], rate_type=config.rate_type, blocks=blocks, objective=_objective(config)
    )
    tags = ("lomdm", "masked-diffusion", "diffusers", "custom_code")
    return Description(summary, tags, use=USE, **common)


def _objective(config: PretrainedConfig) -> str:
    if config.time_range is not None:
        return f"the terms of the time bound at times clipped to {list(config.time_range)}, which is no bound"
    cut = f", cut at {config.time_epsilon} and with its reconstruction term" if config.time_epsilon else ""
    return f"the {config.bound} bound{cut if config.bound == 'time' else ''}"


def describe_causal() -> Description:
    """Of an autoregressive model of `CausalTrainer`."""
    return Description(CAUSAL, ("autoregressive",), {"eval_nelbo": "negative log-likelihood (exact)"}, EXACT)


def describe_data(arguments: DataArguments) -> str:
    """The text of a run and how it was cut, in words."""
    source = _public_name(arguments.dataset_name or arguments.train_file)
    if arguments.task == "sudoku":
        return f"`{source}`: Sudokus in many guises, from their own clues to 64 of 81 cells given"
    parts = [arguments.dataset_config, arguments.dataset_revision and f"revision {arguments.dataset_revision}"]
    details = [part for part in parts if part] + [f"split {arguments.train_split}"] * bool(arguments.dataset_name)
    named = f"`{source}`" + (f" ({', '.join(details)})" if details else "")
    rows = "packed into rows" if arguments.packing else "one document per row,"
    tokenizer = arguments.train_tokenizer or _public_name(arguments.tokenizer)
    return f"{named}, {rows} of {arguments.max_length} tokens, tokenizer `{tokenizer}`"


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
        description: of the model.
        record: of its training.
        tags: in addition to those of the description.
        dataset: what the model was trained on, in words; default: what the record says.
        picture: whether `order.png` lies beside the card.
        metadata: further fields of the header, such as `license`, `language`, `datasets`, `base_model`.
    """
    tags = [*description.tags, *(tag for tag in tags if tag not in description.tags)]
    data = ", ".join([dataset] if isinstance(dataset, str) else dataset or [record.data or "not recorded here"])
    known = {key: value for key, value in metadata.items() if value is not None}
    base_model = record.base_model or description.base_model
    known = ({"base_model": base_model} if base_model else {}) | known
    results = _results(record, description, data)
    known |= {"eval_results": results, "model_name": name} if results else {}
    header = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=tags, **known).to_yaml()
    license = known.get("license")
    text = TEXT.format(
        name=name,
        summary=description.summary.strip().replace("{steps}", f"{record.steps:,}"),
        use=description.use.replace("{name}", name),
        picture=PICTURE if picture else "",
        evaluation=_evaluation(record, description),
        dataset=data,
        fingerprint=FINGERPRINT.format(record.data_fingerprint) if record.data_fingerprint else "",
        settings="\n".join(f"- `{key}`: {value}" for key, value in record.settings.items() if key in SETTINGS),
        limitations=LIMITATIONS.strip().format(length=description.length or "the trained length in"),
        licence=f"Of the weights: {license}." if license else "Of the weights: not recorded.",
        citation=description.citation,
    )
    return f"---\n{header}\n---\n{MARKER}\n{text}"


def can_draw(pipe: Any) -> bool:
    """Whether `draw_picture` can work: a tokenizer and matplotlib are there."""
    return pipe.tokenizer is not None and importlib.util.find_spec("matplotlib") is not None


def draw_picture(pipe: Any, path: str | os.PathLike) -> None:
    """Writes the picture of the order of one text of the pipeline's model, revealed token by token on a fixed seed."""
    training, length = pipe.model.training, min(PICTURE_TOKENS, pipe.model.config.max_position_embeddings)
    quiet = type(pipe)(pipe.model.eval(), pipe.scheduler, pipe.tokenizer)
    quiet.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(PICTURE_SEED)
    out = quiet(num_inference_steps=length, max_length=length, generator=generator)
    pipe.model.train(training)
    order = [step for step in out.order[0].tolist() if step > -2]
    order_picture(token_texts(pipe.tokenizer, out.sequences[0].tolist()[: len(order)]), order, path)


def is_written_by_hand(path: Path) -> bool:
    """Whether there is a card at `path` that `model_card` did not write."""
    return path.is_file() and MARKER not in path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class _Measure:
    """A measure in words, and its values: nats per token and perplexity, each with its standard error.

    The error is NaN where a single text leaves it unknown.
    """

    label: str
    nats: float
    error: float
    perplexity: float
    perplexity_error: float


def _measured(record: TrainingRecord, description: Description) -> list[_Measure]:
    found = []
    for key, label in description.measures.items():
        if key in record.metrics:
            nats, error = record.metrics[key], record.metrics.get(f"{key}_standard_error", math.nan)
            perplexity = float(torch.tensor(nats, dtype=torch.float64).exp())  # inf where math.exp would raise
            found.append(_Measure(label, nats, error, perplexity, perplexity * error))
    return found


def _evaluation(record: TrainingRecord, description: Description) -> str:
    rows = [
        f"| {one.label} | {one.nats:.4f} | {_error('{:.4f}', one.error) or 'unknown, from a single text'} "
        f"| {one.perplexity:.2f}{_error(' +- {:.2f}', one.perplexity_error)} |"
        for one in _measured(record, description)
    ]
    if not rows:
        return "These weights were not evaluated."
    head = ["| on the validation text | nats per token | standard error | perplexity |", "|---|---|---|---|"]
    draws = record.settings.get("eval_num_samples", "the recorded number of")
    protocol = PROTOCOL.rstrip().format(
        weights="the averaged weights" if record.settings.get("ema_decay") else "the weights",
        tokens=record.metrics["eval_tokens"],
        protocol=description.protocol.strip().replace("{draws}", str(draws)),
    )
    return "\n".join([*head, *rows, protocol])


def say_value(metrics: dict[str, float], key: str) -> str:
    """A metric with its standard error, in nats per token; a single text has no error."""
    return f"{metrics[key]:.4f}{_error(' +- {:.4f}', metrics.get(f'{key}_standard_error', math.nan))} nats per token"


def _error(template: str, error: float) -> str:
    return "" if math.isnan(error) else template.format(error)


def _results(record: TrainingRecord, description: Description, data: str) -> list[EvalResult]:
    """The evaluation as the Hub reads it: of each measure the nats per token and the perplexity."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="text",
            dataset_name=f"validation text of {data}",
            metric_type=kind,
            metric_name=f"{one.label}, {unit}{_error(' (standard error {:.4f})', error)}",
            metric_value=round(value, 4),
        )
        for one in _measured(record, description)
        for kind, unit, value, error in (
            ("nelbo", "nats per token", one.nats, one.error),
            ("perplexity", "perplexity", one.perplexity, one.perplexity_error),
        )
        if math.isfinite(value)  # JSON, in which the Hub keeps it, has no infinity
    ]


def _plain(value: Any) -> Any:
    value = getattr(value, "value", value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
