"""Runs code as on a machine that has the libraries but not this package."""

import json
import os
import subprocess
import sys
from pathlib import Path

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_lomdm":
            raise ImportError("hf_lomdm is not installed here")

sys.meta_path.insert(0, Blocked())
try:
    import hf_lomdm
except ImportError:
    pass
else:
    sys.exit("hf_lomdm can be imported")
sys.argv = {arguments!r}
"""


def run_without_package(code: str, *arguments, folder: Path, **environment: str) -> list:
    """What `code` prints, as JSON, after `RESULT`; run in a fresh interpreter in `folder`, its
    cache there too.

    Args:
        arguments: become `sys.argv[1:]`.
        environment: further environment variables.
    """
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    command = [
        sys.executable,
        "-I",
        "-c",
        BLOCK.format(arguments=["", *map(str, arguments)]) + code,
    ]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.split("RESULT", 1)[1])
