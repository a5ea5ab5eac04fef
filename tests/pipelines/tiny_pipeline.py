"""The quiet pipeline of a tiny model, and its generators."""

import torch

from hf_lomdm import LoMDMPipeline, LoMDMScheduler

MASK, PAD, BOS, EOS = 10, 0, 1, 2


def make_pipe(model, tokenizer=None, **settings) -> LoMDMPipeline:
    settings = {"block_size": model.config.block_size, **settings}
    pipe = LoMDMPipeline(model, LoMDMScheduler(mask_token_id=MASK, **settings), tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
