"""A network that is exact: the conditionals of one joint law of three tokens at three positions."""

import itertools
from types import SimpleNamespace

import torch

from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.modeling.modeling_lomdm import LoMDMOutput

N, MASK = 3, 3
TEXTS = list(itertools.product(range(MASK), repeat=N))


class ExactModel(torch.nn.Module):
    """`p(x_i | what is revealed)` of a random joint law, with rates that differ by state."""

    rates_need_logits, dtype = True, torch.float64

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        law = torch.rand(len(TEXTS), generator=generator, dtype=torch.float64) ** 4
        self.law = dict(zip(TEXTS, (law / law.sum()).tolist(), strict=True))
        states = list(itertools.product(range(MASK + 1), repeat=N))
        self.logits = torch.stack([self._logits(state) for state in states])
        shape = len(states), N
        self.rates = 0.4 + torch.rand(shape, generator=generator, dtype=torch.float64)
        self.config = SimpleNamespace(
            **dict(vocab_size=MASK + 1, mask_token_id=MASK, block_size=None, pad_token_id=None),
            **dict(max_position_embeddings=N, bos_token_id=None, eos_token_id=None),
        )
        self.device = torch.device("cpu")

    def _logits(self, state) -> torch.Tensor:
        mass = torch.zeros(N, MASK + 1, dtype=torch.float64)
        for text, p in self.law.items():
            if all(y in (MASK, x) for x, y in zip(text, state, strict=True)):
                for i in range(N):
                    mass[i, text[i]] += p
        return mass.log()

    def code(self, samples: torch.Tensor) -> torch.Tensor:
        return (samples * (MASK + 1) ** torch.arange(N - 1, -1, -1)).sum(-1)

    def forward(self, input_ids, attention_mask=None, output_logits=True, return_dict=True):
        row = self.code(input_ids)
        return LoMDMOutput(logits=self.logits[row], rates=self.rates[row])


def exact_pipe(**settings) -> LoMDMPipeline:
    pipe = LoMDMPipeline(ExactModel(), LoMDMScheduler(MASK, **settings))
    pipe.set_progress_bar_config(disable=True)
    return pipe
