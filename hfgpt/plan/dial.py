"""The recipe for a time, a text and a device, chosen by its expected loss.

In:  a Survey (the text, and what the recipe fixes beside its shape), a Target, and seconds.
Out: :class:`Choice`: the recipe, its expected loss, the reason for each value, and the second best.

Every shape on a grid is priced (hfgpt/plan/timing.py) and given as many steps as the time allows; the loss laws
(hfgpt/model/loss_law.py) predict the final loss of each. Then the best candidates are trained briefly
(hfgpt/plan/trial.py), for at most a tenth of the time: this measures their step times and how far this text
deviates from the laws.
"""

import math
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from hfgpt.base import threads
from hfgpt.base.errors import InputError
from hfgpt.base.language import _, listed
from hfgpt.base.units import duration, number, signed
from hfgpt.config.rules import default_warmup
from hfgpt.model import loss_law
from hfgpt.model.loss_law import Forecast
from hfgpt.plan import batches, chapter, grid, loss, timing
from hfgpt.plan.grid import Candidate
from hfgpt.plan.survey import Survey
from hfgpt.plan.target import Target
from hfgpt.plan.timing import Measured
from hfgpt.runs.facts import usual_learning_rate

TRIALS = 0.1  # largest share of the time
EQUAL, FASTER = 0.002, 0.8  # a recipe worse by so many nats at most, in this share of the time, is better


@dataclass(frozen=True)
class Choice:
    """A recipe chosen for a time and a text."""

    survey: Survey  # of the recipe
    target: Target  # what it runs on, with the precision that suits its width
    reasons: dict[str, str]  # the reason for each value
    forecast: Forecast | None  # its expected loss; None if no law of ours covers it
    seconds: float  # expected duration of the run
    budget: float | None = None  # seconds that it was chosen for
    # the values of the second-best shape, and its loss; where no law of ours says one, its difference in nats
    second_best: dict[str, Any] | None = None
    faster: bool = False  # whether the second best ends at most EQUAL lower, and takes longer
    trial_seconds: float = 0.0  # seconds spent on trials
    measured: Measured | None = None  # what a trial of the recipe measured; None without a trial
    busy: bool = False  # whether other work on the machine invalidated the trials


def choose(survey: Survey, target: Target, budget: float | None, *, trials: bool) -> Choice:
    """Choose the best recipe for a time; without a time, the one after which more steps on the text would not help.

    Args:
        survey: the text, the vocabulary and the parts of the recipe that are not chosen here (seed, prompt, folder …).
        budget: seconds for the whole command, including start and saving; None: as long as it takes.
        trials: whether candidates may be trained briefly on this machine.

    Raises:
        InputError: the text is too short, alone or for its vocabulary, the memory too small, or not even the smallest
            model takes a useful number of steps in the time.
    """
    if survey.config.pretrained:
        return _fine_tune(survey, target, budget)
    ranked = _ranked(survey, target, budget)
    if not ranked:
        for fault in (grid.too_short, grid.too_many_entries, grid.too_large):
            if error := fault(survey, target):
                raise error
        raise InputError(
            "time-budget = {budget}: the smallest model does not make {steps} steps in that time on {device} → "
            "give more time",
            budget=duration(budget or 0),
            steps=grid.LEAST_STEPS,
            device=target.name,
        )
    best, spent, seen = ranked[0], 0.0, None
    if trials and budget is not None and loss_law.covered(survey.config):
        began = time.perf_counter() if "torch" not in sys.modules else None
        threads.configure(best.config.cpu_threads)  # before torch is loaded
        from hfgpt.plan import trial

        rank = partial(_ranked, survey, budget=budget)
        settled = trial.settle(ranked, rank, target, budget, TRIALS * budget, began)
        best, spent, seen = settled.best, settled.seconds, settled.forecast
        ranked, target = settled.ranked, settled.target
    best = _finished(best, target, budget)
    second = next((other for other in ranked if grid.differs(other.config, best.config)), None)
    forecast = seen or loss.forecast(best.survey)
    keys = (*grid.CPU_GRID, "n_head", "dropout", "max_iters")
    values = {key: getattr(second.config, key) for key in keys} if second else {}
    if second and grid.by_our_law(second.survey) is None:
        values["loss_difference"] = round(second.loss - best.loss, 4)
    elif second:
        values["loss"] = round(second.loss, 4)
    return Choice(
        survey=best.survey,
        target=grid.own_target(target, best.config),
        reasons=_reasons(best, ranked, budget),
        forecast=forecast,
        seconds=best.seconds,
        budget=budget,
        second_best=values or None,
        faster=second is not None and best.loss - EQUAL <= second.loss < best.loss and second.seconds > best.seconds,
        trial_seconds=spent,
        measured=best.measured,
        busy=best.busy,
    )


