r"""The scaffolds of `decorate.py` given to an autoregressive model as far as it can take them.

    python studies/moses/decorate_causal.py --model outputs/moses-ar --num_scaffolds 50 \
        --file moses.test_scaffolds.txt --train_file moses.train.txt --num_samples 10

It reads from left to right, so a scaffold can only be a prefix: its canonical SMILES is given, and
the model writes on until it ends the molecule. What it adds hangs on the last atom. The scaffolds
and the measures are those of `decorate.py`; `decorated` counts what is more than the scaffold.
"""

import importlib
import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from hf_lomdm.cli.errors import loading, user_errors
from hf_lomdm.data.tokenizers import load_tokenizer
from hf_lomdm.evaluation.molecule_descriptors import canonical, require_rdkit
from hf_lomdm.evaluation.molecule_reference import known_molecules
from hf_lomdm.evaluation.records import environment, write_record

sys.path.append(str(Path(__file__).parent))
decorate = importlib.import_module("decorate")


@user_errors()
def main() -> None:
    options = decorate.make_parser(__doc__, "outputs/studies/decorate_causal.json").parse_args()
    require_rdkit()
    with loading("--model", options.model):
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
        tokenizer = load_tokenizer(options.model)
    numbers = random.Random(options.seed)
    longest = model.config.max_position_embeddings - 10
    scaffolds = decorate.choose_scaffolds(options, numbers, longest)
    torch.manual_seed(options.seed)
    pairs = [
        (scaffold, text)
        for scaffold in scaffolds
        for text in write_on(model, tokenizer, scaffold, options.num_samples)
    ]
    known = known_molecules(options.train_file) if options.train_file else None
    record = {"task": "decorate_causal", "model": options.model, **decorate.measure(pairs, known)}
    more = [canonical(text) not in (None, canonical(scaffold)) for scaffold, text in pairs]
    record["decorated"] = sum(more) / len(more)
    record |= {name: getattr(options, name) for name in ("num_scaffolds", "num_samples")}
    write_record(options.output, record | environment("cpu", torch.float32, options.seed))
    print({name: value for name, value in record.items() if name != "examples"})


@torch.no_grad()
def write_on(model, tokenizer, prefix: str, count: int) -> list[str]:
    """`count` texts that begin with `prefix`, drawn from the model's law."""
    start = [model.config.bos_token_id, *tokenizer(prefix, add_special_tokens=False)["input_ids"]]
    ids = torch.tensor([start] * count)
    rows = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_k=0,
        max_length=model.config.max_position_embeddings,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.eos_token_id,
    )
    return tokenizer.batch_decode(rows[:, 1:], skip_special_tokens=True)


if __name__ == "__main__":
    main()
