"""Tasks whose best order is known: their rows, entropies and orders by enumeration; the measures of
the study by hand."""

import itertools
import json
import math
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from hf_lomdm.evaluation import nelbo
from hf_lomdm.training.order_search import candidate_orders
from hf_lomdm.training.parsing import parse_arguments

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "studies" / "known_orders"
sys.path.insert(0, str(STUDY))

import measure  # noqa: E402
import picture  # noqa: E402
from tasks import TASKS, hashes, latents, make_task, pairs, parse_options, sums  # noqa: E402
from tasks import main as make_rows  # noqa: E402

SMALL = {
    "latents": latents(latents=4, observations=5, inputs=3),
    "wide": latents(latents=5, observations=3, inputs=4, wiring=7),
    "hashes": hashes(width=5, blocks=3),
    "even": hashes(width=4, blocks=2),
    "sums": sums(digits=2, base=3),
    "pairs": pairs(pairs=3, alphabet=3),
}


def every_row(task):
    """All rows `[alphabet^num_free, L]`, each equally likely."""
    free = list(itertools.product(range(task.alphabet), repeat=task.num_free))
    return task.complete(torch.tensor(free))


def entropy(values) -> float:
    """Nats of equally likely values."""
    counts = Counter(map(tuple, values.tolist())).values()
    total = sum(counts)
    return -sum(c / total * math.log(c / total) for c in counts)


@pytest.mark.parametrize("name", SMALL)
def test_entropy_is_the_enumerated_one(name):
    task = SMALL[name]
    assert entropy(every_row(task)) == pytest.approx(task.entropy, rel=1e-12)
    assert len(task.steps) == every_row(task).shape[1]


@pytest.mark.parametrize("name", [name for name in SMALL if name != "pairs"])
def test_steps_in_turn_cost_the_entropy_in_any_order_within_a_step(name):
    task, rows = SMALL[name], every_row(SMALL[name])
    cost = 0.0
    for i, step in enumerate(task.steps.tolist()):
        before = rows[:, task.steps < step]
        with_it = torch.cat([before, rows[:, i : i + 1]], dim=1)
        cost += entropy(with_it) - entropy(before)  # nothing of the same step is known
    assert cost == pytest.approx(task.entropy, rel=1e-12)


def test_backwards_a_row_cannot_be_written_position_by_position_within_a_step():
    task = SMALL["latents"]
    rows = every_row(task)
    letters = rows[:, task.steps == 1]
    alone = sum(entropy(letters[:, i : i + 1]) for i in range(letters.shape[1]))
    assert alone > entropy(letters) + 0.1  # letters say of each other what the bits would say


def test_rows_are_what_the_words_say():
    for row in sums(digits=3, base=10).rows(50, 0).tolist():
        a, b, total = (int("".join(map(str, part))) for part in (row[:3], row[3:6], row[6:]))
        assert a + b == total and len(row) == 10
    for row in hashes(width=5, blocks=2).rows(50, 0).tolist():
        x, y = row[:5], row[5:]
        assert y == [x[j] ^ ((1 - x[(j + 1) % 5]) & x[(j + 2) % 5]) for j in range(5)]
    for row in pairs().rows(50, 0).tolist():
        assert row[:8] == row[8:]
    rows = latents(latents=3, observations=2, inputs=3).rows(50, 0).tolist()
    for row in rows:  # with three bits there is one set
        assert row[3:] == [2 + (len(set(row[:3])) > 1)] * 2


