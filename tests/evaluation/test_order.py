"""What `evaluate_order` says of an order, against enumeration of all orders and against numbers
worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoTokenizer

import oracles
from hf_lomdm.evaluation import order as order_module
from hf_lomdm.evaluation.order import TextMeans, evaluate_order, expected_order, generated_order
from hf_lomdm.evaluation.token_classes import CLASSES, TokenClasses, frequency_deciles
from hf_lomdm.modeling.blocks_lomdm import make_blocks
from tiny_tokenizer import build_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
EXACT = {"rtol": 1e-9, "atol": 1e-10}  # float64, a few hundred operations
# A mean this many standard errors off has probability 6e-5; seeds are fixed.
Z = 4.0
TEXT = [0, 2, 1, 1]


@pytest.fixture
def smallest(make_model):
    def build(**overrides):
        return oracles.vivid(make_model(**{**oracles.SMALLEST, **overrides}), seed=1)

    return build


def kendall(first: list[int]) -> float:
    """tau of positions listed in order of reveal, by counting pairs."""
    pairs = [(i, j) for place, i in enumerate(first) for j in first[place + 1 :]]
    return sum(1 if i < j else -1 for i, j in pairs) / len(pairs)


def measure(model, rows, **options):
    return evaluate_order(model, rows, progress=False, **{"num_generated": 0, **options})


def test_expected_tau_and_ranks_are_those_over_all_plackett_luce_orders():
    rates = torch.tensor([0.1, 1.3, 0.7, 0.4, 0.9], dtype=torch.float64)
    maskable = torch.tensor([True, True, False, True, True])
    places = maskable.nonzero().flatten().tolist()
    tau, ranks = torch.zeros(()), torch.zeros(4, dtype=torch.float64)
    for reveals, probability in oracles.order_probabilities(rates[maskable]):
        tau = tau + probability * kendall(list(reveals))
        ranks[list(reveals)] += probability * torch.arange(4) / 3
    actual = expected_order(rates[None], maskable[None], torch.zeros(1, 5, dtype=torch.int64))
    torch.testing.assert_close(actual[0][0], tau, **EXACT)
    torch.testing.assert_close(actual[1][0, places], ranks, **EXACT)
    assert actual[2][0].tolist() == maskable.tolist()


def test_with_blocks_pairs_and_ranks_are_those_within_a_block():
    rates = torch.tensor([[0.2, 1.0, 3.0, 1.0, 0.5]], dtype=torch.float64)
    index = torch.tensor([[0, 0, 1, 1, 2]])
    tau, ranks, counted = expected_order(rates, torch.ones(1, 5, dtype=torch.bool), index)
    first = [1 / 6, 3 / 4]  # left before right, in either block of two
    assert tau.item() == pytest.approx(np.mean([2 * p - 1 for p in first]))
    assert ranks[0, :4].tolist() == pytest.approx([5 / 6, 1 / 6, 1 / 4, 3 / 4])
    # the last block has one position: no rank
    assert counted.tolist() == [[True, True, True, True, False]]


def test_orders_of_generation_have_the_tau_of_scipy_and_leave_out_ties_given_and_padding():
    order = torch.tensor(
        [[-1, 0, 1, 2, -2, -2], [2, 1, 0, -1, -2, -2], [3, 0, 1, 4, 2, 5], [0, 0, 1, 1, 2, 2]]
    )
    tau, ranks, counted = generated_order(order, torch.zeros(4, 6, dtype=torch.int64))
    assert tau[[0, 1, 3]].tolist() == [1, -1, 1]
    assert tau[2].item() == pytest.approx(stats.kendalltau(range(6), order[2]).statistic)
    assert ranks[0, 1:4].tolist() == [0, 0.5, 1] and ranks[3].tolist() == pytest.approx(
        [0.1, 0.1, 0.5, 0.5, 0.9, 0.9]
    )
    assert counted[0].tolist() == [False, True, True, True, False, False]


@pytest.mark.parametrize(
    ("rate_type", "block_size"),
    [("learned", None), ("learned", 2), ("token", None), ("score", None)],
)
@torch.no_grad()
def test_loss_and_kl_by_reveals_are_unbiased(smallest, rate_type, block_size):
    model, copies = smallest(rate_type=rate_type, block_size=block_size), 300
    record = measure(model, [TEXT] * copies, num_samples=3)
    parts = oracles.block_tables(model, torch.tensor(TEXT))
    assert len(record["by_reveals"]) == (block_size or len(TEXT))
    for k, actual in enumerate(record["by_reveals"]):
        expected = torch.zeros(2, dtype=torch.float64)
        for table in parts:
            law = oracles.prefix_law(table.forward, k)
            for state in law.nonzero().flatten().tolist():
                terms = torch.stack(oracles.order_terms(table, state))
                expected += law[state] * terms / len(parts)
        assert actual["share"] == (k + 0.5) / len(record["by_reveals"])
        for name, value in zip(("main", "velocity"), expected.tolist(), strict=True):
            # the first state is always the same: no error, only rounding
            error = Z * actual[name]["standard_error"] + 1e-9
            assert abs(actual[name]["value"] - value) <= error, (k, name)
    assert record["tokens"] == copies * len(TEXT) and record["n"] == copies


@torch.no_grad()
def test_generated_orders_have_the_exact_expected_tau(smallest):
    """The exact process: position by `v / V`, then its token; tau of each path by counting."""
    model, n = smallest(max_position_embeddings=3), 3
    table = oracles.state_tables(model, n)
    row_of = {tuple(state): row for row, state in enumerate(table.states.tolist())}

    def expected_tau(state, path):
        masked = [i for i in range(n) if state[i] == table.mask]
        if not masked:
            return kendall(path)
        row = row_of[tuple(state)]
        total, value = float(table.reverse[row, masked].sum()), 0.0
        for i in masked:
            for token in range(3):
                chance = (
                    float(table.reverse[row, i]) / total * math.exp(table.log_law[row, i, token])
                )
                value += chance * expected_tau([*state[:i], token, *state[i + 1 :]], [*path, i])
        return value

    tau = measure(model, [[0, 2, 1]], num_samples=1, num_generated=2000)["generated"]["kendall_tau"]
    exact = expected_tau([table.mask] * n, [])
    assert 2 * abs(exact) > 1.5 * Z * tau["standard_error"]  # a wrong sign would be seen
    assert abs(tau["value"] - exact) <= Z * tau["standard_error"] and tau["n"] == 2000


@torch.no_grad()
def test_the_record_holds_ranks_rates_and_correlation_of_the_model(make_model):
    model, text = make_model().double(), torch.tensor([[3, 4, 5]])
    given = torch.tensor([[False, False, True]])
    rows = [{"input_ids": text[0].tolist(), "labels": [3, 4, -100]}] * 2
    record = measure(model, rows, tokenizer=build_tokenizer(), num_samples=2)
    w = model.forward_rates(text, given=given)
    # v: the two samples are both masks and a single one, which has no spread
    out = model(text.where(given, 10))
    _, ranks, _ = expected_order(w, ~given, torch.zeros_like(text))
    expected = pytest.approx(ranks[0, :2].tolist())
    forward, rates = record["forward"], record["rates"]
    assert [rank["value"] for rank in forward["rank_by_position"][:2]] == expected
    assert [
        forward["rank_by_class"][name]["value"] for name in ("word start", "continuation")
    ] == expected
    assert [forward["rank_by_frequency"][tenth]["value"] for tenth in (1, 5)] == expected
    v, confidence = out.rates[0, :2], out.logits.softmax(-1).amax(-1)[0, :2]
    assert rates["v"]["spread"]["value"] == pytest.approx(v.std(correction=0).item())
    assert (
        rates["w"]["maximum"]
        == pytest.approx(w[0, :2].max().item())
        != pytest.approx(rates["v"]["maximum"])
    )
    sign = (v.diff() * confidence.diff()).sign().item()  # two points lie on a line
    assert record["rate_confidence_correlation"]["value"] == pytest.approx(sign)


def test_a_record_does_not_hang_on_batches_and_padding_and_is_json(make_model, monkeypatch):
    model = oracles.vivid(make_model(block_size=4))
    rows = [
        [1, 3, 4, 5, 6, 2],
        [1, 7, 7, 3, 9, 8, 4, 4, 2],
        {"input_ids": [1, 5, 2], "labels": [-100, 5, 2]},
    ]
    options = {"tokenizer": build_tokenizer(), "num_samples": 2, "num_generated": 3}
    together = measure(model, rows, **options)
    monkeypatch.setattr(order_module, "CHUNK_ELEMENTS", 1)  # one text at a time
    alone = measure(model, rows, **options)
    ours = flatten(together)
    assert ours.keys() == flatten(alone).keys() and len(ours) > 100
    differing = {
        key: (value, flatten(alone)[key])
        for key, value in ours.items()
        # a float64 model, but the rates of the histogram are kept in float32
        if value
        != (
            flatten(alone)[key]
            if not isinstance(value, float)
            else pytest.approx(flatten(alone)[key], 1e-6)
        )
    }
    assert differing == {}
    assert (
        together["tokens"] == 17 and json.loads(json.dumps(together, allow_nan=False)) == together
    )


def flatten(value, name=""):
    """Leaves of nested lists and dicts by path; None is left as it is."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else None
    )
    if items is None:
        return {name: value}
    return {
        path: leaf for key, part in items for path, leaf in flatten(part, f"{name}/{key}").items()
    }


