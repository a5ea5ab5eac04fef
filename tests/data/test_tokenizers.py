"""Tokenizers made from text, and existing ones completed for masked diffusion."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertTokenizer

from hf_lomdm.data.tokenizers import (
    SPECIAL_TOKENS,
    encode_texts,
    load_tokenizer,
    special_token_ids,
    train_tokenizer,
)
from tiny_tokenizer import build_word_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
TEXTS = [
    "It was a dark night ; the rain fell .",
    "Two  blanks,\ttabs\nand lines – “quotes” and ½ 🙂.",
    "[MASK] in text",
]
AWKWARD = " leading  and trailing \n\n don 't [EOS] naïve 🙂 , ok ? "


@pytest.mark.parametrize("kind", ["bpe:300", "byte", "char"])
@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_encoded_text_back(kind, text):
    tokenizer = train_tokenizer(kind, TEXTS)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(plain) == text
    assert not set(plain) & {
        tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS.values()
    }


@pytest.mark.parametrize("kind", ["bpe:300", "byte"])
def test_byte_level_kinds_decode_text_they_have_never_seen(kind):
    tokenizer = train_tokenizer(kind, TEXTS[:1])
    ids = tokenizer(AWKWARD, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == AWKWARD
    assert tokenizer.unk_token_id not in ids


def test_char_has_one_token_per_character_and_unk_for_others():
    tokenizer = train_tokenizer("char", ["banana ", "nab"])
    assert len(tokenizer) == len(SPECIAL_TOKENS) + len("abn ")
    ids = tokenizer("ban x", add_special_tokens=False)["input_ids"]
    assert [tokenizer.convert_ids_to_tokens(index) for index in ids] == [
        "b",
        "a",
        "n",
        " ",
        "[UNK]",
    ]


@pytest.mark.parametrize("kind, size", [("byte", 261), ("bpe:290", 290)])
def test_vocabulary_has_the_asked_for_size(kind, size):
    texts = ["the rain in spain stays mainly in the plain and the train is late again " * 3]
    tokenizer = train_tokenizer(kind, texts)
    assert special_token_ids(tokenizer)["vocab_size"] == len(tokenizer) == size


@pytest.mark.parametrize("kind", ["bpe:300", "byte", "char"])
def test_special_tokens_have_distinct_ids_and_survive_saving(kind, tmp_path):
    trained = train_tokenizer(kind, TEXTS, tmp_path / "tokenizer")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    ids = special_token_ids(trained)
    assert ids == special_token_ids(loaded)
    assert (
        len(
            {ids[f"{name}_token_id"] for name in ("mask", "pad", "bos", "eos")}
            | {trained.unk_token_id}
        )
        == 5
    )
    assert loaded(AWKWARD)["input_ids"] == trained(AWKWARD)["input_ids"]
    assert loaded.decode(loaded(TEXTS[0])["input_ids"]) == TEXTS[0]


def test_a_tokenizer_is_made_once_and_reused(tmp_path):
    trained = train_tokenizer("char", ["abc"], tmp_path / "tokenizer")
    repeated = train_tokenizer("char", iter(["abc"]), tmp_path / "tokenizer")
    assert repeated.get_vocab() == trained.get_vocab()
    for text in (["abcd"], ["ab", "c"], []):
        with pytest.raises(
            ValueError, match="'char', but .* made from another train text.*another output_dir"
        ):
            train_tokenizer("char", text, tmp_path / "tokenizer")
    with pytest.raises(
        ValueError, match="train_tokenizer is 'byte', but .* of kind 'char'.*another output_dir"
    ):
        train_tokenizer("byte", ["abc"], tmp_path / "tokenizer")


def test_no_text_decides_on_bytes_and_what_an_earlier_version_made_is_reused(tmp_path):
    trained = train_tokenizer("byte", ["abc"], tmp_path / "bytes")
    assert train_tokenizer("byte", ["xyz"], tmp_path / "bytes").get_vocab() == trained.get_vocab()
    trained = train_tokenizer("char", ["abc"], tmp_path / "old")
    path = tmp_path / "old/tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["trained_on"]
    path.write_text(json.dumps(settings))
    assert train_tokenizer("char", ["xyz"], tmp_path / "old").get_vocab() == trained.get_vocab()


def test_a_tokenizer_is_made_from_text_with_lone_surrogates():
    for kind in ("char", "byte", "bpe:300"):
        tokenizer = train_tokenizer(kind, ["ok \ud83d done", "\ud83d\ude00"])
        assert (
            "".join(tokenizer.decode(ids) for ids in encode_texts(tokenizer, ["ok \ud83d"], str))
            == "ok \ufffd"
        )
        assert tokenizer.get_vocab().get("\ud83d") is None


def test_a_half_written_tokenizer_is_not_reused(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text("{}")
    (tmp_path / "tokenizer.unfinished").mkdir()
    assert len(train_tokenizer("char", ["abc"], folder)) == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer"]


def test_bpe_training_is_deterministic():
    texts = ["ab ab ba ba abba baab cd dc cdc " * 4, "ef fe efe gh hg " * 4]
    first, second = (train_tokenizer("bpe:290", texts).get_vocab() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("kind", ["bpe", "bpe:", "bpe:x", "word", "char:5", "bpe:-4", ""])
def test_an_unknown_kind_is_refused(kind):
    with pytest.raises(ValueError, match="train_tokenizer must be bpe:SIZE, char or byte, got"):
        train_tokenizer(kind, TEXTS)


def test_a_bpe_smaller_than_its_bytes_is_refused():
    with pytest.raises(ValueError, match="'bpe:260' is too small: 261 tokens"):
        train_tokenizer("bpe:260", TEXTS)


def test_gpt2_style_gets_mask_then_padding_as_new_ids(capsys):
    bare = AutoTokenizer.from_pretrained(FIXTURES / "gpt2_tokenizer")
    tokenizer = load_tokenizer(str(FIXTURES / "gpt2_tokenizer"))
    size = len(bare)
    assert special_token_ids(tokenizer) == {
        "vocab_size": size + 2,
        "mask_token_id": size,
        "pad_token_id": size + 1,
        "bos_token_id": bare.eos_token_id,
        "eos_token_id": bare.eos_token_id,
    }
    assert f"added [MASK] = {size}, [PAD] = {size + 1}" in capsys.readouterr().out
    assert tokenizer("a [MASK] b", add_special_tokens=False)["input_ids"].count(size) == 1


def test_bert_style_stays_as_it_is_with_cls_and_sep_as_ends(capsys):
    bare = AutoTokenizer.from_pretrained(FIXTURES / "bert_tokenizer")
    tokenizer = load_tokenizer(str(FIXTURES / "bert_tokenizer"))
    assert special_token_ids(tokenizer) == {
        "vocab_size": len(bare),
        "mask_token_id": bare.mask_token_id,
        "pad_token_id": bare.pad_token_id,
        "bos_token_id": bare.cls_token_id,
        "eos_token_id": bare.sep_token_id,
    }
    assert capsys.readouterr().out == ""


def test_bert_gives_no_token_types_also_after_saving(tmp_path):
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"])
    )
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    assert "token_type_ids" in AutoTokenizer.from_pretrained(tmp_path / "bert")("a b")
    tokenizer = load_tokenizer(str(tmp_path / "bert"))
    tokenizer.save_pretrained(tmp_path / "saved")
    for loaded in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert set(loaded("a b")) == {"input_ids", "attention_mask"}


def test_padding_that_is_another_special_token_is_replaced(tmp_path):
    bare = AutoTokenizer.from_pretrained(FIXTURES / "gpt2_tokenizer")
    bare.add_special_tokens({"mask_token": "[MASK]"})
    bare.pad_token = bare.mask_token  # the fault that makes masks look like padding
    bare.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="mask, padding and unknown must differ"):
        special_token_ids(bare)
    ids = special_token_ids(load_tokenizer(str(tmp_path)))
    assert ids["pad_token_id"] != ids["mask_token_id"]


@pytest.mark.parametrize("name", ["mask_token", "pad_token"])
def test_mask_and_padding_that_are_the_unknown_token_are_replaced(name, tmp_path):
    bare = build_word_tokenizer()
    setattr(bare, name, "<unk>")
    bare.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="mask, padding and unknown must differ.*unk_token_id 11"):
        special_token_ids(bare)
    ids = special_token_ids(load_tokenizer(str(tmp_path)))
    assert len({ids["pad_token_id"], ids["mask_token_id"], 11}) == 3 and ids["vocab_size"] == 14


def test_ids_of_an_incomplete_tokenizer_are_refused():
    bare = AutoTokenizer.from_pretrained(FIXTURES / "gpt2_tokenizer")
    with pytest.raises(ValueError, match="must have mask, padding, BOS and EOS.*load_tokenizer"):
        special_token_ids(bare)


def test_a_tokenizer_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="tokenizer .*nowhere.* could not be loaded"):
        load_tokenizer(str(tmp_path / "nowhere"))
