"""Small texts and their rows by the tokenizer of GPT-2."""

from pathlib import Path

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_lomdm.data.arguments import DataArguments
from hf_lomdm.data.splits import tokenize
from hf_lomdm.data.tokenizers import load_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
WORDS = [
    "some",
    "words",
    "of",
    "a",
    "text",
    "that",
    "is",
    "read",
    "in",
    "order",
    ",",
    "not",
    "more",
    ";",
    "",
    "with\tblanks\n",
    "and",
    "ends",
    ".",
]


def gpt2_tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(str(FIXTURES / "gpt2_tokenizer"))


def random_texts(count: int, longest: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, size=random.integers(1, longest))) for _ in range(count)]


def as_dataset(texts: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": texts})


def write_rows(texts, tokenizer, **settings) -> list[list[int]]:
    arguments = DataArguments(**{"max_length": 16, **settings})
    return [row["input_ids"].tolist() for row in tokenize(as_dataset(texts), tokenizer, arguments)]
