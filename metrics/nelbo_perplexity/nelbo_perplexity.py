"""Perplexity of texts under a masked diffusion model, by a bound, for `evaluate.load`."""

import math
import os

import datasets
import evaluate
import torch

from hf_lomdm import LoMDMPipeline
from hf_lomdm.data.rows import roll
from hf_lomdm.data.tokenizers import encode_texts
from hf_lomdm.evaluation.corpus import evaluate_corpus

_DESCRIPTION = """
Perplexity of texts under a LoMDM or a model of its family: exp of an upper bound on -log P per
token. Texts longer than the context are read in windows that overlap by half, each token counted
once.
"""

_INPUTS = """
Args:
    predictions: list of texts, none of them empty.
    model: a folder, a Hub name (read in float32), or a LoMDMPipeline with its tokenizer, used as it
        is.
    device: of a model that is named; default the GPU if there is one.
    bound: "order" (default) or "time".
    num_samples: draws for each text, default 16. seed: of all draws, default 0.
    batch_tokens: tokens per pass, default 8192.
    add_start_token: read every text behind the model's BOS, if it has one (default); BOS is not
        counted. Every window of a long text gets it.
Returns:
    perplexity: of the corpus, exp of nats per token.
    perplexity_interval: 95 %, over texts and draws.
    mean_perplexity, perplexities: of each text, and their mean, as in the metric "perplexity".
    nats_per_token, standard_error, tokens.
"""


class NelboPerplexity(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(
        self,
        predictions,
        model,
        bound="order",
        num_samples=16,
        seed=0,
        batch_tokens=8192,
        add_start_token=True,
        device=None,
    ):
        pipe = _pipeline(model, device)
        rows, groups = _rows(pipe, list(predictions), add_start_token)
        record = evaluate_corpus(
            pipe.model,
            rows,
            bound=bound,
            num_samples=num_samples,
            groups=groups,
            batch_tokens=batch_tokens,
            seed=seed,
            progress=False,
        )
        per_text = record["per_text"]
        perplexities = [
            math.exp((main + velocity) / tokens)
            for main, velocity, tokens in zip(
                per_text["main"], per_text["velocity"], per_text["tokens"], strict=True
            )
        ]
        return {
            "perplexity": record["perplexity"],
            "perplexity_interval": record["perplexity_interval"],
            "mean_perplexity": sum(perplexities) / len(perplexities),
            "perplexities": perplexities,
            "nats_per_token": record["value"],
            "standard_error": record["standard_error"],
            "tokens": record["tokens"],
        }


def _pipeline(model, device) -> LoMDMPipeline:
    """The pipeline that was passed, or the one of a folder or Hub name, on its device."""
    pipe = model
    if isinstance(model, (str, os.PathLike)):
        pipe = LoMDMPipeline.from_pretrained(model, dtype=torch.float32)
        pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    elif device is not None:
        raise ValueError(
            f"device={device!r} is for a model that is named. Move the pipeline: pipe.to(device)."
        )
    if pipe.tokenizer is None:
        raise ValueError(
            "model has no tokenizer, but predictions are texts. Pass a pipeline with one."
        )
    return pipe


def _rows(
    pipe: LoMDMPipeline, predictions: list[str], add_start_token: bool
) -> tuple[list[dict], list[int]]:
    """Windows of the texts, each behind the start token if there is one, and the text of each."""
    if not predictions:
        raise ValueError("predictions is empty. Pass at least one text.")
    config = pipe.model.config
    texts = encode_texts(pipe.tokenizer, predictions, lambda index: f"predictions[{index}]")
    empty = [i for i, text in enumerate(texts) if not text]
    if empty:
        raise ValueError(f"predictions {empty[:8]} have no tokens. Leave empty texts out.")
    start = [config.bos_token_id] if add_start_token and config.bos_token_id is not None else []
    room = config.max_position_embeddings - len(start)
    rows, groups = roll(texts, room, max(1, room // 2))
    for row in rows:
        row["labels"] = [-100] * len(start) + list(row["labels"])
        row["input_ids"] = start + list(row["input_ids"])
    return rows, groups
