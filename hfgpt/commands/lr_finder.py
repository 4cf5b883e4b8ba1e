"""Suggest a learning rate for a recipe."""

from __future__ import annotations

from pathlib import Path

from hfgpt import config as configs
from hfgpt.base import loading, threads
from hfgpt.base.command import Reader, whole
from hfgpt.base.language import _
from hfgpt.base.terminal import say


def main(words: list[str]) -> None:
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
    with loading.uncollected():
        from hfgpt.sweep import lr_finder
    result = lr_finder.find(config, arguments.picture, arguments.steps)
    rate = f"{result.suggestion:g}"
    say(_("suggested learning rate: {rate}  ({why})", rate=rate, why=result.reason))
    lr_finder.draw(result, arguments.picture)  # it may fail, on a full disk: the answer is known by then
    say(_("curve: {picture}    to use it: {option}", picture=arguments.picture, option=f"--learning_rate={rate}"))
