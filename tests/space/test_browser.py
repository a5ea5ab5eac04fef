"""The Space in a browser: it opens with a run that plays, on a phone and on a screen."""

import importlib
import os
import re
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from test_app import APP, MODELS, expected


@pytest.fixture(scope="module")
def address():
    """The app in a process of its own, on a free port of the loopback."""
    pytest.importorskip("gradio", reason="the Space needs gradio: pip install gradio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MODEL": "overridden/by-the-option"}
    command = [sys.executable, str(APP), "--model", *map(str, MODELS.values()), "--port", str(port)]
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


def open_page(browser, address: str, problems: list[str], width: int = 1280, **options):
    page = browser.new_page(viewport={"width": width, "height": 844}, **options)
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


FRAME = "#run iframe"


def finish(page) -> None:
    """Goes to the end of the run that is there."""
    page.locator(FRAME).wait_for(timeout=60_000)
    page.frame_locator(FRAME).locator("#last").click()


def press_write(page) -> None:
    """Writes another run, and waits for it."""
    page.evaluate("document.querySelector('#run iframe').id = 'old'")
    page.get_by_role("button", name="Write").click()
    page.locator("#run iframe:not(#old)").wait_for(timeout=60_000)


@pytest.mark.slow
def test_the_page_opens_with_a_run_that_plays_by_itself_and_stays_on_the_machine(browser, address):
    problems: list[str] = []
    page = open_page(browser, address, problems)
    frame = page.frame_locator(FRAME)
    frame.locator("#play", has_text="Pause").wait_for()  # it plays, and nobody pressed anything
    frame.locator("#status", has_text=re.compile("^step [2-9] of ")).wait_for()
    assert frame.locator(".masked").count() > 5
    text, tokens = expected("The city of")
    assert page.locator("#finished textarea").input_value() == text
    finish(page)
    shown = frame.locator(".text .t").evaluate_all(
        "all => all.map(one => [one.textContent, Number(one.dataset.step), one.className])"
    )
    assert [(token, step) for token, step, _ in shown] == tokens
    last = max(step for _, step in tokens)
    colours = {step: name.split()[1] for _, step, name in shown}
    assert (colours[0], colours[last]) == ("c0", "c16")
    ground = frame.locator(".text .c0").first.evaluate(
        "one => getComputedStyle(one).backgroundColor"
    )
    assert ground == "rgb(0, 34, 78)"  # the first colour of cividis
    frame.locator("#first").click()
    assert (
        frame.locator("#status").inner_text()
        == f"step 0 of {last + 1}: 0 of {last + 1} tokens revealed"
    )
    bars = frame.locator(".text .t").evaluate_all(
        "all => all.map(one => one.style.getPropertyValue('--rate'))"
    )
    assert len(set(bars)) > 5
    assert problems == []


@pytest.mark.slow
def test_a_motion_that_is_not_wanted_does_not_start(browser, address):
    page = open_page(browser, address, [], reduced_motion="reduce")
    status = page.frame_locator(FRAME).locator("#status")
    assert re.fullmatch(r"step (\d+) of \1: .*", status.inner_text())


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_every_model_fits_the_page_and_shows_its_kind(browser, address, width, scheme):
    problems: list[str] = []
    page = open_page(browser, address, problems, width, color_scheme=scheme)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    frame = page.frame_locator(FRAME)
    assert page.evaluate(fits)
    page.get_by_label("lomdm-sudoku").click()
    frame.locator(".grid").nth(1).wait_for()
    left, right = (frame.locator(".grid").nth(number).bounding_box() for number in (0, 1))
    assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"]
    assert left["width"] == pytest.approx(left["height"], abs=1)
    assert (
        frame.locator(".grid > *").count() == 162 and frame.locator(".grid > .given").count() == 60
    )
    assert page.evaluate(fits)
    finish(page)
    assert frame.get_by_text("Solved.", exact=True).is_visible()
    page.get_by_label("lomdm-moses").click()
    frame.get_by_text("c1ccc(").or_(frame.locator(".text")).first.wait_for()
    if importlib.util.find_spec("rdkit"):
        assert frame.locator("svg ellipse[data-step]").count() > 0
    else:
        assert frame.get_by_text("needs RDKit").is_visible()
    # all of the frame's page is to be seen, without bars to scroll it
    page.wait_for_function(
        "height => Math.abs(document.querySelector('#run iframe').clientHeight - height) < 2",
        arg=frame.locator("html").evaluate("one => one.offsetHeight"),
    )
    assert page.evaluate(fits)
    dark = frame.locator("body").evaluate("one => getComputedStyle(one).backgroundColor")
    assert dark == ("rgb(22, 24, 28)" if scheme == "dark" else "rgb(255, 255, 255)")
    assert problems == []


@pytest.mark.slow
def test_on_a_phone_the_run_is_scrolled_to(browser, address):
    page = open_page(browser, address, [], width=390)
    page.get_by_role("button", name="Write").scroll_into_view_if_needed()
    inside = "0 <= Math.round(document.querySelector('#run').getBoundingClientRect().top)"
    assert not page.evaluate(inside)
    press_write(page)
    page.wait_for_function(
        f"{inside} && document.querySelector('#run').getBoundingClientRect().top < 200"
    )


@pytest.mark.slow
def test_templates_are_filled_in_and_what_is_wrong_is_said(browser, address):
    problems: list[str] = []
    page = open_page(browser, address, problems)
    prompt = page.locator("#prompt textarea")
    prompt.fill("The [MASK][MASK] of <b>London</b> ${1 + 1}")
    press_write(page)
    finish(page)
    frame = page.frame_locator(FRAME)
    assert frame.locator(".text .t").count() == 2 and frame.locator("b").count() == 0
    assert "".join(frame.locator(".text .given").all_inner_texts()).endswith("${1 + 1}")
    prompt.fill("city " * 200)
    page.get_by_role("button", name="Write").click()
    page.get_by_text(re.compile("The prompt has .* tokens, and Length 64")).wait_for(timeout=20_000)
    assert problems == []


@pytest.mark.slow
def test_stop_ends_a_text_in_the_middle_and_the_next_one_is_written(browser, address):
    problems: list[str] = []
    page = open_page(browser, address, problems)
    steps = page.get_by_label("number input for Steps")
    steps.fill("1024")  # seconds, also on a fast machine
    steps.press("Enter")
    page.get_by_label("Order").click()
    page.get_by_role("option", name="in random clusters").click()
    page.get_by_role("button", name="Write").click()
    status = page.locator("#run [role=status]", has_text=re.compile("step [1-9]"))
    status.wait_for(timeout=60_000)
    page.get_by_role("button", name="Stop").click()
    page.wait_for_timeout(1000)
    output = status.inner_text()
    page.wait_for_timeout(1000)
    assert status.inner_text() == output and " of 1024: " in output
    assert page.locator(FRAME).count() == 0
    steps.fill("8")
    steps.press("Enter")
    page.get_by_role("button", name="Write").click()
    page.locator(FRAME).wait_for(timeout=60_000)
    assert problems == []
