"""Text from a LoMDM, with the order of its writing, and the layout of a Hub folder.

This file travels to the Hub, where it loads without the package: components are typed `Any`.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import Parameter
from numbers import Integral
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from transformers import PreTrainedModel

from .hub_folder_lomdm import (
    card,
    check_target,
    copy_code,
    file_and_name,
    move,
    push,
    staging_folder,
    write_index,
    write_json,
)

GIVEN, PADDING = -1, -2
# Positions of all rows of a call. The host keeps about 50 bytes of each; their hidden states, of
# 768 units, take 6 GB.
MAX_POSITIONS = 2**21
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
    """Output of `LoMDMPipeline`; `B` = prompts x `num_return_sequences`, prompt by prompt.

    texts: `B` strings, prompt included, cut before the first EOS after the prompt (in a template:
        behind its last given position); `None` without a tokenizer or with `output_type="seq"`.
    sequences: `[B, L]` int64, everything, padding at the far right.
    order: `[B, L]` int64, 0-based step of reveal; -1 = given, -2 = padding.
    num_forward_passes: forward passes of the model over the batch.
    """

    texts: list[str] | None
    sequences: Tensor
    order: Tensor
    num_forward_passes: int


@dataclass
class Canvas:
    """Texts on the host, unpadded.

    `rows` and `order` as in the output; `starts`: first positions behind all given ones.
    """

    rows: list[list[int]]
    order: list[list[int]]
    starts: list[int]


@dataclass
class Window:
    """What is being filled in of each row, right-padded: a block, or what the model takes.

    sample, order: `[B, S]` int64. attention_mask: `[B, S]`, 1 = real; `None` = nothing padded.
    num_masked: masks of each row.
    """

    sample: Tensor
    order: Tensor
    attention_mask: Tensor | None
    num_masked: list[int]


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
    ) -> LoMDMPipelineOutput | tuple:
        """Continues prompts, fills templates or, without a prompt, writes freely.

        Args:
            prompt: one text, a list of texts, or a list of token id lists (these need no
                tokenizer). A prompt is a prefix; one that contains the mask token is a template,
                filled in place (a model with blocks does not read what stands behind the block of a
                mask). If the model has a `bos_token_id`, a text that is a prefix gets it in front;
                ids and templates are taken as they are, and without a prompt it is written too.
            num_inference_steps: reveal steps `K`; steps with nothing left to reveal make no forward
                pass. A model with blocks takes `K` steps for each block, a model without for each
                window: beyond `max_position_embeddings`, the second half of a text that long is the
                context of the next half.
            max_length: tokens of a row, prompt included; default `max_position_embeddings`. Behind
                an EOS nothing is written but the rest of its block or window.
            max_new_tokens: tokens after each prefix, in place of `max_length`.
            num_return_sequences: for each prompt. sampler, temperature, top_p, top_k: default those
                of the scheduler.
            generator: one, or one per result; default the global one. A result does not depend on
                its batch.
            output_type: `"text"` (texts need a tokenizer) or `"seq"`.
            return_dict: `False` returns the values that are not `None` as a tuple.
            use_cache: with blocks, keep the keys and values of finished blocks; `False` is slower,
                the text the same.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after every
                step; it may return a dict with a new `sample` or `order`. `pipe._interrupt = True`
                makes it the last one, masks stay.
            callback_on_step_end_tensor_inputs: which of `sample`, `order`, `rates`, `revealed` it
                is given, `[B, S]` of the present block or window (`rates` are those of the latest
                forward pass); default `["sample"]`.
        Raises:
            ValueError: input that cannot be used, with its name, its value and the remedy; weights
                with NaN.
        """
        inputs = self._callback_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        _require(
            output_type in ("text", "seq"),
            f"output_type must be 'text' or 'seq', got {output_type!r}.",
        )
        self._check_model()
        settings = {"sampler": sampler, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        changes = {name: value for name, value in settings.items() if value is not None}
        # a scheduler of this call's own: the pipeline's is left as it is, also when the call fails
        scheduler = type(self.scheduler).from_config(self.scheduler.config, **changes)
        # times stay on the host: finding a step waits for nothing
        scheduler.set_timesteps(num_inference_steps)
        canvas = self.make_canvas(prompt, max_length, max_new_tokens, num_return_sequences)
        with self._model_in_use():
            passes = self._reveal(
                canvas, scheduler, generator, use_cache, callback_on_step_end, inputs
            )
            sequences, order = self._tensor(canvas.rows)[0], self._tensor(canvas.order, PADDING)[0]
        texts = (
            self._decode(canvas) if output_type == "text" and self.tokenizer is not None else None
        )
        output = LoMDMPipelineOutput(texts, sequences, order, passes)
        return output if return_dict else output.to_tuple()

    @property
    def num_timesteps(self) -> int:
        """Steps of the latest call over all its windows, no-ops included."""
        return self._num_timesteps

    def _callback_inputs(self, callback, names: list[str] | None) -> list[str]:
        """Tensors that the callback is given: a `PipelineCallback` names them itself."""
        allowed = self._callback_tensor_inputs
        names = getattr(callback, "tensor_inputs", names)
        names = ["sample"] if names is None else list(names)
        unknown = [name for name in names if name not in allowed]
        _require(
            not unknown,
            f"callback_on_step_end_tensor_inputs must be among {allowed}, got {unknown}.",
        )
        return [] if callback is None else names

    def _check_model(self) -> None:
        expected = self.model.config.mask_token_id
        for name, part in (("scheduler", self.scheduler.config), ("tokenizer", self.tokenizer)):
            token = getattr(part, "mask_token_id", None)
            wrong = f"{name}.mask_token_id is {token}, the model's mask_token_id {expected}."
            _require(token in (None, expected), f"{wrong} Use the {name} of this model.")
        virtual = getattr(
            getattr(self.model, "active_peft_config", None), "is_prompt_learning", False
        )
        _require(
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
        limits = {"max_length": max_length, "max_new_tokens": max_new_tokens}
        counts = {
            "num_return_sequences": repeats,
            **{name: limit for name, limit in limits.items() if limit is not None},
        }
        for name, value in counts.items():
            whole = isinstance(value, Integral) and not isinstance(value, bool) and value >= 1
            _require(
                whole,
                f"{name} must be a whole number of at least 1, got {value!r}. Pass for example 32.",
            )
        _require(
            None in limits.values(),
            f"{max_length=} and {max_new_tokens=} exclude each other: pass one of them.",
        )
        prompts, mask = (
            [[]] if prompt is None else self._encode(prompt),
            self.model.config.mask_token_id,
        )
        lengths = [
            self._length(i, ids, max_length, max_new_tokens) for i, ids in enumerate(prompts)
        ]
        total, given = (
            int(repeats) * sum(lengths),
            ", ".join(f"{name}={value}" for name, value in counts.items()),
        )
        wrong = (
            f"{len(prompts)} prompts with {given} make {total} tokens, more than {MAX_POSITIONS}. "
        )
        _require(total <= MAX_POSITIONS, wrong + "Lower them, or call more than once.")
        pairs = [pair for pair in zip(prompts, lengths, strict=True) for _ in range(repeats)]
        rows = [ids + [mask] * (length - len(ids)) for ids, length in pairs]
        starts = [
            max((i + 1 for i, token in enumerate(row) if token != mask), default=0) for row in rows
        ]
        return Canvas(rows, [[GIVEN] * len(row) for row in rows], starts)

    def _encode(self, prompt) -> list[list[int]]:
        """Token ids of prompts; BOS stands before prefixes, if the model has one."""
        prompt = [prompt] if isinstance(prompt, str) else prompt
        listed = isinstance(prompt, (list, tuple)) and len(prompt) > 0
        _require(
            listed,
            f"prompt must be None, a string or a list with at least one entry, got {prompt!r}.",
        )
        if all(isinstance(text, str) for text in prompt):
            return self._tokenize(list(prompt))
        if all(
            isinstance(ids, (list, tuple)) and all(isinstance(i, int) for i in ids)
            for ids in prompt
        ):
            return [list(ids) for ids in prompt]
        wrong = (
            "prompt must be a list of strings or of lists of int token ids, not a mixture, got "
            f"{prompt[:3]!r}."
        )
        raise ValueError(f"{wrong} Put a single list of ids into a list.")

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        _require(
            self.tokenizer is not None,
            f"prompt {texts[0]!r} is a text, which needs a tokenizer. Pass token id lists instead.",
        )
        bos, mask = self.model.config.bos_token_id, self.model.config.mask_token_id
        rows = self.tokenizer([well_formed(text) for text in texts], add_special_tokens=False)[
            "input_ids"
        ]
        plain = [bos is None or mask in row or row[:1] == [bos] for row in rows]
        return [row if as_it_is else [bos, *row] for row, as_it_is in zip(rows, plain, strict=True)]

    def _length(
        self, index: int, ids: list[int], max_length: int | None, max_new_tokens: int | None
    ) -> int:
        """Tokens of the row of a prompt: a prefix gets masks, a template stays as it is."""
        config = self.model.config
        mask, limit = config.mask_token_id, max_length or config.max_position_embeddings
        outside = next((i for i in ids if not 0 <= i < config.vocab_size), None)
        problem = (
            f"prompt {index} has the token id {outside}, outside the vocabulary of "
            f"{config.vocab_size}. "
        )
        _require(outside is None, problem + "Use the tokenizer that the model was trained with.")
        problem = (
            f"prompt {index} contains the mask token ({mask}): it is a template, filled in place. "
        )
        remedy = (
            f"Leave max_new_tokens={max_new_tokens} out, or take the mask token out of the prompt."
        )
        _require(mask not in ids or max_new_tokens is None, problem + remedy)
        length = len(ids) if mask in ids else len(ids) + max_new_tokens if max_new_tokens else limit
        problem = (
            f"prompt {index} needs {len(ids)} tokens, more than the limit of {limit} (max_length "
            "or "
        )
        remedy = "max_position_embeddings). Shorten the prompt or pass max_new_tokens."
        _require(len(ids) <= min(length, max_length or length), problem + remedy)
        problem = (
            f"prompt {index} has {len(ids)} tokens: max_length={limit} leaves nothing to write."
        )
        _require(length > len(ids) or mask in ids, problem)
        return length

    def _decode(self, canvas: Canvas) -> list[str]:
        """Texts of the rows, each cut before the first EOS behind all that is given."""
        rows = [
            row[: self._end(row, start)]
            for row, start in zip(canvas.rows, canvas.starts, strict=True)
        ]
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]

    def _end(self, row: list[int], start: int) -> int:
        """Where a row ends: at its first EOS from `start` on."""
        bos, eos = self.model.config.bos_token_id, self.model.config.eos_token_id
        # a BOS that the model wrote may be its EOS token: GPT-2's is
        start = max(start, int(row[0] == bos))
        return end_of_text(row, eos, start)

    def _reveal(
        self, canvas: Canvas, scheduler, generator, use_cache: bool, callback, inputs: list[str]
    ) -> int:
        """Fills in the canvas, window after window; returns the number of forward passes."""
        windows, steps, passes, context = (
            self.windows(canvas.rows),
            len(scheduler.timesteps),
            0,
            None,
        )
        self._interrupt = False  # a callback may set it
        self._num_timesteps, seeds = steps * len(windows), _row_seeds(generator, len(canvas.rows))
        if self.model.config.block_size is not None:
            before = [row[:first] for row, first in zip(canvas.rows, windows[0][0], strict=True)]
            context = self.model.open_context(*self._tensor(before, left=True), use_cache)
            context.model = self.model  # as it is here: compiled, or wrapped
        with self.progress_bar(total=self._num_timesteps) as bar:
            for index, (firsts, width) in enumerate(windows):
                window = self._open(canvas.rows, firsts, width)
                # one generator per row: its draws do not depend on the other rows
                draws = [torch.Generator().manual_seed(seed + index) for seed in seeds]
                read = partial(self.model, return_dict=True) if context is None else context.read
                passes += self._reveal_window(
                    window, read, scheduler, draws, callback, inputs, index * steps, bar
                )
                self._close(canvas, window, firsts)
                ends = (
                    len(row) <= first + width
                    for row, first in zip(canvas.rows, firsts, strict=True)
                )
                if self._interrupt or all(ends):
                    break
                if context is not None:
                    context.extend(window.sample, window.attention_mask)
        return passes

    def windows(self, rows: list[list[int]]) -> list[tuple[list[int], int]]:
        """First position in each row, and width, of every window; rows are independent."""
        config = self.model.config
        firsts, size, limit = [0] * len(rows), config.block_size, config.max_position_embeddings
        stride = max(1, limit // 2)  # half of a window is the context of the next
        if size is not None:
            firsts, stride, limit = (
                [row.index(config.mask_token_id) // size * size for row in rows],
                size,
                size,
            )
        longest = max(len(row) - first for row, first in zip(rows, firsts, strict=True))
        starts = range(0, max(0, longest - limit) + stride, stride)
        return [
            ([first + start for first in firsts], min(limit, longest - start)) for start in starts
        ]

    def _open(self, rows: list[list[int]], firsts: list[int], width: int) -> Window:
        parts = [row[first : first + width] for row, first in zip(rows, firsts, strict=True)]
        sample, mask = self._tensor(parts)
        left = [part.count(self.model.config.mask_token_id) for part in parts]
        return Window(sample, torch.full_like(sample, GIVEN), mask, left)

    def _tensor(
        self, rows: list, padding: int | None = None, left: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Rows as `[B, L]`, padded on one side, and the mask of what is real, `None` if all is."""
        width, device = max(map(len, rows)), self._execution_device
        padding = _padding_token(self.model.config) if padding is None else padding
        missing = [width - len(row) for row in rows]
        padded = [
            [padding] * n * left + row + [padding] * n * (not left)
            for n, row in zip(missing, rows, strict=True)
        ]
        real = [
            [0] * n * left + [1] * len(row) + [0] * n * (not left)
            for n, row in zip(missing, rows, strict=True)
        ]
        values = torch.tensor(padded, dtype=torch.int64, device=device)
        mask = torch.tensor(real, dtype=torch.int64, device=device) if any(missing) else None
        return values, mask

    def _close(self, canvas: Canvas, window: Window, firsts: list[int]) -> None:
        """Copies a finished window into the canvas. A row ends with its first EOS not given."""
        filled = zip(firsts, window.sample.tolist(), window.order.tolist(), strict=True)
        rows = zip(canvas.rows, canvas.order, canvas.starts, strict=True)
        for (row, order, start), (first, tokens, steps) in zip(rows, filled, strict=True):
            end = min(len(row), first + len(tokens))
            row[first:end] = tokens[: end - first]
            # what an earlier window revealed is given here
            order[first:end] = map(max, order[first:end], steps)
            if self._end(row[:end], start) < end:
                del row[end:], order[end:]

    def _reveal_window(
        self, window: Window, read, scheduler, generator, callback, inputs, begin: int, bar
    ) -> int:
        """Fills in a window, steps counted from `begin`; returns the number of forward passes.

        Where the scheduler tells on the host how many positions a step reveals, nothing waits for
        the device, and steps with nothing left are skipped. A callback that may change the sample
        costs a count of its masks.
        """
        finite: bool | Tensor = True
        steps, passes, out, stale = len(scheduler.timesteps), 0, None, True
        recount = scheduler.num_reveals_is_random or "sample" in inputs
        plain = scheduler.position_draw_needs_logits or self.model.rates_need_logits
        for step, timestep in enumerate(scheduler.timesteps):
            left, revealed = window.num_masked, torch.zeros_like(window.sample, dtype=torch.bool)
            if any(left):
                # else nothing was revealed, and the model's output does not depend on the time
                if stale:
                    out = read(
                        input_ids=window.sample,
                        attention_mask=window.attention_mask,
                        output_logits=plain,
                    )
                    passes += 1
                revealed, sane = self._reveal_step(window, out, scheduler, timestep, generator)
                counts = scheduler.num_reveals(left, timestep)
                window.order = torch.where(revealed, begin + step, window.order)
                left, finite = (
                    [n - count for n, count in zip(left, counts, strict=True)],
                    finite & sane,
                )
                if step == 0:
                    _check_finite(finite)
            elif callback is None or out is None:
                bar.update(steps - step)
                break
            if callback is not None:
                tensors = {
                    "sample": window.sample,
                    "order": window.order,
                    "rates": out.rates,
                    "revealed": revealed,
                }
                self._call_back(
                    callback,
                    begin + step,
                    timestep,
                    window,
                    {name: tensors[name] for name in inputs},
                )
            if recount:
                left = (window.sample == self.model.config.mask_token_id).sum(1).tolist()
            stale, window.num_masked = left != window.num_masked or "sample" in inputs, left
            bar.update()
            if self._interrupt:
                break
        _check_finite(finite)
        return passes

    def _reveal_step(
        self, window: Window, out, scheduler, timestep, generator
    ) -> tuple[Tensor, Tensor]:
        """One step: `revealed` `[B, S]`, and whether all that was used is finite.

        Unless the rates or the position draw need logits, positions come first and the revealed
        ones alone are projected to the vocabulary.
        """
        sample, mask = window.sample, window.attention_mask
        if out.logits is not None:
            step = scheduler.step(
                out.logits, timestep, sample, out.rates, generator, attention_mask=mask
            )
            window.sample, revealed = step.prev_sample, step.revealed
            broken = torch.isnan(out.logits.amax(-1)) & revealed
        else:
            revealed = scheduler.select(out.rates, timestep, sample, generator, attention_mask=mask)
            rows, columns = scheduler.revealed_places(revealed, timestep, window.num_masked)
            logits = self.model.token_logits(out.last_hidden_state[rows, columns])
            # rows are right-padded, so a column is a position
            tokens = scheduler.draw_tokens(logits, rows, columns, len(sample), generator)
            tokens = torch.where(revealed[rows, columns], tokens, sample[rows, columns])
            window.sample = sample.index_put((rows, columns), tokens)
            broken = torch.isnan(logits.amax(-1)) & revealed[rows, columns]
        return revealed, torch.isfinite(out.rates).all() & ~broken.any()

    def _call_back(
        self, callback, step: int, timestep, window: Window, tensors: dict[str, Tensor]
    ) -> None:
        """Calls the callback and takes over the `sample` and the `order` that it returns."""
        remedy = (
            f"Name it in callback_on_step_end_tensor_inputs, among {self._callback_tensor_inputs}."
        )
        for name, value in (callback(self, step, timestep, dict(tensors)) or {}).items():
            _require(
                name in tensors,
                f"callback_on_step_end returned {name!r}, which it was not given. {remedy}",
            )
            before = tensors[name]
            if name not in ("sample", "order"):
                _require(
                    value is before,
                    f"callback_on_step_end replaced {name!r}, which is for reading: leave it.",
                )
                continue
            got, expected = (f"{ids.dtype} of shape {list(ids.shape)}" for ids in (value, before))
            _require(
                got == expected,
                f"callback_on_step_end returned {name!r} as {got}, expected {expected}.",
            )
            setattr(window, name, value.to(before.device))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs
    ) -> "LoMDMPipeline":
        """Loads a folder or a Hub repository; with the package, only with its own classes.

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
        """Writes one folder with its code that loads as model, tokenizer and pipeline.

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
        unknown = sorted(kwargs.keys() - set(UPLOAD_OPTIONS))
        _require(
            not unknown,
            f"{unknown} are no options. Besides the named ones there are {list(UPLOAD_OPTIONS)}.",
        )
        wrong = (
            f"safe_serialization={safe_serialization}, variant={variant!r}: only plain safetensors "
            "are written. "
        )
        remedy = (
            "Leave both out; for another precision convert the model first: "
            "pipe.to(torch.bfloat16)."
        )
        _require(safe_serialization and variant is None, wrong + remedy)
        target, model = Path(save_directory).resolve(), self._saveable_model()
        check_target(target, model.config.model_type)
        with staging_folder(target) as staging:
            self._write(staging, model, max_shard_size)
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
        """Uploads the folder of `save_pretrained` (`kwargs` as there); returns a `CommitInfo`."""
        with tempfile.TemporaryDirectory() as folder:
            return self.save_pretrained(
                Path(folder, Path(repo_id).name), push_to_hub=True, repo_id=repo_id, **kwargs
            )

    def _saveable_model(self) -> PreTrainedModel:
        """The model, if all of it can be written as one folder."""
        model = getattr(self.model, "_orig_mod", self.model)  # torch.compile wraps
        remedy = (
            "Merge PEFT adapters (get_peft_model, merge_and_unload), or save them alone "
            "(model.save_pretrained)."
        )
        wrong = f"model is a {type(model).__name__}, which cannot be saved as one folder. "
        _require(isinstance(model, PreTrainedModel), wrong + remedy)
        wrong = (
            f"model carries the adapters {list(getattr(model, 'peft_config', ()))}, a Hub folder "
            "holds whole weights. "
        )
        _require(not getattr(model, "_hf_peft_config_loaded", False), wrong + remedy)
        return model

    def _write(
        self, folder: Path, model: PreTrainedModel, max_shard_size: int | str | None
    ) -> None:
        """The layout: model and code at the root, and beside them what diffusers looks for."""
        sizes: dict[str, Any] = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        model.save_pretrained(folder, **sizes)
        (folder / "model").mkdir()
        for path in (folder / "config.json", *folder.glob("*.py")):
            shutil.copy(path, folder / "model")
        write_index(folder)
        self.scheduler.save_pretrained(folder / "scheduler")
        copy_code(self, folder)
        copy_code(self.scheduler, folder / "scheduler")
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        self._write_model_index(folder, type(model))

    def _write_model_index(self, folder: Path, model_class: type) -> None:
        tokenizer: list[str | None] = [None, None]
        if self.tokenizer is not None:
            tokenizer = [
                type(self.tokenizer).__module__.split(".")[0],
                type(self.tokenizer).__name__,
            ]
            wrong = (
                f"tokenizer is a {tokenizer[1]} of {tokenizer[0]}; a Hub folder takes those of "
                "transformers only. "
            )
            _require(
                tokenizer[0] == "transformers",
                wrong + "Wrap it as transformers.PreTrainedTokenizerFast.",
            )
        content = {
            "_class_name": file_and_name(type(self)),
            "_diffusers_version": diffusers.__version__,
            "model": file_and_name(model_class),
            "scheduler": file_and_name(type(self.scheduler)),
            "tokenizer": tokenizer,
        }
        write_json(folder / "model_index.json", content)


