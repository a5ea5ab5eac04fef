"""Text from a LoMDM: prompts to canvas, reveal step by step, texts with their order; and the one-folder Hub layout.

This file travels to the Hub, where it loads without the package: it imports no sibling, components are typed `Any`.
"""

import inspect
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from huggingface_hub import HfApi, snapshot_download
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

GIVEN, PADDING = -1, -2
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [lomdm, masked-diffusion, diffusers, custom_code]
---

"""
DEFAULT_CARD = """# {name}

A masked diffusion language model that reveals its tokens in a learned order (LoMDM). This folder loads as a model
(`AutoModel.from_pretrained`) and as a pipeline (`DiffusionPipeline.from_pretrained`), both with
`trust_remote_code=True`. Nothing is recorded here about its training or its quality.
"""


@dataclass
class LoMDMPipelineOutput(BaseOutput):
    """Output of `LoMDMPipeline`; `B` = prompts x `num_return_sequences`, the sequences of one prompt side by side.

    texts: `B` strings, prompt included, cut before the first EOS after the prompt (in a template: behind its last given
        position); `None` without a tokenizer or with `output_type="seq"`.
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
    """A batch of right-padded rows to fill in, and what the host knows about it.

    sample, order: `[B, L]` int64. attention_mask: `[B, L]`, 1 = real; `None` = nothing padded.
    left: masked positions of each row. starts: first position behind all that is given. lengths: real positions.
    """

    sample: Tensor
    order: Tensor
    attention_mask: Tensor | None
    left: list[int]
    starts: list[int]
    lengths: list[int]


