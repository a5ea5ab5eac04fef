"""The texts of a run: loading and splitting."""

import json
from dataclasses import fields, replace

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from tiny_rows import FIXTURES, as_dataset, gpt2_tokenizer, write_rows
from transformers import AutoTokenizer, TrainingArguments

from hf_lomdm.data import text
from hf_lomdm.data.arguments import DataArguments
from hf_lomdm.data.reading import check_utf8
from hf_lomdm.data.splits import check_arguments, load_data, model_token_ids, tokenize
from hf_lomdm.data.text import documents, hold_out_end, load_files, load_text
from hf_lomdm.data.tokenizers import load_tokenizer, special_token_ids

pytestmark = pytest.mark.usefixtures("fresh_cache")


@pytest.fixture(scope="module")
def tokenizer():
    return gpt2_tokenizer()


@pytest.mark.parametrize(
    "file, column, detokenizer, count, start",
    [
        (
            "lm1b",
            "text",
            "lm1b",
            18,
            "The harbour master said the ferry wouldn't sail before noon.",
        ),
        (
            "openwebtext",
            "text",
            None,
            10,
            "The garden behind the old school was open to everyone.\n\nIn spring",
        ),
        (
            "ptb.jsonl",
            "sentence",
            "ptb",
            3,
            "the board said it will sell 1 1 of its shares for $1 million",
        ),
        ("wikitext.jsonl", "text", "wikitext", 4, " = River otter = "),
        ("lambada.jsonl", "text", "lambada", 2, '\n" where did you leave it ? " asked mara'),
        ("ag_news.csv", "text", None, 3, "Oil prices slip as stocks rise, traders say"),
        ("scientific_papers.jsonl", "article", None, 2, "we study the flow of sand"),
        ("text8.train.txt", "text", None, 1, ""),
    ],
)
def test_files_with_the_columns_of_the_real_sets_load(file, column, detokenizer, count, start):
    path = FIXTURES / file
    source = {"dataset_name": str(path)} if path.is_dir() else {"train_file": str(path)}
    actual = text.load_split(
        DataArguments(text_column=column, **source), "train", source.get("train_file")
    )
    texts = list(documents(actual, detokenizer))
    assert len(texts) == count
    assert texts[0].startswith(start)


def test_parquet_and_folders_load_in_alphabetical_order(tmp_path):
    table = pa.table({"text": ["one", "two"], "id": [1, 2]})
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    assert load_files(str(tmp_path / "rows.parquet"))["text"][:] == ["one", "two"]
    (tmp_path / "folder").mkdir()
    for name in "bca":
        (tmp_path / "folder" / f"{name}.txt").write_text(f"text {name}")
    assert load_files(str(tmp_path / "folder"))["text"][:] == ["text a", "text b", "text c"]


@pytest.mark.parametrize(
    "sample_by, expected",
    [
        ("line", ["one", "two", "", "three"]),
        ("paragraph", ["one\ntwo", "three\n"]),
        ("document", ["one\ntwo\n\nthree\n"]),
    ],
)
def test_documents_of_a_text_file_are_lines_paragraphs_or_the_file(tmp_path, sample_by, expected):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    assert load_files(str(tmp_path / "a.txt"), sample_by)["text"][:] == expected


def test_an_unknown_sample_by_is_refused_with_the_choices():
    for refuse in (
        lambda: load_files(str(FIXTURES / "text8.train.txt"), "sentence"),
        lambda: check_arguments(
            DataArguments(train_file="a.txt", tokenizer="gpt2", sample_by="sentence")
        ),
    ):
        with pytest.raises(
            ValueError, match="sample_by must be one of line, paragraph, document, got 'sentence'"
        ):
            refuse()


@pytest.mark.parametrize(
    "name, content", [("a.csv", "text\n"), ("a.txt", "\n\n"), ("a.jsonl", "\n")]
)
def test_a_file_without_rows_is_refused_with_the_remedy(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} has no rows. Put text into it"):
        load_files(str(tmp_path / name))


