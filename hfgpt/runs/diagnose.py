"""Diagnosis of a run from its record: what is wrong, since when, the evidence, and what to change.

In:  the records of a run (:mod:`hfgpt.runs.metrics`), finished or in progress, and its recipe if there is one.
Out: findings, gravest first, or the single finding `healthy`; notes; and both as text or as data.

Facts are in facts.py, rules in rules.py, remedies in findings.py. Imports neither torch nor transformers.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hfgpt.base import course
from hfgpt.base.language import _, plural, sentences, using
from hfgpt.base.terminal import visible
from hfgpt.base.units import duration
from hfgpt.config import Config
from hfgpt.model.schedule import learning_rate
from hfgpt.runs import laws, reference, rules
from hfgpt.runs.facts import MEMORISING, REPEATS, Facts, Surroundings, finite
from hfgpt.runs.findings import Finding, Kind, Remedy, change, following, longer
from hfgpt.runs.history import History
from hfgpt.runs.metrics import Record


def diagnose(
    records: Sequence[Record], config: Config | None = None, around: Surroundings | None = None
) -> list[Finding]:
    """Diagnose a run.

    Args:
        records: as returned by :func:`hfgpt.runs.history.read_run`.
        config: the run's recipe; without one, remedies have no values, and rules that need it are skipped.
        around: what the run's folder says; without it, an unfinished run counts as one in progress.

    Returns:
        The findings, gravest first; `healthy` alone if no rule applies.
    """
    return _diagnose(Facts(records, config, around))


EXPLAINED: set[Kind] = {"learning_rate_too_high", "input_bound", "interrupted"}


def _diagnose(facts: Facts) -> list[Finding]:
    findings = [finding for rule in rules.RULES if (finding := rule(facts)) is not None]
    kinds = {finding.kind for finding in findings}
    if "diverged" in kinds:  # it explains everything else
        findings = [finding for finding in findings if finding.kind == "diverged"]
    elif "learning_rate_too_high" in kinds and facts.high:  # so does a rate at which nothing is learnt
        findings = [finding for finding in findings if finding.kind in EXPLAINED]
    return _without_contradictions(findings) or [rules.healthy(facts)]


def _without_contradictions(findings: Sequence[Finding]) -> list[Finding]:
    """Drop advice that moves a parameter against the advice of a graver finding."""
    out: list[Finding] = []
    given: list[Remedy] = []
    for finding in findings:
        kept = [remedy for remedy in finding.remedies if not any(remedy.contradicts(other) for other in given)]
        out.append(replace(finding, remedies=kept))
        given += kept
    return out


def notes(records: Sequence[Record], config: Config | None = None, around: Surroundings | None = None) -> list[str]:
    """Return what is worth knowing but not alarming: the run's standing and outlook, clipping, evaluations."""
    facts = Facts(records, config, around)
    return _notes(facts, _diagnose(facts))


def report(findings: Sequence[Finding]) -> str:
    """Format the findings: what, since when, the evidence, and the remedies in order with what to type."""
    lines = []
    for finding in findings:
        if finding.kind != "healthy" and finding.since_step:
            lines.append(_("{finding}, since step {step:,}", finding=finding.title, step=finding.since_step))
        else:
            lines.append(finding.title)
        lines.append(f"  {finding.evidence}")
        for number, remedy in enumerate(finding.remedies, 1):
            lines.append("  " + _("{number}. {what}  (chapter {section})",
                                  number=number, what=remedy.what, section=remedy.section))  # fmt: skip
            if remedy.override:
                lines.append(f"       {remedy.override}")
            if remedy.expected:
                lines.append("       " + _("expect: {what}", what=remedy.expected))
    if pages := course.pages("; ".join(remedy.chapter for finding in findings for remedy in finding.remedies)):
        lines.append(_("The chapter's sections are explained in {pages}.", pages=pages))
    return "\n".join(lines)


def summary(records: Sequence[Record], config: Config | None = None, around: Surroundings | None = None) -> str:
    """Format the findings, then the notes, without control characters for a terminal."""
    facts = Facts(records, config, around)
    findings = _diagnose(facts)
    lines = [report(findings), *(_("note: {note}", note=note) for note in _notes(facts, findings))]
    return visible("\n".join(lines))


def as_json(run: History) -> dict[str, Any]:
    """Return a run's diagnosis as plain data, in English: `run`, `last_step`, `findings` and `notes`."""
    with using("en"):
        findings = diagnose(run.records, run.config, run.around)
        return {
            "run": run.name,
            "last_step": int(run.records[-1]["step"]),
            "findings": [_as_data(finding) for finding in findings],
            "notes": notes(run.records, run.config, run.around),
        }


def _as_data(finding: Finding) -> dict[str, Any]:
    advice = [
        {"what": r.what, "chapter": r.chapter, "override": r.override, "expected": r.expected or None}
        for r in finding.remedies
    ]
    return {"kind": finding.kind, "since_step": finding.since_step, "evidence": finding.evidence, "remedies": advice}


# -------------------------------------------------------------------------------------------------------------- notes


