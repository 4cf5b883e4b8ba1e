"""The playground: what it answers, over a real server, and in a real browser where there is one."""

from __future__ import annotations

import asyncio
import contextlib
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from inference.test_sample import TEXT, tiny_model

from hfgpt import config as configs
from hfgpt.base.errors import Fault, InputError
from hfgpt.config import Config
from hfgpt.data import tokenizer
from hfgpt.playground import view
from hfgpt.runs.metrics import MetricsWriter
from hfgpt.share import export

pytest.importorskip("gradio", reason='needs Gradio: pip install -e ".[dev]"')
from hfgpt.playground import page as playground

STANDARD = "recipes/standard.yaml"
CARD = "RTX 3060"
CHINESE = re.compile(r"[一-鿿]")


def typed(recipe: str | None = STANDARD, **changes: Any) -> dict[str, Any]:
    """The knobs of a recipe, some of them moved."""
    return playground.settings(recipe) | changes


@pytest.fixture(autouse=True)
def _in_the_checkout() -> Iterator[None]:
    with contextlib.chdir(ROOT):
        yield


def made(folder: str | Path = "out", recipe: str | None = None) -> playground.Page:
    """A page, built inside an event loop: outside of one, Gradio makes its own and leaves it open."""

    async def build() -> playground.Page:
        return playground.Page(folder, recipe)

    return asyncio.run(build())


# ----------------------------------------------------------------------------------------------------------- the plan


def test_a_recipe_as_it_is_needs_no_overrides() -> None:
    for recipe in [None, *(str(path) for path in Path("recipes").glob("*.yaml"))]:
        found = playground.answer(recipe, typed(recipe), CARD)
        assert found.plan is not None, found
        assert found.command.split("train.py")[1].strip() == (recipe or "")


def test_the_command_trains_what_was_planned() -> None:
    moved = typed(
        n_layer=8, dropout=0.30000000000000004, learning_rate=2e-5, min_lr=None, activation_checkpointing=True
    )
    found = playground.answer(STANDARD, moved, CARD)
    words = shlex.split(found.command)
    assert words[:4] == ["accelerate", "launch", "scripts/train.py", STANDARD]
    assert "--dropout=0.3" in words
    assert "--min_lr=none" in words
    assert configs.load(STANDARD, words[4:]) == found.config


def test_more_layers_are_more_of_everything() -> None:
    before, after = (playground.answer(STANDARD, typed(n_layer=n), CARD).plan for n in (6, 12))
    assert before is not None
    assert after is not None
    assert after.memory.needed > before.memory.needed
    assert after.time.total_seconds > before.time.total_seconds


@pytest.mark.parametrize(
    ("change", "key", "fix"),
    [
        ({"n_head": 5}, "n_head", "4 or 6"),
        ({"min_lr": 0.01}, "min_lr", "leave it out (then 0.0001)"),
        ({"warmup_iters": 5000}, "warmup_iters", "raise max_iters"),
        ({"lr_decay_iters": 50}, "lr_decay_iters", "leave it out"),
        ({"vocab_size": 500}, "vocab_size", "'bpe'"),
        ({"n_layer": None}, "n_layer", ""),
        ({"dropout": 1}, "dropout", ""),
    ],
)
def test_a_broken_rule_is_marked_beside_its_value_in_both_languages(change: Any, key: str, fix: str) -> None:
    found = playground.answer(STANDARD, typed(**change), CARD)
    assert found.plan is None
    assert [item.key for item in found.faults] == [key]
    assert fix in found.faults[0].fix
    page = made("out", STANDARD)
    for language in ("en", "zh"):
        shown = page._plan(language, STANDARD, CARD, *typed(**change).values())
        marks = dict(zip(page.faults, shown[5:], strict=True))
        assert [name for name, mark in marks.items() if mark["visible"]] == [key]
        assert bool(CHINESE.search(marks[key]["value"])) == (language == "zh")
        left = re.sub(r"<[^>]*>|'\w+'", "", marks[key]["value"])
        assert language == "en" or not re.search(r"\b(must|set|leave|than|least|and|or)\b", left), left


