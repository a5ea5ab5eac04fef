"""Every Python block of README.md, docs/ and studies/ runs, and so do the commands of the
tutorials; every option in their commands of our scripts exists."""

import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_lomdm.data.examples import CHAT_TEMPLATE
from hf_lomdm.hub import export_to_hub_folder

ROOT = Path(__file__).parents[1]
SHIPPED = "checkpoints/lomdm-enwiki"
PLACEHOLDER = "org/lomdm-owt"
CAUSAL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PAGES = [
    ROOT / "README.md",
    *(page for room in ("docs", "studies") for page in sorted((ROOT / room).rglob("*.md"))),
]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(
    r"^ {4}(?:\$ )?(?:python|accelerate launch|lomdm)\b.*\n(?:(?<=\\\n) {4}.*\n)*", re.MULTILINE
)
NEEDS = {"torchao": "torchao"}  # what a block imports that the package does not bring
TRAIN = "training_scripts/train.py"
LOMDM = {  # command of `lomdm` -> the script with the same options
    "train": TRAIN,
    "sample": "training_scripts/sample.py",
    "evaluate": "training_scripts/evaluate.py",
    "finetune": "training_scripts/finetune_lora.py",
    "export": "training_scripts/export_to_hub.py",
    "convert": "training_scripts/convert_checkpoint.py",
    "space": "space/app.py",
}
PASSES_ON = {  # script -> the one whose options it takes too
    "studies/family/compare_systems.py": TRAIN,
    "studies/word_orders/fixed_order.py": TRAIN,
    "studies/known_orders/measure.py": TRAIN,
}


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(text: str) -> list[list[str]]:
    """Words of the indented commands that call one of our Python scripts, from its path on."""
    actual = []
    for line in COMMAND.findall(text):
        words = shlex.split(line.replace("\\\n", " "), comments=True)
        if words[0] == "lomdm" and words[1] in LOMDM:
            words = [LOMDM[words[1]], *words[2:]]
        scripts = [i for i, word in enumerate(words) if word.endswith(".py")]
        if scripts and "..." not in words and "pytest" not in words:
            actual.append(words[scripts[0] :])
    return actual


ALL_COMMANDS = sorted(
    {tuple(words) for page in PAGES for words in commands(page.read_text(encoding="utf-8"))}
)


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory) -> Path:
    """The shipped checkpoint as `make hub-folders` exports it, in place of a repository of the
    Hub."""
    return export_to_hub_folder(ROOT / SHIPPED, tmp_path_factory.mktemp("export") / "lomdm-owt")


@pytest.fixture(scope="module")
def causal_folder(tmp_path_factory) -> Path:
    """A tiny causal model with a chat template, in place of one that would be fetched."""
    folder = tmp_path_factory.mktemp("causal") / "model"
    words = ["[UNK]", "[EOS]", "user", "assistant", ":"]
    words += ["Name", "a", "city", "in", "England", ".", "London", "Hello", "Hi"]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "eos_token": "[EOS]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"vocab_size": len(words), "intermediate_size": 32, "max_position_embeddings": 64}
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": None}
    LlamaForCausalLM(LlamaConfig(**sizes, **ids)).save_pretrained(folder)
    return folder


# what every reader runs, in one process, without names of each other
FIRST = [page for page in PAGES if page.name in ("README.md", "quickstart.md") and blocks(page)]


def test_every_python_block_of_the_first_pages_runs_from_the_root_of_the_repository(tmp_path):
    assert [page.name for page in FIRST] == ["README.md", "quickstart.md"]
    codes = ["\n".join(blocks(page)) for page in FIRST]
    run_from_root("\n".join(f"exec({code!r}, {{}})" for code in codes), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page) and page not in FIRST],
    ids=lambda page: page.name,
)
def test_every_python_block_of_the_page_runs_from_the_root_of_the_repository(
    page, tmp_path, hub_folder, causal_folder
):
    code = "\n".join(blocks(page)).replace(PLACEHOLDER, str(hub_folder))
    code = code.replace(CAUSAL, str(causal_folder))
    for word, module in NEEDS.items():
        if word in code and importlib.util.find_spec(module) is None:
            pytest.skip(f"{page.name} needs {module}")
    run_from_root(code, tmp_path)


def run_from_root(code: str, tmp_path: Path) -> None:
    script = tmp_path / "blocks.py"
    script.write_text(code)
    # a process of its own: blocks compile, quantise and set up accelerators
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, str(script)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]


SHELL = """
lomdm() { "$PYTHON" -m hf_lomdm "$@"; }
python() { "$PYTHON" "$@"; }
"""


