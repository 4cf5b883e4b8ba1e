"""Requests to the page, the real application behind its guard: answered, or refused with a status of their own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from fuzz.fuzzing import ODD, VALUES, Fuzz, bounded, contents, fuzz, runs, written
from hypothesis import strategies as st

pytest.importorskip("gradio", reason='needs Gradio: pip install -e ".[dev]"')

__all__ = ["fuzz", "runs"]

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(0)]

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

PARTS = [
    "gradio_api",
    "queue",
    "join",
    "data",
    "config",
    "upload",
    "file=",
    "call",
    "run",
    "api",
    "info",
    "predict",
    "..",
    ".",
]
PARTS += [
    "static",
    "assets",
    "svelte",
    "theme.css",
    "heartbeat",
    "reset",
    "cancel",
    "proxy=http://x/",
    "%2e%2e",
    "%2f",
    "etc",
]
PARTS += [
    "passwd",
    "secret.txt",
    "stream",
    "login",
    "token",
    "mcp",
    "plan",
    "startup-events",
    "\\",
    "//",
    "%00",
    "\x01",
    "é",
]
PATHS = st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=5).map(lambda parts: "/" + "/".join(parts))
QUERIES = st.none() | st.sampled_from(
    ["session_hash=x", "session_hash=", "a=" + "b" * 5000, "\xff", "__theme=dark", "view=api"]
)


def test_requests(fuzz: Fuzz, runs: dict[str, Path], tmp_path: Path) -> None:
    from hfgpt.playground.page import Page
    from hfgpt.playground.server import application

    shutil.copytree(runs["char"], tmp_path / "out" / "run")
    (tmp_path / "secret.txt").write_text(SECRET)
    page = Page(tmp_path / "out", None, "en", [])
    app = application(page)
    described = page.blocks.get_config_file()
    functions = {fn["id"]: len(fn["inputs"]) for fn in described["dependencies"]}
    names = [name for fn in described["dependencies"] if isinstance(name := fn["api_name"], str)]
    known = ["/config", "/", "/gradio_api/info", "/gradio_api/queue/join", "/gradio_api/queue/status", "/theme.css"]
    known += [
        "/gradio_api/reset",
        "/gradio_api/cancel",
        *(f"/gradio_api/{way}/{name}" for name in names for way in ("call", "run")),
    ]
    runnable = [f"/gradio_api/run/{name}" for name in names] + [f"/gradio_api/call/{name}" for name in names]
    values = st.lists(
        VALUES | st.sampled_from(["en", "zh", "run", "../secret.txt", "out/run", str(tmp_path), *ODD[:8]]), max_size=40
    )

    def body(path: str) -> st.SearchStrategy[Any]:
        sized = st.integers(0, 60).flatmap(lambda n: st.lists(VALUES, min_size=n, max_size=n))
        del path
        return st.fixed_dictionaries(
            {"data": values | sized | VALUES},
            optional={"fn_index": st.sampled_from(sorted(functions)) | VALUES, "session_hash": st.just("x") | VALUES,
                      "event_data": VALUES, "trigger_id": VALUES, "event_id": VALUES, "batched": VALUES},
        )  # fmt: skip

    @st.composite
    def request(draw: Any) -> Any:
        path = draw(st.sampled_from(known) | st.sampled_from(runnable) | PATHS)
        method = draw(st.sampled_from(["GET", "POST", "POST", "POST", "PUT", "OPTIONS", "HEAD", "DELETE", "X"]))
        content = draw(
            body(path).map(written) | VALUES.map(written) | st.binary(max_size=100) | st.just(b"a" * (2 << 20))
        )
        headers = {"host": draw(HOSTS), "content-type": draw(st.sampled_from(TYPES))}
        if (origin := draw(st.sampled_from(ORIGINS))) is not None:
            headers["origin"] = origin
        if draw(st.booleans()):
            headers[
                draw(st.sampled_from(["cookie", "referer", "x-forwarded-host", "x-forwarded-proto", "range", "accept"]))
            ] = draw(
                st.sampled_from(["evil.example", "bytes=0-", "x" * 9000, "\xff", "a=b", "text/html", "javascript"])
            )
        return method, path, draw(QUERIES), headers, content

    loop = asyncio.new_event_loop()

    async def ask(
        method: str, path: str, query: str | None, headers: dict[str, str], content: bytes
    ) -> tuple[int, bytes]:
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

    def check_request(example: Any) -> None:
        method, path, query, headers, content = example
        before = contents(tmp_path)
        errors = io.StringIO()
        with bounded(), contextlib.redirect_stderr(errors):
            status, answer = loop.run_until_complete(asyncio.wait_for(ask(method, path, query, headers, content), 15))
        # Gradio answers 500 where it is given other values than a function takes, and says so.
        assert 200 <= status < 500 or (status == 500 and b'"error"' in answer), (status, answer[:300])
        assert "hfgpt/playground" not in errors.getvalue(), errors.getvalue()[-3000:]
        assert SECRET.encode() not in answer
        assert b"Traceback" not in answer
        assert b"root:x:" not in answer
        foreign = headers["host"] in ("evil.example", "", "\xff") or headers.get("origin") in (
            "http://evil.example",
            "null",
        )
        assert not foreign or status == 403, (status, path)
        assert contents(tmp_path) == before

    fuzz(request(), check_request)
    loop.close()