def test_the_rounding_of_equal_rates_correlates_with_nothing(make_model):
    model = oracles.vivid(make_model(c1=0.7, c2=0.65), seed=1).float()
    # c1 + c2 (s - mean of s): equal up to the last digits
    torch.nn.init.zeros_(model.psi.out.weight)
    record = measure(
        model, [[3, 4, 5, 6, 7, 8, 9], [9, 3, 9, 4, 5], [4, 6, 8, 5, 3, 7]], num_samples=8
    )
    assert record["rates"]["v"]["maximum"] - record["rates"]["v"]["minimum"] < 1e-6
    assert record["rate_confidence_correlation"]["n"] == 0


def test_uniform_rates_have_tau_zero_no_spread_and_no_correlation(make_model):
    record = measure(make_model(rate_type="uniform"), [[3, 4, 5, 6, 7]] * 2, num_generated=2)
    assert record["value"] == 0 and record["standard_error"] == 0
    assert record["rates"]["w"]["spread"]["value"] == record["rates"]["v"]["spread"]["value"] == 0
    assert record["rate_confidence_correlation"]["value"] is None
    assert {entry["value"] for entry in record["forward"]["rank_by_position"]} == {0.5}


def test_model_is_left_in_its_mode_and_without_tokenizer_there_are_no_classes(make_model):
    model = make_model().train()
    record = measure(model, torch.tensor([[3, 4, 5]]), num_generated=1)
    assert model.training and record["forward"]["rank_by_class"] is None
    assert record["standard_error"] is None  # one text says nothing of others


