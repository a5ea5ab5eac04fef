"""A model of transformers is converted as it is loaded: placed, quantised, with any attention."""

import pytest
import torch
from test_backbones import DECODERS, SIZES
from transformers import AutoConfig, AutoModelForCausalLM, TorchAoConfig

from hf_lomdm import LoMDMForMaskedDiffusion

IDS = torch.randint(3, 19, (2, 12), generator=torch.Generator().manual_seed(0))
LLAMA = {**SIZES, **DECODERS["llama"], "hidden_size": 64}  # attention compiled for 32 per head


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **LLAMA)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def convert(folder, **options):
    torch.manual_seed(0)  # heads start at random
    return LoMDMForMaskedDiffusion.from_causal_lm(folder, block_size=4, mask_token=19, **options)


def loss(model):
    out = model.train()(input_ids=IDS, labels=IDS, generator=torch.Generator().manual_seed(0))
    out.loss.backward()
    return out.loss.detach()


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_a_device_map_places_base_and_heads(folder, tmp_path, device_map):
    expected = convert(folder)(input_ids=IDS)
    placed = convert(folder, device_map=device_map)
    placed.save_pretrained(tmp_path)
    again = LoMDMForMaskedDiffusion.from_pretrained(tmp_path, device_map=device_map)
    for model in (placed, again):
        out = model(input_ids=IDS)
        assert torch.equal(out.logits, expected.logits) and torch.equal(out.rates, expected.rates)


def test_a_base_quantised_as_it_is_loaded_keeps_its_law_and_its_heads_train(folder):
    quantization = pytest.importorskip("torchao.quantization")
    settings = TorchAoConfig(quantization.Int8WeightOnlyConfig(version=2))
    expected = convert(folder)(input_ids=IDS).logits.softmax(-1)
    model = convert(folder, quantization_config=settings)
    law = model(input_ids=IDS).logits.softmax(-1)
    # int8 by channel rounds a weight by at most 1/254 of the largest
    assert 0 < (law - expected).abs().sum(-1).max() / 2 < 0.05
    assert model.phi.out.weight.dtype == model.psi.out.weight.dtype == torch.float32
    loss(model)
    assert model.phi.out.weight.grad.abs().sum() > 0  # equal rates: psi is at its best


@pytest.mark.slow  # compiles
def test_flex_attention_of_a_converted_model_is_that_of_sdpa(folder):
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("torch cannot compile it here")
    flex = convert(folder, attn_implementation="flex_attention").eval()
    plain = convert(folder).eval()
    mask = torch.ones_like(IDS)
    mask[0, 9:] = 0
    # without padding torch 2.13 writes C++ for the CPU that no compiler takes
    with torch.no_grad():
        ours, theirs = (model(input_ids=IDS, attention_mask=mask).logits for model in (flex, plain))
    torch.testing.assert_close(ours[mask == 1], theirs[mask == 1], rtol=1e-3, atol=1e-4)