def _ranked(survey: Survey, target: Target, budget: float | None) -> list[Candidate]:
    """Return the candidates by expected loss; of those equally good, a clearly faster one comes first."""
    ranked = sorted(grid.candidates(survey, target, budget), key=lambda candidate: candidate.loss)
    as_good = [candidate for candidate in ranked if candidate.loss < ranked[0].loss + EQUAL]
    fastest = min(as_good, key=lambda candidate: candidate.seconds, default=None)
    if fastest is None or fastest.seconds >= FASTER * ranked[0].seconds:
        return ranked
    return [fastest, *(candidate for candidate in ranked if candidate is not fastest)]


def _finished(best: Candidate, target: Target, budget: float | None) -> Candidate:
    """Complete the candidate: a time budget if it uses all of the time, early stopping if it is shorter."""
    survey, config = best.survey, best.config
    most = grid.affordable(survey, grid.own_target(target, config), budget, best.measured)
    if budget is not None and config.max_iters >= 0.9 * most:
        interval = min(config.eval_interval, math.ceil(config.max_iters * OFTEN / best.seconds))
        return replace(best, survey=batches.change(survey, time_budget=f"{round(budget)}s", eval_interval=interval))
    if not loss_law.covered(config) and config.tokens_by(config.max_iters) <= 4 * (survey.train_tokens or math.inf):
        return best
    interval = max(1, math.ceil(config.max_iters / CAREFUL))
    return replace(best, survey=batches.change(survey, eval_interval=interval, early_stopping_patience=PATIENCE))


OFTEN = 900  # most seconds between two evaluations, and so between two checkpoints
CAREFUL, PATIENCE = 8, 3  # evaluations of a run that may overfit, and its early-stopping patience