def test_what_does_not_fit_says_what_would() -> None:
    page = made("out", STANDARD)
    large = typed(batch_size=128, block_size=2048)
    shown = page._plan("en", STANDARD, CARD, *large.values())
    assert "does not fit" in shown[0]
    assert shown[1]["visible"], "the recommended values can be taken"
    marks = dict(zip(page.faults, shown[5:], strict=True))
    assert marks["batch_size"]["visible"]
    taken = dict(zip((knob.key for knob in playground.ALL), page._take(STANDARD, CARD, *large.values()), strict=True))
    changed = {key: value for key, value in taken.items() if isinstance(value, int)}
    again = playground.answer(STANDARD, large | changed, CARD).plan
    assert again is not None
    assert view.verdict(again, "en")[0]
    assert again.found.config.global_batch == 128


def test_a_card_overrides_a_recipe_for_the_cpu(tmp_path: Path) -> None:
    recipe = tmp_path / "cpu.yaml"
    recipe.write_text("device: cpu\n")
    found = playground.answer(str(recipe), typed(str(recipe)), CARD)
    assert found.plan is not None
    assert "--device=auto" in found.command
    assert playground.answer(str(recipe), typed(str(recipe)), None).command.endswith(str(recipe))


def test_a_recipe_that_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("n_layer: [")
    found = playground.answer(str(recipe), {}, None)
    assert "not valid YAML" in found.message
    with pytest.raises(InputError):
        made("out", str(recipe))
    assert "is not in the list" in made("out")._answer("/etc/passwd", CARD, *typed().values()).message


def test_words_are_there_in_both_languages() -> None:
    book = view._book()
    for name, texts in {**book["words"], **book["kinds"]}.items():
        assert set(texts) == {"en", "zh"}, name
        assert texts["en"].count("{}") == texts["zh"].count("{}"), name
        assert not CHINESE.search(texts["en"])
    for knob in playground.ALL:
        assert knob.key in Config.model_fields


def test_what_comes_from_outside_is_escaped() -> None:
    assert "<b>" not in view.message("<b>", "bad")
    fault = Fault("n_head", "<i>", "<b>", "<u>")
    assert not re.search("<[biu]>", view.fault(fault, "en") + view.refused([fault], "", "en").replace("<b>This", ""))


