"""Train a model from a recipe."""

from __future__ import annotations

import sys

from hfgpt import config as configs
from hfgpt.base import loading, threads
from hfgpt.base.command import Reader
from hfgpt.base.language import _
from hfgpt.base.launch import launch
from hfgpt.base.machine import process_began
from hfgpt.base.terminal import say


def reader() -> Reader:
    """What the command takes."""
    made = Reader(
        "train",
        _("Train a GPT-2-style model from a recipe."),
        [
            ("recipes/standard.yaml", _("train the recipe; the run folder is out/standard")),
            ("recipes/standard.yaml --max_iters=1000 --no_compile", _("the same with other values")),
            ("out/standard --resume", _("go on with a run, from its folder")),
        ],
        configs.help_text(),
        parameters=configs.PARAMETERS,
    )
    made.argument(
        "recipe",
        _("RECIPE"),
        _("a YAML file, the name of a recipe that comes with hfgpt, or a run folder, whose own recipe is then read"),
        required=False,
    )
    made.flag("resume", _("go on from the newest valid checkpoint, or begin where there is none yet"))
    made.flag("overwrite", _("replace the run that out_dir holds"))
    made.flag("print_config", _("print the resolved recipe and stop"))
    return made


def main(words: list[str]) -> int:
    """Train, or print the resolved recipe."""
    arguments = reader().read(words)
    config = configs.load(arguments.recipe, arguments.overrides, arguments.faults)
    if arguments.print_config:
        print(configs.to_yaml(config))
        return 0
    if launch().rank == 0:
        for remark in configs.remarks(arguments.recipe, arguments.overrides, config):
            say(_("note: {note}", note=remark), sys.stderr)
    threads.configure(config.cpu_threads)  # before torch is loaded
    with loading.uncollected():
        from hfgpt.train.loop import train
    return train(config, resume=arguments.resume, overwrite=arguments.overwrite, began=process_began())
