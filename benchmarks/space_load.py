r"""Many visitors of the Space at once, on the loopback: errors, seconds, memory of the server.

    python benchmarks/space_load.py --model checkpoints/lomdm-enwiki --visitors 50 --rounds 4

Starts the Space in a process of its own. In each round every visitor opens the page, presses Write
with a seed of its own, and reads what comes until the run is finished; all begin at once.
Memory is the resident set of the server after a round, where the system tells it (Linux).
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

APP = Path(__file__).parents[1] / "space" / "app.py"
STARTING = 180  # seconds that the server may take to be there
PATIENCE = 600  # seconds without a word of the server
FIELDS = {"length": 32, "sampler": "sequential", "temperature": 1.0}


@contextmanager
def server(models: list[str]) -> Iterator[tuple[str, int]]:
    """The Space in a process of its own: its address and its process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(APP), "--model", *models, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + STARTING
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the Space did not start with {models}.")
            time.sleep(0.5)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(60)


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).is_success
    except httpx.HTTPError:
        return False


def megabytes(pid: int) -> float | None:
    """The resident set of a process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


async def visit(client: httpx.AsyncClient, seed: int, name: str) -> dict[str, Any]:
    """One visitor: opens the page, writes a run, and says how long the two took."""
    start = time.perf_counter()
    (await client.get("/")).raise_for_status()
    config = (await client.get("/config")).raise_for_status().json()
    opened = time.perf_counter()
    number = next(one["id"] for one in config["dependencies"] if one["api_name"] == "write")
    steps = FIELDS["length"]
    data = [name, "", steps, *FIELDS.values(), seed]
    session = {"session_hash": f"visitor{seed}"}
    body = {"data": data, "fn_index": number, **session}
    (await client.post("/gradio_api/queue/join", json=body)).raise_for_status()
    error = "the server hung up"
    async with client.stream("GET", "/gradio_api/queue/data", params=session) as stream:
        async for line in stream.aiter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                error = None if message["success"] else str(message["output"])[:200]
                break
    end = time.perf_counter()
    return {"error": error, "opened": opened - start, "finished": end - opened}


async def visits(address: str, count: int, first: int, name: str) -> list[dict[str, Any]]:
    """All visitors of a round at once; what one raises is its error."""
    # a browser asks again where the server has just closed an idle connection: here none is idle
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE, limits=limits) as client:
        each = (visit(client, first + i, name) for i in range(count))
        found = await asyncio.gather(*each, return_exceptions=True)
    return [{"error": repr(one)} if isinstance(one, BaseException) else one for one in found]


def summary(found: list[dict[str, Any]], memory: float | None) -> dict[str, Any]:
    """Errors, and median and longest times, of a round."""
    fine = [one for one in found if one["error"] is None]
    result: dict[str, Any] = {"errors": [one["error"] for one in found if one["error"]]}
    for part in ("opened", "finished") if fine else ():
        seconds = [one[part] for one in fine]
        result[part] = {"median": statistics.median(seconds), "longest": max(seconds)}
    return result | {"completed": len(fine), "megabytes": memory}


def measure(models: list[str], visitors: int, rounds: int) -> list[dict[str, Any]]:
    """A summary of each round, printed as it comes."""
    name = Path(models[0]).name if Path(models[0]).is_dir() else models[0]
    results = []
    with server(models) as (address, pid):
        print(f"started: {megabytes(pid)} MB", flush=True)
        for number in range(rounds):
            found = asyncio.run(visits(address, visitors, number * visitors, name))
            results.append(summary(found, megabytes(pid)))
            print(f"round {number + 1}: {json.dumps(results[-1])}", flush=True)
    return results


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", required=True, help="folders; the first one writes")
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    results = measure(options.model, options.visitors, options.rounds)
    if any(one["errors"] for one in results):
        sys.exit("error: some visitors got no run.")


if __name__ == "__main__":
    main()
