"""The playground in a browser: plan a run with sliders, train it, compare runs, sample from a model.

In:  a folder of runs, a recipe to start from, the arguments of `python` that start a training; an address, and the host
     names that may call it.
Out: the page under http://HOST:PORT until Ctrl-C, on the loopback unless told otherwise, behind its guard. It fetches
     nothing from outside.

Each tab has its own module; this one connects and serves them. torch is loaded when the first text is sampled.
"""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
import uvicorn

from hfgpt.base.errors import InputError
from hfgpt.base.language import _, strerror
from hfgpt.base.terminal import say
from hfgpt.playground.guard import LOOPBACK, Guard
from hfgpt.playground.pieces import Labels
from hfgpt.playground.plan_tab import PlanTab
from hfgpt.playground.runs_tab import RunsTab
from hfgpt.playground.text_tab import TextTab
from hfgpt.playground.train_tab import TrainTab
from hfgpt.playground.trainer import Trainer

REFRESH = 2.0  # seconds between two refreshes of the runs
QUIET: dict[str, Any] = {"show_progress": "hidden"}

# Tells the browser the page's language; otherwise it offers to translate the page.
SPOKEN = "language => { document.documentElement.lang = language }"


class Blocks(gr.Blocks):
    """Gradio's blocks, which report an invalid value of a field in one line, without a traceback."""

    async def preprocess_data(self, block_fn: Any, *args: Any, **named: Any) -> Any:
        """Convert an event's values for its function. Raises gr.Error, which the page shows."""
        try:
            if block_fn.fn is None:  # a button that acts in the browser alone
                raise ValueError(_("no such function"))
            return await super().preprocess_data(block_fn, *args, **named)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            message = _("the page was sent a value that it cannot use: {reason}", reason=reason)
            say(message, sys.stderr)
            raise gr.Error(message, print_exception=False) from None


