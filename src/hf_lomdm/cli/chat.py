"""Talks with a model whose tokenizer has a chat template, line by line.

    lomdm chat outputs/chat/merged --max_new_tokens 64

An empty line or Ctrl-D ends it. A line that cannot be answered, such as one of characters that the
tokenizer does not know, is named and skipped. The model writes an answer of `--max_new_tokens`
tokens, in as many steps, and stops at its EOS.
"""

import argparse
import sys
from typing import Any

import torch

from hf_lomdm.cli.errors import one_line, user_errors
from hf_lomdm.cli.option_types import SEED, between, nonempty, whole
from hf_lomdm.cli.sample import DTYPES, MOST_STEPS, MOST_TOKENS, load
from hf_lomdm.modeling.scheduling_lomdm import SAMPLERS
from hf_lomdm.pipelines import LoMDMPipeline
from hf_lomdm.visualization import visible


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=nonempty, required=True, help="folder or repository")
    parser.add_argument(
        "--system", type=nonempty, help="system message: what the model is told first"
    )
    parser.add_argument(
        "--max_new_tokens", type=whole(1, MOST_TOKENS), default=64, help="tokens of an answer"
    )
    parser.add_argument(
        "--num_inference_steps", type=whole(1, MOST_STEPS), help="default: one per token"
    )
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: the folder's")
    parser.add_argument("--temperature", type=between(0), help="0 = the most likely tokens")
    parser.add_argument(
        "--top_p", type=between(0, 1), help="keep the most likely tokens up to this probability"
    )
    parser.add_argument("--seed", type=SEED, default=0, help="of the whole conversation")
    parser.add_argument("--dtype", choices=DTYPES, help="default: as stored; on the CPU float32")
    return parser.parse_args(arguments)


@user_errors()
def main(arguments: list[str] | None = None) -> None:
    """Reads lines and writes answers until there is no more to read."""
    options = parse_arguments(arguments)
    pipe = load(options, "cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    if not pipe.tokenizer.chat_template:
        raise ValueError(
            f"--model {options.model} has no chat template. Use lomdm sample, or train it on "
            "conversations with lomdm finetune."
        )
    start = [] if options.system is None else [{"role": "system", "content": options.system}]
    messages: list[dict[str, str]] = start
    generator = torch.Generator().manual_seed(options.seed)
    while line := ask():
        question = {"role": "user", "content": line}
        try:
            text = answer(pipe, [*messages, question], options, generator)
        except ValueError as error:  # of this line: the conversation goes on without it
            print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
            continue
        messages += [question, {"role": "assistant", "content": text}]
        print(visible(text), flush=True)


def ask() -> str:
    """The next line, without its end; empty at the end of the input."""
    print("> " if sys.stdin.isatty() else "", end="", flush=True)
    return sys.stdin.readline().strip()


def answer(
    pipe: LoMDMPipeline, messages: list[dict[str, str]], options: Any, generator: torch.Generator
) -> str:
    """What the model writes behind the conversation, up to its EOS."""
    out = pipe(
        messages=messages,
        max_new_tokens=options.max_new_tokens,
        num_inference_steps=options.num_inference_steps or options.max_new_tokens,
        sampler=options.sampler,
        temperature=options.temperature,
        top_p=options.top_p,
        generator=generator,
    )
    ids = out.sequences[0][out.order[0] >= 0].tolist()
    eos = pipe.model.config.eos_token_id
    ids = ids[: ids.index(eos)] if eos in ids else ids
    return pipe.tokenizer.decode(ids, skip_special_tokens=True).strip()
