"""evaluate_corpus: against exact values, with honest errors, whatever the batches, processes and
interruptions."""

import itertools
import json
import math
import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
from test_causal import build_causal, log_prob_token_by_token

import oracles
from conftest import build_model
from hf_lomdm.data.draws import step_generators
from hf_lomdm.data.rows import roll
from hf_lomdm.evaluation import corpus, nelbo
from hf_lomdm.evaluation.corpus import evaluate_corpus, process_state, special_tokens
from tiny_tokenizer import build_tokenizer

# A mean this many standard errors off has probability 6e-5; seeds are fixed.
Z = 4.0
TEXTS = [[0, 2, 1, 1], [2, 2, 0], [1, 0], [2, 1, 0, 0], [0]]
ROUNDING = {"rel": 1e-5, "abs": 1e-6}  # float32 sums in another order
# A clean process that has imported everything and is forked for each of several processes
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["hf_lomdm.evaluation.corpus", "pytest", "torch._dynamo"])


@pytest.fixture
def smallest(make_model):
    return oracles.vivid(make_model(**oracles.SMALLEST))


def as_rows(texts) -> list[dict]:
    return [{"input_ids": text} for text in texts]


def make_texts(count: int, length: int, unequal: bool = False) -> list[dict]:
    """Random texts of ordinary tokens (3 to 9); with `unequal` of lengths from 1 to `length`."""
    generator = torch.Generator().manual_seed(0)
    sizes = (
        torch.randint(1, length + 1, (count,), generator=generator).tolist()
        if unequal
        else [length] * count
    )
    return [{"input_ids": torch.randint(3, 10, (size,), generator=generator)} for size in sizes]


def evaluate(model, rows, **options) -> dict:
    return evaluate_corpus(model, rows, **{"progress": False, **options})


def exact_nats(model, texts, bound: str) -> list[float]:
    """The bound of each text by enumeration."""
    exact = oracles.order_bound if bound == "order" else oracles.time_bound
    with torch.no_grad():
        return [float(sum(exact(oracles.tables(model, torch.tensor(text))))) for text in texts]


# -------------------------------------------------------------------------- values and their errors


@pytest.mark.parametrize("bound", ["order", "time"])
def test_value_lies_within_its_monte_carlo_error_of_the_exact_bound(smallest, bound):
    record = evaluate(smallest, as_rows(TEXTS), bound=bound, num_samples=200)
    exact = sum(exact_nats(smallest, TEXTS, bound)) / 14
    # the test could tell
    assert abs(record["value"] - exact) < Z * record["monte_carlo_error"] < 0.3 * exact
    assert record["tokens"] == 14 and record["n"] == 5 and record["estimator"] == f"{bound} bound"
    assert record["value"] == pytest.approx(record["main"] + record["velocity"])


def test_monte_carlo_intervals_cover_the_exact_bound(smallest):
    texts = [list(text) for text in itertools.product(range(3), repeat=3)] + TEXTS
    exact, runs = sum(exact_nats(smallest, texts, "order")) / sum(map(len, texts)), 60
    records = [evaluate(smallest, as_rows(texts), num_samples=2, seed=seed) for seed in range(runs)]
    z = torch.tensor(
        [(record["value"] - exact) / record["monte_carlo_error"] for record in records]
    )
    # 32 texts, one degree of freedom each: t-like; 95 % within 4 binomial deviations, no bias
    assert 0.95 - 4 * 0.028 < float((z.abs() < 1.96).double().mean()) < 1.01
    assert abs(float(z.mean())) < Z * 1.1 / math.sqrt(runs)


def test_standard_error_covers_the_choice_of_the_texts_as_well(smallest):
    population = [list(text) for text in itertools.product(range(3), repeat=3)]
    mean = sum(exact_nats(smallest, population, "order")) / (3 * len(population))
    generator, runs = torch.Generator().manual_seed(0), 80
    z = []
    for seed in range(runs):
        chosen = torch.randint(len(population), (24,), generator=generator).tolist()
        record = evaluate(smallest, as_rows([population[i] for i in chosen]), seed=seed)
        z.append((record["value"] - mean) / record["standard_error"])
        assert record["standard_error"] >= record["monte_carlo_error"]
    # t with about 23 degrees of freedom: variance 1.1; of 80 draws it is known to 16 %
    assert 0.5 < float(torch.tensor(z).var()) < 1.8
    assert abs(float(torch.tensor(z).mean())) < Z * 1.05 / math.sqrt(runs)


