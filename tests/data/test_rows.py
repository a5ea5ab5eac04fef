"""Text as rows of evaluation: the definition, nothing dropped, sizes counted."""

from itertools import chain

import pytest

from hf_lomdm.data import text
from hf_lomdm.data.rows import cut_documents, pack_documents, roll
from hf_lomdm.data.text import read_documents
from hf_lomdm.data.tokenizers import train_tokenizer
from tiny_tokenizer import build_tokenizer, build_word_tokenizer

TEXTS = ["abcd", "ef", "gabcdefg", "a"]  # 15 characters, one token each


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def ids_of(rows) -> list[list[int]]:
    return [row["input_ids"].tolist() for row in rows.rows]


def encode(text: str) -> list[int]:
    return ["abcdefg".index(letter) + 3 for letter in text]


@pytest.mark.parametrize("ends", [(None, None), (1, 2)])
@pytest.mark.parametrize("separator", [None, 2])
@pytest.mark.parametrize("length", [4, 6, 64])
def test_rows_are_the_joined_documents_to_the_last_token(tokenizer, ends, separator, length):
    stream = list(
        chain.from_iterable(encode(text) + [separator] * (separator is not None) for text in TEXTS)
    )
    width = length - 2 * (ends[0] is not None)
    front, back = ([], []) if ends[0] is None else ([1], [2])
    expected = [
        front + stream[start : start + width] + back for start in range(0, len(stream), width)
    ]
    rows = pack_documents(TEXTS, tokenizer, length, ends, separator)
    assert ids_of(rows) == expected
    assert (rows.counts.documents, rows.counts.rows, rows.counts.dropped) == (4, len(expected), 0)
    assert rows.counts.tokens == sum(map(len, expected)) and rows.groups is None
    assert (rows.characters, rows.num_bytes) == (15, 15)
    assert (
        rows.describe("x") == f"x: {len(expected)} rows, {rows.counts.tokens} tokens, 4 documents"
    )


def test_a_text_shorter_than_the_context_is_one_short_row(tokenizer):
    assert ids_of(pack_documents(["ab"], tokenizer, 1024, (1, 2))) == [[1, 3, 4, 2]]


def test_rows_do_not_depend_on_how_much_is_tokenised_at_once(tokenizer, monkeypatch):
    reference = ids_of(pack_documents(TEXTS, tokenizer, 6, (1, 2)))
    monkeypatch.setattr("hf_lomdm.data.rows.BATCH_CHARACTERS", 1)
    assert ids_of(pack_documents(TEXTS, tokenizer, 6, (1, 2))) == reference
    # reads no further than it must
    limited = pack_documents(TEXTS, tokenizer, 6, (1, 2), max_rows=2)
    assert ids_of(limited) == reference[:2] and limited.counts.documents == 3


def test_a_separator_stands_behind_documents_not_behind_their_pieces(tokenizer, monkeypatch):
    monkeypatch.setattr(text, "PIECE_CHARACTERS", 2)
    assert ids_of(pack_documents(["abcde", "f"], tokenizer, 20, separator=2)) == [
        [3, 4, 5, 6, 7, 2, 8, 2]
    ]


def test_the_size_of_limited_text_is_that_of_the_rows_or_unknown():
    texts = ["zwölf Boxkämpfer jagen ", "Viktor quer über den Sylter Deich"]
    byte = train_tokenizer("byte", texts)
    limited = pack_documents(texts, byte, 4, max_rows=1)  # "zwö" without its last byte
    assert limited.counts.rows == 1 and (limited.characters, limited.num_bytes) == (3, 4)
    limited = pack_documents(texts, byte, 3, max_rows=1)  # cut inside the ö
    assert (limited.characters, limited.num_bytes) == (2, 2)
    whole = pack_documents(texts, byte, 3, max_rows=1000)
    assert (whole.characters, whole.num_bytes) == (56, 59)
    # ö is unknown to it
    lossy, texts = train_tokenizer("char", ["zwolf"]), ["zwölf" + "zwolf" * 20]
    assert pack_documents(texts, lossy, 4, max_rows=1).characters is None
    assert pack_documents(texts, lossy, 4).counts.unknown == 1


