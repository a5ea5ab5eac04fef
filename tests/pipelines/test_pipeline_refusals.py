"""What `LoMDMPipeline` refuses to write from, each by its name."""

import re

import pytest
import torch
from tiny_pipeline import MASK, make_pipe
from transformers import BatchEncoding

from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.cli.space_settings import Refused, Settings, text_row
from hf_lomdm.data.sudoku import sudoku_tokenizer
from hf_lomdm.data.tokenizers import train_tokenizer
from hf_lomdm.pipelines.prompts_lomdm import tokenize
from tiny_tokenizer import build_tokenizer, build_word_tokenizer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "prompt must be .* at least one entry"),
        ({"prompt": 3}, "prompt must be .* got 3"),
        ({"prompt": [3, 4]}, "Put a single list of ids into a list"),
        ({"prompt": ["a", [3]]}, "not a mixture"),
        ({"prompt": [[3], [11]]}, "prompt 1 has the token id 11, outside the vocabulary of 11"),
        ({"prompt": [[-1]]}, "token id -1"),
        ({"prompt": [[3] * 40]}, "prompt 0 needs 40 tokens.* limit of 32"),
        ({"prompt": [[3] * 8], "max_length": 5}, "needs 8 tokens.* limit of 5"),
        ({"prompt": [[3] * 8], "max_length": 8}, "leaves nothing to write"),
        ({"prompt": [[MASK] * 9], "max_length": 5}, "needs 9 tokens.* limit of 5"),
        ({"prompt": [[3, MASK]], "max_new_tokens": 3}, "is a template"),
        ({"max_length": 0}, "max_length must be a whole number of at least 1, got 0"),
        ({"max_length": 5, "max_new_tokens": 3}, "exclude each other"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
        (
            {"num_inference_steps": 0},
            "num_inference_steps must be a whole number from 1 to 100000, got 0",
        ),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be a whole number .* got 2.5"),
        (
            {"num_return_sequences": 0},
            "num_return_sequences must be a whole number of at least 1, got 0",
        ),
        ({"generator": [torch.Generator()] * 2}, "generator has 2 entries for 1 results"),
        (
            {"generator": 0},
            "generator must be a torch.Generator, a list of them or None, got 0. Pass torch.Gen",
        ),
        ({"generator": [7]}, "generator must be a torch.Generator.* got .7."),
        *(
            ({name: value}, f"{name} must be a whole number of at least 1, got {value!r}")
            for name in ("max_length", "max_new_tokens", "num_return_sequences")
            for value in (2.5, "8", True, float("nan"), -1)
        ),
        (
            {"num_return_sequences": None},
            "num_return_sequences must be a whole number of at least 1, got None",
        ),
        (
            {"max_length": 10**9},
            "max_length=1000000000 make 1000000000 tokens, more than 2097152. Lower",
        ),
        ({"max_new_tokens": 10**9}, "max_new_tokens=1000000000 make 1000000000 tokens"),
        (
            {"num_return_sequences": 10**9},
            "num_return_sequences=1000000000 make 32000000000 tokens",
        ),
        (
            {"num_inference_steps": 10**9},
            "num_inference_steps must be a whole number from 1 to 100000",
        ),
        *(
            ({"num_inference_steps": value}, "num_inference_steps must be")
            for value in (float("inf"), "4", None, True)
        ),
        ({"threshold": 0.5}, "threshold=0.5 has no effect without count='threshold'. Pass both"),
        ({"sampler": "threshold", "entropy_bound": 1.0}, "entropy_bound=1.0 has no effect"),
        ({"grid": "uniform"}, "grid='uniform' has no effect without sampler='ancestral'"),
        ({"sampler": "ancestral", "grid": "uniform", "sigma": 0.1}, "sigma=0.1 has no effect"),
        ({"corrector_k": 2}, "corrector_k=2 has no effect without corrector_steps=1"),
        ({"corrector_selection": "random"}, "corrector_selection='random' has no effect"),
        ({"output_type": "np"}, "output_type must be 'text' or 'seq', got 'np'"),
        ({"sampler": "best"}, "sampler must be one of"),
        ({"temperature": -1.0}, "temperature must be"),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["latents"]},
            "latents",
        ),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, "must be among .* got .'latents'"),
    ],
)
def test_unusable_input_is_refused_by_name(make_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_pipe(make_model(), build_tokenizer())(**{"num_inference_steps": 2, **arguments})


def test_texts_without_a_tokenizer_or_with_a_foreign_one_are_refused(make_model):
    with pytest.raises(ValueError, match="needs a tokenizer"):
        make_pipe(make_model())("a")
    pipe = LoMDMPipeline(
        make_model(mask_token_id=9), LoMDMScheduler(mask_token_id=9), build_tokenizer()
    )
    with pytest.raises(
        ValueError, match="tokenizer.mask_token_id is 10, the model's mask_token_id 9"
    ):
        pipe("a")


def test_a_scheduler_with_another_mask_token_is_refused(make_model):
    pipe = LoMDMPipeline(make_model(), LoMDMScheduler(mask_token_id=9))
    with pytest.raises(
        ValueError, match="scheduler.mask_token_id is 9, the model's mask_token_id 10. Use"
    ):
        pipe(None, 2)


@pytest.mark.parametrize("sampler", ["sequential", "random", "confidence"])
@pytest.mark.parametrize("part", ["psi.out", "lm_head", "model.norm"])
def test_weights_with_nan_are_an_error_not_a_text(make_model, sampler, part):
    model = make_model()
    torch.nn.init.constant_(model.get_parameter(f"{part}.weight"), float("nan"))
    with pytest.raises(ValueError, match="Check (its|the|the model's) weights"):
        make_pipe(model, sampler=sampler)(None, 4)


UNKNOWN = "prompt {} has {}, which the tokenizer does not know. Leave that out, or take"


@pytest.fixture
def letters_pipe(make_model):
    """A model of the letters a to f, whose tokenizer has an unknown token."""
    model = make_model(mask_token_id=3, bos_token_id=None)
    pipe = LoMDMPipeline(model, LoMDMScheduler(3), train_tokenizer("char", ["abcdef"]))
    pipe.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_what_the_tokenizer_does_not_know_is_refused_in_every_call(letters_pipe):
    chat = [{"role": "user", "content": "ab \ud83d"}]
    for index, unknown, call in (
        (0, ["日", "本", " "], lambda: letters_pipe("日本 ab日")),
        (1, ["x"], lambda: letters_pipe(["ab", "[MASK]x[MASK]"])),
        (0, ["\n"], lambda: next(letters_pipe.stream("ab\n"))),
        (0, [" ", "\ufffd"], lambda: letters_pipe(messages=chat)),
    ):
        with pytest.raises(ValueError, match=re.escape(UNKNOWN.format(index, unknown))):
            call()
    with pytest.raises(Refused, match="'日'"):
        text_row(letters_pipe, Settings("日", 1, 8, "random"), 32)


def test_an_unknown_token_that_a_prompt_spells_out_is_meant(letters_pipe):
    sequences = letters_pipe("a[UNK]b", 2, output_type="seq").sequences
    assert sequences[0, :3].tolist() == [5, 4, 6]


@pytest.mark.parametrize("python", [False, True])
def test_unknown_words_are_named_whole(python):
    tokenizer = build_word_tokenizer()
    if python:  # which tells of no token where it comes from
        tokenizer = InPython(tokenizer)
    assert tokenize(tokenizer, ["a <unk> <mask>", ""])[0] == [3, 11, 10]
    with pytest.raises(ValueError, match=re.escape(UNKNOWN.format(1, ["日本", "hello"]))):
        tokenize(tokenizer, ["a", "a 日本 hello b"])


class InPython:
    """A tokenizer without encodings."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.unk_token, self.unk_token_id = tokenizer.unk_token, tokenizer.unk_token_id

    def __call__(self, texts, **options):
        return BatchEncoding({"input_ids": self.tokenizer(texts, **options)["input_ids"]})


def test_what_becomes_no_token_is_refused_where_there_is_no_unknown_one():
    tokenizer = sudoku_tokenizer()
    assert tokenize(tokenizer, ["53..7 1"])[0] == [5, 3, 10, 10, 7, 1]
    with pytest.raises(ValueError, match=re.escape(UNKNOWN.format(0, ["x", "日"]))):
        tokenize(tokenizer, ["5x.日 1x"])
