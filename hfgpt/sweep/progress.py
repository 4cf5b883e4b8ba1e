"""Where a sweep is: the work done of all trials, by whichever process, and the time left.

In:  a sweep, and the records in its folder.
Out: one line, rewritten on a terminal, else printed every half a minute.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection

from hfgpt import config as configs
from hfgpt.base.language import _
from hfgpt.base.units import duration
from hfgpt.config import Config
from hfgpt.sweep.definition import Sweep, Trial, equalised
from hfgpt.sweep.training import records


class Progress:
    """The line about a sweep."""

    def __init__(self, sweep: Sweep, say: Callable[[str], None], done: Collection[str] = ()) -> None:
        self._sweep, self._say, self._complete = sweep, say, set(done)
        self._work = {trial.name: _work(self._expected(trial)) for trial in sweep.trials}
        self._began, self._before, self._last = time.monotonic(), self._done(), 0.0
        self._live = sys.stderr.isatty()

    def _expected(self, trial: Trial) -> Config:
        sweep = self._sweep
        return sweep.config(trial) if sweep.equal == "time" else equalised(sweep, trial, None)

    def _share(self, trial: Trial) -> float:
        if trial.name in self._complete:
            return 1.0
        recipe = self._sweep.folder / "recipes" / f"{trial.name}.yaml"
        written = records(self._sweep.folder / "trials" / trial.name)
        if not written or not recipe.exists():
            return 0.0
        share = min(1.0, written[-1]["step"] / configs.load(recipe).max_iters)
        if share == 1.0:
            self._complete.add(trial.name)
        return share

    def _done(self) -> float:
        return sum(self._work[trial.name] * self._share(trial) for trial in self._sweep.trials)

    def end(self, trial: Trial, text: str) -> None:
        """A trial has ended: an event, on a line of its own."""
        self._complete.add(trial.name)
        self.say(text)

    def say(self, text: str) -> None:
        """An event, on a line of its own."""
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        self._say(text)

    def show(self, trial: Trial | None) -> None:
        """The line about the whole sweep; `trial` is the one in hand, None while waiting for other processes."""
        now = time.monotonic()
        if now - self._last < (2 if self._live else 30):
            return
        self._last = now
        total, done = sum(self._work.values()), self._done()
        gained, elapsed = done - self._before, now - self._began
        left = _("time left: not known yet")
        if gained > 0.002 * total:
            left = _("about {time} left", time=duration((total - done) / gained * elapsed))
        at = f"{trial.label} {self._share(trial):.0%}" if trial else _("waiting for other processes")
        line = _("sweep {share:.0%}  {at}  {left}", share=done / total, at=at, left=left)
        if self._live:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            self._say(line)


def _work(config: Config) -> float:
    """A run's arithmetic, roughly: tokens times weights and attention."""
    weights = 12 * config.n_layer * config.n_embd**2 + 400 * config.n_embd
    attention = 12 * config.n_layer * config.n_embd * config.block_size
    return config.max_iters * config.tokens_per_iter * (6 * weights + attention)
