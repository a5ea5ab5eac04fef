"""What is counted: tokens that are dropped or unknown, over all documents and batches, and entries
of a vocabulary."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_lomdm.data import rows as data
from hf_lomdm.data.rows import RowCounts, token_batches, truncate_documents
from hf_lomdm.data.sudoku import sudoku_tokenizer
from hf_lomdm.data.tokenizers import special_token_ids

SPECIAL = {"pad": 0, "bos": 1, "eos": 2, "mask": 3, "unk": 4}


def build_tokenizer(**words: int) -> PreTrainedTokenizerFast:
    """Words with these ids, between blanks, and five special tokens."""
    vocabulary = {f"[{name}]": index for name, index in SPECIAL.items()} | words
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": f"[{name}]" for name in SPECIAL}
    )


@pytest.mark.parametrize(
    "characters", [1, 4, 1 << 20], ids=["a document a batch", "two a batch", "one batch"]
)
def test_unknown_tokens_of_all_batches_are_counted(monkeypatch, characters):
    monkeypatch.setattr(data, "BATCH_CHARACTERS", characters)
    counts = RowCounts()
    batches = list(token_batches(["a x", "y a", "a a", "x"], build_tokenizer(a=5), counts))
    assert (counts.documents, counts.unknown) == (4, 3)
    assert [ids.tolist() for batch in batches for ids, _ in batch] == [[5, 4], [4, 5], [5, 5], [4]]


def test_letters_that_become_no_token_are_unknown():
    counts = RowCounts()
    batches = list(token_batches(["1x 2", "日日4"], sudoku_tokenizer(), counts))
    assert [ids.tolist() for batch in batches for ids, _ in batch] == [[1, 2], [4]]
    assert (counts.unknown, counts.encoded) == (3, 6)


def test_dropped_tokens_of_all_cut_documents_are_counted():
    counts, ids = RowCounts(), np.arange(10, dtype=np.int32)
    # documents of 12, 3 and 7 tokens
    pieces = [[(ids, False), (ids[:2], True), (ids[:3], True)], [(ids[:7], True)]]
    rows = [
        row.tolist() for block in truncate_documents(pieces, 7, (1, 2), counts) for row in block
    ]
    assert rows == [[1, 0, 1, 2, 3, 4, 2], [1, 0, 1, 2, 2], [1, 0, 1, 2, 3, 4, 2]]
    assert counts.dropped == 7 + 0 + 2


def test_the_vocabulary_reaches_its_last_id_whatever_gaps_it_has():
    tokenizer = build_tokenizer(a=5, b=11)
    assert len(tokenizer) == 7
    assert special_token_ids(tokenizer)["vocab_size"] == 12
