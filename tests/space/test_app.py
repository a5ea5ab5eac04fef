"""The Space: its command line, its limits, its metadata, and how it works in a real browser."""

import asyncio
import copy
import html
import importlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hf_lomdm import LoMDMPipeline, LoMDMScheduler
from hf_lomdm.cli import space_models
from hf_lomdm.cli.space_models import ORDERS, PUZZLE, Shown
from hf_lomdm.cli.space_settings import Refused, Settings
from hf_lomdm.modeling.settings_lomdm import SAMPLERS
from hf_lomdm.visualization import token_texts
from tiny_tokenizer import build_tokenizer

ROOT = Path(__file__).parents[2]
APP = ROOT / "space" / "app.py"
MODELS = {name: ROOT / "checkpoints" / f"lomdm-{name}" for name in ("enwiki", "sudoku", "moses")}
MODEL = MODELS["enwiki"]


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
    tokens = token_texts(pipe.tokenizer, out.sequences[0].tolist())
    special = set(pipe.tokenizer.all_special_tokens)
    pairs = zip(tokens, out.order[0].tolist(), strict=True)
    return out.texts[0], [
        ("" if token in special else token.replace("\n", "↵\n"), step)
        for token, step in pairs
        if step >= 0
    ]


@pytest.fixture(scope="module")
def shown():
    """The shipped models as the page has them."""
    return {
        name: Shown(name, LoMDMPipeline.from_pretrained(path, dtype=torch.float32))
        for name, path in MODELS.items()
    }


@pytest.fixture(scope="module")
def opened(shown):
    """With what the page opens, of each model."""
    return {name: model.open() for name, model in shown.items()}


def page_of(run: str) -> str:
    """The page within the frame of a run."""
    return html.unescape(re.search('srcdoc="([^"]*)"', run)[1])


def test_every_shipped_model_is_of_its_kind_and_opens_with_settings_that_suit_it(shown, opened):
    kinds = {"enwiki": "text", "sudoku": "sudoku", "moses": "molecules"}
    assert {name: model.kind for name, model in shown.items()} == kinds
    settings, run, text = opened["enwiki"]
    assert (settings.length, settings.steps) == (64, 64) and text == expected("The city of")[0]
    page = page_of(run)
    assert "<body data-plays>" in page and "[BOS]" not in page and "[EOS]" not in page
    settings, run, text = opened["moses"]
    assert settings.length == 58 and re.fullmatch(r"c1ccc\(.{4}\)cc1C\(=O\)N.{3}", text)
    if importlib.util.find_spec("rdkit"):
        assert page_of(run).count("<svg") == 1


def test_a_sudoku_is_two_grids_with_its_clues_apart_and_says_whether_it_is_solved(opened):
    settings, run, text = opened["sudoku"]
    assert (settings.prompt, settings.length, settings.steps) == (PUZZLE, 81, 81)
    grids = re.findall('<div class="grid".*?</div>', page_of(run))
    for grid, line in zip(grids, text.split("\n"), strict=True):
        cells = re.findall(r"<span([^>]*)>(\d)</span>", grid)
        assert "".join(digit for _, digit in cells) == line.split(": ")[1]
        given = [digit if 'class="given"' in kind else "." for kind, digit in cells]
        assert "".join(given) == PUZZLE
    notes = re.findall('<p class="note">([^<]*)', page_of(run))
    pattern = re.compile(r"Not solved: \d+ of 27 rows, columns and boxes are wrong\.")
    assert pattern.fullmatch(notes[0]) and notes[1] == "Solved."
    # the learned order shows its rates, the other one has no use for them
    rates = re.findall('data-rates="([^"]*)"', page_of(run))
    assert len(set(rates[0])) > 10 and set(rates[1]) == {","}


def test_a_puzzle_with_one_wrong_cell_breaks_its_row_its_column_and_its_box():
    solution = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
    assert space_models._verdict(list(solution)) == "Solved."
    broken = ["1", *solution[1:]]
    assert space_models._verdict(broken).startswith("Not solved: 3 of 27 ")
    # a special token is shown as nothing
    assert space_models._verdict(["", *solution[1:]]).startswith("Not solved: 3 of 27 ")


