"""Documents become rows: packed, cut or filled to one length, and counted."""

from itertools import chain

import numpy as np
import pytest
from tiny_rows import FIXTURES, as_dataset, gpt2_tokenizer, random_texts, write_rows

from hf_lomdm.data import splits, text
from hf_lomdm.data.arguments import DataArguments
from hf_lomdm.data.rows import RowCounts, token_batches
from hf_lomdm.data.splits import tokenize
from hf_lomdm.data.text import split_document
from hf_lomdm.data.tokenizers import load_tokenizer, train_tokenizer
from tiny_tokenizer import build_word_tokenizer

pytestmark = pytest.mark.usefixtures("fresh_cache")


@pytest.fixture(scope="module")
def tokenizer():
    return gpt2_tokenizer()


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
