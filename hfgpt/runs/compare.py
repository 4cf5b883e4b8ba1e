"""The parts of a comparison: runs, grouped by setting into seeds.

In:  histories of runs, each with a label and the values in which they differ.
Out: a :class:`Comparison`, for conclusions (answer.py) and for a report (report.py).

A final loss is that of the last evaluation; the best one is that of the exported model.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hfgpt.base.command import typed
from hfgpt.base.errors import InputError
from hfgpt.base.language import _, plural
from hfgpt.base.terminal import visible
from hfgpt.config import Config, group_of, with_role
from hfgpt.config.yaml_text import in_short
from hfgpt.runs import diagnose, markdown, metrics, plots, segments
from hfgpt.runs.facts import Facts, Surroundings
from hfgpt.runs.history import History, read_run, trials_of
from hfgpt.runs.statistics import Ranking, rank

# Fields that follow another one by default (min_lr follows learning_rate): then they are not differences of their own.
DERIVED = {"min_lr", "warmup_iters", "lr_decay_iters"}
UNDISTURBED = ("finished", "running", "stopped")  # outcomes of a run whose last loss counts


@dataclass
class Entry:
    """One run in a comparison."""

    label: str  # the run's label, unique in the comparison
    values: dict[str, Any]  # the fields in which the runs differ, except the seed
    run: History | None  # None if nothing was recorded
    outcome: str = "finished"  # how it ended: 'finished', 'running', 'stopped', 'diverged', or in words
    kinds: list[str] = field(default_factory=list)
    sample: str = ""
    setting: str = ""  # the label that all seeds of a setting share; by default the run's own

    def __post_init__(self) -> None:
        self.label = " ".join(visible(self.label).split())
        self.setting = " ".join(visible(self.setting).split()) or self.label
        if self.run is not None:
            around = Surroundings(changes=self.run.around.changes)  # `outcome` says whether it was stopped
            self.kinds = [finding.kind for finding in diagnose.diagnose(self.run.records, self.run.config, around)]
            if "diverged" in self.kinds:
                self.outcome = "diverged"
            if self.outcome not in UNDISTURBED:
                self.kinds = [kind for kind in self.kinds if kind != "healthy"]

    def last(self, key: str) -> float | None:
        """Return the last value of a series; None if it is missing or not finite."""
        values = self.run.series(key)[1] if self.run else []
        return values[-1] if values and math.isfinite(values[-1]) else None

    @property
    def config(self) -> Config | None:
        """The run's recipe."""
        return self.run.config if self.run else None

    @property
    def steps(self) -> int:
        """The number of optimizer steps done."""
        return int(self.run.records[-1]["step"]) if self.run else 0

    @property
    def tokens(self) -> int | None:
        return self.config.tokens_by(self.steps) if self.config else None

    @property
    def final(self) -> float | None:
        """The last validation loss; None if the run failed or diverged."""
        return self.last("val_loss") if self.outcome in UNDISTURBED else None

    @property
    def best(self) -> tuple[float, int] | None:
        """The validation loss of the exported model, the run's lowest, and its step."""
        best = metrics.best(self.run.records) if self.run else None
        return (best["val_loss"], int(best["step"])) if best else None

    @property
    def tokens_per_second(self) -> float | None:
        """The median speed in tokens per second."""
        speeds = self.run.series("tokens_per_second")[1] if self.run else []
        finite = [speed for speed in speeds if math.isfinite(speed)]
        return statistics.median(finite) if finite else None

    @property
    def parameters(self) -> int | None:
        """The model's parameter count."""
        return plots.parameters(self.run) if self.run else None

    def value(self, key: str) -> Any:
        """Return a value in which the runs differ, or 'parameters'."""
        return self.parameters if key == "parameters" else self.values.get(key)


