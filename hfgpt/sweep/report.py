"""What a sweep found: the comparison of its trials, in the order in which they were defined.

In:  a sweep and how its trials ended.
Out: ``report.md``, ``report.json`` and figures in its folder.
"""

from __future__ import annotations

from pathlib import Path

from hfgpt import config as configs
from hfgpt.runs import report
from hfgpt.runs.compare import Comparison, Entry
from hfgpt.runs.history import read_run
from hfgpt.sweep.definition import Sweep
from hfgpt.sweep.training import records


def write(sweep: Sweep, outcomes: dict[str, str]) -> Path:
    """Write the report; returns the path of report.md."""
    return report.write(comparison(sweep, outcomes), sweep.folder)


def comparison(sweep: Sweep, outcomes: dict[str, str]) -> Comparison:
    """The sweep's trials as entries of a comparison."""
    entries = []
    for trial in sweep.trials:
        folder = sweep.folder / "trials" / trial.name
        run = read_run(folder) if records(folder) else None
        outcome = outcomes.get(trial.name, "waiting")
        entries.append(Entry(trial.label, trial.values, run, outcome, setting=trial.setting))
    time_each = configs.build(sweep.recipe, "base").max_time
    held = {
        "steps": "the number of optimizer steps",
        "tokens": "the number of tokens trained",
        "time": f"the training time, {time_each} each, by a step measured beforehand",
    }
    return Comparison(sweep.name, entries, sweep.question, held[sweep.equal], sweep.grid)
