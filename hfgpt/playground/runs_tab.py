"""The tab for comparing runs: curves, a table, diagnoses, and the samples of each.

In:  the runs of the folder.
Out: HTML, redrawn when a run has recorded something.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from hfgpt.base.command import typed
from hfgpt.base.errors import InputError
from hfgpt.base.language import N_, _, current
from hfgpt.base.units import duration, quantity
from hfgpt.playground.pieces import Labels, dot, in_language, loss, message, table
from hfgpt.playground.trainer import WEIGHTS, find
from hfgpt.runs import answer, compare, metrics
from hfgpt.runs.compare import Comparison, Entry
from hfgpt.runs.comparison_plots import By, Curve, panel
from hfgpt.runs.diagnose import diagnose, notes
from hfgpt.runs.findings import Finding, Remedy
from hfgpt.runs.plots import RUNS

AXES: dict[By, str] = {"steps": N_("steps"), "tokens": N_("tokens"), "time": N_("time")}
CLEARED = "cleared: "  # begins what was seen if the user has chosen no run


class RunsTab:
    """The tab's components and their handlers."""

    def __init__(self, labels: Labels, folder: Path) -> None:
        self._folder = folder
        names = list(find(folder, metrics.FILE_NAME))
        with gr.Row():
            self.chosen = labels.add(
                gr.Dropdown,
                lambda: {"label": _("Runs"), "info": _("Up to six, side by side. A run in progress is followed.")},
                choices=names,
                value=names[:1],
                multiselect=True,
                max_choices=len(RUNS),
                interactive=True,
                scale=3,
                elem_id="runs",
            )
            self.by = labels.add(
                gr.Radio,
                lambda: {"label": _("Against"), "choices": [(_(name), by) for by, name in AXES.items()]},
                value="steps",
                scale=1,
                min_width=260,
                elem_id="by",
            )
        self.diagnosis = gr.HTML(elem_id="diagnosis", padding=False)
        self.seen = gr.State("")

    @property
    def watched(self) -> list[Any]:
        """The components that :meth:`watch` fills, before the list of models."""
        return [self.diagnosis, self.seen, self.chosen]

    @in_language
    def watch(self, names: list[str], by: By, seen: str, model: str | None) -> list[Any]:
        """Show the present runs and models; nothing if nothing has changed since `seen`.

        Without a choice the newest run is shown, unless it was the user who took the choice back.
        """
        return self._answer(names, by, seen, model, cleared=not names and seen.startswith(CLEARED))

    @in_language
    def choose(self, names: list[str], by: By, seen: str, model: str | None) -> list[Any]:
        """Show the runs that the user has chosen."""
        return self._answer(names, by, seen, model, cleared=not names)

    def _answer(self, names: list[str], by: By, seen: str, model: str | None, cleared: bool) -> list[Any]:
        runs, models = find(self._folder, metrics.FILE_NAME), find(self._folder, WEIGHTS)
        if not names and not cleared:
            names = list(runs)[:1]
        chosen = {name: runs[name] for name in names or [] if name in runs}
        sizes = [(path / metrics.FILE_NAME).stat().st_size for path in chosen.values()]
        now = (CLEARED if cleared else "") + repr((current(), list(chosen), by, sizes, list(runs), list(models)))
        if now == seen:
            return [gr.skip()] * 4
        lists = [
            gr.update(choices=sorted(runs), value=list(chosen)),
            gr.update(choices=list(models), value=model if model in models else next(iter(models), None)),
        ]
        if not chosen:
            text = _("Choose a run above.")
            if not runs:
                command = typed("train", "recipes/quick_experiment.yaml")
                text = _("No run in {folder} yet. Train one: {command}", folder=f"{self._folder}/", command=command)
            return [message(text), now, *lists]
        try:
            return [_shown(chosen, by), now, *lists]
        except InputError as error:
            return [message(str(error), "bad"), now, *lists]


def _shown(chosen: dict[str, Path], by: By) -> str:
    comparison = compared(chosen)
    sentences = answer.answer(comparison) if len(chosen) > 1 else []
    parts = [runs(comparison, sentences, by)]
    for (name, path), entry, colour in zip(chosen.items(), comparison.entries, RUNS, strict=False):
        written = metrics.read_samples(path / metrics.SAMPLES) if (path / metrics.SAMPLES).exists() else {}
        steps, losses = entry.run.series("val_loss") if entry.run else ([], [])
        parts.append(samples(name, colour, written, dict(zip(map(int, steps), losses, strict=True))))
    return "".join(parts)


def compared(chosen: Mapping[str, Path]) -> compare.Comparison:
    """Compare runs under their names in the folder; also a single one.

    Raises:
        InputError: a run cannot be read, for example because it has not recorded anything yet.
    """
    folders = list(chosen.values())
    if len(folders) > 1:
        comparison = compare.of_folders(folders)
    else:  # a single run has no comparison, but it has an outcome
        comparison = compare.of_folders(folders * 2)
        comparison = compare.Comparison(comparison.title, comparison.entries[:1])
    for entry, name in zip(comparison.entries, chosen, strict=True):
        entry.setting = name if entry.setting == entry.label else entry.setting
        entry.label = name
    return comparison


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


def _row(entry: Entry) -> tuple[str, ...]:
    best, count, seconds = entry.best, entry.parameters, entry.last("seconds")
    return (
        entry.label,
        f"{entry.steps:,}",
        "–" if count is None else quantity(count),
        "–" if seconds is None else duration(seconds),
        loss(entry.last("train_eval_loss")),
        loss(entry.last("val_loss")),
        loss(best[0] if best else None),
        f"{best[1]:,}" if best else "–",
    )


def _diagnosis(entry: Entry, colour: str) -> str:
    assert entry.run is not None, "the page shows runs that it has read"
    known = entry.run.records, entry.run.config, entry.run.around
    findings = diagnose(*known)
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes(*known))
    states = {"running": _("in progress"), "stopped": _("not finished: it can be resumed")}
    state = states.get(entry.outcome) or answer.ended(entry.outcome)
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
        f'<p class="notice {"good" if well else "bad"}"><b>{escape(title)}</b><br>{escape(finding.evidence)}</p>'
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
    cards = ""
    for step in (steps[place] for place in places):
        head = _("step {step:,}", step=step)
        if step in losses:
            head = _("step {step:,} · loss {loss:.3f}", step=step, loss=losses[step])
        cards += f"<article><h3>{escape(head)}</h3><pre>{escape(written[step])}</pre></article>"
    title = escape(_("What it wrote: {run}", run=name))
    return f'<section class="samples"><h3>{dot(colour)} {title}</h3><div class="strip">{cards}</div></section>'