def test_perplexity_and_bits_follow_from_the_value(smallest):
    record = evaluate(smallest, as_rows(TEXTS), characters=28, num_bytes=35)
    assert record["perplexity"] == pytest.approx(math.exp(record["value"]))
    low, high = (math.exp(record["value"] + z * record["standard_error"]) for z in (-1.96, 1.96))
    assert record["perplexity_interval"] == pytest.approx([low, high])
    assert record["bits_per_character"] == pytest.approx(record["value"] * 14 / 28 / math.log(2))
    assert record["bits_per_byte_standard_error"] == pytest.approx(
        record["standard_error"] * 14 / 35 / math.log(2)
    )
    assert "bits_per_byte" not in evaluate(smallest, as_rows(TEXTS))
    json.dumps(record)


def test_one_text_or_one_sample_have_no_error_of_that_kind(smallest):
    record = evaluate(smallest, as_rows(TEXTS[:1]))
    assert record["standard_error"] is None and record["monte_carlo_error"] > 0
    assert (
        record["perplexity_interval"][0] < record["perplexity"] < record["perplexity_interval"][1]
    )
    record = evaluate(smallest, as_rows(TEXTS), num_samples=1)
    assert record["monte_carlo_error"] is None and record["standard_error"] > 0
    assert record["per_text"]["error"] == [None] * 5
    assert evaluate(smallest, as_rows(TEXTS[:1]), num_samples=1)["perplexity_interval"] is None


def test_few_texts_that_happen_to_agree_have_at_least_their_monte_carlo_error():
    table = {"tokens": [4, 4], "main": [3.0, 3.0], "velocity": [0.0, 0.0], "error": [0.3, 0.4]}
    actual = corpus.summarise(table)
    assert actual["standard_error"] == actual["monte_carlo_error"] == pytest.approx(0.5 / 8)
    assert corpus.summarise(table | {"main": [1.0, 5.0]})["standard_error"] == pytest.approx(
        math.sqrt(2 * 8) / 8
    )


def test_given_positions_are_read_and_not_counted(smallest):
    rows = [
        {"input_ids": [0, 2, 1, 1], "labels": [-100, 2, 1, -100]},
        {"input_ids": [1], "labels": [-100]},
    ]
    record = evaluate(smallest, rows, num_samples=400)
    with torch.no_grad():
        exact = float(
            sum(oracles.order_bound(oracles.tables(smallest, torch.tensor([0, 2, 1, 1]), [1, 2])))
        )
    assert record["tokens"] == 2 and record["per_text"]["tokens"] == [2, 0]
    assert abs(record["value"] - exact / 2) < Z * record["monte_carlo_error"] < 0.1 * exact


def test_autoregressive_models_have_an_exact_value():
    model, texts = build_causal(max_position_embeddings=8), [[2, 3, 5, 1], [0, 4]]
    record = evaluate(model, as_rows(texts))
    exact = -sum(log_prob_token_by_token(model, text) for text in texts) / 6
    assert record["value"] == pytest.approx(exact, **ROUNDING)
    assert (
        record["estimator"] == "exact"
        and record["monte_carlo_error"] == 0
        and record["num_samples"] is None
    )


@pytest.mark.parametrize("blocks, reveals, passes", [(None, 4, 84), (2, 2, 54)])
def test_several_orders_are_tighter_and_their_cost_comes_first(
    make_model, capsys, blocks, reveals, passes
):
    model = oracles.vivid(make_model(**oracles.SMALLEST, block_size=blocks))
    many = evaluate(model, as_rows(TEXTS), num_samples=2, num_orders=3, progress=True)
    assert f"2 x 3 x up to {reveals} passes per row, {passes} in all" in capsys.readouterr().err
    assert many["estimator"] == "order bound, 3 orders"
    several = evaluate(model, as_rows(TEXTS), num_samples=10, num_orders=100)
    with torch.no_grad():
        tables = [oracles.block_tables(model, torch.tensor(text)) for text in TEXTS]
        order = sum(float(sum(oracles.add_up(oracles.order_bound, table))) for table in tables) / 14
        exact = -sum(float(oracles.add_up(oracles.log_likelihood, table)) for table in tables) / 14
    # 1/K of the gap
    assert abs(several["value"] - exact) < Z * several["monte_carlo_error"] + 0.1 * (order - exact)
    assert several["value"] < order - Z * several["monte_carlo_error"]


