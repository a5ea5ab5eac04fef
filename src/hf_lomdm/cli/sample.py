"""Writes text with a LoMDM and shows in which order it was written.

On a GPU, in seconds, and on a laptop in under a minute:

    lomdm sample org/lomdm-owt --num_inference_steps 256 --top_p 0.9
    lomdm sample outputs/tiny --max_length 128 --show_order
"""

import argparse
import sys
import time
from itertools import accumulate
from pathlib import Path

import torch

from hf_lomdm.cli.errors import loading, user_errors
from hf_lomdm.cli.option_types import SEED, between, new_file, nonempty, whole
from hf_lomdm.modeling.scheduling_lomdm import SAMPLERS
from hf_lomdm.pipelines import LoMDMPipeline
from hf_lomdm.pipelines.pipeline_lomdm import LoMDMPipelineOutput
from hf_lomdm.training.ema import take_average
from hf_lomdm.visualization import order_picture, order_text, token_texts, visible, write_order_html
from hf_lomdm.visualization.molecules import write_molecules

DTYPES = ("float32", "bfloat16", "float16")
# More is a slip of the finger, and would take all memory or time.
MOST_STEPS, MOST_TEXTS, MOST_TOKENS = 10**5, 10**4, 10**6


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=nonempty, required=True, help="folder or repository of a model"
    )
    parser.add_argument(
        "--prompt", action="append", help="prefix, or template with mask tokens; may be repeated"
    )
    parser.add_argument("--num_inference_steps", type=whole(1, MOST_STEPS), default=256)
    parser.add_argument(
        "--max_length",
        type=whole(1, MOST_TOKENS),
        help="tokens, prompt included; default: the model's longest",
    )
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: the folder's")
    parser.add_argument(
        "--threshold",
        type=between(0, 1),
        help="of --sampler threshold: probability above which positions are revealed",
    )
    parser.add_argument(
        "--entropy_bound", type=between(0), help="of --sampler entropy_bound, in nats"
    )
    parser.add_argument("--temperature", type=between(0), help="0 = the most likely tokens")
    parser.add_argument(
        "--top_p", type=between(0, 1), help="keep the most likely tokens up to this probability"
    )
    parser.add_argument(
        "--seed", type=SEED, default=0, help="of the first text; the next texts add 1, 2, ..."
    )
    parser.add_argument(
        "--num_return_sequences", type=whole(1, MOST_TEXTS), default=1, help="texts per prompt"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: as stored; on the CPU float32")
    add_pictures(parser)
    return parser.parse_args(arguments)


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """How the order of writing is shown."""
    parser.add_argument(
        "--show_order", action="store_true", help="colour the text by step of reveal"
    )
    parser.add_argument(
        "--png", type=new_file, help="write a picture of the order of the first text to this file"
    )
    parser.add_argument(
        "--html",
        type=new_file,
        help="write a page that plays the order of all texts to this file",
    )
    parser.add_argument(
        "--molecules",
        type=new_file,
        help="draw the molecules among the texts, atoms coloured by step, to this .svg or .png",
    )


def load(options: argparse.Namespace, device: str) -> LoMDMPipeline:
    """The pipeline on `device`, by default in float32 on a CPU, where half is slow."""
    dtype = options.dtype or ("float32" if device == "cpu" else None)
    keywords = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    with loading("--model", options.model):
        pipe = LoMDMPipeline.from_pretrained(options.model, **keywords)
        if take_average(pipe.model, Path(options.model)):
            print(f"--- {options.model} is a checkpoint: its averaged weights write")
    if pipe.tokenizer is None:
        missing = "has no tokenizer (tokenizer_config.json), so there is no text to show"
        raise ValueError(f"--model {options.model} {missing}. Add the one it was trained with.")
    return pipe.to(device)


@user_errors()
def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = load(options, device)
    batch = len(options.prompt or [None]) * options.num_return_sequences
    start = time.perf_counter()
    output = pipe(
        options.prompt,
        num_inference_steps=options.num_inference_steps,
        max_length=options.max_length,
        num_return_sequences=options.num_return_sequences,
        sampler=options.sampler,
        threshold=options.threshold,
        entropy_bound=options.entropy_bound,
        temperature=options.temperature,
        top_p=options.top_p,
        generator=[torch.Generator().manual_seed(options.seed + i) for i in range(batch)],
    )
    seconds = time.perf_counter() - start
    orders = [[step for step in order if step > -2] for order in output.order.tolist()]
    tokens = [
        token_texts(pipe.tokenizer, ids[: len(order)])
        for ids, order in zip(output.sequences.tolist(), orders, strict=True)
    ]
    try:  # files first: nobody may be left who reads the output
        if options.png:
            order_picture(tokens[0], orders[0], options.png)
        if options.html:
            write_order_html(
                options.html, tokens, orders, f"Order of reveal: {Path(options.model).name}"
            )
        if options.molecules:
            draw_molecules(pipe, output, options.molecules)
    finally:
        print_texts(options, output.texts, tokens, orders)
    written = sum(step >= 0 for order in orders for step in order)
    print(
        f"--- {written} tokens in {output.num_forward_passes} forward passes, {seconds:.1f} s on "
        f"{device}"
    )


def draw_molecules(pipe: LoMDMPipeline, output: LoMDMPipelineOutput, path: str) -> None:
    pieces, steps = [], []
    special = set(pipe.tokenizer.all_special_ids)
    rows = zip(output.texts, output.sequences.tolist(), output.order.tolist(), strict=True)
    for text, ids, order in rows:
        shown = [i for i, token in enumerate(ids) if token not in special]
        tokens = token_texts(pipe.tokenizer, [ids[i] for i in shown])
        ends = list(accumulate(map(len, tokens)))  # behind EOS a row may hold anything
        count = sum(end <= len(text) for end in ends)
        pieces.append(tokens[:count])
        steps.append([order[i] for i in shown[:count]])
    count = write_molecules(path, pieces, steps)
    print(f"--- {count} of {len(pieces)} texts are molecules: {path}")


def print_texts(
    options: argparse.Namespace, texts: list[str], tokens: list[list[str]], orders: list[list[int]]
) -> None:
    for number, text in enumerate(texts):
        print(f"--- text {number + 1}, seed {options.seed + number}")
        print(
            order_text(tokens[number], orders[number], sys.stdout.isatty())
            if options.show_order
            else visible(text)
        )
