"""Who may use the page: Host and Origin are checked on every route; uploads and large bodies are refused."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from hfgpt.playground.guard import BODY_BYTES, Guard

pytest.importorskip("gradio", reason='needs Gradio: pip install -e ".[dev]"')

HERE = "127.0.0.1:7860"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads the whole body and answers everybody with it, as Gradio does."""
    while (await receive()).get("more_body"):
        pass
    headers = [(b"access-control-allow-origin", b"http://localhost:1")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"through"})


def ask(
    guard: Any, path: str = "/", method: str = "GET", content: Any = None, **headers: str | list[str]
) -> httpx.Response:
    """Send a request; headers by name, with _ for -."""
    given = {"host": HERE} | {name.replace("_", "-"): value for name, value in headers.items()}
    pairs = [(name, v) for name, value in given.items() for v in (value if isinstance(value, list) else [value])]

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(guard, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path, headers=pairs, content=content)

    return asyncio.run(call())


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200),
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("[::1]:7860", 200),
        ("evil.example", 403),
        ("evil.example:7860", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost@evil.example", 403),
        ("127.0.0.1:7860, evil.example", 403),
        ("localhost:", 403),
        ("", 403),
        ("192.168.1.7:7860", 403),
        (["127.0.0.1", "evil.example"], 403),
    ],
)
def test_the_page_answers_its_own_names_alone(host: str | list[str], status: int) -> None:
    assert ask(Guard(echo), host=host).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:7860", 200),
        ("http://localhost:7860", 200),
        ("http://127.0.0.1:7999", 403),
        ("http://localhost", 403),
        ("http://evil.example", 403),
        ("http://evil.example:7860", 403),
        ("null", 403),
        ("file://127.0.0.1:7860", 403),
        ("http://[", 403),
        (["http://127.0.0.1:7860", "http://evil.example"], 403),
    ],
)
def test_other_pages_are_refused(origin: str | list[str], status: int) -> None:
    for method in ("GET", "POST"):
        answer = ask(Guard(echo), "/gradio_api/queue/join", method, origin=origin)
        assert answer.status_code == status
        assert "access-control-allow-origin" not in answer.headers
    assert (
        ask(Guard(echo), "/config", "OPTIONS", origin=origin, access_control_request_method="POST").status_code
        == status
    )


def test_what_a_foreign_page_embeds_is_refused_and_a_link_is_followed() -> None:
    for site in ("cross-site", "same-site"):
        embedded = {"sec_fetch_site": site, "sec_fetch_mode": "no-cors", "sec_fetch_dest": "script"}
        assert ask(Guard(echo), "/config", **embedded).status_code == 403
        link = {"sec_fetch_site": site, "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
        assert ask(Guard(echo), **link).status_code == 200
        assert ask(Guard(echo), method="POST", **link).status_code == 403, "a form"
        assert ask(Guard(echo), **(link | {"sec_fetch_dest": "iframe"})).status_code == 403
    assert "frame-ancestors 'self'" in ask(Guard(echo)).headers["content-security-policy"]


def test_names_that_the_user_gives_are_let_in() -> None:
    guard = Guard(echo, ["lab.example"])
    assert ask(guard, host="lab.example").status_code == 200
    assert ask(guard, "/gradio_api/queue/join", "POST", origin="https://lab.example").status_code == 200
    assert ask(guard, host="evil.example").status_code == 403
    beyond = Guard(echo, addresses=True)
    assert ask(beyond, host="192.168.1.7:7860").status_code == 200
    assert ask(beyond, host="evil.example").status_code == 403


def test_a_body_is_bounded_whatever_it_says_of_itself() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * (BODY_BYTES // 10)

    for content in (b"x" * (BODY_BYTES + 1), pieces()):
        assert ask(Guard(echo), "/gradio_api/queue/join", "POST", content).status_code == 413
    assert ask(Guard(echo), "/gradio_api/queue/join", "POST", b'"%s"' % (b"x" * 1000)).status_code == 200


@pytest.mark.parametrize(
    "content",
    [b"\x9b\x92", b"x", b'{"data": [NaN]}', b'{"data": [1e999]}', b'"\\ud800"', b"[" * 500 + b"]" * 500, b"9" * 5000],
)
def test_a_body_is_json_that_can_be_answered(content: bytes) -> None:
    """Other bodies end in tracebacks of the libraries behind the guard, whose answers repeat the body."""
    assert ask(Guard(echo), "/gradio_api/queue/join", "POST", content).status_code == 400
    assert ask(Guard(echo), "/gradio_api/queue/join", "POST", b'{"data": ["\xe2\x86\x92", 1e3]}').status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/static/..%2f..%2fetc/passwd", "/static/%252e%252e/x", "/gradio_api/run/%2e%2e/upload", "/assets/..%5cx"],
)
def test_a_path_climbs_nowhere(path: str) -> None:
    assert ask(Guard(echo), path).status_code == 404
    assert ask(Guard(echo), "/assets/..a/b.js").status_code == 200


@pytest.mark.parametrize("started", [False, True])
def test_what_the_application_cannot_answer_is_one_line(started: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """For example the number of a function that does not exist: uvicorn would print Gradio's traceback."""

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        if started:
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"Internal Server Error"})
        raise KeyError(-1)

    answer = ask(Guard(fails), "/gradio_api/run/plan", "POST", b'{"fn_index": -1}')
    assert answer.status_code == 500
    assert capsys.readouterr().err == "the page could not answer a request: KeyError: -1\n"