@dataclass(frozen=True)
class Setting:
    """The runs of one setting, which differ only in their seeds."""

    label: str
    entries: list[Entry]

    @property
    def by_seed(self) -> dict[int, list[Entry]]:
        """The runs by seed; a run without a recipe has a seed of its own. Runs of one seed are repetitions."""
        groups: dict[int, list[Entry]] = {}
        for place, entry in enumerate(self.entries):
            groups.setdefault(entry.config.seed if entry.config else -1 - place, []).append(entry)
        return groups

    @property
    def drawn(self) -> list[Entry]:
        """One run of each seed: the first that has a final loss."""
        return [next((e for e in same if e.final is not None), same[0]) for same in self.by_seed.values()]

    @property
    def finals(self) -> dict[int, float]:
        """The final losses by seed, each the mean of its repetitions."""
        means = {seed: mean([entry.final for entry in entries]) for seed, entries in self.by_seed.items()}
        return {seed: loss for seed, loss in means.items() if loss is not None}

    @property
    def final(self) -> float | None:
        return mean(list(self.finals.values()))

    def value(self, key: str) -> Any:
        """Return a value of the setting, or 'parameters'."""
        return self.entries[0].value(key)


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the known values."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


@dataclass(frozen=True)
class Comparison:
    """Runs to compare, with a title ("": it then gives their number), the question, and what was held constant.

    A sweep adds its own `remarks` (sentences), `sections` (lines of Markdown) and `data` (for report.json).
    """

    title: str
    entries: list[Entry]
    question: str = ""
    equal: str = ""
    joined: bool = True  # whether the values form a grid, so that lines between runs are meaningful
    remarks: Sequence[str] = ()
    sections: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def heading(self) -> str:
        """The title, in the current language."""
        return self.title or plural("{n} run compared", "{n} runs compared", len(self.entries))

    @cached_property
    def keys(self) -> list[str]:
        """The fields in which the settings differ."""
        every = list(dict.fromkeys(key for entry in self.entries for key in entry.values))
        return [key for key in every if len({repr(entry.values.get(key)) for entry in self.entries}) > 1]

    @cached_property
    def settings(self) -> list[Setting]:
        """The runs grouped by setting, in order."""
        groups: dict[str, list[Entry]] = {}
        for entry in self.entries:
            groups.setdefault(entry.setting, []).append(entry)
        return [Setting(label, entries) for label, entries in groups.items()]

    @cached_property
    def ended(self) -> list[Setting]:
        """The settings that have a final loss, best first."""
        ended = [setting for setting in self.settings if setting.final is not None]
        return sorted(ended, key=lambda setting: setting.final or math.inf)

    @cached_property
    def ranking(self) -> Ranking | None:
        """The settings ranked by mean loss; None if each has a single seed, or all are the same models."""
        if self.same_models or not any(len(setting.finals) > 1 for setting in self.ended):
            return None
        return rank({setting.label: setting.finals for setting in self.ended}, paired=self.same_order)

    @property
    def same_order(self) -> bool:
        """Whether equal seeds mean equal data order in all runs."""
        recipes, decisive = [entry.config for entry in self.entries], with_role("text", "order")
        orders = {(recipe.global_batch, *(getattr(recipe, key) for key in decisive)) for recipe in recipes if recipe}
        return len(orders) == 1 and None not in recipes

    @property
    def measured_on(self) -> list[str]:
        """The fields in which the runs differ and which decide on which tokens their losses are measured."""
        recipes = [entry.config for entry in self.entries if entry.config]
        deciding = (*with_role("text"), "eval_iters")
        return [key for key in deciding if len({repr(getattr(recipe, key)) for recipe in recipes}) > 1]

    @property
    def same_models(self) -> bool:
        """Whether the settings differ only in the number of tokens that losses are measured on."""
        return self.keys == ["eval_iters"]

    @property
    def axes(self) -> list[str]:
        """The values to plot final losses against: 'parameters' if the model's shape differs, otherwise each field."""
        shape = [key for key in self.keys if group_of(key) == "model"]
        if len(shape) > 1 and shape == self.keys:
            return ["parameters"]
        return [key for key in self.keys if all(key in entry.values for entry in self.entries)]


