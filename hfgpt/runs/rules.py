"""The rules that recognise trouble in a run.

In:  the facts of a run.
Out: a finding, or None if there is no sign of this trouble.

The limits were set on curves of real runs, which tests/fixtures/curves holds with the script that made them. Evaluated
losses use the same blocks each time, so in a healthy run they hardly ever rise; single batches' losses are smoothed
first. A new diagnosis is a function here and an entry in RULES.
"""

import math
import statistics
from collections.abc import Callable
from datetime import datetime

from hfgpt.base.language import _, plural, sentences
from hfgpt.base.units import duration
from hfgpt.runs import findings
from hfgpt.runs.facts import HIGH, MEMORISING, REPEATS, SPIKE, Facts, finite
from hfgpt.runs.findings import FAR, PATIENCE, Finding

RISE = 0.05  # nats: an evaluated loss does not rise by more than this by chance
MEMORISED = 2.0  # ratio of validation to train loss at which the text is being memorised
CLIPPED, CLIPPED_BY = 0.95, 3.0  # share of the steps, and the median norm over grad_clip (2 in nanoGPT's own CPU run)
WAITING = 0.3  # share of a step spent waiting for data


def interrupted(facts: Facts) -> Finding | None:
    """The run has not reached its end, and no process works on it: it was stopped, or it was killed."""
    if not facts.abandoned:
        return None
    assert facts.config is not None, "without a recipe a run counts as finished"
    assert facts.around.written is not None, "facts.abandoned"
    when = datetime.fromtimestamp(facts.around.written).strftime("%Y-%m-%d %H:%M:%S")
    if facts.config.time_budget:
        end = _("The record ends at step {step:,}, before the time_budget of {time} was over.",
                step=facts.last_step, time=facts.config.time_budget)  # fmt: skip
    else:
        end = _("The record ends at step {step:,} of {steps:,}.", step=facts.last_step, steps=facts.config.max_iters)
    written = _("It was last written at {when}, and no process trains in the folder.", when=when)
    if facts.around.saved is None:
        return Finding("interrupted", 0, sentences(end, written, _("There is no checkpoint to resume from.")))
    saved = _("--resume continues from its newest checkpoint, of step {step:,}.", step=facts.around.saved)
    return Finding("interrupted", 0, sentences(end, written, saved))


def diverged(facts: Facts) -> Finding | None:
    """Losses or gradients are not finite, or the loss stays far above its start (3.1, 3.3)."""
    if facts.lost_at is not None:
        evidence = _("The loss or the gradient is not a number since step {step:,}.", step=facts.lost_at)
        if facts.losses:
            evidence = sentences(evidence, _("The last finite loss was {loss:.3g}.", loss=facts.losses[-1]))
        return Finding("diverged", facts.lost_at, evidence, findings.calmer(facts, strongly=True))
    start = facts.start
    if start is None or not facts.losses:
        return None
    end, limit = statistics.median(facts.losses[-3:]), 1.5 * start
    if end <= limit:
        return None
    calm = max((step for step, loss in zip(facts.steps, facts.losses, strict=True) if loss <= limit), default=0)
    evidence = _("The train loss began at {start:.2f}; at the end, the median of three records is {end:.3g}.",
                 start=start, end=end)  # fmt: skip
    return Finding("diverged", int(calm), evidence, findings.calmer(facts, strongly=True))


Sign = tuple[int, str]


def learning_rate_too_high(facts: Facts) -> Finding | None:
    """The loss leaps above its start, spikes, or rises on the train split itself; or it stays high at a rate far above
    the rule of thumb (3.1: oscillation).
    """
    signs = [sign for test in (_leap, _spikes, _train_rises, _high_rate) if (sign := test(facts)) is not None]
    if not signs:
        return None
    evidence = sentences(*(text for _step, text in signs))
    return Finding(
        "learning_rate_too_high", min(step for step, _text in signs), evidence, findings.calmer(facts, strongly=False)
    )


def _leap(facts: Facts) -> Sign | None:
    if facts.start is None or facts.chance is None:
        return None
    above = [(int(s), loss) for s, loss in zip(facts.steps, facts.losses, strict=True) if loss > facts.start + 0.25]
    if len(above) < 2:
        return None
    step, top = max(above, key=lambda pair: pair[1])
    return above[0][0], _("The train loss leapt from {start:.2f} at the start to {top:.3g} at step {step:,}.",
                          start=facts.start, top=top, step=step)  # fmt: skip


def _spikes(facts: Facts) -> Sign | None:
    spikes = facts.leaps()
    if len(spikes) < 2:
        return None
    step, top = max(spikes, key=lambda spike: spike[1])
    text = _(
        "After the warm-up the train loss leapt {count} times by more than {height:g}, to {top:.3g} at step {step:,}.",
        count=len(spikes), height=SPIKE, top=top, step=step,
    )  # fmt: skip
    return spikes[0][0], text


