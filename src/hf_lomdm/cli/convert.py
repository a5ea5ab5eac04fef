r"""Turns a public MDLM or BD3-LM checkpoint into a model folder of this family.

The folder of a Hub repository, on a laptop in a minute (`hf download kuleshov-group/mdlm-owt
--local-dir mdlm-owt`):

    lomdm convert --checkpoint mdlm-owt \
        --output converted/mdlm-owt --tokenizer gpt2

A file of Lightning, as the public training code writes it; nothing of its Python objects is
imported or run:

    lomdm convert --checkpoint last.ckpt \
        --output converted/mdlm-lm1b --tokenizer bert-base-uncased --max_length 128

`train.py --init_from converted/mdlm-owt` starts LoMDM, or any system, from it. `docs/conversion.md`
has the details.
"""

import argparse
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from hf_lomdm.cli.errors import loading, user_errors
from hf_lomdm.cli.option_types import nonempty, whole
from hf_lomdm.hub.conversion import convert_checkpoint
from hf_lomdm.modeling.checkpoint_lomdm import read_tokenizer
from hf_lomdm.modeling.configuration_lomdm import LoMDMConfig


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        help="folder of a Hub repository, or a file of Lightning",
    )
    parser.add_argument(
        "--output", required=True, type=Path, help="folder to write; it must not exist, or be empty"
    )
    parser.add_argument(
        "--tokenizer",
        type=nonempty,
        help="folder or Hub name of the tokenizer of its training, such as gpt2",
    )
    average = parser.add_mutually_exclusive_group()
    average.add_argument(
        "--ema",
        action="store_true",
        default=None,
        help=(
            "the moving average of a Lightning file, or an error; without either option the "
            "average if there is one"
        ),
    )
    average.add_argument(
        "--no_ema", dest="ema", action="store_false", help="the weights themselves"
    )
    parser.add_argument(
        "--block_size", type=whole(1), help="of a BD3-LM, if its config does not contain it"
    )
    parser.add_argument(
        "--max_length",
        type=whole(1),
        help="tokens per text in its training, if no config contains it",
    )
    parser.add_argument(
        "--mask_token_id",
        type=whole(0),
        help="default: the config's, the tokenizer's, or the last id",
    )
    return parser.parse_args(arguments)


@user_errors()
def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    folder = convert_checkpoint(
        options.checkpoint,
        options.output,
        tokenizer=None if options.tokenizer is None else load_tokenizer(options.tokenizer),
        ema=options.ema,
        block_size=options.block_size,
        max_length=options.max_length,
        mask_token_id=options.mask_token_id,
    )
    config = LoMDMConfig.from_pretrained(folder)
    for name in (
        "vocab_size",
        "mask_token_id",
        "pad_token_id",
        "max_position_embeddings",
        "block_size",
    ):
        print(f"{name}: {getattr(config, name)}")
    print(f"written: {folder}")


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer as it is: `convert_checkpoint` sets its mask and padding."""
    with loading("--tokenizer", name):
        return read_tokenizer(name)