def test_blank_and_missing_documents_are_left_out():
    assert list(documents(as_dataset(["a", "", None, " \n", "b"]))) == ["a", "b"]


def test_splits_and_slices_of_a_data_set_are_used():
    arguments = DataArguments(dataset_name=str(FIXTURES / "openwebtext"), train_split="train[:-3]")
    texts = load_text(replace(arguments, validation_split="train[-3:]"))
    whole = [
        json.loads(line)["text"]
        for line in (FIXTURES / "openwebtext/train.jsonl").read_text().splitlines()
    ]
    assert texts["train"]["text"][:] + texts["validation"]["text"][:] == whole
    assert len(texts["validation"]) == 3
    lm1b = load_text(DataArguments(dataset_name=str(FIXTURES / "lm1b"), validation_split="test"))
    assert (len(lm1b["train"]), len(lm1b["validation"])) == (18, 6)


def test_validation_files_are_read():
    texts = load_text(
        DataArguments(
            train_file=str(FIXTURES / "text8.train.txt"),
            validation_file=str(FIXTURES / "text8.valid.txt"),
        )
    )
    assert texts["validation"][0]["text"] == (FIXTURES / "text8.valid.txt").read_text()


@pytest.mark.parametrize(
    "lengths, kept", [([10] * 20, 18), ([100, 1, 1], 1), ([1, 1, 100], 2), ([None, 5, 5, 1], 2)]
)
def test_validation_is_the_last_tenth_cut_between_documents(lengths, kept):
    texts = [
        None if length is None else chr(97 + index) * length for index, length in enumerate(lengths)
    ]
    train, validation = hold_out_end(as_dataset(texts))
    assert train["text"][:] + validation["text"][:] == texts
    assert len(train) == kept


def test_a_single_document_is_cut_inside():
    train, validation = hold_out_end(as_dataset(["x" * 90 + "y" * 10]))
    assert (train["text"][:], validation["text"][:]) == (["x" * 90], ["y" * 10])


def test_pydoc_topics_are_split_nine_to_one_without_known_text(tmp_path):
    from pydoc_data.topics import topics

    arguments = DataArguments(dataset_name="pydoc_topics", train_tokenizer="char", max_length=128)
    texts = load_text(arguments)
    train, validation = texts["train"]["text"][:], texts["validation"]["text"][:]
    share = sum(map(len, validation)) / sum(map(len, topics.values()))
    assert 0.05 < share < 0.15
    assert set(train + validation) <= set(topics.values()) and not set(train) & set(validation)
    assert topics["with"] not in validation  # it stands in the topic `compound`, too
    paragraphs = {
        paragraph
        for document in train
        for paragraph in document.split("\n\n")
        if len(paragraph) > 50
    }
    shared = sum(
        len(part)
        for document in validation
        for part in document.split("\n\n")
        if part in paragraphs
    )
    assert shared < 0.03 * sum(map(len, validation))

    rows, tokenizer = load_data(arguments, tmp_path / "out")
    decoded = "".join(
        tokenizer.decode(row["input_ids"][1:-1]) for row in rows["train"].select(range(300))
    )
    assert len(decoded) > 300 * 126 and "[EOS]".join(train).startswith(decoded)
    assert rows["train"][0]["input_ids"].shape == (128,)
    assert (tmp_path / "out/tokenizer/tokenizer.json").is_file()


