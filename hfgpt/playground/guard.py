"""Who may use the page: this machine's browser, on the page's own address, and nobody's uploads.

In:  an ASGI application, and the host names that the user allows besides the loopback's.
Out: the same application, which answers 403, 404 or 413 where a request comes from somewhere else or asks for more, and
     400 where its body is not JSON as a browser writes it.

A page on the loopback is within reach of every web page that the user opens. Such a page can name any host (DNS
rebinding), post without asking (a form, an upload), and frame what it cannot read. So the Host header, the Origin and
the browser's own Sec-Fetch-Site decide, on every route, before Gradio sees the request. Gradio's routes that this page
does not use (uploads, files, proxy, editor) stay shut, and a request's body is bounded.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from hfgpt.base.command import typed

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

BODY_BYTES = 1 << 20  # a text of one's own and the values of the fields, many times over

DEPTH = 32  # of lists and objects in a body; those of the page have a few

# The parts of Gradio that the page uses: its files, the description of the page, and the queue of its events.
OPEN = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|pwa_icon|(assets|static|svelte)/.+)?/?"
    r"|/gradio_api/(info|app_id|startup-events|reset|cancel|theme\.css|heartbeat/\w+|queue/(join|data|status))/?"
    r"|/gradio_api/(call|run|api)/.+"
)

HEADERS = [
    (b"content-security-policy", b"frame-ancestors 'self'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
]


class Guard:
    """The application behind its guard.

    Args:
        application: answers what is let through.
        hosts: names besides the loopback's by which the page may be called, without a port.
        addresses: whether an IP address may stand as host. A name can be made to point here by anybody, an address
            cannot; so a page that listens beyond the loopback answers to its own addresses.
    """

    def __init__(self, application: Application, hosts: Collection[str] = (), addresses: bool = False) -> None:
        self._application, self._addresses = application, addresses
        self._named = frozenset(host.lower().strip("[]") for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):  # lifespan
            await self._application(scope, receive, send)
            return
        headers = _headers(scope)
        status = 403 if scope["type"] == "websocket" else self._status(scope, headers)  # the page opens none
        if status:
            await _refuse(scope["type"], status, send)
            return
        await _checked(self._application, scope, receive, send)

    def _status(self, scope: Scope, headers: dict[str, list[str]]) -> int:
        """0, or the status that refuses the request."""
        hosts, origins = headers.get("host", []), headers.get("origin", [])
        if len(hosts) != 1 or len(origins) > 1 or not self._is_ours(_name(hosts[0])):
            return 403
        if origins and not self._same_page(origins[0], hosts[0]):
            return 403
        if not origins and not _asked_by_the_page(headers, scope.get("method", "GET")):
            return 403
        path = unquote(scope["path"])
        if not OPEN.fullmatch(path) or not {".", ".."}.isdisjoint(re.split(r"[/\\]", path)):
            return 404
        if not scope.get("query_string", b"").isascii():  # a browser writes %FF
            return 400
        length = headers.get("content-length", ["0"])[0]
        return 413 if length.isdecimal() and int(length) > BODY_BYTES else 0

    def _is_ours(self, name: str) -> bool:
        return name in LOOPBACK or name in self._named or (self._addresses and is_address(name))

    def _same_page(self, origin: str, host: str) -> bool:
        """Whether an origin is the page itself: its address, the same port under another name of ours, or a name that
        the user gave, whose port a proxy may have changed."""
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        name = (parts.hostname or "").lower()
        if parts.scheme not in ("http", "https"):
            return False
        return name in self._named or (self._is_ours(name) and _port(parts.netloc) == _port(host))


def _headers(scope: Scope) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for key, value in scope["headers"]:
        headers.setdefault(key.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return headers


def _name(host: str) -> str:
    """A Host header without its port, as one would compare it; empty where it is not one."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]@/\s]+)(:\d{1,5})?", host)
    return match[1].strip("[]").lower() if match else ""


def _port(netloc: str) -> str:
    return re.search(r"(?::(\d+))?$", netloc)[1] or ""  # type: ignore[index]  # it always matches


def is_address(name: str) -> bool:
    """Whether a host is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _asked_by_the_page(headers: dict[str, list[str]], method: str) -> bool:
    """Whether a request without an Origin is the page's own, a link that was followed, or a program's.

    Browsers say where a request comes from (Sec-Fetch-Site); programs such as curl do not.
    """
    site = headers.get("sec-fetch-site", ["none"])[0]
    if site in ("none", "same-origin"):
        return True
    followed = headers.get("sec-fetch-mode", [""])[0] == "navigate" and headers.get("sec-fetch-dest") == ["document"]
    return followed and method == "GET"


async def _refuse(kind: str, status: int, send: Send) -> None:
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    text = {
        400: "Not a request that a browser makes",
        403: f"This page answers its own address alone. To allow another name: {typed('playground')} --allow NAME",
        404: "Not found",
        413: "Too large",
    }[status]
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})


async def _checked(application: Application, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request once its whole body is here: BODY_BYTES at most, whatever it says of itself, and JSON."""
    body = b""
    message: Message = {}
    while not message or message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
        if len(body) > BODY_BYTES:
            await _refuse(scope["type"], 413, send)
            return
    if body and not _is_json(body):
        await _refuse(scope["type"], 400, send)
        return
    waiting = [{**message, "body": body} if message["type"] == "http.request" else message]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    async def send_guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*_without_sharing(message.get("headers", [])), *HEADERS]
        await send(message)

    await application(scope, receive_again, send_guarded)


def _is_json(body: bytes) -> bool:
    """Whether a body is JSON that any library reads and writes again: no Infinity, no half characters, not deep."""
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    level: list[Any] = [value]
    for _depth in range(DEPTH):
        inner = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [value for values in inner for value in values]
    return not level


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _without_sharing(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """No other origin is invited to read: Gradio's own rule lets in every port of the loopback."""
    return [(key, value) for key, value in headers if not key.lower().startswith(b"access-control-")]
