"""The search tries each order alone from the same start, keeps the better half, and goes on with
the winner's copy; only a clear winner becomes the order of the model."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from test_train_script import ROOT, SMALL
from tiny_training import make_texts, make_trainer

from conftest import build_model
from hf_lomdm import LoMDMConfig
from hf_lomdm.training import order_search
from hf_lomdm.training.order_search import candidate_orders, search_order
from hf_lomdm.training.parsing import parse_arguments
from hf_lomdm.training.trainer import LoMDMTrainer

LENGTH = 12  # of the rows of `make_texts`


class Judge:
    """Stands for `evaluate_corpus`: bounds by order and number of rounds, and what it was shown."""

    def __init__(self, bounds, spread=0.0):
        self.bounds, self.spread, self.seen = bounds, spread, []

    def __call__(self, model, rows, **options):
        orders = candidate_orders(LENGTH)
        (name,) = [n for n, order in orders.items() if order == model.config.position_log_rates]
        tries = sum(seen == name for seen, _ in self.seen)
        self.seen.append((name, {k: v.clone() for k, v in model.state_dict().items()}))
        bound = self.bounds[name][tries]
        # alternately above and below: the mean is the bound
        noise = [0.0] * 6 if name == "random" else [self.spread, -self.spread] * 3
        return {
            "value": bound,
            "rows": len(rows),
            "groups": None,
            "per_text": {
                "tokens": [LENGTH] * 6,
                "main": [LENGTH * (bound + extra) for extra in noise],
                "velocity": [0.0] * 6,
            },
        }


BOUNDS = {  # by round: right to left looks best at first, and is overtaken
    "random": [1.0, 0.98],
    "left_to_right": [0.95, 0.5],
    "right_to_left": [0.9, 0.88],
    "inside_out": [0.99],
    "outside_in": [0.98],
}


def real_trainer(log_rates, args):
    settings = {"max_position_embeddings": LENGTH, "rate_type": "uniform"}
    model = build_model(**settings, position_log_rates=log_rates)
    trainer = make_trainer(args.output_dir, model=model)
    texts = {"train_dataset": make_texts(), "eval_dataset": make_texts(count=6, seed=1)}
    return LoMDMTrainer(model=model, args=args, data_collator=trainer.data_collator, **texts)


def idle_trainer(log_rates, args):
    """One that has a model and does not train it."""
    model = SimpleNamespace(
        config=SimpleNamespace(position_log_rates=log_rates), state_dict=lambda: {}
    )
    accelerator = SimpleNamespace(unwrap_model=lambda model: model)
    return SimpleNamespace(
        model=model, accelerator=accelerator, eval_dataset=[0] * 6, train=lambda _: None
    )


@pytest.fixture
def search(tmp_path, monkeypatch):
    """A search with a judge; returns what was found and the judge."""

    def search(bounds=BOUNDS, spread=0.0, trainer=idle_trainer):
        judge = Judge(bounds, spread)
        monkeypatch.setattr(order_search, "evaluate_corpus", judge)
        args = make_trainer(tmp_path, order_search=2).args
        return search_order(trainer, args, LENGTH), judge

    return search


def test_the_better_half_goes_on_and_the_winner_is_the_best_at_the_end(search, tmp_path):
    found, judge = search()
    orders = [name for name, _ in judge.seen]
    assert sorted(orders[:5]) == sorted(candidate_orders(LENGTH))
    assert sorted(orders[5:]) == ["left_to_right", "random", "right_to_left"]
    assert found.name == "left_to_right"
    assert found.log_rates == candidate_orders(LENGTH)["left_to_right"]
    record = json.loads((tmp_path / "order_search.json").read_text())
    assert record["winner"] == "left_to_right"
    assert [tried["steps"] for tried in record["rounds"]] == [2, 4]
    last = record["rounds"][-1]["bounds"]["left_to_right"]
    assert last["minus_random"] == pytest.approx(0.5 - 0.98)


def test_copies_train_alone_in_rounds_as_in_one_go_and_the_winner_is_kept(search):
    trainers = []

    def make(log_rates, args):
        trainers.append(real_trainer(log_rates, args))
        return trainers[-1]

    found, judge = search(trainer=make)
    assert {trainer.num_steps_trained for trainer in trainers} == {2}  # of each, in each round
    assert found.checkpoint.name == "checkpoint-4"
    weights = load_file(found.checkpoint / "model.safetensors")
    first, last = [state for name, state in judge.seen if name == "left_to_right"]
    assert all(torch.equal(weights[key], last[key]) for key in weights)
    # started again it takes no step, and judges what it judged before
    trainers.clear()
    _, judge = search(trainer=make)
    assert {trainer.num_steps_trained for trainer in trainers} == {0}
    states = [state for name, state in judge.seen if name == "left_to_right"]
    for state, before in zip(states, (first, last), strict=True):
        assert all(torch.equal(state[key], before[key]) for key in state)
    # rounds neither restart nor skip
    order = {"position_log_rates": found.log_rates, "rate_type": "uniform"}
    model = build_model(max_position_embeddings=LENGTH, **order)
    settings = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 1, "ema_decay": 0.0}
    trainer = make_trainer(
        found.checkpoint.parents[2] / "alone", model=model, max_steps=4, **settings
    )
    trainer.train()
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, weights[key]), key


@pytest.mark.parametrize("spread, clear", [(0.1, True), (2.0, False)])
def test_an_order_wins_only_if_it_is_clearly_better_than_none(search, spread, clear):
    found, _ = search(spread=spread)
    assert (found.name == "left_to_right") == clear
    assert (found.log_rates is None) != clear
    assert found.checkpoint.parent.name == found.name


def test_no_order_is_better_than_a_worse_one(search):
    worse = {name: [bound + (name != "random") for bound in b] for name, b in BOUNDS.items()}
    found, _ = search(worse)
    assert found.name == "random" and found.log_rates is None


def search_on(search, random, left_to_right, **options):
    """A search whose third round and those behind it are of these two bounds by round."""
    later = {"random": [1.0, 0.98, *random], "left_to_right": [0.5, 0.5, *left_to_right]}
    found, judge = search({**BOUNDS, "right_to_left": [0.6, 0.6], **later}, **options)
    return found.name, len([name for name, _ in judge.seen if name == "random"])


def test_an_order_that_is_only_learned_sooner_does_not_win(search):
    # of a lead of 0.5, then 0.48, then 0.3, the random order makes up the rest in the fourth round
    assert search_on(search, [0.8, 0.5], [0.5, 0.5]) == ("random", 4)
    # a lead that stays wins as soon as it stays
    assert search_on(search, [0.8, 0.81], [0.5, 0.5]) == ("left_to_right", 4)


def test_a_lead_that_shrinks_within_its_error_has_not_shrunk(search):
    assert search_on(search, [], [], spread=0.05) == ("left_to_right", 2)


def train_words(tmp_path, *words):
    text = tmp_path / "rows.txt"
    if not text.exists():
        generator = torch.Generator().manual_seed(0)
        half = torch.randint(0, 4, (64, 8), generator=generator)
        rows = torch.cat([half, half], 1).tolist()
        text.write_text("\n".join("".join(map(str, row)) for row in rows) + "\n")
    settings = SMALL | {
        "train_file": text,
        "validation_file": text,
        "sample_by": "line",
        "train_tokenizer": "char",
        "insert_special_tokens": "false",
        "packing": "false",
        "max_train_rows": 64,
        "order_search": 2,
        "max_steps": 3,
        "output_dir": tmp_path / "run",
    }
    options = [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
    return subprocess.run(
        [sys.executable, str(ROOT / "training_scripts" / "train.py"), *options, *words],
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_script_searches_trains_on_and_resumes_with_what_was_found(tmp_path):
    first = train_words(tmp_path)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "run"
    winner = json.loads((folder / "order_search.json").read_text())["winner"]
    expected = candidate_orders(16)[winner]
    assert LoMDMConfig.from_pretrained(folder).position_log_rates == expected
    (folder / "order_search.json").unlink()
    again = train_words(tmp_path, "--max_steps", "5")
    assert again.returncode == 0, again.stderr
    assert not (folder / "order_search.json").exists()  # it did not search again
    assert LoMDMConfig.from_pretrained(folder).position_log_rates == expected


@pytest.mark.slow
def test_a_given_order_is_trained_in(tmp_path):
    order = [str(-i / 2) for i in range(16)]
    done = train_words(tmp_path, "--order_search", "0", "--position_log_rates", *order)
    assert done.returncode == 0, done.stderr
    config = LoMDMConfig.from_pretrained(tmp_path / "run")
    assert config.position_log_rates == [-i / 2 for i in range(16)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--block_size", "4"), "order_search=2 has no effect with block_size"),
        (("--rate_type", "token"), "order_search=2 has no effect with a rate_type that takes"),
        (
            ("--objective", "ar", "--eval_num_samples", "2"),
            "order_search=2 has no effect with objective ar",
        ),
        (("--position_log_rates", "1", "2"), "order_search=2 has no effect with position_log"),
        (("--order_search", "-1"), "order_search must be a whole number, at least 0, got -1"),
    ],
)
def test_a_search_that_could_find_nothing_is_refused(tmp_path, words, message):
    line = ["--train_file", "rows.txt", "--train_tokenizer", "char", "--order_search", "2"]
    line += ["--output_dir", str(tmp_path), *words]
    with pytest.raises(ValueError, match=message):
        parse_arguments(line)
