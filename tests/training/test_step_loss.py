"""The loss of a step: what counts in it, and what the message of a stopped training says of it."""

import re

import pytest
import torch
from tiny_training import collate, make_trainer
from transformers import TrainerCallback


class BreakGradient(TrainerCallback):
    """From step 3 on the gradient is infinite; the loss is what it would have been."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            model.lm_head.bias.register_hook(lambda gradient: gradient * torch.inf)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_message_has_the_loss_of_that_step_alone(tmp_path, accumulation):
    settings = {
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": 8 // accumulation,
    }
    whole = make_trainer(tmp_path, **settings)
    whole.train()
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    with pytest.raises(FloatingPointError) as stopped:
        make_trainer(tmp_path, callbacks=[BreakGradient()], **settings).train()
    output = float(
        re.search(r"stopped at step 3: loss (\S+), gradient norm (?:inf|nan)", str(stopped.value))[
            1
        ]
    )
    assert output == pytest.approx(losses[2], rel=1e-3)  # four digits


def test_padding_counts_nowhere_whatever_its_labels(tmp_path):
    def collate_labels(texts: list[dict]) -> dict[str, torch.Tensor]:
        batch = collate(texts)
        # a token at padding, too, which the mask alone tells
        return {**batch, "labels": batch["input_ids"]}

    histories = []
    for collator in (collate, collate_labels):
        trainer = make_trainer(
            tmp_path, unequal=True, gradient_accumulation_steps=2, per_device_train_batch_size=4
        )
        trainer.data_collator = collator
        trainer.train()
        names = ("loss", "main", "velocity", "score", "forward_spread", "phi_grad_norm")
        histories.append(
            [
                [entry[name] for name in names]
                for entry in trainer.state.log_history
                if "loss" in entry
            ]
        )
        histories[-1].append(trainer.evaluate()["eval_tokens"])
    assert histories[0] == histories[1] and len(histories[0]) == 5
