r"""What a step of training and a token of sampling cost beside the causal model itself.

    python studies/smollm2/speed.py --model smollm2 --output outputs/studies/speed.json

Training: forward and backward of rows of random tokens, by LoRA on all projections, for the causal
loss and for those of diffusion block by block. Sampling: tokens behind a prompt, by `generate` with
its cache and by the pipeline with its own, at one, two and four tokens a pass. All are timed in
turn, in one process; only the ratios are meant.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hf_lomdm import LoMDMForMaskedDiffusion, LoMDMPipeline, LoMDMScheduler
from hf_lomdm.cli.errors import loading, user_errors
from hf_lomdm.cli.option_types import nonempty, positive, whole
from hf_lomdm.evaluation.records import environment, write_record
from hf_lomdm.training.finetuning import add_lora

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from measuring import interleaved

BLOCK, RANK = 4, 8
SYSTEMS: dict[str, dict[str, Any]] = {
    "BD3-LM, one view": {"rate_type": "uniform"},
    "BD3-LM, two views": {"rate_type": "uniform", "settings": {"num_views": 2}},
    "block-LoMDM": {"rate_type": "learned"},
}
CAUSAL = "causal"


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=nonempty, required=True, help="a causal model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=whole(1), default=4, help="of a training step")
    parser.add_argument("--length", type=whole(8), default=128, help="tokens of a row")
    parser.add_argument("--prompt", type=whole(1), default=32, help="tokens")
    parser.add_argument("--new_tokens", type=whole(BLOCK), default=64, help="in whole blocks")
    parser.add_argument("--seconds", type=positive, default=240, help="about as long as it takes")
    parser.add_argument("--output", type=nonempty, default="outputs/studies/speed.json")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    with user_errors(), loading("--model", options.model):
        training = training_steps(options)
    record = {"task": "speed", "model": Path(options.model).name, "dtype": options.dtype}
    record |= {"rows": options.rows, "length": options.length, "new_tokens": options.new_tokens}
    tokens = options.rows * options.length
    record["training"] = compare(training, tokens, options.seconds / 2)
    del training
    writers, passes = sampling_runs(options)
    record["sampling"] = compare(writers, options.new_tokens, options.seconds / 2)
    for name, count in passes.items():
        record["sampling"][name]["tokens_per_pass"] = options.new_tokens / count
    record["environment"] = environment("cpu", getattr(torch, options.dtype), seed=0)
    for part in ("training", "sampling"):
        for name, cost in record[part].items():
            speed = f"{cost['tokens_per_second']:8.1f} tokens/s"
            print(f"{part:9s} {name:28s} {speed}, {cost['times_causal']:.2f} x the time of causal")
    write_record(options.output, record)
    print(f"record: {options.output}")


def compare(runs: dict[str, Callable], tokens: int, seconds: float) -> dict[str, dict]:
    """Seconds of each run, its tokens per second, and its time as a multiple of the causal one."""
    taken = interleaved(runs, seconds)
    for cost in taken.values():
        cost["tokens_per_second"] = tokens / cost["seconds"]
        cost["times_causal"] = cost["seconds"] / taken[CAUSAL]["seconds"]
    return taken


def training_steps(options: argparse.Namespace) -> dict[str, Callable]:
    """Forward and backward of each system with low-rank updates."""
    dtype = getattr(torch, options.dtype)
    whole = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    models = {CAUSAL: get_peft_model(whole, lora)}
    for name, system in SYSTEMS.items():
        model = LoMDMForMaskedDiffusion.from_causal_lm(
            options.model, block_size=BLOCK, dtype=dtype, **system
        )
        models[name] = add_lora(model, RANK, 2 * RANK)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, (options.rows, options.length), generator=generator)
    return {name: step_of(model.train(), ids) for name, model in models.items()}


def step_of(model, ids: torch.Tensor) -> Callable:
    def step() -> None:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()

    return step


def sampling_runs(options: argparse.Namespace) -> tuple[dict[str, Callable], dict[str, int]]:
    """What writes `new_tokens` behind a prompt, and the forward passes that each takes."""
    dtype, new = getattr(torch, options.dtype), options.new_tokens // BLOCK * BLOCK
    causal = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval()
    learned = LoMDMForMaskedDiffusion.from_causal_lm(
        options.model, block_size=BLOCK, dtype=dtype, rate_type="learned"
    )
    learned.config.eos_token_id = None  # else it may end early
    pipe = LoMDMPipeline(learned, LoMDMScheduler(learned.config.mask_token_id, block_size=BLOCK))
    pipe.set_progress_bar_config(disable=True)
    prompt = [list(range(10, 10 + options.prompt))]
    ids, whole = torch.tensor(prompt), {"min_new_tokens": new, "max_new_tokens": new}

    def write(steps: int):
        generator = torch.Generator().manual_seed(0)
        sizes = {"max_new_tokens": new, "generator": generator, "output_type": "seq"}
        return pipe(prompt, steps, **sizes)

    runs: dict[str, Callable] = {
        CAUSAL: lambda: causal.generate(ids, do_sample=True, pad_token_id=0, **whole)
    }
    passes = {CAUSAL: new}
    for steps in (BLOCK, BLOCK // 2, 1):
        name = f"block-LoMDM, {BLOCK // steps} a pass"
        passes[name] = int(write(steps).row_passes[0])
        runs[name] = lambda steps=steps: write(steps)
    return runs, passes


if __name__ == "__main__":
    main()