def of_folders(sources: Sequence[str | Path]) -> Comparison:
    """Compare the runs of some folders, labelled by the recipe fields in which they differ, otherwise by name.

    A sweep's folder stands for its trials.

    Raises:
        InputError: there are fewer than two runs, or one cannot be read.
    """
    sources = [folder for source in sources for folder in trials_of(Path(source)) or [Path(source)]]
    if len(sources) < 2:
        raise InputError("compare: needs at least two runs → {command} …", command=typed("compare", "OUT1", "OUT2"))
    runs = [read_run(source) for source in sources]
    dumps = [_readable(run.config) if run.config else {} for run in runs]
    differing = [key for key in Config.model_fields if len({repr(dump.get(key)) for dump in dumps}) > 1]
    keys = _deciding(differing, dumps)
    settings = [[dump.get(key) for key in keys] for dump in dumps]
    seeds = "seed" in differing and all(dumps) and any(settings.count(own) > 1 for own in settings)
    few = len(keys) <= 2  # if more fields differ, the runs say nothing about any single one
    entries = []
    for run, dump in zip(runs, dumps, strict=True):
        values = {key: dump.get(key) for key in keys} if few else {}
        setting = ", ".join(f"{key}={value}" for key, value in values.items() if key in dump)
        label = ", ".join(filter(None, (setting, f"seed={dump['seed']}"))) if seeds and few else setting or run.name
        facts = Facts(run.records, run.config, run.around)
        outcome = "stopped" if facts.abandoned else "finished" if facts.finished else "running"
        shared = (setting or _("all runs")) if seeds and few else ""
        entries.append(Entry(label, values, run, outcome, setting=shared))
    return Comparison("", _apart(entries), remarks=_changes(entries), sections=_measured(entries))


def _readable(config: Config) -> dict[str, Any]:
    """Return the fields that can differ between runs; a mix as its corpora and weights, without JSON."""
    clock = segments.of_the_clock(config)  # two seeds of one time_budget are of one setting
    return {**config.model_dump(exclude={*with_role("output"), *clock}), "dataset": in_short(config.dataset)}


def _deciding(differing: Sequence[str], dumps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the fields that tell settings apart; of the derived ones those that the other fields do not explain."""
    keys = [key for key in differing if key not in DERIVED | {"seed"}]
    if not keys:
        return [key for key in differing if key != "seed"]
    for key in (key for key in differing if key in DERIVED):
        others = {repr([dump.get(other) for other in keys]) for dump in dumps}
        if len({repr([dump.get(other) for other in [*keys, key]]) for dump in dumps}) > len(others):
            keys.append(key)
    return keys


def _changes(entries: Sequence[Entry]) -> list[str]:
    """Say which runs changed their recipe on the way: they do not represent a single recipe."""
    sentences = []
    for entry in entries:
        parts = segments.read(entry.run.path.parent) if entry.run else []
        for before, now in itertools.pairwise(parts):
            if values := segments.in_words(before.recipe, now.recipe):
                sentences.append(
                    _("{run}: from step {step:,} on with {values}.", run=entry.label, step=now.step, values=values)
                )
    return sentences


def _measured(entries: Sequence[Entry]) -> list[str]:
    """Return a Markdown table of the tasks and single validation texts; empty if nothing was measured."""
    figures = [metrics.apart(entry.run.records) if entry.run else {} for entry in entries]
    keys = list(dict.fromkeys(key for measured in figures for key in measured))
    if not keys:
        return []
    lines = ["", f"## {_('Tasks and other texts')}", ""]
    lines += [f"| {_('run')} | {' | '.join(markdown.code(key) for key in keys)} |", "|:--" + "|--:" * len(keys) + "|"]
    for entry, measured in zip(entries, figures, strict=True):
        cells = [f"{measured[key]:.4f}" if key in measured else "" for key in keys]
        lines.append(f"| {markdown.cell(entry.label)} | {' | '.join(cells)} |")
    return lines


def _apart(entries: list[Entry]) -> list[Entry]:
    """Number runs with the same label, so that figures and tables tell them apart."""
    for label in {entry.label for entry in entries}:
        same = [entry for entry in entries if entry.label == label]
        for number, entry in enumerate(same, 1):
            if len(same) > 1:
                own = entry.setting == entry.label
                entry.label = f"{label} ({number})"
                entry.setting = entry.label if own else entry.setting
    return entries