def test_planning_loads_no_torch() -> None:
    code = (
        "import sys; from hfgpt.playground import page as p; page = p.Page('nowhere');"
        "page._plan('en', page._first, 'here', *p.settings(page._first).values());"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


# ----------------------------------------------------------------------------------------------------------- the runs


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: two finished ones, and one that has exported a model."""
    folder = tmp_path_factory.mktemp("out")
    for name in ("healthy.4x64", "overfitting.100k"):
        shutil.copytree(ROOT / "tests/fixtures/curves" / name, folder / name)
    chars = tokenizer.train_char([TEXT])
    model = tiny_model(chars)
    (folder / "tiny").mkdir()
    export.write(folder / "tiny", model, chars, export.weights(model.state_dict()))
    (folder / "tiny/checkpoint-1").mkdir()
    (folder / "tiny/checkpoint-1/model.safetensors").touch()
    return folder


def test_runs_and_models_are_found_by_their_names(out: Path) -> None:
    assert sorted(playground.find(out, "metrics.jsonl")) == ["healthy.4x64", "overfitting.100k"]
    assert list(playground.find(out, "model.safetensors")) == ["tiny"]
    assert list(playground.find(out / "tiny", "model.safetensors")) == ["tiny"]
    assert playground.find(out / "nowhere", "metrics.jsonl") == {}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_runs_are_shown_side_by_side(out: Path, language: str) -> None:
    page = made(out)
    shown, *_ = page._watch(language, ["healthy.4x64", "overfitting.100k"], "tokens", "", None)
    for kind in ("healthy", "overfitting"):
        assert view._book()["kinds"][kind][language] in shown
    assert "--dropout=0.2" in shown
    assert shown.count("<svg") == 2
    assert "tokens trained" in shown
    alone, *_ = page._watch(language, ["healthy.4x64"], "time", "", None)
    assert alone.count("<article>") == 1


def test_a_run_in_progress_is_followed(tmp_path: Path) -> None:
    page = made(tmp_path)
    assert "No run in" in page._watch("en", [], "steps", "", None)[0]
    writer = MetricsWriter(tmp_path / "live/metrics.jsonl")
    writer.path.parent.mkdir()
    writer.path.touch()
    shown, seen, *_ = page._watch("en", ["live"], "steps", "", None)
    assert "holds no step yet" in shown
    writer.write(1, train_loss=4.0, val_loss=4.1)
    shown, seen, *_ = page._watch("en", ["live"], "steps", seen, None)
    assert "4.1000" in shown
    nothing = page._watch("en", ["live"], "steps", seen, None)
    assert {update["__type__"] for update in nothing} == {"update"}
    assert all(len(update) == 1 for update in nothing), "nothing is drawn again"
    writer.write(2, train_loss=float("nan"), val_loss=3.9)
    assert "3.9000" in page._watch("en", ["live"], "steps", seen, None)[0]


# --------------------------------------------------------------------------------------------------------- the server


class Server:
    """scripts/playground.py in a process of its own, on a free port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = [str(ROOT / "scripts/playground.py"), str(folder), "--port", str(self.port)]
        self.process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Tests that a shell started in the background ignore SIGINT, and what they start inherits that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "The playground is at" in line, line + self.process.stdout.read()
        self.address = f"http://127.0.0.1:{self.port}/"

    def stop(self) -> str:
        """End it as Ctrl-C does; what it printed besides its first line."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.communicate(timeout=60)[0]
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def server(out: Path) -> Iterator[Server]:
    started = Server(out)
    yield started
    printed = started.stop()
    assert started.process.returncode == 0
    assert "Traceback" not in printed, printed


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    from gradio_client import Client

    opened = Client(server.address, verbose=False)
    yield opened
    opened.close()


def ask(client: Any, **changes: Any) -> str:
    """The summary that the server answers to the knobs' values, as text."""
    answered = client.predict("en", STANDARD, CARD, *typed(**changes).values(), api_name="/plan")
    return re.sub(r"<[^>]+>", " ", str(answered[0]))


def test_the_server_listens_on_this_machine_alone(server: Server) -> None:
    import psutil

    listening = [c.laddr for c in psutil.Process(server.process.pid).net_connections() if c.status == "LISTEN"]
    assert {(address.ip, address.port) for address in listening} == {("127.0.0.1", server.port)}


def test_the_server_answers_no_other_page(server: Server) -> None:
    import http.client

    def status(method: str, path: str, body: bytes = b"", **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        try:
            return connection.getresponse().status
        finally:
            connection.close()

    assert status("GET", "/") == 200
    for path in (
        "/",
        "/config",
        "/gradio_api/info",
        "/gradio_api/queue/data?session_hash=x",
        "/gradio_api/heartbeat/x",
    ):
        assert status("GET", path, Host="evil.example") == 403
        assert status("GET", path, Origin="http://evil.example:7999") == 403
    assert status("OPTIONS", "/config", Origin="http://evil.example", Access_Control_Request_Method="POST") == 403
    for path in ("/gradio_api/queue/join", "/gradio_api/call/plan", "/gradio_api/run/plan"):
        assert status("POST", path, b"{}", Origin="http://localhost:1", Content_Type="application/json") == 403
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "eA==",
    }
    assert status("GET", "/gradio_api/queue/join", Host="evil.example", **upgrade) == 403
    assert status("POST", "/gradio_api/upload", b"x" * 100) == 404


def test_the_server_plans(client: Any) -> None:
    assert "10.87M" in ask(client)
    assert "It fits" in ask(client)
    assert "14.42M" in ask(client, n_layer=8)
    assert "set n_head to 4 or 6" in ask(client, n_head=5)
    assert "n_layer  must be an integer" in ask(client, n_layer=None)
    assert "must be an integer, at least 1" in ask(client, batch_size=0)


def write(client: Any, run: str = "tiny", prompt: str = "To be", **how: Any) -> list[tuple[str, str]]:
    """Every (text, line about it) that the server sends for a text."""
    values = {"temperature": 0.8, "top_k": 5, "max_new_tokens": 40, "seed": 1} | how
    job = client.submit("en", run, prompt, *values.values(), api_name="/write")
    job.result(timeout=120)
    return [(str(text), re.sub(r"<[^>]+>", "", str(status))) for text, status in job.outputs()]


def test_the_server_writes_as_it_goes(client: Any) -> None:
    sent = write(client)
    assert sent[-1][0].startswith("To be")
    assert len(sent[-1][0]) > len("To be")
    assert re.fullmatch(r"\d+ tokens in .*\.", sent[-1][1])
    assert write(client)[-1][0] == sent[-1][0], "the same seed writes the same text"
    assert "no tokens for" in write(client, prompt="Ω")[-1][1] or "Ω" in write(client, prompt="Ω")[-1][0]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"temperature": None}, "temperature"),
        ({"top_k": 0}, "top_k = 0: must be at least 1"),
        ({"max_new_tokens": 1.5}, "max_new_tokens = 1.5: must be a whole number"),
        ({"seed": None}, "seed = None: must be a whole number"),
        ({"seed": -1}, "seed = -1: must be at least 0"),
    ],
)
def test_bad_input_is_one_message(client: Any, how: dict[str, Any], said: str) -> None:
    (_, message), *more = write(client, **how)
    assert said in message
    assert more == []
    assert "Traceback" not in message


