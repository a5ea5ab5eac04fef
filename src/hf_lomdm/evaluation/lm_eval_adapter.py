"""The model type `hf_lomdm` of lm-eval (EleutherAI's lm-evaluation-harness).

    python -m hf_lomdm.evaluation.lm_eval_adapter --model hf_lomdm --model_args pretrained=FOLDER
    --tasks lambada_openai

What lm-eval calls a log-likelihood is here minus an upper bound on `-log P`: a lower bound,
estimated with a standard error that shrinks with `num_samples`. Between the choices of one question
the draws are shared, so that most of the error cancels. For autoregressive baselines take lm-eval's
own `--model hf`.

Texts are texts: special tokens that they spell out are split, unless `--apply_chat_template` has
written them.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..data.batches import Text, collate
from ..data.draws import hashed_generator
from ..data.tokenizers import check_known, encode_texts
from ..modeling.checkpoint_lomdm import read_tokenizer
from ..pipelines import LoMDMPipeline
from ..pipelines.canvas_lomdm import end_of_text
from ..pipelines.prompts_lomdm import well_formed
from .likelihood import check_options, nelbo

# that lm-eval passes to every model
UNUSED = {"trust_remote_code": (True, False), "parallelize": (False,)}
AUTO_BATCH = 64  # requests per pass at first under `batch_size="auto"`, as in lm-eval
# Keys that `generation_kwargs` may hold, and values of other keys that change nothing.
WRITING = ("max_gen_toks", "until", "do_sample", "temperature", "top_p", "top_k")
NEUTRAL = (None, False, 1, "")


@register_model("hf_lomdm")
class LoMDMLM(TemplateLM):
    """A `LoMDMPipeline` as lm-eval sees it; one process.

    Args:
        pretrained: a folder, a Hub name, or a pipeline with its tokenizer, which is used as it is.
        batch_size: requests per pass; those of similar length go together, which changes no result
            in float32 (in bfloat16 rounding may). `"auto"`: as many as memory allows,
            `max_batch_size` (default 64) at most.
        device: default: the GPU if there is one; so is one that is not there, which lm-eval asks
            for by itself.
        dtype: of the weights, such as `"bfloat16"`; default float32; `"auto"`: the checkpoint's.
        revision: of a Hub repository. tokenizer: in place of the stored one. peft: an adapter,
            which is merged.
        bound, num_samples, num_orders: of the bound, as in `hf_lomdm.evaluation.nelbo`.
        num_inference_steps, sampler: of `generate_until`, as in the call of the pipeline.
        max_length: longest row in tokens; default the model's `max_position_embeddings`, and at
            most that.
        seed: of all draws; those of a request come from a hash of seed and context, those of a
            repeated one (`repeats`) from the number of the repetition too.
        chat_template_args: variables of the chat template, a dict.
    Raises:
        ValueError: no tokenizer, a count below 1, an option that nobody knows, or that a pipeline
            cannot have.
    """

    def __init__(
        self,
        pretrained: str | LoMDMPipeline,
        batch_size: int | str = 16,
        max_batch_size: int | None = None,
        device: str | int | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        peft: str | None = None,
        bound: str = "order",
        num_samples: int = 16,
        num_orders: int | None = None,
        num_inference_steps: int = 256,
        sampler: str | None = None,
        max_length: int | None = None,
        seed: int = 0,
        chat_template_args: dict[str, Any] | None = None,
        **unused,
    ):
        super().__init__()
        _check_unused(unused)
        how = {"dtype": dtype, "revision": revision, "tokenizer": tokenizer, "peft": peft}
        how = {name: value for name, value in how.items() if value is not None}
        self.pipe = _load(pretrained, device, how)
        self.pipe.set_progress_bar_config(disable=True)
        self.model, self.tokenizer = self.pipe.model, self.pipe.tokenizer
        self._device = next(self.model.parameters()).device
        longest = self.model.config.max_position_embeddings
        length = longest if max_length is None else _whole("max_length", max_length, 2, longest)
        self.max_length = length
        self._auto = str(batch_size).split(":")[0] == "auto"
        most = AUTO_BATCH if max_batch_size is None else _whole("max_batch_size", max_batch_size)
        self.batch_size = most if self._auto else _whole("batch_size", batch_size)
        self.seed = _whole("seed", seed, 0)
        orders = None if num_orders is None else _whole("num_orders", num_orders)
        samples = _whole("num_samples", num_samples)
        steps = _whole("num_inference_steps", num_inference_steps)
        self.bound_options = {"bound": bound, "num_samples": samples, "num_orders": orders}
        check_options(**self.bound_options)
        self.writing_options = {"num_inference_steps": steps, "sampler": sampler}
        self._template_args, self._chat = chat_template_args or {}, False

    @property
    def eot_token_id(self) -> int | None:
        """The model's EOS."""
        return self.model.config.eos_token_id

    @property
    def prefix_token_id(self) -> int | None:
        """What stands before every text, given and not counted: the model's BOS or `None`."""
        return self.model.config.bos_token_id

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Messages as one text, by the template of the tokenizer.

        Raises:
            ValueError: it has none, or one that takes no such messages.
        """
        if self.tokenizer.chat_template is None:
            raise ValueError(
                "the tokenizer has no chat template. Leave --apply_chat_template out, or pass "
                "tokenizer=."
            )
        self._chat = True
        how = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, **how, **self._template_args
            )
        except jinja2.TemplateError as error:
            roles = [message["role"] for message in chat_history]
            raise ValueError(
                f"the chat template of the tokenizer refuses messages by {roles}: {error}"
            ) from error

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs
    ) -> list[int]:
        """Token ids; behind the model's BOS, if it has one, unless `add_special_tokens` is `False`.

        Special tokens that a text spells out are special in chats, as chat templates want it, else
        plain text. The mask token is never special.

        Raises:
            ValueError: the mask token is a word of the text: what is masked must not be clean text.
        """
        how = {
            "add_special_tokens": False,
            "split_special_tokens": not self._chat,
            "verbose": False,
        }
        ids = self.tokenizer(well_formed(string), **how)["input_ids"]
        if self.model.config.mask_token_id in ids:
            (ids,) = encode_texts(self.tokenizer, [string], lambda _: "a request")
        bare = (
            add_special_tokens is False
            or self.prefix_token_id is None
            or ids[:1] == [self.prefix_token_id]
        )
        return ids if bare else [self.prefix_token_id, *ids]

    def _loglikelihood_tokens(
        self, requests, disable_tqdm: bool = False, **kwargs
    ) -> list[tuple[float, bool]]:
        """Lower bounds on `log P(continuation | context)`, and whether it is the greedy one.

        Greedy decoding is that from left to right: the likeliest token of the first masked
        position, again and again, the continuation's length given. (The model's own order is
        random; this needs no draw and means the same for every model.)
        """
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        parts = [(pair[0], context, continuation) for pair, context, continuation in requests]
        for batch, values, inputs in self._bounds(parts, disable_tqdm):
            for i, value, greedy in zip(batch, values, self._is_greedy(**inputs), strict=True):
                results[i] = (value, greedy)
                self.cache_hook.add_partial("loglikelihood", requests[i][0], results[i])
        return results

    def _bounds(
        self, parts: Sequence[tuple[str, list, list]], disable_tqdm: bool
    ) -> Iterator[tuple]:
        """Per batch: indices, bounds on `log P`, and keys of `parts` (context, continuation)."""
        texts = [self._text(context, continuation) for _, context, continuation in parts]
        self._check_known([text.ids.tolist() for text in texts])

        def measure(batch: list[int]) -> tuple[list[float], dict]:
            inputs = collate([texts[i] for i in batch], self._device)
            generators = [self._generator(parts[i][0]) for i in batch]
            estimate = nelbo(self.model, **inputs, **self.bound_options, generator=generators)
            return (-estimate.nelbo).tolist(), inputs

        with tqdm(total=len(texts), disable=disable_tqdm, desc="loglikelihood") as bar:
            for batch, (values, inputs) in self._batches(
                range(len(texts)), lambda i: len(texts[i].ids), measure
            ):
                yield batch, values, inputs
                bar.update(len(batch))

    def _batches(
        self, indices: Sequence[int], length: Callable[[int], int], work: Callable[[list[int]], Any]
    ) -> Iterator[tuple[list[int], Any]]:
        """Batches of indices, the longest requests first, and what `work` makes of each."""
        ordered = sorted(indices, key=length, reverse=True)
        while ordered:
            batch = ordered[: self.batch_size]
            try:
                done = work(batch)
            except torch.OutOfMemoryError:
                if not self._auto or len(batch) == 1:
                    raise
                self.batch_size = len(batch) // 2  # also for the batches that follow
                torch.cuda.empty_cache()
                continue
            ordered = ordered[len(batch) :]
            yield batch, done

    def _text(self, context: Sequence[int | None], continuation: Sequence[int]) -> Text:
        """One row: as much of the end of the context as fits, given, and the continuation."""
        if len(continuation) > self.max_length:
            raise ValueError(
                f"a continuation has {len(continuation)} tokens, the model takes {self.max_length} "
                "(max_length)."
            )
        # a model without BOS has the prefix None
        given = [token for token in context if token is not None]
        given = given[max(0, len(given) + len(continuation) - self.max_length) :]
        ids = torch.tensor([*given, *continuation]).numpy()
        labels = ids.copy()
        labels[: len(given)] = -100
        return Text(ids, labels)

    def _check_known(self, rows: list[list[int]]) -> None:
        unknown = self.tokenizer.unk_token_id
        if unknown not in (self.eot_token_id, self.prefix_token_id):
            found = sum(ids.count(unknown) for ids in rows)
            check_known(found, sum(map(len, rows)), "the requests")

    @torch.no_grad()
    def _is_greedy(
        self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None
    ) -> list[bool]:
        """One pass per token of the continuation, for the rows that were right so far."""
        left = labels != -100
        greedy = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        sample = input_ids.masked_fill(left, self.model.config.mask_token_id)
        while (rows := (greedy & left.any(-1)).nonzero().flatten()).numel():
            first = left[rows].int().argmax(-1)
            padding = None if attention_mask is None else attention_mask[rows]
            options = {"attention_mask": padding, "output_logits": False, "return_dict": True}
            hidden = self.model(sample[rows], **options).last_hidden_state
            likeliest = self.model.token_logits(hidden[torch.arange(len(rows)), first]).argmax(-1)
            greedy[rows] = likeliest == input_ids[rows, first]
            sample[rows, first] = input_ids[rows, first]
            left[rows, first] = False
        return greedy.tolist()

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Lower bounds on `log P(text)` in nats, the sum over windows of `max_length` tokens.

        The first token of a window is given: BOS at the start of a text, then the last token of the
        window before. A text's EOS is not counted.
        """
        windows, owners = [], []
        for index, (text,) in enumerate(request.args for request in requests):
            tokens = self.tok_encode(text, add_special_tokens=False)
            parts = get_rolling_token_windows(
                tokens, self.prefix_token_id, self.max_length - 1, context_len=1
            )
            for number, part in enumerate(map(make_disjoint_window, parts)):
                windows.append((f"{number} {text}", *part))
                owners.append(index)
        totals = [0.0] * len(requests)
        for batch, values, _ in self._bounds(windows, disable_tqdm):
            for window, value in zip(batch, values, strict=True):
                totals[owners[window]] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """What the model writes behind each context, up to the first stop string or EOS.

        All `max_gen_toks` positions are written, then the text is cut. Of the context the end is
        kept, as much as fits, at least half of `max_length`; longer results are written in windows
        (`LoMDMPipeline`). Without `do_sample` the temperature is 0; which position is next is drawn
        all the same, by a seed of its own for each context. With it the same request gives another
        text each time that it is asked for.
        """
        texts = [""] * len(requests)
        options = [_writing_options(request.args[1]) for request in requests]
        prompts = [
            self._prompt(request.args[0], option["max_gen_toks"])
            for request, option in zip(requests, options, strict=True)
        ]
        self._check_known(prompts)
        keys = _keys(requests, options)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="generate_until") as bar:
            for group in _groups(options):

                def write(batch: list[int]) -> list[str]:
                    return self._write(
                        [prompts[i] for i in batch], [keys[i] for i in batch], options[batch[0]]
                    )

                for batch, written in self._batches(group, lambda i: len(prompts[i]), write):
                    for i, text in zip(batch, written, strict=True):
                        texts[i] = postprocess_generated_text(text, options[i]["until"], None)
                        self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
                    bar.update(len(batch))
        return texts

    def _prompt(self, context: str, new_tokens: int) -> list[int]:
        kept = max(self.max_length - new_tokens, self.max_length // 2, 1)
        return self.tok_encode(context)[-kept:]

    def _write(
        self, prompts: list[list[int]], keys: list[str], options: dict[str, Any]
    ) -> list[str]:
        draws = {
            name: options[name]
            for name in ("temperature", "top_p", "top_k")
            if options.get(name) is not None
        }
        out = self.pipe(
            prompts,
            max_new_tokens=options["max_gen_toks"],
            generator=[self._generator(key) for key in keys],
            output_type="seq",
            **draws,
            **self.writing_options,
        )
        rows = zip(out.sequences.tolist(), out.order.tolist(), strict=True)
        new = [[token for token, step in zip(*row, strict=True) if step >= 0] for row in rows]
        ends = [end_of_text(row, self.eot_token_id) for row in new]
        return [
            self.tokenizer.decode(row[:end], skip_special_tokens=True)
            for row, end in zip(new, ends, strict=True)
        ]

    def _generator(self, key: str) -> torch.Generator:
        return hashed_generator(f"{self.seed} {key}")


def _load(
    pretrained: str | Path | LoMDMPipeline, device: Any, how: dict[str, Any]
) -> LoMDMPipeline:
    """The pipeline on its device; `how` has `dtype`, `revision`, `tokenizer` and `peft`."""
    if not isinstance(pretrained, (str, Path)):
        pipe = pretrained
        if how:
            wrong = f"model_args has {sorted(how)}, but pretrained is a pipeline."
            raise ValueError(f"{wrong} Build it as it shall be.")
    else:
        if Path(pretrained).is_dir() and how.get("revision", "main") != "main":
            raise ValueError(
                f"revision={how['revision']!r} is for Hub repositories, {pretrained} is a folder."
            )
        adapter, dtype = how.pop("peft", None), _dtype(how.pop("dtype", "float32"))
        if isinstance(how.get("tokenizer"), str):
            how["tokenizer"] = read_tokenizer(how["tokenizer"])
        pipe = LoMDMPipeline.from_pretrained(str(pretrained), dtype=dtype, **how)
        if adapter is not None:
            from peft import PeftModel

            merged = PeftModel.from_pretrained(pipe.model, adapter).merge_and_unload().eval()
            pipe.register_modules(model=merged)
        default = "cuda" if torch.cuda.is_available() else "cpu"
        device = default if device is None else device
    if pipe.tokenizer is None:
        raise ValueError(
            "pretrained has no tokenizer, but lm-eval speaks text. Save the pipeline with one."
        )
    return pipe if device is None else pipe.to(_device(device))


def _dtype(value: str | torch.dtype) -> str | torch.dtype:
    if value == "auto":
        return value
    dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(
            f"dtype must be 'auto' or a floating point type such as 'bfloat16', got {value!r}."
        )
    return dtype


def _device(value: str | int | torch.device) -> torch.device:
    """The device of this name; the CPU, with a warning, in place of a GPU that is not there."""
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be the name of one, such as 'cpu' or 'cuda:0', got {value!r}."
        ) from error
    available = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    if device.type == "cpu" or (
        available is not None
        and available.type == device.type
        and (device.index or 0) < torch.accelerator.device_count()
    ):
        return device
    default = torch.device("cpu") if available is None else available
    logging.getLogger(__name__).warning(
        "device %s is not there: the model runs on %s", device, default
    )
    return default


