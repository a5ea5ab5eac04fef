"""Training of LoMDM: data, tokenizers, arguments and the trainer."""

from .arguments import DataArguments, LoMDMTrainingArguments, ModelArguments, parse_arguments
from .data import TextCollator, load_data, model_token_ids
from .tokenizers import load_tokenizer, special_token_ids, train_tokenizer
from .trainer import LoMDMTrainer

__all__ = [
    "DataArguments",
    "LoMDMTrainer",
    "LoMDMTrainingArguments",
    "ModelArguments",
    "TextCollator",
    "load_data",
    "load_tokenizer",
    "model_token_ids",
    "parse_arguments",
    "special_token_ids",
    "train_tokenizer",
]
