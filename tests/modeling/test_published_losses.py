"""The losses that were published for SEDD and GenMD4, position by position, against the time bound
of the family."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from hf_lomdm.modeling import process_lomdm as process
from hf_lomdm.modeling.blocks_lomdm import Blocks

GOLDEN = Path(__file__).parent.parent / "golden" / "sedd_loss.safetensors"


def loss_per_position(logits, clean, masked, forward, log_reverse, time):
    """The time bound `[B, L]` of each position: blocks of one position each; `time` `[B, 1]`, the
    weight is `1 / t`."""
    batch, length = clean.shape
    blocks = Blocks(torch.arange(length).expand(batch, -1), size=1, num_blocks=length)
    nll = -logits.log_softmax(-1).gather(-1, clean[..., None])[..., 0]
    weight = (1 / time).expand(batch, length)
    view = process.View(masked, torch.zeros_like(weight), weight)
    terms = process.time_bound(nll, forward, log_reverse.exp(), view, blocks)
    return terms.main + terms.velocity


def test_sedd_score_entropy_is_the_time_bound_with_rates_from_scores():
    golden = {key.removeprefix("golden."): value for key, value in load_file(GOLDEN).items()}
    clean, masked, time = golden["clean_ids"], golden["noisy_ids"] == 11, golden["t"][:, None]
    # the published score s_y estimates (1 - t)/t times the token law; ours leaves this ratio out:
    # it is time-free. With s = (1 - t)/t s' the score entropy times dsigma = 1/(1 - t) becomes
    # (1/t) (sum_y s'_y - log s'_x - 1)
    log_scores = golden["log_score"] - ((1 - time) / time).log()[..., None]
    # s'_y = exp(logit_y) / (V - 1)
    logits = log_scores + torch.tensor(11.0, dtype=torch.float64).log()
    logits[..., 11] = -torch.inf
    actual = loss_per_position(
        logits,
        clean,
        masked,
        torch.ones_like(log_scores[..., 0]),
        process.log_rate_of_scores(logits),
        time,
    )
    assert masked.any() and not masked.all()
    # the original computed in float32
    torch.testing.assert_close(actual, golden["loss_per_position"], rtol=1e-6, atol=1e-12)


def test_genmd4_published_loss_is_the_time_bound_with_rates_of_tokens():
    generator, vocab = torch.Generator().manual_seed(0), 7
    clean = torch.randint(0, vocab, (5, 9), generator=generator)
    raw = torch.randn(5, 9, vocab, generator=generator, dtype=torch.float64) * 3
    omega = torch.randn(vocab, generator=generator, dtype=torch.float64).exp()
    time = torch.rand(5, 1, generator=generator, dtype=torch.float64)
    masked = torch.rand(5, 9, generator=generator) < 0.7
    mu = raw.softmax(-1)
    # its code: the rates of all tokens times ((log mu_x + 1) at the true token x, minus mu), weight
    # -1/t
    true = torch.nn.functional.one_hot(clean, vocab)
    log_mu = raw.log_softmax(-1).gather(-1, clean[..., None])
    published = -(omega * (true * (log_mu + 1) - mu)).sum(-1) / time
    logits = raw + omega.log()
    actual = loss_per_position(
        logits,
        clean,
        masked,
        omega[clean],
        process.log_rate_of_token_rates(logits, omega.log()),
        time,
    )
    torch.testing.assert_close(actual, published * masked, rtol=1e-12, atol=1e-12)
