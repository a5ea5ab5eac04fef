"""Tokenizers for masked diffusion: any of the Hub, or one made from the train text.

Every tokenizer that leaves this file has a padding, a BOS, an EOS and a mask token, and padding and
mask are ids of their own. A shared id is a silent fault: padding would be read as masked text, or
the end of a text as padding.
"""

import collections
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..modeling.checkpoint_lomdm import read_tokenizer
from ..pipelines.prompts_lomdm import well_formed

MOST_UNKNOWN = 0.01
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "bos_token": "[BOS]",
    "eos_token": "[EOS]",
    "mask_token": "[MASK]",
    "unk_token": "[UNK]",
}


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hub name or folder, completed with the special tokens it lacks.

    Raises:
        ValueError: there is no tokenizer at `name`.
    """
    try:
        tokenizer = read_tokenizer(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tokenizer {name!r} could not be loaded. Give a Hub name or a folder with "
            f"tokenizer.json. {error}"
        ) from error
    added = complete_special_tokens(tokenizer)
    if added and os.environ.get("RANK", "0") == "0":
        ids = ", ".join(f"{token} = {tokenizer.convert_tokens_to_ids(token)}" for token in added)
        print(f"tokenizer {name}: added {ids}", flush=True)
    return tokenizer


def complete_special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Add to `tokenizer` what it lacks of mask, padding, BOS and EOS; returns what is new.

    Its `model_input_names` become those of our models, which have no `token_type_ids`.

    BOS and EOS default to `[CLS]` and `[SEP]` where the tokenizer has them (BERT), else BOS is EOS
    (GPT-2). The mask comes first, so that it gets the id after the last one, as in the published
    MDLM checkpoints.
    """
    size = len(tokenizer)
    # what is saved is `init_kwargs`
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = [
        "input_ids",
        "attention_mask",
    ]
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token
    elif tokenizer.eos_token is None:
        tokenizer.add_special_tokens({"eos_token": SPECIAL_TOKENS["eos_token"]})
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.cls_token or tokenizer.eos_token
    taken = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    if tokenizer.mask_token is None or tokenizer.mask_token_id in taken:
        tokenizer.add_special_tokens({"mask_token": SPECIAL_TOKENS["mask_token"]})
    if tokenizer.pad_token is None or tokenizer.pad_token_id in (*taken, tokenizer.mask_token_id):
        tokenizer.add_special_tokens({"pad_token": SPECIAL_TOKENS["pad_token"]})
    added = [token for token, index in tokenizer.get_vocab().items() if index >= size]
    return sorted(added, key=tokenizer.convert_tokens_to_ids)


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """What LoMDMConfig must know: `vocab_size` and the ids of mask, padding, BOS and EOS.

    Raises:
        ValueError: one of them is missing, or two of mask, padding and unknown share an id.
    """
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id")
        for name in ("mask", "pad", "bos", "eos")
    }
    missing = [name for name, index in ids.items() if index is None]
    distinct = {ids["mask_token_id"], ids["pad_token_id"], tokenizer.unk_token_id}
    if missing or len(distinct) < 3:
        raise ValueError(
            "tokenizer must have mask, padding, BOS and EOS tokens, and mask, padding and unknown "
            f"must differ, got {ids} and unk_token_id {tokenizer.unk_token_id}. Load it by "
            "hf_lomdm.data.tokenizers.load_tokenizer, which adds what is missing."
        )
    # Not len(tokenizer): a vocabulary may have gaps, and the embedding must reach its last id.
    return {"vocab_size": max(tokenizer.get_vocab().values()) + 1, **ids}


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], name: Callable[[int], str]
) -> list[list[int]]:
    """Ids of clean texts: special tokens that they spell out are text like all the rest.

    Args:
        name: what a text is called in an error, by its index.
    Raises:
        ValueError: a word of a text is the mask token (a word-level tokenizer): it would count as
            masked.
    """
    rows = tokenizer(
        [well_formed(text) for text in texts],
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        split_special_tokens=True,
        verbose=False,
    )["input_ids"]
    for index, ids in enumerate(rows):
        if tokenizer.mask_token_id in ids:  # never `None`
            start = max(texts[index].find(tokenizer.mask_token), 0)
            excerpt = texts[index][max(start - 30, 0) : start + 50]
            raise ValueError(
                f"{name(index)} contains the mask token {tokenizer.mask_token!r}, in {excerpt!r}. "
                "Take it out of the text, or give the tokenizer a mask_token that is no word."
            )
    return rows


def check_known(unknown: int, tokens: int, source: str) -> None:
    """Raise `ValueError` where the tokenizer does not know more than `MOST_UNKNOWN` of a text."""
    if unknown > MOST_UNKNOWN * tokens:
        raise ValueError(
            f"the tokenizer does not know {unknown:,} of the {tokens:,} tokens of {source}: more "
            f"than {MOST_UNKNOWN:.0%}. Pass the tokenizer of such text (tokenizer), or make one of "
            "it (train_tokenizer)."
        )


