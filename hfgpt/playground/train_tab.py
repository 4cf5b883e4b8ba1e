"""The tab for following, pausing and resuming a run.

In:  the runs of the folder.
Out: progress, time left, losses, the log; and the actions of the two buttons. A reload shows the newest run again.
"""

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from hfgpt.base.errors import InputError
from hfgpt.base.language import _
from hfgpt.base.units import duration
from hfgpt.playground.pieces import Labels, in_language, loss, message, tile, tiles
from hfgpt.playground.trainer import State, Trainer


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
        self.notice = gr.HTML(elem_id="train-notice", padding=False)
        self.progress = gr.HTML(elem_id="progress", padding=False)
        self.seen = gr.State("")

    @property
    def watched(self) -> list[Any]:
        """The components that :meth:`watch` fills."""
        return [self.progress, self.pause, self.resume, self.run, self.seen]

    @in_language
    def begin(self) -> list[Any]:
        """Show, when the page loads, the run in progress, otherwise the newest."""
        names = self._trainer.names()
        first = next((name for name in names if self._trainer.is_running(name)), next(iter(names), None))
        return self._watch(first, "")

    @in_language
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
            shown, pause = progress(state), state.running and not state.pausing
            resume = self._trainer.can_train and not state.running and not state.finished
        except InputError as error:
            shown, pause, resume = message(str(error), "bad"), False, False
        now = repr((shown, names, pause, resume))
        if now == seen:
            return [gr.skip()] * 5
        return [shown, _enabled(pause), _enabled(resume), choices, now]

    @in_language
    def stop(self, name: str | None) -> str:
        """Ask the run to pause."""
        return _tried(self._trainer.pause, name)

    @in_language
    def resume_run(self, name: str | None) -> str:
        """Resume the run."""
        return _tried(self._trainer.resume, name)


def _tried(action: Callable[[str], None], name: str | None) -> str:
    """Carry out an action on a run; return a message if it fails."""
    try:
        action(name or "")
    except InputError as error:
        return message(str(error), "bad")
    return ""


def _enabled(yes: bool) -> Any:
    return gr.update(interactive=yes)


def progress(state: State) -> str:
    """Show a run's progress: its step, the time left, its losses, and its last output."""
    share = round(100 * state.step / state.steps) if state.steps else 0
    left = "–" if state.seconds_left is None else duration(state.seconds_left)
    of = _("of {steps:,}", steps=state.steps) if state.steps else ""
    figures = tiles(
        [
            tile("step", _("steps"), f"{state.step:,}", of, share),
            tile("left", _("time left"), left, f"{share}%" if state.steps else ""),
            tile("train-loss", _("train loss"), loss(state.train_loss), ""),
            tile("val-loss", _("validation loss"), loss(state.val_loss), ""),
        ]
    )
    log = f'<pre class="log" tabindex="0">{escape(state.log)}</pre>' if state.log else ""
    return figures + _standing(state) + log


def _standing(state: State) -> str:
    if state.pausing:
        return message(_("It finishes its step, writes a checkpoint and stops."))
    if state.running and state.step == 0:
        return message(_("It is starting: the text is read, the model is made."))
    if state.running:
        return message(_("It is in progress."), "good")
    if state.stopped_early:
        return message(_("Early stopping has ended it: the validation loss no longer fell."), "good")
    if state.finished:
        return message(
            _("It is finished: its curves and samples are under Runs, and its model writes under Text."), "good"
        )
    if state.step:
        return message(_("It is paused: Resume continues from its newest checkpoint."))
    return message(_("It ended before its first step: see below."), "bad")