def _reasons(best: Candidate, ranked: list[Candidate], budget: float | None) -> dict[str, str]:
    """Give a reason for each chosen value: the final loss of the best recipe with another value."""
    config, absolute = best.config, grid.by_our_law(best.survey) is not None
    reasons = {}
    for key in (*grid.CPU_GRID, "dropout"):
        rivals: dict[Any, float] = {}
        for candidate in ranked:
            rivals.setdefault(getattr(candidate.config, key), candidate.loss)  # ranked: the first is the best
        chosen = getattr(config, key)
        others = _nearest(chosen, [value for value in rivals if value != chosen])
        own = rivals.get(chosen, best.loss)
        losses = {value: f"{rivals[value]:.3f}" if absolute else signed(rivals[value] - own) for value in others}
        with_others = listed(_("{label}: {what}", label=value, what=what) for value, what in losses.items())
        if not others:
            reasons[key] = _("no other value suits the text, the time and the memory")
        elif absolute:
            reasons[key] = _("expected loss {loss}; with {others}", loss=f"{own:.3f}", others=with_others)
        else:
            reasons[key] = _("expected difference in nats with {others}", others=with_others)
    reasons["n_head"] = _("heads of {n} channels", n=config.n_embd // config.n_head)
    rate = "muon_learning_rate" if config.optimizer == "muon" else "learning_rate"
    by_law = _("the law's optimum for {n} steps at this width", n=f"{config.max_iters:,}")
    if grid.large(config):
        by_law = _("usual for models of this size")
    if not loss_law.covered(config):
        reasons["dropout"] = _("0.1 for a text that is seen more than four times, otherwise 0")
    reasons["learning_rate"] = by_law if rate == "learning_rate" else _("of the embeddings and norms, beside Muon")
    if rate == "muon_learning_rate":
        reasons[rate] = by_law
    tokens = config.tokens_by(config.max_iters)
    of_text = best.survey.train_tokens
    epochs = _(", {epochs} epochs", epochs=number(tokens / of_text)) if of_text else ""
    length = _("{tokens} tokens{epochs}", tokens=f"{tokens / 1e6:,.2f}M", epochs=epochs)
    if budget is not None:
        length = _("{length}; {time} of {budget}", length=length, time=duration(best.seconds), budget=duration(budget))
    reasons["max_iters"] = length
    reasons["warmup_iters"] = _("5% of the run, at most 2,000 steps")
    reasons["min_lr"] = _("the rate falls to zero at the end: lowest loss in a fixed time")
    reasons["eval_interval"] = _("{n} evaluations", n=-(-config.max_iters // config.eval_interval))
    if config.time_budget:
        reasons["time_budget"] = _("the length and the schedule follow the clock")
    if config.early_stopping_patience:
        reasons["early_stopping_patience"] = _("more steps would overfit: the time allows more than this text needs")
    return reasons


def _nearest(own: Any, others: Iterable[Any]) -> list[Any]:
    """Return a value's neighbours: the next below and above it, or any others."""
    others = list(others)
    if isinstance(own, str):
        return others
    below, above = [v for v in others if v < own], [v for v in others if v > own]
    return ([max(below)] if below else []) + ([min(above)] if above else [])


def _fine_tune(survey: Survey, target: Target, budget: float | None) -> Choice:
    """Choose for a pretrained model, of fixed shape: length by time and four epochs, rate by the chapter (3.1)."""
    fitted, fits = grid.no_larger_batch(survey, target)
    if not fits:
        least = batches.fit(survey, target).memory.needed
        advice = _("take a device with more memory, a smaller model or a smaller block_size")
        raise grid.out_of_memory(target, survey.config.init_from, least, advice)
    most = grid.affordable(fitted, target, budget)
    if survey.train_tokens is not None:
        epochs = chapter.MOST_EPOCHS_PRETRAINED * survey.train_tokens
        most = min(most, max(grid.LEAST_STEPS, math.ceil(epochs / fitted.config.tokens_per_iter)))
    if most < grid.LEAST_STEPS // 5:
        raise InputError(
            "time-budget = {budget}: {n} steps of {model} are all that the time allows on {device} → give more "
            "time, or a smaller batch_size, block_size or eval_iters",
            budget=duration(budget or 0),
            n=max(0, most),
            model=survey.config.init_from,
            device=target.name,
        )
    rate = usual_learning_rate(chapter.count(survey), True)
    planned = batches.change(
        fitted,
        **grid.UNPLANNED,
        learning_rate=rate,
        min_lr=rate / 10,
        max_iters=most,
        warmup_iters=default_warmup(most),
        lr_decay_iters=most,
        eval_interval=max(1, most // 4),
        early_stopping_patience=3,
    )
    reasons = {
        "learning_rate": _("chapter 3.1, for weights that are trained already"),
        "max_iters": _("at most {n} epochs: a pretrained model soon learns a small text by heart",
                       n=chapter.MOST_EPOCHS_PRETRAINED),
        "early_stopping_patience": _("the validation loss may rise again"),
    }  # fmt: skip
    return Choice(planned, target, reasons, None, timing.time(planned, target).total_seconds)
