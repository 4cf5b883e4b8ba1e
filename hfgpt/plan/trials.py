"""Brief trainings of the best candidates for a time: their real step times, and this text's deviation from the laws.

In:  candidates in order of expected loss, and the seconds available for trials.
Out: the best of them after the trials, its expected loss, and the seconds spent.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from hfgpt.base import threads
from hfgpt.config.fields import EVAL_BATCH
from hfgpt.plan import batches, grid, loss, speed, timing
from hfgpt.plan.grid import Candidate
from hfgpt.plan.laws import laws
from hfgpt.plan.loss import Forecast
from hfgpt.plan.survey import Survey
from hfgpt.plan.target import Target
from hfgpt.plan.timing import Measured

if TYPE_CHECKING:
    from hfgpt.plan import trial  # loads torch

CLOSE = 0.06  # largest gap in nats to the best candidate by the laws; a worse one is not tried

WARMING = 4  # steps needed to know how long one takes

EACH = 4.0  # shortest trial in seconds; if time is short, fewer trials are run

MOST = 4  # trials


def settle(ranked: list[Candidate], target: Target, budget: float, limit: float) -> tuple[Candidate, Forecast, float]:
    """Try the first few shapes and choose among them.

    Args:
        ranked: by expected loss, best first.
        target: this machine.
        budget: seconds of the run that is planned.
        limit: seconds for the trials, not counting the loading of the libraries and of the text.
    """
    first, began = "torch" not in sys.modules, time.perf_counter()
    threads.configure(ranked[0].config.cpu_threads)  # before torch is loaded
    from hfgpt.data.prepare import prepare
    from hfgpt.plan import trial

    prepared = prepare(ranked[0].config)
    tokens = trial.Tokens(prepared.train, prepared.val, ranked[0].survey.vocab_size)
    if first and target.speed is not None and not target.speed.busy and not speed.loaded():
        speed.learn(start=time.perf_counter() - began + ACCELERATE)
    began = time.perf_counter()
    tried = list[Candidate]()
    contenders = _contenders(ranked, min(MOST, max(1, int(limit / EACH))))
    for number, candidate in enumerate(contenders, 1):
        until = limit * number / len(contenders)
        tried.append(_try(candidate, tokens, target, budget, until - (time.perf_counter() - began)))
    best = min(tried, key=lambda candidate: candidate.loss)
    by_law = loss.forecast(best.survey)
    assert by_law is not None
    if best.measured is None:  # no trial was finished
        return best, by_law, time.perf_counter() - began
    return best, loss.after_trial(by_law, best.loss - by_law.loss), time.perf_counter() - began


ACCELERATE = 1.5  # seconds of a run's start beyond a trial's: Accelerate, the launcher, the folder


def _contenders(ranked: list[Candidate], count: int) -> list[Candidate]:
    """Return the best candidate of each of the first few shapes."""
    chosen: list[Candidate] = []
    for candidate in ranked:
        if candidate.loss > ranked[0].loss + CLOSE or len(chosen) == count:
            break
        if all(grid.differs(candidate.config, other.config) for other in chosen):
            chosen.append(candidate)
    return chosen


def _try(candidate: Candidate, tokens: trial.Tokens, target: Target, budget: float, seconds: float) -> Candidate:
    """Update a candidate's length by its measured steps, and its loss by the trial's deviation from the law."""
    from hfgpt.plan import trial

    began = time.perf_counter()

    def in_time(_: trial.Trial) -> bool:
        return time.perf_counter() - began < seconds

    warm = grid.with_length(candidate.survey, grid.LEAST_STEPS)
    quick = warm.config.model_copy(update={"eval_iters": 1})
    seen = trial.train(quick, tokens, [], lambda so_far: so_far.steps_made < WARMING and in_time(so_far))
    if seen.busy:  # neither undisturbed times nor enough steps to judge its loss
        return replace(candidate, busy=True)
    left = seconds - (time.perf_counter() - began)
    blocks = warm.config.eval_iters * EVAL_BATCH * warm.config.block_size
    evaluating = 2 * min(blocks, len(tokens.val)) * seen.evaluation_seconds / max(1, seen.evaluated_tokens)
    steps = int(0.85 * (left - evaluating) / max(seen.seconds_per_step, 1e-6))
    if steps < grid.LEAST_STEPS:
        return _planned(candidate, target, budget, seen, 0.0)
    short = grid.with_length(candidate.survey, steps)
    seen = trial.train(short.config, tokens, [], in_time)
    if seen.busy or seen.steps_made < steps:  # its schedule is unfinished
        return replace(candidate, busy=seen.busy)
    offset = laws().loss["offset kept"] * (seen.val_losses[-1] - grid.expected(short))
    return _planned(candidate, target, budget, seen, offset)


def _planned(candidate: Candidate, target: Target, budget: float, seen: trial.Trial, offset: float) -> Candidate:
    """Return the candidate at the length that its measured step time allows."""
    survey = candidate.survey
    suited = grid.own_target(target, survey.config)
    priced = timing.priced(survey, suited)
    evaluated = seen.evaluation_seconds / max(1, seen.evaluated_tokens)
    measured = Measured(seen.seconds_per_step, evaluated or priced.seconds_per_eval_token, priced.seconds_per_sample)
    most = grid.affordable(survey, suited, budget, measured)
    share = survey.config.max_iters / max(1, grid.affordable(survey, suited, budget))
    steps = max(grid.LEAST_STEPS, min(most, round(most * min(1.0, share))))
    planned: Survey = grid.with_length(batches.change(survey), steps)
    total = timing.time(planned, suited, measured).total_seconds
    return Candidate(planned, grid.expected(planned) + offset, total, measured)