def test_moments_give_pearson_within_a_block():
    generator = torch.Generator().manual_seed(0)
    v, confidence = torch.rand(2, 1, 7, generator=generator, dtype=torch.float64)
    masked = torch.tensor([[True, True, False, True, True, True, True]])
    blocks = make_blocks(torch.arange(7)[None], 4)
    product, a, b = order_module._moments(v, confidence, masked, blocks)[:, 0]
    first, second = [0, 1, 3], [4, 5, 6]
    centred = [
        torch.cat([x[0, part] - x[0, part].mean() for part in (first, second)])
        for x in (v, confidence)
    ]
    expected = stats.pearsonr(*(x.numpy() for x in centred)).statistic
    assert float(product / (a * b).sqrt()) == pytest.approx(expected)


def test_errors_are_between_texts_however_many_values_a_text_has():
    values = torch.tensor([1.0, 4.0, 2.5, 7.0])
    once, often = TextMeans(1), TextMeans(1)
    once.add(
        values[:, None], torch.zeros(4, 1, dtype=torch.int64), torch.ones(4, 1, dtype=torch.bool)
    )
    often.add(
        values[:, None].expand(-1, 9),
        torch.zeros(4, 9, dtype=torch.int64),
        torch.ones(4, 9, dtype=torch.bool),
    )
    mean, error = values.mean().item(), values.std().item() / 2
    for means in (once, often):
        assert means.estimates() == [
            {"value": pytest.approx(mean), "standard_error": pytest.approx(error), "n": 4}
        ]