def _train_rises(facts: Facts) -> Sign | None:
    """The loss may rise to the level of a new recipe or a higher rate; once it falls again, it should only fall."""
    lowest, low_step, rise, since = math.inf, 0.0, 0.0, 0
    breaks, settling = list(facts.breaks), False
    for step, loss in facts.train_eval.items():
        settling = settling and loss >= lowest
        while breaks and step > breaks[0]:
            breaks.pop(0)
            settling = True
        if settling or loss < lowest:
            lowest, low_step = loss, step
        elif loss - lowest > rise:
            rise, since = loss - lowest, int(low_step)
    if rise < RISE:
        return None
    return since, _("The evaluated train loss, which should only fall, rose by {rise:.2f} after step {step:,}.",
                    rise=rise, step=since)  # fmt: skip


def _high_rate(facts: Facts) -> Sign | None:
    rate, begun = facts.peak_rate, facts.last_step > 2 * facts.past_warmup
    if rate is None or rate < FAR * facts.rule_of_thumb or not facts.high or not begun or facts.changed is not None:
        return None
    text = _(
        "The loss stays at {loss:.2f}, where a random guess costs {chance:.2f}, at a learning rate of {rate:g}: "
        "{times:.0f} times the rule of thumb, {usual:g} (3.1).",
        loss=facts.end, chance=facts.chance, rate=rate, times=rate / facts.rule_of_thumb, usual=facts.rule_of_thumb,
    )  # fmt: skip
    return facts.past_warmup, text


def learning_rate_too_low(facts: Facts) -> Finding | None:
    """The loss falls smoothly but far too slowly, at a rate far below the rule of thumb (3.1)."""
    rate, config = facts.highest_rate, facts.config
    enough = config is None or facts.finished or facts.last_step >= config.max_iters / 4
    if rate is None or rate > facts.rule_of_thumb / FAR * 1.25 or not facts.high or not enough:
        return None
    evidence = _(
        "In {steps:,} steps the loss has fallen only from {start:.2f} to {end:.2f}, at a learning rate of {rate:g}; "
        "the rule of thumb is {usual:g} (3.1).",
        steps=facts.last_step, start=facts.start, end=facts.end, rate=rate, usual=facts.rule_of_thumb,
    )  # fmt: skip
    longer = [] if facts.stopped_early else [findings.longer(facts)]
    return Finding("learning_rate_too_low", 0, evidence, [findings.set_rate(facts, facts.rule_of_thumb), *longer])


def underfitting(facts: Facts) -> Finding | None:
    """Train and validation loss are both high at the end of the run (6.4)."""
    if not facts.finished or not facts.high or facts.end > 1.1 * facts.train_end:
        return None
    ends = {"train": facts.train_end, "val": facts.end, "chance": facts.chance}
    if facts.pairs is not None:
        evidence = _(
            "The run ends with train {train:.2f} and validation {val:.2f}, both high: a random guess among the tokens "
            "of the text costs {chance:.2f}, and counting which token follows which reaches {pairs:.2f}.",
            pairs=facts.pairs, **ends,
        )  # fmt: skip
    else:
        evidence = _(
            "The run ends with train {train:.2f} and validation {val:.2f}, both high: a random guess among the tokens "
            "of the text costs {chance:.2f}, and counting pairs of letters reaches about {share:.0%} of that.",
            share=HIGH, **ends,
        )  # fmt: skip
    return Finding("underfitting", facts.last_step, evidence, findings.fit_better(facts))


def overfitting(facts: Facts) -> Finding | None:
    """The validation loss rises while the train loss still falls, or is far above it without improving (6.3)."""
    if not facts.val or facts.eval_steps[-1] == 0:
        return None
    low, best_step = facts.lowest, facts.eval_steps[facts.best]
    later = facts.val[facts.best + 1 :]
    rises = bool(later) and facts.val[-1] > low * 1.01 + 0.02 and (len(later) > 1 or facts.val[-1] > low + 2 * RISE)
    learns = facts.train_end < facts.train_at(best_step) - 0.02
    gains = len(facts.val) > 2 and best_step > 2 / 3 * facts.last_step
    if not (rises and learns) and (not gap(facts) or gains):
        return None
    if later:
        evidence = sentences(_(
            "The validation loss was best at step {best:,} ({low:.2f}) and is {val:.2f} at step {step:,}, while the "
            "train loss fell from {before:.2f} to {train:.2f}.",
            best=int(best_step), low=low, val=facts.val[-1], step=int(facts.eval_steps[-1]),
            before=facts.train_at(best_step), train=facts.train_end,
        ), _saved(facts))  # fmt: skip
    else:
        evidence = _("The run ends with train {train:.2f} and validation {val:.2f}.",
                     train=facts.train_end, val=facts.val[-1])  # fmt: skip
    return Finding("overfitting", int(best_step), evidence, findings.generalise(facts))


def gap(facts: Facts) -> bool:
    """The validation loss is far above the train loss."""
    return bool(facts.val) and facts.val[-1] > 1.6 * facts.train_end and facts.val[-1] > facts.train_end + 0.4


