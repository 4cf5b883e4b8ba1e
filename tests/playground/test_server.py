"""The page over a real server, and in a real browser if there is one."""

from __future__ import annotations

import contextlib
import re
import runpy
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
from playground.test_page import CARD, STANDARD, out, typed

from hfgpt.base.errors import InputError
from hfgpt.playground.trainer import Trainer

pytest.importorskip("gradio", reason='needs Gradio: pip install -e ".[dev]"')

__all__ = ["out"]


@pytest.fixture(autouse=True)
def _in_the_checkout() -> Iterator[None]:
    with contextlib.chdir(ROOT):
        yield


# --------------------------------------------------------------------------------------------------------- the server


class Server:
    """scripts/playground.py in its own process, on a free port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = [
            str(ROOT / "scripts/playground.py"),
            str(folder),
            "--port",
            str(self.port),
            "--recipe",
            "recipes/standard.yaml",
        ]
        self.process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Tests that a shell started in the background ignore SIGINT, and their child processes inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "The playground is at" in line, line + self.process.stdout.read()
        self.address = f"http://127.0.0.1:{self.port}/"

    def stop(self) -> str:
        """End it with Ctrl-C; return what it printed after its first line."""
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
    trainer = Trainer(out, [])
    for name in trainer.names():  # a failed test can leave a run, which outlives the page
        with contextlib.suppress(InputError):
            trainer.pause(name)
    assert started.process.returncode == 130, "as every command that Ctrl-C ends"
    assert "Traceback" not in printed, printed


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    from gradio_client import Client

    opened = Client(server.address, verbose=False)
    yield opened
    opened.close()


def ask(client: Any, **changes: Any) -> str:
    """Return the server's summary for the knobs' values, as text."""
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
    assert "n_layer : must be an integer" in ask(client, n_layer=None)
    assert "must be an integer, at least 1" in ask(client, batch_size=0)


def write(client: Any, run: str = "tiny", prompt: str = "To be", **how: Any) -> list[tuple[str, str]]:
    """Return every (text, status line) that the server sends for a text."""
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


def test_a_value_that_a_field_cannot_have_is_one_message(client: Any) -> None:
    """A value that is not in the list or of another type, too few values; the server's log has a line for each."""
    from gradio_client.exceptions import AppError

    knobs = list(typed().values())
    for values in (["xx", STANDARD, CARD, *knobs], [{"a": []}, STANDARD, CARD, *knobs], ["en", [1], {}, *knobs]):
        with pytest.raises(AppError, match="a value that it cannot use"):
            client.predict(*values, api_name="/plan")


def test_a_button_that_acts_in_the_browser_alone_is_no_function(server: Server) -> None:
    """Its name would be among the page's functions."""
    import httpx

    answer = httpx.post(f"{server.address}gradio_api/run/unnamed", json={"data": []}, trust_env=False)
    assert (answer.status_code, "no such function" in answer.text) == (500, True)


def test_a_busy_port_is_one_message(server: Server, run_script: Any) -> None:
    done = run_script("playground.py", "--port", server.port)
    assert done.returncode == 2
    assert f"port = {server.port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "nowhere.yaml"], "no such file"),
        (["/dev/null"], "'/dev/null': is not a folder"),
        (["--port", "0"], "from 1 to 65535"),
        (["--allow", "lab.example,http://lab.example"], "must be host names without http:// and port"),
        (["--allow", "lab.example:7860"], "must be host names without http:// and port"),
    ],
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


def test_without_gradio_it_says_what_to_install() -> None:
    hidden = "import runpy, sys; sys.modules['gradio'] = None; sys.argv = ['playground.py']; "
    run = f"runpy.run_path({str(ROOT / 'scripts/playground.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", hidden + run], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert 'needs Gradio → pip install "hfgpt[playground]"' in done.stderr
    assert "Traceback" not in done.stderr


# -------------------------------------------------------------------------------------------------------- the browser


