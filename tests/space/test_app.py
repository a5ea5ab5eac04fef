"""The Space: its command line, its metadata, and how it writes in a real browser."""

import asyncio
import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch

from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.visualization import token_texts
from tiny_tokenizer import build_tokenizer

ROOT = Path(__file__).parents[2]
APP, MODEL = ROOT / "space" / "app.py", ROOT / "checkpoints" / "lomdm-enwiki"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
)


def test_it_asks_for_what_the_package_asks_for():
    needed = re.findall(r'"([a-z-]+>=[0-9.]+)"', (ROOT / "pyproject.toml").read_text())
    lines = [
        line
        for line in (ROOT / "space" / "requirements.txt").read_text().split("\n")
        if line[:1].isalpha()
    ]
    assert lines and set(lines) <= set(needed)


@pytest.fixture(scope="module")
def app():
    pytest.importorskip("gradio", reason="the Space needs gradio: pip install gradio")
    return importlib.import_module("hf_lomdm.cli.space")


@pytest.fixture(scope="module")
def address():
    """The app in a process of its own, on a free port of the loopback."""
    pytest.importorskip("gradio", reason="the Space needs gradio: pip install gradio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MODEL": "overridden/by-the-option"}
    command = [sys.executable, str(APP), "--model", str(MODEL), "--port", str(port)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield _wait_for(f"http://127.0.0.1:{port}/", process)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _wait_for(url: str, process: subprocess.Popen) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urlopen(url, timeout=5):
                return url
        except (URLError, ConnectionError):
            time.sleep(0.3)
    process.kill()
    raise AssertionError(f"the app does not answer at {url}: {process.communicate()[0]}")


@pytest.fixture
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="drives a browser: pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


def open_page(browser, address: str, problems: list[str]):
    page = browser.new_page(viewport={"width": 1100, "height": 1000}, color_scheme="light")
    page.on(
        "console",
        lambda message: problems.append(message.text) if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: problems.append(str(error)))
    local = (address, "data:", "blob:", "about:srcdoc")
    page.on(
        "request",
        lambda request: None if request.url.startswith(local) else problems.append(request.url),
    )
    page.goto(address)
    page.get_by_role("button", name="Write").wait_for()
    return page


def expected(prompt: str, steps: int = 64) -> tuple[str, list[tuple[str, int]]]:
    """Text, and texts and steps of its revealed tokens, as the pipeline alone writes them with seed
    0."""
    pipe = LoMDMPipeline.from_pretrained(MODEL, dtype=torch.float32)
    out = pipe(
        prompt,
        num_inference_steps=steps,
        max_length=64,
        generator=[torch.Generator().manual_seed(0)],
    )
    pairs = zip(
        token_texts(pipe.tokenizer, out.sequences[0].tolist()), out.order[0].tolist(), strict=True
    )
    return out.texts[0], [(token.replace("\n", "↵\n"), step) for token, step in pairs if step >= 0]


WATCH = """() => {
  window.counts = [];
  new MutationObserver(() => counts.push(document.querySelectorAll("#live .text .t").length))
    .observe(document.querySelector("#live"),
             {childList: true, subtree: true, characterData: true});
}"""


@pytest.mark.slow
def test_app_writes_live_in_a_browser_without_errors_and_without_leaving_the_machine(
    browser, address
):
    problems: list[str] = []
    page = open_page(browser, address, problems)
    page.get_by_label("Prompt or template").fill("The city of")
    page.evaluate(WATCH)
    page.get_by_role("button", name="Write").click()
    page.locator("#order iframe").wait_for(timeout=60_000)
    counts = page.evaluate("counts")
    assert counts == sorted(counts) and len(set(counts)) > 5  # it grew before the eyes, not at once
    text, tokens = expected("The city of")
    assert page.locator("#finished textarea").input_value() == text
    shown = page.eval_on_selector_all(
        "#live .text .t",
        "all => all.map(one => [one.textContent, Number(one.dataset.step), one.className])",
    )
    assert [(token, step) for token, step, _ in shown] == tokens
    last = max(step for _, step in tokens)
    first = next(name for _, step, name in shown if step == 0)
    final = next(name for _, step, name in shown if step == last)
    assert first.split()[-1] == "c0" and final.split()[-1] == "c16"
    background = "all => getComputedStyle(all).backgroundColor"
    # the first colour of the page
    assert page.eval_on_selector("#live .text .c0", background) == "rgb(0, 34, 78)"
    frame = page.frame_locator("#order iframe")
    frame.locator("#first").click()  # the script within the frame runs
    assert (
        frame.locator("#status").inner_text()
        == f"step 0 of {last + 1}: 0 of {len(tokens)} tokens revealed"
    )
    assert problems == []


@pytest.mark.slow
def test_app_fills_templates_and_says_what_is_wrong(browser, address):
    problems: list[str] = []
    page = open_page(browser, address, problems)
    prompt, write = (
        page.get_by_label("Prompt or template"),
        page.get_by_role("button", name="Write"),
    )
    prompt.fill("The [MASK][MASK] of <b>London</b>")
    write.click()
    page.locator("#order iframe").wait_for(timeout=60_000)
    assert page.locator("#live .text .t").count() == 2 and page.locator("#live b").count() == 0
    assert page.locator("#live .given", has_text="L").count() >= 1
    prompt.fill("city " * 200)
    write.click()
    page.get_by_text(re.compile("prompt 0 needs .* tokens, more than the limit of 64")).wait_for(
        timeout=20_000
    )
    assert problems == []


@pytest.mark.slow
def test_stop_ends_a_text_in_the_middle_and_the_next_one_is_written(browser, address):
    problems: list[str] = []
    page = open_page(browser, address, problems)
    page.get_by_label("number input for Steps").fill("1024")  # seconds, also on a fast machine
    page.get_by_label("number input for Steps").press("Enter")
    page.get_by_label("Sampler").fill("ancestral")
    page.get_by_label("Sampler").press("Enter")
    page.get_by_role("button", name="Write").click()
    page.locator("#live .text .t").first.wait_for(timeout=60_000)
    page.get_by_role("button", name="Stop").click()
    page.wait_for_timeout(1000)
    status = page.locator("#live [role=status]")
    output = status.inner_text()
    page.wait_for_timeout(1000)
    assert (
        status.inner_text() == output
        and " of 1024: " in output
        and not output.startswith("step 1024")
    )
    assert page.locator("#order iframe").count() == 0
    page.get_by_label("number input for Steps").fill("8")
    page.get_by_label("number input for Steps").press("Enter")
    page.get_by_role("button", name="Write").click()
    page.locator("#order iframe").wait_for(timeout=60_000)
    assert problems == []


def test_settings_are_passed_on_and_bad_ones_become_messages(app):
    pipe = app.load(str(MODEL))
    write = app.writer(pipe, "Order")
    *growing, (live, text, order) = write("The city of", 4, 12, "left_to_right", 0.0, 3)
    options = {
        "num_inference_steps": 4,
        "max_length": 12,
        "sampler": "left_to_right",
        "temperature": 0.0,
    }
    assert (
        text
        == pipe("The city of", **options, generator=[torch.Generator().manual_seed(3)]).texts[0]
    )
    assert len(growing) == 5 and all(page == "" and not done for _, done, page in growing)
    assert "step 4 of 4" in live and 'sandbox="allow-scripts"' in order
    with pytest.raises(app.gr.Error, match="more than the limit of 5"):
        list(write("The city of London", 4, 5, "sequential", 1.0, 0))


def test_page_offers_every_sampler_of_the_scheduler_and_no_more_tokens_than_the_model_takes(app):
    pipe = app.load(str(MODEL))
    for sampler in app.SAMPLERS:
        type(pipe.scheduler).from_config(pipe.scheduler.config, sampler=sampler)
    parts = {
        part["props"].get("label"): part["props"]
        for part in app.build(pipe, "<x>").config["components"]
    }
    assert (
        parts["Length in tokens, with the prompt"]["maximum"]
        == pipe.model.config.max_position_embeddings
    )
    assert parts["Sampler"]["value"] == pipe.scheduler.config.sampler


@pytest.mark.parametrize("model", ["nowhere/at-all", str(ROOT / "tests")])
def test_models_that_cannot_be_loaded_end_the_app_with_a_reason(app, model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit, match=f"^error: --model {model} cannot be loaded: "):
        app.main(["--model", model])


def test_model_comes_from_the_option_or_else_from_the_environment(app, monkeypatch):
    monkeypatch.setenv("MODEL", "org/name")
    assert app.parse_arguments([]).model == "org/name"
    assert app.parse_arguments(["--model", "other"]).model == "other"
    monkeypatch.delenv("MODEL")
    with pytest.raises(SystemExit):
        app.parse_arguments([])


NAN, SETTINGS = float("nan"), ("x", 4, 12, "sequential", 1, 0)  # as the page sends them
HOSTILE = {
    "prompt": ["a" * 4001, 5, {"a": 1}, ["x"], True],
    "steps": [NAN, float("inf"), "4", -1, 0, 4.5, 10**30, None, [4], True, 1025],
    "length": [NAN, 0, 33, 10**9, "1"],
    "sampler": ["topk", ["sequential"], None],
    "temperature": [NAN, -1, 1e308, "1", None],
    "seed": [NAN, -1, 2**64, "a", 0.5],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_settings_that_the_page_would_not_send_are_refused_before_any_work(
    app, make_model, monkeypatch, name
):
    pipe = LoMDMPipeline(make_model(), LoMDMScheduler(mask_token_id=10), build_tokenizer())
    monkeypatch.setattr(app, "stream", None)
    write, place = app.writer(pipe, "Order"), list(HOSTILE).index(name)
    for value in HOSTILE[name]:
        with pytest.raises(app.gr.Error, match=f"^'?{name} must be "):
            next(write(*SETTINGS[:place], value, *SETTINGS[place + 1 :]))


@pytest.fixture
def client(app, make_model, monkeypatch):
    """The app as `main` starts it, without a socket."""
    from starlette.testclient import TestClient

    pipe = LoMDMPipeline(make_model(), LoMDMScheduler(mask_token_id=10), build_tokenizer())
    launched = {}
    monkeypatch.setattr(app, "load", lambda model: pipe)
    monkeypatch.setattr(
        app.gr.Blocks, "launch", lambda self, **options: launched.update(options, page=self)
    )
    app.main(["--model", "tiny"])
    served = app.gr.routes.App.create_app(launched["page"], app_kwargs=launched["app_kwargs"])
    with TestClient(served) as client:
        yield client


def join(client, *data) -> dict:
    """The body of a request that presses the button."""
    functions = client.get("/config").json()["dependencies"]
    number = next(function["id"] for function in functions if function["api_name"] == "write")
    return {"data": data, "fn_index": number, "session_hash": "session"}


def test_requests_beyond_what_the_page_sends_are_refused_unread(app, client):
    longest = join(client, "\U0001f600" * 4000, *SETTINGS[1:])
    assert client.post("/gradio_api/queue/join", json=longest).status_code == 200
    assert (
        client.post("/gradio_api/queue/join", content=b"a" * (app.BODY_BYTES + 1)).status_code
        == 413
    )
    taken, messages = 0, []

    async def receive():
        nonlocal taken
        taken += 10_000
        return {"type": "http.request", "body": b"a" * 10_000, "more_body": True}

    async def send(message):
        messages.append(message)

    scope = {"type": "http", "method": "POST", "path": "/gradio_api/queue/join", "headers": []}
    asyncio.run(app.Gate(None)(scope, receive, send))
    assert messages[0]["status"] == 413 and taken <= app.BODY_BYTES + 10_000


def test_uploads_files_of_the_server_and_all_that_the_page_does_not_need_are_closed(client):
    upload = {"files": ("a.txt", b"abc")}
    assert client.post("/gradio_api/upload", files=upload).status_code == 404
    for path in (
        "file=/etc/passwd",
        "file=app.py",
        "deep_link?session_hash=x",
        "monitoring",
        "upload_progress",
    ):
        assert client.get(f"/gradio_api/{path}").text == "closed"
    for path in (
        "run/write",
        "api/write",
        "call/write",
        "component_server",
        "vibe-edit/",
        "run/predict",
    ):
        assert client.post(f"/gradio_api/{path}", json={"data": SETTINGS}).text == "closed"
    assert client.get("/robots.txt").status_code == client.get("/config").status_code == 200
    assert client.put("/").text == client.get("/monitoring").text == "closed"


def test_header_of_the_space_names_the_app_and_the_tested_gradio(app):
    header = (ROOT / "space" / "README.md").read_text(encoding="utf-8").split("---")[1]
    fields = dict(line.split(": ", 1) for line in header.strip().splitlines())
    assert fields["sdk"] == "gradio" and fields["sdk_version"] == app.gr.__version__
    assert (ROOT / "space" / fields["app_file"]).exists() and fields["title"]
