"""Tokens per second and peak memory of training and sampling, MDLM and LoMDM side by side.

    python benchmarks/throughput.py                     (results/throughput_<device>.json)

On a GPU: MDLM-small, 50,258 tokens, length 1024, bfloat16 autocast. On a CPU: a small model, so that it takes a minute.
Times are medians of interleaved repetitions of both systems, so that drift of the machine hits both.
"""

import resource
import statistics
import time

import torch

from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion, LoMDMPipeline, LoMDMScheduler
from hf_lomdm.evaluation.records import environment, write_record

LARGE = {"model": {}, "batch": 32, "length": 1024, "sample_batch": 8, "steps": 64, "repeats": 8}
SMALL_MODEL = {"vocab_size": 4097, "mask_token_id": 4096, "hidden_size": 192, "num_hidden_layers": 4}
SMALL_MODEL |= {"num_attention_heads": 3, "max_position_embeddings": 128}
SMALL = {"model": SMALL_MODEL, "batch": 16, "length": 128, "sample_batch": 8, "steps": 32, "repeats": 5}
SYSTEMS = {"mdlm": "uniform", "lomdm": "learned"}


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = LARGE if device == "cuda" else SMALL
    torch.manual_seed(0)
    models = {name: build(rate_type, setting, device) for name, rate_type in SYSTEMS.items()}
    training = measure({name: training_step(model, setting) for name, model in models.items()}, setting["repeats"])
    sampling = measure({name: sampling_run(model, setting) for name, model in models.items()}, repeats=3)
    record = {"setting": setting, "parameters": {name: m.num_parameters() for name, m in models.items()}}
    record["training"] = per_second(training, setting["batch"] * setting["length"])
    record["sampling"] = per_second(sampling, setting["sample_batch"] * setting["length"])
    record["lomdm_over_mdlm_step_time"] = training["lomdm"]["seconds"] / training["mdlm"]["seconds"]
    write_record(f"results/throughput_{device}.json", record | environment(device, torch.bfloat16, seed=0))
    for what in ("training", "sampling"):
        for name, row in record[what].items():
            print(f"{what:9s} {name:6s} {row['tokens_per_second']:10.0f} tokens/s  peak {row['peak_memory_mb']:.0f} MB")


def build(rate_type: str, setting: dict, device: str) -> LoMDMForMaskedDiffusion:
    return LoMDMForMaskedDiffusion(LoMDMConfig(rate_type=rate_type, **setting["model"])).to(device)


def training_step(model, setting):
    """A closure: forward and backward of one batch of random tokens, and an AdamW update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    shape = (setting["batch"], setting["length"])
    ids = torch.randint(model.config.vocab_size - 1, shape, device=model.device)

    def step() -> None:
        model.train()
        with torch.autocast(model.device.type, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def sampling_run(model, setting):
    """A closure: one unconditional batch through the pipeline."""
    pipe = LoMDMPipeline(model, LoMDMScheduler(mask_token_id=model.config.mask_token_id))
    pipe.set_progress_bar_config(disable=True)

    def sample() -> None:
        model.eval()
        with torch.autocast(model.device.type, torch.bfloat16):
            pipe(
                None,
                num_inference_steps=setting["steps"],
                max_length=setting["length"],
                num_return_sequences=setting["sample_batch"],
                output_type="seq",
            )

    return sample


def measure(runs: dict, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds and peak memory of each run, interleaved, after one warm-up each."""
    seconds = {name: [] for name in runs}
    memory = dict.fromkeys(runs, 0.0)
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            elapsed, peak = timed(run)
            memory[name] = max(memory[name], peak)
            if repeat:
                seconds[name].append(elapsed)
    return {name: {"seconds": statistics.median(seconds[name]), "peak_memory_mb": memory[name]} for name in runs}


def timed(run) -> tuple[float, float]:
    """Seconds and peak memory in MB of one call (on the CPU: the largest resident size of the process so far)."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter() - start, torch.cuda.max_memory_allocated() / 2**20
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def per_second(rows: dict, tokens: int) -> dict:
    return {name: row | {"tokens_per_second": tokens / row["seconds"]} for name, row in rows.items()}


if __name__ == "__main__":
    main()
