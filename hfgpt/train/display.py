"""What a person sees of a run.

In:  what the loop measured.
Out: one progress bar on a terminal, plain lines elsewhere; on the main process only.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

from hfgpt.base.language import _
from hfgpt.base.terminal import say, visible
from hfgpt.base.units import duration, size


class Display:
    """The run's voice. On processes other than the main one it is silent.

    Args:
        total: optimizer steps of the whole run; may change while it trains.
        speaks: whether this is the main process.
    """

    def __init__(self, total: int, speaks: bool = True) -> None:
        self.total, self._speaks = total, speaks
        self._bar: tqdm[Any] | None = None
        self._initial, self._began, self._last_line = 0, 0.0, 0.0

    def begin(self, step: int) -> None:
        """The steps start now, after `step`; the bar appears."""
        self._initial, self._began = step, 0.0
        self._last_line = time.monotonic()
        if step < self.total and self._speaks and sys.stderr.isatty() and _columns():
            self._bar = tqdm(total=self.total, initial=step, unit=_("step"), dynamic_ncols=True, smoothing=0.05)

    def say(self, text: str) -> None:
        """One line (or several) above the bar."""
        self._write(text, sys.stdout)

    def warn(self, text: str) -> None:
        """A line that asks for attention, on standard error."""
        self._write(_("warning: {text}", text=text), sys.stderr)

    def _write(self, text: str, stream: TextIO) -> None:
        if not self._speaks:
            return
        with self._unless_closed():
            if self._bar is not None or stream is sys.stderr:
                tqdm.write(visible(text), file=stream)
            else:
                say(text, stream)

    @contextmanager
    def _unless_closed(self) -> Iterator[None]:
        """A terminal that was closed must not cost the run its checkpoint: nothing more is said then."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._speaks, self._bar = False, None

    def advance(self, step: int, figures: dict[str, float] | None = None) -> None:
        """The step that is done and, if they were measured, its figures; off a terminal a line every 5 seconds."""
        if not self._began:  # the time left does not count the first step, which compiles, warms up and is evaluated
            self._initial, self._began = step, time.monotonic()
        if self._bar is not None:
            with self._unless_closed():
                self._bar.total = self.total
                self._bar.update(step - self._bar.n)
                if figures and self._bar is not None:
                    self._bar.set_postfix_str(describe(figures), refresh=False)
        elif figures and self._speaks and (time.monotonic() - self._last_line >= 5 or step == self.total):
            self._last_line = time.monotonic()
            line = _("step {step}/{total}  {figures}", step=step, total=self.total, figures=describe(figures))
            left = self._seconds_left(step)
            self.say(line if left is None else line + "  " + _("{time} left", time=duration(left)))

    def sample(self, text: str) -> None:
        """A sampled text, set apart from the figures, as :func:`visible` has it."""
        self.say("\n".join(f"    │ {line}" for line in visible(text.strip("\n")).split("\n")))

    def close(self) -> None:
        """Leave the bar as it is; later lines come below it."""
        if self._bar is not None:
            with self._unless_closed():
                self._bar.close()
            self._bar = None

    def _seconds_left(self, step: int) -> float | None:
        """To the last step, at the speed of this start; None if it is not known, or nothing is left."""
        done = step - self._initial
        if done <= 0 or step >= self.total:
            return None
        return (time.monotonic() - self._began) / done * (self.total - step)


def _columns() -> int:
    """How wide the terminal of standard error says that it is: 0 in Colab, where a bar would show nothing."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 80


def describe(figures: dict[str, float]) -> str:
    """A step's figures in one line: loss, learning rate, tokens/s, MFU, memory."""
    values = {
        "loss": figures["train_loss"],
        "rate": figures["learning_rate"],
        "speed": figures["tokens_per_second"],
        "memory": size(figures["memory_bytes"]),
    }
    if "mfu" in figures:
        line = _(
            "loss {loss:.4f}  lr {rate:.2e}  {speed:,.0f} tokens/s  MFU {mfu:.1%}  {memory}",
            mfu=figures["mfu"],
            **values,
        )
    else:
        line = _("loss {loss:.4f}  lr {rate:.2e}  {speed:,.0f} tokens/s  {memory}", **values)
    return line
