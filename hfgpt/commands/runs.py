"""Read runs: diagnose one, or compare several.

In:  the arguments of a command line.
Out: what happened and what to change; a table, pictures, and the effect of differing values on the loss.
"""

import re
from itertools import count

from hfgpt.base.command import Reader, typed
from hfgpt.base.language import _
from hfgpt.base.terminal import json_text, say
from hfgpt.runs import diagnose as diagnosis
from hfgpt.runs import horizon
from hfgpt.runs.facts import Facts
from hfgpt.runs.history import read_run


def diagnose(words: list[str]) -> None:
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
        print(json_text(diagnosis.as_json(run)))
        return
    step = f"{run.records[-1]['step']:,}"
    if run.config and not horizon.undecided(run.config, run.records):
        say(_("{name}: {step} of {steps} steps", name=run.name, step=step, steps=f"{run.config.max_iters:,}") + "\n")
    else:
        say(_("{name}: {step} steps", name=run.name, step=step) + "\n")
    say(diagnosis.summary(run.records, run.config, run.around))
    if run.config is None or run.path.name != "metrics.jsonl":
        return
    folder = run.path.parent
    if folder.name in ("", ".."):  # typed inside the folder: a new one lies beside it
        folder = folder.resolve()
    if Facts(run.records, run.config, run.around).abandoned:
        say("\n" + _("To continue it: {command}", command=typed("train", folder, "--resume")))
    if override := diagnosis.suggestion(run.records, run.config):
        new = next(path for n in count(2) if not (path := folder.with_name(f"{folder.name}-{n}")).exists())
        words = [*override.split(), f"--out_dir={new}"]
        say("\n" + _("To try this first: {command}", command=typed("train", folder, *words)))
    elif (folder / "model.safetensors").is_file():
        say("\n" + _("Next: {command}", command=typed("sample", folder)))


def compare(words: list[str]) -> None:
    """Write the report and print it."""
    parser = Reader(
        "compare",
        _("Compare finished runs: a table, pictures, and the effect of their differing values on the loss."),
        [
            ("out/batch16 out/batch32 out/batch64", _("report.md, report.json and PNG files in out/compare")),
            ("out/a out/b --out_dir=out/a_or_b", _("... in another folder")),
            ("out/sweep-quick_experiment-dropout", _("the trials of a sweep")),
        ],
        _("Run folders, a Trainer's trainer_state.json and nanoGPT's printed logs can be mixed."),
    )
    parser.argument(
        "runs", _("OUT"), _("run folders (or a sweep's folder, trainer_state.json, nanoGPT logs)"), many=True
    )
    parser.option("out_dir", _("DIR"), _("where the report goes (out/compare)"), default="out/compare")
    parser.flag("no_samples", _("leave out what each model writes"))
    arguments = parser.read(words)
    from hfgpt.runs import report  # loads matplotlib, which would delay a diagnosis
    from hfgpt.runs.compare import of_folders  # the same

    comparison = of_folders(arguments.runs)
    path = report.write(comparison, arguments.out_dir, samples=not arguments.no_samples)
    say(re.sub(r"\n\n!\[.*", "", path.read_text(encoding="utf-8")))
    say(_("pictures and data are in {folder}/", folder=arguments.out_dir))
    models = [
        (entry.best[0], folder)
        for entry in comparison.entries
        if entry.best and entry.run and (folder := entry.run.path.parent / "model.safetensors").is_file()
    ]
    if models:
        say(_("Next: {command}", command=typed("sample", str(min(models)[1].parent))))
