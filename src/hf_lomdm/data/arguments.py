"""Which data a run reads, as plain data."""

from dataclasses import dataclass, field

# What a document of a .txt file can be.
SAMPLE_BY = ("line", "paragraph", "document")
# What the rows are: text, or puzzles with their clues given.
TASKS = ("text", "sudoku")


@dataclass
class DataArguments:
    """Which text is read, its tokenizer and its rows; checked by `splits.check_arguments`."""

    task: str = field(
        default="text",
        metadata={
            "help": (
                "text, or sudoku: csv files with the columns puzzle and solution, clues given; of "
                "the settings of the text train_file, validation_file and the largest numbers of "
                "rows count."
            ),
            "choices": list(TASKS),
        },
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": (
                "Hub name or folder of a data set; `pydoc_topics` is the reference inside every "
                "CPython."
            )
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the data set."}
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the data set."}
    )
    train_split: str = field(
        default="train", metadata={"help": "Split to train on, for example `train[:-1000]`."}
    )
    validation_split: str | None = field(
        default=None,
        metadata={"help": "Split to validate on; without one the last tenth of the train text."},
    )
    train_file: str | None = field(
        default=None,
        metadata={
            "help": (
                "Text to train on: a .txt, .jsonl, .csv (.gz, .zst, .bz2 too) or .parquet file, or "
                "a folder."
            )
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Text to validate on, like `train_file`."}
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": (
                "Read dataset_name while training instead of before: nothing is kept on disk. "
                "Needs max_steps and tokenizer. Without validation_file the first thousand "
                "documents of validation_split, or of the train text, validate."
            )
        },
    )
    sample_by: str = field(
        default="paragraph",
        metadata={
            "help": "What one document is in a .txt file.",
            "choices": list(SAMPLE_BY),
        },
    )
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    detokenizer: str | None = field(
        default=None,
        metadata={"help": "Undo the tokenisation of a corpus: lm1b, ptb, wikitext or lambada."},
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Hub name or folder of a tokenizer."}
    )
    train_tokenizer: str | None = field(
        default=None,
        metadata={"help": "Make a tokenizer from the train text instead: bpe:4096, char or byte."},
    )
    max_length: int = field(default=1024, metadata={"help": "Tokens per row."})
    packing: bool = field(
        default=True,
        metadata={
            "help": "Cut the concatenated documents into full rows; else one document per row."
        },
    )
    insert_special_tokens: bool = field(
        default=True, metadata={"help": "BOS in front of each row and EOS behind it."}
    )
    fill_with_eos: bool = field(
        default=False,
        metadata={
            "help": (
                "Rows of one document each end in EOS up to max_length, in place of padding: the "
                "model learns where texts end. Needs packing false."
            )
        },
    )
    max_train_rows: int | None = field(default=None, metadata={"help": "Use the first rows only."})
    max_validation_rows: int | None = field(
        default=None, metadata={"help": "Use the first rows only."}
    )


def check_limits(arguments: DataArguments) -> None:
    """Raise `ValueError` where a largest number of rows is below 1."""
    for name in ("max_train_rows", "max_validation_rows"):
        limit = getattr(arguments, name)
        if limit is not None and limit < 1:
            raise ValueError(
                f"{name} must be at least 1, got {limit}. Leave it out to use every row."
            )
