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
                "text, or sudoku: csv files with the columns puzzle and solution, with the clues "
                "given. sudoku uses only train_file, validation_file, max_train_rows and "
                "max_validation_rows of the settings of the text."
            ),
            "choices": list(TASKS),
        },
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": (
                "Hub name or folder of a data set; `pydoc_topics` is the language reference that "
                "every CPython contains."
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
        metadata={"help": "Split to validate on; default: the last tenth of the train text."},
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
                "Read dataset_name during training instead of before: nothing is kept on disk. "
                "Needs max_steps and tokenizer. Without validation_file, the first thousand "
                "documents of validation_split, or of the train text, are held out for validation."
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
        metadata={"help": "Undo the word splitting of a corpus: lm1b, ptb, wikitext or lambada."},
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Hub name or folder of a tokenizer."}
    )
    train_tokenizer: str | None = field(
        default=None,
        metadata={"help": "Train a tokenizer on the train text instead: bpe:4096, char or byte."},
    )
    max_length: int = field(default=1024, metadata={"help": "Tokens per row."})
    packing: bool = field(
        default=True,
        metadata={
            "help": "Join the documents and cut them into full rows; false: one document per row."
        },
    )
    insert_special_tokens: bool = field(
        default=True, metadata={"help": "Put BOS before each row and EOS after it."}
    )
    fill_with_eos: bool = field(
        default=False,
        metadata={
            "help": (
                "Fill rows of one document up to max_length with EOS instead of padding, so that "
                "the model learns where texts end. Needs packing false."
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
