"""Records side by side: names, measures, paired differences, table and picture."""

import json
import math

import pytest
import torch

import oracles
from hf_lomdm.evaluation.compare import (
    comparison_table,
    difference,
    measure_table,
    measures,
    read_records,
)
from hf_lomdm.evaluation.corpus import evaluate_corpus
from hf_lomdm.visualization import comparison, plot_comparison

TEXTS = [[0, 2, 1, 1], [2, 2, 0, 1], [1, 0], [2, 1, 0, 0], [0, 0, 2], [1, 1, 2, 2]]


@pytest.fixture
def records(make_model) -> dict:
    """Two models on the same rows."""
    rows = [{"input_ids": text} for text in TEXTS]
    options = {"num_samples": 8, "progress": False, "characters": 40, "num_bytes": 44}
    both = {
        name: oracles.vivid(make_model(**oracles.SMALLEST), seed)
        for name, seed in (("one", 0), ("two", 1))
    }
    return {
        k: {"task": "likelihood", **evaluate_corpus(model, rows, **options)}
        for k, model in both.items()
    }


def nelbo_of(record) -> torch.Tensor:
    return torch.tensor(record["per_text"]["main"]) + torch.tensor(record["per_text"]["velocity"])


def test_records_of_the_same_rows_are_paired_text_by_text(records):
    first, second = records.values()
    actual = difference(second, first)
    assert actual.paired and actual.value == pytest.approx(second["value"] - first["value"])
    tokens = torch.tensor([float(len(text)) for text in TEXTS])
    gaps = nelbo_of(second) - nelbo_of(first)
    left_out = []  # the jackknife of the ratio: an independent way to the error
    for i in range(6):
        keep = torch.arange(6) != i
        left_out.append(gaps[keep].sum() / tokens[keep].sum())
    jackknife = torch.stack(left_out)
    error = math.sqrt(5 / 6 * float((jackknife - jackknife.mean()).square().sum()))
    assert actual.standard_error == pytest.approx(error, rel=0.25)  # equal to first order
    assert difference(first, first).value == difference(first, first).standard_error == 0


def test_a_pair_that_differs_by_a_constant_per_token_has_no_error(records):
    first = records["one"]
    table = first["per_text"]
    moved = {
        **table,
        "main": [main + 0.5 * n for main, n in zip(table["main"], table["tokens"], strict=True)],
    }
    actual = difference({**first, "per_text": moved}, first)
    assert actual.value == pytest.approx(0.5) and actual.standard_error == pytest.approx(
        0, abs=1e-7
    )


def test_the_paired_error_of_texts_of_one_length_is_that_of_a_mean():
    def record(main: list[float]) -> dict:
        table = {"main": main, "velocity": [0.5] * 4, "tokens": [10] * 4}
        return {"rows": "r", "groups": None, "per_text": table}

    gaps = torch.tensor([1.0, -2.0, 4.0, 3.0], dtype=torch.float64)
    actual = difference(record((20 + gaps).tolist()), record([20.0] * 4))
    assert actual.value == pytest.approx(1.5 / 10)
    assert actual.standard_error == pytest.approx(float(gaps.std()) / math.sqrt(4) / 10)


def test_other_rows_are_not_paired(records):
    first, second = records.values()
    actual = difference({**second, "rows": "others"}, first)
    assert not actual.paired
    assert actual.standard_error == pytest.approx(
        math.hypot(first["standard_error"], second["standard_error"])
    )
    # the same rows, joined to other texts
    assert not difference({**second, "groups": "others"}, first).paired
    assert (
        difference({**second, "rows": "others", "standard_error": None}, first).standard_error
        is None
    )
    alone = {**first, "per_text": {name: values[:1] for name, values in first["per_text"].items()}}
    assert difference(alone, alone).standard_error is None


def test_the_table_has_measures_errors_and_differences(records):
    table = comparison_table(records)
    lines = {line.split("  ")[0]: line for line in table.splitlines()}
    assert table.splitlines()[0].split() == ["one", "two"]
    error = records["one"]["standard_error"] * records["one"]["perplexity"]
    assert f"{records['one']['perplexity']:.2f} +- {error:.2f}" in lines["perplexity"]
    for label in (
        "nats per token",
        "bits per byte",
        "bits per character",
        "95 % of the perplexity",
        "tokens counted",
    ):
        assert label in lines
    assert lines["tokens counted"].split() == ["tokens", "counted", "21", "21"]
    assert "(paired)" in lines["nats per token, minus the first"]
    assert "(other rows)" in comparison_table(
        {"one": records["one"], "two": {**records["two"], "rows": "x"}}
    )
    assert "minus" not in measure_table(records)


