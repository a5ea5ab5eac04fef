"""The seven zero-shot sets: their table, their text from fixtures with the real columns, one
protocol."""

import json
from pathlib import Path

import pytest

from hf_lomdm.data.detokenizers import DETOKENIZERS
from hf_lomdm.data.text import load_files
from hf_lomdm.data.tokenizers import train_tokenizer
from hf_lomdm.evaluation import corpus, zero_shot
from hf_lomdm.evaluation.corpus import evaluate_corpus
from hf_lomdm.evaluation.parts import delete_parts
from hf_lomdm.evaluation.zero_shot import SETS, evaluate_zero_shot, load_documents

FIXTURES = Path(__file__).parents[1] / "fixtures"
FILES = {
    (
        "ptb-text-only/ptb_text_only",
        "penn_treebank",
        "refs/convert/parquet",
        "validation",
    ): "ptb.jsonl",
    ("Salesforce/wikitext", "wikitext-103-raw-v1", None, "validation"): "wikitext.jsonl",
    ("dvruette/lm1b", None, None, "test"): "lm1b/test.jsonl",
    ("EleutherAI/lambada_openai", "default", None, "test"): "lambada.jsonl",
    ("fancyzhx/ag_news", None, None, "test"): "ag_news.csv",
    (
        "armanc/scientific_papers",
        "pubmed",
        "refs/convert/parquet",
        "validation",
    ): "scientific_papers.jsonl",
    (
        "armanc/scientific_papers",
        "arxiv",
        "refs/convert/parquet",
        "validation",
    ): "scientific_papers.jsonl",
}
FIRST = {
    "ptb": "the board said it will sell 1 1 of its shares for $1 million",
    "wikitext": " = River otter = \n",
    "lm1b": "The school, built in 1904, is to be sold.",
    "lambada": '\n" where did you leave it ? " asked mara',
    "ag_news": "Oil prices slip as stocks rise, traders say",
    "pubmed": "we study the flow of sand in a narrow tube (see fig. 1).",
    "arxiv": "we study the flow of sand in a narrow tube (see fig. 1).",
}


@pytest.fixture(autouse=True)
def hub(monkeypatch, fresh_cache):
    """The Hub holds the fixtures, each under the id, configuration, revision and split of the real
    set."""

    def load_hub(dataset, config, revision, split, column):
        if (dataset, config, revision, split) not in FILES:
            raise ValueError(f"Unknown split {split!r}.")
        path = FIXTURES / FILES[dataset, config, revision, split]
        return load_files(path, columns=(column,))

    monkeypatch.setattr(zero_shot, "load_hub", load_hub)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer("byte", [])


@pytest.fixture
def model(make_model, tokenizer):
    return make_model(vocab_size=261, mask_token_id=3)


def test_the_table_has_the_seven_sets_of_the_paper():
    assert list(SETS) == list(FIRST)
    used = {detokenizer for source in SETS.values() for detokenizer in source.detokenizers}
    assert used == set(DETOKENIZERS)


@pytest.mark.parametrize("name", list(FIRST))
def test_each_set_is_read_from_its_real_columns_and_detokenised(name):
    texts = load_documents(name)
    assert texts[0].startswith(FIRST[name])
    assert len(texts) > 1 and all(text.strip() for text in texts)


def test_papers_are_detokenised_like_wikitext_and_then_like_lm1b(monkeypatch):
    calls = []
    monkeypatch.setattr(
        zero_shot, "get_detokenizer", lambda name: lambda text: calls.append(name) or text
    )
    count = len(load_documents("pubmed"))
    assert calls == ["wikitext", "lm1b"] * count