def _saved(facts: Facts) -> str:
    """Say what early stopping would have saved; "" if nothing."""
    patience = (facts.config.early_stopping_patience if facts.config else None) or PATIENCE
    stop = facts.ended_by(patience)
    if stop is None or not facts.eval_steps[facts.best] < stop < facts.eval_steps[-1]:
        return ""
    steps = int(facts.eval_steps[-1] - stop)
    saved = {"patience": patience, "steps": steps, "all": facts.last_step, "share": steps / facts.last_step}
    if facts.step_seconds:
        return _(
            "Early stopping with patience {patience} would have kept the same best model and saved {steps:,} of "
            "{all:,} steps ({share:.0%}, about {time}).", time=duration(steps * facts.step_seconds), **saved,
        )  # fmt: skip
    return _("Early stopping with patience {patience} would have kept the same best model and saved {steps:,} of "
                   "{all:,} steps ({share:.0%}).", **saved)  # fmt: skip


def data_starved(facts: Facts) -> Finding | None:
    """The text is too short for this model and length: it is being memorised (6.3, strategy 4)."""
    fits = overfitting(facts)
    if fits is None:
        return None
    ratio = facts.val[-1] / max(facts.train_end, 1e-9)
    seen, at_the_end = facts.epochs_at(fits.since_step), facts.epochs_at(facts.last_step)
    if (seen is None or seen < REPEATS) and ratio < MEMORISED:
        return None
    evidence = _("The validation loss is {ratio:.1f} times the train loss: the text is being learnt by heart.",
                 ratio=ratio)  # fmt: skip
    if seen is not None:
        evidence = sentences(evidence, _(
            "At step {step:,}, where overfitting begins, each token had been seen {seen:.1f} times, and at the end "
            "{end:.1f} times; repeats beyond about {limit:g} teach little.",
            step=fits.since_step, seen=seen, end=at_the_end, limit=REPEATS,
        ))  # fmt: skip
    advice = [findings.more_text(facts), findings.smaller(facts), findings.sooner(facts)]
    return Finding("data_starved", fits.since_step, evidence, [remedy for remedy in advice if remedy is not None])


def clipping_always(facts: Facts) -> Finding | None:
    """Nearly every gradient is scaled down a lot: grad_clip, not the learning rate, decides the steps (3.3)."""
    clip = facts.config.grad_clip if facts.config else 0.0
    steps, norms = finite(facts.records, "grad_norm")
    after = [(step, norm) for step, norm in zip(steps, norms, strict=True) if step > facts.past_warmup]
    if not clip or len(after) < 20:
        return None
    share = sum(norm > clip for _step, norm in after) / len(after)
    median = statistics.median(norm for _step, norm in after)
    if share < CLIPPED or median < CLIPPED_BY * clip:
        return None
    evidence = _(
        "After the warm-up {share:.0%} of the recorded steps were clipped: half of the gradients have a norm above "
        "{median:.3g}, and grad_clip is {clip:g}.", share=share, median=median, clip=clip,
    )  # fmt: skip
    return Finding(
        "clipping_always", int(after[0][0]), evidence, findings.unclip(facts, [norm for _step, norm in after])
    )


def input_bound(facts: Facts) -> Finding | None:
    """A large part of each step is spent waiting for data (6.2)."""
    steps, waits = finite(facts.records, "data_seconds")
    if len(waits) < 3 or not facts.step_seconds:
        return None
    wait = statistics.median(waits[1:])
    share = wait / facts.step_seconds
    if share < WAITING:
        return None
    evidence = _("{share:.0%} of a step ({wait:.1f} of {step:.1f} ms) is spent waiting for data.",
                 share=share, wait=wait * 1000, step=facts.step_seconds * 1000)  # fmt: skip
    return Finding("input_bound", int(steps[0]), evidence, findings.feed(facts, facts.step_seconds - wait))


def _by_heart(facts: Facts) -> bool:
    """A text that was seen many times is better known than the validation split."""
    seen = facts.epochs_at(facts.last_step)
    return seen is not None and seen > REPEATS and bool(facts.val) and facts.val[-1] > facts.train_end + MEMORISING


def healthy(facts: Facts) -> Finding:
    """No rule found anything wrong."""
    begin = facts.start if facts.start is not None else (facts.losses or facts.val or [math.nan])[0]
    evidence = plural(
        "The loss went from {start:.2f} to {end:.2f} in {n:,} step.",
        "The loss went from {start:.2f} to {end:.2f} in {n:,} steps.",
        facts.last_step, start=begin, end=facts.end,
    )  # fmt: skip
    if gap(facts) or _by_heart(facts):
        sound = _(
            "But the validation loss is far above the train loss ({val:.2f} and {train:.2f}): the model begins to "
            "learn the text by heart. More text would lower it; more dropout would only narrow the gap, unless the run "
            "is longer too.",
            val=facts.val[-1], train=facts.train_end,
        )  # fmt: skip
    else:
        sound = _("Nothing is wrong.") if facts.finished else _("Nothing is wrong so far.")
    return Finding("healthy", 0, sentences(evidence, sound))


RULES: tuple[Callable[[Facts], Finding | None], ...] = (
    interrupted,
    diverged,
    learning_rate_too_high,
    overfitting,
    data_starved,
    learning_rate_too_low,
    underfitting,
    clipping_always,
    input_bound,
)