def end_of_text(ids: Sequence[int], eos: int | None, start: int = 0) -> int:
    """How many of the tokens `ids` are text: those before the first EOS from `start` on, or all."""
    return ids.index(eos, start) if eos in ids[start:] else len(ids)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Within this context `model` is in eval mode; afterwards all modules are as before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def well_formed(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate; a pair becomes its character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _row_seeds(generator, num_rows: int) -> list[int]:
    """A seed for each row: of its own generator or of a shared one (`None` = global)."""
    sources = generator if isinstance(generator, (list, tuple)) else [generator] * num_rows
    _require(
        len(sources) == num_rows,
        f"generator has {len(sources)} entries for {num_rows} results. Pass one for each.",
    )
    fits = all(source is None or isinstance(source, torch.Generator) for source in sources)
    wrong = f"generator must be a torch.Generator, a list of them or None, got {generator!r}. "
    _require(fits, wrong + "Pass torch.Generator().manual_seed(0).")
    return [
        int(torch.randint(2**62, (), generator=source, device=source and source.device))
        for source in sources
    ]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_finite(finite: bool | Tensor) -> None:
    _require(
        bool(finite),
        "the model gave NaN or infinite rates or logits. Check its weights and its dtype.",
    )


def _padding_token(config) -> int:
    """What stands at padded positions: never the mask token, which would be counted as masked."""
    usable = (token for token in (config.pad_token_id, config.eos_token_id) if token is not None)
    return next(usable, (config.mask_token_id + 1) % config.vocab_size)