def test_a_local_file_gives_the_text_of_the_hub(tmp_path):
    for name in ("ptb", "wikitext", "lambada"):
        rows = [
            json.loads(line)
            for line in (FIXTURES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        column = SETS[name].column
        renamed = tmp_path / f"{name}.jsonl"  # the column called `text`
        renamed.write_text(
            "".join(json.dumps({"text": row[column]}) + "\n" for row in rows), encoding="utf-8"
        )
        assert (
            load_documents(name, renamed)
            == load_documents(name, FIXTURES / f"{name}.jsonl")
            == load_documents(name)
        )
        lines = tmp_path / f"{name}.txt"
        lines.write_text(
            "".join(row[column].removesuffix("\n") + "\n" for row in rows), encoding="utf-8"
        )
        assert load_documents(name, lines) == load_documents(name)  # wikitext: with its line ends


def test_a_set_is_joined_without_separators_and_keeps_its_short_end(model, tokenizer):
    record = evaluate_zero_shot(model, tokenizer, ["ptb"], num_samples=2, progress=False)["sets"][
        "ptb"
    ]
    stream = tokenizer("".join(load_documents("ptb")), add_special_tokens=False)["input_ids"]
    rows = [{"input_ids": [1, *stream[i : i + 30], 2]} for i in range(0, len(stream), 30)]
    assert len(rows[-1]["input_ids"]) < 32
    expected = evaluate_corpus(model, rows, progress=False)
    assert record["rows"] == expected["rows"] and record["value"] == expected["value"]
    assert record["tokens"] == len(stream) + 2 * len(rows) and record["documents"] == 3
    assert record["characters"] == record["bytes"] == len(stream)
    assert record["source"] == "ptb-text-only/ptb_text_only"


def test_a_text_shorter_than_the_context_counts_in_full(make_model, tokenizer):
    model = make_model(vocab_size=261, mask_token_id=3, max_position_embeddings=1024)
    record = evaluate_zero_shot(model, tokenizer, ["ptb"], progress=False)
    text = "".join(load_documents("ptb"))
    assert record["sets"]["ptb"]["n"] == 1 and record["sets"]["ptb"]["tokens"] == len(text) + 2
    assert record["max_length"] == 1024 and record["bos_and_eos"]


def test_a_model_without_bos_has_none_in_its_rows(make_model, tokenizer):
    model = make_model(vocab_size=261, mask_token_id=3, bos_token_id=None, eos_token_id=None)
    record = evaluate_zero_shot(model, tokenizer, ["ptb"], progress=False)
    assert (
        record["sets"]["ptb"]["tokens"] == len("".join(load_documents("ptb")))
        and not record["bos_and_eos"]
    )


def test_finished_sets_survive_an_interruption_and_tokens_are_printed(
    model, tokenizer, tmp_path, monkeypatch, capsys
):
    plain, folder = zero_shot.evaluate_corpus, tmp_path / "parts"

    def stopping(model, rows, **options):
        if "lambada" in str(options["parts_file"]):
            raise KeyboardInterrupt
        return plain(model, rows, **options)

    run = {"names": ["ptb", "lambada"], "max_rows": 3, "parts_folder": folder}
    monkeypatch.setattr(zero_shot, "evaluate_corpus", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate_zero_shot(model, tokenizer, **run)
    assert "ptb: 3 rows, 96 tokens" in capsys.readouterr().out
    monkeypatch.setattr(zero_shot, "evaluate_corpus", plain)
    seen, evaluate = [], corpus._evaluate_batch
    monkeypatch.setattr(
        corpus, "_evaluate_batch", lambda *args: seen.append(args[2]) or evaluate(*args)
    )
    record = evaluate_zero_shot(model, tokenizer, **run, progress=False)
    assert sorted(sum(seen, [])) == [0, 1, 2] and list(record["sets"]) == ["ptb", "lambada"]
    delete_parts(folder)
    assert not folder.exists()


def test_input_that_cannot_work_is_an_error_with_a_remedy(model, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "ptb.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "other.jsonl").write_text('{"body": "a"}\n')
    for call, message in [
        (lambda: load_documents("enwik8"), "must be one of ptb, .*, got 'enwik8'"),
        (lambda: load_documents("ptb", tmp_path / "ptb.txt"), "'ptb' holds no text"),
        (lambda: load_documents("ptb", tmp_path / "latin.txt"), "not UTF-8"),
        (lambda: load_documents("ptb", tmp_path / "none.txt"), "does not exist"),
        (
            lambda: load_documents("ptb", tmp_path / "other.jsonl"),
            "no column 'sentence' or 'text', only body",
        ),
        (
            lambda: evaluate_zero_shot(model, tokenizer, files={"ptp": "x"}),
            "files has 'ptp', which is no set",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    monkeypatch.setitem(FILES, ("dvruette/lm1b", None, None, "test"), "ag_news.csv")
    monkeypatch.delitem(FILES, ("fancyzhx/ag_news", None, None, "test"))
    with pytest.raises(
        ValueError,
        match="'ag_news' cannot be read from fancyzhx/ag_news.*split.*--file ag_news=PATH",
    ):
        load_documents("ag_news")
