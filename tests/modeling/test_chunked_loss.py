"""The loss of the logits in chunks: the same values and gradients, with nothing wide kept, and one
projection."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from hf_lomdm.modeling import loss_lomdm, token_losses_lomdm
from hf_lomdm.modeling.process_lomdm import at_least_float32

SYSTEMS = [
    {"rate_type": "uniform"},
    {"rate_type": "learned"},
    {"rate_type": "token"},
    {"rate_type": "score"},
    {"rate_type": "learned", "block_size": 4},
]


def loss_and_gradients(model) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids = torch.randint(3, 10, (6, 16), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, 0] = -100  # a given position, for the weights that read it
    model.zero_grad()
    loss = model.train()(
        input_ids=ids, labels=labels, generator=torch.Generator().manual_seed(2)
    ).loss
    loss.backward()
    return loss.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize(
    "overrides", SYSTEMS, ids=lambda system: "-".join(map(str, system.values()))
)
def test_chunks_change_neither_the_loss_nor_a_gradient(make_model, monkeypatch, overrides):
    model = make_model(dropout=0.1, **overrides).double()
    torch.manual_seed(0)
    loss, gradients = loss_and_gradients(model)
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
    calls = []
    read = model.token_logits
    monkeypatch.setattr(
        model, "token_logits", lambda hidden: calls.append(len(hidden)) or read(hidden)
    )
    monkeypatch.setattr(loss_lomdm, "CHUNK_LOGITS", 5 * 11 + 10)  # 5 rows of the 11 logits
    for room in (loss_lomdm, token_losses_lomdm):
        monkeypatch.setattr(room, "CACHE_LOGITS", 2 * 11)
    torch.manual_seed(0)  # the same dropout: making logits again draws nothing
    chunked, chunked_gradients = loss_and_gradients(model)
    masked = sum(calls)
    assert max(calls) == 5 and 6 * 16 // 4 < masked <= 2 * 6 * 16  # no row is projected twice
    torch.testing.assert_close(chunked, loss, rtol=1e-14, atol=0)
    for name, gradient in gradients.items():  # sums in another order
        torch.testing.assert_close(
            chunked_gradients[name], gradient, rtol=1e-10, atol=1e-14, msg=name
        )


@pytest.mark.parametrize(
    "overrides", SYSTEMS, ids=lambda system: "-".join(map(str, system.values()))
)
def test_nothing_wide_is_kept_of_the_logits(make_model, overrides):
    model = make_model(**overrides).train()
    ids = torch.randint(3, 10, (6, 16))
    saved = []
    with (
        torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: saved.append(tensor) or tensor, lambda t: t
        ),
        torch.autocast("cpu", torch.bfloat16),
    ):
        loss = model(input_ids=ids, labels=ids).loss
    of_logits = [
        tensor
        for tensor in saved
        if tensor.dim() == 2 and tensor.shape[1] == 11 and len(tensor) != 16
    ]
    assert of_logits and all(tensor.dtype == torch.bfloat16 for tensor in of_logits)
    loss.backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 7, 50])
def test_token_losses_are_the_cross_entropy_and_its_gradient(monkeypatch, rows, dtype):
    monkeypatch.setattr(token_losses_lomdm, "CACHE_LOGITS", rows * 11)
    torch.manual_seed(0)
    logits = (4 * torch.randn(7, 11, dtype=torch.float64)).to(dtype)
    logits[:, 10] = -torch.inf  # the mask token
    targets, by_loss = (
        torch.randint(10, (7,)),
        torch.randn(7, dtype=torch.promote_types(dtype, torch.float32)),
    )
    by_loss[0] = 0
    results = []
    for losses in (token_losses_lomdm.TokenLosses.apply, plain_losses):
        leaf = logits.clone().requires_grad_()
        values = losses(leaf, targets)
        values.backward(by_loss)
        results.append((values.detach(), leaf.grad))
    (ours, our_gradient), (theirs, their_gradient) = results
    assert ours.dtype == theirs.dtype and our_gradient.dtype == dtype
    exact = dtype == torch.float64
    torch.testing.assert_close(
        ours, theirs, rtol=1e-13 if exact else 1e-6, atol=1e-13 if exact else 1e-6
    )
    # a last bit of bfloat16 may round otherwise
    torch.testing.assert_close(
        our_gradient, their_gradient, rtol=1e-12 if exact else 2**-7, atol=1e-14
    )
    assert (our_gradient[:, 10] == 0).all() and (our_gradient[0] == 0).all()


def plain_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(at_least_float32(logits), targets, reduction="none")


def test_the_gradient_of_a_sure_target_is_what_is_left_to_learn():
    # a loss of 1.1e-6 beside logits with an ulp of 1.9e-6
    logits = torch.tensor([[20.0, 6.0, 5.0]], requires_grad=True)
    token_losses_lomdm.TokenLosses.apply(logits, torch.tensor([0])).backward()
    expected = torch.tensor([[20.0, 6.0, 5.0]]).double().softmax(-1)[0, 0] - 1
    torch.testing.assert_close(logits.grad[0, 0].double(), expected, rtol=0.1, atol=0)


def test_token_losses_go_through_torch_func():
    logits, targets = torch.randn(4, 3, 11, dtype=torch.float64), torch.randint(10, (4, 3))

    def gradient(losses):
        return torch.func.vmap(
            torch.func.grad(lambda logits, wanted: losses(logits, wanted).square().sum())
        )(logits, targets)

    torch.testing.assert_close(
        gradient(token_losses_lomdm.TokenLosses.apply), gradient(plain_losses)
    )


@pytest.mark.parametrize(
    "overrides", SYSTEMS, ids=lambda system: "-".join(map(str, system.values()))
)
def test_the_whole_model_can_be_made_again_for_the_gradient(make_model, overrides):
    model, ids = make_model(**overrides).train(), torch.randint(3, 10, (6, 16))

    def loss(ids):
        return model(input_ids=ids, labels=ids, generator=torch.Generator().manual_seed(2)).loss

    gradients = []
    for value in (loss(ids), checkpoint(loss, ids, use_reentrant=False)):
        model.zero_grad()
        value.backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_token_losses_of_no_masked_position(make_model):
    model = make_model()
    hidden = torch.zeros(0, 16, requires_grad=True)
    losses, rates = model._token_losses(hidden, torch.zeros(0, dtype=torch.int64))
    losses.sum().backward()
    assert losses.shape == rates.shape == (0,) and hidden.grad.shape == (0, 16)


def test_evaluation_in_chunks_gives_the_same_values(make_model, monkeypatch):
    model = make_model(rate_type="learned").eval()
    ids = torch.randint(3, 10, (6, 16))
    with torch.no_grad():
        whole = model(input_ids=ids, labels=ids, generator=torch.Generator().manual_seed(2)).nelbo
        monkeypatch.setattr(loss_lomdm, "CHUNK_LOGITS", 1)  # one row at a time
        parts = model(input_ids=ids, labels=ids, generator=torch.Generator().manual_seed(2)).nelbo
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)  # float32


def test_the_losses_of_a_half_precision_model_are_those_of_its_logits_in_float32(make_model):
    model, targets = make_model().bfloat16(), torch.arange(50) % 10
    hidden = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    losses, _ = model._token_losses(hidden, targets)
    expected = torch.nn.functional.cross_entropy(
        model.token_logits(hidden).float(), targets, reduction="none"
    )
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize(
    "overrides", SYSTEMS, ids=lambda system: "-".join(map(str, system.values()))
)
def test_every_weight_has_a_gradient_in_bfloat16(make_model, overrides):
    """Autocast of torch 2.9 and 2.10 lends the views what the clean pass has cast without
    gradients."""
    with torch.autocast("cpu", torch.bfloat16):
        _, gradients = loss_and_gradients(make_model(**overrides))
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
