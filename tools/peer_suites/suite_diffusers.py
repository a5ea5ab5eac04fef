"""diffusers' `SchedulerCommonTest` and `PipelineTesterMixin` on LoMDM's scheduler and pipeline."""

import string
import unittest
from unittest.mock import patch

import torch
from systems import make_config
from tests.pipelines import test_pipelines_common as common
from tests.schedulers import test_schedulers as schedulers

from hf_lomdm import LoMDMForMaskedDiffusion, LoMDMPipeline, LoMDMScheduler
from hf_lomdm.data.tokenizers import train_tokenizer
from hf_lomdm.modeling.scheduling_lomdm import SAMPLERS

MASK, VOCABULARY = 3, 9


class Tokens(torch.Tensor):
    """Token ids `[B, L]`, but a tenth of them (the suite's "output") is logits `[B, L, V]`."""

    def __rmul__(self, factor: float) -> torch.Tensor:
        shape = (*self.shape, VOCABULARY)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * factor

    def __sub__(self, other) -> torch.Tensor:
        plain = self.as_subclass(torch.Tensor)
        if plain.dtype == torch.bool:  # the suite subtracts `revealed`, too
            return (plain ^ other).long()
        return plain - other


class Scheduler(schedulers.SchedulerCommonTest):
    scheduler_classes = (LoMDMScheduler,)
    forward_default_kwargs = (("num_inference_steps", 10), ("rates", torch.ones(4, 12)))
    sampler = "sequential"

    @property
    def dummy_sample(self) -> torch.Tensor:
        sample = torch.full((4, 12), MASK)
        sample[:, :3] = torch.tensor([1, 5, 6])
        return sample.as_subclass(Tokens)

    def get_scheduler_config(self, **changes) -> dict:
        return {"mask_token_id": MASK, "sampler": self.sampler, **changes}


for _sampler in SAMPLERS[1:]:
    _name = "Scheduler" + _sampler.title().replace("_", "")
    globals()[_name] = type(_name, (Scheduler,), {"sampler": _sampler, "__module__": __name__})


class Pipeline(common.PipelineTesterMixin, unittest.TestCase):
    pipeline_class = LoMDMPipeline
    params = frozenset(["prompt"])
    batch_params = frozenset(["prompt"])
    required_optional_params = frozenset(
        ["num_inference_steps", "generator", "output_type", "return_dict"]
    )
    test_attention_slicing = test_xformers_attention = False  # of diffusers' own attention
    system: dict = {}
    prompt: str | list = "once upon a time"

    def setUp(self):
        super().setUp()
        save = LoMDMPipeline.save_pretrained
        # the suite asks for pickles, which we refuse, whatever it tests
        patched = patch.object(
            LoMDMPipeline,
            "save_pretrained",
            lambda pipe, folder, safe_serialization=True, **kw: save(pipe, folder, **kw),
        )
        patched.start()
        self.addCleanup(patched.stop)

    def get_dummy_components(self) -> dict:
        torch.manual_seed(0)
        tokenizer = train_tokenizer("char", [string.printable])
        sizes = {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 1024,
            "mask_token_id": MASK,
            "eos_token_id": None,
        }
        model = LoMDMForMaskedDiffusion(
            make_config(initializer_range=0.2, **sizes, **self.system)
        ).eval()
        scheduler = LoMDMScheduler(mask_token_id=MASK, block_size=model.config.block_size)
        return {"model": model, "scheduler": scheduler, "tokenizer": tokenizer}

    def get_dummy_inputs(self, device, seed: int = 0) -> dict:
        generator = torch.Generator().manual_seed(seed)
        settings = {
            "num_inference_steps": 2,
            "max_new_tokens": 8,
            "generator": generator,
            "output_type": "seq",
        }
        return {"prompt": self.prompt, **settings}

    def test_save_load_optional_components(self):
        self.prompt = [[1, 20, 21, 22]]  # without a tokenizer
        super().test_save_load_optional_components()


class PipelineBlocks(Pipeline):
    system = {"block_size": 4}
