"""Try many values: a grid, a random search, an experiment of the chapter; or rates, in a range test.

In:  the arguments of a command line.
Out: a report on the trials; a suggested learning rate.
"""

import sys
from pathlib import Path
from typing import get_args

from hfgpt import config as configs
from hfgpt.base import shell, threads
from hfgpt.base.command import Reader, at_least, one_of, whole
from hfgpt.base.errors import ConfigError
from hfgpt.base.language import _
from hfgpt.base.terminal import say
from hfgpt.sweep import definition, reading


def sweep(words: list[str]) -> int:
    """Run the sweep and print its report."""
    parser = Reader(
        "sweep",
        _("Try many values: a grid, a random search, or one of the chapter's experiments."),
        [
            ("recipes/experiments/batch_size.yaml", _("one of the chapter's experiments")),
            ("recipes/quick_experiment.yaml --batch_size 16,32,64 --learning_rate 1e-4,1e-3", _("every combination")),
            ("recipes/quick_experiment.yaml --seeds 3", _("how much the recipe's loss varies with the seed")),
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
        parameters={key: kind for key, kind in configs.PARAMETERS.items() if key != "out_dir"},
        called=configs.CALLED,
    )
    parser.argument("recipe", _("RECIPE"), _("a recipe, or an experiment's file"))
    parser.option("random", "N", _("N random combinations instead of all"), at_least(2))
    parser.option(
        "seeds",
        "N",
        _("N seeds of every combination, and what they can tell apart; of the recipe, if nothing is swept"),
        at_least(2),
    )
    parser.option(
        "equal",
        _("WHAT"),
        _("what every trial gets the same of: steps, tokens, or time (then also --max_time=10m)"),
        one_of(*get_args(definition.Equal)),
    )
    parser.flag(
        "prune",
        _(
            "stop a trial early if its loss is above the median of the others at the same share; from trial {n} on",
            n=definition.STARTUP_TRIALS + 1,
        ),
    )
    parser.flag("retry_failed", _("try again what failed (not what diverged)"))
    parser.option("out_dir", _("DIR"), _("the sweep's folder (out/sweep-<name>)"))
    arguments = parser.read(words)
    if arguments.faults:
        raise ConfigError(arguments.faults)
    options = {key: str(value) for key in ("random", "seeds", "equal", "out_dir") if (value := getattr(arguments, key))}
    options |= {key: "true" for key in ("retry_failed", "prune") if getattr(arguments, key)}
    sweep = reading.define(arguments.recipe, arguments.overrides, options)
    from hfgpt.sweep import training, trials

    try:
        report = trials.run(sweep, ["-m", "hfgpt", "train"])
    except training.Stopped as stopped:
        say("\n" + _("stopped; the same command resumes from here"), sys.stderr)
        return 128 + stopped.number
    say(report.read_text(encoding="utf-8").split("\n![")[0])
    say(_("report and pictures: {path}", path=report))
    return 0


def lr_finder(words: list[str]) -> None:
    """Run the test and print its suggestion."""
    parser = Reader(
        "lr_finder",
        _("Suggest a learning rate for a recipe: a range test over about a hundred steps."),
        [
            ("recipes/quick_experiment.yaml", _("the rate, and its curve in lr_finder.png")),
            (
                "recipes/quick_experiment.yaml --steps=200 --picture=lr.png --batch_size=32",
                _("in smaller leaps, with another batch"),
            ),
        ],
        _(
            "The rate rises from 1e-6 to 1, and the loss falls, then turns up. Suggested is where it falls most "
            "steeply, or a tenth of where it turns up, whichever is lower; the answer says which. Every other "
            "--key=value changes the recipe."
        ),
        parameters=configs.PARAMETERS,
        called=configs.CALLED,
    )
    parser.argument("recipe", _("RECIPE"), _("a YAML file, a recipe's name or a run folder"))
    parser.option("steps", "N", _("steps of the test, at least 30 (100)"), whole, 100)
    parser.option("picture", _("FILE"), _("where the curve goes (lr_finder.png)"), Path, Path("lr_finder.png"))
    arguments = parser.read(words)
    config = configs.load(arguments.recipe, arguments.overrides, arguments.faults)
    threads.configure(config.cpu_threads)
    with shell.uncollected():
        from hfgpt.sweep import lr_finder
    result = lr_finder.find(config, arguments.picture, arguments.steps)
    rate = f"{result.suggestion:g}"
    say(_("suggested learning rate: {rate}  ({why})", rate=rate, why=result.reason))
    lr_finder.draw(result, arguments.picture)  # it may fail, on a full disk: the answer is known by then
    say(_("curve: {picture}    to use it: {option}", picture=arguments.picture, option=f"--learning_rate={rate}"))
