"""What `repr` says of a model and of a pipeline: sizes, member of the family, sampler, device."""

import torch
from diffusers import EulerDiscreteScheduler

from hf_lomdm import LoMDMPipeline, LoMDMScheduler


def test_repr_of_a_model_says_what_it_is_above_its_layers(make_model):
    model = make_model(rate_type="uniform", block_size=4).to(torch.bfloat16)
    first, line, *layers = repr(model).splitlines()
    size = sum(weight.numel() for weight in model.parameters()) / 1e6
    assert first == "LoMDMForMaskedDiffusion("
    assert line.strip() == (
        f"{size:.1f} M parameters, torch.bfloat16 on cpu, rate_type='uniform', block_size=4, "
        "context of 32 tokens, 11 token ids"
    )
    assert layers[0] == "  (model): LoMDMModel("


def test_repr_of_a_pipeline_is_a_line_for_each_component(make_model):
    model = make_model()
    pipe = LoMDMPipeline(model, LoMDMScheduler(10, sampler="confidence"))
    assert repr(pipe).splitlines() == [
        "LoMDMPipeline(",
        f"  model: LoMDMForMaskedDiffusion({model.extra_repr()})",
        "  scheduler: LoMDMScheduler(sampler='confidence')",
        "  tokenizer: None",
        ")",
    ]


def test_repr_of_a_pipeline_that_cannot_write_is_no_error(make_model):
    for parts, line in (
        ((make_model(), EulerDiscreteScheduler()), "sampler=None"),
        ((None, None), "model: None"),
    ):
        assert line in repr(LoMDMPipeline(*parts))
