"""Compare finished runs: a table, pictures, and the effect of their differing values on the loss."""

from __future__ import annotations

import re

from hfgpt.base.command import Reader, typed
from hfgpt.base.language import _
from hfgpt.base.terminal import say
from hfgpt.runs import compare, report


def main(words: list[str]) -> None:
    """Write the report and print it."""
    parser = Reader(
        "compare",
        _("Compare finished runs: a table, pictures, and the effect of their differing values on the loss."),
        [
            ("out/batch16 out/batch32 out/batch64", _("report.md, report.json and PNG files in out/compare")),
            ("out/a out/b --out_dir=out/a_or_b", _("... in another folder")),
        ],
        _("Run folders, a Trainer's trainer_state.json and nanoGPT's printed logs can be mixed."),
    )
    parser.argument("runs", _("OUT"), _("run folders (or trainer_state.json, nanoGPT logs)"), many=True)
    parser.option("out_dir", _("DIR"), _("where the report goes (out/compare)"), default="out/compare")
    parser.flag("no_samples", _("leave out what each model writes"))
    arguments = parser.read(words)
    comparison = compare.of_folders(arguments.runs)
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
