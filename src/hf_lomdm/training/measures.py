"""What the trainer asks of a batch and of the weights of a model."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

MASKED = (
    "labels differ from input_ids where they are not -100: the collator masks, as "
    "DataCollatorForLanguageModeling does. The model masks by itself, so pass a data_collator that "
    "leaves input_ids as they are and sets labels to them, -100 at padding and at given positions, "
    "such as hf_lomdm.data.batches.LoMDMDataCollator."
)


def maskable(batch: dict[str, Tensor]) -> Tensor:
    """Which positions of a batch are neither given nor padding: `[B, L]` bool.

    Raises:
        ValueError: the batch has no labels.
    """
    if batch.get("labels") is None:
        raise ValueError(
            "batches have no labels, which say what is given. Pass data_collator="
            "hf_lomdm.data.batches.LoMDMDataCollator(pad_token_id, max_length), which sets them."
        )
    labelled = batch["labels"] != -100
    padding = batch.get("attention_mask")
    return labelled if padding is None else labelled & padding.bool()


def is_clean(batch: dict[str, Tensor]) -> Tensor:
    """Whether maskable positions hold their tokens: a collator that masks puts others there."""
    return (~maskable(batch) | (batch["labels"] == batch["input_ids"])).all()


def freeze(model: nn.Module, names: Iterable[str]) -> None:
    """Excludes modules from training.

    Raises:
        ValueError: a name that the model lacks, or nothing left to train.
    """
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            own = sorted(child for child, _ in model.named_children())
            raise ValueError(
                f"frozen_modules names {name!r}, which the model lacks. It has {own} and what is "
                "in them."
            )
        modules[name].requires_grad_(False)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(f"frozen_modules={list(names)} leaves nothing to train. Name fewer.")


def head_weights(model: nn.Module, heads: tuple[str, ...] = ("phi", "psi")) -> list[nn.Parameter]:
    """The trainable weights of the order heads, whatever wraps the model."""
    named = model.named_parameters()
    return [
        weight
        for name, weight in named
        if weight.requires_grad and not set(heads).isdisjoint(name.split("."))
    ]


def gradient_norm(model: nn.Module, head: str | None = None) -> Tensor:
    """Euclidean norm of the gradients of the model or of an order head; 0 without any."""
    weights = model.parameters() if head is None else head_weights(model, (head,))
    norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    return gathered(norm)


def gathered(value: Tensor) -> Tensor:
    """The whole of a tensor that FSDP2 shards; every process has to call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gather_weights_for_evaluation(model: nn.Module) -> None:
    """Lets FSDP2 gather weights for the methods of evaluation, as it does for `forward`."""
    for method in ("forward_rates", "estimate_bound"):
        register_fsdp_forward_method(model, method)
