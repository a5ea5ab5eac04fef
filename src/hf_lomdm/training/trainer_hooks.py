"""Everything that overrides private methods of `transformers.Trainer`.

Each says what no public method can do in transformers 5.14, the oldest release that is supported,
to 5.23.
"""

from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback

from . import checkpointing

STATE_FILE = "trainer_state.json"


class TrainerHooks(Trainer):
    """A Trainer with complete checkpoints and public places for what `LoMDMTrainer` adds.

    Subclasses have `count_tokens`, `begin`, `step_done`, `best_model_loaded`, `write_folder` and
    `write_training_state`.
    """

    staging: Path | None = None  # where a checkpoint is being written

    def create_accelerator_and_postprocess(self) -> None:
        """Under FSDP autocast alone chooses the precision.

        Its own policy would cast quantiles and rates to bfloat16.
        """
        # accelerate takes the policy from `bf16`, and the model is wrapped before any callback.
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = None

    def _get_num_items_in_batch(self, batch_samples, device) -> Tensor:
        # Up to 5.23 the Trainer counts labels without a look at `attention_mask`, and of causal
        # models not the first.
        return self.count_tokens(batch_samples, device)

    def _load_best_model(self) -> None:
        # Up to 5.23 no callback stands between this and the next use of the weights.
        super()._load_best_model()
        self.best_model_loaded()

    @property
    def is_sharded(self) -> bool:
        """Whether this process holds a part of the weights only."""
        # from 5.20 on
        loaded_in_shards = getattr(self, "is_distributed_loading_by_transformers", False)
        return self.is_fsdp_enabled or self.is_deepspeed_enabled or loaded_in_shards

    def hub_model(self) -> PreTrainedModel | None:
        """The model, if this process holds all of it and a Hub folder can carry it."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model if isinstance(model, PreTrainedModel) and not self.is_sharded else None

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # `save_model`, which is public, gathers sharded weights and then leaves the files to this.
        model = self.hub_model()
        if model is None:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            self.write_folder(model, Path(output_dir or self.args.output_dir))

    def _get_output_dir(self, trial) -> str:
        # Up to 5.23 the one place that tells `_save_checkpoint` where to write.
        return super()._get_output_dir(trial) if self.staging is None else str(self.staging)

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        """Writes beside its place, flushes and renames: a checkpoint is complete or absent."""
        # Up to 5.23 the Trainer writes in place, and `on_save` comes too late.
        name, output_dir = f"checkpoint-{self.state.global_step}", Path(self._get_output_dir(trial))
        self.staging = checkpointing.staging_folder(output_dir, self.state.global_step)
        try:
            self._write_checkpoint(model, trial, self.staging / name, output_dir)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpointing.publish(self.staging / name, output_dir / name)
                self.staging.rmdir()
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch and safetensors do not raise OSError
            last = checkpointing.complete_checkpoints(output_dir)[-1:]
            checkpointing.clean(output_dir)
            reason = " ".join(str(error).split())
            raise OSError(
                f"Checkpoint {output_dir / name} could not be written: {reason}. The last complete "
                f"checkpoint is {last[0] if last else 'none'}. Make room on the disk (or set "
                "save_total_limit), then start again."
            ) from error
        finally:
            self.staging = None
        self.accelerator.wait_for_everyone()
        self._after_checkpoint(output_dir, name)

    def _write_checkpoint(self, model: nn.Module, trial, folder: Path, output_dir: Path) -> None:
        super()._save_checkpoint(model, trial)
        self.write_training_state(folder)
        best = output_dir / f"checkpoint-{self.state.best_global_step}"
        # the Trainer looked for it in the folder that it wrote to
        if best.is_dir() or best.name == folder.name:
            self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self.state.save_to_json(str(folder / STATE_FILE))

    def _after_checkpoint(self, output_dir: Path, name: str) -> None:
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(output_dir / name))
        if self.args.should_save:
            keep = {output_dir / name, Path(self.state.best_model_checkpoint or output_dir / name)}
            checkpointing.rotate(output_dir, self.args.save_total_limit, keep)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Up to 5.23 `_save_checkpoint` uploads in the background, which must not see the folder
        # that is renamed.
        if self.staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _issue_warnings_after_load(self, load_result) -> None:
        """Keys that are missing or unexpected in a checkpoint are an error, not a warning."""
        # Up to 5.23 the keys are told to nobody else.
        tied = set(self.model.all_tied_weights_keys)
        missing, unexpected = (
            sorted(set(load_result.missing_keys) - tied),
            load_result.unexpected_keys,
        )
        if missing or unexpected:
            raise ValueError(
                f"The checkpoint does not fit the model: missing {missing[:5]}, unexpected "
                f"{unexpected[:5]}. Resume with the configuration that was saved, or train in "
                "another --output_dir."
            )


class StepCallback(TrainerCallback):
    """Tells the trainer when the weights are in place and when an optimizer step is done."""

    def __init__(self, trainer: TrainerHooks):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        """Begins the run."""
        self.trainer.begin()

    def on_step_end(self, args, state, control, **kwargs):
        """Ends an optimizer step."""
        self.trainer.step_done(control)
