"""Rows that are read while a model trains: the same rows, each once a pass, the same again."""

import json
import os
import shutil
from dataclasses import replace
from itertools import islice

import datasets
import numpy as np
import pytest

from hf_lomdm.data import streaming
from hf_lomdm.data.arguments import DataArguments
from hf_lomdm.data.splits import data_fingerprint, load_data
from hf_lomdm.data.streaming import RowStream
from hf_lomdm.training.arguments import LoMDMTrainingArguments, check_stream
from tiny_tokenizer import build_word_tokenizer

WORDS = list("abcdefg")


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(streaming, "NUM_HELD_OUT", 3)


@pytest.fixture
def arguments(tmp_path):
    """Two shards of ten documents of one to six words, all different; a tokenizer of them."""
    folder = tmp_path / "set"
    folder.mkdir()
    for shard in range(2):
        texts = [" ".join(WORDS[number % 7 :][: 2 + shard]) + " a" * shard for number in range(10)]
        texts = [f"{text} {WORDS[number // 7]}" for number, text in enumerate(texts)]
        write(folder / f"train-{shard}.jsonl", texts)
    build_word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return DataArguments(
        dataset_name=str(folder),
        streaming=True,
        tokenizer=str(tmp_path / "tokenizer"),
        max_length=8,
        packing=False,
    )


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts))


def rows_of(arguments, tmp_path, count, seed=0):
    rows = islice(load_data(arguments, tmp_path, seed)[0]["train"], count)
    return [tuple(row["input_ids"].tolist()) for row in rows]


def test_a_pass_has_every_document_once_but_those_that_validate(arguments, tmp_path):
    whole, _ = load_data(
        replace(arguments, streaming=False, validation_split="train[:3]"), tmp_path
    )
    streamed, _ = load_data(arguments, tmp_path)
    assert isinstance(streamed["train"], RowStream)
    held_out = [row["input_ids"].tolist() for row in streamed["validation"]]
    assert held_out == [row["input_ids"].tolist() for row in whole["validation"]]
    expected = sorted(tuple(row["input_ids"].tolist()) for row in whole["train"])
    for row in held_out:
        expected.remove(tuple(row))
    passes = rows_of(arguments, tmp_path, 34)
    assert sorted(passes[:17]) == sorted(passes[17:]) == expected
    assert passes[:17] != passes[17:]  # in another order


def test_iterating_anew_reads_the_same_rows_and_seeds_differ(arguments, tmp_path):
    arguments = replace(arguments, packing=True)
    stream = load_data(arguments, tmp_path)[0]["train"]
    first, again = ([row["input_ids"].tolist() for row in islice(stream, 25)] for _ in range(2))
    assert first == again and {len(row) for row in first} == {8}
    assert rows_of(arguments, tmp_path, 25, seed=1) != [tuple(row) for row in first]


def test_the_buffer_lets_each_row_out_once():
    rows = [np.array([number]) for number in range(2500)]
    blocks = [rows[start : start + 7] for start in range(0, 2500, 7)]
    out = [int(row[0]) for row in streaming.shuffled(blocks, np.random.default_rng(0))]
    assert sorted(out) == list(range(2500)) and out != sorted(out)
    # the n-th row out was among the first n + 1000 in
    assert all(value < place + streaming.BUFFER_SIZE for place, value in enumerate(out))


def test_validation_text_may_come_from_elsewhere_and_is_never_trained_on(arguments, tmp_path):
    (tmp_path / "valid.txt").write_text("a b a")  # the first document
    own, _ = load_data(replace(arguments, validation_file=str(tmp_path / "valid.txt")), tmp_path)
    assert len(own["validation"]) == 1
    rows = [tuple(row["input_ids"].tolist()) for row in islice(own["train"], 38)]
    assert len(set(rows)) == 19 and (1, 3, 4, 3, 2) not in rows
    split, _ = load_data(replace(arguments, validation_split="train"), tmp_path)
    assert len(split["validation"]) == 3  # the first of a split, which may be endless
    rows = rows_of(replace(arguments, validation_split="train"), tmp_path, 34)
    assert len(set(rows)) == 17


def test_a_pass_may_begin_in_each_shard(arguments, tmp_path):
    texts = load_data(arguments, tmp_path)[0]["train"].texts
    passes = (texts.shuffle(seed=seed, buffer_size=1) for seed in range(8))
    assert len({next(iter(read))["text"] for read in passes}) == 2


