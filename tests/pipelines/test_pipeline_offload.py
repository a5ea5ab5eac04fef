"""Offloading: a model that visits the accelerator for a call only; on the CPU, and on CUDA where
there is one."""

import pytest
import torch
from accelerate import cpu_offload_with_hook

from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.pipelines.canvas_lomdm import open_window

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
PROMPTS = [[1, 3, 4, 5], [1, 6], [1, 7, 10, 10, 8, 9, 10]]


@pytest.fixture
def pipe(make_model):
    model = make_model().double()  # float64: another device moves logits by 1e-15 only
    pipe = LoMDMPipeline(model, LoMDMScheduler(mask_token_id=10))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write(pipe, **options):
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    return pipe(PROMPTS, num_inference_steps=4, max_length=12, generator=generators, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sampler", ["sequential", "ancestral", "confidence"])
def test_offloaded_model_writes_the_same_and_is_off_after_every_call(pipe, sampler, device):
    expected = write(pipe, sampler=sampler)
    pipe.enable_model_cpu_offload(device=device)
    seen = set()
    pipe.model.lm_head.register_forward_pre_hook(
        lambda module, _: seen.add(module.weight.device.type)
    )
    for _ in range(2):
        hook = pipe.model._hf_hook
        out = write(pipe, sampler=sampler)
        assert seen == {device} and out.sequences.device.type == device
        assert torch.equal(out.sequences.cpu(), expected.sequences) and torch.equal(
            out.order.cpu(), expected.order
        )
        # diffusers puts on fresh hooks
        assert pipe.model.device.type == "cpu" and pipe.model._hf_hook is not hook


@pytest.mark.parametrize("device", DEVICES)
def test_a_call_that_fails_takes_the_model_off_too(pipe, device):
    def fail(*_):
        raise RuntimeError("stop")

    pipe.enable_model_cpu_offload(device=device)
    hook = pipe.model._hf_hook
    with pytest.raises(RuntimeError, match="stop"):
        write(pipe, callback_on_step_end=fail)
    assert pipe.model._hf_hook is not hook and pipe.model.device.type == "cpu"
    assert not (write(pipe).sequences == 10).any()


def test_tensors_are_made_where_the_model_will_run_not_where_it_rests(pipe):
    """The device "meta" stands for an accelerator: before the first pass the model still rests on
    the CPU."""
    cpu_offload_with_hook(pipe.model, torch.device("meta"))
    canvas, device = pipe.make_canvas(PROMPTS, 12, None, 1), pipe._execution_device
    window = open_window(canvas, [0, 0, 0], 12, pipe.model.config, device)
    assert pipe.model.device.type == "cpu"
    assert {
        tensor.device.type for tensor in (window.sample, window.order, window.attention_mask)
    } == {"meta"}
