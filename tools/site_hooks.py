"""What `mkdocs.yml` needs beyond `docs/`: pages of other folders, and tables of configuration keys.

`make docs` runs these hooks. Pages keep the links that work in the repository; for the site a link
is turned towards where its target lies there, or to plain text where the site lacks it.
"""

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ELSEWHERE = (
    *("CHANGELOG.md", "CONTRIBUTING.md", "training_scripts/configs/README.md"),
    *("studies/**/*.md", "studies/**/*.png"),
)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
KEYS = re.compile(r"^<!-- keys of (\S+) in (\S+) -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and pictures of `ELSEWHERE`, by their paths in the repository."""
    for pattern in ELSEWHERE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the links of a page, and fills in its tables of keys."""
    uri = page.file.src_uri
    in_docs = (ROOT / "docs" / uri).exists()
    folder = posixpath.dirname(posixpath.join("docs", uri) if in_docs else uri)

    def turn(match: re.Match) -> str:
        mark, text, target, anchor = match.groups()
        name = posixpath.normpath(posixpath.join(folder, target))
        if not (ROOT / name).exists():
            return match[0]  # an address, or a mistake that the build reports
        there = name.removeprefix("docs/")
        if files.get_file_from_path(there) is None:
            return text
        return f"{mark}[{text}]({posixpath.relpath(there, posixpath.dirname(uri))}{anchor or ''})"

    return KEYS.sub(lambda match: key_table(*match.groups()), LINK.sub(turn, markdown))


def key_table(name: str, path: str) -> str:
    """The fields of a dataclass of arguments as a table, read without importing it."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    body = next(
        node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name
    )
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for field in body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.value, ast.Call):
            given = {word.arg: word.value for word in field.value.keywords}
            said = dict(zip(given["metadata"].keys, given["metadata"].values, strict=True))
            meaning = next(value for key, value in said.items() if key.value == "help")
            default = given.get("default", given.get("default_factory"))
            cells = [f"`{field.target.id}`", *map(ast.unparse, (field.annotation, default))]
            rows.append("| " + " | ".join([*map(_cell, cells), _cell(_text(meaning))]) + " |")
    return "\n".join(rows)


def _text(meaning: ast.expr) -> str:
    """What the help of a key says; names within it (f-strings) stay as they are written."""
    if isinstance(meaning, ast.Constant):
        return str(meaning.value)
    return ast.unparse(meaning).strip("f'\"")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