def test_molecules_without_rdkit_are_written_and_a_line_says_what_the_drawing_needs(
    shown, monkeypatch
):
    monkeypatch.setattr(space_models, "find_spec", lambda name: None)
    model = shown["moses"]
    *_, (run, text) = model.write(model.start)
    assert "<svg" not in page_of(run) and text.startswith("c1ccc(")
    assert "The drawing needs RDKit: pip install 'hf-lomdm[molecules]'" in html.unescape(
        page_of(run)
    )
    monkeypatch.setattr(space_models, "find_spec", lambda name: name)
    monkeypatch.setattr(space_models, "molecule_svg", lambda *_: None)
    *_, (run, _) = model.write(model.start)
    assert "This text is no molecule" in page_of(run)


@pytest.mark.parametrize("has_mask", [True, False])
def test_molecules_are_continued_or_made_up_without_a_template(shown, monkeypatch, has_mask):
    model = shown["moses"]
    if not has_mask:  # a tokenizer may lack the token
        model = space_models.Shown("x", copy.copy(model.pipe))
        model.pipe.tokenizer = copy.deepcopy(model.pipe.tokenizer)
        model.pipe.tokenizer.mask_token = None
        assert "None" not in model.hint
    for prompt in ("c1ccccc1", ""):
        *_, (_, text) = model.write(replace(model.start, prompt=prompt, steps=8))
        assert text.startswith(prompt)


WRONG = {
    ("enwiki", "city " * 60): r"^The prompt has \d+ tokens, and Length 64 leaves room for 63\. "
    "Shorten the prompt, or raise Length.$",
    ("enwiki", "[MASK] " * 65): r"^The prompt has \d+ tokens, and the model takes 64\. "
    "Shorten the prompt.$",
    ("sudoku", PUZZLE[1:]): "^A puzzle has 81 cells, and the prompt has 80.$",
    ("sudoku", "x" + PUZZLE[1:]): "^A cell is a digit or a dot, and the prompt has 'x'.$",
    ("sudoku", "1" * 81): "^No cell is empty.",
    ("sudoku", ""): "^A puzzle has 81 cells, and the prompt has 0.$",
    ("moses", "C[MASK]?"): "^The model does not know the character '[?]'.$",
    ("moses", "C" * 58): "^The prompt has 58 characters, and the model takes 57.",
    ("moses", "C" * 58 + "[MASK]"): "^The prompt has 59 characters, and the model takes 58.",
}


@pytest.mark.parametrize(("name", "prompt"), WRONG)
def test_a_prompt_that_a_model_cannot_take_is_refused_in_the_words_of_the_page(shown, name, prompt):
    model = shown[name]
    with pytest.raises(Refused, match=WRONG[name, prompt]) as refusal:
        next(model.write(replace(model.start, prompt=prompt)))
    assert not re.search("max_|num_|_id|None", str(refusal.value))


def test_a_run_sends_few_states_and_no_text_before_its_end(shown, monkeypatch):
    model = shown["enwiki"]
    monkeypatch.setattr(space_models, "PAUSE", 1e9)
    first, last = model.write(replace(model.start, steps=8, length=16))
    assert "step 0 of 8" in first[0] and first[1] == "" and "<iframe" in last[0]
    monkeypatch.setattr(space_models, "PAUSE", 0)
    *growing, _ = model.write(replace(model.start, steps=8, length=16))
    assert [re.search(r"step (\d)", run)[1] for run, _ in growing] == list("012345678")


def test_what_was_typed_reaches_the_page_as_text_alone(shown):
    model = shown["enwiki"]
    prompt = "<script>x</script><b>&lt;</b>\u202e"
    for run, text in model.write(replace(model.start, prompt=prompt, steps=4)):
        inner = page_of(run) if text else run
        assert "<script>x" not in inner and "<b>" not in inner and "\u202e" not in inner
    given = re.findall('<span class="given"[^>]*>([^<]*)<', inner)
    assert html.unescape("".join(given)).startswith(prompt.replace("\u202e", "\ufffd"))


def test_settings_are_passed_on_to_the_pipeline(shown):
    model = shown["enwiki"]
    *_, (_, text) = model.write(Settings("The city of", 4, 12, "left_to_right", 0.0, 3))
    options = {"num_inference_steps": 4, "max_length": 12, "sampler": "left_to_right"}
    generator = [torch.Generator().manual_seed(3)]
    alone = model.pipe("The city of", **options, temperature=0.0, generator=generator)
    assert text == alone.texts[0]


