"""A pytest plugin: counts what passed, failed and differs as expected, and says why.

Environment: `PEER`, the name of the peer in expected.py; `PEER_REPORT`, the file to write.
"""

import os
from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path

from expected import EXPECTED

PEER = os.environ["PEER"]
reasons = EXPECTED[PEER]
passed, skipped = set(), set()
failed: dict[str, str] = {}  # test -> what it says
differ: dict[str, set[str]] = defaultdict(set)  # pattern -> tests


def pytest_runtest_logreport(report) -> None:
    """Sorts the outcome of a test, which has failed if set-up or end failed."""
    name = report.nodeid.partition("::")[2]
    if report.skipped:
        skipped.add(name)
    elif not report.failed:
        passed.add(name)
    elif pattern := next((pattern for pattern in reasons if fnmatch(name, pattern)), None):
        differ[pattern].add(name)
    else:
        crash = getattr(report.longrepr, "reprcrash", None)
        failed[name] = (crash.message if crash else str(report.longrepr)).strip().partition("\n")[0]


def pytest_sessionfinish(session) -> None:
    """Writes counts, failures and reasons; exit status 1 for a failure or no pass."""
    whole = passed - skipped - failed.keys() - set().union(*differ.values())
    counts = (
        f"{len(whole)} passed / {len(failed)} failed / {sum(map(len, differ.values()))} expected "
        "differences"
    )
    lines = [f"{PEER}: {counts} ({len(skipped)} do not apply)"]
    lines += [f"  FAILED {name}: {message}" for name, message in sorted(failed.items())]
    lines += [
        f"  {len(tests):4d} x {pattern}: {reasons[pattern]}" for pattern, tests in differ.items()
    ]
    lines += [f"  no longer differs: {pattern}" for pattern in reasons if pattern not in differ]
    Path(os.environ["PEER_REPORT"]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    session.exitstatus = int(bool(failed) or not whole)
