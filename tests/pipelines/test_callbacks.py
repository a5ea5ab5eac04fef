"""Callbacks of `LoMDMPipeline`: what they are given, what they may change, and the progress bar."""

import pytest
import torch
from diffusers.callbacks import PipelineCallback
from tiny_pipeline import BOS, MASK, make_pipe

from hf_lomdm import LoMDMPipeline


@pytest.mark.parametrize("name", LoMDMPipeline._callback_tensor_inputs)
def test_every_advertised_tensor_reaches_the_callback_in_every_step(make_model, name):
    seen = []

    def callback(pipe, step, timestep, tensors):
        assert list(tensors) == [name] and pipe.num_timesteps == 9
        seen.append((step, round(float(timestep) * 9), tensors[name].clone()))
        return tensors

    pipe = make_pipe(make_model())
    out = pipe(
        [[BOS, 3, 4]],
        num_inference_steps=9,
        max_new_tokens=5,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=[name],
    )
    # with the steps that reveal nothing
    assert [entry[:2] for entry in seen] == [(i, 9 - i) for i in range(9)]
    last, shapes = seen[-1][2], {tuple(tensor.shape) for *_, tensor in seen}
    assert shapes == {(1, 8)}
    reveals = {
        "sample": out.sequences,
        "order": out.order,
        "revealed": torch.zeros_like(out.order).bool(),
    }
    assert (last > 0).all() if name == "rates" else torch.equal(last, reveals[name])
    if name == "revealed":
        assert [int(tensor.sum()) for *_, tensor in seen] == [1, 1, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("sampler", ["sequential", "ancestral", "confidence"])
def test_masks_that_a_callback_puts_back_are_revealed_again(make_model, sampler):
    def callback(pipe, step, timestep, tensors):
        return (
            {"sample": tensors["sample"].index_fill(1, torch.tensor([3]), MASK)}
            if step == 2
            else None
        )

    pipe = make_pipe(make_model(), sampler=sampler)
    out = pipe([[3, 4]], 6, max_new_tokens=5, callback_on_step_end=callback)
    assert out.order[0, 3] > 2 and not (out.sequences == MASK).any()


@pytest.mark.parametrize("block_size, max_length", [(None, 8), (2, 8), (None, 20)])
def test_a_callback_stops_the_call_and_the_next_call_is_whole(make_model, block_size, max_length):
    def callback(pipe, step, timestep, tensors):
        pipe._interrupt = step == 0

    pipe = make_pipe(make_model(block_size=block_size))
    out = pipe(None, 8, max_length=max_length, callback_on_step_end=callback)
    assert out.num_forward_passes == 1
    assert (
        out.order.max() == 0
        and torch.equal(out.sequences == MASK, out.order < 0)
        and (out.order < 0).any()
    )
    assert not (pipe(None, 8, max_length=8).sequences == MASK).any()


def test_tokens_and_order_that_a_callback_writes_are_kept(make_model):
    def callback(pipe, step, timestep, tensors):
        if step:
            return {}
        sample, order = tensors["sample"].clone(), tensors["order"].clone()
        sample[:, 3:6], order[:, 3:6] = 7, -1
        return {"sample": sample, "order": order}

    pipe, names = make_pipe(make_model()), ["sample", "order"]
    out = pipe(
        None,
        4,
        max_length=8,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=names,
    )
    assert out.sequences[0, 3:6].tolist() == [7, 7, 7] and out.order[0, 3:6].tolist() == [
        -1,
        -1,
        -1,
    ]


def test_pipeline_callback_names_its_own_tensors(make_model):
    class Recorder(PipelineCallback):
        tensor_inputs = ["order", "rates"]
        seen: list = []

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            self.seen.append(sorted(callback_kwargs))
            return callback_kwargs

    make_pipe(make_model())(None, 3, callback_on_step_end=Recorder())
    assert Recorder.seen == [["order", "rates"]] * 3


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda tensors: {"rates": tensors["rates"] * 2}, "'rates', which is for reading"),
        (lambda tensors: {"order": 0}, "'order', which it was not given"),
        (
            lambda tensors: {"sample": tensors["sample"][:, 1:]},
            r"shape \[1, 7\], expected torch.int64 of shape \[1, 8\]",
        ),
    ],
)
def test_unusable_results_of_a_callback_are_refused(make_model, returned, message):
    with pytest.raises(ValueError, match=message):
        make_pipe(make_model())(
            num_inference_steps=2,
            max_length=8,
            callback_on_step_end=lambda pipe, step, timestep, tensors: returned(tensors),
            callback_on_step_end_tensor_inputs=["sample", "rates"],
        )


def test_progress_bar_counts_every_step(make_model, monkeypatch):
    pipe, updates = make_pipe(make_model()), []
    bar = pipe.progress_bar

    def watched(total):
        trained = bar(total=total)
        monkeypatch.setattr(trained, "update", lambda n=1: updates.extend([total] * n))
        return trained

    monkeypatch.setattr(pipe, "progress_bar", watched)
    pipe(None, 7, max_length=4)
    assert updates == [7] * 7
