"""The tab for comparing runs: curves, diagnoses, and the samples of each.

In:  the runs of the folder.
Out: HTML, redrawn when a run has recorded something.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from hfgpt.base.command import typed
from hfgpt.base.errors import InputError
from hfgpt.base.language import N_, _, current
from hfgpt.playground import runs_view
from hfgpt.playground.folders import WEIGHTS, compared, find
from hfgpt.playground.pieces import message
from hfgpt.playground.speech import Labels, spoken
from hfgpt.runs import answer, metrics
from hfgpt.runs.comparison_plots import By
from hfgpt.runs.style import RUNS

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
                lambda: {
                    "label": _("Runs"),
                    "info": _("Up to six, side by side. A run in progress is followed."),
                },
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

    @spoken
    def watch(self, names: list[str], by: By, seen: str, model: str | None) -> list[Any]:
        """Show the present runs and models; nothing if nothing has changed since `seen`.

        Without a choice the newest run is shown, unless it was the user who took the choice back.
        """
        return self._answer(names, by, seen, model, cleared=not names and seen.startswith(CLEARED))

    @spoken
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
    parts = [runs_view.runs(comparison, sentences, by)]
    for (name, path), entry, colour in zip(chosen.items(), comparison.entries, RUNS, strict=False):
        written = metrics.read_samples(path / metrics.SAMPLES) if (path / metrics.SAMPLES).exists() else {}
        steps, losses = entry.run.series("val_loss") if entry.run else ([], [])
        parts.append(runs_view.samples(name, colour, written, dict(zip(map(int, steps), losses, strict=True))))
    return "".join(parts)