def shell_lines(page: Path) -> str:
    """The indented lines of a page outside its code blocks, without those that install."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = re.findall(r"^ {4}(.*)$", text, re.MULTILINE)
    return "\n".join(line for line in lines if not line.startswith("make "))


def write_sudokus(path: Path) -> None:
    """The grids of the fixture with every third cell as a clue, 27 in all."""
    lines = (ROOT / "tests" / "fixtures" / "sudoku.csv").read_text().split()[1:]
    solutions = [line.split(",")[1] for line in lines]
    puzzles = ["".join("0" if i % 3 else digit for i, digit in enumerate(s)) for s in solutions]
    rows = (f"{puzzle},{solution}\n" for puzzle, solution in zip(puzzles, solutions, strict=True))
    path.write_text("puzzle,solution\n" + "".join(rows))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs" / "tutorials").glob("*.md")), ids=lambda page: page.name
)
def test_the_commands_of_a_tutorial_run_one_after_the_other(page, tmp_path, causal_folder):
    for name in ("checkpoints", "training_scripts", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_sudokus(tmp_path / "sudoku.csv")
    # that the commands go together is seen after four steps, too
    lines = shell_lines(page).replace("--max_steps 200", "--max_steps 4")
    script = SHELL + lines.replace(CAUSAL, str(causal_folder))
    own = {"PYTHON": sys.executable, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**os.environ, **own, "PYTHONPATH": str(ROOT / "src")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def script_of(words: tuple[str, ...]) -> tuple[str, str]:
    """The script of a command and its subcommand, if it has one."""
    return words[0], words[1] if words[1:] and re.fullmatch(r"[a-z][a-z-]*", words[1]) else ""


SCRIPTS = sorted({script_of(words) for words in ALL_COMMANDS})


@pytest.mark.parametrize("script, subcommand", SCRIPTS)
def test_every_option_in_a_command_of_the_pages_is_one_of_its_script(
    script, subcommand, monkeypatch, capsys
):
    if script.startswith("space/"):
        pytest.importorskip("gradio")
    known = {"--config"}
    for asked in filter(None, (script, PASSES_ON.get(script))):
        monkeypatch.setattr(sys, "argv", [asked, *([subcommand] if subcommand else []), "--help"])
        monkeypatch.syspath_prepend(str((ROOT / asked).parent))
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / asked), run_name="__main__")
        assert stop.value.code in (None, 0)
        known |= set(re.findall(r"--[A-Za-z][\w-]*", capsys.readouterr().out))
    for words in ALL_COMMANDS:
        if script_of(words) == (script, subcommand):
            used = {word.split("=")[0] for word in words[1:] if word.startswith("--")}
            assert used <= known, f"{' '.join(words)}: unknown {sorted(used - known)}"


def test_tokenizers_are_loaded_without_asking_whether_to_run_code():
    """For a folder whose config.json names code, transformers asks before it reads a tokenizer that
    has none."""
    folders = ("src", "training_scripts", "benchmarks", "space")
    files = [
        *PAGES,
        *ROOT.glob("space/*.md"),
        *(path for name in folders for path in (ROOT / name).rglob("*.py")),
    ]
    calls = [
        (path.name, call)
        for path in files
        for call in re.findall(
            r"AutoTokenizer\.from_pretrained\([^()]*\)", path.read_text(encoding="utf-8")
        )
    ]
    assert calls and not [call for call in calls if "trust_remote_code=False" not in call[1]]


def test_every_configuration_and_checkpoint_in_a_command_exists():
    named = {
        word
        for words in ALL_COMMANDS
        for word in words
        if re.match(r"(training_scripts|checkpoints)/", word)
    }
    assert named and not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_commands_are_found_over_several_lines_and_without_their_comments():
    text = (
        "    lomdm sample m --z\n    python a.py --x 1 \\\n        --y 2   # why\n\n"
        "    accelerate launch --cpu b.py --z\n    ls\n"
    )
    assert commands(text) == [
        ["training_scripts/sample.py", "m", "--z"],
        ["a.py", "--x", "1", "--y", "2"],
        ["b.py", "--z"],
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_record_and_script_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    records = re.findall(r"`(records/[\w./*-]+)`", text)
    named = re.findall(r"`((?:studies|benchmarks)/[\w./*-]+\.(?:json|py|sh|md))`", text)
    missing = [name for name in records if not list(page.parent.glob(name))]
    missing += [name for name in named if not list(ROOT.glob(name))]
    assert not missing
