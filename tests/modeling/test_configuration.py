"""Every field of the configuration has a type and a range, whoever sets it: a call, a
`config.json`, an assignment."""

import json
import math

import numpy
import pytest
import torch

from conftest import TINY
from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion
from hf_lomdm.modeling.fields_lomdm import Number

WRONG = (
    "3",
    [3],
    {"a": 3},
    True,
    math.nan,
    math.inf,
    -math.inf,
    -1,
    10**400,
    numpy.int64(3),
    numpy.float32(3),
    object,
)
DERIVED = ("intermediate_size", "initializer_range", "max_position_embeddings")  # None is computed


def make(**fields) -> LoMDMConfig:
    return LoMDMConfig(**{**TINY, **fields})


@pytest.mark.parametrize(
    "name", [name for name, allowed in LoMDMConfig.allowed.items() if isinstance(allowed, Number)]
)
def test_every_number_has_a_type_and_a_range(name):
    allowed = LoMDMConfig.allowed[name]
    outside = [allowed.low - 1, allowed.high * 2]
    outside += [
        end
        for end, bracket in zip((allowed.low, allowed.high), allowed.ends, strict=True)
        if bracket in "()"
    ]
    fractions = [2.0, 2.5] if allowed.kind is int else []
    for value in (
        *WRONG,
        *outside,
        *fractions,
        *([] if allowed.optional or name in DERIVED else [None]),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be ") as error:
            make(**{name: value})
        assert "\n" not in str(error.value) and str(allowed) in str(error.value)
        with pytest.raises(ValueError, match=f"^{name} must be "):
            setattr(make(), name, value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id2label": {str(i): "x" for i in range(2**16 + 1)}}, "id2label must map at most 65536"),
        ({"id2label": {"1": "a", "01": "b"}}, "id2label must map .* different whole numbers"),
        ({"id2label": {"a": "b"}}, "id2label must map"),
        ({"id2label": ["a"]}, "id2label must map"),
        ({"label2id": 4}, "label2id must be dict | None"),
        ({"dtype": "load"}, "dtype must name a type of torch"),  # torch.load is something else
        ({"dtype": 5}, "dtype must be"),
        ({"torch_dtype": "x"}, "dtype must name a type of torch"),
        ({"return_dict": "no"}, "return_dict must be one of"),
        ({"output_hidden_states": 1}, "output_hidden_states must be one of"),
        ({"output_attentions": "yes"}, "output_attentions must be one of"),
        ({"output_attentions": True, "attn_implementation": "sdpa"}, "output_attentions"),
        ({"attn_implementation": 5}, "attn_implementation must be"),
        ({"problem_type": "guess"}, "problem_type must be one of"),
        ({"architectures": "x"}, "architectures must be list"),
        ({"auto_map": 3}, "auto_map must be dict"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be one of"),
        ({"rate_type": ["learned"]}, "rate_type must be one of"),
        ({"per_layer_config": {"0": {"hidden_size": 4}}}, "per_layer_config must be"),
        ({"layer_types": 5}, "a value that transformers refuses"),
        ({"bound": "time", "time_range": ["a", 1.0]}, "time_range must be"),
        ({"bound": "time", "time_range": [math.nan, 1.0]}, "time_range must be"),
        ({"to_dict": 3}, "'to_dict' is part of the class"),
        ({"__dict__": {}}, "'__dict__' is part of the class"),
        ({"attribute_map": {"c1": "c2"}}, "'attribute_map' is part of the class"),
        ({"allowed": {}}, "'allowed' is part of the class"),
    ],
)
def test_what_transformers_would_take_or_trip_over_is_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        make(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "cannot be read: maximum recursion depth"),
        ('{"a": ' * 3000 + "1" + "}" * 3000, "cannot be read: maximum recursion depth"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "cannot be read: Exceeds the limit"),
        ('{"hidden_size": ' + "9" * 3000 + "}", "hidden_size must be .* got 9966 bits"),
        ("[1]", "cannot be read: it holds a list"),
        ("null", "cannot be read"),
        ('{"c1": NaN}', "c1 must be .* got nan"),
        ('{"c1": {"__float__": "Infinity"}}', "c1 must be .* got inf"),
    ],
    ids=range(8),
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        LoMDMConfig.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_fields_that_are_unknown_and_files_of_earlier_versions_are_kept(tmp_path):
    config = make(from_elsewhere=[1])
    config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["num_views"], content["time_range"]  # as versions wrote that had neither
    (tmp_path / "config.json").write_text(json.dumps(content))
    reloaded, unused = LoMDMConfig.from_pretrained(
        tmp_path, c1=0.8, dropout=0, colour="red", return_unused_kwargs=True
    )
    assert (
        reloaded.from_elsewhere == [1]
        and reloaded.c1 == 0.8
        and reloaded.dropout == 0
        and unused["colour"] == "red"
    )
    with pytest.raises(ValueError, match="c1 must be"):
        LoMDMConfig.from_pretrained(tmp_path, c1="0.8")


def test_fields_that_are_set_one_by_one_are_checked_together_when_a_model_is_made():
    config = make()
    config.c2 = 0.9
    with pytest.raises(ValueError, match="c1 > c2 >= 0 is needed"):
        LoMDMForMaskedDiffusion(config)


def test_a_block_may_be_longer_than_all_texts(make_model):
    ids = torch.arange(3, 9)[None]
    quantiles, seed = torch.tensor([0.4]), 3
    losses = [
        make_model(rate_type="uniform", block_size=size)(
            ids, labels=ids, quantiles=quantiles, generator=torch.Generator().manual_seed(seed)
        ).loss
        for size in (6, 2**24)
    ]
    assert torch.equal(*losses)
