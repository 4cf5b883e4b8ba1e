"""Access control of the page: only this machine's browser, only at the page's own address, and no uploads.

In:  an ASGI application, and the host names that the user allows besides the loopback's.
Out: the same application, which answers 403, 404 or 413 if a request comes from elsewhere or asks for too much, and 400
     if its body is not JSON as browsers write it.

A page on the loopback can be reached by every web page that the user opens. Such a page can use any host name (DNS
rebinding), post without permission (a form, an upload), and frame what it cannot read. So the Host header, the Origin
and the browser's own Sec-Fetch-Site decide, on every route, before Gradio sees the request. Gradio's routes that this
page does not use (uploads, files, proxy, editor) are blocked, and a request's body is limited in size.
"""

import ipaddress
import json
import re
import sys
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import unquote, urlsplit

from hfgpt.base.command import typed
from hfgpt.base.errors import first_line
from hfgpt.base.language import _
from hfgpt.base.terminal import say

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
BODY_BYTES = 1 << 20  # many times the user's text and the values of the fields
DEPTH = 32  # nesting depth of lists and objects in a body; the page's own have a few levels

# The routes of Gradio that the page uses: its files, the description of the page, and the queue of its events.
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
    """The application behind its guard. Args:
    application: answers the requests that are admitted.
    hosts: names, besides the loopback's, at which the page may be reached, without a port.
    addresses: whether the host may be an IP address. Anybody can make a name point here, but not an address; so a
        page that listens beyond the loopback answers to its own addresses.
    """

    def __init__(self, application: Application, hosts: Collection[str] = (), addresses: bool = False) -> None:
        self._application, self._addresses = application, addresses
        self._named = frozenset(host.lower().strip("[]") for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):  # lifespan
            await self._application(scope, receive, send)
            return
        headers: dict[str, list[str]] = {}
        for key, value in scope["headers"]:
            headers.setdefault(key.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        # the page does not use WebSockets
        status = 403 if scope["type"] == "websocket" else self._status(scope, headers)
        if status:
            await _refuse(scope["type"], status, send)
            return
        await _checked(self._application, scope, receive, send)

    def _status(self, scope: Scope, headers: dict[str, list[str]]) -> int:
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
        if not scope.get("query_string", b"").isascii():  # a browser would send %FF
            return 400
        length = headers.get("content-length", ["0"])[0]
        return 413 if length.isdecimal() and int(length) > BODY_BYTES else 0

    def _is_ours(self, name: str) -> bool:
        return name in LOOPBACK or name in self._named or (self._addresses and is_address(name))

    def _same_page(self, origin: str, host: str) -> bool:
        """Whether an origin is the page itself: its address, the same port under another of its names, or a name that
        the user allowed, whose port a proxy may have changed.
        """
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        name = (parts.hostname or "").lower()
        if parts.scheme not in ("http", "https"):
            return False
        return name in self._named or (self._is_ours(name) and _port(parts.netloc) == _port(host))


def _name(host: str) -> str:
    """Normalise a Host header, without its port; empty if it is invalid."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]@/\s]+)(:\d{1,5})?", host)
    return match[1].strip("[]").lower() if match else ""


def _port(netloc: str) -> str:
    return re.search(r"(?::(\d+))?$", netloc)[1] or ""  # type: ignore[index]  # it always matches


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _asked_by_the_page(headers: dict[str, list[str]], method: str) -> bool:
    """Whether a request without an Origin comes from the page itself, a followed link, or a program.

    Browsers state where a request comes from (Sec-Fetch-Site); programs such as curl do not.
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
        500: "The page could not answer this request",
    }[status]
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})


async def _checked(application: Application, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request once its whole body has arrived and is JSON of at most BODY_BYTES."""
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

    started = False

    async def send_guarded(message: Message) -> None:
        nonlocal started
        if message["type"] == "http.response.start":
            started = True
            # Gradio's own CORS headers admit every port of the loopback.
            kept = (pair for pair in message.get("headers", []) if not pair[0].lower().startswith(b"access-control-"))
            message["headers"] = [*kept, *HEADERS]
        await send(message)

    try:
        await application(scope, receive_again, send_guarded)
    except Exception as error:  # Gradio's, for a request that the page never makes
        reason = f"{type(error).__name__}: {first_line(error)}"[:200]
        say(_("the page could not answer a request: {reason}", reason=reason), sys.stderr)
        if not started:
            await _refuse(scope["type"], 500, send)


def _is_json(body: bytes) -> bool:
    """Whether a body is JSON that any library can handle: no Infinity, no lone surrogates, not deeply nested."""
    try:
        value = json.loads(body.decode())
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    level: list[Any] = [value]
    for _depth in range(DEPTH):
        inner = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [value for values in inner for value in values]
    return not level