def test_every_order_is_explained_in_a_few_words(shown):
    assert tuple(ORDERS) == SAMPLERS and len(set(ORDERS.values())) == len(ORDERS)
    assert max(len(words.split()) for words in ORDERS.values()) <= 8


def test_page_has_the_fields_that_suit_each_model(app, shown, opened, monkeypatch):
    page = importlib.import_module("hf_lomdm.cli.space_page")
    monkeypatch.setattr(Shown, "open", lambda model: opened[model.name])
    blocks = page.build(shown)
    parts = {part["props"].get("label"): part["props"] for part in blocks.config["components"]}
    assert [name for _, name in parts["Model"]["choices"]] == list(shown)
    assert parts["Length in tokens, with the prompt"]["maximum"] == 64
    assert parts["Order"]["value"] == "sequential"
    choose = page._chooser(shown, opened)
    prompt, steps, length, order, _, _, run, text = choose("sudoku")
    assert (prompt["value"], steps["value"]) == (PUZZLE, 81) and "grid" in run and "\n" in text
    assert not length["visible"] and not order["visible"]
    with pytest.raises(app.gr.Error, match="one of the models of the page"):
        choose("../other")


def test_models_that_cannot_be_loaded_are_left_out_with_a_line(app, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    models = app.load_all([str(ROOT / "tests"), str(MODEL), str(MODEL), "nowhere/at-all"])
    assert list(models) == ["lomdm-enwiki", str(MODEL)]
    lines = capsys.readouterr().out.splitlines()
    left_out = [line for line in lines if line.startswith("left out: --model ")]
    assert len(left_out) == 2 and "nowhere/at-all cannot be loaded: " in left_out[1]


@pytest.mark.parametrize("model", ["nowhere/at-all", str(ROOT / "tests")])
def test_models_that_cannot_be_loaded_end_the_app_with_a_reason(app, model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit, match=f"^error: --model {model} cannot be loaded: "):
        app.main(["--model", model])


def test_model_comes_from_the_option_or_else_from_the_environment(app, monkeypatch):
    monkeypatch.setenv("MODEL", "org/name")
    assert app.parse_arguments([]).model == ["org/name"]
    assert app.parse_arguments(["--model", "other", "more"]).model == ["other", "more"]
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
    app, tiny, monkeypatch, name
):
    page = importlib.import_module("hf_lomdm.cli.space_page")
    monkeypatch.setattr(space_models, "stream", None)
    write, place = page._writer({"tiny": tiny}), list(HOSTILE).index(name)
    label = "Order" if name == "sampler" else name.capitalize()
    for value in HOSTILE[name]:
        with pytest.raises(app.gr.Error, match=f"^'?{label} must be "):
            next(write("tiny", *SETTINGS[:place], value, *SETTINGS[place + 1 :]))
    for unknown in ("other", None, ["tiny"], 1):
        with pytest.raises(app.gr.Error, match="Choose one of the models") as refused:
            next(write(unknown, *SETTINGS))
        assert refused.value.title == "Nothing was written"


@pytest.fixture
def tiny(make_model) -> Shown:
    scheduler = LoMDMScheduler(mask_token_id=10)
    return Shown("tiny", LoMDMPipeline(make_model(), scheduler, build_tokenizer()))


def test_a_tokenizer_without_a_mask_token_is_no_obstacle(tiny):
    tiny.pipe.tokenizer.mask_token = None
    settings, run, _ = tiny.open()
    assert tiny.hint == "It is continued." and settings.length == 32 and "<iframe" in run


@pytest.fixture
def client(app, tiny, monkeypatch):
    """The app as `main` starts it, without a socket."""
    from starlette.testclient import TestClient

    launched = {}
    monkeypatch.setattr(app, "load", lambda model: tiny.pipe)
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
    return {"data": ["tiny", *data], "fn_index": number, "session_hash": "session"}


def test_requests_beyond_what_the_page_sends_are_refused_unread(client):
    from hf_lomdm.cli import space_gate  # which needs starlette

    longest = join(client, "\U0001f600" * 4000, *SETTINGS[1:])
    assert client.post("/gradio_api/queue/join", json=longest).status_code == 200
    assert (
        client.post(
            "/gradio_api/queue/join", content=b"a" * (space_gate.BODY_BYTES + 1)
        ).status_code
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
    asyncio.run(space_gate.Gate(None)(scope, receive, send))
    assert messages[0]["status"] == 413 and taken <= space_gate.BODY_BYTES + 10_000


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
