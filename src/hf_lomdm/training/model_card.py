"""The `README.md` of a trained model: what the trainer knows of it, and nothing that it does not know."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import ModelCardData
from transformers import PretrainedConfig, TrainingArguments

# A card without this line was written by hand and stays.
MARKER = "<!-- Written by LoMDMTrainer, which replaces this file as long as this line is in it. -->"
TAGS = ("lomdm", "masked-diffusion", "diffusers", "custom_code")
ORDERS = {"learned": "a learned order", "uniform": "a uniformly random order"}
BOUNDS = {
    "eval_nelbo": "order bound",
    "eval_without_order_nelbo": "order bound with all rates equal at evaluation (`c2 = 0`)",
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

A masked diffusion language model that reveals its tokens in {order} (`rate_type="{config.rate_type}"`), trained for
{steps:,} optimizer steps on the {config.bound} bound. It loads as a model
(`AutoModel.from_pretrained`) and as a pipeline (`DiffusionPipeline.from_pretrained`), both with
`trust_remote_code=True`.

## Evaluation

{evaluation}

## Training

Text: {dataset}. Settings:

{settings}

What the model is good for and what it must not be used for was not recorded.
"""


def model_card(
    name: str,
    config: PretrainedConfig,
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
        config: of the model.
        args: of its training.
        steps: optimizer steps taken.
        metrics: those of `LoMDMTrainer.evaluate` for these weights; may be empty.
        tags: in addition to those of every LoMDM.
        dataset: what the model was trained on, in words.
        metadata: further fields of the header, such as `license`, `language`, `datasets`, `base_model`.
    """
    tags = [*TAGS, *(tag for tag in tags if tag not in TAGS)]
    known = {key: value for key, value in metadata.items() if value is not None}
    header = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=tags, **known).to_yaml()
    dataset = [dataset] if isinstance(dataset, str) else dataset
    text = TEXT.format(
        name=name,
        config=config,
        order=ORDERS[config.rate_type],
        steps=steps,
        evaluation=_evaluation(metrics),
        dataset=", ".join(dataset) if dataset else "not recorded here",
        settings="\n".join(f"- `{key}`: {_plain(getattr(args, key))}" for key in SETTINGS if hasattr(args, key)),
    )
    return f"---\n{header}\n---\n{MARKER}\n{text}"


def is_written_by_hand(path: Path) -> bool:
    """Whether there is a card at `path` that `model_card` did not write."""
    return path.is_file() and MARKER not in path.read_text(encoding="utf-8")


def _evaluation(metrics: dict[str, float]) -> str:
    rows = [
        f"| {label} | {metrics[key]:.4f} | {metrics[f'{key}_standard_error']:.4f} |"
        for key, label in BOUNDS.items()
        if key in metrics
    ]
    if not rows:
        return "These weights were not evaluated."
    head = ["| on the validation text | nats per token | standard error |", "|---|---|---|"]
    return "\n".join([*head, *rows])


def _plain(value) -> str:
    return str(getattr(value, "value", value))
