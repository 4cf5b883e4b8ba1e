"""The page's view of runs: curves, a table, diagnoses, samples side by side, and the progress of a run.

In:  a comparison (hfgpt/runs/compare.py), samples, the state of a run.
Out: HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from hfgpt.base.language import N_, _
from hfgpt.base.lock import holder_of
from hfgpt.base.units import duration
from hfgpt.playground.pieces import dot, message, table, tile, tiles
from hfgpt.playground.trainer import State
from hfgpt.runs import answer
from hfgpt.runs.compare import Comparison, Entry
from hfgpt.runs.comparison_plots import By, Curve, panel
from hfgpt.runs.diagnose import diagnose, notes
from hfgpt.runs.findings import Finding, Remedy
from hfgpt.runs.style import RUNS, quantity

SAMPLES = 6  # most samples of a run side by side: the first, the last, and evenly spaced ones

CURVES = {"val_loss": N_("Validation loss (nats per token)"), "train_loss": N_("Train loss, smoothed (nats per token)")}


def runs(comparison: Comparison, sentences: Sequence[str], by: By) -> str:
    """Show up to six runs: curves, a table, the conclusions, and each one's diagnosis, side by side."""
    entries = comparison.entries
    curves = [Curve(entry.label, entry.run) for entry in entries if entry.run is not None]
    pictures = "".join(
        f'<figure id="{key}"><h3>{escape(_(title))}</h3>{drawn}</figure>'
        for key, title in CURVES.items()
        if (drawn := panel(curves, key, by))
    )
    heads = [_("run"), _("steps"), _("parameters"), _("time"), _("train loss"), _("validation loss"),
             _("lowest validation loss"), _("at step")]  # fmt: skip
    listed = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    coloured = list(zip(entries, RUNS, strict=False))
    cards = "".join(_diagnosis(entry, colour) for entry, colour in coloured)
    legend = "".join(f"<span>{dot(colour)} {escape(entry.label)}</span>" for entry, colour in coloured)
    return (
        f'<div class="legend">{legend}</div><div class="curves">{pictures}</div>'
        + table("", heads, [_row(entry) for entry in entries], words=False)
        + (f'<ul class="answer">{listed}</ul>' if listed else "")
        + f'<div class="cards">{cards}</div>'
    )


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _row(entry: Entry) -> tuple[str, ...]:
    best, count, seconds = entry.best, entry.parameters, entry.last("seconds")
    return (
        entry.label,
        f"{entry.steps:,}",
        "–" if count is None else quantity(count),
        "–" if seconds is None else duration(seconds),
        _loss(entry.last("train_eval_loss")),
        _loss(entry.last("val_loss")),
        _loss(best[0] if best else None),
        f"{best[1]:,}" if best else "–",
    )


def _diagnosis(entry: Entry, colour: str) -> str:
    assert entry.run is not None, "the page shows runs that it has read"
    findings = diagnose(entry.run.records, entry.run.config)
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes(entry.run.records, entry.run.config))
    state = answer.outcome(entry)
    if entry.outcome == "running":
        in_progress = holder_of(entry.run.path.parent) is not None
        state = _("in progress") if in_progress else _("not finished: it can be resumed")
    return (
        f'<article><h3>{dot(colour)} {escape(entry.label)}</h3><p class="small">{escape(state)}</p>'
        f"{''.join(_finding(finding) for finding in findings)}{f'<ul>{listed}</ul>' if listed else ''}</article>"
    )


def _finding(finding: Finding) -> str:
    well = finding.kind == "healthy"
    title = finding.title
    if not well and finding.since_step:
        title = _("{finding}, since step {step:,}", finding=title, step=finding.since_step)
    steps = "".join(f"<li>{_remedy(remedy)}</li>" for remedy in finding.remedies)
    return (
        f'<p class="said {"good" if well else "bad"}"><b>{escape(title)}</b><br>{escape(finding.evidence)}</p>'
        f"{f'<ol>{steps}</ol>' if steps else ''}"
    )


def _remedy(remedy: Remedy) -> str:
    words = " ".join(f"<code>{escape(word)}</code>" for word in (remedy.override or "").split())
    section = escape(_("(chapter {section})", section=remedy.section))
    expected = escape(_("expect: {what}", what=remedy.expected)) if remedy.expected else ""
    lines = [f"{escape(remedy.what)} <small>{section}</small>", words, f"<small>{expected}</small>" if expected else ""]
    return "<br>".join(line for line in lines if line)


def samples(name: str, colour: str, written: Mapping[int, str], losses: Mapping[int, float]) -> str:
    """Show a run's samples at its evaluations, side by side, with the validation loss of each."""
    steps = sorted(written)
    if not steps:
        return ""
    places = sorted({round(place * (len(steps) - 1) / max(1, SAMPLES - 1)) for place in range(SAMPLES)})
    cards = "".join(
        f"<article><h3>{escape(_sampled(step, losses))}</h3><pre>{escape(written[step])}</pre></article>"
        for step in (steps[place] for place in places)
    )
    title = escape(_("What it wrote: {run}", run=name))
    return f'<section class="samples"><h3>{dot(colour)} {title}</h3><div class="strip">{cards}</div></section>'


def _sampled(step: int, losses: Mapping[int, float]) -> str:
    if step in losses:
        return _("step {step:,} · loss {loss:.3f}", step=step, loss=losses[step])
    return _("step {step:,}", step=step)


def progress(state: State) -> str:
    """Show a run's progress: its step, the time left, its losses, and its last output."""
    share = round(100 * state.step / state.steps) if state.steps else 0

    left = "–" if state.seconds_left is None else duration(state.seconds_left)
    of = _("of {steps:,}", steps=state.steps)
    figures = tiles(
        [
            tile("step", _("steps"), f"{state.step:,}", of, share),
            tile("left", _("time left"), left, f"{share}%"),
            tile("train-loss", _("train loss"), _loss(state.train_loss), ""),
            tile("val-loss", _("validation loss"), _loss(state.val_loss), ""),
        ]
    )
    log = f'<pre class="log" tabindex="0">{escape(state.log)}</pre>' if state.log else ""
    return figures + _standing(state) + log


def _standing(state: State) -> str:
    if state.pausing:
        return message(_("It finishes its step, writes a checkpoint and stops."))
    if state.running and state.step == 0:
        return message(_("It is starting: the text is read, the model is made."))
    if state.running:
        return message(_("It is in progress."), "good")
    if state.stopped_early:
        return message(_("Early stopping has ended it: the validation loss no longer fell."), "good")
    if state.finished:
        return message(
            _("It is finished: its curves and samples are under Runs, and its model writes under Text."), "good"
        )
    if state.step:
        return message(_("It is paused: Resume continues from its newest checkpoint."))
    return message(_("It ended before its first step: see below."), "bad")
