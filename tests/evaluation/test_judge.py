"""judge_texts: generative perplexity of texts and how varied they are."""

import importlib.util
import json
import math

import pytest
import torch
from tiny_judge import PIECES, build_judge, build_judge_tokenizer

from hf_lomdm.evaluation.judge import entropy, judge_texts, load_judge, variety, windows

TEXTS = ["abcdabcdabcd", "g", "", "gfedcba", "aabbccddeeffgg"]


def pieces(text: str) -> list[int]:
    return [PIECES.index(text[i : i + 2]) for i in range(0, len(text), 2)]


@torch.no_grad()
def nats_token_by_token(judge, row: list[int], window: int = 64) -> float:
    """One unpadded pass per token, read behind what its window holds: windows start every half
    window."""
    total = 0.0
    for i in range(1, len(row)):
        start = 0 if i < window else (i - window) // (window // 2) * (window // 2) + window // 2
        logits = judge(torch.tensor([row[start:i]])).logits[0, -1].double()
        total -= float(logits.log_softmax(-1)[row[i]])
    return total


@pytest.mark.parametrize("bos", [True, False])
def test_perplexity_is_that_of_one_pass_per_token_over_the_whole_corpus(bos):
    judge = build_judge()
    record = judge_texts(TEXTS, judge, build_judge_tokenizer(bos), progress=False)
    rows = [[0] * bos + pieces(text) for text in TEXTS if text]
    nats = [nats_token_by_token(judge, row) for row in rows]
    tokens = [len(row) - 1 for row in rows]
    assert record["per_text"]["tokens"] == tokens and record["tokens"] == sum(tokens) == (
        18 if bos else 14
    )
    assert record["per_text"]["nats"] == pytest.approx(nats, rel=1e-5)  # float32 logits
    assert record["value"] == pytest.approx(math.exp(sum(nats) / sum(tokens)), rel=1e-5)
    assert (record["n"], record["empty_texts"], record["judge_reads_bos"]) == (5, 1, bos)
    assert record["judge_tokens_per_text"] == 18 / 5 and record["characters_per_text"] == 34 / 5
    json.dumps(record)


def test_with_bos_false_reads_the_first_token_without_counting_it():
    record = judge_texts(
        TEXTS, build_judge(), build_judge_tokenizer(), with_bos=False, progress=False
    )
    other = judge_texts(TEXTS, build_judge(), build_judge_tokenizer(bos=False), progress=False)
    assert record["tokens"] == 14 and not record["judge_reads_bos"]
    assert record["value"] == other["value"]


def test_the_batch_size_changes_nothing_but_rounding():
    values = [
        judge_texts(TEXTS, build_judge(), build_judge_tokenizer(), batch_size=size, progress=False)[
            "nats_per_token"
        ]
        for size in (1, 3, 16)
    ]
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 12, 13, 40])
def test_windows_count_every_token_but_the_first_once_behind_half_a_window(length):
    counted = []
    for start, stop, first in windows(length, 8):
        assert 0 <= start < first < stop <= length and stop - start <= 8
        assert start == 0 or first - start >= 4
        counted += range(first, stop)
    assert counted == list(range(1, length))


def test_a_text_longer_than_the_judge_reads_is_read_in_windows():
    judge, text = build_judge(positions=8), "abcdefgfedcba" * 4
    record = judge_texts([text], judge, build_judge_tokenizer(), progress=False)
    assert record["judge_window"] == 8 and record["tokens"] == 26
    assert record["per_text"]["nats"][0] == pytest.approx(
        nats_token_by_token(judge, [0, *pieces(text)], 8), rel=1e-5
    )
    shorter = judge_texts([text], build_judge(), build_judge_tokenizer(), context=8, progress=False)
    assert shorter["judge_window"] == 8


