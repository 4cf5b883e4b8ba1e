"""Write a run's model as a checkpoint that nanoGPT's sample.py loads."""

from __future__ import annotations

from hfgpt.base.command import Reader
from hfgpt.base.language import _
from hfgpt.base.terminal import say
from hfgpt.share.nanogpt import export_checkpoint


def reader() -> Reader:
    """What the command takes."""
    made = Reader(
        "export_nanogpt",
        _("Write a run's model as a checkpoint that nanoGPT's sample.py loads."),
        [("out/standard nanoGPT/out-mine", _("then, in nanoGPT: python sample.py --out_dir=out-mine --device=cpu"))],
    )
    made.argument("folder", _("OUT"), _("run folder"))
    made.argument("target", _("DIR"), _("folder for ckpt.pt, and for meta.pkl of a character-level model"))
    return made


def main(words: list[str]) -> None:
    """Export, and print what is to be known of the result."""
    arguments = reader().read(words)
    notes = export_checkpoint(arguments.folder, arguments.target)
    say(_("{path} is written.", path=f"{arguments.target}/ckpt.pt"))
    for note in notes:
        say(_("note: {note}", note=note))