def test_zero_shot_records_are_compared_set_by_set(records):
    first, second = records.values()
    both = {
        "a": {"task": "zero-shot", "sets": {"ptb": first, "lm1b": first}},
        "b": {"task": "zero-shot", "sets": {"ptb": second}},
    }
    lines = {line.split("  ")[0]: line for line in comparison_table(both).splitlines()}
    assert measures(both["b"]) == {"ptb: perplexity": measures(second)["perplexity"]}
    assert "(paired)" in lines["ptb: nats per token, minus the first"]
    assert lines["lm1b: perplexity"].endswith("-") and lines[
        "lm1b: nats per token, minus the first"
    ].endswith("-")


def test_other_records_show_their_value_errors_and_costs(tmp_path):
    record = {
        "task": "generation",
        "unit": "generative perplexity",
        "value": 30.0,
        "standard_error": 2.0,
        "entropy": 4.5,
        "entropy_standard_error": None,
        "forward_passes": 64.0,
        "seed": 3,
        "forward": {"kendall_tau": {"value": 0.25, "standard_error": 0.01}, "n": 3},
        "generated": {"kendall_tau": {"value": None, "standard_error": None}},
    }
    assert measures(record) == {
        "generative perplexity": (30.0, 2.0),
        "entropy": (4.5, None),
        "forward kendall_tau": (0.25, 0.01),
        "forward_passes": (64.0, None),
    }
    assert "30.0 +- 2.0" in comparison_table({"a": record})


@pytest.mark.parametrize("name", ["comparison.png", "deep/comparison.svg"])
def test_the_plot_is_written(records, tmp_path, name):
    pytest.importorskip("matplotlib")
    plot_comparison(records, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert len(content) > 5_000 and (
        content[:4] == b"\x89PNG" or b"perplexity" in content or b"<svg" in content
    )


def test_a_bar_of_the_plot_is_the_95_percent_interval():
    axes = pytest.importorskip("matplotlib.figure").Figure().add_subplot()
    columns = {"one": {"loss": (2.0, 0.5)}, "two": {"loss": (3.0, None)}}
    comparison._draw_measure(axes, "loss", columns, named=True)
    (segment,) = (bars.get_segments()[0] for bars in axes.collections)
    assert segment[:, 0].tolist() == pytest.approx([2 - 1.96 * 0.5, 2 + 1.96 * 0.5], abs=1e-3)
    assert [line.get_xdata().tolist() for line in axes.lines][-1] == [3.0]


def test_records_are_named_by_what_tells_them_apart(records, tmp_path):
    paths = [tmp_path / "lomdm" / "ptb.json", tmp_path / "mdlm" / "ptb.json"]
    for path, record in zip(paths, records.values(), strict=True):
        path.parent.mkdir()
        path.write_text(json.dumps(record))
    assert list(read_records(paths)) == ["lomdm/ptb", "mdlm/ptb"]
    paths[1] = paths[1].rename(tmp_path / "other.json")
    assert list(read_records(paths)) == ["ptb", "other"]
    assert read_records(paths)["other"] == json.loads(json.dumps(records["two"]))


def test_input_that_cannot_work_is_an_error_with_a_remedy(records, tmp_path):
    good, bad, order = tmp_path / "good.json", tmp_path / "bad.json", tmp_path / "order.json"
    good.write_text(json.dumps(records["one"]))
    bad.write_text("{")
    order.write_text('{"task": "order"}')
    for call, message in [
        (lambda: read_records([tmp_path / "none.json"]), "none.json is no record of an evaluation"),
        (lambda: read_records([good, bad]), "bad.json is no record"),
        (lambda: read_records([good, good]), "the same record twice"),
        (lambda: read_records([good, order]), "must be of one task"),
        (
            lambda: plot_comparison(records, tmp_path / "x.docx"),
            "cannot be written to .*comparison.png",
        ),
        (
            lambda: plot_comparison({"a": {"task": "zero-shot", "sets": {}}}, tmp_path / "x.png"),
            "nothing to draw",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