def test_the_standard_error_covers_the_value_of_the_language_as_often_as_it_says():
    # texts of one random source; a large sample gives the true nats per token
    judge, tokenizer = build_judge(), build_judge_tokenizer()
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 20, (1200,), generator=generator).tolist()
    letters = [torch.randint(0, 7, (n,), generator=generator).tolist() for n in lengths]
    texts = ["".join("abcdefg"[i] for i in row) for row in letters]
    truth = judge_texts(texts, judge, tokenizer, batch_size=500, progress=False)["nats_per_token"]
    inside = 0
    for part in range(0, 1200, 20):  # 60 corpora of 20 texts
        record = judge_texts(
            texts[part : part + 20], judge, tokenizer, batch_size=20, progress=False
        )
        inside += (
            abs(record["nats_per_token"] - truth) < 1.96 * record["nats_per_token_standard_error"]
        )
    # 56 expected of 60 (Student's t of 19 degrees), binomial standard deviation 1.9
    assert 51 <= inside <= 59


def test_the_standard_error_is_that_of_a_ratio_over_texts():
    record = judge_texts(TEXTS, build_judge(), build_judge_tokenizer(), progress=False)
    nats, tokens = (
        torch.tensor(record["per_text"][name], dtype=torch.float64) for name in ("nats", "tokens")
    )
    # four texts are not empty
    spread = (nats - nats.sum() / tokens.sum() * tokens).square().sum() * 4 / 3
    assert record["nats_per_token_standard_error"] == pytest.approx(
        float(spread.sqrt() / tokens.sum())
    )
    assert record["standard_error"] == pytest.approx(
        record["value"] * record["nats_per_token_standard_error"]
    )


def test_entropy_is_that_of_the_counts_of_each_row():
    result = entropy([[1, 1, 2, 2], [7, 8, 9, 9], [5], []], "e")
    expected = [math.log(2), 1.5 * math.log(2), 0.0]
    assert result["e"] == pytest.approx(sum(expected) / 3)
    assert result["e_standard_error"] == pytest.approx(
        torch.tensor(expected).std().item() / 3**0.5, rel=1e-6
    )
    assert entropy([[]], "e") == {"e": None, "e_standard_error": None}


def test_repetition_and_distinct_ngrams_by_hand():
    # phrases of four: 1234 2341 3412 4123 1234 (one of five seen before), and 5678
    result = variety([[1, 2, 3, 4, 1, 2, 3, 4], [5, 6, 7, 8], [1]])
    assert result["repetition"] == pytest.approx(1 / 6)
    assert result["distinct_1"] == pytest.approx(8 / 13)
    assert result["distinct_2"] == pytest.approx(7 / 10)
    assert result["distinct_3"] == pytest.approx(6 / 8)
    # a phrase is repeated within its text, not where another text has it, too
    assert variety([[1, 2, 3, 4], [1, 2, 3, 4]])["repetition"] == 0
    assert variety([[1]]) == {
        "repetition": None,
        "distinct_1": 1.0,
        "distinct_2": None,
        "distinct_3": None,
    }


def test_texts_without_anything_to_count_are_an_error():
    with pytest.raises(ValueError, match="2 texts hold no token to count"):
        judge_texts(["", ""], build_judge(), build_judge_tokenizer(), progress=False)
    with pytest.raises(ValueError, match="1 texts hold no token to count"):
        judge_texts(["ab"], build_judge(), build_judge_tokenizer(bos=False), progress=False)
    with pytest.raises(ValueError, match="context must be at least 2, got 1"):
        judge_texts(["abc"], build_judge(), build_judge_tokenizer(), context=1, progress=False)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        judge_texts(["abc"], build_judge(), build_judge_tokenizer(), batch_size=0, progress=False)


def test_a_judge_with_nan_is_an_error():
    judge = build_judge()
    with torch.no_grad():
        judge.transformer.ln_f.weight[0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        judge_texts(["abcd"], judge, build_judge_tokenizer(), progress=False)


def test_a_judge_loads_from_its_folder_in_float32_and_records_name_no_folders(tmp_path):
    folder = tmp_path / "small-judge"
    build_judge().bfloat16().save_pretrained(folder)
    build_judge_tokenizer().save_pretrained(folder)
    judge, tokenizer = load_judge(str(folder), device="cpu")
    assert judge.dtype == torch.float32 and not judge.training
    record = judge_texts(["abcd"], judge, tokenizer, progress=False)
    assert record["judge"] == "small-judge" and record["tokens"] == 2


def test_a_gguf_judge_needs_its_file_and_the_gguf_package(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is no file"):
        load_judge(str(tmp_path / "missing.gguf"))
    path = tmp_path / "judge.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install gguf"):
        load_judge(str(path))