@pytest.mark.parametrize("packing", [True, False])
def test_a_run_gets_rows_and_a_complete_tokenizer_from_a_set_with_two_splits(tmp_path, packing):
    arguments = DataArguments(
        dataset_name=str(FIXTURES / "lm1b"),
        validation_split="test",
        detokenizer="lm1b",
        tokenizer=str(FIXTURES / "bert_tokenizer"),
        max_length=32,
        packing=packing,
        max_train_rows=6,
    )
    rows, tokenizer = load_data(arguments, tmp_path / "out")
    assert len(rows["train"]) == 6 and len(rows["validation"]) > 2
    first = rows["train"][0]["input_ids"].tolist()
    bare = AutoTokenizer.from_pretrained(FIXTURES / "bert_tokenizer")
    sentence = bare(
        "The harbour master said the ferry wouldn't sail before noon.", add_special_tokens=False
    )["input_ids"]
    assert (
        first[0] == tokenizer.cls_token_id
        and first[1 : 1 + min(30, len(sentence))] == sentence[:30]
    )


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("missing.txt", None, "missing.txt does not exist"),
        ("empty.txt", b"", "empty.txt is empty"),
        ("odd.md", b"text", "must hold files of one kind of .txt, .jsonl, .csv, .parquet, got .md"),
        (
            "bad.jsonl",
            b'{"text": "a"}\n{"text" "b"}\n',
            "bad.jsonl, line 2 is no JSON: Expecting ':' delimiter",
        ),
        ("bad.parquet", b"not parquet at all", "bad.parquet is not a well-formed .parquet file"),
        ("latin.txt", b"caf\xe9 noir", "latin.txt is not UTF-8.* at byte offset 3.*iconv"),
        ("cut.txt", "déjà".encode()[:-1], "cut.txt is not UTF-8.* at byte offset 4"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_files(str(tmp_path / name))


def test_the_byte_offset_is_right_behind_the_first_block(tmp_path):
    # the second block begins at a character, the third inside one
    start = "é".encode() * (1 << 19) + b"x"
    (tmp_path / "a.txt").write_bytes(start + "é".encode() * (1 << 19) + b"\xff")
    with pytest.raises(ValueError, match=f"byte offset {len(start) + (1 << 20)}"):
        check_utf8(tmp_path / "a.txt")


def test_folders_without_files_or_of_two_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no file of a known kind"):
        load_files(str(tmp_path))
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.csv").write_text("text\nb")
    with pytest.raises(ValueError, match="must hold files of one kind.*got .csv, .txt"):
        load_files(str(tmp_path))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"text_column": "body"}, "lm1b has no column 'body', only text.*text_column"),
        (
            {"train_split": "trian"},
            r"split 'trian' of dataset_name .*Should be one of \['train', 'test'\]",
        ),
        ({"dataset_config": "en"}, "dataset_config 'en'.*BuilderConfig 'en' not found"),
        ({"dataset_name": "no/such/folder"}, "dataset_name 'no/such/folder'.* cannot be loaded"),
        (
            {"dataset_name": "pydoc_topics", "validation_split": "test"},
            "validation_split 'test' needs a data set",
        ),
    ],
)
def test_names_that_do_not_exist_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        load_text(DataArguments(**{"dataset_name": str(FIXTURES / "lm1b"), **settings}))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hub"])
def test_a_column_that_holds_no_text_is_refused(kind, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    file = folder / f"a.{kind if kind != 'hub' else 'parquet'}"
    if kind == "jsonl":
        file.write_text('{"label": "a"}\n\n{"label": 1}\n')
    else:
        pyarrow.parquet.write_table(pa.table({"label": [1]}), file)
    source = {"dataset_name": str(folder)} if kind == "hub" else {"train_file": str(file)}
    message = "column 'label' of .* must hold strings, " + (
        "line 3 holds 1" if kind == "jsonl" else "got int64"
    )
    with pytest.raises(ValueError, match=message):
        load_text(DataArguments(text_column="label", **source))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"tokenizer": None}, "give either tokenizer .* or train_tokenizer"),
        ({"train_tokenizer": "char"}, "give either tokenizer .* or train_tokenizer"),
        ({"train_file": None}, "give either dataset_name .* or train_file"),
        ({"dataset_name": "x"}, "give either dataset_name .* or train_file"),
        ({"detokenizer": "x"}, "detokenizer must be one of"),
        ({"max_length": 2}, "max_length must be at least 3, got 2"),
        ({"max_length": 0, "insert_special_tokens": False}, "max_length must be at least 1, got 0"),
        ({"fill_with_eos": True}, "fill_with_eos=True .* packing=True joins.* Pass packing=False"),
        ({"max_train_rows": 0}, "max_train_rows must be at least 1, got 0"),
        ({"max_validation_rows": -1}, "max_validation_rows must be at least 1, got -1"),
    ],
)
def test_arguments_that_contradict_or_are_out_of_range_are_refused(settings, message):
    good = {"train_file": "a.txt", "tokenizer": "gpt2", "dataset_name": "", "train_tokenizer": ""}
    check_arguments(DataArguments(**good))
    with pytest.raises(ValueError, match=message):
        check_arguments(DataArguments(**{**good, **settings}))


