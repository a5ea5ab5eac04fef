"""A character tokenizer for the tiny models of the tests: `a`..`g` and four special tokens."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCABULARY = ["<pad>", "<bos>", "<eos>", *"abcdefg", "<mask>"]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Ids as in `conftest.TINY`: pad 0, bos 1, eos 2, `a`..`g` 3 to 9, mask 10."""
    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token="<pad>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def build_word_tokenizer() -> PreTrainedTokenizerFast:
    """Words between blanks: `a`..`g`, `<masks>` and the special tokens, which a text may spell out
    as words."""
    vocabulary = {token: i for i, token in enumerate([*VOCABULARY, "<unk>", "<masks>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)
