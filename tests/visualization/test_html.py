"""The page of the generation order: its structure, its escaping, and how it moves in a real
browser."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hf_lomdm.cli import sample
from hf_lomdm.visualization import order_picture, write_order_html
from hf_lomdm.visualization.colours import COLOURS, black_or_white
from hf_lomdm.visualization.html import order_frame, text_element

ROOT = Path(__file__).parents[2]
TOKENS, ORDER = [["Ab", " cd", "\ne", "f", "<pad>"], ["x", "y"]], [[-1, 3, 0, 1, -2], [1, 0]]
HOSTILE = [
    "</script><script>window.hacked=1</script>",
    '"><img src=x onerror=window.hacked=1>',
    "&lt;b&gt;",
    "<!--",
    "'`${window.hacked=1}`",
    "\u202egnol",
    "\x00\x1b[31m\r",
    "\ud800",
    "",
    "語",
    "]]>",
]


class Page(HTMLParser):
    """The tokens of each text as `(class, step, text)`, all tags with their attributes, script and
    style."""

    def __init__(self, path: Path):
        super().__init__()
        self.texts, self.tags, self.raw, self._open = [], [], {"script": "", "style": ""}, []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in ("meta", "input"):
            self._open.append(tag)
        if attributes.get("class") == "text":
            self.texts.append([])
        elif tag == "span" and "div" in self._open and self.texts and "title" in attributes:
            self.texts[-1].append([attributes["class"], attributes.get("data-step"), ""])

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in self.raw:
            self.raw[self._open[-1]] += data
        elif self._open[-2:] == ["div", "span"] and self.texts:
            self.texts[-1][-1][2] += data


def write(tmp_path, tokens=TOKENS, order=ORDER, **options) -> Path:
    path = tmp_path / "order.html"
    write_order_html(path, tokens, order, **options)
    return path


def test_page_holds_every_text_with_its_steps_and_leaves_padding_out(tmp_path):
    first, second = Page(write(tmp_path)).texts
    assert [(step, text) for _, step, text in first] == [
        (None, "Ab"),
        ("3", " cd"),
        ("0", "↵\ne"),
        ("1", "f"),
    ]
    assert [colour.split()[-1] for colour, *_ in first] == [
        "given",
        f"c{len(COLOURS) - 1}",
        "c0",
        "c5",
    ]
    assert [(step, text) for _, step, text in second] == [("1", "x"), ("0", "y")]


def test_hostile_tokens_stay_text(tmp_path):
    path = write(tmp_path, [HOSTILE], [list(range(len(HOSTILE)))], title="<b>&")
    page, plain = (
        Page(path),
        Page(write(tmp_path, [["a"] * len(HOSTILE)], [list(range(len(HOSTILE)))])),
    )
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert page.raw == plain.raw
    shown = [text for *_, text in page.texts[0]]
    assert shown[:5] == HOSTILE[:5] and shown[8:] == HOSTILE[8:]
    assert shown[5:8] == ["\ufffdgnol", "\u2400\u241b[31m\u240d", "\ufffd"]


def test_page_needs_nothing_from_outside_and_allows_only_its_own_script_and_style(tmp_path):
    page = Page(write(tmp_path))
    text = (tmp_path / "order.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", text)
    assert not any(
        name in attributes
        for _, attributes in page.tags
        for name in ("src", "href", "style", "onclick")
    )
    policy = next(
        a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    hashes = [
        base64.b64encode(hashlib.sha256(page.raw[name].encode()).digest()).decode()
        for name in page.raw
    ]
    assert (
        policy
        == f"default-src 'none'; style-src 'sha256-{hashes[1]}'; script-src 'sha256-{hashes[0]}'"
    )


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_grow_lighter_steadily_and_their_letters_are_legible():
    lights = [luminance(colour) for colour in COLOURS]
    assert lights == sorted(lights) and len(set(lights)) == len(lights)
    for colour, light in zip(COLOURS, lights, strict=True):
        ratio = (
            (light + 0.05) / 0.05 if black_or_white(colour) == "#000000" else 1.05 / (light + 0.05)
        )
        assert ratio >= 4.5  # WCAG AA


@pytest.mark.parametrize(
    ("tokens", "order", "message"),
    [
        ([], [], "at least one, got 0"),
        ([["a"]], [], "got 1, 0"),
        ([["a", "b"]], [[0]], "text 0.*got 2 and 1"),
    ],
)
def test_unusable_input_is_refused(tmp_path, tokens, order, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, tokens, order)


def test_sample_script_writes_the_page_of_all_its_texts(tmp_path):
    model, path = str(ROOT / "checkpoints" / "lomdm-enwiki"), tmp_path / "order.html"
    arguments = [
        "--model",
        model,
        "--prompt",
        "The city",
        "--max_length",
        "12",
        "--num_inference_steps",
        "4",
    ]
    sample.main([*arguments, "--num_return_sequences", "2", "--html", str(path)])
    texts = Page(path).texts
    assert len(texts) == 2 and all(
        "".join(t for *_, t in spans).startswith("[BOS]The city") for spans in texts
    )
    assert {step for spans in texts for _, step, _ in spans} == {None, "0", "1", "2", "3"}


def test_rates_become_bars_from_the_lowest_to_the_highest_and_a_cut_row_keeps_its_columns():
    rates = {0: [None, 0.2, 0.9, 0.55, 3.0], 2: [None, None, 0.2, None, None]}
    element = text_element(
        ["a", "b", "c", "d"], [-1, 2, 3, 0], "<x>", {0: rates[0][:4], 2: rates[2]}
    )
    # of the three that are revealed: "0" is the lowest rate or none, "z" the highest
    assert re.findall('data-rates="([^"]*)"', element) == ["0zi,,000,"]
    assert 'aria-label="&lt;x&gt;"' in element
    same = text_element(["a", "b"], [0, 1], "x", {0: [0.7, 0.7]})
    assert 'data-rates="00,"' in same


def test_a_frame_plays_by_itself_and_only_its_script_may_run():
    sample = text_element([HOSTILE[0], "b"], [0, 1], "text")
    frame = order_frame(sample, title='a"b')
    assert frame.count("<") == 2 and 'sandbox="allow-scripts"' in frame
    assert 'title="a&quot;b"' in frame and "allow-same-origin" not in frame
    assert "&amp;lt;script&amp;gt;" in frame and "&lt;body data-plays&gt;" in frame


@pytest.mark.slow
def test_page_in_a_browser_steps_scrubs_plays_and_switches_by_mouse_and_keys(browser, tmp_path):
    problems, page = (
        [],
        browser.new_page(viewport={"width": 800, "height": 500}, color_scheme="dark"),
    )
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: problems.append(request.url) if "order.html" not in request.url else None,
    )
    page.goto(write(tmp_path, [*TOKENS, HOSTILE], [*ORDER, list(range(len(HOSTILE)))]).as_uri())

    def masked():
        return page.eval_on_selector_all(
            ".sample:not([hidden]) .masked", "all => all.map(one => one.textContent)"
        )

    assert masked() == [] and page.inner_text("#status") == "step 4 of 4: 3 of 3 tokens revealed"
    page.click("#first")
    assert masked() == [" cd", "↵\ne", "f"]
    page.keyboard.press("ArrowRight")  # the focus is on a button, which has no use for arrows
    assert masked() == [" cd", "f"] and page.inner_text(".sample:not([hidden]) .now").endswith("e")
    assert page.get_attribute(".sample:not([hidden]) [data-step='3']", "aria-hidden") == "true"
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert masked() == [" cd"] and page.inner_text("#status").startswith("step 3 of 4")
    page.fill("#step", "1")  # as a drag of the slider does
    assert masked() == [" cd", "f"]
    page.select_option("#speed", "50")
    page.click("#play")
    assert page.inner_text("#play") == "Pause"
    page.locator("#play", has_text="Play").wait_for(timeout=5000)  # at the end it pauses
    assert masked() == [] and page.get_attribute("#status", "aria-live") == "polite"
    page.select_option("#sample", "1")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Home")
    assert masked() == ["x", "y"] and page.locator(".text:visible").count() == 1
    page.keyboard.press(" ")
    assert page.inner_text("#play") == "Pause"
    page.select_option("#sample", "2")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.select_option("#theme", "light")
    assert (dark, page.evaluate(background)) == ("rgb(22, 24, 28)", "rgb(255, 255, 255)")
    assert page.evaluate("window.hacked") is None
    assert problems == []


@pytest.mark.slow
def test_page_is_readable_without_a_script(browser, tmp_path):
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(write(tmp_path).as_uri())
    assert page.locator(".text").all_inner_texts() == ["Ab cd↵\nef", "xy"]


@pytest.mark.parametrize("name", ["order.html", "order.png"])
def test_outputs_are_whole_links_stay_and_devices_too(tmp_path, name):
    def write(path):
        if name == "order.html":
            write_order_html(path, [["a", "b"]], [[0, 1]])
        else:
            pytest.importorskip("matplotlib")
            order_picture(["a", "b"], [0, 1], path)

    (tmp_path / "real").mkdir()
    (tmp_path / name).symlink_to(tmp_path / "real" / name)
    write(tmp_path / name)
    write(tmp_path / name)
    assert (tmp_path / name).is_symlink() and len(list((tmp_path / "real").iterdir())) == 1
    write("/dev/null")
    assert Path("/dev/null").is_char_device()
    write(tmp_path / "plain")  # no ending: the name stays
    assert (tmp_path / "plain").stat().st_size > 1000