# With these findings a longer run is not advised, whatever the curve does.
NOT_LONGER: set[Kind] = {"diverged", "learning_rate_too_high", "overfitting", "data_starved"}


def _notes(facts: Facts, findings: Sequence[Finding]) -> list[str]:
    """Return the notes on a run."""
    kinds = {finding.kind for finding in findings}
    if "diverged" in kinds:
        every = [_slow_start(facts), _evaluating(facts)]
    else:
        outlook = [] if kinds & NOT_LONGER or facts.stopped_early else _outlook(facts, kinds)
        every = [
            _stopped_early(facts),
            _standing(facts),
            *outlook,
            _one_spike(facts),
            _clipping(facts),
            _slow_start(facts),
            _evaluating(facts),
        ]
    return [note for note in every if note is not None]


def _stopped_early(facts: Facts) -> str | None:
    """Say that early stopping ended the run: a longer one would end at the same step."""
    config = facts.config
    if config is None or config.early_stopping_patience is None or not facts.stopped_early:
        return None
    return plural(
        "Early stopping ended the run at step {step:,} of {steps:,}: the last evaluation brought no better validation "
        "loss.",
        "Early stopping ended the run at step {step:,} of {steps:,}: the last {n} evaluations brought no better "
        "validation loss.",
        config.early_stopping_patience, step=facts.last_step, steps=config.max_iters,
    )  # fmt: skip


def _outlook(facts: Facts, kinds: set[Kind]) -> list[str | None]:
    """Say where the run is going, and what a longer one would reach."""
    if rules.gap(facts):  # the law that predicts a longer run fails once the text is memorised
        return [_falls(facts)]
    ahead = _ahead(facts) if facts.config else _level(facts)
    if ahead is None and facts.config and facts.finished and kinds == {"healthy"} and not _memorises(facts):
        ahead = _("A lower loss takes a longer run ({override}), and often more text.", override=longer(facts).override)
    return [_falls(facts), ahead]


def suggestion(records: Sequence[Record], config: Config) -> str | None:
    """Return the overrides of the first advice that can be typed as it is; None without any."""
    facts = Facts(records, config)
    findings = _diagnose(facts)
    given = [remedy.override for finding in findings for remedy in finding.remedies]
    for override in given:
        if override and _("PATH_OR_HUB_ID") not in override:
            return override
    override = longer(facts).override
    return override if override and any(override in note for note in _notes(facts, findings)) else None


def _standing(facts: Facts) -> str | None:
    """Compare the run with its recipe's reference curve, at the last evaluation that the curve covers."""
    curve = reference.of(facts.config) if facts.config is not None and facts.val else None
    if curve is None:
        return None
    if facts.changed is not None:
        return _("The recipe or the text changed after step {step:,}, so the run is not compared with the reference of "
                 "{recipe}.yaml.", step=facts.changed, recipe=curve.recipe)  # fmt: skip
    places = [(int(step), loss, curve.at(int(step))) for step, loss in zip(facts.eval_steps, facts.val, strict=True)]
    step, loss, expected = next((place for place in reversed(places) if place[2] is not None), (0, 0.0, None))
    if expected is None or step == 0:
        return None
    figures = _("At step {step:,}: {loss:.2f}, reference {expected} ({recipe}.yaml, {seeds} seeds).",
                step=step, loss=loss, expected=expected, recipe=curve.recipe, seeds=curve.seeds)  # fmt: skip
    if loss > expected.high:
        return sentences(figures, _("This is higher than another seed explains."))
    if loss < expected.low:
        return sentences(figures, _("This is lower than another seed explains."))
    return sentences(figures, _("This is as it should be."))


def _fall(facts: Facts) -> float | None:
    """Return the relative fall of the validation loss in the last fifth of the run."""
    evaluated = [(step, loss) for step, loss in zip(facts.eval_steps, facts.val, strict=True) if step > 0]
    before = [loss for step, loss in evaluated if step <= 0.8 * facts.last_step]
    if len(evaluated) < 4 or not before or before[-1] <= 0:
        return None
    return (before[-1] - evaluated[-1][1]) / before[-1]


def _falls(facts: Facts) -> str | None:
    fall = _fall(facts)
    if fall is None or fall < 0.01:
        return None
    return _("The validation loss still falls: by {fall:.1%} in the last fifth of the run.", fall=fall)


def _level(facts: Facts) -> str | None:
    fall = _fall(facts)
    if fall is None or abs(fall) >= 0.01:
        return None
    return _("The validation loss has levelled out in the last fifth of the run.")


