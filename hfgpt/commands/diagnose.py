"""Diagnose a run: what is wrong, since when, the evidence, and what to change."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from hfgpt.base.command import Reader, typed
from hfgpt.base.language import _
from hfgpt.base.terminal import json_text, say
from hfgpt.runs import diagnose
from hfgpt.runs.history import read_run


def unused(folder: Path) -> Path:
    """Return the first of NAME-2, NAME-3 … that does not exist beside a folder."""
    return next(path for n in count(2) if not (path := folder.with_name(f"{folder.name}-{n}")).exists())


def main(words: list[str]) -> None:
    """Print the diagnosis."""
    parser = Reader(
        "diagnose",
        _(
            "Say what happened in a run: what is wrong, since when, how it shows, and what to change, with the values "
            "to type."
        ),
        [
            ("out/standard", _("a run folder, also of a run in progress")),
            ("results/checkpoint-500", _("a Trainer's folder, or its trainer_state.json")),
            ("train.log", _("what nanoGPT printed")),
            ("out/standard --json", _("the same as data: findings, notes")),
        ],
    )
    parser.argument("run", _("OUT"), _("run folder, metrics.jsonl, trainer_state.json or nanoGPT log"))
    parser.flag("json", _("print JSON"))
    arguments = parser.read(words)
    run = read_run(arguments.run)
    if arguments.json:
        print(json_text(diagnose.as_json(run)))
        return
    step = f"{run.records[-1]['step']:,}"
    if run.config:
        say(_("{name}: {step} of {steps} steps", name=run.name, step=step, steps=f"{run.config.max_iters:,}") + "\n")
    else:
        say(_("{name}: {step} steps", name=run.name, step=step) + "\n")
    say(diagnose.summary(run.records, run.config))
    if run.config is None or run.path.name != "metrics.jsonl":
        return
    folder = run.path.parent
    if override := diagnose.suggestion(run.records, run.config):
        words = [*override.split(), f"--out_dir={unused(folder)}"]
        say("\n" + _("To try this first: {command}", command=typed("train", folder, *words)))
    elif (folder / "model.safetensors").is_file():
        say("\n" + _("Next: {command}", command=typed("sample", folder)))
