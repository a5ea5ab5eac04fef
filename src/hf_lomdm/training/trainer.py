"""`LoMDMTrainer`: transformers' Trainer with the draws, logs and average of LoMDM training."""

import logging
import math
import signal
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from transformers import TrainerControl
from transformers.trainer_utils import EvalLoopOutput, has_length

from ..data.draws import step_generators, step_quantiles
from ..data.streaming import StreamError
from ..evaluation import NelboEstimate, nelbo
from ..evaluation.summary import summarise_texts
from ..modeling.modeling_lomdm import LoMDMOutput
from ..modeling.random_lomdm import copy_to_device
from ..pipelines.hub_folder_lomdm import check_target
from . import checkpointing, resuming
from .arguments import UNUSED, LoMDMTrainingArguments
from .ema import AVERAGE, EMA
from .folder_writer import FolderWriter, make_pipeline
from .interruption import Interruption
from .measures import (
    MASKED,
    freeze,
    gather_weights_for_evaluation,
    gradient_norm,
    head_weights,
    is_clean,
    maskable,
)
from .optimizer import add_muon
from .progress import tell_progress
from .trainer_hooks import StepCallback
from .training_log import TrainingLog, keep_logs_in

logger = logging.getLogger(__name__)

EVALUATION_SEED = 20260202
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


