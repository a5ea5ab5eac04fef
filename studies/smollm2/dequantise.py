"""Write a quantised GGUF file of a causal model as a plain folder, with its tokenizer.

python studies/smollm2/dequantise.py --folder models \
    --file SmolLM2-135M-Instruct.Q4_1.gguf --output smollm2
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from hf_lomdm.cli.errors import user_errors
from hf_lomdm.modeling.pretrained_lomdm import load_pretrained, load_tokenizer


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="Where the file lies.")
    parser.add_argument("--file", required=True, help="Name of the GGUF file.")
    parser.add_argument("--output", type=Path, required=True, help="Folder to write.")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    arguments = parse_arguments(words)
    options = {"gguf_file": arguments.file, "dtype": torch.float32}
    with user_errors():
        model = load_pretrained(AutoModelForCausalLM, arguments.folder, options)
        tokenizer = load_tokenizer(arguments.folder, options)
    # a model made of the same configuration, for transformers does not save one that was quantised
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
