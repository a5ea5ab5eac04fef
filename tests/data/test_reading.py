"""Files of text: names are literal, text is as it is written, other columns decide nothing."""

import gzip
import json
import os

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.data import reading
from hf_lomdm.data.arguments import DataArguments
from hf_lomdm.data.rows import pack_documents
from hf_lomdm.data.text import documents, load_files, load_text
from hf_lomdm.data.tokenizers import train_tokenizer


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(path, content: str | bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(path, **options) -> list[str | None]:
    return load_files(str(path), **options)["text"][:]


# -------------------------------------------------------------------------------------------- names

NAMES = [
    "part[1].txt",
    "a*b.txt",
    "a?b.txt",
    "x::y.txt",
    "{a,b}.txt",
    "~",
    "a b.txt",
    "50%25.txt",
    "-x.txt",
    "**",
    "é\n.txt",
]
NAMES += [
    "[!a].txt",
    "zip::a.txt",
    "file:a.txt",
    "$HOME.txt",
    "caf\udce9.txt",
    ".hidden.txt",
    "a.txt.gz.txt",
    "..txt",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_that_the_file_system_allows_is_literal(name, tmp_path, monkeypatch):
    for other in ("part1.txt", "aXb.txt", "x", "a.txt", "b.txt"):  # what a pattern would match
        write(tmp_path / other, "other")
    write(tmp_path / name if name.endswith(".txt") else tmp_path / name / "a.txt", "mine")
    monkeypatch.chdir(tmp_path)
    assert texts(tmp_path / name) == texts(name) == ["mine"]
    in_folder = write(tmp_path / "folders" / f"{name} dir" / "b.txt", "inside")
    assert texts(in_folder.parent) == texts(in_folder) == ["inside"]


def test_a_folder_gives_each_file_once_and_no_hidden_one(tmp_path):
    folder = tmp_path / "folder"
    for name in ("b.txt", "a[1].txt", "a1.txt", "sub/c.TXT", "sub/notes.md"):
        write(folder / name, f"text of {name}")
    for name in ("._a.txt", ".b.txt", ".git/c.txt", "__MACOSX/._b.txt"):
        write(folder / name, b"\x00\x05\x16\x07\xff")  # what macOS leaves is no text
    (folder / "link.txt").symlink_to(folder / "b.txt")
    (folder / "hard.txt").hardlink_to(folder / "sub/c.TXT")
    (folder / "again").symlink_to(folder / "sub", target_is_directory=True)
    (folder / "sub/around").symlink_to(folder, target_is_directory=True)
    (folder / "broken.txt").symlink_to(folder / "nothing.txt")
    (folder / "elsewhere").symlink_to(
        write(tmp_path / "other/d.txt", "linked").parent, target_is_directory=True
    )
    assert texts(folder) == [
        "text of a1.txt",
        "text of a[1].txt",
        "text of sub/c.TXT",
        "text of b.txt",
        "linked",
    ]


def test_a_file_that_was_written_again_is_read_again(tmp_path):
    path = write(tmp_path / "a.txt", "one")
    assert texts(path) == ["one"]
    write(path, "two")
    os.utime(path, (1, 1))
    assert texts(path) == ["two"]


# -------------------------------------------------------------------------------------------- texts

CELLS = [
    "NA",
    "null",
    "None",
    "nan",
    "007",
    "1e5",
    "1.10",
    "True",
    "2020-01-01",
    "a\nb",
    'say "hi"',
    "a, b",
    " x ",
    "#1",
    "-",
]


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("quote", [True, False])
def test_cells_of_csv_are_texts_as_they_are_written(tmp_path, end, quote):
    cells = [quoted(cell) if quote or set(cell) & set('\n",') else cell for cell in CELLS]
    path = write(
        tmp_path / "a.csv",
        end.join(["id,text", *(f"{i},{cell}" for i, cell in enumerate(cells)), ""]),
    )
    assert texts(path) == CELLS


def test_cells_of_csv_are_texts_in_a_data_set_of_several_splits_too(tmp_path):
    write(tmp_path / "train.csv", "id,text\n" + "".join(f"x,{quoted(cell)}\n" for cell in CELLS))
    actual = load_text(DataArguments(dataset_name=str(tmp_path), validation_split="train[:2]"))
    assert actual["train"]["text"][:] == CELLS and actual["validation"]["text"][:] == CELLS[:2]


def test_csv_of_one_column_leaves_empty_cells_to_the_documents(tmp_path):
    path = write(tmp_path / "a.csv", 'text\nNA\n\n""\nb\n')
    assert texts(path) == ["NA", "", "b"]
    assert list(documents(load_files(path))) == ["NA", "b"]


def test_rows_of_csv_may_have_more_and_fewer_cells_than_the_first_line(tmp_path):
    path = write(tmp_path / "a.csv", "id,text,more\n1,one,x,y,z\n2\n3,three\n,,\n")
    assert texts(path) == ["one", None, "three", ""]


def test_a_text_may_be_as_long_as_it_likes(tmp_path):
    text = "word " * 300_000
    write(tmp_path / "a.csv", f'text,id\n"{text}",1\nb,2\n')
    write(tmp_path / "a.jsonl", json.dumps({"text": text}) + '\n{"text": "b"}\n')
    assert texts(tmp_path / "a.csv") == texts(tmp_path / "a.jsonl") == [text, "b"]


@pytest.mark.parametrize("block", [1, 2, 3, 1000])
def test_paragraphs_are_what_split_gives(tmp_path, block, monkeypatch):
    monkeypatch.setattr(reading, "BATCH_DOCUMENTS", block)
    for content in (
        "a\n\nb",
        "a\n\n\nb\n",
        "\n\n\na\n\n\n\n\nb\n\n",
        "a\n",
        "\na",
        " \n\n \nb",
        "a\n \n\nb",
    ):
        expected = [part for part in content.split("\n\n") if part]
        assert texts(write(tmp_path / f"{len(content)}.txt", content)) == expected
    assert texts(write(tmp_path / "dos.txt", "a\r\n\r\nb\rc\r\n")) == ["a", "b\nc\n"]


@pytest.mark.parametrize("column", ["text", "body"])
def test_other_keys_of_jsonl_decide_nothing(tmp_path, column):
    lines = [
        {column: "one", "id": 1},
        {"id": "x", column: "two"},
        {column: None, "id": [1, {"a": 2}]},
        {"id": {}},
    ]
    lines += [{column: f"text {i}"} for i in range(3000)] + [{"new": 2**70, column: "2020-01-01"}]
    path = write(
        tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines) + '{"n": NaN}'
    )
    actual = texts(path, columns=(column,))
    assert (
        actual[:4] == ["one", "two", None, None]
        and actual[-2:] == ["2020-01-01", None]
        and len(actual) == 3006
    )


STRINGS = {
    "string": pa.string(),
    "large": pa.large_string(),
    "view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "large dictionary": pa.dictionary(pa.int8(), pa.large_string()),
}


@pytest.mark.parametrize("kind", list(STRINGS))
def test_every_string_type_of_arrow_is_text(tmp_path, kind):
    values = pa.array(["a", None, "é", "a"]).cast(STRINGS[kind])
    pyarrow.parquet.write_table(
        pa.table({"id": range(4), "text": values}), tmp_path / "a.parquet", row_group_size=3
    )
    assert texts(tmp_path / "a.parquet") == ["a", None, "é", "a"]
    actual = load_text(DataArguments(dataset_name=str(tmp_path), validation_split="train[:1]"))
    assert actual["train"]["text"][:] == ["a", None, "é", "a"]


def test_files_of_a_folder_need_the_text_column_in_common_and_nothing_else(tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    first.mkdir()
    pyarrow.parquet.write_table(pa.table({"text": ["a"], "id": [1]}), first / "a.parquet")
    pyarrow.parquet.write_table(
        pa.table({"id": ["x"], "n": [{"m": 1}], "text": pa.nulls(1)}), first / "b.parquet"
    )
    pyarrow.parquet.write_table(
        pa.table({"text": pa.array(["c"], pa.string_view())}), first / "c.parquet"
    )
    write(second / "a.csv", "text,id\na,1\n")
    write(second / "b.csv", "")
    write(second / "c.csv.gz", gzip.compress(b"more,text\nx,c\n"))
    assert texts(first) == ["a", None, "c"] and texts(second) == ["a", "c"]
    write(second / "d.csv", "body\nd\n")
    with pytest.raises(ValueError, match="d.csv has no column 'text', only body"):
        texts(second)


def compressed(content: bytes, suffix: str) -> bytes:
    codec = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}[suffix]
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".GZ"])
def test_compressed_files_are_read(tmp_path, suffix):
    contents = {
        "a[1].txt": "\ufeffé\n\nb",
        "a.jsonl": '\ufeff{"text": "é"}\n{"text": "b"}',
        "a.csv": "\ufefftext\né\nb",
    }
    for name, content in contents.items():
        path = write(tmp_path / (name + suffix), compressed(content.encode(), suffix.lower()))
        assert texts(path) == ["é", "b"]
    whole = compressed(b"word " * 99, suffix.lower())
    with pytest.raises(ValueError, match="cut.txt.* is not a well-formed .txt file"):
        texts(write(tmp_path / f"cut.txt{suffix}", whole[: len(whole) // 2]))
    with pytest.raises(ValueError, match=f"plain.csv{suffix} is not a well-formed .csv file"):
        texts(write(tmp_path / f"plain.csv{suffix}", b"text\na\n"))
    with pytest.raises(ValueError, match="is not UTF-8: .* at byte offset 3"):
        texts(write(tmp_path / f"latin.txt{suffix}", compressed(b"caf\xe9", suffix.lower())))


@pytest.mark.parametrize(
    "name, content", [("a.txt", "a"), ("a.jsonl", '{"text": "a"}'), ("a.csv", 'text,id\n"a",1')]
)
def test_a_byte_order_mark_is_no_text(tmp_path, name, content):
    for folder in ("one", "two"):
        write(tmp_path / folder / name, "\ufeff" + content)
    assert texts(tmp_path) == ["a", "a"]


def test_lone_surrogates_are_replaced_and_pairs_are_joined(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        r'{"text": "ok \ud83d done"}' + "\n" + r'{"text": "\uD83D\uDE00 \udE00"}',
    )
    assert texts(path) == ["ok \ufffd done", "\U0001f600 \ufffd"]


def test_lone_surrogates_are_replaced_in_prompts_and_in_texts_that_are_passed_on(make_model):
    tokenizer = train_tokenizer("byte", [])
    model = make_model(vocab_size=261, mask_token_id=tokenizer.mask_token_id)
    pipe = LoMDMPipeline(model, LoMDMScheduler(mask_token_id=tokenizer.mask_token_id), tokenizer)
    texts = [
        pipe(prompt, max_new_tokens=1, num_inference_steps=1).texts[0]
        for prompt in ("caf\udce9", "\ud83d\ude00")
    ]
    assert texts[0].startswith("caf\ufffd") and texts[1].startswith("\U0001f600")
    rows = pack_documents(["ok \ud83d"], tokenizer, 16)
    assert tokenizer.decode(rows.rows[0]["input_ids"]) == "ok \ufffd" and (
        rows.characters,
        rows.num_bytes,
    ) == (4, 6)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}', "a.jsonl, line 2 is not UTF-8: .*iconv"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "not UTF-8: .*iconv -f UTF-16 -t UTF-8"),
        ("a.txt", "text".encode("utf-16"), "not UTF-8: .*iconv -f UTF-16 -t UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n[1]', r"a.jsonl, line 2 is no JSON object, but \[1\]"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1 is no JSON: maximum recursion"),
        ("a.jsonl", b'{"id": 1}\n{"n": 2}', "a.jsonl has no column 'text', only id, n"),
        (
            "a.jsonl",
            b'{"text": ["a"]}',
            "column 'text' of .*a.jsonl must hold strings, line 1 holds",
        ),
        (
            "a.csv",
            b'id,text\n1,"a\n2,b\n',
            "a.csv is not a well-formed .csv file: a quote is not closed.*1,a",
        ),
        ("a.csv", b'id,"text\n1,a\n2,b\n', "a.csv has no column 'text'|a quote is not closed"),
        ("a.csv", b"id\n1\n", "a.csv has no column 'text', only id"),
        ("a.txt.xz", b"a", "must hold files of one kind of .txt, .jsonl, .csv, .parquet, got .xz"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        texts(write(tmp_path / name, content))


def test_strings_of_parquet_that_are_not_utf8_are_refused(tmp_path):
    broken = pa.array([b"caf\xe9"]).view(pa.string())
    pyarrow.parquet.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match="a.parquet is not a well-formed .parquet file: Invalid UTF8"
    ):
        texts(tmp_path / "a.parquet")
