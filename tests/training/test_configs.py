"""The shipped configurations: one file per data and scale, one overlay per system, and how they are
combined."""

import itertools
from pathlib import Path

import pytest
import yaml
from transformers import GPTNeoXConfig

from hf_lomdm import LoMDMConfig
from hf_lomdm.training.models import causal_config, diffusion_config
from hf_lomdm.training.parsing import parse_arguments, read_config

CONFIGS = Path(__file__).parents[2] / "training_scripts" / "configs"
SUDOKU = CONFIGS / "sudoku.yaml"  # no text: it has no autoregressive baseline
SCALES = sorted(set(CONFIGS.glob("*.yaml")) - {SUDOKU})
SYSTEMS = sorted((CONFIGS / "systems").glob("*.yaml"))
PAIRS = list(itertools.product(SCALES, SYSTEMS))
PAIRS += [(SUDOKU, system) for system in SYSTEMS if system.stem != "ar"]
TOKEN_IDS = {
    "vocab_size": 40,
    "mask_token_id": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

BEST = (0.7, 0.65)  # c1 and c2 of the paper
LEVELS = {"polynomial": (0.7, 0.0)}  # c1 and c2 of a control
VIEWS = {"mdlm_two_views": 2, "bd3lm_16_two_views": 2}
# DESIGN of the family: what each system is, by objective, rate_type and block_size.
FAMILY = {
    "lomdm": ("diffusion", "learned", None),
    "mdlm": ("diffusion", "uniform", None),
    "mdlm_two_views": ("diffusion", "uniform", None),
    "polynomial": ("diffusion", "learned", None),
    "uniform_psi": ("diffusion", "learned", None),
    "sedd": ("diffusion", "score", None),
    "genmd4": ("diffusion", "token", None),
    "bd3lm_4": ("diffusion", "uniform", 4),
    "bd3lm_8": ("diffusion", "uniform", 8),
    "bd3lm_16": ("diffusion", "uniform", 16),
    "bd3lm_16_two_views": ("diffusion", "uniform", 16),
    "block_lomdm": ("diffusion", "learned", 16),
    "ar": ("ar", None, None),
}


def parse(*files: Path, words: tuple[str, ...] = ()):
    return parse_arguments(
        [word for file in files for word in ("--config", str(file))] + [*words, "--use_cpu"]
    )


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_there_is_a_file_for_each_scale_and_each_system():
    assert {path.stem for path in SCALES} == {
        "tiny",
        "enwiki",
        "text8",
        "moses",
        "lm1b",
        "lm1b_packed",
        "owt",
    }
    assert {path.stem for path in SYSTEMS} == FAMILY.keys()


@pytest.mark.parametrize("scale", SCALES, ids=lambda path: path.stem)
def test_every_pair_is_the_model_of_its_system_at_the_size_of_its_scale(scale):
    sizes = yaml.safe_load(scale.read_text())
    for system in SYSTEMS:
        data_args, model_args, args = parse(scale, system)
        objective, rate_type, block_size = FAMILY[system.stem]
        assert model_args.objective == objective
        make = causal_config if objective == "ar" else diffusion_config
        config = make(model_args, data_args.max_length, TOKEN_IDS)
        if objective == "ar":
            assert isinstance(config, GPTNeoXConfig) and config.hidden_dropout == sizes["dropout"]
        else:
            assert isinstance(config, LoMDMConfig) and config.dropout == sizes["dropout"]
            assert (config.rate_type, config.block_size, config.bound) == (
                rate_type,
                block_size,
                "order",
            )
            assert (config.c1, config.c2) == LEVELS.get(system.stem, BEST)
            assert config.num_views == VIEWS.get(system.stem)
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            assert getattr(config, name) == sizes[name]
        assert config.max_position_embeddings == sizes["max_length"] == data_args.max_length
        assert args.max_steps == sizes["max_steps"] and args.learning_rate == sizes["learning_rate"]


@pytest.mark.parametrize("scale", SCALES, ids=lambda path: path.stem)
def test_a_scale_alone_is_lomdm(scale):
    assert parse(scale)[1] == parse(scale, CONFIGS / "systems" / "lomdm.yaml")[1]


def test_every_pair_and_every_scale_alone_has_a_folder_of_its_own():
    runs = [(scale,) for scale in SCALES] + PAIRS
    folders = [parse(*files)[2].output_dir for files in runs]
    assert len(set(folders)) == len(folders) == 110
    assert {"outputs/tiny", "outputs/owt-mdlm"} <= set(folders)
    assert parse(*PAIRS[0], words=("--output_dir", "elsewhere"))[2].output_dir == "elsewhere"


def test_later_files_win_over_earlier_ones_and_the_command_line_over_all(tmp_path):
    first = write(
        tmp_path,
        "first.yaml",
        "hidden_size: 8\nnum_hidden_layers: 1\nblock_size: 4\nnum_views: 3\n",
    )
    second = write(tmp_path, "second.yaml", "hidden_size: 16\nnum_hidden_layers: 2\nblock_size:\n")
    _, model_args, args = parse(first, second, words=("--num_hidden_layers", "3"))
    assert (model_args.hidden_size, model_args.num_hidden_layers, model_args.num_views) == (
        16,
        3,
        3,
    )
    assert model_args.block_size is None  # a key without a value is back at its default
    assert args.output_dir == "outputs/first-second"
    assert parse(second, first)[1].hidden_size == 8
    between = parse_arguments(
        ["--hidden_size", "32", "--config", str(first), "--use_cpu", "--config", str(second)]
    )
    assert between[1].hidden_size == 32  # wherever it stands


def test_a_folder_named_by_a_file_that_others_overlay_is_an_error(tmp_path):
    scale = write(tmp_path, "scale.yaml", "output_dir: mine\n")
    system = write(tmp_path, "system.yaml", "rate_type: uniform\n")
    with pytest.raises(ValueError, match="output_dir='mine'.*resume from each other.*--output_dir"):
        parse(scale, system)
    assert parse(scale)[2].output_dir == parse(system, scale)[2].output_dir == "mine"
    for name in ("--output_dir=yours", "--output-dir=yours"):
        assert parse(scale, system, words=(name,))[2].output_dir == "yours"


def test_the_range_of_times_is_two_numbers_in_a_file_or_on_the_command_line(tmp_path):
    system = CONFIGS / "systems" / "bd3lm_4.yaml"
    words = ("--bound", "time", "--time_range", "0.45", "0.95")
    data_args, model_args, _ = parse(CONFIGS / "tiny.yaml", system, words=words)
    assert diffusion_config(model_args, data_args.max_length, TOKEN_IDS).time_range == [0.45, 0.95]
    clipped = write(tmp_path, "clipped.yaml", "bound: time\ntime_range: [0.3, 0.8]\n")
    assert parse(CONFIGS / "tiny.yaml", system, clipped)[1].time_range == [0.3, 0.8]


def test_overlays_hold_nothing_of_data_or_scale():
    allowed = {"objective", "rate_type", "block_size", "c1", "c2", "num_views", "frozen_modules"}
    assert all(read_config(system).keys() <= allowed for system in SYSTEMS)


@pytest.mark.parametrize("scale", SCALES, ids=lambda path: path.stem)
def test_scales_hold_nothing_of_systems(scale):
    assert (
        not {"objective", "rate_type", "block_size", "c1", "c2", "output_dir"}
        & read_config(scale).keys()
    )


def test_the_readme_has_a_command_for_every_system():
    text = (CONFIGS / "README.md").read_text()
    assert all(f"systems/{system.name}" in text for system in SYSTEMS)
    assert all(f"`{scale.name}`" in text for scale in (*SCALES, SUDOKU))