def _ahead(facts: Facts) -> str | None:
    """Predict from the fitted learning curve: the end of a run in progress, or of one twice as long."""
    config = facts.config
    assert config is not None, "the schedule is the recipe's"

    def rate(step: int) -> float:
        return learning_rate(step, config)

    if facts.undecided:
        return None
    if not facts.finished:
        before = laws.beforehand(facts.records, config)
        end = laws.end_of_run(facts.eval_steps, facts.val, rate, facts.past_warmup, config.max_iters, before)
        if end is None:
            return None
        return _("At its end, step {step:,}, the validation loss is expected at {loss}.",
                 step=config.max_iters, loss=end)  # fmt: skip
    curve = laws.fit_curve(facts.eval_steps, facts.val, rate)
    if curve is None:
        return _still_falls(facts)
    more = longer(facts)
    if _memorises(facts):
        return _(
            "A longer run would hardly end lower: it sees the text {times:.0f} times, and the validation loss is "
            "{gap:.2f} above the train loss already. More text would help (6.3).",
            times=2 * (facts.epochs_at(facts.last_step) or 0.0), gap=facts.val[-1] - facts.train_end,
        )  # fmt: skip
    length = {"max_iters": 2 * config.max_iters}
    twice = config.model_copy(update={**length, **following(config, length)})
    expected = curve.at(twice.max_iters, lambda step: learning_rate(step, twice))
    if not expected.telling:
        return _still_falls(facts)
    if expected.loss + expected.half / 2 > facts.val[-1]:  # not likely enough to be lower: a chance of five in six
        return _level(facts)
    return _("A run of {steps:,} more steps would end at about {loss}: {override}",
             steps=config.max_iters, loss=expected, override=more.override)  # fmt: skip


def _still_falls(facts: Facts) -> str | None:
    """Say that a run with too few evaluations for a prediction was still learning at its end."""
    trained = [loss for step, loss in zip(facts.eval_steps, facts.val, strict=True) if step > 0]
    if len(trained) < 2 or trained[-2] <= 0 or facts.high:  # of a high loss the finding says it
        return None
    fall = (trained[-2] - trained[-1]) / trained[-2]
    if fall < 0.01 or _memorises(facts):
        return None
    return _(
        "The validation loss still fell by {fall:.1%} at the last evaluation: a longer run would end below {loss:.2f}: "
        "{override}", fall=fall, loss=facts.val[-1], override=longer(facts).override,
    )  # fmt: skip


def _memorises(facts: Facts) -> bool:
    """Whether a run of twice the length would learn the text by heart."""
    times = 2 * (facts.epochs_at(facts.last_step) or 0.0)
    return times > REPEATS and facts.val[-1] > facts.train_end + MEMORISING


def _one_spike(facts: Facts) -> str | None:
    spikes = facts.leaps()
    if len(spikes) != 1 or spikes[0][0] == facts.steps[-1]:  # later records must show that it came back
        return None
    step, top = spikes[0]
    return _("The train loss leapt once, to {top:.3g} at step {step:,}, and came back.", top=top, step=step)


def _clipping(facts: Facts) -> str | None:
    clip = facts.config.grad_clip if facts.config else 0.0
    norms = finite(facts.records, "grad_norm")[1]
    if not clip or len(norms) < 10:
        return None
    share, median = sum(norm > clip for norm in norms) / len(norms), statistics.median(norms)
    if share and median < rules.CLIPPED_BY * clip:  # see rules.clipping_always
        return _(
            "Gradient clipping was active in {share:.0%} of the recorded steps, which is harmless: half of the norms "
            "are below {median:.2g}, and grad_clip is {clip:g}.", share=share, median=median, clip=clip,
        )  # fmt: skip
    if share:
        return _("Gradient clipping was active in {share:.0%} of the recorded steps.", share=share)
    return _("Gradient clipping was never active: the largest norm is {norm:.2g}, grad_clip {clip:g}.",
             norm=max(norms), clip=clip)  # fmt: skip


def _slow_start(facts: Facts) -> str | None:
    """Report the extra time of the first recorded step: compilation, kernel selection, filling caches."""
    first = next((r for r in facts.records if r["step"] <= 1 and "train_loss" in r), None)
    if first is None or not facts.step_seconds or "branch_step" in facts.records[0]:  # then it is another run's
        return None
    speed = first.get("tokens_per_second")  # a batch warm-up begins with a few sequences
    seconds = facts.config.tokens_by(1) / speed if speed and facts.config else first.get("seconds", 0.0)
    extra = seconds - facts.step_seconds
    if not extra >= 2 or seconds < 5 * facts.step_seconds:
        return None
    note = _("Slow start: the first step took {time}, as long as {steps:,} usual ones.",
             time=duration(seconds), steps=round(extra / facts.step_seconds))  # fmt: skip
    if facts.config and facts.config.compile is True:
        note = sentences(note, _("That is compilation, which pays in longer runs (6.2, strategy 1)."))
    return note


def _evaluating(facts: Facts) -> str | None:
    steps, seconds = finite(facts.records, "seconds")
    if facts.config is None or not facts.step_seconds or len(steps) < 3:
        return None
    total = seconds[-1] - seconds[0]
    tokens = facts.config.tokens_by(int(steps[-1])) - facts.config.tokens_by(int(steps[0]))
    spent = total - tokens / facts.config.tokens_per_iter * facts.step_seconds
    if total <= 0 or spent < 0.3 * total or spent < 10:
        return None
    what = _("evaluate less often")
    remedy = change(what, "6.2, strategy 3", facts.config, eval_interval=2 * facts.config.eval_interval)
    return _("Evaluations, samples and checkpoints took {share:.0%} of the time: {remedy} ({override}).",
             share=spent / total, remedy=remedy.what, override=remedy.override)  # fmt: skip
