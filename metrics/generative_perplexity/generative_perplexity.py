"""Perplexity of written texts under a judge, and their variety, for `evaluate.load`."""

import math

import datasets
import evaluate

from hf_lomdm.evaluation.judge import judge_texts, load_judge

_DESCRIPTION = """
Perplexity of written texts under a causal language model, the judge, which reads them with its own
tokenizer. Dull and repetitive text has a low one: read it beside the entropy, the repetition and
the distinct n-grams, which are given too.
"""

_INPUTS = """
Args:
    predictions: list of texts; empty ones are counted, and left out of all measures.
    model: the judge: a Hub name, a folder, a gguf file (default "gpt2-large"), or a model together
        with its tokenizer.
    tokenizer: of a judge that is passed as a model.
    batch_size: windows per pass, default 8. max_length: of a window in tokens, default 1024.
    add_start_token: read every text behind the judge's BOS, if it has one (default), and count its
        first token.
    device: of a judge that is passed by name; default: the GPU if there is one.
Returns:
    perplexity: of the corpus, exp of nats per token, with its standard_error over texts.
    mean_perplexity, perplexities: of each text that is not empty, and their mean, as in the metric
        "perplexity".
    judge_entropy, repetition, distinct_1, distinct_2, distinct_3, tokens, empty_texts.
"""

_KEPT = (
    "standard_error",
    "judge_entropy",
    "repetition",
    "distinct_1",
    "distinct_2",
    "distinct_3",
    "tokens",
)


class GenerativePerplexity(evaluate.Metric):
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
        model="gpt2-large",
        tokenizer=None,
        batch_size=8,
        max_length=1024,
        add_start_token=True,
        device=None,
    ):
        if isinstance(model, str):
            if tokenizer is not None:
                raise ValueError(
                    "tokenizer is for a judge that is passed as a model. Leave it out."
                )
            model, tokenizer = load_judge(model, device)
        elif device is not None:
            raise ValueError(
                f"device={device!r} is for a judge that is named. Move the model: model.to(device)."
            )
        if tokenizer is None:
            raise ValueError(
                "tokenizer is None, but the judge was passed as a model. Pass its tokenizer too."
            )
        options = {
            "batch_size": batch_size,
            "context": max_length,
            "with_bos": add_start_token,
            "progress": False,
        }
        record = judge_texts(list(predictions), model, tokenizer, **options)
        per_text = zip(record["per_text"]["nats"], record["per_text"]["tokens"], strict=True)
        perplexities = [math.exp(nats / tokens) for nats, tokens in per_text if tokens]
        return {
            "perplexity": record["value"],
            "mean_perplexity": sum(perplexities) / len(perplexities),
            "perplexities": perplexities,
            "empty_texts": record["empty_texts"],
            **{name: record[name] for name in _KEPT},
        }
