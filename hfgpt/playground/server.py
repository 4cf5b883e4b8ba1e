"""The page's server: one socket, on the loopback unless told otherwise, behind its guard.

In:  a page (hfgpt/playground/page.py), an address, and the host names that may call it.
Out: the page under http://HOST:PORT until Ctrl-C.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import fastapi
import gradio as gr
import uvicorn

from hfgpt.base.errors import InputError
from hfgpt.base.language import _, strerror
from hfgpt.playground.guard import LOOPBACK, Guard
from hfgpt.playground.page import Page

# Only system fonts: nothing is fetched. The Chinese ones follow the Latin ones, so that digits look the same.
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC")

MONOSPACE = ("ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "Noto Sans Mono CJK SC")


def application(page: Page, hosts: Sequence[str] = (), addresses: bool = False) -> Guard:
    """Return the page as an ASGI application behind its guard."""
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONOSPACE)
    theme.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300")
    app = gr.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None), page.blocks, "/", theme=theme, css=style, footer_links=[],
        run_history=False, ssr_mode=False, max_file_size=1, enable_monitoring=False, mcp_server=False, pwa=False,
    )  # fmt: skip
    return Guard(app, hosts, addresses)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        InputError: the port is not free, or the address is not one of this machine's.
    """
    if not 0 < port < 65536:
        raise InputError("port = {port}: must be from 1 to 65535", port=port)
    try:
        family, kind, protocol, _name, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        if os.name != "nt":  # on Windows it would share a port already in use
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(128)
    except OSError as error:
        raise InputError(
            "port = {port}: cannot listen on {host} ({reason}) → --port={other} chooses another",
            port=port,
            host=host,
            reason=strerror(error),
            other=port + 1,
        ) from None
    return listening


def serve(
    folder: str | Path,
    recipe: str | None,
    host: str,
    port: int,
    language: str,
    allow: Sequence[str] = (),
    train: Sequence[str] = (),
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        folder: holds the runs.
        recipe: to start from; None: one that suits this machine.
        host, port: where to listen. language: 'en' or 'zh', until the reader chooses.
        allow: host names, besides the loopback's, at which the page may be reached.
        train: the arguments of `python` that train a recipe; empty: the page does not start runs.

    Raises:
        InputError: the recipe, the port or the address cannot be used.
    """
    with listen(host, port) as listening:
        page = Page(folder, recipe, language, train)
        local = host in LOOPBACK
        app = application(page, (*allow, host), addresses=not local)
        shown = f"[{host}]" if ":" in host else host
        print(_("The playground is at {address}  (Ctrl-C ends it)", address=f"http://{shown}:{port}/"), flush=True)
        if not local:
            print(
                _("Whoever reaches this machine can use it: it starts and pauses runs, and reads them."),
                flush=True,
            )
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, ws="none")
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:
            print()
