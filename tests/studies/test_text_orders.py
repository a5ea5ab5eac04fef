"""What texts cost in other orders: each order against its definition, and the probabilities of all
texts."""

import itertools
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "studies" / "word_orders"))

from text_orders import ORDERS, State, cost_in_order, distance_to_known, main  # noqa: E402

CHECKPOINT = str(ROOT / "checkpoints" / "lomdm-enwiki")


@pytest.fixture
def text(tmp_path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(
        "The city of London is the capital of England, and the river Thames runs through it. " * 12
    )
    return str(path)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.rounding
@pytest.mark.parametrize("order", ["left_to_right", "right_to_left", "certain", "uncertain"])
def test_probabilities_of_all_texts_sum_to_one_in_an_order_that_is_fixed(make_model, order):
    texts = torch.tensor(list(itertools.product(range(10), repeat=3)))
    log_p = -cost_in_order(make_model().eval().double(), texts, order, draw()).sum(1)
    torch.testing.assert_close(
        log_p.exp().sum(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-9, atol=0
    )


@torch.no_grad()
def test_costs_are_those_of_the_states_before_each_reveal(make_model):
    model, texts = make_model().eval(), torch.tensor([[3, 4, 5], [6, 7, 8]])
    cost = cost_in_order(model, texts, "left_to_right", draw())
    for place in range(3):
        state = texts.clone()
        state[:, place:] = model.config.mask_token_id
        law = model(state).logits[:, place].log_softmax(-1)
        torch.testing.assert_close(
            cost[:, place].float(), -law.gather(1, texts[:, place, None])[:, 0]
        )
    backwards = cost_in_order(model, texts, "right_to_left", draw())
    law = model(torch.full_like(texts, model.config.mask_token_id)).logits[:, 2].log_softmax(-1)
    torch.testing.assert_close(backwards[:, 0].float(), -law.gather(1, texts[:, 2, None])[:, 0])


def test_orders_prefer_what_their_names_say():
    masked = torch.tensor([[True, False, True, True, True, False]])
    entropy, noise = (
        torch.tensor([[0.5, 9.0, 0.1, 2.0, 0.7, 9.0]]),
        torch.full((1, 6), 0.5, dtype=torch.float64),
    )
    state = State(masked, entropy, torch.ones(1, 6), noise, masked)
    first = {
        name: prefer(state).masked_fill(~masked, -torch.inf) for name, prefer in ORDERS.items()
    }
    fixed = ("left_to_right", "right_to_left", "certain", "uncertain")
    assert [first[name].argmax(-1).item() for name in fixed] == [0, 4, 2, 3]
    # rounding moves no choice
    nearly = State(masked, entropy + 1e-6 * torch.arange(6).flip(0), *state[2:])
    tied = State(
        masked, torch.where(masked, 2 + 1e-6 * torch.arange(6).flip(0), entropy), *state[2:]
    )
    for name, place, first_of_all in (("certain", 2, 0), ("uncertain", 3, 0)):
        assert ORDERS[name](nearly).masked_fill(~masked, -torch.inf).argmax(-1).item() == place
        assert ORDERS[name](tied).masked_fill(~masked, -torch.inf).argmax(-1).item() == first_of_all
    assert (
        first["near"][0, [0, 2, 4]].unique().numel() == 1
        and first["near"][0, 0] > first["near"][0, 3]
    )
    assert first["far"].argmax(-1).item() == 3
    assert distance_to_known(masked).tolist() == [[1.0, 0.0, 1.0, 2.0, 1.0, 0.0]]
    assert distance_to_known(torch.ones(1, 2, dtype=torch.bool)).isinf().all()


def test_where_nothing_is_known_near_and_far_start_anywhere():
    noise = torch.rand(60, 6, generator=draw(), dtype=torch.float64)
    state = State(
        torch.ones(60, 6, dtype=torch.bool), torch.zeros(60, 6), torch.ones(60, 6), noise, noise
    )
    for order in ("near", "far", "random"):
        assert set(ORDERS[order](state).argmax(-1).tolist()) == set(range(6))


def test_the_learned_order_draws_with_the_rates():
    rates = torch.tensor([0.2, 0.5, 1.3]).expand(20000, 3)
    noise = torch.rand(rates.shape, generator=draw(), dtype=torch.float64)
    state = State(
        torch.ones(rates.shape, dtype=torch.bool), torch.zeros(rates.shape), rates, noise, noise
    )
    shares = ORDERS["learned"](state).argmax(-1).bincount() / len(rates)
    torch.testing.assert_close(shares, rates[0] / 2, atol=0.015, rtol=0)  # 4 standard errors


def test_the_script_measures_each_order_on_whole_rows(text, tmp_path, capsys):
    output = tmp_path / "found.json"
    words = ["--model", CHECKPOINT, "--file", text, "--output", str(output)]
    main([*words, "--max_rows", "3", "--orders", "left_to_right", "certain"])
    record = json.loads(output.read_text())
    first, second = record["orders"]["left_to_right"], record["orders"]["certain"]
    assert record["n"] == 3 and first["minus_first"] == {"value": 0.0, "standard_error": 0.0}
    assert second["minus_first"]["value"] == pytest.approx(
        second["value"] - first["value"], abs=1e-6
    )
    assert sum(first["by_quarter"]) / 4 == pytest.approx(first["value"], abs=1e-4)
    assert "minus left_to_right" in capsys.readouterr().out
    with pytest.raises(
        SystemExit, match="is the record of something else: its max_rows is 3, not 2"
    ):
        main([*words, "--max_rows", "2"])
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--max_rows", "1"])
    assert "argument --max_rows: must be a whole number of at least 2" in capsys.readouterr().err
    (tmp_path / "short.txt").write_text("The city")
    with pytest.raises(SystemExit, match="must give 2 rows of 64 tokens"):
        main(
            [
                *words,
                "--file",
                str(tmp_path / "short.txt"),
                "--output",
                str(tmp_path / "other.json"),
            ]
        )


def test_a_truncated_checkpoint_is_an_error_of_one_line(make_model, tmp_path, text):
    make_model().save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SystemExit, match="error: .*incomplete"):
        main(["--model", str(tmp_path / "model"), "--file", text])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"block_size": 4}, "writes block after block"),
        ({"rate_type": "uniform"}, "learned needs learned rates"),
    ],
)
def test_models_that_have_no_such_order_are_refused(make_model, tmp_path, text, settings, message):
    make_model(**settings).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match=message):
        main(["--model", str(tmp_path / "model"), "--file", text, "--orders", "learned"])
