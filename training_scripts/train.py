"""Train a LoMDM (learned order) or an MDLM (uniform order) on text.

On GPUs:

    accelerate launch training_scripts/train.py --config training_scripts/configs/owt.yaml

On a laptop, in ten minutes, without a download:

    python training_scripts/train.py --config training_scripts/configs/tiny.yaml

Every key of the configuration can be given on the command line (`--key value`), where it wins; `--help` lists them. The
same command started again continues from the newest complete checkpoint of `output_dir`, with the same result as if it
had never stopped. At the end `output_dir` holds the evaluation, the log and the averaged weights, as a Hub folder that
loads as a model and as a pipeline without this package (under FSDP: once `export_to_hub.py` has added the code);
`--push_to_hub` uploads it.
"""

from transformers import set_seed

from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion, LoMDMPipeline, LoMDMScheduler
from hf_lomdm.training.arguments import DataArguments, ModelArguments, parse_arguments
from hf_lomdm.training.data import TextCollator, load_data, model_token_ids
from hf_lomdm.training.trainer import LoMDMTrainer


def main() -> None:
    data_args, model_args, args = parse_arguments()
    set_seed(args.seed)

    with args.main_process_first(desc="tokenisation"):
        texts, tokenizer = load_data(data_args, args.output_dir)
    model = build_model(model_args, data_args, tokenizer)
    trainer = LoMDMTrainer(
        model=model,
        args=args,
        train_dataset=texts["train"],
        eval_dataset=texts["validation"],
        data_collator=TextCollator(tokenizer.pad_token_id, data_args.max_length),
        processing_class=tokenizer,
    )

    result = trainer.train(args.resume_from_checkpoint)
    if trainer.num_steps_trained:  # else the record of the run that was finished stays
        trainer.save_metrics("train", result.metrics)
    evaluate(trainer)
    trainer.save_state()
    trainer.save_model()  # and, with --push_to_hub, uploads it
    if trainer.is_world_process_zero() and not trainer.is_fsdp_enabled:
        sample(trainer, tokenizer)
    trainer.end()


def build_model(model_args: ModelArguments, data_args: DataArguments, tokenizer) -> LoMDMForMaskedDiffusion:
    """A model with random weights for this tokenizer and text length."""
    settings = dict(vars(model_args))
    settings["max_position_embeddings"] = model_args.max_position_embeddings or data_args.max_length
    model = LoMDMForMaskedDiffusion(LoMDMConfig(**settings, **model_token_ids(tokenizer, data_args)))
    print(f"model: {model.num_parameters() / 1e6:.2f} M parameters, rate_type={model.config.rate_type}", flush=True)
    return model


def evaluate(trainer: LoMDMTrainer) -> None:
    """The order bound on the validation text, and what of it is owed to the learned order."""
    metrics = trainer.evaluate()
    if trainer.model.config.rate_type == "learned":
        metrics |= trainer.evaluate_without_order()
    trainer.save_metrics("eval", metrics)
    if not trainer.is_world_process_zero():
        return
    labels = {"eval_nelbo": "order bound", "eval_without_order_nelbo": "order bound with c2 = 0 at evaluation"}
    for key, label in labels.items():
        if key in metrics:
            error = metrics[f"{key}_standard_error"]
            print(f"{label}: {metrics[key]:.4f} +- {error:.4f} nats per token", flush=True)


def sample(trainer: LoMDMTrainer, tokenizer) -> None:
    """Prints a few texts of the averaged weights."""
    with trainer.averaged_weights():
        model = trainer.accelerator.unwrap_model(trainer.model).eval()
        pipe = LoMDMPipeline(model, LoMDMScheduler(mask_token_id=tokenizer.mask_token_id), tokenizer)
        for text in pipe(num_inference_steps=model.config.max_position_embeddings, num_return_sequences=3).texts:
            print(f"--- sample\n{text}", flush=True)


if __name__ == "__main__":
    main()