class LoMDMPipeline(DiffusionPipeline):
    """Writes text by revealing masked positions in the order of the model's rates.

    Args:
        model: `LoMDMForMaskedDiffusion`.
        scheduler: `LoMDMScheduler`; its configuration holds the sampler, temperature, top-p and top-k.
        tokenizer: any transformers tokenizer whose mask token is the model's; without one, prompts and results are ids.
    """

    model_cpu_offload_seq = "model"
    _optional_components = ["tokenizer"]
    _callback_tensor_inputs = ["sample", "order", "rates", "revealed"]
    component_classes: dict[str, Any] | None = None  # set by the package; as remote code it stays None

    def __init__(self, model: Any, scheduler: Any, tokenizer: Any = None):
        super().__init__()
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
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> LoMDMPipelineOutput | tuple:
        """Continues prompts, fills templates or, without a prompt, writes freely.

        Args:
            prompt: one text, a list of texts, or a list of token id lists (these need no tokenizer). A prompt is a
                prefix; one that contains the mask token is a template, filled in place. If the model's configuration
                has a `bos_token_id`, a text that is a prefix gets it in front; token ids and templates are taken as
                they are (write BOS into a template that starts a text), and without a prompt it is written too.
            num_inference_steps: reveal steps `K`; steps with nothing left to reveal make no forward pass.
            max_length: tokens of a row, prompt included; default `max_position_embeddings`.
            max_new_tokens: tokens after each prefix, in place of `max_length`.
            num_return_sequences: results for each prompt.
            sampler, temperature, top_p, top_k: of this call only; default those of the scheduler.
            generator: one, or one per result (then a result does not depend on its batch); default the global one.
            output_type: `"text"` (texts need a tokenizer) or `"seq"`.
            return_dict: `False` returns the tuple `(texts, sequences, order, num_forward_passes)`.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after every step; it may return
                a dict with a new `sample` or `order`.
            callback_on_step_end_tensor_inputs: which of `sample`, `order`, `rates`, `revealed` it is given (`rates`
                are those of the latest forward pass); default `["sample"]`.
        Raises:
            ValueError: input that cannot be used, with its name, its value and the remedy; weights with NaN.
        """
        inputs = self._callback_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        _require(output_type in ("text", "seq"), f"output_type must be 'text' or 'seq', got {output_type!r}.")
        self._check_mask_tokens()
        changes = {"sampler": sampler, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        changes = {name: value for name, value in changes.items() if value is not None}
        # a scheduler of this call's own: the pipeline's is left as it is, also when the call fails
        scheduler = type(self.scheduler).from_config(self.scheduler.config, **changes)
        scheduler.set_timesteps(num_inference_steps)  # times stay on the host: finding a step waits for nothing
        canvas = self._lay_out(prompt, max_length, max_new_tokens, num_return_sequences)
        with self._model_in_use():
            passes = self._reveal(canvas, scheduler, generator, callback_on_step_end, inputs)
        texts = self._decode(canvas) if output_type == "text" and self.tokenizer is not None else None
        result = (texts, canvas.sample, canvas.order, passes)
        return LoMDMPipelineOutput(*result) if return_dict else result

    @property
    def num_timesteps(self) -> int:
        """Steps of the latest call, no-ops included."""
        return self._num_timesteps

    def _callback_inputs(self, callback, names: list[str] | None) -> list[str]:
        """Tensors that the callback is given: a `PipelineCallback` names them itself."""
        known = self._callback_tensor_inputs
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            names = callback.tensor_inputs
        names = ["sample"] if names is None else list(names)
        unknown = [name for name in names if name not in known]
        _require(not unknown, f"callback_on_step_end_tensor_inputs must be among {known}, got {unknown}.")
        return names if callback is not None else []

    def _check_mask_tokens(self) -> None:
        expected = self.model.config.mask_token_id
        for name, part in (("scheduler", self.scheduler.config), ("tokenizer", self.tokenizer)):
            token = getattr(part, "mask_token_id", None)
            wrong = (
                f"{name}.mask_token_id is {token}, the model's mask_token_id {expected}. Use the {name} of this model."
            )
            _require(token in (None, expected), wrong)

    @contextmanager
    def _model_in_use(self) -> Iterator[None]:
        """Within this context dropout is off; behind it every module has its mode again, an offloaded model is off."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
            self.maybe_free_model_hooks()

    def _lay_out(self, prompt, max_length: int | None, max_new_tokens: int | None, repeats: int) -> Canvas:
        """The canvas of a call: every prompt `repeats` times, right-padded."""
        self._check_lengths(max_length, max_new_tokens, repeats)
        prompts = [[]] if prompt is None else self._encode(prompt)
        rows = [self._lay_out_row(i, ids, max_length, max_new_tokens) for i, ids in enumerate(prompts)]
        rows = [row for row in rows for _ in range(repeats)]
        config, device = self.model.config, self._execution_device
        lengths, width = [len(row) for row in rows], max(map(len, rows))
        pad = _padding_token(config)
        sample = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
        real = torch.arange(width, device=device) < torch.tensor(lengths, device=device)[:, None]
        order = torch.full_like(sample, GIVEN).masked_fill(~real, PADDING)
        left = [row.count(config.mask_token_id) for row in rows]
        starts = [max((i + 1 for i, y in enumerate(row) if y != config.mask_token_id), default=0) for row in rows]
        return Canvas(sample, order, real.long() if min(lengths) < width else None, left, starts, lengths)

    def _check_lengths(self, max_length: int | None, max_new_tokens: int | None, repeats: int) -> None:
        limit = self.model.config.max_position_embeddings
        counts = {"num_return_sequences": repeats, "max_length": max_length, "max_new_tokens": max_new_tokens}
        for name, value in counts.items():
            _require(value is None or value >= 1, f"{name} must be at least 1, got {value}.")
        both = f"max_length={max_length} and max_new_tokens={max_new_tokens} exclude each other: pass one of them."
        _require(max_length is None or max_new_tokens is None, both)
        fits = max_length is None or max_length <= limit
        _require(fits, f"max_length must be at most {limit} (max_position_embeddings), got {max_length}.")

    def _encode(self, prompt) -> list[list[int]]:
        """Token ids of prompts; BOS stands in front of texts that are prefixes, if the model has one."""
        prompt = [prompt] if isinstance(prompt, str) else prompt
        listed = isinstance(prompt, (list, tuple)) and len(prompt) > 0
        _require(listed, f"prompt must be None, a string or a list with at least one entry, got {prompt!r}.")
        if all(isinstance(text, str) for text in prompt):
            return self._tokenize(list(prompt))
        if all(isinstance(ids, (list, tuple)) and all(isinstance(i, int) for i in ids) for ids in prompt):
            return [list(ids) for ids in prompt]
        raise ValueError(
            "prompt must be a list of strings or a list of lists of int token ids, not a mixture of them, got "
            f"{[type(item).__name__ for item in prompt[:3]]}. Put a single list of ids into a list."
        )

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        known = self.tokenizer is not None
        _require(known, f"prompt {texts[0]!r} is a text, which needs a tokenizer. Pass token id lists instead.")
        bos, mask = self.model.config.bos_token_id, self.model.config.mask_token_id
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        plain = [bos is None or mask in row or row[:1] == [bos] for row in rows]
        return [row if as_it_is else [bos, *row] for row, as_it_is in zip(rows, plain, strict=True)]

    def _lay_out_row(self, index: int, ids: list[int], max_length: int | None, max_new_tokens: int | None) -> list[int]:
        """One prompt as a row of its canvas: masks behind a prefix, a template as it is."""
        config = self.model.config
        mask, limit = config.mask_token_id, max_length or config.max_position_embeddings
        outside = [i for i in ids if not 0 <= i < config.vocab_size]
        if outside:
            raise ValueError(
                f"prompt {index} has the token id {outside[0]}, outside the vocabulary of {config.vocab_size}. "
                "Use the tokenizer that the model was trained with."
            )
        if mask in ids and max_new_tokens is not None:
            raise ValueError(
                f"prompt {index} contains the mask token ({mask}): it is a template, filled in place. "
                f"Leave max_new_tokens={max_new_tokens} out, or take the mask token out of the prompt."
            )
        length = len(ids) if mask in ids else len(ids) + max_new_tokens if max_new_tokens else limit
        if length > limit or len(ids) > limit:
            raise ValueError(
                f"prompt {index} needs {max(length, len(ids))} tokens, more than the limit of {limit} "
                "(max_length or max_position_embeddings). Shorten the prompt or max_new_tokens."
            )
        if length == len(ids) and mask not in ids:
            raise ValueError(f"prompt {index} has {len(ids)} tokens: max_length={limit} leaves nothing to write.")
        return ids + [mask] * (length - len(ids))

    def _decode(self, canvas: Canvas) -> list[str]:
        """Texts of the rows, each cut before the first EOS behind all that is given."""
        bos, eos, texts = self.model.config.bos_token_id, self.model.config.eos_token_id, []
        for row, start, length in zip(canvas.sample.tolist(), canvas.starts, canvas.lengths, strict=True):
            row = row[:length]
            start = max(start, int(row[0] == bos))  # a BOS that the model wrote may be its EOS token: GPT-2's is
            end = row.index(eos, start) if eos in row[start:] else length
            texts.append(self.tokenizer.decode(row[:end], skip_special_tokens=True))
        return texts

    def _reveal(self, canvas: Canvas, scheduler, generator, callback, inputs: list[str]) -> int:
        """Fills in the canvas; returns the number of forward passes.

        How many positions a step reveals is known on the host for every sampler but `ancestral`: nothing waits for
        the device, and steps with nothing left are skipped. A callback may change the sample, so it costs a count.
        """
        steps = self._num_timesteps = len(scheduler.timesteps)
        recount = scheduler.config.sampler == "ancestral" or "sample" in inputs
        passes, finite = 0, torch.ones((), dtype=torch.bool, device=canvas.sample.device)
        with self.progress_bar(total=steps) as bar:
            for step, timestep in enumerate(scheduler.timesteps):
                if any(canvas.left):
                    counts = [-(-left // (steps - step)) for left in canvas.left]
                    rates, revealed, sane = self._reveal_step(canvas, scheduler, timestep, max(counts), generator)
                    canvas.order = torch.where(revealed, step, canvas.order)
                    canvas.left = [left - count for left, count in zip(canvas.left, counts, strict=True)]
                    finite, passes = finite & sane, passes + 1
                    if passes == 1:
                        _check_finite(finite)
                else:
                    revealed = torch.zeros_like(revealed)
                if callback is not None:
                    tensors = {"sample": canvas.sample, "order": canvas.order, "rates": rates, "revealed": revealed}
                    self._call_back(callback, step, timestep, canvas, {name: tensors[name] for name in inputs})
                if recount:
                    canvas.left = (canvas.sample == self.model.config.mask_token_id).sum(1).tolist()
                bar.update()
        _check_finite(finite)
        return passes

    def _reveal_step(self, canvas: Canvas, scheduler, timestep, width: int, generator) -> tuple[Tensor, Tensor, Tensor]:
        """One forward pass, one step: `rates` `[B, L]`, `revealed` `[B, L]` and whether all that was used is finite.

        Unless the position draw needs logits, positions come first and the revealed ones alone are projected to the
        vocabulary. `width`: the most reveals in a row, for every sampler but `ancestral`.
        """
        sample, mask = canvas.sample, canvas.attention_mask
        plain = scheduler.position_draw_needs_logits
        out = self.model(input_ids=sample, attention_mask=mask, output_logits=plain)
        if plain:
            step = scheduler.step(out.logits, timestep, sample, out.rates, generator, attention_mask=mask)
            canvas.sample, revealed = step.prev_sample, step.revealed
            broken = torch.isnan(out.logits.amax(-1)) & revealed
        else:
            revealed = scheduler.select(out.rates, timestep, sample, generator, attention_mask=mask)
            if scheduler.config.sampler == "ancestral":
                rows, columns = revealed.nonzero(as_tuple=True)
            else:
                rows = torch.arange(len(sample), device=sample.device)[:, None]
                columns = scheduler.revealed_columns(revealed, timestep)[:, :width]
            logits = self.model.token_logits(out.last_hidden_state[rows, columns])
            # rows are right-padded, so a column is a position
            tokens = scheduler.draw_tokens(logits, rows, columns, len(sample), generator)
            tokens = torch.where(revealed[rows, columns], tokens, sample[rows, columns])
            canvas.sample = sample.index_put((rows, columns), tokens)
            broken = torch.isnan(logits.amax(-1)) & revealed[rows, columns]
        return out.rates, revealed, torch.isfinite(out.rates).all() & ~broken.any()

    def _call_back(self, callback, step: int, timestep, canvas: Canvas, tensors: dict[str, Tensor]) -> None:
        """Calls the callback and takes over the `sample` and the `order` that it returns."""
        for name, value in (callback(self, step, timestep, dict(tensors)) or {}).items():
            if name not in tensors:
                raise ValueError(
                    f"callback_on_step_end returned {name!r}, which it was not given. "
                    f"Name it in callback_on_step_end_tensor_inputs, among {self._callback_tensor_inputs}."
                )
            before = tensors[name]
            if name not in ("sample", "order"):
                _require(value is before, f"callback_on_step_end replaced {name!r}, which is for reading: leave it.")
                continue
            if value.shape != before.shape or value.dtype != before.dtype:
                raise ValueError(
                    f"callback_on_step_end returned {name!r} as {value.dtype} of shape {list(value.shape)}, "
                    f"expected {before.dtype} of shape {list(before.shape)}."
                )
            setattr(canvas, name, value.to(before.device))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "LoMDMPipeline":
        """Loads a folder or a Hub repository; with the package installed, with the package's classes alone.

        Loaded as remote code itself, this class leaves the work to diffusers, which asks for `trust_remote_code=True`.

        Args:
            pretrained_model_name_or_path: a folder of `save_pretrained` or a repository id. A plain checkpoint of the
                model (with or without a tokenizer) works too; it gets a scheduler with the default settings.
            kwargs: `model`, `scheduler`, `tokenizer` in place of stored ones; `revision`, `token`, `cache_dir`,
                `force_download`, `local_files_only` for the download; everything else (`dtype`, `device_map`,
                `attn_implementation`, ...) goes to the model's `from_pretrained`.
        """
        if cls.component_classes is None:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        kwargs.pop("trust_remote_code", None)  # no remote code takes part
        given = {name: kwargs.pop(name) for name in ("model", "scheduler", "tokenizer") if name in kwargs}
        download = ("revision", "token", "cache_dir", "force_download", "local_files_only")
        folder = _fetch(pretrained_model_name_or_path, {name: kwargs.pop(name) for name in download if name in kwargs})
        if "torch_dtype" in kwargs:
            kwargs["dtype"] = kwargs.pop("torch_dtype")
        model = given.get("model") or _load_model(cls.component_classes["model"], folder, kwargs)
        scheduler, scheduler_class = given.get("scheduler"), cls.component_classes["scheduler"]
        if scheduler is None and (folder / "scheduler").is_dir():
            scheduler = scheduler_class.from_pretrained(folder / "scheduler")
        elif scheduler is None:
            scheduler = scheduler_class(mask_token_id=model.config.mask_token_id)
        tokenizer = given.get("tokenizer")
        if "tokenizer" not in given and (folder / "tokenizer_config.json").exists():
            tokenizer = AutoTokenizer.from_pretrained(folder)
        pipe = cls(model=model, scheduler=scheduler, tokenizer=tokenizer)
        pipe.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipe

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
        """Writes one folder that loads as a model, a tokenizer and a pipeline, with its code, without the package.

        Everything is first written into a temporary folder beside the target. Files of the target that are not part
        of the layout stay.

        Args:
            save_directory: the target folder.
            safe_serialization, variant: for callers of diffusers; nothing but plain safetensors is written.
            max_shard_size: as in transformers, for example `"5GB"`.
            push_to_hub: also uploads what was written; `repo_id` (default: the folder's name), `private`, `token`,
                `commit_message` come in `kwargs`.
            model_card: text of `README.md`, put behind a short header unless it begins with one (`---`). Without it a
                `README.md` that is there stays.
        Returns:
            The `CommitInfo` of the upload, `None` without `push_to_hub`.
        Raises:
            ValueError: for a target that is a file or holds another pipeline, and for components that cannot travel.
        """
        if not safe_serialization or variant is not None:
            raise ValueError(
                f"safe_serialization={safe_serialization}, variant={variant!r}: only plain safetensors are written. "
                "Leave both out; for another precision convert the model first: pipe.to(torch.bfloat16)."
            )
        target = Path(save_directory).resolve()
        _check_target(target)
        with _staging_folder(target) as staging:
            self._write(staging, max_shard_size)
            if model_card is not None or not (target / "README.md").exists():
                (staging / "README.md").write_text(_card(model_card, target.name), encoding="utf-8")
            written = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())
            _move(staging, target, written)
        return _push(target, written, keep_card=model_card is None, **kwargs) if push_to_hub else None

    def push_to_hub(self, repo_id: str, **kwargs) -> Any:
        """Uploads the folder of `save_pretrained` without keeping it; `kwargs` as there. Returns the `CommitInfo`."""
        with tempfile.TemporaryDirectory() as folder:
            return self.save_pretrained(folder, push_to_hub=True, repo_id=repo_id, **kwargs)

    def _write(self, folder: Path, max_shard_size: int | str | None) -> None:
        """The layout: the model at the root with its code, and beside it what diffusers looks for."""
        model = getattr(self.model, "_orig_mod", self.model)  # torch.compile wraps
        if not isinstance(model, PreTrainedModel):
            raise ValueError(
                f"model is a {type(model).__name__}, which cannot be saved as one folder. "
                "For PEFT adapters pass model.merge_and_unload()."
            )
        model.save_pretrained(folder, **({} if max_shard_size is None else {"max_shard_size": max_shard_size}))
        _set_auto_map(folder / "config.json", model)
        _copy_code(type(model), folder)
        _copy_code(type(self), folder)
        (folder / "model").mkdir()
        shutil.copy(folder / "config.json", folder / "model")
        _copy_code(type(model), folder / "model")
        _write_index(folder)
        self.scheduler.save_pretrained(folder / "scheduler")
        _copy_code(type(self.scheduler), folder / "scheduler")
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        self._write_model_index(folder, type(model))

    def _write_model_index(self, folder: Path, model_class: type) -> None:
        tokenizer = [None, None]
        if self.tokenizer is not None:
            tokenizer = [type(self.tokenizer).__module__.split(".")[0], type(self.tokenizer).__name__]
            if tokenizer[0] != "transformers":
                raise ValueError(
                    f"tokenizer is a {tokenizer[1]} of {tokenizer[0]}; a Hub folder takes tokenizers of transformers "
                    "only. Wrap it as transformers.PreTrainedTokenizerFast."
                )
        content = {
            "_class_name": _file_and_name(type(self)),
            "_diffusers_version": diffusers.__version__,
            "model": _file_and_name(model_class),
            "scheduler": _file_and_name(type(self.scheduler)),
            "tokenizer": tokenizer,
        }
        _write_json(folder / "model_index.json", content)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_finite(finite: Tensor) -> None:
    _require(bool(finite), "the model gave NaN or infinite rates or logits. Check its weights and its dtype.")


def _padding_token(config) -> int:
    """What stands at padded positions: never the mask token, which would be counted as masked."""
    known = (token for token in (config.pad_token_id, config.eos_token_id) if token is not None)
    return next(known, (config.mask_token_id + 1) % config.vocab_size)


def _file_and_name(cls: type) -> list[str]:
    return [cls.__module__.split(".")[-1], cls.__name__]


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _copy_code(cls: type, folder: Path) -> None:
    """Copies the file of a class and the siblings that it imports; for remote code, from where it was cached."""
    source = inspect.getfile(cls)
    for path in (source, *get_relative_import_files(source)):
        shutil.copy(path, folder)


def _set_auto_map(path: Path, model: Any) -> None:
    """Names the classes of the folder itself: remote code carries the name of the repository that it came from."""
    config, model_name = json.loads(path.read_text(encoding="utf-8")), ".".join(_file_and_name(type(model)))
    config["auto_map"] = {"AutoConfig": ".".join(_file_and_name(type(model.config)))}
    config["auto_map"] |= {"AutoModel": model_name, "AutoModelForMaskedLM": model_name}
    _write_json(path, config)


def _write_index(folder: Path) -> None:
    """`model/` holds no weights, else clients fetch nothing but weights: its index points to those of the root."""
    if (folder / INDEX).exists():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    else:
        with safe_open(folder / WEIGHTS, "pt") as weights:
            names = sorted(weights.keys())
        size = (folder / WEIGHTS).stat().st_size
        index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(names, WEIGHTS)}
    index["weight_map"] = {name: f"../{file}" for name, file in index["weight_map"].items()}
    _write_json(folder / "model" / INDEX, index)


def _card(text: str | None, name: str) -> str:
    """A model card: `text` behind the header that tells the Hub what this is, or a minimal text."""
    if text is not None and text.startswith("---"):
        return text
    return CARD + (DEFAULT_CARD.format(name=name) if text is None else text)


def _check_target(target: Path) -> None:
    _require(not target.exists() or target.is_dir(), f"save_directory {target} is a file. Pass a folder.")
    index = target / "model_index.json"
    if index.exists():
        name = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
        if not isinstance(name, list) or name[0] != "pipeline_lomdm":
            raise ValueError(f"save_directory {target} holds another pipeline ({name}). Pass another folder.")


@contextmanager
def _staging_folder(target: Path) -> Iterator[Path]:
    """A new folder beside the target, so that a rename is a move; it is gone afterwards, whatever happens."""
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move(staging: Path, target: Path, written: list[str]) -> None:
    """Moves the files into the target, a new folder as a whole, and removes weights of an earlier save."""
    if not target.exists():
        staging.rename(target)
        return
    for name in written:
        (target / name).parent.mkdir(exist_ok=True)
        os.replace(staging / name, target / name)
    for pattern in (WEIGHTS, INDEX, "model-*-of-*.safetensors"):
        for stale in target.glob(pattern):
            if stale.name not in written:
                stale.unlink()


def _push(
    folder: Path,
    written: list[str],
    keep_card: bool,
    repo_id: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload LoMDMPipeline",
) -> Any:
    """Uploads the written files, and removes weights of an earlier upload; a card on the Hub is kept."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id or folder.name, private=private, exist_ok=True).repo_id
    if keep_card and api.file_exists(repo_id, "README.md"):
        written = [name for name in written if name != "README.md"]
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        allow_patterns=written,
        delete_patterns=[WEIGHTS, INDEX, "model-*-of-*.safetensors"],
        commit_message=commit_message,
    )


def _load_model(model_class: Any, folder: Path, options: dict[str, Any]) -> Any:
    """The model, with every weight from the checkpoint: transformers would only warn and leave random ones."""
    model, report = model_class.from_pretrained(folder, output_loading_info=True, **options)
    wrong = {name: sorted(map(str, report[name]))[:3] for name in ("missing_keys", "unexpected_keys") if report[name]}
    if wrong:
        raise ValueError(f"the checkpoint {folder} does not fit its config.json: {wrong}. Export the model again.")
    return model


def _fetch(name_or_path: str | os.PathLike, download: dict[str, Any]) -> Path:
    """The folder itself, or the snapshot of a repository; code files are left out."""
    if os.path.isdir(name_or_path):
        return Path(name_or_path)
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    return Path(snapshot_download(str(name_or_path), allow_patterns=patterns, **download))