def test_a_query_is_what_a_browser_writes() -> None:
    def status(query: bytes) -> Any:
        sent = list[Any]()
        scope = {"type": "http", "method": "GET", "path": "/config", "query_string": query}
        scope |= {"headers": [(b"host", HERE.encode())]}

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(Guard(echo)(scope, receive, send))
        return sent[0]["status"]

    assert status(b"\xff") == 400
    assert status(b"a=%FF") == 200


@pytest.fixture(scope="module")
def gradio_app() -> Any:
    """Return Gradio's own application around an empty page."""
    import fastapi
    import gradio as gr

    async def build() -> Any:
        with gr.Blocks(analytics_enabled=False) as blocks:
            gr.Markdown("x")
        return gr.mount_gradio_app(fastapi.FastAPI(openapi_url=None), blocks, "/", ssr_mode=False)

    return asyncio.run(build())


def routes(app: Any) -> list[tuple[str, str]]:
    """Return every method and path of an application and of what is mounted in it, with placeholders filled in."""
    listed = []
    for route in app.routes:
        if getattr(route, "methods", None):
            path = re.sub(r"{[^}]*}", "x", route.path)
            listed += [(method, path) for method in route.methods]
        for inner in (getattr(route, "app", None), getattr(route, "original_router", None)):
            listed += routes(inner) if hasattr(inner, "routes") else []
    return listed


def test_no_route_answers_a_foreign_host_or_origin(gradio_app: Any) -> None:
    guard, every = Guard(gradio_app), routes(gradio_app)
    assert len(every) > 60
    for method, path in {*every, ("POST", "/gradio_api/upload"), ("GET", "/nowhere")}:
        assert ask(guard, path, method, host="evil.example").status_code == 403, (method, path)
        assert ask(guard, path, method, origin="http://evil.example").status_code == 403, (method, path)


def test_what_the_page_does_not_use_stays_shut(gradio_app: Any) -> None:
    paths = {path for _method, path in routes(gradio_app)}
    shut = re.compile(r"upload|/file|proxy|vibe|run-history|recording|/stream|monitoring|login|deep_link|component")
    tried = {path for path in paths if shut.search(path)} | {"/gradio_api//upload", "/gradio_api/%75pload"}
    assert len(tried) > 15
    for path in tried:
        for method in ("GET", "POST"):
            assert ask(Guard(gradio_app), path, method).status_code == 404, path
