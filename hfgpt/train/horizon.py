"""The length of a run that was given a time instead of a number of steps.

In:  `time_budget`, how long the run has taken, and how fast its steps are.
Out: `max_iters`, decided anew as the speed becomes known, so that the schedule is finished, and its end evaluated,
     inside the time.

Each decision is a line of metrics.jsonl (``horizon`` at a step) and is kept in the checkpoints. The learning rate stays
a function of the step and of these decisions. So a resume goes on with them; and the steps that a crash took away are
made again with the decisions that they had, as the record has them.
"""

from __future__ import annotations

import math
import time

from hfgpt.base.units import seconds_of
from hfgpt.config import Config
from hfgpt.runs import card, diagnose, metrics
from hfgpt.train.collective import gather
from hfgpt.train.meter import Meter
from hfgpt.train.run import Run

FIRST = 4  # steps after which the speed is known well enough for a first decision

EVERY = 0.02  # of the time budget between two decisions

LATE = 0.6  # of the time budget, when the end is rehearsed with a record that is nearly as long

MARGIN = 0.03  # of the time budget, kept for what does not go as before

SETTLED = 0.05  # of the time budget before its end, from where on the rate, which is near its end, is not raised again


class Horizon:
    """Decides how many steps fit into the time; without a `time_budget`, nothing.

    Args:
        run: its config says the budget.
        meter: knows the speed.
        began: when the process was started, by time.monotonic.
    """

    def __init__(self, run: Run, meter: Meter, began: float) -> None:
        self._run, self._meter, self._recipe = run, meter, run.config
        self._budget = float(seconds_of(run.config.time_budget)) if run.config.time_budget else 0.0
        self._ends = began + self._budget * (1 - MARGIN) - run.progress.seconds
        self._drawing = 0.0  # seconds that the curve and the card take at the end
        self._rehearsals = [0.0, began + self._budget * LATE - run.progress.seconds]  # when it is measured
        self._from, self._next = run.progress.step + FIRST, 0.0
        self._mark = meter.mark()
        self._timed, self._fastest = (0.0, 0.0), math.inf  # the end's parts, and a step at its fastest since they were
        if self._budget and run.progress.horizons:
            self._apply()

    def look(self) -> None:
        """Decide anew if it is time; the run's config then has another `max_iters`. Collective, once a step."""
        if self._budget:
            length = int(gather(self._run.device, self._choice() if self._run.main else 0).max())
            if length and length != self._run.config.max_iters:
                self._decide(length)

    def _choice(self) -> int:
        """The length that is to be from this step on; 0: as before."""
        step, recorded = self._run.progress.step, self._run.recorded_horizons
        if step in recorded:
            return recorded[step]
        if step < max(recorded, default=self._from) or time.monotonic() < self._next:
            return 0
        if self._rehearsals and time.monotonic() >= self._rehearsals[0]:
            self._rehearsals.pop(0)
            self._drawing = rehearse(self._run)
            self._mark = self._meter.mark()
            self._from = step + FIRST
            return 0
        self._next = time.monotonic() + EVERY * self._budget
        return self._fitting()

    def _fitting(self) -> int:
        """The steps that the run has in all if it ends in time at its present speed; 0: as before.

        The end takes an evaluation and the drawing; as much again is kept for the last sample and a longer record.
        These were timed before: where steps have become slower since, so has the end.
        """
        step, mark = self._run.progress.step, self._meter.mark()
        made, took = mark.steps - self._mark.steps, mark.seconds - self._mark.seconds
        if not made or (made < FIRST and took < 2 * EVERY * self._budget):
            return 0
        each = took / made
        evaluation = self._meter.evaluation_seconds
        self._fastest = each if self._timed != (evaluation, self._drawing) else min(self._fastest, each)
        self._timed = evaluation, self._drawing
        ending = (1 + each / max(self._fastest, 1e-9)) * sum(self._timed)
        each += evaluation / self._recipe.eval_interval
        self._mark = mark
        left = self._ends - time.monotonic() - ending
        length = max(step, step + int(left / each))
        return 0 if left < SETTLED * self._budget and length > self._run.config.max_iters else length

    def _decide(self, length: int) -> None:
        self._run.progress.horizons.append(length)
        self._run.record(horizon=length)
        self._apply()

    def _apply(self) -> None:
        self._run.config = lengthened(self._recipe, self._run.progress.horizons)
        self._run.display.total = self._run.config.max_iters


def rehearse(run: Run) -> float:
    """Draw the curve, write the card and look at the record as at the end; the seconds that it takes.

    The library that draws is loaded before: that is done once in a run.
    """
    from hfgpt.runs import plots

    plots.loss_curve(run.folder)
    began = time.monotonic()
    plots.loss_curve(run.folder)
    card.write(run.folder, run.config.license)
    diagnose.summary(metrics.read(run.metrics.path), run.config)
    return time.monotonic() - began


def lengthened(recipe: Config, decisions: list[int]) -> Config:
    """The recipe with the length decided last; the decay in proportion, the warm-up in proportion to the first one."""
    length, warmup, decay = decisions[-1], recipe.warmup_iters or 0, recipe.lr_decay_iters or recipe.max_iters
    return recipe.model_copy(
        update={
            "max_iters": length,
            "warmup_iters": min(2000, warmup * decisions[0] // recipe.max_iters, max(0, length - 1)),
            "lr_decay_iters": max(1, decay * length // recipe.max_iters),
        }
    )
