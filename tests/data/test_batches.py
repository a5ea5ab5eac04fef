"""Batches: padding, labels of given positions, rows of similar length together."""

import numpy as np
import pytest
import torch

from hf_lomdm.data.batches import LoMDMDataCollator, Text, batches_by_length, collate


def test_collator_pads_on_the_right_and_labels_padding():
    rows = [{"input_ids": np.array([5, 6, 7])}, {"input_ids": [8, 9, 10, 11, 12]}]
    batch = LoMDMDataCollator(pad_token_id=3, max_length=5)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 3, 3], [8, 9, 10, 11, 12]]
    assert batch["labels"].tolist() == [[5, 6, 7, -100, -100], [8, 9, 10, 11, 12]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_collator_gives_no_mask_when_nothing_is_padded_even_if_a_text_has_the_padding_id():
    batch = LoMDMDataCollator(pad_token_id=3, max_length=3)(
        [{"input_ids": [5, 3, 3]}, {"input_ids": [1, 2, 4]}]
    )
    assert sorted(batch) == ["input_ids", "labels"]
    assert batch["labels"].tolist() == [[5, 3, 3], [1, 2, 4]]


def test_collator_keeps_given_positions():
    batch = LoMDMDataCollator(pad_token_id=0, max_length=4)(
        [{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}]
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 7, -100]]


def test_collator_refuses_rows_that_are_too_long():
    with pytest.raises(ValueError, match="row of 3 tokens is longer than max_length 2"):
        LoMDMDataCollator(pad_token_id=0, max_length=2)([{"input_ids": [5, 6, 7]}])


def test_collated_batches_train_the_model(make_model):
    collator = LoMDMDataCollator(pad_token_id=0, max_length=6)
    padded = collator([{"input_ids": [1, 5, 2]}, {"input_ids": [1, 5, 6, 7, 8, 2]}])
    full = collator([{"input_ids": [1, 5, 6, 7, 8, 2]}])
    for batch in (padded, full):
        assert torch.isfinite(make_model()(**batch).loss)


def test_a_batch_of_evaluation_is_as_long_as_its_longest_text_and_padded_by_tokens_of_the_texts():
    texts = [Text(np.array([5, 6, 7]), np.array([-100, 6, 7])), Text(np.array([8]), np.array([8]))]
    batch = collate(texts, torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 8, 8]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert sorted(collate(texts[:1], torch.device("cpu"))) == ["input_ids", "labels"]


def test_batches_hold_similar_lengths_and_no_more_tokens_than_asked_for():
    texts = [Text([0] * length, [0] * length) for length in (3, 9, 1, 8, 3, 20, 2)]
    batches = batches_by_length(texts, range(7), batch_tokens=18)
    assert batches == [[5], [1, 3], [0, 4, 6, 2]]
    assert batches_by_length(texts, [2, 0], batch_tokens=1) == [[0], [2]]
