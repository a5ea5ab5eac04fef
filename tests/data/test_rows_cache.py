"""Rows are made once: the cache, its writers, and the fingerprint of a run."""

import os
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from tiny_rows import FIXTURES, as_dataset, gpt2_tokenizer, random_texts, write_rows

from hf_lomdm.data import splits
from hf_lomdm.data.arguments import DataArguments
from hf_lomdm.data.splits import data_fingerprint, tokenize
from hf_lomdm.data.tokenizers import load_tokenizer, train_tokenizer

pytestmark = pytest.mark.usefixtures("fresh_cache")


@pytest.fixture(scope="module")
def tokenizer():
    return gpt2_tokenizer()


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