def test_a_folder_of_text_files_is_streamed_by_lines(arguments, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.txt").write_text("\n".join("abcdefg"))
    arguments = replace(arguments, dataset_name=str(tmp_path / "texts"))
    rows = rows_of(arguments, tmp_path, 4)
    assert sorted(rows) == [(1, word, 2) for word in (6, 7, 8, 9)]


def test_the_fingerprint_names_files_split_tokenizer_and_cut(arguments, tmp_path):
    def name(arguments):
        rows, tokenizer = load_data(arguments, tmp_path)
        return data_fingerprint({"train": rows["train"]}, tokenizer)

    names = [name(arguments), name(replace(arguments, max_length=7))]
    assert name(arguments) == names[0]
    write(tmp_path / "set" / "train-1.jsonl", ["g f e"] * 10)
    names.append(name(arguments))
    assert len(set(names)) == len(names)


def test_a_folder_may_move_and_be_copied(arguments, tmp_path):
    def name(folder):
        rows, _ = load_data(replace(arguments, dataset_name=str(folder)), tmp_path)
        return rows["train"]._fingerprint

    first, other = tmp_path / "set", tmp_path / "elsewhere" / "the set"
    here = name(first)
    shutil.copytree(first, other)
    for number, path in enumerate(sorted(other.iterdir())):
        os.utime(path, (number, number))
    assert name(other) == here
    (other / "train-0.jsonl").rename(other / "train-2.jsonl")  # read in another order
    assert name(other) != here
    text = (first / "train-1.jsonl").read_text()
    (first / "train-1.jsonl").write_text(text.replace("a", "b", 1))  # as long as before
    assert name(first) != here


def test_size_front_and_end_of_each_file_are_part_of_the_name(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "ENDS_READ", 8)
    last, names = tmp_path / "set" / "train-1.jsonl", set()
    text = last.read_text()
    longer = text.replace("\n", "\n\n", 1)  # in the middle
    for content in (text, text[:-8] + " " + text[-8:-1], " " + text[:-1], longer):
        last.write_text(content)
        names.add(streaming.open_stream(arguments)[2])
    assert len(names) == 4


@pytest.mark.parametrize("name", ["set[1]", "set*", "a::set"])
def test_a_folder_whose_name_would_be_a_pattern_is_refused(arguments, tmp_path, name):
    (tmp_path / "set").rename(tmp_path / name)
    for streaming_ in (True, False):
        wrong = replace(arguments, dataset_name=str(tmp_path / name), streaming=streaming_)
        with pytest.raises(ValueError, match="reads .* in the path of a folder as a pattern. Ren"):
            load_data(wrong, tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text_column": "n"}, "holds no strings|is no text|int"),
        ({"text_column": "body"}, "body"),
        ({"train_split": "test"}, "test"),
        ({"train_tokenizer": "char", "tokenizer": None}, "reads the whole text"),
        ({"dataset_name": None, "train_file": "a.txt"}, "streaming reads a data set"),
        ({"dataset_name": "pydoc_topics"}, "streaming reads a data set"),
    ],
)
def test_what_cannot_be_streamed_is_one_line(arguments, tmp_path, change, reason):
    with pytest.raises(ValueError, match=reason):
        load_data(replace(arguments, **change), tmp_path)


def test_files_that_are_unlike_say_how_before_training(arguments, tmp_path):
    (tmp_path / "set" / "train-1.jsonl").write_text('{"text": "a", "n": "one"}\n')
    whole = replace(arguments, streaming=False)
    with pytest.raises(ValueError, match="Its files cannot be read: .*one"):
        load_data(whole, tmp_path)


def test_a_malformed_file_is_said_to_be_one(arguments, tmp_path):
    (tmp_path / "set" / "train-0.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ValueError, match="its first file is malformed"):
        load_data(arguments, tmp_path)


def test_a_set_that_ends_before_training_begins_says_so(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "NUM_HELD_OUT", 20)
    with pytest.raises(ValueError, match="has 20 documents, and the first 20 validate"):
        load_data(arguments, tmp_path)
    with pytest.raises(ValueError, match="no row to train on: 0 documents"):
        rows_of(replace(arguments, validation_split="train"), tmp_path, 1)


def test_unknown_words_of_a_pass_stop_it(arguments, tmp_path):
    write(tmp_path / "set" / "train-1.jsonl", ["nobody knows"] * 10)
    with pytest.raises(ValueError, match="the tokenizer does not know"):
        rows_of(arguments, tmp_path, 100)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"max_steps": -1}, "Pass max_steps"), ({"dataloader_num_workers": 2}, "Pass 0 or 1")],
)
def test_a_stream_needs_an_end_and_one_reader(settings, reason, tmp_path):
    args = LoMDMTrainingArguments(output_dir=str(tmp_path), **{"max_steps": 5, **settings})
    with pytest.raises(ValueError, match=reason):
        check_stream(args)
