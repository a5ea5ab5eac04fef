"""causal_nll: the exact log-likelihood of autoregressive models, text by text."""

import itertools
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from hf_lomdm.evaluation.causal import causal_nll, shift_right

START = 6
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def build_causal(vocab_size: int = 7, start: int = START, **overrides) -> GPTNeoXForCausalLM:
    """A random GPT-NeoX whose probabilities differ clearly between tokens and contexts."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    settings = {
        "bos_token_id": start,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "initializer_range": 0.4,
        **SIZES,
    }
    config = GPTNeoXConfig(
        vocab_size=vocab_size, use_parallel_residual=False, **{**settings, **overrides}
    )
    model = GPTNeoXForCausalLM(config).eval()
    torch.set_rng_state(state)
    return model


@torch.no_grad()
def log_prob_token_by_token(
    model: GPTNeoXForCausalLM, text: list[int], counted: list[bool] | None = None
) -> float:
    """Sum of `log p(x_i | x_<i)` with one unpadded pass per token, the start token without
    probability."""
    total = 0.0
    for i, token in enumerate(text):
        logits = model(torch.tensor([[START, *text[:i]]])).logits[0, -1].double()
        logits[START] = -math.inf
        if counted is None or counted[i]:
            total += float(logits.log_softmax(-1)[token])
    return total


def test_the_probabilities_of_all_texts_of_three_tokens_sum_to_one():
    model = build_causal()
    # 216 texts without the start token
    texts = torch.tensor(list(itertools.product(range(START), repeat=3)))
    estimate = causal_nll(model, texts)
    # 216 sums of float32 logs
    assert float((-estimate.nelbo).exp().sum()) == pytest.approx(1, abs=1e-5)
    assert estimate.nelbo.std() > 0.5
    # the first token has a law of its own
    first = (-causal_nll(model, torch.arange(START)[:, None]).nelbo).exp()
    sums = (-estimate.nelbo).exp().view(START, -1).sum(-1)
    torch.testing.assert_close(sums, first, rtol=1e-5, atol=0)


def test_it_is_the_sum_over_tokens_given_all_tokens_before():
    model, texts = build_causal(), [[2, 3, 5, 1], [0, 4, 4, 2]]
    estimate = causal_nll(model, torch.tensor(texts))
    expected = torch.tensor(
        [-log_prob_token_by_token(model, text) for text in texts], dtype=torch.float64
    )
    torch.testing.assert_close(estimate.nelbo, expected, rtol=1e-5, atol=0)  # float32 logits
    assert torch.equal(estimate.main, estimate.nelbo) and not estimate.velocity.any()
    assert not estimate.standard_error.any() and estimate.standard_error.dtype == torch.float64


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_texts_are_as_alone(side, attention):
    model = build_causal(attn_implementation=attention)
    texts = [[2, 3, 5, 1, 2], [4], [5, 0, 3]]
    ids, mask = torch.full((3, 7), 1), torch.zeros(3, 7, dtype=torch.long)
    for row, text in enumerate(texts):
        columns = slice(7 - len(text), 7) if side == "left" else slice(0, len(text))
        ids[row, columns], mask[row, columns] = torch.tensor(text), 1
    together = causal_nll(model, ids, mask).nelbo
    alone = torch.cat([causal_nll(model, torch.tensor([text])).nelbo for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)  # float32 sums in another order
    # what padding holds is of no effect
    other = causal_nll(model, ids.masked_fill(mask == 0, START), mask).nelbo
    torch.testing.assert_close(other, alone, rtol=1e-5, atol=0)


def test_positions_count_from_the_first_real_token():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=7, n_positions=8, n_embd=16, n_layer=1, n_head=2, initializer_range=0.4
    )
    model = GPT2LMHeadModel(config).eval()  # learns a vector for each position
    padded, mask = torch.tensor([[0, 0, 2, 3, 5]]), torch.tensor([[0, 0, 1, 1, 1]])
    alone = causal_nll(model, torch.tensor([[2, 3, 5]]), start_token_id=START).nelbo
    torch.testing.assert_close(
        causal_nll(model, padded, mask, start_token_id=START).nelbo, alone, rtol=1e-5, atol=0
    )


def test_given_positions_are_read_and_not_counted():
    model, text = build_causal(), [2, 3, 5, 1]
    labels = torch.tensor([[-100, -100, 5, 1]])
    actual = causal_nll(model, torch.tensor([text]), labels=labels).nelbo
    expected = -log_prob_token_by_token(model, text, counted=[False, False, True, True])
    assert float(actual) == pytest.approx(expected, rel=1e-5)
    noisy = torch.tensor([[2, 3, 0, 0]])  # labels hold the clean tokens
    assert float(causal_nll(model, noisy, labels=labels).nelbo) == pytest.approx(expected, rel=1e-5)


def test_the_model_reads_the_start_token_in_front_of_the_first_real_one():
    ids = torch.tensor([[3, 4, 5, 0], [0, 3, 4, 5]])
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    assert shift_right(ids, None, 6).tolist() == [[6, 3, 4, 5], [6, 0, 3, 4]]
    shifted = shift_right(ids, mask, 6)
    assert [row[real].tolist() for row, real in zip(shifted, mask.bool(), strict=True)] == [
        [6, 3, 4]
    ] * 2


def test_training_mode_comes_back_dropout_is_off_and_float64_works():
    model, texts = build_causal(hidden_dropout=0.5), torch.tensor([[2, 3, 5, 1]])
    plain = causal_nll(model, texts).nelbo
    model.train()
    model.gpt_neox.layers[0].eval()
    assert torch.equal(causal_nll(model, texts).nelbo, plain)
    assert model.training and model.lm_head.training and not model.gpt_neox.layers[0].training
    torch.testing.assert_close(causal_nll(model.double(), texts).nelbo, plain, rtol=1e-5, atol=0)
    assert causal_nll(model, texts, start_token_id=4).nelbo != plain


def test_a_start_token_that_ends_texts_too_has_its_probability():
    """GPT-2 has one token for both, which stands between the documents of its rows."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=7, n_embd=16, n_layer=2, n_head=2, bos_token_id=START, eos_token_id=START
    )
    model, text = GPT2LMHeadModel(config).eval(), torch.tensor([[3, START, 4]])
    with torch.no_grad():
        law = model(torch.tensor([[START, 3, START]])).logits[0].log_softmax(-1)
    expected = -law[torch.arange(3), text[0]].double().sum()
    torch.testing.assert_close(causal_nll(model, text).nelbo[0], expected, rtol=1e-5, atol=1e-5)


def test_input_that_cannot_work_is_an_error_with_a_remedy():
    model, texts = build_causal(), torch.tensor([[2, 3, 5, 1]])
    broken = build_causal()
    torch.nn.init.constant_(broken.lm_head.weight, math.nan)
    for call, message in [
        (lambda: causal_nll(model, texts[0]), r"input_ids must have the shape \[batch, length\]"),
        (
            lambda: causal_nll(model, texts, labels=texts[:, :2]),
            r"labels must have the shape .*\[1, 4\], got \[1, 2\]",
        ),
        (lambda: causal_nll(model, texts, texts[:, :2]), "attention_mask must have the shape"),
        (
            lambda: causal_nll(model, torch.tensor([[2, START]])),
            r"contain the start token \(6\).*Pass clean texts",
        ),
        (
            lambda: causal_nll(build_causal(bos_token_id=None), texts),
            "start_token_id is None.*Pass the token",
        ),
        (
            lambda: causal_nll(broken, texts),
            "-log P of texts .* is not finite.*Check the model's weights",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
