"""`CausalTrainer`: the autoregressive baseline, trained, evaluated and saved alike."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from ..evaluation.causal import causal_nll, causal_token_losses
from ..evaluation.likelihood import NelboEstimate
from ..modeling.modeling_lomdm import LoMDMOutput
from ..pipelines.canvas_lomdm import end_of_text
from ..pipelines.pipeline_lomdm import eval_mode
from .measures import maskable
from .model_card import Description, describe_causal
from .trainer import LoMDMTrainer


class CausalTrainer(LoMDMTrainer):
    """`LoMDMTrainer` for `GPTNeoXForCausalLM`, with exact likelihoods in place of bounds.

    Everything else is the trainer's: loss per token of the global batch, average, logs, keys of the
    evaluation, exact resuming. A text is read behind the start token, `config.bos_token_id`, so
    that its first token is predicted too, as in the bounds. Takes the arguments of `LoMDMTrainer`;
    what `save_model` writes loads with `AutoModelForCausalLM`.
    """

    has_order = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model.generation_config = whole_text_generation(self.model)

    def begin(self) -> None:
        """As in `LoMDMTrainer`; the generation configuration had the tokenizer's tokens set."""
        super().begin()
        self.model.generation_config = whole_text_generation(self.model)

    def objective(self, model, inputs) -> LoMDMOutput:
        """`-log P(x)` of each text: `loss` per counted token, `nelbo = main` `[B]`, in nats."""
        real = maskable(inputs)
        clean = torch.where(real, inputs["labels"], inputs["input_ids"])
        targets = inputs["labels"].masked_fill(~real, -100)
        padding, start = inputs.get("attention_mask"), self.model.config.bos_token_id
        nll = causal_token_losses(model, clean, padding, targets, start).sum(-1)
        value = nll.detach()
        loss = nll.sum() / real.sum().clamp(min=1)
        return LoMDMOutput(loss=loss, nelbo=value, main=value, velocity=torch.zeros_like(value))

    def estimate(
        self, batch: dict[str, Tensor], generators: list[torch.Generator]
    ) -> NelboEstimate:
        """`-log P(x)`, exact: nothing is drawn."""
        return causal_nll(self.model, **batch, start_token_id=self.model.config.bos_token_id)

    def describe(self) -> Description:
        """What the model card says of the kind of model."""
        return describe_causal()

    def write_model(
        self, model: PreTrainedModel, tokenizer, folder: Path, card: str | None
    ) -> None:
        """Writes weights, generation configuration, tokenizer and, unless `None`, the card."""
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")

    def sample_texts(self, count: int) -> list[str]:
        """Texts of `max_position_embeddings` tokens at most, by the averaged weights."""
        tokenizer = self.processing_class
        with self.averaged_weights():
            model = self.accelerator.unwrap_model(self.model)
            with eval_mode(model):
                rows = model.generate(num_return_sequences=count).tolist()
        # search from 2 on: the first token may be a BOS that is the EOS too
        texts = [row[: end_of_text(row, tokenizer.eos_token_id, 2)] for row in rows]
        return [tokenizer.decode(ids, skip_special_tokens=True) for ids in texts]


def whole_text_generation(model: PreTrainedModel) -> GenerationConfig:
    """What makes `model.generate()` draw a whole text from the law of `causal_nll`."""
    config = model.config
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        suppress_tokens=[config.bos_token_id],
        max_length=config.max_position_embeddings + 1,  # plus the start token
        do_sample=True,
        top_k=0,
    )
