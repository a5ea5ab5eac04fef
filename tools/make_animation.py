r"""Writes the moving picture of README.md: a text that is being written, in the order of its rates.

    python tools/make_animation.py --model checkpoints/lomdm-enwiki --prompt "The city of" \
        --output docs/images/writing.gif

What is still masked is an empty box. The bar in it is the rate, from the lowest to the highest of
the run: the higher, the sooner the position is likely to be revealed. What is revealed has the
colour of its step, from blue (first) to yellow (last). Special tokens are left out. Needs Pillow,
and matplotlib for its font.
"""

import argparse
from pathlib import Path

import torch

from hf_lomdm import LoMDMPipeline
from hf_lomdm.visualization.colours import COLOURS, black_or_white, colour_index
from hf_lomdm.visualization.live import LiveState, stream
from hf_lomdm.visualization.picture import place_tokens

COLUMNS, FONT_SIZE, MARGIN = 56, 24, 14  # characters of a line; pixels
LINE = FONT_SIZE * 3 // 2
STEP_TIME, LAST_TIME = 140, 4000  # milliseconds of a frame, and of the last one
GIVEN, MASKED, BAR = "#e0e0e0", "#f6f1f3", "#c2507f"
PALETTE = 48  # colours of a frame


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or repository of a model")
    parser.add_argument("--output", type=Path, required=True, help="the .gif to write")
    parser.add_argument("--prompt")
    parser.add_argument("--num_inference_steps", type=int, default=64)
    parser.add_argument("--max_length", type=int)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def colour(step: int | None, last: int) -> str:
    """The colour of the box of a token that was revealed in `step` of `0..last`."""
    if step is None:
        return MASKED
    return GIVEN if step < 0 else COLOURS[colour_index(step, 0, last)]


def frame(state: LiveState, tokens: list[str], last: int, rates: tuple[float, float]):
    """A picture of one state.

    tokens: those of the finished text, which are the boxes. last: its last step. rates: the lowest
    and the highest of the run.
    """
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSansMono.ttf", FONT_SIZE)
    advance, pieces = font.getlength("m"), place_tokens(tokens, COLUMNS)
    size = (round(COLUMNS * advance) + 2 * MARGIN, (pieces[-1][1] + 1) * LINE + 2 * MARGIN)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for index, line, column, text in pieces:
        step, rate = state.order[index], state.rates[index]
        left, top = MARGIN + column * advance, MARGIN + line * LINE
        right, bottom = left + len(text) * advance - 2, top + LINE - 4
        draw.rectangle((left, top, right, bottom), fill=colour(step, last))
        if step is not None:
            letters = black_or_white(colour(step, last))
            draw.text((left, top + 3), text, fill=letters, font=font)
        elif rate is not None:
            share = (rate - rates[0]) / max(1e-9, rates[1] - rates[0])
            draw.rectangle((left, bottom - 3 - share * (LINE - 10), right, bottom), fill=BAR)
    return picture.quantize(PALETTE)


def main() -> None:
    options = parse_arguments()
    pipe = LoMDMPipeline.from_pretrained(options.model, dtype=torch.float32)
    limits = options.num_inference_steps, options.max_length
    states = list(stream(pipe, options.prompt, *limits, seed=options.seed))
    rates = [rate for state in states for rate in state.rates if rate is not None]
    last = max(step for step in states[-1].order if step is not None)
    special = set(pipe.tokenizer.all_special_tokens)
    tokens = ["" if token in special else token for token in states[-1].tokens]
    range_of_rates = min(rates), max(rates)
    frames = [frame(state, tokens, last, range_of_rates) for state in states[:-1]]
    times = [STEP_TIME] * (len(frames) - 1) + [LAST_TIME]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(options.output, save_all=True, append_images=frames[1:], duration=times, loop=0)
    print(f"wrote {options.output}: {len(frames)} frames, {options.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
