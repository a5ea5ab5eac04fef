"""The model type `hf_lomdm` of lm-eval (EleutherAI's lm-evaluation-harness).

    python -m hf_lomdm.evaluation.lm_eval_adapter --model hf_lomdm --model_args pretrained=FOLDER --tasks lambada_openai

What lm-eval calls a log-likelihood is here minus an upper bound on `-log P`: a lower bound, estimated with a standard
error that shrinks with `num_samples`. Between the choices of one question the draws are shared, so that most of the
error cancels. For autoregressive baselines take lm-eval's own `--model hf`.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm.auto import tqdm

from ..pipelines import LoMDMPipeline
from ..pipelines.pipeline_lomdm import well_formed
from ..training.tokenizers import encode_texts
from .corpus import Text, collate
from .likelihood import nelbo

UNUSED = ("max_batch_size", "trust_remote_code", "parallelize")  # what lm-eval passes to every model


@register_model("hf_lomdm")
class LoMDMLM(TemplateLM):
    """A `LoMDMPipeline` as lm-eval sees it; one process.

    Args:
        pretrained: a folder, a Hub name, or a pipeline with its tokenizer.
        batch_size: requests per pass; those of similar length go together, which changes no result.
        device: default: the GPU if there is one. dtype: of the weights, such as `"bfloat16"`; default the checkpoint's.
        bound, num_samples, num_orders: of the bound, as in `hf_lomdm.evaluation.nelbo`.
        num_inference_steps, sampler: of `generate_until`, as in the call of the pipeline.
        max_length: longest row in tokens; default the model's `max_position_embeddings`.
        seed: of all draws; those of a request come from a hash of seed and context.
    Raises:
        ValueError: no tokenizer, a count below 1, an option that nobody knows.
    """

    def __init__(
        self,
        pretrained: str | LoMDMPipeline,
        batch_size: int | str = 16,
        device: str | None = None,
        dtype: str | None = None,
        bound: str = "order",
        num_samples: int = 16,
        num_orders: int | None = None,
        num_inference_steps: int = 256,
        sampler: str | None = None,
        max_length: int | None = None,
        seed: int = 0,
        **unused,
    ):
        super().__init__()
        unknown = sorted(set(unused) - set(UNUSED))
        if unknown:
            raise ValueError(f"model_args has {unknown}, which the model type hf_lomdm does not know.")
        if isinstance(pretrained, (str, Path)):
            options = {} if dtype is None else {"dtype": getattr(torch, dtype)}
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            pretrained = LoMDMPipeline.from_pretrained(str(pretrained), **options).to(device)
        if pretrained.tokenizer is None:
            raise ValueError("pretrained has no tokenizer, but lm-eval speaks text. Save the pipeline with one.")
        pretrained.set_progress_bar_config(disable=True)
        self.pipe, self.model, self.tokenizer = pretrained, pretrained.model, pretrained.tokenizer
        self.batch_size, self.seed = _batch_size(batch_size), int(seed)
        self.max_length = int(max_length or self.model.config.max_position_embeddings)
        self.bound_options = {"bound": bound, "num_samples": int(num_samples), "num_orders": num_orders}
        self.writing_options = {"num_inference_steps": int(num_inference_steps), "sampler": sampler}
        self._device = next(self.model.parameters()).device

    @property
    def eot_token_id(self) -> int | None:
        """The model's EOS."""
        return self.model.config.eos_token_id

    @property
    def prefix_token_id(self) -> int | None:
        """What stands in front of every text, given and not counted: the model's BOS; `None` without one."""
        return self.model.config.bos_token_id

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """Token ids; behind the model's BOS, if it has one, unless `add_special_tokens` is `False`.

        Special tokens that a text spells out are special, as chat templates want it, but for the mask token: all of a
        text with one is plain text.
        """
        ids = self.tokenizer(well_formed(string), add_special_tokens=False, verbose=False)["input_ids"]
        if self.model.config.mask_token_id in ids:
            (ids,) = encode_texts(self.tokenizer, [string], lambda _: "a request")
        with_bos = add_special_tokens is not False and self.prefix_token_id is not None
        return [self.prefix_token_id, *ids] if with_bos else ids

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        """Lower bounds on `log P(continuation | context)` in nats, and whether greedy decoding would write it.

        Greedy decoding is that from left to right: the likeliest token of the first masked position, again and again,
        the continuation's length given. (The model's own order is random; this needs no draw and means the same for
        every model.)
        """
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        parts = [(pair[0], context, continuation) for pair, context, continuation in requests]
        for batch, values, inputs in self._bounds(parts, disable_tqdm):
            for i, value, greedy in zip(batch, values, self._is_greedy(**inputs), strict=True):
                results[i] = (value, greedy)
                self.cache_hook.add_partial("loglikelihood", requests[i][0], results[i])
        return results

    def _bounds(self, parts: Sequence[tuple[str, list, list]], disable_tqdm: bool) -> Iterator[tuple]:
        """Batch by batch the indices, the bounds on `log P` and the inputs of `parts`: key, context, continuation."""
        texts = [self._text(context, continuation) for _, context, continuation in parts]
        with tqdm(total=len(texts), disable=disable_tqdm, desc="loglikelihood") as bar:
            for batch in _batches(range(len(texts)), lambda i: len(texts[i].ids), self.batch_size):
                inputs = collate([texts[i] for i in batch], self._device)
                generators = [self._generator(parts[i][0]) for i in batch]
                estimate = nelbo(self.model, **inputs, **self.bound_options, generator=generators)
                yield batch, (-estimate.nelbo).tolist(), inputs
                bar.update(len(batch))

    def _text(self, context: Sequence[int | None], continuation: Sequence[int]) -> Text:
        """One row: as much of the end of the context as fits, given, and the continuation."""
        if len(continuation) > self.max_length:
            raise ValueError(
                f"a continuation has {len(continuation)} tokens, the model takes {self.max_length} (max_length)."
            )
        known = [token for token in context if token is not None]  # the prefix of a model without BOS
        known = known[max(0, len(known) + len(continuation) - self.max_length) :]
        ids = torch.tensor([*known, *continuation]).numpy()
        labels = ids.copy()
        labels[: len(known)] = -100
        return Text(ids, labels)

    @torch.no_grad()
    def _is_greedy(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None) -> list[bool]:
        """One pass per token of the continuation, for the rows that were right so far."""
        left = labels != -100
        greedy = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        sample = input_ids.masked_fill(left, self.model.config.mask_token_id)
        while (rows := (greedy & left.any(-1)).nonzero().flatten()).numel():
            first = left[rows].int().argmax(-1)
            padding = None if attention_mask is None else attention_mask[rows]
            hidden = self.model(sample[rows], attention_mask=padding, output_logits=False).last_hidden_state
            likeliest = self.model.token_logits(hidden[torch.arange(len(rows)), first]).argmax(-1)
            greedy[rows] = likeliest == input_ids[rows, first]
            sample[rows, first] = input_ids[rows, first]
            left[rows, first] = False
        return greedy.tolist()

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Lower bounds on `log P(text)` in nats, the sum over windows of `max_length` tokens.

        The first token of a window is given: BOS at the start of a text, then the last token of the window before. A
        text's EOS is not counted.
        """
        windows, owners = [], []
        for index, (text,) in enumerate(request.args for request in requests):
            tokens = self.tok_encode(text, add_special_tokens=False)
            parts = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length - 1, context_len=1)
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

        All `max_gen_toks` positions are written, then the text is cut. Of the context the end is kept, as much as fits,
        at least half of `max_length`; longer results are written in windows (`LoMDMPipeline`). Without `do_sample` the
        temperature is 0; which position is next is drawn all the same, by a seed of its own for each context.
        """
        texts = [""] * len(requests)
        options = [_writing_options(request.args[1]) for request in requests]
        prompts = [
            self._prompt(request.args[0], one["max_gen_toks"]) for request, one in zip(requests, options, strict=True)
        ]
        with tqdm(total=len(requests), disable=disable_tqdm, desc="generate_until") as bar:
            for group in _groups(options):
                for batch in _batches(group, lambda i: len(prompts[i]), self.batch_size):
                    contexts = [requests[i].args[0] for i in batch]
                    written = self._write([prompts[i] for i in batch], contexts, options[batch[0]])
                    for i, text in zip(batch, written, strict=True):
                        texts[i] = postprocess_generated_text(text, options[i]["until"], None)
                        self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
                    bar.update(len(batch))
        return texts

    def _prompt(self, context: str, new_tokens: int) -> list[int]:
        kept = max(self.max_length - new_tokens, self.max_length // 2, 1)
        return self.tok_encode(context)[-kept:]

    def _write(self, prompts: list[list[int]], contexts: list[str], options: dict[str, Any]) -> list[str]:
        draws = {name: options[name] for name in ("temperature", "top_p", "top_k") if options.get(name) is not None}
        out = self.pipe(
            prompts,
            max_new_tokens=options["max_gen_toks"],
            generator=[self._generator(context) for context in contexts],
            output_type="seq",
            **draws,
            **self.writing_options,
        )
        rows = zip(out.sequences.tolist(), out.order.tolist(), strict=True)
        new = [[token for token, step in zip(*row, strict=True) if step >= 0] for row in rows]
        ends = [row.index(self.eot_token_id) if self.eot_token_id in row else len(row) for row in new]
        return [self.tokenizer.decode(row[:end], skip_special_tokens=True) for row, end in zip(new, ends, strict=True)]

    def _generator(self, key: str) -> torch.Generator:
        digest = hashlib.blake2b(f"{self.seed} {key}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest))


def _batch_size(value: int | str) -> int:
    if str(value).isdigit() and int(value) >= 1:
        return int(value)
    raise ValueError(f"batch_size must be a number of at least 1, got {value!r}. For example: 16.")


def _writing_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """The `generation_kwargs` of a task, with every value that lm-eval means."""
    options = dict(normalize_gen_kwargs(arguments))
    if not options["do_sample"]:
        options["temperature"] = 0.0  # lm-eval 0.4.13 leaves it out where the task does not name `do_sample`
    return options


def _batches(indices: Sequence[int], length: Callable[[int], int], size: int) -> Iterator[list[int]]:
    """Batches of `size` indices, the longest requests first."""
    ordered = sorted(indices, key=length, reverse=True)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _groups(options: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Indices of requests that can be written together."""
    groups: dict[str, list[int]] = {}
    for index, one in enumerate(options):
        settings = {name: one.get(name) for name in ("max_gen_toks", "temperature", "top_p", "top_k")}
        groups.setdefault(repr(settings), []).append(index)
    return list(groups.values())


if __name__ == "__main__":
    cli_evaluate()