def test_special_tokens_are_those_of_training(make_model):
    tokenizer = build_tokenizer()
    assert special_tokens(make_model(), tokenizer) == (1, 2, 2)
    # packed without BOS
    assert special_tokens(make_model(bos_token_id=None), tokenizer) == (None, None, 2)
    assert special_tokens(make_model(bos_token_id=None, eos_token_id=None), tokenizer) == (
        None,
        None,
        None,
    )
    # BOS of an autoregressive model is its start token: not in rows, as our baseline knows
    assert special_tokens(build_causal(text_bos_token_id=1, text_eos_token_id=2), tokenizer) == (
        1,
        2,
        2,
    )
    assert special_tokens(build_causal(text_bos_token_id=None, text_eos_token_id=2), tokenizer) == (
        None,
        None,
        2,
    )
    assert special_tokens(build_causal(), tokenizer) == (None, None, 2)


# -------------------------------------------------------------------------------------- invariances


@pytest.mark.parametrize("options", [{}, {"bound": "time"}, {"num_orders": 2}])
def test_batches_and_padding_side_change_nothing(make_model, monkeypatch, options):
    model, rows = make_model(), make_texts(7, 6, unequal=True)
    reference = evaluate(model, rows, **options)
    assert len(set(map(len, (row["input_ids"] for row in rows)))) > 2
    right = corpus.collate

    def left(texts, device):
        batch = right(texts, device)
        if "attention_mask" not in batch:
            return batch
        shifts = (batch["attention_mask"] == 0).sum(-1).tolist()
        roll_rows = {
            k: torch.stack([r.roll(s) for r, s in zip(v, shifts, strict=True)])
            for k, v in batch.items()
        }
        assert roll_rows["attention_mask"][-1, 0] == 0
        return roll_rows

    others = [evaluate(model, rows, batch_tokens=tokens, **options) for tokens in (1, 13)]
    monkeypatch.setattr(corpus, "collate", left)
    others.append(evaluate(model, rows, **options))
    for other in others:
        for name in ("main", "velocity"):
            assert other["per_text"][name] == pytest.approx(reference["per_text"][name], **ROUNDING)
        assert other["rows"] == reference["rows"]
    assert evaluate(model, rows, seed=1, **options)["value"] != pytest.approx(
        reference["value"], **ROUNDING
    )


