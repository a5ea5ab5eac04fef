"""Tokens per second and peak memory of training and sampling, MDLM and LoMDM side by side.

    python benchmarks/throughput.py                     (results/throughput_<device>.json)

On a GPU: MDLM-small, 50,258 tokens, length 1024, bfloat16 autocast. On a CPU: a small model, so that it takes a minute.
Times are medians of interleaved repetitions of both systems, so that drift of the machine hits both.
"""

import multiprocessing
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
    record = {"setting": setting}
    for task, make in TASKS.items():
        runs = {name: make(build(rate_type, setting, device), setting) for name, rate_type in SYSTEMS.items()}
        seconds = measure(runs, setting["repeats"])
        del runs
        record[task] = {name: row(task, name, seconds[name], setting) for name in SYSTEMS}
    record["lomdm_over_mdlm_step_time"] = record["training"]["lomdm"]["seconds"] / record["training"]["mdlm"]["seconds"]
    write_record(f"results/throughput_{device}.json", record | environment(device, torch.bfloat16, seed=0))
    for task in TASKS:
        for name, values in record[task].items():
            speed, memory = values["tokens_per_second"], values["peak_memory_mb"]
            print(f"{task:9s} {name:6s} {speed:10.0f} tokens/s  peak memory {memory:.0f} MB")


def row(task: str, name: str, seconds: float, setting: dict) -> dict[str, float]:
    """One row of the record; the memory is that of a process of its own, which runs this system and task alone."""
    batch = setting["batch"] if task == "training" else setting["sample_batch"]
    # not "spawn": a process that is made by fork and exec starts with the peak of its parent
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        memory = pool.apply(peak_memory, (task, name))
    return {
        "seconds": seconds,
        "tokens_per_second": batch * setting["length"] / seconds,
        "peak_memory_mb": memory,
    }


def peak_memory(task: str, name: str) -> float:
    """Peak memory in MB of two runs: of the allocator on a GPU, of the whole process (with its libraries) on a CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = LARGE if device == "cuda" else SMALL
    run = TASKS[task](build(SYSTEMS[name], setting, device), setting)
    run()
    run()
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def build(rate_type: str, setting: dict, device: str) -> LoMDMForMaskedDiffusion:
    """A model with random weights, seed 0."""
    torch.manual_seed(0)
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


def measure(runs: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each run, interleaved, after one warm-up each."""
    seconds = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            elapsed = timed(run)
            if repeat:
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def timed(run) -> float:
    """Seconds of one call."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


TASKS = {"training": training_step, "sampling": sampling_run}


if __name__ == "__main__":
    main()