def train_tokenizer(
    kind: str, texts: Iterable[str], folder: str | Path | None = None
) -> PreTrainedTokenizerBase:
    """A tokenizer of `kind`, made from `texts` and saved to `folder`, or read from there.

    Args:
        kind: `bpe:4096` (byte-level BPE with that many tokens in all), `byte` (256 bytes) or `char`
            (the characters of the texts; others become `[UNK]`). Decoding gives the encoded text
            back, but for unknown characters.
        texts: the train text, in pieces of any length.
        folder: where to keep it, so that a resumed run has the same ids.
    Raises:
        ValueError: `kind` is none of these, the BPE is too small for its 256 bytes, or `folder`
            holds a tokenizer of another kind or text.
    """
    size = _vocabulary_size(kind)
    digest = hashlib.sha256()
    texts = _digested(texts, digest)
    if folder is not None and (Path(folder) / "tokenizer.json").is_file():
        return _reuse(kind, texts, digest, Path(folder))
    model = _character_model(texts) if kind == "char" else _byte_model(texts, size)
    # `trained_as` and `trained_on` are kept in tokenizer_config.json; nothing is cleaned up, so
    # that decoding gives the text back.
    origin = {"trained_as": kind, "trained_on": digest.hexdigest()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, clean_up_tokenization_spaces=False, **origin, **SPECIAL_TOKENS
    )
    if folder is not None:
        _save_whole(tokenizer, Path(folder))
    return tokenizer


def _digested(texts: Iterable[str], digest: "hashlib._Hash") -> Iterator[str]:
    """The same texts, well formed; what is read of them goes into `digest`."""
    for text in map(well_formed, texts):
        content = text.encode()
        digest.update(len(content).to_bytes(8))
        digest.update(content)
        yield text


def _vocabulary_size(kind: str) -> int:
    """Tokens in all of a BPE; 0 for the kinds whose size the text decides."""
    if kind in ("char", "byte"):
        return 0
    match = re.fullmatch(r"bpe:(\d+)", kind)
    if match is None:
        raise ValueError(
            f"train_tokenizer must be bpe:SIZE, char or byte, got {kind!r}. For example: bpe:4096."
        )
    smallest = 256 + len(SPECIAL_TOKENS)
    if int(match[1]) < smallest:
        raise ValueError(
            f"train_tokenizer {kind!r} is too small: {smallest} tokens are the bytes and the "
            f"special tokens. Pass bpe:{smallest} or more, or byte."
        )
    return int(match[1])


def _character_model(texts: Iterable[str]) -> Tokenizer:
    """One token per character that occurs: a BPE without merges, faster than a word level."""
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    vocabulary = {
        token: index for index, token in enumerate([*SPECIAL_TOKENS.values(), *sorted(characters)])
    }
    model = Tokenizer(models.BPE(vocabulary, [], unk_token=SPECIAL_TOKENS["unk_token"]))
    model.decoder = decoders.Fuse()
    _add_special_tokens(model)
    return model


def _byte_model(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte-level BPE with `size` tokens, or the bare bytes for size 0."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = list(SPECIAL_TOKENS.values())
    if size:
        model = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        )
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.train_from_iterator(texts, trainer)
    else:
        model = Tokenizer(
            models.BPE({token: index for index, token in enumerate([*specials, *alphabet])}, [])
        )
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    _add_special_tokens(model)
    return model


def _add_special_tokens(model: Tokenizer) -> None:
    model.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS.values()]
    )


def _reuse(
    kind: str, texts: Iterable[str], digest: "hashlib._Hash", folder: Path
) -> PreTrainedTokenizerBase:
    """The tokenizer of an earlier run in `folder`, of the same kind and the same text."""
    tokenizer = read_tokenizer(folder)
    trained_as, trained_on = (
        tokenizer.init_kwargs.get(name) for name in ("trained_as", "trained_on")
    )
    if kind != "byte":  # the text does not matter for bytes
        collections.deque(texts, maxlen=0)
    problem = None
    if trained_as != kind:
        problem = f"of kind {trained_as!r}"
    elif trained_on not in (None, digest.hexdigest()):  # None: saved by an older version
        problem = "made from another train text, or by another detokenizer"
    if problem:
        raise ValueError(
            f"train_tokenizer is {kind!r}, but {folder} already holds a tokenizer {problem}. "
            "Choose another output_dir, or delete that folder."
        )
    print(f"tokenizer: the one in {folder}, made when this run was first started", flush=True)
    return tokenizer


def _save_whole(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write `folder` in one move, so that a killed run leaves no half tokenizer behind."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    tokenizer.save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