@pytest.mark.parametrize("make", [pack_documents, cut_documents])
def test_text_of_another_kind_than_the_tokenizer_is_refused(make):
    lossy = train_tokenizer("char", ["abc "])
    with pytest.raises(
        ValueError, match="does not know 2 of the 100 tokens of the text: more than 1%.*tokenizer"
    ):
        make(["abc " * 24 + "abxx"], lossy, 8)
    assert make(["abc " * 24 + "abcx"], lossy, 8).counts.unknown == 1


@pytest.mark.parametrize("make", [pack_documents, cut_documents])
def test_the_word_of_the_mask_token_in_a_clean_text_is_refused(make):
    with pytest.raises(
        ValueError,
        match=r"document 2 of the text contains the mask token '<mask>', in 'c <mask> a'",
    ):
        make(["a b", "c <mask> a"], build_word_tokenizer(), 8)
    # other words are text
    assert len(make(["a b", "c <eos> <masks>"], build_word_tokenizer(), 8).rows)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_drops_nothing_silently(limit, tokenizer):
    with pytest.raises(ValueError, match=f"max_documents must be at least 1, got {limit}"):
        cut_documents(TEXTS, tokenizer, 6, max_documents=limit)
    with pytest.raises(ValueError, match=f"got 6 and {limit}"):
        pack_documents(TEXTS, tokenizer, 6, max_rows=limit)


def test_documents_on_their_own_are_cut_into_windows(tokenizer):
    rows = cut_documents(TEXTS, tokenizer, 6, (1, 2), stride=3)
    assert rows.groups == [0, 1, 2, 2, 2, 3] and rows.counts.rows == 6
    assert ids_of(rows)[:3] == [
        [1, *encode("abcd"), 2],
        [1, *encode("ef"), 2],
        [1, *encode("gabcd")],
    ]
    assert rows.counts.tokens == sum(len(text) + 2 for text in TEXTS)
    assert (rows.characters, rows.num_bytes) == (15, 15)
    first = cut_documents(TEXTS, tokenizer, 6, (None, None), stride=3, max_documents=2)
    assert ids_of(first) == [encode("abcd"), encode("ef")] and first.characters == 6


def test_text_that_cannot_work_is_an_error_with_a_remedy(tokenizer, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.jsonl").write_text('{"text": " "}\n')
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for call, message in [
        (lambda: pack_documents([], tokenizer, 6), "no document that is not blank"),
        (lambda: pack_documents(TEXTS, tokenizer, 2, (1, 2)), "must leave room for text, got 2"),
        (
            lambda: pack_documents(TEXTS, tokenizer, 6, max_rows=0),
            "must leave room for text, got 6 and 0",
        ),
        (lambda: read_documents(tmp_path / "none.txt", "text", "line"), "does not exist"),
        (lambda: read_documents(tmp_path / "empty.txt", "text", "line"), "is empty"),
        (
            lambda: read_documents(tmp_path / "blank.jsonl", "text", "line"),
            "no document that is not blank",
        ),
        (
            lambda: read_documents(tmp_path / "blank.jsonl", "body", "line"),
            "has no column 'body', only text",
        ),
        (
            lambda: read_documents(tmp_path / "latin.txt", "text", "line"),
            "not UTF-8.*byte offset 3.*iconv",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_documents_of_a_file_are_detokenised(tmp_path):
    (tmp_path / "a.txt").write_text("it did n't say <unk>\n")
    assert read_documents(tmp_path / "a.txt", "text", "line", "ptb") == ["it didn't say ?"]


@pytest.mark.parametrize("length, stride", [(5, 2), (8, 8), (9, 3), (20, 3), (20, 8), (21, 1)])
def test_windows_count_each_token_once_and_read_nothing_behind(length, stride):
    rows, groups = roll([list(range(length)), [7]], 8, stride)
    assert groups == [0] * (len(rows) - 1) + [1]
    counted = []
    for number, row in enumerate(rows[:-1]):
        ids, labels = row["input_ids"].tolist(), row["labels"].tolist()
        fresh = [label for label in labels if label != -100]
        assert labels == [-100] * (len(ids) - len(fresh)) + fresh and ids[-len(fresh) :] == fresh
        assert ids == list(range(ids[0], ids[-1] + 1))  # neighbours
        assert len(ids) == min(8, ids[-1] + 1)  # as much context as fits
        assert len(fresh) <= (8 if number == 0 else stride)
        counted += fresh
    assert counted == list(range(length))
    assert rows[-1]["labels"].tolist() == [7]