class LoMDMTrainer(FolderWriter):
    """Trains `LoMDMForMaskedDiffusion`; a `transformers.Trainer` with these differences.

    - The random masks of a text depend on the seed, the step and the place of the text in the
      global batch, not on micro-steps and processes. The quantiles (of the time, or of the number
      of reveals) are stratified over the global batch.
    - The loss is the bound of the global batch divided by its maskable tokens, also for texts of
      unequal length.
    - The order heads have their own `head_learning_rate`; `frozen_modules` are not trained.
    - Weights are averaged (`ema_decay`). Evaluation uses the average, and `save_model` writes it:
      a Hub folder that loads as a model and as a pipeline without this package.
    - Evaluation is by the order bound, with its standard error, on fixed draws.
    - A checkpoint is complete or absent. Training that is killed and started again gives the same
      weights, bit by bit on the CPU. Ctrl-C, SIGTERM and SIGHUP save a checkpoint first.
    - A loss or gradient that is not finite stops training before it changes the weights.

    Takes the arguments of `transformers.Trainer`, with `args` a `LoMDMTrainingArguments`. Batches
    hold `input_ids` and `labels` `[B, L]` (-100 = given or padding), and `attention_mask` `[B, L]`
    where something is padded.
    """

    # The loss of `compute_loss` is a share of the global batch: the Trainer is not to divide it by
    # accumulation steps.
    loss_is_scaled_for_ga = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for name in UNUSED:
            if getattr(self, name, None) is not None:
                raise ValueError(f"{name} is not supported: {UNUSED[name]} Leave it out.")
        if not isinstance(self.args, LoMDMTrainingArguments):
            raise ValueError(
                f"args must be LoMDMTrainingArguments, got {type(self.args).__name__}. Pass one."
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process are not supported. Start one process per "
                "GPU: accelerate launch training_scripts/train.py ..., or set "
                "CUDA_VISIBLE_DEVICES=0."
            )
        freeze(self.model, self.args.frozen_modules or ())
        # makes the Trainer count the tokens of the global batch
        self.model_accepts_loss_kwargs = True
        self.ema: EMA | None = None
        self._checkpoint: Path | None = None  # where training resumed
        self._first_step = 0  # where the latest call of `train` began
        self._special_tokens = {
            name: getattr(self.model.config, name, None) for name in SPECIAL_TOKENS
        }
        self._interruption = Interruption(once=True)
        # whether any process had been told to stop when the step began
        self._stop: Tensor | bool = False
        self._step_loss: Tensor | float = 0.0
        # of the last step: the loss of this process, the tokens of all
        self.step_loss: Tensor | float = 0.0
        self.step_tokens: Tensor | int = 0
        # whether no position of the step was masked before it came here
        self._step_is_clean: Tensor | bool = True
        self._training_log = TrainingLog()
        self.add_callback(StepCallback(self))
        keep_logs_in(self.args.output_dir, self.callback_handler.callbacks)
        tell_progress(self)

    def get_train_dataloader(self):
        """As in `transformers.Trainer`, but there is a batch in it."""
        loader = super().get_train_dataloader()
        self._check_steps(len(loader) if has_length(loader) else 1)
        self._interruption.shield(loader)
        return loader

    def get_eval_dataloader(self, eval_dataset=None):
        """As in `transformers.Trainer`; a signal does not end the workers of the loader."""
        loader = super().get_eval_dataloader(eval_dataset)
        self._interruption.shield(loader)
        return loader

    def _check_output(self) -> None:
        """Now, not when the training is done."""
        try:
            check_target(self.args.output_dir, self.model.config.model_type)
        except ValueError as error:
            raise checkpointing.RunError(str(error)) from error

    def _check_steps(self, count: int) -> None:
        if count == 0:
            rows = len(self.train_dataset) if has_length(self.train_dataset) else "no"
            raise checkpointing.RunError(
                f"there is no step to take: train_dataset has {rows} rows, a step takes "
                f"{self.get_total_train_batch_size(self.args)}, max_steps={self.args.max_steps}, "
                f"num_train_epochs={self.args.num_train_epochs}, dataloader_drop_last="
                f"{self.args.dataloader_drop_last}. Give more text or more steps, or lower the "
                "batch size."
            )

    # ------------------------------------------------------------------------------------- the step

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Fetches the micro-batches of a step; adds to each text its quantile and generator."""
        # resumed after the last step
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        ranks, size = self.accelerator.num_processes, self._train_batch_size
        global_size = self.args.gradient_accumulation_steps * ranks * size
        for micro_step, batch in enumerate(batches):
            first = (micro_step * ranks + self.accelerator.process_index) * size
            texts = range(first, first + len(batch["input_ids"]))
            quantiles = step_quantiles(self.args.seed, self.state.global_step, texts, global_size)
            # left to the Trainer, it would wait for the GPU
            batch["quantiles"] = copy_to_device(quantiles, device)
            batch["generator"] = step_generators(self.args.seed, self.state.global_step, texts)
        return batches, tokens

    def count_tokens(self, batches, device) -> Tensor:
        """Maskable tokens of all micro-batches on all processes; agrees on whether to stop."""
        tokens = sum(maskable(batch).sum() for batch in batches)
        told = torch.as_tensor(
            self._interruption.signal is not None, device=device, dtype=torch.int64
        )
        counts = torch.stack([torch.as_tensor(tokens, device=device, dtype=torch.int64), told])
        tokens, self._stop = self.accelerator.reduce(counts, "sum")
        self.step_tokens = tokens
        return tokens

    def objective(self, model, inputs) -> LoMDMOutput:
        """The loss of a micro-batch per maskable token, and its terms `[B]` per text, in nats."""
        # All views of each text and all heads in one call: DDP and FSDP wrap `forward` alone
        return model(**inputs, return_dict=True)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's share of the loss, times the processes (gradients are averaged)."""
        outputs = self.objective(model, inputs)
        # 1. From nats per token of this micro-batch to its share of the global batch
        share = maskable(inputs).sum() / num_items_in_batch.clamp(min=1)
        loss = outputs.loss * share * self.accelerator.num_processes
        # 2. Every term of the bound, added up on the device until the next log
        self._step_is_clean = is_clean(inputs) & self._step_is_clean
        self._training_log.add(outputs, maskable(inputs))
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """Forward and backward of a micro-batch; complete gradients are measured and checked."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss = self._step_loss + loss
        if self.accelerator.sync_gradients:
            self._check_step(gradient_norm(model))
            self._stop = bool(self._stop)  # the host waits for the device here anyway
            if head_weights(model, ("phi",)):
                self._training_log.add_gradient(gradient_norm(model, "phi"))
            self.step_loss = self._step_loss
            self._step_loss, self._step_is_clean = 0.0, True
        return loss

    def _check_step(self, norm: Tensor) -> None:
        loss = self._step_loss
        if not bool(torch.isfinite(loss) & torch.isfinite(norm) & self._step_is_clean):
            if not self._step_is_clean:
                raise ValueError(MASKED)
            last = checkpointing.complete_checkpoints(self.args.output_dir)[-1:]
            raise FloatingPointError(
                f"Training stopped at step {self.state.global_step + 1}: loss {float(loss):.4g}, "
                f"gradient norm {float(norm):.4g}. The weights were not updated; the last complete "
                f"checkpoint is {last[0] if last else 'none'}. Look for faulty data and start "
                "again, or lower the learning rate and start in another output_dir."
            )

    # ------------------------------------------------------------------------ optimizer and logging

    def get_decay_parameter_names(self, model) -> list[str]:
        """As in `transformers.Trainer`, but `omega` never decays: zero is no neutral rate."""
        return [
            name
            for name in super().get_decay_parameter_names(model)
            if "omega" not in name.split(".")
        ]

    def create_optimizer(self, model=None):
        """AdamW (or `--optim`), no decay of biases, norms and `omega`, groups for order heads.

        With `muon_learning_rate` the matrices of the backbone's layers are Muon's.
        """
        if self.optimizer is None:
            optimizer = super().create_optimizer(model)
            model = self.model if model is None else model
            heads = {id(weight) for weight in head_weights(model)}
            for group in list(optimizer.param_groups):
                own = [weight for weight in group["params"] if id(weight) in heads]
                if own:
                    group["params"] = [
                        weight for weight in group["params"] if id(weight) not in heads
                    ]
                    optimizer.add_param_group(
                        {**group, "params": own, "lr": self.args.head_learning_rate}
                    )
            if self.args.muon_learning_rate is not None:
                whole = self.accelerator.unwrap_model(model, keep_torch_compile=False)
                self.optimizer = add_muon(optimizer, whole, self.args, self.is_sharded)
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        """As in `transformers.Trainer`; `ValueError` for arguments that the schedule refuses."""
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        except TypeError as error:
            given, kind = self.args.lr_scheduler_kwargs, self.args.lr_scheduler_type.value
            raise ValueError(
                f"lr_scheduler_kwargs={given} does not fit lr_scheduler_type={kind!r}: {error}."
            ) from error

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds terms of the bound, rates and the gradient of phi to the Trainer's logs."""
        if "train_loss" in logs and not self.num_steps_trained:
            return  # no step was taken: the loss would be 0
        if self.is_in_train and "loss" in logs:
            logs.update(self._training_log.take(self.accelerator))
        super().log(logs, start_time)

    # ----------------------------------------------------------------------------------- evaluation

    @contextmanager
    def averaged_weights(self):
        """Within this context the model holds the moving average, if there is one."""
        with self.ema.weights_of(self.model) if self.ema else nullcontext():
            yield

    def evaluation_loop(
        self,
        dataloader,
        description,
        prediction_loss_only=None,
        ignore_keys=None,
        metric_key_prefix="eval",
    ):
        """The order bound on `dataloader` on fixed draws, with the averaged weights.

        Returns:
            `EvalLoopOutput` whose metrics are, with the prefix: `nelbo`, `main`, `velocity` (nats
            per maskable token), `perplexity`, `nelbo_standard_error` (texts and Monte-Carlo draws),
            `nelbo_monte_carlo_error` (draws alone; with `eval_num_samples >= 2`), `tokens`, and
            `loss`, which equals `nelbo`.
        """
        self.callback_handler.eval_dataloader = dataloader
        rows = []
        with self.averaged_weights(), self.accelerator.autocast():
            for step, batch in enumerate(dataloader):
                texts = self._evaluate_batch(step, self._prepare_inputs(batch))
                rows.append(self.accelerator.gather_for_metrics(texts).cpu())
                self.control = self.callback_handler.on_prediction_step(
                    self.args, self.state, self.control
                )
        metrics = summarise_texts(torch.cat(rows))
        # a single text has no spread: its error is NaN
        measured = {name: value for name, value in metrics.items() if not math.isnan(value)}
        named = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        self.measured |= named
        return EvalLoopOutput(
            predictions=None, label_ids=None, metrics=named, num_samples=sum(map(len, rows))
        )

    @property
    def has_learned_order(self) -> bool:
        """Whether there is an order to take away (`evaluate_without_order`)."""
        return getattr(self.model.config, "rate_type", None) == "learned"

    def evaluate_without_order(self) -> dict[str, float]:
        """`evaluate` with equal rates, as `eval_without_order`: what the order is worth."""
        with self.accelerator.unwrap_model(self.model).without_order():
            return self.evaluate(metric_key_prefix="eval_without_order")

    def _evaluate_batch(self, step: int, batch: dict[str, Tensor]) -> Tensor:
        """`[B, 4]`: maskable tokens, main, velocity and Monte-Carlo error of each text.

        The error of a single sample is NaN.
        """
        first = (
            step * self.accelerator.num_processes + self.accelerator.process_index
        ) * self.args.eval_batch_size
        if not bool(is_clean(batch)):
            raise ValueError(MASKED)
        generators = step_generators(
            EVALUATION_SEED, 0, range(first, first + len(batch["input_ids"]))
        )
        estimate = self.estimate(batch, generators)
        error = (
            torch.full_like(estimate.main, math.nan)
            if estimate.standard_error is None
            else estimate.standard_error
        )
        columns = torch.stack(
            [maskable(batch).sum(-1).cpu(), estimate.main, estimate.velocity, error], dim=-1
        )
        return columns.float().to(self.args.device)

    def estimate(
        self, batch: dict[str, Tensor], generators: list[torch.Generator]
    ) -> NelboEstimate:
        """The order bound of each text, with one generator per text."""
        return nelbo(
            self.model, **batch, num_samples=self.args.eval_num_samples, generator=generators
        )

    @property
    def can_sample(self) -> bool:
        """Whether one process has all weights, and a tokenizer, and the model writes by itself."""
        return self.has_order and self.processing_class is not None and not self.is_sharded

    def sample_texts(
        self, count: int, longest: int | None = None, seed: int | None = None
    ) -> list[str]:
        """Texts of `longest` tokens at most, as many as the model reads, by the averaged weights.

        `seed`: of draws of their own; default the global generator's.
        """
        own = None if seed is None else torch.Generator().manual_seed(seed)
        with self.averaged_weights():
            model = self.accelerator.unwrap_model(self.model)
            pipe, limit = (
                make_pipeline(model, self.processing_class),
                model.config.max_position_embeddings,
            )
            pipe.set_progress_bar_config(disable=True)
            length = min(longest or limit, limit)
            how = {"num_inference_steps": length, "max_length": length, "generator": own}
            return pipe(num_return_sequences=count, **how).texts

    # -------------------------------------------------------------------------- saving and resuming

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """Trains anew (`None`), from a folder, or with `"auto"` from the newest checkpoint.

        Raises:
            RunError: a checkpoint that is not intact, or of a run with another model, settings or
                data; another process that trains in `output_dir`; no step to take; an `output_dir`
                with a model of another kind, which the final save would replace.
            FloatingPointError: a loss or gradient that is not finite.
            OSError: a checkpoint could not be written; the ones before it are kept.
            StreamError: a stream that cannot be read any further; what was trained is saved.
            SystemExit: Ctrl-C, SIGTERM or SIGHUP, with the status of the shells, 128 and the number
                of the signal.
        """
        self._check_output()
        if self.args.should_save:
            checkpointing.lock(self.args.output_dir)
            checkpointing.clean(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        self._checkpoint = checkpointing.choose_checkpoint(
            resume_from_checkpoint, self.args.output_dir
        )
        if self._checkpoint is not None:
            resuming.check_same_run(self._checkpoint, self._run())
            logger.warning("Resuming from %s.", self._checkpoint)
        resume = None if self._checkpoint is None else str(self._checkpoint)
        with Interruption(once=self.accelerator.num_processes == 1) as self._interruption:
            try:
                result = super().train(resume, trial, ignore_keys_for_eval)
            except StreamError as error:
                raise StreamError(f"{error}; training stops: {self._save_last(trial)}") from error
        self._obey_signal()
        self._check_steps(self.state.global_step)
        return result

    def _save_last(self, trial) -> str:
        """Saves what was trained until the data ended, and says so."""
        last = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        # one of several processes cannot save alone
        if self.accelerator.num_processes == 1 and self.num_steps_trained and not last.is_dir():
            self._save_checkpoint(self.model, trial)
        saved = checkpointing.describe_last(self.args.output_dir)
        return f"{saved}. Mended files are other data: pass init_from, and another output_dir."

    def _obey_signal(self) -> None:
        """Ends the process where any was told to stop, also after the last step."""
        told = torch.tensor(int(self._interruption.signal is not None), device=self.args.device)
        if not int(self.accelerator.reduce(told, "sum")):
            return
        number = self._interruption.signal or signal.SIGTERM
        step, saved = self.state.global_step, checkpointing.describe_last(self.args.output_dir)
        logger.warning("Stopped by %s after step %d: %s.", number.name, step, saved)
        raise SystemExit(128 + number)

    def _run(self) -> dict:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return resuming.describe_run(self.args, model, self.data, self.data_fingerprint)

    @property
    def num_steps_trained(self) -> int:
        """Optimizer steps of the latest `train`; 0 where it found a finished run."""
        return self.state.global_step - self._first_step

    def begin(self) -> None:
        """Everything is in place for the first step: starts the moving average.

        The Trainer has just set the special tokens of the configuration to the tokenizer's: that is
        undone, for they say what is in the texts of the model (no BOS, for example, where the rows
        have none).
        """
        self._first_step, self.measured = self.state.global_step, {}
        self._step_loss, self._step_is_clean = 0.0, True
        for name, own in self._special_tokens.items():
            if getattr(self.model.config, name, None) != own:
                logger.warning("%s of the model stays %s, whatever the tokenizer has.", name, own)
                setattr(self.model.config, name, own)
        if self.is_fsdp_enabled and self.has_order:
            gather_weights_for_evaluation(self.model)
        self.start_ema()

    def step_done(self, control: TrainerControl) -> None:
        """The average follows an optimizer step, measured values lapse, signals are obeyed."""
        self.measured = {}
        if self.ema is not None:
            self.ema.update(self.model)
        if self._stop or (
            self.accelerator.num_processes == 1 and self._interruption.signal is not None
        ):
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # a process that gets a signal may be killed soon

    def start_ema(self) -> None:
        """Starts the moving average from the weights, or takes it from the checkpoint."""
        self.ema = EMA(self.model, self.args.ema_decay) if self.args.ema_decay else None
        if self.ema is not None and self._checkpoint is not None:
            self.ema.load(self._checkpoint / AVERAGE)

    def best_model_loaded(self) -> None:
        """Takes the average of the best checkpoint, whose weights the model now has."""
        self.measured = {}
        if self.ema is not None:
            self.ema.load(Path(self.state.best_model_checkpoint) / AVERAGE)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the averaged weights as a Hub folder; a checkpoint gets the training weights.

        The folder is what `write_model` makes. Sharded weights (FSDP, DeepSpeed) and adapters of
        PEFT are written as the Trainer writes them, without code;
        `hf_lomdm.hub.export_to_hub_folder` adds it to the first.
        """
        if self.staging:
            super().save_model(output_dir, _internal_call)
            return
        with (
            self.averaged_weights(),
            checkpointing.explained_write(output_dir or self.args.output_dir),
        ):
            super().save_model(output_dir, _internal_call)

    def write_training_state(self, folder: Path) -> None:
        """Writes into a checkpoint the average, and of which run it is."""
        if self.ema is not None:
            self.ema.save(folder / AVERAGE, write=self.args.should_save)
        if self.args.should_save:
            resuming.save_run(self._run(), folder)
