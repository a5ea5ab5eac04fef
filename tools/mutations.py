"""Breaks the library on purpose and checks that the tests notice.

    python tools/mutations.py    # about half an hour on two cores; status 1 if a mutation survives

Each mutation replaces one piece of source in a temporary copy of the project and runs the tests
that ought to fail there. The printed table says which test killed it; `mutations.toml` holds
the pieces.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("src", "tests")
TABLE = ROOT / "tools" / "mutations.toml"


@dataclass(frozen=True)
class Mutation:
    """A piece of `src/hf_lomdm/<file>`, what to put in its place, and tests that must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = tuple(
    Mutation(**row | {"tests": tuple(row["tests"])})
    for row in tomllib.loads(TABLE.read_text(encoding="utf-8"))["mutation"]
)


def mutate(text: str, mutation: Mutation) -> str:
    """The source with the mutation in it.

    Raises:
        ValueError: if what it replaces is not there exactly once.
    """
    count = text.count(mutation.old)
    if count != 1:
        raise ValueError(
            f"mutation {mutation.name!r}: its text occurs {count} times in {mutation.file}, "
            "expected once. Adapt it in tools/mutations.toml to the present source."
        )
    return text.replace(mutation.old, mutation.new)


def failing_tests(tests: tuple[str, ...], mutation: Mutation | None = None) -> list[str]:
    """The first failing tests of `tests` (files) in a mutated copy; none: it survives.

    Raises:
        RuntimeError: if the tests could not run in the copy at all.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in COPIED:
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ROOT.iterdir():  # scripts, checkpoints and pages that tests read
            if part.name not in COPIED:
                (copy / part.name).symlink_to(part)
        if mutation is not None:
            source = copy / "src" / "hf_lomdm" / mutation.file
            source.write_text(
                mutate(source.read_text(encoding="utf-8"), mutation), encoding="utf-8"
            )
        return _run(copy, tests)


def _run(copy: Path, tests: tuple[str, ...]) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    where = [
        sys.executable,
        "-c",
        "import importlib.util as u; print(u.find_spec('hf_lomdm').origin)",
    ]
    origin = subprocess.run(
        where, cwd=copy, env=environment, capture_output=True, text=True, check=True
    ).stdout
    if not Path(origin.strip()).resolve().is_relative_to(copy.resolve()):
        raise RuntimeError(f"the copy's tests would import the package from {origin.strip()}")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        *tests,
    ]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # pytest: 1 is a failed test, all else is no answer
        raise RuntimeError(
            f"pytest ended with status {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.MULTILINE)


def main() -> int:
    """Runs everything, prints the table; 1 if a mutation survives or the tests fail without one."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    broken = failing_tests(
        tuple(sorted({test for mutation in MUTATIONS for test in mutation.tests}))
    )
    if broken:
        print(f"the tests fail without any mutation: {broken[0]}")
        return 1
    survivors = 0
    for mutation in MUTATIONS:
        killers = failing_tests(mutation.tests, mutation)
        survivors += not killers
        print(f"{mutation.name:60s} {killers[0] if killers else 'SURVIVED'}", flush=True)
    print(f"{len(MUTATIONS) - survivors} of {len(MUTATIONS)} mutations killed")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
