"""What a run must keep to go on from a checkpoint: all that is not declared harmless."""

import json
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from .checkpointing import RunError

RUN_FILE = "run.json"
# Training arguments that may change when a run resumes, grouped by the reason. All others are
# compared, also those that later versions of transformers add.
HARMLESS_ARGUMENTS = {
    "how far the run goes and where it is written; a schedule with an end is stretched": """
        output_dir max_steps num_train_epochs resume_from_checkpoint do_train do_eval do_predict
        restore_callback_states_from_checkpoint""",
    "logs": """
        logging_strategy logging_steps logging_first_step logging_nan_inf_filter log_on_each_node
        log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id
        trackio_bucket_id trackio_static_space_id include_num_input_tokens_seen debug
        skip_memory_metrics""",
    "evaluation, whose draws are its own": """
        eval_strategy eval_steps eval_delay eval_on_start eval_num_samples prediction_loss_only
        per_device_eval_batch_size load_best_model_at_end metric_for_best_model greater_is_better
        eval_do_concat_batches eval_use_gather_object eval_accumulation_steps label_names""",
    "what is saved and uploaded": """
        save_strategy save_steps save_total_limit save_only_model save_on_each_node push_to_hub
        hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision""",
    "the draws of a text do not depend on how a step is split; the texts per step are compared": """
        per_device_train_batch_size gradient_accumulation_steps local_rank""",
    "who fetches the rows, the same in the same order": """
        dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
        dataloader_prefetch_factor dataloader_multiprocessing_context remove_unused_columns""",
    "where and how the same sums are computed: other rounding": """
        use_cpu tf32 full_determinism torch_compile torch_compile_backend torch_compile_mode
        activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
        gradient_checkpointing_kwargs use_cache torch_empty_cache_steps parallelism_config fsdp
        fsdp_config deepspeed ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
        ddp_static_graph ddp_backend ddp_timeout liger_kernel_config""",
}
# The same for the configuration of the model and of its adapter.
HARMLESS_CONFIG = {
    "how the files came about": """
        transformers_version architectures auto_map _name_or_path dtype initializer_range
        peft_version auto_mapping inference_mode""",
    "what is returned": """
        output_hidden_states output_attentions return_dict use_cache id2label label2id problem_type
        chunk_size_feed_forward is_encoder_decoder""",
}
TEXTS_PER_STEP = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")


def describe_run(
    args: TrainingArguments, model: Any, data: str | None, fingerprint: str | None
) -> dict[str, Any]:
    """What `check_same_run` compares, as plain data, in five parts."""
    harmless = " ".join(HARMLESS_ARGUMENTS.values()).split()
    names = [argument.name for argument in fields(args) if argument.name not in harmless]
    adapters = getattr(model, "peft_config", None) or {}
    run = {
        "arguments": {name: getattr(args, name) for name in (*names, *TEXTS_PER_STEP)},
        "model": _without_harmless(model.config.to_dict()),
        "adapter": {
            name: _without_harmless(adapter.to_dict()) for name, adapter in adapters.items()
        },
        "data": data,
        "data_fingerprint": fingerprint,
    }
    return json.loads(json.dumps(run, default=_plain))


def save_run(run: dict[str, Any], folder: Path) -> None:
    """Writes `run.json` into the folder of a checkpoint."""
    (folder / RUN_FILE).write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


def check_same_run(folder: Path, run: dict[str, Any]) -> None:
    """Raises `RunError` if training cannot go on from the checkpoint `folder` as `run`.

    It would go on with its own settings for the most part, and its records would say otherwise.
    """
    stored = _load_run(folder)
    before, now = _compared(stored), _compared(run)
    changes = {key: (before[key], now[key]) for key in now if key in before}
    # compare as text too: records of earlier versions hold lists as text
    differ = {
        key: f"{key}={old!r}, not {new!r}"
        for key, (old, new) in changes.items()
        if old != new and str(old) != str(new)
    }
    if "data_fingerprint" in differ:
        texts = f"{_describe(stored)}, not {_describe(run)}"
        differ["data_fingerprint"] = f"other data or another tokenizer ({texts})"
    if differ:
        raise RunError(
            f"{folder} was trained with {'; '.join(differ.values())}, and cannot go on with that. "
            "Pass the old value, or another output_dir for another run."
        )
    # DeepSpeed has its own
    if not (folder / "scheduler.pt").is_file() and not list(folder.glob("global_step*")):
        raise RunError(
            f"{folder} has no optimizer state (save_only_model=True), so training cannot go on "
            "from it. Pass another output_dir."
        )


def _load_run(folder: Path) -> dict[str, Any]:
    """The run of a checkpoint; of an earlier version's, what record and configuration know."""

    def read(name: str) -> dict[str, Any]:
        return (
            json.loads((folder / name).read_text(encoding="utf-8"))
            if (folder / name).is_file()
            else {}
        )

    if run := read(RUN_FILE):
        return run
    settings, config = read("training_record.json").get("settings", {}), read("config.json")
    return {"arguments": settings, "model": _without_harmless(config)}


def _compared(run: dict[str, Any]) -> dict[str, Any]:
    """One flat mapping of everything in `run` that must stay."""
    arguments, adapters = dict(run["arguments"]), run.get("adapter", {})
    flat = {
        f"adapter {name}.{key}": value
        for name, state in adapters.items()
        for key, value in state.items()
    }
    if "adapter" in run:  # earlier versions have not noted it
        flat["adapters"] = sorted(adapters)
    if all(name in arguments for name in TEXTS_PER_STEP):
        per_device, accumulated, processes = (arguments.pop(name) for name in TEXTS_PER_STEP)
        flat[" * ".join(TEXTS_PER_STEP)] = per_device * accumulated * processes
    if run.get("data_fingerprint"):
        flat["data_fingerprint"] = run["data_fingerprint"]
    return flat | run["model"] | arguments


def _describe(run: dict[str, Any]) -> str:
    return f"{run['data'] or 'data without a description'}, fingerprint {run['data_fingerprint']}"


def _without_harmless(config: dict[str, Any]) -> dict[str, Any]:
    harmless = " ".join(HARMLESS_CONFIG.values()).split()
    return {
        name: _without_harmless(value) if name == "backbone_config" and value else value
        for name, value in config.items()
        if name not in harmless
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return asdict(value) if is_dataclass(value) else str(value)