def test_a_busy_port_is_one_message(server: Server, run_script: Any) -> None:
    done = run_script("playground.py", "--port", server.port)
    assert done.returncode == 2
    assert f"port = {server.port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"), [(["--recipe", "nowhere.yaml"], "no such file"), (["--port", "0"], "from 1 to 65535")]
)
def test_a_bad_command_is_one_message(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = ROOT / "scripts/playground.py"
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_without_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "hfgpt.playground.page")
    monkeypatch.setattr(sys, "argv", ["playground.py"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts/playground.py"), run_name="__main__")
    assert ended.value.code == 2
    assert 'pip install -e ".[playground]"' in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- the browser


@pytest.fixture
def browser() -> Iterator[Any]:
    """The Chromium of this machine."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine: apt install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason='needs Playwright: pip install -e ".[dev]"')
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


def type_number(page: Any, knob: str, value: str) -> None:
    """Type a knob's value, as a person does."""
    field = page.locator(f"#{knob} input[type=number]")
    field.fill(value)
    field.press("Tab")


def test_the_page_in_a_browser(server: Server, browser: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    outside: list[str] = []
    errors: list[str] = []
    page.on(
        "request", lambda r: None if r.url.startswith((server.address, "data:", "blob:")) else outside.append(r.url)
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.address)
    parameters = page.locator("#figure-parameters b")
    expect(parameters).to_have_text("10.87M")

    # Plan: a slider is moved by the keyboard, and the figures follow; a broken rule is marked; the language changes.
    page.locator("#n_layer input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    expect(parameters).to_have_text("12.65M")
    expect(page.locator("#command")).to_contain_text("--n_layer=7")
    type_number(page, "n_head", "5")
    expect(page.locator(".knob:has(#n_head) .bad")).to_contain_text("set n_head to 4 or 6")
    page.get_by_text("中文").click()
    expect(page.get_by_role("tab").first).to_have_text("规划")
    expect(page.locator(".knob:has(#n_head) .bad")).to_contain_text("必须整除 n_embd")
    type_number(page, "n_head", "6")
    expect(parameters).to_have_text("12.65M")
    page.get_by_text("English").click()
    expect(page.get_by_role("tab").first).to_have_text("Plan")

    # Sample: a text is written.
    page.get_by_role("tab", name="Sample").click()
    type_number(page, "seed", "2")
    page.locator("#write").click()
    expect(page.locator("#status")).to_contain_text("tokens in")
    assert page.locator("#written textarea").input_value().startswith("ROMEO:")

    # ... and stopped: it grows no more. A busy machine may come to its 2000 tokens before the click does.
    type_number(page, "max_new_tokens", "2000")
    written = page.locator("#written textarea")
    for seed in ("3", "4", "5"):
        before = written.input_value()
        type_number(page, "seed", seed)
        page.locator("#write").click()
        expect(written).not_to_have_value(before)
        page.locator("#stop").click()
        time.sleep(1)  # for what is under way
        stopped = written.input_value()
        time.sleep(1)
        assert written.input_value() == stopped
        if "2000 tokens" not in page.locator("#status").inner_text():
            break
    else:
        pytest.fail("no text was stopped")

    # Runs: curves and the diagnosis; narrow, too, nothing is wider than the screen.
    page.get_by_role("tab", name="Runs").click()
    expect(page.locator("#val_loss svg")).to_be_visible()
    page.screenshot(path=tmp_path / "runs.png")
    page.set_viewport_size({"width": 390, "height": 844})
    for tab in ("Plan", "Runs", "Sample"):
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
        time.sleep(0.3)  # for the layout to follow
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
    assert outside == []
    assert errors == []
