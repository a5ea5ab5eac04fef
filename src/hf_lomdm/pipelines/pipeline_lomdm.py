"""Text from a LoMDM: prompts to canvas, reveal step by step, texts with their order.

This file travels to the Hub, where it loads without the package: components are typed `Any`.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from transformers import PreTrainedModel

from .canvas_lomdm import PADDING, Canvas, padding_token, require, to_tensor
from .filling_lomdm import Filling, Step
from .guidance_lomdm import Guidance
from .hub_folder_lomdm import (
    card,
    check_target,
    move,
    push,
    saveable_model,
    staging_folder,
    write_folder,
)
from .prompts_lomdm import StopStrings, decode, encode_messages, make_canvas
from .streaming_lomdm import Feed, LoMDMStepOutput, state_after

# What a call may set of its scheduler.
CALL_SETTINGS = (
    *("sampler", "grid", "temperature", "top_p", "top_k"),
    *("count", "threshold", "entropy_bound"),
    *("remasking", "sigma", "loop_start", "loop_stop"),
    *("corrector_steps", "corrector_k", "corrector_selection"),
)
UPLOAD_OPTIONS = ("repo_id", "private", "token", "commit_message", "create_pr")
if __name__.startswith("diffusers_modules."):
    # For a component that is passed to `DiffusionPipeline.from_pretrained`, diffusers looks for the
    # file and class of `model_index.json` among the imported modules. It only uses the base class.
    for _file, _name, _base in (
        ("modeling_lomdm", "LoMDMForMaskedDiffusion", PreTrainedModel),
        ("scheduling_lomdm", "LoMDMScheduler", SchedulerMixin),
    ):
        vars(sys.modules.setdefault(_file, ModuleType(_file))).update(
            {_name: _base, _base.__name__: _base}
        )


@dataclass
class LoMDMPipelineOutput(BaseOutput):
    """Output of `LoMDMPipeline`; `B` = prompts x `num_return_sequences`.

    The sequences of one prompt stand side by side.

    sequences: `[B, L]` int64, prompts and results, padded on the right.
    texts: `B` strings, prompt included, cut before the first EOS after the prompt (in a template:
        after its last given position); `None` without a tokenizer or with `output_type="seq"`.
    order: `[B, L]` int64, 0-based step of the last reveal; -1 = given, -2 = padding.
    num_reveals: `[B, L]` int64, how often a position was revealed; 0 = given or padding.
    num_forward_passes: forward passes of the model over the batch.
    row_passes: `[B]` int64, the passes in which a row had something to reveal.
    tokens_per_pass: mean number of reveals of a pass in a row.
    seconds: wall time of the call.
    """

    sequences: Tensor
    texts: list[str] | None
    order: Tensor
    num_reveals: Tensor
    num_forward_passes: int
    row_passes: Tensor
    tokens_per_pass: float
    seconds: float


class LoMDMPipeline(DiffusionPipeline):
    """Writes text by revealing masked positions in the order of the model's rates.

    Args:
        model: `LoMDMForMaskedDiffusion`.
        scheduler: `LoMDMScheduler`; its configuration holds the sampler, temperature, top-p and
            top-k.
        tokenizer: any transformers tokenizer whose mask token is the model's; without one, prompts
            and results are ids.
    """

    model_cpu_offload_seq = "model"
    _optional_components = ["tokenizer"]
    _callback_tensor_inputs = ["sample", "order", "rates", "revealed"]
    loader: Callable | None = None  # set by the package; as remote code it stays None

    # `Parameter.empty` looks like no default to `inspect`: diffusers ignores what is passed for a
    # parameter with one.
    def __init__(self, model: Any, scheduler: Any, tokenizer: Any = Parameter.empty):
        super().__init__()
        tokenizer = None if tokenizer is Parameter.empty else tokenizer
        self.register_modules(model=model, scheduler=scheduler, tokenizer=tokenizer)

    def __repr__(self) -> str:
        """What it writes with, a line for each component."""
        sampler = getattr(getattr(self.scheduler, "config", None), "sampler", None)
        said = {
            "model": self.model.extra_repr() if isinstance(self.model, nn.Module) else "",
            "scheduler": f"sampler={sampler!r}",
            "tokenizer": f"{len(self.tokenizer)} entries" if self.tokenizer is not None else "",
        }
        lines = [f"{type(self).__name__}("]
        for name, details in said.items():
            part = getattr(self, name)
            shown = None if part is None else f"{type(part).__name__}({details})"
            lines.append(f"  {name}: {shown}")
        return "\n".join([*lines, ")"])

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | list[list[int]] | None = None,
        num_inference_steps: int = 256,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        num_return_sequences: int = 1,
        sampler: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "text",
        return_dict: bool = True,
        use_cache: bool = True,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        *,
        count: str | None = None,
        threshold: float | None = None,
        entropy_bound: float | None = None,
        grid: str | None = None,
        remasking: str | None = None,
        sigma: float | None = None,
        loop_start: float | None = None,
        loop_stop: float | None = None,
        corrector_steps: int | None = None,
        corrector_k: int | None = None,
        corrector_selection: str | None = None,
        guidance_scale: float = 1.0,
        logits_processor: Callable[[Tensor, Tensor], Tensor] | None = None,
        allowed_tokens: Any = None,
        messages: list | None = None,
        stop_strings: str | list[str] | None = None,
        streamer: Any = None,
    ) -> LoMDMPipelineOutput | tuple:
        """Continues prompts, fills templates or, without a prompt, writes texts from nothing.

        Args:
            prompt: one text, a list of texts, or a list of token id lists (without tokenizer).
                A prompt without masks is a prefix. One that contains the mask token is a template,
                whose masks are filled in; a model with blocks does not read the blocks after the
                block of a mask. If the model has a `bos_token_id`, a text that is a prefix gets it
                in front, and a text without a prompt starts with it; ids and templates are taken as
                they are.
            num_inference_steps: number of reveal steps `K`, or their limit if `count` depends on
                the token laws. Steps with nothing left to reveal make no forward pass. A model with
                blocks takes `K` steps for each block, a model without blocks for each window. The
                first window has `max_position_embeddings` tokens; longer texts continue in windows
                of half this length, which read the half before them.
            max_length: tokens of a row, prompt included; default `max_position_embeddings`. After
                an EOS only the rest of its block or window is written.
            max_new_tokens: tokens after each prefix, in place of `max_length`.
            num_return_sequences: results for each prompt.
            sampler, grid, temperature, top_p, top_k, count, threshold, entropy_bound, remasking,
                sigma, loop_start, loop_stop, corrector_steps, corrector_k, corrector_selection: as
                in the scheduler, whose values are the default.
            generator: one, or a list with one per result; default the global one. A result does not
                depend on the others of its batch.
            output_type: `"text"` (texts need a tokenizer) or `"seq"`.
            return_dict: `False` returns the values that are not `None` as a tuple.
            use_cache: with blocks, keep the keys and values of finished blocks; `False` is slower
                and gives the same text.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after every
                step; it may return a dict with a new `sample` or `order`. With
                `pipe._interrupt = True` it stops the call after this step; masks then remain.
            callback_on_step_end_tensor_inputs: which of `sample`, `order`, `rates`, `revealed` it
                is given, `[B, S]` of the present block or window (`rates` are those of the latest
                forward pass); default `["sample"]`.
            guidance_scale: tokens are drawn from a distribution proportional to
                `p^scale * q^(1 - scale)`, with `p` the model with the prompt and `q` without it;
                both are read in one doubled batch. 1 is `p` alone.
            logits_processor: any `LogitsProcessorList` of transformers. For the `M` positions that
                a step reveals, it gets the whole row of each, `[M, L]` with its masks, and the
                scores, `[M, V]`.
            allowed_tokens: `{position: [token id, ...]}`, positions counted from the first of a
                row, for all results, or a list with one for each. No other token is written there.
                Guidance, processor and allowed tokens act in this order and only on the tokens, not
                on the choice of positions.
            messages: a conversation, `[{"role": ..., "content": ...}, ...]`, or a list of
                conversations, instead of `prompt`; the tokenizer's chat template makes it a prefix.
            stop_strings: strings that end a text after its prompt. `texts` are cut before them, and
                nothing is written after the window or block that contains them.
            streamer: a streamer of transformers, for one text: `put` gets the prompt and each
                finished block or window, `put_draft` (`TextDiffusionStreamer`) the present one in
                each step.
        Raises:
            ValueError: input that cannot be used, with its name, its value and the remedy; weights
                with NaN.
        """
        call, started = dict(locals()), time.perf_counter()
        inputs = self._callback_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        require(
            output_type in ("text", "seq"),
            f"output_type must be 'text' or 'seq', got {output_type!r}.",
        )
        filling = self._start(call, callback_on_step_end is not None, "sample" in inputs)
        feed = None if streamer is None else Feed(streamer, filling)
        with self._model_in_use(), self.progress_bar(total=filling.num_timesteps) as bar:
            for step in filling.run(bar):
                if callback_on_step_end is not None:
                    self._call_back(callback_on_step_end, step, inputs)
                if feed is not None:
                    feed.draft(step)
                filling.interrupted = self._interrupt
            if feed is not None:
                feed.end()
            output = self._output(filling, output_type == "text", started)
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def stream(self, prompt=None, **options) -> Iterator[LoMDMStepOutput]:
        """The same call a step at a time: `for step in pipe.stream("Once", ...): ...`.

        Args:
            prompt, options: as in `__call__`, but for callbacks and streamers.
        Yields:
            The canvas after each step, on the CPU, `LoMDMStepOutput`; the last one is finished.
        """
        bound = signature(type(self).__call__).bind(self, prompt, **options)
        bound.apply_defaults()
        call = bound.arguments
        for name in ("callback_on_step_end", "streamer"):
            wrong = f"{name}={call[name]!r} is not for stream(), whose loop takes its place. "
            require(call[name] is None, wrong + "Leave it out.")
        filling = self._start(call, watched=False, rewritten=False)
        with self._model_in_use(), self.progress_bar(total=filling.num_timesteps) as bar:
            for step in filling.run(bar):
                yield state_after(step, filling)

    def _start(self, call: dict[str, Any], watched: bool, rewritten: bool) -> Filling:
        """What is to be filled in, by the arguments of a call; nothing is read yet."""
        self._check_model()
        changes = {name: call[name] for name in CALL_SETTINGS if call[name] is not None}
        # a scheduler of this call's own: the pipeline's is left as it is, also when the call fails
        scheduler = type(self.scheduler).from_config(self.scheduler.config, **changes)
        scheduler.check_used(changes, scheduler.config)
        # times stay on the host: finding a step waits for nothing
        scheduler.set_timesteps(call["num_inference_steps"])
        prompt, messages = call["prompt"], call["messages"]
        if messages is not None:
            wrong = f"prompt={prompt!r} and messages exclude each other: pass one of them."
            require(prompt is None, wrong)
            prompt = encode_messages(self.tokenizer, messages)
        limits = call["max_length"], call["max_new_tokens"], call["num_return_sequences"]
        canvas, device = self.make_canvas(prompt, *limits), self._execution_device
        shapes = call["guidance_scale"], call["logits_processor"], call["allowed_tokens"]
        filling = Filling(
            *(self.model, scheduler, canvas, call["generator"], device, call["use_cache"]),
            guidance=Guidance(canvas, self.model.config, device, *shapes),
            stopped=StopStrings(call["stop_strings"], self.tokenizer),
            watched=watched,
            rewritten=rewritten,
        )
        self._interrupt, self._num_timesteps = False, filling.num_timesteps
        self._guidance = filling.guidance
        return filling

    def _output(self, filling: Filling, text: bool, started: float) -> LoMDMPipelineOutput:
        canvas, config, device = filling.canvas, self.model.config, self._execution_device
        sequences, _ = to_tensor(canvas.rows, padding_token(config), device)
        order, _ = to_tensor(canvas.order, PADDING, device)
        reveals, _ = to_tensor(canvas.reveals, 0, device)
        texts, row_passes = None, torch.tensor(filling.row_passes)
        if text and self.tokenizer is not None:
            texts = decode(canvas, config, filling.stopped)
        written = int(reveals.sum()) / max(1, int(row_passes.sum()))
        counts = filling.passes, row_passes, written, time.perf_counter() - started
        return LoMDMPipelineOutput(sequences, texts, order, reveals, *counts)

    @property
    def num_timesteps(self) -> int:
        """Steps of the latest call over all its windows, no-ops included."""
        return self._num_timesteps

    @property
    def guidance_scale(self) -> float:
        """Of the latest call; as in diffusers a callback may change `pipe._guidance_scale`."""
        return self._guidance.scale

    @property
    def _guidance_scale(self) -> float:
        return self._guidance.scale

    @_guidance_scale.setter
    def _guidance_scale(self, scale: float) -> None:
        wrong = f"_guidance_scale={scale} comes too late: the call began without guidance. "
        remedy = "Pass another guidance_scale than 1 to the call."
        require(self._guidance.doubled or scale == 1, wrong + remedy)
        self._guidance.scale = scale

    def _callback_inputs(self, callback, names: list[str] | None) -> list[str]:
        """Tensors that the callback is given: a `PipelineCallback` names them itself."""
        known = self._callback_tensor_inputs
        names = getattr(callback, "tensor_inputs", names)
        names = ["sample"] if names is None else list(names)
        unknown = [name for name in names if name not in known]
        require(
            not unknown, f"callback_on_step_end_tensor_inputs must be among {known}, got {unknown}."
        )
        return [] if callback is None else names

    def _check_model(self) -> None:
        kind = type(self.scheduler).__name__
        wrong = f"scheduler is a {kind}, which does not draw positions and tokens apart. "
        require(hasattr(self.scheduler, "select"), wrong + "Use LoMDMScheduler(mask_token_id).")
        expected = self.model.config.mask_token_id
        for name, part in (("scheduler", self.scheduler.config), ("tokenizer", self.tokenizer)):
            token = getattr(part, "mask_token_id", None)
            wrong = f"{name}.mask_token_id is {token}, the model's mask_token_id {expected}."
            require(token in (None, expected), f"{wrong} Use the {name} of this model.")
        virtual = getattr(
            getattr(self.model, "active_peft_config", None), "is_prompt_learning", False
        )
        require(
            not virtual,
            "model has virtual tokens of peft, which no canvas holds. Train with LoRA instead.",
        )

    @contextmanager
    def _model_in_use(self) -> Iterator[None]:
        """Within this context the model is in eval mode; behind it an offloaded model is off."""
        try:
            with eval_mode(self.model):
                yield
        finally:
            self.maybe_free_model_hooks()

    def make_canvas(
        self, prompt, max_length: int | None, max_new_tokens: int | None, repeats: int
    ) -> Canvas:
        """The canvas of a call: every prompt `repeats` times."""
        limits = max_length, max_new_tokens, repeats
        return make_canvas(self.model.config, self.tokenizer, prompt, *limits)

    def _call_back(self, callback, step: Step, inputs: list[str]) -> None:
        """Calls the callback and takes over the `sample` and the `order` that it returns."""
        window = step.window
        tensors = {
            "sample": window.sample,
            "order": window.order,
            "rates": step.rates,
            "revealed": step.revealed,
        }
        tensors = {name: tensors[name] for name in inputs}
        known = (
            f"Name it in callback_on_step_end_tensor_inputs, among {self._callback_tensor_inputs}."
        )
        for name, value in (
            callback(self, step.number, step.timestep, dict(tensors)) or {}
        ).items():
            require(
                name in tensors,
                f"callback_on_step_end returned {name!r}, which it was not given. {known}",
            )
            before = tensors[name]
            if name not in ("sample", "order"):
                require(
                    value is before,
                    f"callback_on_step_end replaced {name!r}, which is for reading: leave it.",
                )
                continue
            got, expected = (f"{one.dtype} of shape {list(one.shape)}" for one in (value, before))
            require(
                got == expected,
                f"callback_on_step_end returned {name!r} as {got}, expected {expected}.",
            )
            setattr(window, name, value.to(before.device))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs
    ) -> "LoMDMPipeline":
        """Loads a folder or a Hub repository; with the package, by the package's classes alone.

        Loaded as remote code itself, this class leaves the work to diffusers, which asks for
        `trust_remote_code=True`.

        Args:
            pretrained_model_name_or_path: a folder or repository of `save_pretrained`, or a
                checkpoint of the model.
            kwargs: `model`, `scheduler`, `tokenizer` in place of stored ones; `revision`, `token`,
                `cache_dir`, `force_download`, `local_files_only`; the rest (`dtype`, ...) goes to
                the model's `from_pretrained`.
        """
        if cls.loader is None:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        return cls.loader(cls, pretrained_model_name_or_path, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        model_card: str | None = None,
        **kwargs,
    ) -> Any:
        """Writes one folder that loads as model, tokenizer and pipeline without the package.

        Args:
            save_directory: the target folder; files of it that are not part of the layout stay. It
                may hold a model of this kind already (`model_type`), which is replaced, and no
                other.
            safe_serialization, variant: for callers of diffusers; nothing but plain safetensors is
                written.
            max_shard_size: as in transformers, for example `"5GB"`.
            push_to_hub: also uploads it; `repo_id` (default: the folder's name), `private`,
                `token`, `commit_message`, `create_pr` come in `kwargs`. Then the `CommitInfo` is
                returned.
            model_card: text of `README.md`, put behind a short header unless it begins with one
                (`---`). Without it a `README.md` that is there stays.
        Raises:
            ValueError: a target that is a file or holds another pipeline or a model of another
                kind, components that cannot travel, other options. Nothing is written then.
        """
        _check_saving(safe_serialization, variant, kwargs)
        target, model = Path(save_directory).resolve(), saveable_model(self.model)
        check_target(target, model.config.model_type)
        with staging_folder(target) as staging:
            write_folder(self, staging, model, max_shard_size)
            if model_card is not None or not (target / "README.md").exists():
                (staging / "README.md").write_text(card(model_card, target.name), encoding="utf-8")
            written = sorted(
                path.relative_to(staging).as_posix()
                for path in staging.rglob("*")
                if path.is_file()
            )
            move(staging, target, written)
        return (
            push(target, written, keep_card=model_card is None, **kwargs) if push_to_hub else None
        )

    def push_to_hub(self, repo_id: str, **kwargs) -> Any:
        """Uploads the folder of `save_pretrained` without keeping it; `kwargs` as there.

        Returns the `CommitInfo`.
        """
        with tempfile.TemporaryDirectory() as folder:
            return self.save_pretrained(
                Path(folder, Path(repo_id).name), push_to_hub=True, repo_id=repo_id, **kwargs
            )


def _check_saving(safe_serialization: bool, variant: str | None, others: dict[str, Any]) -> None:
    unknown = sorted(others.keys() - set(UPLOAD_OPTIONS))
    require(
        not unknown,
        f"{unknown} are no options. Besides the named ones there are {list(UPLOAD_OPTIONS)}.",
    )
    wrong = (
        f"safe_serialization={safe_serialization}, variant={variant!r}: only plain safetensors are "
        "written. "
    )
    remedy = (
        "Leave both out; for another precision convert the model first: pipe.to(torch.bfloat16)."
    )
    require(safe_serialization and variant is None, wrong + remedy)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Within this context `model` is in eval mode; then each module has its own again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
