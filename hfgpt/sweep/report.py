"""The report of a sweep: the comparison of its trials, each parameter by itself, and where to search next.

In:  a sweep and the outcomes of its trials.
Out: ``report.md``, ``report.json`` and figures in its folder.

Each parameter by itself, and the best at the edge of the values tried: Google's Tuning Playbook, "Isolation plots" and
"Identifying bad search space boundaries" (Godbole et al., 2023).
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hfgpt import config as configs
from hfgpt.base.errors import ConfigError, InputError
from hfgpt.base.language import N_, _, listed, plural
from hfgpt.base.units import is_number, short
from hfgpt.config import Config
from hfgpt.runs import markdown, report
from hfgpt.runs.compare import Comparison, Entry, Setting
from hfgpt.runs.history import read_run
from hfgpt.sweep.definition import Sweep, Trial
from hfgpt.sweep.training import records

HELD = {
    "steps": N_("the number of optimizer steps"),
    "tokens": N_("the number of tokens trained"),
    "time": N_("the training time, {time} each, by a step measured beforehand"),
}


def write(sweep: Sweep, outcomes: Mapping[str, str]) -> Path:
    """Write the report; return the path of report.md."""
    return report.write(comparison(sweep, outcomes), sweep.folder)


def comparison(sweep: Sweep, outcomes: Mapping[str, str]) -> Comparison:
    """Return the comparison of the sweep's trials, with a sweep's additional results."""
    entries = []
    for trial in sweep.trials:
        folder = sweep.folder / "trials" / trial.name
        run = read_run(folder) if records(folder) else None
        outcome = outcomes.get(trial.name, "waiting")
        entries.append(Entry(trial.label, trial.values, run, outcome, setting=trial.setting))
    compared = Comparison(sweep.name, entries, sweep.question, _held(sweep), sweep.grid)
    by_value = isolation(compared)
    edges = {key: values for key in by_value if (values := beyond(sweep, compared, key))}
    remarks = [
        _("The best {key}, {value}, lies at the edge of the values tried: try {next} too.", key=key,
          value=short(compared.ended[0].value(key)), next=listed(map(short, values)))
        for key, values in edges.items()
    ]  # fmt: skip
    remarks += _pruned(sweep, outcomes)
    data = {"isolation": by_value, "try_next": edges}
    return replace(compared, remarks=remarks, sections=_isolation_tables(by_value), data=data)


def _held(sweep: Sweep) -> str:
    """Say what is held equal between trials; "" where their steps differ, or the clock decides them."""
    if sweep.equal == "steps":
        configs_of = [sweep.config(trial) for trial in sweep.trials]
        same = len({config.max_iters for config in configs_of}) == 1
        return _(HELD["steps"]) if same and not any(config.time_budget for config in configs_of) else ""
    return _(HELD[sweep.equal], time=sweep.common.get("max_time"))


def isolation(comparison: Comparison) -> dict[str, list[dict[str, Any]]]:
    """Return, per swept field, each value with its lowest mean loss over all other fields, and that loss's setting."""
    tables = {}
    for key in comparison.keys:
        best: dict[Any, Setting] = {}
        for setting in comparison.ended:  # best first
            if key in setting.entries[0].values:
                best.setdefault(setting.value(key), setting)
        if len(best) > 1:
            rows = [{"value": value, "loss": winner.final, "setting": winner.label} for value, winner in best.items()]
            tables[key] = sorted(rows, key=_order)
    return tables


def _order(row: Mapping[str, Any]) -> tuple[bool, Any]:
    value = row["value"]
    return not is_number(value), value if is_number(value) else str(value)


def _isolation_tables(by_value: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Return the tables in Markdown; nothing for a sweep of one field, since its comparison shows the same."""
    if len(by_value) < 2:
        return []
    lines = ["", "## " + _("Each parameter by itself: the best over all values of the others"), ""]
    for key, rows in by_value.items():
        heads = (key, _("lowest loss"), _("reached with"))
        lines += [f"| {' | '.join(heads)} |", "|:--|--:|:--|"]
        lines += [
            f"| {markdown.cell(short(row['value']))} | {row['loss']:.4f} | {markdown.cell(row['setting'])} |"
            for row in rows
        ]
        lines.append("")
    return lines[:-1]


def beyond(sweep: Sweep, comparison: Comparison, key: str) -> list[float | int]:
    """Return two valid values past the edge if the best setting is there, spaced like those tried."""
    values = sorted({trial.values[key] for trial in sweep.trials if is_number(trial.values.get(key))})
    best = comparison.ended[0].value(key) if comparison.ended else None
    if len(values) < 2 or best not in (values[0], values[-1]):
        return []
    inner = values[1] if best == values[0] else values[-2]
    trial = next(trial for trial in sweep.trials if trial.setting == comparison.ended[0].label)
    if values[0] > 0:
        ratio = best / inner
        proposed = [best * math.sqrt(ratio), best * ratio]
    else:
        proposed = [best + (best - inner) / 2, best + (best - inner)]
    whole = all(isinstance(value, int) for value in values)
    rounded = [round(value) if whole else float(f"{value:.2g}") for value in proposed]
    return [value for value in dict.fromkeys(rounded) if value not in values and _is_valid(sweep, trial, key, value)]


def _is_valid(sweep: Sweep, trial: Trial, key: str, value: float | int) -> bool:
    try:
        sweep.config(replace(trial, values={**trial.values, key: value}))
    except ConfigError:
        return False
    return True


def _pruned(sweep: Sweep, outcomes: Mapping[str, str]) -> list[str]:
    stopped = [trial for trial in sweep.trials if outcomes.get(trial.name, "").startswith("pruned")]
    if not stopped:
        return []
    every = {trial.name: _steps(sweep, trial) for trial in sweep.trials}
    left_out = 0
    for trial in stopped:
        written = records(sweep.folder / "trials" / trial.name)
        left_out += every[trial.name] - (int(written[-1]["step"]) if written else 0)
    share = left_out / sum(every.values())
    return [
        plural("{n} trial was stopped early, which left out {share:.0%} of all steps.",
               "{n} trials were stopped early, which left out {share:.0%} of all steps.", len(stopped), share=share)
    ]  # fmt: skip


def _steps(sweep: Sweep, trial: Trial) -> int:
    """Return the number of steps that a trial's recipe asked for."""
    recipe = sweep.folder / "recipes" / f"{trial.name}.yaml"
    try:
        config: Config = configs.load(str(recipe))
    except InputError:
        config = sweep.config(trial)
    return config.max_iters
