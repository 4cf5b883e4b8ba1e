"""Try many values: a grid, a random search, or one of the chapter's experiments."""

from __future__ import annotations

import sys
from typing import get_args

from hfgpt import config as configs
from hfgpt.base.command import Reader, at_least, one_of
from hfgpt.base.errors import ConfigError
from hfgpt.base.language import _
from hfgpt.base.terminal import say
from hfgpt.sweep import definition, reading


def main(words: list[str]) -> int:
    """Run the sweep and print its report."""
    parser = Reader(
        "sweep",
        _("Try many values: a grid, a random search, or one of the chapter's experiments."),
        [
            ("recipes/experiments/batch_size.yaml", _("one of the chapter's experiments")),
            ("recipes/quick_experiment.yaml --batch_size 16,32,64 --learning_rate 1e-4,1e-3", _("every combination")),
            (
                "recipes/quick_experiment.yaml --random 20 --learning_rate 1e-4..1e-2 --dropout 0,0.1,0.2",
                _("20 combinations, drawn at random"),
            ),
        ],
        _(
            "Values with commas are tried one by one, every combination of them; a range low..high is searched at "
            "random (logarithmically where it spans a decade). Every other --key=value holds for all trials.\n\n"
            "The same command resumes after an interruption, and shares the work when it is run in several terminals. "
            "It ends with report.md, report.json and pictures in the sweep's folder; "
            "`optuna-dashboard DIR/journal.log` shows it while it runs."
        ),
        parameters={key: flag for key, flag in configs.PARAMETERS.items() if key != "out_dir"},
        called=configs.CALLED,
    )
    parser.argument("recipe", _("RECIPE"), _("a recipe, or an experiment's file"))
    parser.option("random", "N", _("N random combinations instead of all"), at_least(2))
    parser.option("seeds", "N", _("N seeds of every combination, and what they can tell apart"), at_least(2))
    parser.option(
        "equal",
        _("WHAT"),
        _("what every trial gets the same of: steps, tokens, or time (then also --max_time=10m)"),
        one_of(*get_args(definition.Equal)),
    )
    parser.flag("prune", _("stop a trial early if its loss is above the median of the others at the same share"))
    parser.flag("retry_failed", _("try again what failed (not what diverged)"))
    parser.option("out_dir", _("DIR"), _("the sweep's folder (out/sweep-<name>)"))
    arguments = parser.read(words)
    if arguments.faults:
        raise ConfigError(arguments.faults)
    options = {key: str(value) for key in ("random", "seeds", "equal", "out_dir") if (value := getattr(arguments, key))}
    options |= {key: "true" for key in ("retry_failed", "prune") if getattr(arguments, key)}
    sweep = reading.define(arguments.recipe, arguments.overrides, options)
    from hfgpt.sweep import trials

    try:
        report = trials.run(sweep, ["-m", "hfgpt", "train"])
    except trials.Stopped as stopped:
        say("\n" + _("stopped; the same command resumes from here"), sys.stderr)
        return 128 + stopped.number
    say(report.read_text(encoding="utf-8").split("\n![")[0])
    say(_("report and pictures: {path}", path=report))
    return 0
