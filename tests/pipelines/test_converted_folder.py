"""A converted model as a Hub folder: it loads without the package and writes the same."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_lomdm import LoMDMForMaskedDiffusion, LoMDMPipeline, LoMDMScheduler
from hf_lomdm.modeling.pretrained_lomdm import with_mask_token
from tiny_tokenizer import build_tokenizer
from without_package import run_without_package

CODE = """
import json
import torch
from diffusers import DiffusionPipeline
from transformers import AutoModel

first, second = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(first, trust_remote_code=True)
pipe.save_pretrained(second)
pipe = DiffusionPipeline.from_pretrained(second, trust_remote_code=True)
out = pipe("ab", num_inference_steps=8, max_length=12, generator=torch.Generator().manual_seed(3))
model = AutoModel.from_pretrained(second, trust_remote_code=True)
names = [type(model).__name__, list(model.state_dict())[0]]
print("RESULT", json.dumps([out.sequences.tolist(), *names]))
"""


def converted(**options) -> LoMDMPipeline:
    """A random Llama with the tokenizer of the tests as a pipeline with blocks."""
    tokenizer = build_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer), intermediate_size=32, max_position_embeddings=64, **sizes
    )
    torch.manual_seed(0)
    whole = AutoModelForCausalLM.from_config(config)
    model = LoMDMForMaskedDiffusion.from_causal_lm(whole, tokenizer=tokenizer, **options)
    scheduler = LoMDMScheduler(model.config.mask_token_id, block_size=model.config.block_size)
    pipe = LoMDMPipeline(model, scheduler, with_mask_token(tokenizer, model.config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


# the fast suite sees a folder of a Llama without the package in tests/training/test_adapted.py
@pytest.mark.slow
def test_it_loads_and_saves_and_loads_without_the_package(tmp_path):
    pipe = converted(block_size=2)
    pipe.save_pretrained(tmp_path / "first")
    folders = (tmp_path / "first", tmp_path / "second")
    sequences, name, weight = run_without_package(CODE, *folders, folder=tmp_path)
    settings = {"num_inference_steps": 8, "max_length": 12}
    out = pipe("ab", generator=torch.Generator().manual_seed(3), **settings)
    assert sequences == out.sequences.tolist()
    assert (name, weight) == ("LoMDMForMaskedDiffusion", "model.embed_tokens.weight")


def test_samples_do_not_depend_on_the_cache_or_the_batch():
    pipe = converted(block_size=3)
    prompts = ["ab", "abcd", "b"]

    def write(prompts, seeds, **options):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        options = {"num_inference_steps": 9, "max_new_tokens": 9, **options}
        return pipe(prompts, generator=generators, output_type="seq", **options)

    together = write(prompts, [0, 1, 2])
    plain = write(prompts, [0, 1, 2], use_cache=False)
    assert torch.equal(together.sequences, plain.sequences)
    for row, prompt in enumerate(prompts):
        alone = write([prompt], [row]).sequences[0]
        kept = together.sequences[row][together.order[row] != -2]
        assert kept.tolist() == alone.tolist()
