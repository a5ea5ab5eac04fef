"""The rows of a run: loading, splitting, packing, cutting and caching."""

import json
import os
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from transformers import AutoTokenizer, TrainingArguments

from hf_lomdm.data import splits, text
from hf_lomdm.data.arguments import DataArguments
from hf_lomdm.data.reading import check_utf8
from hf_lomdm.data.rows import RowCounts, token_batches
from hf_lomdm.data.splits import (
    check_arguments,
    data_fingerprint,
    load_data,
    model_token_ids,
    tokenize,
)
from hf_lomdm.data.text import documents, hold_out_end, load_files, load_text, split_document
from hf_lomdm.data.tokenizers import load_tokenizer, special_token_ids, train_tokenizer
from tiny_tokenizer import build_word_tokenizer

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


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(FIXTURES / "gpt2_tokenizer"))


def random_texts(count: int, longest: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, size=random.integers(1, longest))) for _ in range(count)]


def as_dataset(texts: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": texts})


def write_rows(texts, tokenizer, **settings) -> list[list[int]]:
    arguments = DataArguments(**{"max_length": 16, **settings})
    return [row["input_ids"].tolist() for row in tokenize(as_dataset(texts), tokenizer, arguments)]


# ------------------------------------------------------------------------------------------ packing


def expected_stream(texts, tokenizer) -> list[int]:
    """All documents, EOS behind each, tokenised one by one: the definition."""
    ids = (
        tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        for text in texts
    )
    return list(chain.from_iterable(ids))


@pytest.mark.parametrize("special", [True, False])
def test_packed_rows_are_the_concatenated_documents(tokenizer, special, capsys):
    texts = random_texts(40, 30)
    rows = write_rows(texts, tokenizer, insert_special_tokens=special)
    stream, width = expected_stream(texts, tokenizer), 14 if special else 16
    chunks = [stream[start : start + width] for start in range(0, len(stream) - width + 1, width)]
    ends = ([tokenizer.bos_token_id], [tokenizer.eos_token_id]) if special else ([], [])
    assert rows == [ends[0] + chunk + ends[1] for chunk in chunks]
    line = capsys.readouterr().out
    assert f"train: {len(rows):,} rows, {16 * len(rows):,} tokens, 40 documents" in line
    assert f"; {len(stream) % width} tokens behind the last full row dropped" in line


def test_rows_do_not_depend_on_batch_and_piece_sizes(tokenizer, monkeypatch):
    texts = random_texts(30, 60)
    reference = write_rows(texts, tokenizer)
    for piece, batch in [(40, 1), (64, 100), (1000, 333)]:
        monkeypatch.setattr(text, "PIECE_CHARACTERS", piece)
        monkeypatch.setattr("hf_lomdm.data.rows.BATCH_CHARACTERS", batch)
        monkeypatch.setattr(splits, "ROWS_VERSION", (piece, batch))  # else the cache answers
        assert write_rows(texts, tokenizer) == reference


@pytest.mark.parametrize("kind", ["gpt2", "bert", "bpe:300", "char", "byte"])
def test_pieces_of_a_long_document_have_the_tokens_of_the_whole(kind, monkeypatch):
    # Runs of up to 29 blanks, so that some lie across a cut; bpe:300 has tokens of many blanks, so
    # that it would show.
    document = "".join(
        text + " " * (1 + 7 * index % 29) for index, text in enumerate(random_texts(60, 15))
    )
    if kind in ("gpt2", "bert"):
        tokenizer = load_tokenizer(str(FIXTURES / f"{kind}_tokenizer"))
    else:
        tokenizer = train_tokenizer(kind, [document])
    monkeypatch.setattr(text, "PIECE_CHARACTERS", 50)
    assert len(list(split_document(document))) > 20
    batches = list(token_batches([document], tokenizer, RowCounts()))
    ids = np.concatenate([ids for batch in batches for ids, _ in batch])
    assert ids.tolist() == tokenizer(document, add_special_tokens=False)["input_ids"]
    assert [end for batch in batches for _, end in batch].count(True) == 1


@pytest.mark.parametrize(
    "document", ["x" * 999, "", " " * 300, "ab " * 100, "a" * 99 + " " * 150 + "b" * 99]
)
def test_pieces_are_bounded_and_lose_nothing(document, monkeypatch):
    monkeypatch.setattr(text, "PIECE_CHARACTERS", 60)
    pieces = list(split_document(document))
    assert "".join(pieces) == document
    assert max(map(len, pieces)) <= 60 and (len(pieces) == 1 or min(map(len, pieces)) > 0)


def test_special_tokens_spelled_out_in_a_text_are_text(tokenizer):
    rows = write_rows(
        ["a [MASK] b [PAD] <|endoftext|> " * 9], tokenizer, insert_special_tokens=False
    )
    flat = list(chain.from_iterable(rows))
    assert tokenizer.mask_token_id not in flat and tokenizer.pad_token_id not in flat
    assert tokenizer.decode(flat).startswith("a [MASK] b [PAD] <|endoftext|>")


def test_limits_keep_the_first_rows(tokenizer, monkeypatch):
    texts = random_texts(40, 30)
    monkeypatch.setattr("hf_lomdm.data.rows.BATCH_CHARACTERS", 50)
    arguments = DataArguments(max_length=16)
    limited = tokenize(as_dataset(texts), tokenizer, arguments, max_rows=5)
    assert [row["input_ids"].tolist() for row in limited] == write_rows(texts, tokenizer)[:5]


def test_unknown_characters_are_counted(capsys):
    known = train_tokenizer("char", ["abc"])
    write_rows(["abc" * 66 + "xy"], known, max_length=8)
    assert "; 2 tokens unknown to the tokenizer" in capsys.readouterr().out
    with pytest.raises(
        ValueError,
        match="does not know 3 of the 201 tokens of the train text: more than 1%.*train_tok",
    ):
        write_rows(["abc" * 66 + "xyz"], known, max_length=8)


def test_unknown_tokens_are_a_share_of_the_text_that_was_read_not_of_the_rows_that_are_kept():
    texts = as_dataset(["abc" * 100 + "xy"])
    assert (
        len(
            tokenize(
                texts, train_tokenizer("char", ["abc"]), DataArguments(max_length=8), max_rows=1
            )
        )
        == 1
    )


@pytest.mark.parametrize("batch", [1, 5, 1000])
def test_the_word_of_the_mask_token_in_a_text_is_found_while_rows_are_made(batch, monkeypatch):
    monkeypatch.setattr("hf_lomdm.data.rows.BATCH_CHARACTERS", batch)
    monkeypatch.setattr(text, "PIECE_CHARACTERS", 8)
    texts = ["a b", "c d e f g a", "", "a b c d <mask> e", "f"]
    with pytest.raises(
        ValueError, match=r"document 3 of the text contains the mask token '<mask>', in .*<mask>"
    ):
        write_rows(texts, build_word_tokenizer(), max_length=4)
    rows = write_rows(
        texts[:3] + ["<masks> <eos> <bos>"],
        build_word_tokenizer(),
        max_length=4,
        insert_special_tokens=False,
    )
    assert 10 not in chain.from_iterable(rows)


def test_only_the_first_process_prints(tokenizer, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    write_rows(random_texts(9, 30), tokenizer)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("special", [True, False])
def test_without_packing_each_document_is_one_row_cut_at_max_length(tokenizer, special, capsys):
    texts = ["one", "two words", "a much longer text than max_length can hold , by far"]
    rows = write_rows(texts, tokenizer, packing=False, max_length=12, insert_special_tokens=special)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    width = 10 if special else 12
    ends = ([tokenizer.bos_token_id], [tokenizer.eos_token_id]) if special else ([], [])
    assert rows == [ends[0] + text[:width] + ends[1] for text in ids]
    assert len(rows[0]) < 12 and len(rows[2]) == 12
    assert f"; {len(ids[2]) - width} tokens behind max_length dropped" in capsys.readouterr().out


@pytest.mark.parametrize("special", [True, False])
def test_rows_filled_with_eos_are_all_as_long_and_say_where_the_document_ends(tokenizer, special):
    texts = ["one", "two words", "a much longer text than max_length can hold , by far"]
    settings = {"packing": False, "max_length": 8, "insert_special_tokens": special}
    plain = write_rows(texts, tokenizer, **settings)
    filled = write_rows(texts, tokenizer, fill_with_eos=True, **settings)
    assert [len(row) for row in filled] == [8, 8, 8] and len(plain[0]) < 8
    for row, full in zip(plain, filled, strict=True):
        assert full == row + [tokenizer.eos_token_id] * (8 - len(row))


# ------------------------------------------------------------------------------------------ caching


def test_rows_are_read_from_the_cache_the_second_time(tokenizer, monkeypatch, capsys):
    texts = random_texts(20, 30)
    first = write_rows(texts, tokenizer)
    printed = capsys.readouterr().out
    monkeypatch.setattr(splits, "training_rows", None)
    assert write_rows(texts, tokenizer) == first
    assert capsys.readouterr().out == printed


def test_whatever_rows_depend_on_changes_the_cached_file(tokenizer):
    base = DataArguments(max_length=16)
    variants = [
        (as_dataset(["a"])._fingerprint, tokenizer, base, None),
        (as_dataset(["b"])._fingerprint, tokenizer, base, None),
        (as_dataset(["a"])._fingerprint, train_tokenizer("byte", []), base, None),
        (as_dataset(["a"])._fingerprint, tokenizer, base, 5),
        *(
            (as_dataset(["a"])._fingerprint, tokenizer, replace(base, **{name: value}), None)
            for name, value in [
                ("max_length", 17),
                ("packing", False),
                ("insert_special_tokens", False),
            ]
        ),
        (as_dataset(["a"])._fingerprint, tokenizer, replace(base, detokenizer="ptb"), None),
        (
            as_dataset(["a"])._fingerprint,
            tokenizer,
            replace(base, packing=False, fill_with_eos=True),
            None,
        ),
    ]
    keys = [splits._fingerprint(*variant) for variant in variants]
    assert len(set(keys)) == len(keys)
    assert splits._fingerprint(*variants[0]) == keys[0]


def test_an_interrupted_write_leaves_nothing_that_is_used(tokenizer, tmp_path, monkeypatch):
    texts = random_texts(20, 30)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_rows(texts, tokenizer)
    assert not list((tmp_path / "cache/hf_lomdm").iterdir())
    killed, alive = (tmp_path / f"cache/hf_lomdm/{number}.unfinished" for number in range(2))
    for folder in (killed, alive):
        folder.mkdir()
        (folder / "data.arrow").write_bytes(b"half")
        os.utime(folder, (0, 0))
    os.utime(killed / "data.arrow", (0, 0))  # the other file is being written still
    assert write_rows(texts, tokenizer)
    assert alive.is_dir() and not killed.exists()


def test_of_two_writers_at_once_the_first_stays_and_both_read_it(tokenizer, tmp_path, monkeypatch):
    """As two containers do whose processes have the same id: the second starts while the first is
    writing."""
    texts, arguments = as_dataset(random_texts(60, 30)), DataArguments(max_length=16)
    write_blocks, paths, written = splits._write_blocks, [], []

    def write_while_another_does(path, *rest):
        paths.append(path)
        if len(paths) == 1:
            written.append(tokenize(texts, tokenizer, arguments))
        return write_blocks(path, *rest)

    monkeypatch.setattr(splits, "_write_blocks", write_while_another_does)
    mine = tokenize(texts, tokenizer, arguments)
    assert len(set(paths)) == 2
    assert len(mine) > 20 and mine["input_ids"][:].tolist() == written[0]["input_ids"][:].tolist()
    assert mine.cache_files == written[0].cache_files
    assert len(list((tmp_path / "cache/hf_lomdm").iterdir())) == 1


@pytest.mark.parametrize("damage", ["fewer rows", "cut", "no record"])
def test_a_damaged_folder_of_the_cache_is_named(tokenizer, tmp_path, damage):
    texts = random_texts(20, 30)
    write_rows(texts, tokenizer)
    (folder,) = (tmp_path / "cache/hf_lomdm").iterdir()
    if damage == "fewer rows":
        table = pa.ipc.open_stream(folder / "data.arrow").read_all()
        with (
            pa.OSFile(str(folder / "data.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table.slice(0, 3))
    elif damage == "cut":
        (folder / "data.arrow").write_bytes((folder / "data.arrow").read_bytes()[:100])
    else:
        (folder / "record.json").unlink()
    with pytest.raises(ValueError, match=f"{folder.name} is damaged: .*Delete it"):
        write_rows(texts, tokenizer)


def test_the_fingerprint_is_that_of_rows_and_tokenizer_wherever_they_come_from(
    tokenizer, tmp_path, monkeypatch
):
    texts, base = random_texts(20, 30), DataArguments(max_length=16)

    def fingerprint(texts=texts, tokenizer=tokenizer, **settings):
        rows = tokenize(as_dataset(texts), tokenizer, replace(base, **settings))
        return data_fingerprint({"train": rows}, tokenizer)

    first = fingerprint()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "another")
    # which changes nothing in these texts
    assert fingerprint() == first == fingerprint(detokenizer="ptb")
    other = load_tokenizer(str(FIXTURES / "gpt2_tokenizer"))
    other.add_tokens("another")
    changed = [
        fingerprint(max_length=17),
        fingerprint(packing=False),
        fingerprint(texts[1:]),
        fingerprint(tokenizer=other),
    ]
    assert len({first, *changed}) == 5
    # The same tokens in a row, cut elsewhere.
    rows = [{"input_ids": [5, 6]}, {"input_ids": [7]}], [{"input_ids": [5]}, {"input_ids": [6, 7]}]
    assert len({data_fingerprint({"train": texts}, tokenizer) for texts in rows}) == 2


# ---------------------------------------------------------------------------------- loading, splits


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


# ---------------------------------------------------------------------------------------- bad input


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
