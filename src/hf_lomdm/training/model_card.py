"""The `README.md` of a trained model: what the trainer knows of it, and nothing that it does not know."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCardData
from transformers import PretrainedConfig, TrainingArguments

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
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "lr_scheduler_type",
    "ema_decay",
    "bf16",
    "seed",
)
TEXT = """
# {name}

{summary}

## Evaluation

{evaluation}

## Training

Text: {dataset}. Settings:

{settings}

What the model is good for and what it must not be used for was not recorded.
"""
DIFFUSION = """
A masked diffusion language model that reveals its tokens in {order} (`rate_type="{rate_type}"`){blocks}, trained for
{{steps:,}} optimizer steps on {objective}. It loads as a model
(`AutoModel.from_pretrained`) and as a pipeline (`DiffusionPipeline.from_pretrained`), both with
`trust_remote_code=True`.
"""
CAUSAL = """
An autoregressive Transformer (GPT-NeoX, sequential residual branches), trained for
{steps:,} optimizer steps on the exact log-likelihood of whole texts. It loads by
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
    """

    summary: str
    tags: tuple[str, ...]
    measures: dict[str, str]


def describe_diffusion(config: PretrainedConfig) -> Description:
    """Of a `LoMDMForMaskedDiffusion` with this configuration."""
    blocks = f" within blocks of {config.block_size}, block after block" if config.block_size else ""
    summary = DIFFUSION.format(
        order=ORDERS[config.rate_type], rate_type=config.rate_type, blocks=blocks, objective=_objective(config)
    )
    measures = {
        "eval_nelbo": "order bound",
        "eval_without_order_nelbo": "order bound with c2 = 0 at evaluation",
    }
    return Description(summary, ("lomdm", "masked-diffusion", "diffusers", "custom_code"), measures)


def _objective(config: PretrainedConfig) -> str:
    if config.time_range is not None:
        return f"the terms of the time bound at times clipped to {list(config.time_range)}, which is no bound"
    cut = f", cut at {config.time_epsilon} and with its reconstruction term" if config.time_epsilon else ""
    return f"the {config.bound} bound{cut if config.bound == 'time' else ''}"


def describe_causal() -> Description:
    """Of an autoregressive model of `CausalTrainer`."""
    return Description(CAUSAL, ("autoregressive",), {"eval_nelbo": "negative log-likelihood (exact)"})


def model_card(
    name: str,
    description: Description,
    args: TrainingArguments,
    steps: int,
    metrics: dict[str, float],
    tags: Iterable[str] = (),
    dataset: str | list[str] | None = None,
    **metadata,
) -> str:
    """The text of the card.

    Args:
        name: its title.
        description: of the model.
        args: of its training.
        steps: optimizer steps taken.
        metrics: those of `LoMDMTrainer.evaluate` for these weights; may be empty.
        tags: in addition to those of the description.
        dataset: what the model was trained on, in words.
        metadata: further fields of the header, such as `license`, `language`, `datasets`, `base_model`.
    """
    tags = [*description.tags, *(tag for tag in tags if tag not in description.tags)]
    known = {key: value for key, value in metadata.items() if value is not None}
    header = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=tags, **known).to_yaml()
    dataset = [dataset] if isinstance(dataset, str) else dataset
    text = TEXT.format(
        name=name,
        summary=description.summary.strip().format(steps=steps),
        evaluation=_evaluation(metrics, description.measures),
        dataset=", ".join(dataset) if dataset else "not recorded here",
        settings="\n".join(f"- `{key}`: {_plain(getattr(args, key))}" for key in SETTINGS if hasattr(args, key)),
    )
    return f"---\n{header}\n---\n{MARKER}\n{text}"


def is_written_by_hand(path: Path) -> bool:
    """Whether there is a card at `path` that `model_card` did not write."""
    return path.is_file() and MARKER not in path.read_text(encoding="utf-8")


def _evaluation(metrics: dict[str, float], measures: dict[str, str]) -> str:
    rows = [
        f"| {label} | {metrics[key]:.4f} | {metrics[f'{key}_standard_error']:.4f} |"
        for key, label in measures.items()
        if key in metrics
    ]
    if not rows:
        return "These weights were not evaluated."
    head = ["| on the validation text | nats per token | standard error |", "|---|---|---|"]
    return "\n".join([*head, *rows])


def _plain(value) -> str:
    return str(getattr(value, "value", value))
