"""The documentation as readers meet it: links and anchors, first screens, sentences, notebooks."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "space/README.md")),
    *(
        page
        for room in ("docs", "studies", "checkpoints")
        for page in sorted(ROOT.glob(f"{room}/**/*.md"))
    ),
    ROOT / "training_scripts" / "configs" / "README.md",
]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
PLAIN = [ROOT / "README.md", *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]
MOST_WORDS, MOST_IN_README, MOST_BYTES = 40, 600, 500_000
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s:]*)(?:#([^)\s]+))?\)")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    """A page without its code blocks; of a notebook the cells of text."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = (cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    return FENCE.sub("", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in plain}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target, anchor in LINK.findall(text_of(page)):
        there = page.parent / target if target else page
        if not there.exists() or anchor and anchor not in anchors(there):
            broken.append(f"{target}#{anchor}")
    return broken


def sentences(text: str) -> list[str]:
    """The sentences of a page's prose: no code, tables, headings or pictures."""
    prose = re.sub(r"^(?: {4}|\||#|!\[).*$", "\n", FENCE.sub("\n\n", text), flags=re.MULTILINE)
    prose = re.sub(r"^\s*(?:[-*]|\d+\.) ", "\n\n", prose, flags=re.MULTILINE)
    parts = (
        re.split(r"(?<=[.!?])[)*\"]*\s", " ".join(part.split())) for part in prose.split("\n\n")
    )
    return [sentence for part in parts for sentence in part if sentence]


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=name)
def test_every_relative_link_leads_to_a_file_and_every_anchor_to_a_heading(page):
    assert not broken_links(page)


def test_a_broken_link_or_anchor_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b` (c)\n[x](page.md#a-b-c) [y](#a-b-c) [z](none.md) [v](#none)\n")
    assert broken_links(page) == ["none.md#", "#none"]


@pytest.mark.parametrize("page", PLAIN, ids=name)
def test_no_sentence_for_new_users_has_more_than_forty_words(page):
    found = sentences(page.read_text(encoding="utf-8"))
    long = [sentence for sentence in found if len(sentence.split()) > MOST_WORDS]
    assert found and not long


def test_sentences_end_where_they_end():
    text = "# T\n\nOne two. Three\nfour? [Five](six.md).\n\n- Seven eight\n- Nine.\n\n    no code\n"
    found = sentences(text)
    assert found == ["One two.", "Three four?", "[Five](six.md).", "Seven eight", "Nine."]


def test_the_readme_is_short_and_opens_with_a_moving_picture_and_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before_tables = text.split("\n|")[0]
    assert len(before_tables.split()) <= MOST_IN_README
    picture, demo, test = (
        before_tables.index(part) for part in (".gif)", "make demo", "make test")
    )
    assert picture < demo < test < before_tables.index("pip install")
    pictures = (ROOT / "docs" / "images").glob("*.gif")
    assert all(path.stat().st_size < MOST_BYTES for path in pictures)


@pytest.mark.parametrize("page", DOCS, ids=name)
def test_a_page_opens_with_three_lines_in_short(page):
    opening = r"# .+\n\n\*\*In short\*\*\n\n(- .+\n){3}\n"
    assert re.match(opening, page.read_text(encoding="utf-8"))


def entries(node) -> list[str]:
    """The pages of the navigation, from top to bottom."""
    if isinstance(node, str):
        return [node]
    children = node if isinstance(node, list) else node.values()
    return [page for child in children for page in entries(child)]


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page():
    navigation = entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in DOCS}
    assert len(navigation) == len(set(navigation)) and not pages - set(navigation)
    assert not [page for page in navigation if page not in pages and not (ROOT / page).exists()]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_notebooks_hold_no_outputs(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_notebooks_run_from_their_folder(notebook, tmp_path):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    script = tmp_path / "cells.py"
    script.write_text("\n".join(code), encoding="utf-8")
    environment = {**os.environ, "MPLBACKEND": "Agg", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, str(script)]
    done = subprocess.run(
        command, cwd=notebook.parent, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(
    "module, kind",
    [
        ("data.arguments", "DataArguments"),
        ("training.arguments", "ModelArguments"),
        ("training.arguments", "LoMDMTrainingArguments"),
    ],
)
def test_the_tables_of_keys_are_those_of_the_arguments(module, kind):
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "tools" / "site_hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    path = f"src/hf_lomdm/{module.replace('.', '/')}.py"
    rows = hooks.key_table(kind, path).splitlines()[2:]
    actual = getattr(importlib.import_module(f"hf_lomdm.{module}"), kind)
    fields = {key: actual.__dataclass_fields__[key] for key in actual.__annotations__}
    assert [row.split("`")[1] for row in rows] == list(fields)
    for row, field in zip(rows, fields.values(), strict=True):
        assert "{" in row or field.metadata["help"].replace("|", "\\|") in row
