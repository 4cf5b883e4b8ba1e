"""Requests to the page, the real application behind its guard, are answered or refused with a status."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from fuzz.fuzzing import ODD, PATIENCE, VALUES, Fuzz, bounded, contents, fuzz, runs, written
from hypothesis import strategies as st

pytest.importorskip("gradio", reason='needs Gradio: pip install -e ".[dev]"')

__all__ = ["fuzz", "runs"]

# Gradio makes an event loop in each of its threads, and leaves them open.
UNCLOSED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(0), UNCLOSED]

HERE = "127.0.0.1:7860"
HOSTS = st.sampled_from(
    [HERE] * 8 + ["localhost:7860", "[::1]:7860", "evil.example", "", "127.0.0.1.evil.example:7860", "\xff"]
)
ORIGINS = (
    [None] * 5
    + [f"http://{HERE}"] * 5
    + ["http://evil.example", "null", "http://[", "", "http://127.0.0.1:1", "x:\xff"]
)
TYPES = ["application/json"] * 5 + [
    "text/plain",
    "multipart/form-data; boundary=x",
    "application/x-www-form-urlencoded",
    "\xff",
]
SECRET = "what-no-page-may-say"

KNOWN = ["/config", "/", "/gradio_api/info", "/gradio_api/queue/join", "/gradio_api/queue/status", "/theme.css"]
KNOWN += ["/gradio_api/reset", "/gradio_api/cancel"]
PARTS = "gradio_api queue join data config upload file= call run api info predict .. . static assets svelte theme.css"
PARTS += " heartbeat reset cancel proxy=http://x/ %2e%2e %2f etc passwd secret.txt stream login token mcp plan"
PARTS += " startup-events \\ // %00 \x01 é"
PATHS = st.lists(st.sampled_from(PARTS.split(" ")) | st.text(max_size=3), max_size=5).map(
    lambda parts: "/" + "/".join(parts)
)
QUERIES = st.none() | st.sampled_from(
    ["session_hash=x", "session_hash=", "a=" + "b" * 5000, "\xff", "__theme=dark", "view=api"]
)


MORE_HEADERS = ["cookie", "referer", "x-forwarded-host", "x-forwarded-proto", "range", "accept"]
MORE_VALUES = ["evil.example", "bytes=0-", "x" * 9000, "\xff", "a=b", "text/html", "javascript"]


def bodies(words: list[str]) -> st.SearchStrategy[bytes]:
    """Draw JSON as the page sends it, and other JSON."""
    sent = st.fixed_dictionaries(
        {"data": st.lists(VALUES | st.sampled_from(words), max_size=60) | VALUES},
        optional={"fn_index": st.integers(0, 60) | VALUES, "session_hash": st.just("x") | VALUES,
                  "event_data": VALUES, "trigger_id": VALUES, "event_id": VALUES, "batched": VALUES},
    )  # fmt: skip
    return (sent | VALUES).map(written)


@st.composite
def requests(draw: Any, names: list[str], words: list[str]) -> Any:
    """Draw method, path, query, headers and body; `names`: the page's functions; `words`: possible arguments."""
    runnable = [f"/gradio_api/{way}/{name}" for name in names for way in ("call", "run")]
    path = draw(st.sampled_from(KNOWN) | st.sampled_from(runnable) | PATHS)
    method = draw(st.sampled_from(["GET", "POST", "POST", "POST", "PUT", "OPTIONS", "HEAD", "DELETE", "X"]))
    content = draw(bodies(words) | st.binary(max_size=100) | st.just(b"a" * (2 << 20)))
    headers = {"host": draw(HOSTS), "content-type": draw(st.sampled_from(TYPES))}
    if (origin := draw(st.sampled_from(ORIGINS))) is not None:
        headers["origin"] = origin
    if draw(st.booleans()):
        headers[draw(st.sampled_from(MORE_HEADERS))] = draw(st.sampled_from(MORE_VALUES))
    return method, path, draw(QUERIES), headers, content


async def ask(
    app: Any, method: str, path: str, query: str | None, headers: dict[str, str], content: bytes
) -> tuple[int, bytes]:
    """Return status and body of the application's answer."""
    sent: list[dict[str, Any]] = []
    bodies = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if bodies:
            return bodies.pop()
        await asyncio.sleep(0.2)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    named = [*headers.items(), ("content-length", str(len(content)))]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "query_string": (query or "").encode("latin-1"),
        "root_path": "",
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 7860),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in named],
    }
    await app(scope, receive, send)
    status = next((m["status"] for m in sent if m["type"] == "http.response.start"), 0)
    return status, b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")


def check_answer(status: int, answer: bytes, told: str) -> None:
    """Check that nothing failed and nothing was disclosed."""
    # Gradio answers 500 if it gets values that a function does not take, or a function that does not exist.
    assert 200 <= status < 500 or b'"error"' in answer or "could not answer a request" in told, (status, answer[:300])
    assert "Traceback" not in told, told[-3000:]
    assert SECRET.encode() not in answer
    assert b"Traceback" not in answer
    assert b"root:x:" not in answer


def is_foreign(headers: dict[str, str]) -> bool:
    """Whether a request comes from another web page, or uses another host name."""
    strange = ("http://evil.example", "null")
    return headers["host"] in ("evil.example", "", "\xff") or headers.get("origin") in strange


def test_requests(fuzz: Fuzz, runs: dict[str, Path], tmp_path: Path) -> None:
    from hfgpt.playground.page import Page, application

    shutil.copytree(runs["char"], tmp_path / "out" / "run")
    (tmp_path / "secret.txt").write_text(SECRET)
    page = Page(tmp_path / "out", None, "en", [])
    app, loop = application(page), asyncio.new_event_loop()
    functions = page.blocks.get_config_file()["dependencies"]
    names = [name for function in functions if isinstance(name := function["api_name"], str)]
    words = ["en", "zh", "run", "../secret.txt", "out/run", str(tmp_path), *ODD[:8]]

    def check_request(example: Any) -> None:
        method, path, query, headers, content = example
        before, errors = contents(tmp_path), io.StringIO()
        with bounded(), contextlib.redirect_stderr(errors):
            asked = ask(app, method, path, query, headers, content)
            status, answer = loop.run_until_complete(asyncio.wait_for(asked, PATIENCE))
        check_answer(status, answer, errors.getvalue())
        assert status == 403 or not is_foreign(headers), (status, path)
        assert contents(tmp_path) == before

    fuzz(requests(names, words), check_request)
    loop.close()
    gc.collect()  # what Gradio has left open is reported in this test, which allows it, not in the next one