def test_error_bars_of_groups_cover_the_truth_about_as_often_as_they_say():
    """Texts with their own level and number of values; 300 repetitions, 95 % +- 4 standard
    deviations of a binomial."""
    generator, hits = np.random.default_rng(0), 0
    for _ in range(300):
        level, means = torch.from_numpy(generator.normal(0, 1, (60, 1))), TextMeans(2)
        values = level + torch.from_numpy(generator.normal(0, 1, (60, 5)))
        counted = torch.from_numpy(generator.random((60, 5)) < 0.6)
        means.add(values, torch.ones(60, 5, dtype=torch.int64), counted)
        empty, full = means.estimates()
        assert empty == {"value": None, "standard_error": None, "n": 0}
        hits += abs(full["value"]) < 1.96 * full["standard_error"]
    assert 0.95 - 4 * math.sqrt(0.95 * 0.05 / 300) < hits / 300


def classes_of(tokenizer, text, ids=None):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if ids is None else ids
    size = max(tokenizer.get_vocab().values()) + 1
    actual = TokenClasses(tokenizer, size)(torch.tensor([ids]))[0].tolist()
    return [
        (tokenizer.convert_ids_to_tokens(index), CLASSES[kind])
        for index, kind in zip(ids, actual, strict=True)
    ]


def test_classes_of_word_pieces():
    tokenizer = AutoTokenizer.from_pretrained(FIXTURES / "bert_tokenizer")
    pieces = [
        piece for piece in tokenizer.get_vocab() if piece.startswith("##") and piece[2:].isalpha()
    ]
    word = next(piece for piece in tokenizer.get_vocab() if piece.isalpha() and piece.isascii())
    ids = tokenizer.convert_tokens_to_ids([tokenizer.cls_token, word, pieces[0], ".", word, word])
    actual = [kind for _, kind in classes_of(tokenizer, "", ids)]
    assert actual == [
        "special",
        "word start",
        "continuation",
        "punctuation",
        "word start",
        "word start",
    ]


def test_classes_of_byte_level_pieces():
    tokenizer = AutoTokenizer.from_pretrained(FIXTURES / "gpt2_tokenizer")
    actual = classes_of(tokenizer, "Ab, 12\nc é")
    letters = "".join(kind[0] for _, kind in actual)
    text = [token for token, _ in actual]
    assert (
        actual[0][1] == "word start" and (",", "punctuation") in actual and ("Ċ", "space") in actual
    )
    assert dict(actual)[next(token for token in text if "1" in token)] == "digit", letters
    assert actual[text.index("Ċ") + 1][1] == "word start"


def test_classes_of_characters_and_ids_that_the_tokenizer_does_not_know():
    tokenizer = build_tokenizer()
    ids = torch.tensor([[1, 3, 4, 2, 5, 12]])
    actual = [CLASSES[kind] for kind in TokenClasses(tokenizer, 13)(ids)[0].tolist()]
    assert actual == ["special", "word start", "continuation", "special", "word start", "other"]


def test_frequency_deciles_split_the_positions_evenly():
    ids = torch.arange(100).repeat(3)
    assert torch.bincount(frequency_deciles(ids, 101)[ids]).tolist() == [30] * 10
    ids = torch.tensor([4] * 90 + list(range(5, 15)))
    assert frequency_deciles(ids, 16)[[4, 5, 0]].tolist() == [5, 0, 0]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "rows must be texts"),
        ([[3], []], {}, "rows must be texts"),
        ([[3, 4]], {"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ([[3, 4]], {"num_generated": -1}, "num_generated must be at least 0, got -1"),
        ([[3, 10]], {}, "mask token"),
        ([{"input_ids": [3, 4], "labels": [-100, -100]}], {}, "1 rows hold no token to count"),
    ],
)
def test_unusable_input_is_refused(make_model, rows, options, message):
    with pytest.raises(ValueError, match=message):
        measure(make_model(), rows, **options)


def test_a_model_without_rates_is_refused():
    with pytest.raises(ValueError, match="Linear, which has no rates"):
        measure(torch.nn.Linear(1, 1), [[3, 4]])