def test_text_shorter_than_one_row_names_the_remedies_and_can_be_padded(tokenizer):
    with pytest.raises(
        ValueError, match="train text has 2 tokens, too few.*max_length is 16.*Lower.*packing=False"
    ):
        write_rows(["a"], tokenizer)
    assert len(write_rows(["a"], tokenizer, packing=False)) == 1


@pytest.mark.parametrize("texts", [[], [""], [None, " \n"]])
def test_text_without_documents_is_refused(tokenizer, texts):
    empty = datasets.Dataset.from_dict(
        {"text": texts}, features=datasets.Features({"text": datasets.Value("string")})
    )
    with pytest.raises(ValueError, match="the train text holds no document that is not blank"):
        tokenize(empty, tokenizer, DataArguments(max_length=16))


@pytest.mark.parametrize("packing, fill", [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("insert", [True, False])
def test_the_model_knows_bos_and_eos_exactly_where_rows_hold_them(packing, fill, insert):
    own = load_tokenizer(str(FIXTURES / "bert_tokenizer"))  # BOS and EOS differ
    arguments = DataArguments(
        max_length=16, packing=packing, insert_special_tokens=insert, fill_with_eos=fill
    )
    texts = datasets.Dataset.from_dict({"text": ["some words of a text"] * 8})
    rows = [list(row) for row in tokenize(texts, own, arguments)["input_ids"]]
    ids = model_token_ids(own, arguments)
    assert (ids["bos_token_id"] == own.bos_token_id) == any(own.bos_token_id in row for row in rows)
    assert (ids["eos_token_id"] == own.eos_token_id) == any(own.eos_token_id in row for row in rows)
    assert ids["bos_token_id"] in (own.bos_token_id, None) and ids["eos_token_id"] in (
        own.eos_token_id,
        None,
    )
    others = ("vocab_size", "mask_token_id", "pad_token_id")
    assert {name: ids[name] for name in others} == {
        name: special_token_ids(own)[name] for name in others
    }


def test_no_data_argument_hides_a_training_argument():
    names = {argument.name for argument in fields(DataArguments)}
    assert not names & {argument.name for argument in fields(TrainingArguments)}


@pytest.mark.slow
def test_a_hundred_megabytes_of_characters_on_one_line_take_bounded_memory_and_time(tmp_path):
    import resource
    import time

    text_file = tmp_path / "text8.txt"
    text_file.write_text("the quick brown fox jumps over a lazy dog " * 2_400_000)
    arguments = DataArguments(
        train_file=str(text_file), sample_by="document", train_tokenizer="char", max_length=256
    )
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    rows, _ = load_data(arguments, tmp_path / "out")
    assert len(rows["train"]) == 2_400_000 * 42 * 9 // 10 // 254
    # A Python list of the ids alone would be 0.8 GB; text, pieces and one batch of tokens stay
    # below (units: kB).
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000
    assert time.monotonic() - start < 300