def evaluate_process(path: Path, rank: int, count: int, port: str, options: dict) -> None:
    """One of `count` processes, as torchrun starts them."""
    os.environ.update({"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)})
    os.environ.update(
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
    )
    torch.set_num_threads(1)
    record = evaluate(build_model(), make_texts(11, 6, unequal=True), batch_tokens=8, **options)
    assert process_state().num_processes == count
    (path / f"{rank}.json").write_text(json.dumps(record))


def evaluate_on_processes(path: Path, count: int, **options) -> list[dict]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    arguments = [(path, rank, count, port, options) for rank in range(count)]
    processes = [FORKS.Process(target=evaluate_process, args=probe) for probe in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=100)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * count
    return [json.loads((path / f"{rank}.json").read_text()) for rank in range(count)]


def test_four_processes_give_the_record_of_one_and_leave_parts_for_it(tmp_path):
    parts = tmp_path / "parts.jsonl"
    alone = evaluate(build_model(), make_texts(11, 6, unequal=True), batch_tokens=8)
    records = evaluate_on_processes(tmp_path, 4, parts_file=parts)
    files = sorted(tmp_path.glob("parts.jsonl*"))
    assert [file.name for file in files] == [
        "parts.jsonl",
        *(f"parts.jsonl.{rank}" for rank in (1, 2, 3)),
    ]
    rows = [json.loads(line)["row"] for file in files for line in file.read_text().splitlines()[1:]]
    assert sorted(rows) == list(range(11))  # each row once
    for record in records:
        assert record["per_text"] == records[0]["per_text"]
        for name in ("main", "velocity", "error"):
            assert record["per_text"][name] == pytest.approx(alone["per_text"][name], **ROUNDING)
    # one process takes over what four have done
    resumed = evaluate(build_model(), make_texts(11, 6, unequal=True), parts_file=parts)
    assert resumed["per_text"] == records[0]["per_text"]


# ------------------------------------------------------------------------------------ interruptions


@pytest.fixture
def interrupted(make_model, tmp_path, monkeypatch):
    """A model, rows and the parts of an evaluation that was stopped after two of its batches."""
    model, rows, parts = make_model(), make_texts(9, 6), tmp_path / "deep" / "parts.jsonl"
    plain, left = corpus._evaluate_batch, [2]

    def stopping(*args):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return plain(*args)

    monkeypatch.setattr(corpus, "_evaluate_batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, rows, batch_tokens=12, parts_file=parts)
    monkeypatch.setattr(corpus, "_evaluate_batch", plain)
    return model, rows, parts


def count_rows(monkeypatch) -> list[int]:
    """Every row that is evaluated from now on."""
    plain, seen = corpus._evaluate_batch, []
    monkeypatch.setattr(
        corpus, "_evaluate_batch", lambda *args: seen.extend(args[2]) or plain(*args)
    )
    return seen


def test_an_interrupted_evaluation_goes_on_where_it_was(interrupted, monkeypatch):
    model, rows, parts = interrupted
    assert len(parts.read_text().splitlines()) == 1 + 4
    seen = count_rows(monkeypatch)
    resumed = evaluate(model, rows, batch_tokens=12, parts_file=parts)
    assert sorted(seen) == [4, 5, 6, 7, 8]
    whole = evaluate(model, rows, batch_tokens=12)
    assert resumed["per_text"] == whole["per_text"] and resumed["value"] == whole["value"]
    seen.clear()
    # how rows are batched is no part of the setting
    evaluate(model, rows, batch_tokens=500, parts_file=parts)
    assert seen == []


@pytest.mark.parametrize("keep", [1, 30])
def test_a_half_written_last_line_is_dropped(interrupted, monkeypatch, keep):
    model, rows, parts = interrupted
    lines = parts.read_text().splitlines(keepends=True)
    parts.write_text("".join(lines[:-1]) + lines[-1][:keep])
    seen = count_rows(monkeypatch)
    resumed = evaluate(model, rows, batch_tokens=12, parts_file=parts)
    assert sorted(seen) == [3, 4, 5, 6, 7, 8]
    whole = evaluate(model, rows, batch_tokens=12)  # in other batches: equal but for the last digit
    assert resumed["per_text"] == {
        name: pytest.approx(values, rel=1e-5) for name, values in whole["per_text"].items()
    }
    assert all(json.loads(line) for line in parts.read_text().splitlines())


def test_parts_whose_first_line_was_cut_off_start_anew(interrupted):
    model, rows, parts = interrupted
    parts.write_text(parts.read_text()[:20])
    evaluate(model, rows, parts_file=parts)
    assert len(parts.read_text().splitlines()) == 1 + 9


def test_parts_of_rows_that_are_cut_elsewhere_are_refused(smallest, tmp_path):
    evaluate(smallest, as_rows([[1], [1]]), parts_file=tmp_path / "parts.jsonl")
    with pytest.raises(ValueError, match="another evaluation: rows differ"):
        evaluate(smallest, as_rows([[1, 1]]), parts_file=tmp_path / "parts.jsonl")


def test_parts_of_another_evaluation_are_refused(interrupted, make_model):
    model, rows, parts = interrupted
    for change, name in [
        ({"seed": 1}, "seed"),
        ({"bound": "time"}, "estimator"),
        ({"num_samples": 3}, "num_samples"),
    ]:
        with pytest.raises(ValueError, match=f"another evaluation: {name} differ.*delete it"):
            evaluate(model, rows, parts_file=parts, **change)
    with pytest.raises(ValueError, match="another evaluation: rows differ"):
        evaluate(model, rows[:-1], parts_file=parts)
    with pytest.raises(ValueError, match="another evaluation: model differ"):
        evaluate(make_model(seed=1), rows, parts_file=parts)
    with model.without_order(), pytest.raises(ValueError, match="another evaluation: model differ"):
        evaluate(model, rows, parts_file=parts)
    for content in ("not json\n", "[1, 2]\n"):
        parts.write_text(content)
        with pytest.raises(ValueError, match="holds no parts of an evaluation"):
            evaluate(model, rows, parts_file=parts)


# --------------------------------------------------------------------------------------- long texts


def test_rolling_value_is_the_sum_of_its_parts(make_model):
    model, texts = (
        make_model(max_position_embeddings=6),
        [[3, 4, 5, 6, 7, 8, 9, 3, 5], [4, 4, 9], [5] * 13],
    )
    rows, groups = roll(texts, 6, 4)
    record = evaluate(model, rows, groups=groups, num_samples=4)
    sums, squares = [0.0] * 3, [0.0] * 3
    for number, (row, group) in enumerate(zip(rows, groups, strict=True)):
        ids, labels = (torch.as_tensor(row[name])[None] for name in ("input_ids", "labels"))
        part = nelbo(
            model, ids, labels=labels, num_samples=4, generator=step_generators(0, 0, [number])
        )
        sums[group] += float(part.nelbo)
        squares[group] += float(part.standard_error) ** 2
    table = record["per_text"]
    together = [
        main + velocity for main, velocity in zip(table["main"], table["velocity"], strict=True)
    ]
    assert together == pytest.approx(sums, **ROUNDING)
    assert table["error"] == pytest.approx([math.sqrt(square) for square in squares], rel=1e-4)
    assert table["tokens"] == [9, 3, 13] and record["n"] == 3
    assert record["value"] == pytest.approx(sum(sums) / 25, **ROUNDING)


def test_rolling_value_of_an_autoregressive_model_is_exact_where_all_fits():
    model, text = build_causal(max_position_embeddings=6), [2, 3, 5, 1, 2, 4]
    whole = evaluate(model, as_rows([text]))["value"]
    rows, groups = roll([text], 6, 2)
    assert len(rows) == 1 and evaluate(model, rows, groups=groups)["value"] == whole
    rows, groups = roll([text + [1]], 6, 1)  # the last token is predicted from the five before it
    extra = -log_prob_token_by_token(model, [3, 5, 1, 2, 4, 1], counted=[False] * 5 + [True])
    assert evaluate(model, rows, groups=groups)["value"] == pytest.approx(
        (6 * whole + extra) / 7, **ROUNDING
    )


# ------------------------------------------------------------------------------------------- errors


def test_input_that_cannot_work_is_an_error_with_a_remedy(make_model):
    model = make_model()
    for call, message in [
        (lambda: evaluate(model, []), "0 rows hold no token to count"),
        (
            lambda: evaluate(model, [{"input_ids": []}]),
            "row 0 has 0 tokens, the model takes 1 to 32",
        ),
        (
            lambda: evaluate(model, as_rows([[3], [3] * 33])),
            "row 1 has 33 tokens.*Pack the text.*roll",
        ),
        (
            lambda: evaluate(model, [{"input_ids": [3, 4], "labels": [3]}]),
            "row 0 has 2 input_ids and 1 labels",
        ),
        (
            lambda: evaluate(model, [{"input_ids": [3], "labels": [-100]}]),
            "1 rows hold no token to count",
        ),
        (
            lambda: evaluate(model, as_rows([[3]]), batch_tokens=0),
            "batch_tokens must be at least 1, got 0",
        ),
        (lambda: evaluate(model, as_rows([[3]]), groups=[0, 1]), "groups has 2 entries for 1 rows"),
        (lambda: evaluate(model, as_rows([[3]]), bound="both"), "bound must be one of"),
        (lambda: roll([[3]], 8, 9), "stride must be in 1 to 8, got 9"),
        (lambda: roll([[3]], 8, 0), "stride must be in 1 to 8, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