@pytest.fixture
def browser() -> Iterator[Any]:
    """Start this machine's Chromium."""
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

    # Plan: the keyboard moves a slider, and the figures follow; a violated rule is marked; the language changes.
    page.locator("#n_layer input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    expect(parameters).to_have_text("12.65M")
    expect(page.locator("#command")).to_contain_text("--n_layer=7")
    type_number(page, "n_head", "5")
    expect(page.locator(".knob:has(#n_head) .bad")).to_contain_text("set n_head to 4 or 6")
    expect(page.locator("html")).to_have_attribute("lang", "en")
    page.get_by_text("中文", exact=True).click()
    expect(page.locator("html")).to_have_attribute("lang", "zh")
    expect(page.get_by_role("tab").first).to_have_text("规划")
    expect(page.locator(".knob:has(#n_head) .bad")).to_contain_text("整除 n_embd")
    type_number(page, "n_head", "6")
    expect(parameters).to_have_text("12.65M")
    page.get_by_text("English", exact=True).click()
    expect(page.get_by_role("tab").first).to_have_text("Plan")

    # Sample: a text is written.
    page.get_by_role("tab", name="Text").click()
    page.locator("#prompt textarea").fill("To be")
    type_number(page, "seed", "2")
    page.locator("#write").click()
    expect(page.locator("#status")).to_contain_text("tokens in")
    expect(page.locator("#written textarea")).to_have_value(re.compile(r"To be.+", re.DOTALL))

    # ... and stopped: it grows no further. A busy machine may write its 50,000 tokens before the click.
    type_number(page, "max_new_tokens", "50000")
    written = page.locator("#written textarea")
    for seed in ("3", "4", "5"):
        before = written.input_value()
        type_number(page, "seed", seed)
        page.locator("#write").click()
        expect(written).not_to_have_value(before)
        page.locator("#stop").click()
        time.sleep(1)  # for texts on their way
        stopped = written.input_value()
        time.sleep(1)
        assert written.input_value() == stopped
        if "50000 tokens" not in page.locator("#status").inner_text():
            break
    else:
        pytest.fail("no text was stopped")

    # Runs: curves and the diagnosis; on a narrow screen, nothing is wider than the screen.
    page.get_by_role("tab", name="Runs").click()
    expect(page.locator("#val_loss svg")).to_be_visible()
    page.screenshot(path=tmp_path / "runs.png")
    page.set_viewport_size({"width": 390, "height": 844})
    for tab in ("Plan", "Runs", "Text"):
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
        time.sleep(0.3)  # for the layout to follow
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
    assert outside == []
    assert errors == []


def test_a_run_is_started_followed_and_paused_in_a_browser(server: Server, browser: Any, out: Path) -> None:
    from playwright.sync_api import expect

    expect.set_options(timeout=120_000)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(server.address)
    expect(page.locator("#schedule svg")).to_be_visible()
    for knob, value in (("batch_size", "2"), ("block_size", "16"), ("n_layer", "1"), ("max_iters", "20000")):
        type_number(page, knob, value)
    page.locator("#name textarea, #name input").fill("../outside")
    page.locator("#train-this").click()
    expect(page.locator("#started")).to_contain_text("must be of letters")
    page.locator("#name textarea, #name input").fill("begun")
    page.locator("#train-this").click()
    expect(page.locator("#pause")).to_be_enabled()
    expect(page.locator("#progress .log")).to_contain_text(re.compile(r"step \d+/20000  loss"))
    page.reload()  # the run is still shown, with its log
    page.get_by_role("tab", name="Train").click()
    expect(page.locator("#progress .log")).to_contain_text(re.compile(r"step \d+/20000  loss"))
    expect(page.locator("#figure-left b")).not_to_have_text("–")
    page.locator("#pause").click()
    expect(page.locator("#progress")).to_contain_text("It is paused")
    expect(page.locator("#resume")).to_be_enabled()
    assert list((out / "begun").glob("checkpoint-*")), "it wrote a checkpoint"

    # The losses of the user's own text, in colours; nothing is wider than a phone, and no tile overflows.
    page.get_by_role("tab", name="Text").click()
    page.locator("#own textarea").fill("To be, or not to be")
    page.locator("#judge").click()
    expect(page.locator("#losses .heat.text span[title]").first).to_be_visible()
    page.set_viewport_size({"width": 390, "height": 844})
    wider = "[...document.querySelectorAll('.tile, td, .notice')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    for tab in ("Plan", "Train", "Runs", "Text"):
        page.get_by_role("tab", name=tab).click()
        time.sleep(0.3)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
        assert page.evaluate(wider) == 0, tab
