"""The length of a run that has a time budget instead of a number of steps.

In:  `time_budget`, the time used so far, and the speed of the steps.
Out: `max_iters`, updated as the speed becomes known, so that the schedule ends, and is evaluated, within the time.

Each decision is a line of metrics.jsonl (``horizon`` at a step) and is saved in the checkpoints. The learning rate
stays a function of the step and of these decisions. So a resume continues with them, and steps lost in a crash are
repeated with the decisions that the record holds for them.

The main process decides, since clocks differ. The others learn it at the steps at which all ask each other for a reason
to stop, so that a short step does not wait for a collective of its own.
"""

import math
import time

from hfgpt.base.units import seconds_of
from hfgpt.runs import card, diagnose, metrics
from hfgpt.runs.horizon import lengthened
from hfgpt.train.collective import gather, on_main, patiently
from hfgpt.train.meter import Meter
from hfgpt.train.run import Run

FIRST = 4  # steps after which the speed is known well enough for a first decision
EVERY = 0.02  # share of the time budget between two decisions
LATE = 0.6  # share of the time budget at which the end is rehearsed, with a record that is nearly as long
MARGIN = 0.03  # share of the time budget kept as a margin
REHEARSE = -1  # in place of a length
MORE, ENDING = 0.05, 4.0  # a finished run goes on for more than this share of the budget and these seconds
SETTLED = 0.05  # last share of the time budget, in which the decayed learning rate is not raised again


class Horizon:
    """Decides how many steps fit into the time; does nothing without a `time_budget`."""

    def __init__(self, run: Run, meter: Meter, began: float) -> None:
        self._run, self._meter, self._recipe = run, meter, run.config
        self._budget = float(seconds_of(run.config.time_budget)) if run.config.time_budget else 0.0
        self._ends = began + self._budget * (1 - MARGIN) - run.progress.seconds
        self._drawing = 0.0  # seconds that the curve and the card take at the end
        self._rehearsals = [0.0, began + self._budget * LATE - run.progress.seconds]  # when that is measured
        self._from, self._next = run.progress.step + FIRST, 0.0
        self._mark = meter.mark()
        # the evaluation and the rehearsal as last timed, and the fastest step since
        self._timed, self._fastest = (0.0, 0.0), math.inf
        if self._budget and run.progress.horizons:
            self._apply()
            self._go_on()

    def _go_on(self) -> None:
        """Lengthen a run that was at its end, if it is resumed with clearly more time. Collective."""
        run, step = self._run, self._run.progress.step
        if step < run.config.max_iters or max(run.recorded_horizons, default=-1) > step:
            return
        left, so_far = self._ends - time.monotonic(), step / run.progress.seconds
        more = int(left * so_far) if left > MORE * self._budget + ENDING else 0
        if (length := step + int(gather(run.device, more)[0])) > step:
            run.progress.horizons.append(length)
            run.record(horizon=length)
            self._apply()

    def look(self, together: bool) -> None:
        """Update `max_iters` in the run's config if a decision is due. Collective: call it after every step.

        Args:
            together: whether the processes ask each other at this step anyway; the same on every process.
        """
        if not self._budget:
            return
        length = self._agreed(together)
        if length == REHEARSE:
            with patiently(self._run.patience):
                self._drawing = on_main(lambda: rehearse(self._run)) or 0.0
            self._mark = self._meter.mark()
            self._from = self._run.progress.step + FIRST
        elif length and (length != self._run.config.max_iters or not self._run.progress.horizons):
            self._run.progress.horizons.append(length)
            self._run.record(horizon=length)
            self._apply()

    def _agreed(self, together: bool) -> int:
        """Return what every process does at this step: see :meth:`_choice`."""
        step, recorded = self._run.progress.step, self._run.recorded_horizons
        if step <= max(recorded, default=-1):
            return recorded.get(step, 0)
        at_end = step >= self._run.config.max_iters
        if at_end or step == self._from or (together and step > self._from):
            return int(gather(self._run.device, self._choice(at_end) if self._run.main else 0)[0])
        return 0

    def _choice(self, at_end: bool) -> int:
        """Return the length to use from this step on; 0 to keep the present one, or REHEARSE.

        Args:
            at_end: whether this step would be the last one; then it is too late for a rehearsal.
        """
        if time.monotonic() < self._next:
            return 0
        if self._rehearsals and time.monotonic() >= self._rehearsals[0] and not at_end:
            self._rehearsals.pop(0)
            return REHEARSE
        self._next = time.monotonic() + EVERY * self._budget
        return self._fitting(at_end)

    def _fitting(self, at_end: bool) -> int:
        """Return how many steps the whole run can have at its present speed; 0 to keep the present length.

        The end takes an evaluation and the drawing; as much again is reserved for the last sample and a longer record.
        These were timed earlier: if steps have become slower since, so has the end.
        """
        step, mark = self._run.progress.step, self._meter.mark()
        steps, seconds = mark.steps - self._mark.steps, mark.seconds - self._mark.seconds
        unsure = steps < FIRST and seconds < 2 * EVERY * self._budget
        if not steps or (unsure and (self._run.progress.horizons or not at_end)):
            return 0
        each = seconds / steps
        evaluation = self._meter.evaluation_seconds
        self._fastest = each if self._timed != (evaluation, self._drawing) else min(self._fastest, each)
        self._timed = evaluation, self._drawing
        ending = (1 + each / max(self._fastest, 1e-9)) * sum(self._timed)
        each += evaluation / self._recipe.eval_interval
        self._mark = mark
        left = self._ends - time.monotonic() - ending
        length = max(step, step + int(left / each))
        return 0 if left < SETTLED * self._budget and length > self._run.config.max_iters else length

    def _apply(self) -> None:
        self._run.config = lengthened(self._recipe, self._run.progress.horizons)
        self._run.display.total = self._run.config.max_iters


def rehearse(run: Run) -> float:
    """Draw the curve, write the card and read the record as at the end; return the seconds that it takes.

    The plotting library is imported first, since a run does that only once.
    """
    from hfgpt.runs import plots

    plots.loss_curve(run.folder)
    began = time.monotonic()
    plots.loss_curve(run.folder)
    card.write(run.folder, run.config.license)
    diagnose.summary(metrics.read(run.metrics.path), run.config)
    return time.monotonic() - began
