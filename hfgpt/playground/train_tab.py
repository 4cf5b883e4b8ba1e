"""The tab for following, pausing and resuming a run.

In:  the runs of the folder.
Out: progress, time left, losses, the log; and the actions of the two buttons. A reload shows the newest run again.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from hfgpt.base.errors import InputError
from hfgpt.base.language import _
from hfgpt.playground import runs_view
from hfgpt.playground.pieces import message
from hfgpt.playground.speech import Labels, spoken
from hfgpt.playground.trainer import Trainer


class TrainTab:
    """The tab's components and their handlers."""

    def __init__(self, labels: Labels, trainer: Trainer) -> None:
        self._trainer = trainer
        names = trainer.names()
        with gr.Row(elem_id="in-hand"):
            self.run = labels.add(
                gr.Dropdown,
                lambda: {"label": _("Run"), "info": _("It continues if this page is closed.")},
                choices=names,
                value=next(iter(names), None),
                interactive=True,
                scale=3,
                elem_id="followed",
            )
            self.pause = labels.add(
                gr.Button, lambda: {"value": _("Pause")}, min_width=100, interactive=False, elem_id="pause"
            )
            self.resume = labels.add(
                gr.Button,
                lambda: {"value": _("Resume")},
                min_width=100,
                variant="primary",
                interactive=False,
                elem_id="resume",
            )
        self.said = gr.HTML(elem_id="train-said", padding=False)
        self.progress = gr.HTML(elem_id="progress", padding=False)
        self.seen = gr.State("")

    @property
    def watched(self) -> list[Any]:
        """The components that :meth:`watch` fills."""
        return [self.progress, self.pause, self.resume, self.run, self.seen]

    @spoken
    def begin(self) -> list[Any]:
        """Show, when the page loads, the run in progress, otherwise the newest."""
        names = self._trainer.names()
        first = next((name for name in names if self._trainer.is_running(name)), next(iter(names), None))
        return self._watch(first, "")

    @spoken
    def watch(self, name: str | None, seen: str) -> list[Any]:
        """Show the run's progress; nothing if nothing has changed since `seen`."""
        return self._watch(name, seen)

    def _watch(self, name: str | None, seen: str) -> list[Any]:
        names = self._trainer.names()
        chosen = name if name in names else next(iter(names), None)
        choices = gr.update(choices=names, value=chosen)
        if chosen is None:
            text = _("No run yet: choose values on the first tab and press Train.")
            return [message(text), _enabled(False), _enabled(False), choices, ""]
        try:
            state = self._trainer.state(chosen)
            shown, pause = runs_view.progress(state), state.running and not state.pausing
            resume = self._trainer.can_train and not state.running and not state.finished
        except InputError as error:
            shown, pause, resume = message(str(error), "bad"), False, False
        now = repr((shown, names, pause, resume))
        if now == seen:
            return [gr.skip()] * 5
        return [shown, _enabled(pause), _enabled(resume), choices, now]

    @spoken
    def stop(self, name: str | None) -> str:
        """Ask the run to pause."""
        try:
            self._trainer.pause(name or "")
        except InputError as error:
            return message(str(error), "bad")
        return ""

    @spoken
    def go_on(self, name: str | None) -> str:
        """Resume the run."""
        try:
            self._trainer.resume(name or "")
        except InputError as error:
            return message(str(error), "bad")
        return ""


def _enabled(yes: bool) -> Any:
    return gr.update(interactive=yes)