class Page:
    """The page; Gradio serves its :attr:`blocks`.

    Args:
        folder: holds the runs; may be empty or not exist yet.
        recipe: to start from; None: one that suits this machine.
        language: 'en' or 'zh', until the reader chooses.
        train: the arguments of `python` that train a recipe; empty: the page does not start runs.

    Raises:
        InputError: the recipe cannot be used.
    """

    def __init__(
        self, folder: str | Path = "out", recipe: str | None = None, language: str = "en", train: Sequence[str] = ()
    ) -> None:
        labels, trainer = Labels(language), Trainer(Path(folder), train)
        with Blocks(title="hfgpt", analytics_enabled=False) as self.blocks:
            with gr.Row(elem_id="head"):
                labels.add(gr.HTML, _title, padding=False)
                self.language = gr.Radio(
                    [("English", "en"), ("中文", "zh")], value=language, show_label=False, container=False,
                    elem_id="language",
                )  # fmt: skip
            with gr.Tabs() as self.tabs:
                with labels.add(gr.Tab, lambda: {"label": _("Plan")}, id="plan"):
                    self.plan = PlanTab(labels, recipe, trainer)
                with labels.add(gr.Tab, lambda: {"label": _("Train")}, id="train"):
                    self.train = TrainTab(labels, trainer)
                with labels.add(gr.Tab, lambda: {"label": _("Runs")}, id="runs"):
                    self.runs = RunsTab(labels, Path(folder))
                with labels.add(gr.Tab, lambda: {"label": _("Text")}, id="text"):
                    self.text = TextTab(labels, Path(folder))
            self.clock = gr.Timer(REFRESH)
            self._wire(labels)

    def _wire(self, labels: Labels) -> None:
        """Connect the events of the components to their handlers."""
        plan, train, runs, text, language = self.plan, self.train, self.runs, self.text, self.language
        knobs = list(plan.knobs.values())
        plan_all = {"fn": plan.plan, "inputs": [language, *plan.asked], "outputs": plan.answered, **QUIET}
        load = {"fn": plan.load, "inputs": [language, plan.recipe], "outputs": [*knobs, plan.name], **QUIET}
        compare: dict[str, Any] = {
            "fn": runs.watch,
            "inputs": [language, runs.chosen, runs.by, runs.seen, text.model],
            "outputs": [*runs.watched, text.model],
            "concurrency_id": "runs",  # one picture at a time, since matplotlib's style is global to the process
            **QUIET,
        }
        follow = {"fn": train.watch, "inputs": [language, train.run, train.seen], "outputs": train.watched, **QUIET}
        # A dragged slider fires many times a second: only its latest value counts.
        moved = [plan.card.input, *(knob.input for knob in knobs)]
        gr.on(moved, trigger_mode="always_last", api_name="plan", **plan_all)
        plan.recipe.input(**load).then(**plan_all)
        plan.take.click(plan.recommend, [language, *plan.asked], knobs, **QUIET).then(**plan_all)
        begun = plan.start.click(
            plan.begin, [language, plan.name, *plan.asked], [plan.started, self.tabs, train.run],
            api_name="begin", **QUIET,
        )  # fmt: skip
        begun.then(**follow)
        train.run.input(api_name="follow", **follow)
        train.pause.click(train.stop, [language, train.run], train.notice, api_name="pause", **QUIET).then(**follow)
        train.resume.click(train.resume_run, [language, train.run], train.notice, api_name="resume", **QUIET).then(
            **follow
        )
        chosen = compare | {"fn": runs.choose}
        gr.on([runs.chosen.input, runs.by.input], trigger_mode="always_last", api_name="watch", **chosen)
        self.clock.tick(**compare)
        self.clock.tick(**follow)
        # Also when the first model appears.
        text.model.change(text.prompts, [language, text.model], [text.prompt, text.own, text.status], **QUIET)
        writing = gr.on(
            [text.write.click, text.prompt.submit], text.continue_text,
            [language, text.model, text.prompt, *text.how], [text.written, text.status], api_name="write", **QUIET,
        )  # fmt: skip
        text.stop.click(None, cancels=[writing])
        text.judge.click(text.show_losses, [language, text.model, text.own], text.losses, api_name="losses", **QUIET)
        relabel = language.input(labels.updates, language, labels.components, **QUIET)
        relabel.then(**plan_all).then(**compare).then(**follow)
        gr.on([self.blocks.load, language.input], None, language, js=SPOKEN, **QUIET)
        self.blocks.load(**load).then(**plan_all)
        self.blocks.load(**compare)
        self.blocks.load(**follow | {"fn": train.begin, "inputs": [language]})


def _title() -> dict[str, Any]:
    subtitle = _("Plan a run, train it, compare it with others, let it write.")
    title = _("hfgpt playground")
    return {"value": f"<h1>{title}</h1><p>{subtitle}</p>"}


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
        recipe: to start from; None: one that suits this machine.
        host, port: where to listen. language: 'en' or 'zh', until the reader chooses.
        allow: host names, besides the loopback's, at which the page may be reached.
        train: the arguments of `python` that train a recipe; empty: the page does not start runs.

    Raises:
        InputError: the folder, the recipe, the port or the address cannot be used.
    """
    if os.path.lexists(folder) and not Path(folder).is_dir():
        raise InputError("{folder!r}: is not a folder → name the folder that holds the runs", folder=str(folder))
    with listen(host, port) as listening:
        page = Page(folder, recipe, language, train)
        local = host in LOOPBACK
        app = application(page, (*allow, host), addresses=not local)
        shown = f"[{host}]" if ":" in host else host
        print(_("The playground is at {address}  (Ctrl-C ends it)", address=f"http://{shown}:{port}/"), flush=True)
        if not local:
            print(_("Whoever reaches this machine can use it: it starts and pauses runs, and reads them."), flush=True)
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, ws="none")
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:
            print()
