"""Templates of SMILES: what is given, what is free, and what a pipeline makes of them."""

import pytest
import torch

from conftest import build_model
from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.data.molecules import smiles_template
from hf_lomdm.data.tokenizers import special_token_ids, train_tokenizer


@pytest.fixture
def tokenizer():
    return train_tokenizer("char", ["CNO()=1"])


def test_windows_lie_between_what_is_given_and_end_nowhere(tokenizer):
    row, allowed = smiles_template(["CC(", 2, ")", 1], tokenizer, 10)
    mask, eos = tokenizer.mask_token_id, tokenizer.eos_token_id
    given = tokenizer("CC()")["input_ids"]
    assert row == [*given[:3], mask, mask, given[3], mask, eos, eos, eos]
    assert allowed.keys() == {3, 4, 6}
    assert tokenizer.convert_ids_to_tokens(allowed[3]) == sorted("CNO()=1")


def test_an_open_end_is_left_to_the_model(tokenizer):
    row, allowed = smiles_template(["C"], tokenizer, 4, ends=False)
    assert row[1:] == [tokenizer.mask_token_id] * 3 and allowed == {}


def test_a_pipeline_fills_the_windows_alone(tokenizer):
    ids = special_token_ids(tokenizer) | {"bos_token_id": None}
    model = build_model(max_position_embeddings=10, **ids)
    pipe = LoMDMPipeline(model, LoMDMScheduler(model.config.mask_token_id), tokenizer)
    templates = [smiles_template(["CC(", n, ")O"], tokenizer, 10) for n in (1, 2, 4)]
    rows, allowed = map(list, zip(*templates, strict=True))
    generator = torch.Generator().manual_seed(0)
    texts = pipe(rows, allowed_tokens=allowed, generator=generator).texts
    assert [len(text) for text in texts] == [6, 7, 9]
    assert all(text.startswith("CC(") and text.endswith(")O") for text in texts)


@pytest.mark.parametrize(
    "parts, ends, message",
    [
        (["C", 0], True, "lengths of windows of at least 1, got 0"),
        (["C", 2.0], True, "got 2.0"),
        (["CCl", 1], True, "does not know all characters of"),
        (["C" * 9, 2], True, "have 11 characters, 2 of them to fill in, and a row has 10"),
        (["CC"], True, "have 2 characters, 0 of them to fill in"),
        (["C" * 10], False, "have 10 characters, 0 of them"),
    ],
)
def test_templates_that_cannot_be_filled_are_refused(tokenizer, parts, ends, message):
    with pytest.raises(ValueError, match=message):
        smiles_template(parts, tokenizer, 10, ends)
