"""The terminal output of a run: a progress bar or plain lines.

In:  the loop's measurements.
Out: one progress bar on a terminal, plain lines elsewhere; on the main process only.
"""

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

SAMPLED = "    │ "  # begins each line of a sample


class Display:
    """Prints a run's progress; silent on all processes but the main one.

    Args:
        total: optimizer steps of the whole run; may change during training.
        speaks: whether this is the main process.
    """

    def __init__(self, total: int, speaks: bool = True) -> None:
        self.total, self._speaks = total, speaks
        self._bar: tqdm[Any] | None = None
        self._initial, self._began, self._last_line = 0, 0.0, 0.0

    def begin(self, step: int) -> None:
        """Show the bar: training starts now, after `step`."""
        self._initial, self._began = step, 0.0
        self._last_line = time.monotonic()
        if step < self.total and self._speaks and sys.stderr.isatty() and _columns():
            self._bar = tqdm(total=self.total, initial=step, unit=_("step"), dynamic_ncols=True, smoothing=0.05)

    def say(self, text: str) -> None:
        """Print one or more lines above the bar."""
        self._write(text, sys.stdout)

    def warn(self, text: str) -> None:
        """Print a warning on standard error."""
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
        """Print nothing more once the terminal is closed: an error here must not cost the run its checkpoint."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._speaks, self._bar = False, None

    def advance(self, step: int, figures: dict[str, float] | None = None) -> None:
        """Show a finished step and, if measured, its figures; without a terminal, print a line every 5 seconds."""
        if not self._began:  # the time left ignores the first step, which compiles, warms up and is evaluated
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
        """Print a sampled text, set apart from the figures; :func:`visible` escapes control characters."""
        self.say("\n".join(f"{SAMPLED}{line}" for line in visible(text.strip("\n")).split("\n")))

    def close(self) -> None:
        """Leave the bar as it is; later lines are printed below it."""
        if self._bar is not None:
            with self._unless_closed():
                self._bar.close()
            self._bar = None

    def _seconds_left(self, step: int) -> float | None:
        """Return the seconds to the last step, at the speed since this start; None if unknown or if nothing is left."""
        done = step - self._initial
        if done <= 0 or step >= self.total:
            return None
        return (time.monotonic() - self._began) / done * (self.total - step)


def _columns() -> int:
    """Return the reported width of the terminal on standard error: 0 in Colab, where a bar would show nothing."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 80


def describe(figures: dict[str, float]) -> str:
    """Format a step's figures as one line: loss, learning rate, tokens/s, MFU, memory."""
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
