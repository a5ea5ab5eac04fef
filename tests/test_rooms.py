"""The rooms of the library: imports run downwards only, and a private name stays in its file."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "hf_lomdm"
# From the lowest to the highest: a room may import from those before it. CONTRIBUTING.md has the
# same table.
ROOMS = {
    "modeling": "configuration, formulas, backbone, model, scheduler; travels to the Hub",
    "schedulers": "the scheduler under its older name",
    "adapters": "order heads on a frozen masked language model",
    "pipelines": "sampling, and the layout of a Hub folder; travels to the Hub",
    "data": "documents, examples, tokenizers, rows, batches, the draws of a step, Sudoku",
    "evaluation": "likelihood, corpora, generation, order",
    "visualization": "orders as text, pictures and pages",
    "training": "arguments, trainer, checkpoints, model cards",
    "hub": "export and conversion",
    "cli": "the commands of `lomdm`, their options, errors and pages of help",
    "hf_lomdm": "the public names",
}
HEIGHT = {room: height for height, room in enumerate(ROOMS)}
# Arrows that point up, `(importing file, imported module)`, each with the reason why it stays.
EXCEPTIONS: dict[tuple[str, str], str] = {}


@dataclass(frozen=True)
class Import:
    """One name that a file of the package imports from another; `name` is empty for a whole
    module."""

    file: str
    line: int
    module: str
    name: str
    in_function: bool

    @property
    def source(self) -> str:
        return _room(self.file.removesuffix(".py").replace("/", "."))

    @property
    def target(self) -> str:
        return _room(self.module)

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" + (" (inside a function)" if self.in_function else "")
        return f"{place}: {self.source} -> {self.target}, {self.module} {self.name}".rstrip()


def _room(module: str) -> str:
    """The room of a dotted module; what lies beside the rooms belongs to the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "hf_lomdm"


def imports_of(package: Path) -> list[Import]:
    """Every import of one file of `package` from another, wherever in a file it stands."""
    return [
        import_
        for path in sorted(package.rglob("*.py"))
        for import_ in _imports_of_file(path, package)
    ]


def _imports_of_file(path: Path, package: Path) -> Iterator[Import]:
    tree, file = (
        ast.parse(path.read_text(encoding="utf-8")),
        path.relative_to(package.parent).as_posix(),
    )
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    modules = {}  # by the name that this file gives them
    for node in ast.walk(tree):
        for module, name, alias in _targets(node, path, package):
            modules |= {} if name else {alias: module}
            yield Import(file, node.lineno, module, name, id(node) in inside)
    for node in ast.walk(tree):  # `module._name` needs no import of `_name`
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
        ):
            yield Import(file, node.lineno, modules[node.value.id], node.attr, id(node) in inside)


def _targets(node: ast.AST, path: Path, package: Path) -> Iterator[tuple[str, str, str]]:
    """What a statement imports from `package`: the module, the name in it or nothing, the name
    here."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.split(".")[0] == package.name:
                yield alias.name, "", alias.asname or alias.name
    if isinstance(node, ast.ImportFrom):
        folder = path.relative_to(package.parent).parts[:-1]
        above = folder[: len(folder) + 1 - node.level] if node.level else ()
        module = ".".join([*above, *([node.module] if node.module else [])])
        if module.split(".")[0] != package.name:
            return
        for alias in node.names:
            place = package.parent.joinpath(*module.split("."), alias.name)
            is_module = place.is_dir() or place.with_suffix(".py").is_file()
            imported = (f"{module}.{alias.name}", "") if is_module else (module, alias.name)
            yield *imported, alias.asname or alias.name


def drawing(imports: list[Import]) -> str:
    """The rooms, the highest first, and from each the arrows to the rooms that it imports from."""
    arrows = {(import_.source, import_.target) for import_ in imports}
    lines = []
    for room in reversed(ROOMS):
        targets = [other for other in ROOMS if (room, other) in arrows and other != room]
        shown = [f"{other} (UP)" if HEIGHT[other] > HEIGHT[room] else other for other in targets]
        lines.append(f"{room:>14} -> {', '.join(shown) or 'nothing'}")
    return "\n".join(lines)


def upward(imports: list[Import]) -> list[str]:
    """The imports from a lower room of a higher one."""
    return [
        str(import_)
        for import_ in imports
        if HEIGHT[import_.target] > HEIGHT[import_.source] and not _excepted(import_)
    ]


def _excepted(import_: Import) -> bool:
    return (import_.file, import_.module) in EXCEPTIONS


def private(imports: list[Import]) -> list[str]:
    """The imports of names, or uses of names of modules, that begin with an underscore."""
    return [str(import_) for import_ in imports if re.match(r"_(?!_)", import_.name)]


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return imports_of(PACKAGE)


def test_every_folder_of_the_package_is_a_room_in_the_table():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders | {"hf_lomdm"} == ROOMS.keys()


def test_imports_run_downwards_only(imports):
    up = upward(imports)
    assert not up, "\n".join(["", drawing(imports), "These imports point up:", *up])


def test_a_private_name_stays_in_its_file(imports):
    assert not private(imports), "\n".join(
        ["names with an underscore, used in another file:", *private(imports)]
    )


def test_every_exception_is_still_needed(imports):
    used = {(import_.file, import_.module) for import_ in imports}
    assert EXCEPTIONS.keys() <= used


def test_contributing_has_the_same_table():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/?` \| (.+) \|$", text, re.MULTILINE)
    assert rows == list(ROOMS.items())


def write_package(folder: Path, **files: str) -> Path:
    for name, source in files.items():
        path = folder / "hf_lomdm" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder / "hf_lomdm"


@pytest.mark.parametrize(
    "source",
    [
        "from ..training.trainer import LoMDMTrainer",
        "from ..training import trainer",
        "from .. import training",
        "from hf_lomdm.training.trainer import LoMDMTrainer",
        "import hf_lomdm.training.trainer",
        "from hf_lomdm import LoMDMPipeline",
        "def read():\n    from ..training import trainer",
    ],
)
def test_an_arrow_upwards_is_seen_in_every_form(source, tmp_path):
    package = write_package(
        tmp_path, data__rows=source, training__trainer="from ..data import rows"
    )
    up = upward(imports_of(package))
    assert len(up) == 1 and up[0].startswith("hf_lomdm/data/rows.py:")
    assert ("(inside a function)" in up[0]) == source.startswith("def")
    assert "data -> " in drawing(imports_of(package)) and "(UP)" in drawing(imports_of(package))


@pytest.mark.parametrize(
    "use", ["from ..data.rows import _encode", "from ..data import rows\nrows._encode()"]
)
def test_a_private_name_of_another_file_is_seen(use, tmp_path):
    package = write_package(tmp_path, data__rows="def _encode(): pass", training__trainer=use)
    assert len(private(imports_of(package))) == 1 and not upward(imports_of(package))