def test_rows_depend_on_the_seed_and_the_wiring_alone():
    task = latents()
    assert torch.equal(task.rows(20, 3), latents().rows(20, 3))
    assert not torch.equal(task.rows(20, 3), task.rows(20, 4))
    other = latents(wiring=5).rows(20, 3)
    assert torch.equal(task.rows(20, 3)[:, :6], other[:, :6]) and not torch.equal(
        task.rows(20, 3), other
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_script_writes_the_rows_and_says_what_they_cost(tmp_path, capsys, task):
    path = tmp_path / "rows.txt"
    make_rows([task, "--rows", "7", "--seed", "3", "--output", str(path)])
    expected, printed = TASKS[task](), capsys.readouterr().out
    lines = path.read_text().splitlines()
    assert len(lines) == 7 and {len(line) for line in lines} == {len(expected.steps)}
    assert f"{expected.entropy:.4f} nats per row" in printed
    options = parse_options([task, "--output", "x"])
    assert (options.rows, options.seed) == (20000, 1)


@pytest.mark.parametrize("task", TASKS)
def test_the_configuration_of_a_task_is_for_its_rows(task):
    words = ["--config", str(STUDY / f"{task}.yaml"), "--output_dir", "unused"]
    data, model, training = parse_arguments(words)
    assert data.max_length == len(TASKS[task]().steps) and not data.insert_special_tokens
    assert (data.train_file, data.validation_file) == (f"{task}.train.txt", f"{task}.valid.txt")
    assert model.rate_type == "learned" and training.order_search > 0


@pytest.mark.parametrize("system", measure.SYSTEMS)
def test_systems_are_what_their_names_say(system):
    files = [STUDY / "latents.yaml", *(STUDY / "systems" / f for f in measure.SYSTEMS[system])]
    words = [word for file in files for word in ("--config", str(file))]
    _, model, training = parse_arguments([*words, "--output_dir", "unused"])
    assert (training.order_search > 0) == (system == "lomdm")
    assert (model.log_rate_range is not None) == (system == "lomdm")
    assert model.bound == ("time" if system in ("paper", "cut") else "order")
    assert (model.time_range is None) == (system != "cut")
    learned = system in ("lomdm", "no_search", "paper", "cut")
    assert model.rate_type == ("learned" if learned else "uniform")
    assert learned or model.num_views == 2


@pytest.mark.parametrize(
    ("task", "knobs", "message"),
    [
        ("sums", {"width": 3}, "--width is no knob of task sums. Pass digits, base"),
        ("latents", {"latents": 2}, "--inputs must be at most --latents 2, got 3"),
        ("sums", {"base": 99}, "must be 2 to 36, got 99"),
        ("pairs", {"alphabet": 1}, "must be 2 to 36, got 1"),
    ],
)
def test_knobs_out_of_range_are_refused(task, knobs, message):
    with pytest.raises(ValueError, match=message):
        make_task(task, knobs)


def test_tau_is_one_in_the_best_order_and_none_without_one():
    steps = torch.tensor([0, 0, 1, 2])
    right = torch.tensor([[1e9, 1e9, 1e4, 1.0]]).double()
    assert measure.tau_to_best(right, steps) == pytest.approx(1, abs=1e-3)
    assert measure.tau_to_best(1 / right, steps) == pytest.approx(-1, abs=1e-3)
    assert measure.tau_to_best(torch.ones(2, 4), steps) == 0
    # P(0 before 2) = 3/4: of five ordered pairs, two have 2 * 3/4 - 1
    assert measure.tau_to_best(torch.tensor([[3.0, 1, 1, 1]]), steps) == pytest.approx(0.2)
    assert measure.tau_to_best(torch.ones(2, 4), torch.zeros(4)) is None


def test_orders_that_are_given_are_the_best_one_and_the_same_backwards():
    steps = torch.tensor([0.0, 0, 2, 1])
    assert measure.given_order("best", steps, 3.0) == [0, 0, -6, -3]
    assert measure.given_order("backwards", steps, 3.0) == [-6, -6, 0, -3]
    assert measure.given_order("lomdm", steps, 3.0) is None


def test_shares_and_their_table():
    runs = {"mdlm": [1.0, 1.2], "best": [0.6, 0.6], "lomdm": [0.6, 1.1]}
    records = {
        name: [
            {"bound": b, "standard_error": 0.1, "tau": 0.5, "operations": 1e9, "search": None}
            for b in bounds
        ]
        for name, bounds in runs.items()
    }
    found = measure.summary(records, 0.5)
    assert found["lomdm"]["shares"] == pytest.approx([1.0, 0.0])
    assert found["mdlm"]["standard_error"] == pytest.approx(0.1)
    assert found["best"]["above_entropy"] == pytest.approx(0.1)
    assert "1.00 0.00" in measure.table(found)
    assert measure.share_of_prize(1.0, 0.5, 0.5) is None


def test_pictures_show_every_system_and_checkpoint(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(
        picture, "_save", lambda figure, path: figures.append(figure) or path.touch()
    )
    run = {"bound": 0.5, "log_rates_by_step": {"10": [0.0, 1.0], "20": [2.0, -2.0]}}
    system = {"bound": 0.5, "standard_error": 0.01}
    names = ("best", "mdlm", "lomdm")
    record = {
        "task": "sums",
        "entropy": 0.4,
        "systems": dict.fromkeys(names, system),
        "runs": {name: [run, run] for name in names},
    }
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        path.write_text(json.dumps(record))
    outputs = ["--output", str(tmp_path / "p.png"), "--rates", str(tmp_path / "r.png")]
    picture.main([*map(str, paths), *outputs])
    prizes, rates = figures
    assert [axes.get_title() for axes in prizes.axes] == ["a", "b"]
    assert [len(axes.patches) for axes in prizes.axes] == [3, 3]
    lines = {line.get_label(): list(line.get_ydata()) for line in rates.axes[0].lines}
    assert lines == {"step 10": [-0.5, 0.5], "step 20": [2.0, -2.0]}


def test_candidates_are_orders_of_the_row():
    orders = candidate_orders(5)
    assert orders.pop("random") is None
    assert orders["left_to_right"] == sorted(orders["left_to_right"], reverse=True)
    assert orders["right_to_left"] == orders["left_to_right"][::-1]
    assert orders["inside_out"].index(max(orders["inside_out"])) == 2
    assert orders["outside_in"].index(min(orders["outside_in"])) == 2
    assert all(max(order) - min(order) == pytest.approx(6) for order in orders.values())
    assert candidate_orders(1)["left_to_right"] == [0]


def test_an_estimate_by_a_cut_leaves_out_what_lies_behind_it(tmp_path, make_model, monkeypatch):
    monkeypatch.setattr(measure, "CUT_DRAWS", 100)
    texts = torch.tensor([[3, 4, 5], [6, 7, 8]])
    found = {}
    for low in (1e-6, 0.5):
        model = make_model(bound="time", time_range=[low, 1.0])
        model.save_pretrained(tmp_path)
        found[low] = measure.cut_estimate(tmp_path, texts)
    uncut = nelbo(make_model(), texts, num_samples=1000, bound="time").nelbo.mean() / 3
    error = 4 * found[1e-6]["standard_error"] + 0.05
    assert abs(found[1e-6]["value"] - uncut) < error
    assert found[0.5]["value"] < 0.7 * uncut  # u below a half is never drawn
