"""Training of LoMDM: arguments, optimizer, average of the weights, checkpoints and the trainer."""

from .arguments import LoMDMTrainingArguments, ModelArguments
from .parsing import parse_arguments
from .trainer import LoMDMTrainer

__all__ = ["LoMDMTrainer", "LoMDMTrainingArguments", "ModelArguments", "parse_arguments"]