def _check_unused(options: dict[str, Any]) -> None:
    unknown = sorted(name for name, value in options.items() if value not in UNUSED.get(name, ()))
    if unknown:
        raise ValueError(
            f"model_args has {unknown}, which the model type hf_lomdm does not take. Leave "
            "them out."
        )


def _whole(name: str, value: Any, least: int = 1, most: float = float("inf")) -> int:
    """A whole number, which lm-eval may have left a string."""
    number = int(value) if str(value).lstrip("-").isdecimal() else least - 1
    if isinstance(value, bool) or not least <= number <= most:
        span = f"of at least {least}" if most == float("inf") else f"from {least} to {most}"
        raise ValueError(f"{name} must be a number {span}, got {value!r}.")
    return number


def _writing_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """The `generation_kwargs` of a task, with every value that lm-eval means."""
    options = dict(normalize_gen_kwargs(arguments))
    unknown = sorted(
        name for name, value in options.items() if name not in WRITING and value not in NEUTRAL
    )
    if unknown:
        raise ValueError(
            f"generation_kwargs has {unknown}, which hf_lomdm does not take: {', '.join(WRITING)}."
        )
    if not options["do_sample"]:
        # lm-eval 0.4.13 leaves it out where the task does not name `do_sample`
        options["temperature"] = 0.0
    return options


def _keys(requests: Sequence[Any], options: Sequence[dict[str, Any]]) -> list[str]:
    """What the draws of a request depend on: its context, and which repetition it is."""
    repetitions: Counter[str] = Counter()
    keys = []
    for request, option in zip(requests, options, strict=True):
        context = request.args[0]
        name = json.dumps([context, option], sort_keys=True, default=str)
        keys.append(
            f"{context}\0{repetitions[name]}"
            if repetitions[name] and option["do_sample"]
            else context
        )
        repetitions[name] += 1
    return keys


def _groups(options: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Indices of requests that can be written together."""
    groups: dict[str, list[int]] = {}
    for index, option in enumerate(options):
        settings = {
            name: option.get(name) for name in ("max_gen_toks", "temperature", "top_p", "top_k")
        }
        groups.setdefault(repr(settings), []).append(index)
    return list(groups.values())


if __name__ == "__main__":
    cli_evaluate()
