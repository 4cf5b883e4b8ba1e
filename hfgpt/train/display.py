"""What a person sees of a run.

In:  what the loop measured.
Out: one progress bar where the output is a terminal, plain lines elsewhere; on the main process only.
"""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from hfgpt.base.terminal import visible
from hfgpt.base.units import duration, size


class Display:
    """The run's voice. On processes other than the main one it is silent.

    Args:
        total: optimizer steps of the whole run.
        speaks: whether this is the main process.
    """

    def __init__(self, total: int, speaks: bool = True) -> None:
        self._total, self._speaks = total, speaks
        self._bar: tqdm | None = None
        self._initial, self._began, self._last_line = 0, 0.0, 0.0

    def begin(self, step: int) -> None:
        """The steps start now, after `step`; the bar appears."""
        self._initial, self._began = step, 0.0
        self._last_line = time.monotonic()
        if step < self._total and self._speaks and sys.stderr.isatty():
            self._bar = tqdm(total=self._total, initial=step, unit="step", dynamic_ncols=True, smoothing=0.05)

    def say(self, text: str) -> None:
        """One line (or several) above the bar."""
        if self._speaks:
            tqdm.write(text) if self._bar is not None else print(text, flush=True)

    def warn(self, text: str) -> None:
        """A line that asks for attention, on standard error."""
        if self._speaks:
            tqdm.write(f"warning: {text}", file=sys.stderr)

    def advance(self, step: int, figures: dict[str, float] | None = None) -> None:
        """The step that is done and, where they were measured, its figures; off a terminal a line every 5 seconds."""
        if not self._began:  # the first step is left out of the time left: it compiles, warms up, is evaluated before
            self._initial, self._began = step, time.monotonic()
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            if figures:
                self._bar.set_postfix_str(describe(figures), refresh=False)
        elif figures and self._speaks and (time.monotonic() - self._last_line >= 5 or step == self._total):
            self._last_line = time.monotonic()
            self.say(f"step {step}/{self._total}  {describe(figures)}  {self._time_left(step)}")

    def sample(self, text: str) -> None:
        """A sampled text, set apart from the figures, as :func:`visible` has it."""
        self.say("\n".join(f"    │ {line}" for line in visible(text.strip("\n")).split("\n")))

    def close(self) -> None:
        """Leave the bar as it is; later lines come below it."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _time_left(self, step: int) -> str:
        done = step - self._initial
        seconds = (time.monotonic() - self._began) / max(1, done) * (self._total - step)
        return f"{duration(seconds)} left" if done > 0 and step < self._total else ""


def describe(figures: dict[str, float]) -> str:
    """A step's figures in one line: loss, learning rate, tokens/s, MFU, memory."""
    parts = [f"loss {figures['train_loss']:.4f}", f"lr {figures['learning_rate']:.2e}"]
    parts.append(f"{figures['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in figures:
        parts.append(f"MFU {figures['mfu']:.1%}")
    parts.append(f"{size(figures['memory_bytes'])}")
    return "  ".join(parts)
