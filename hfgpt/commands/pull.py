"""Bring a model from the Hugging Face Hub here, as a run folder."""

from __future__ import annotations

from hfgpt.base.command import Reader, typed
from hfgpt.base.language import _
from hfgpt.base.terminal import say
from hfgpt.share.hub import pull


def reader() -> Reader:
    """What the command takes."""
    made = Reader(
        "pull",
        _("Bring a model from the Hugging Face Hub here, as a run folder."),
        [("user/name out/name", _("all of it, with the checkpoints if they were pushed"))],
    )
    made.argument("repo_id", _("NAME"), _("user/name of the repository"))
    made.argument("folder", _("DIR"), _("folder to make"))
    made.option("revision", _("REVISION"), _("branch, tag or commit (the main branch)"))
    return made


def main(words: list[str]) -> None:
    """Pull, and say how to go on."""
    arguments = reader().read(words)
    folder = pull(arguments.repo_id, arguments.folder, revision=arguments.revision)
    say(_("{folder} is here. Next: {command}", folder=folder, command=typed("sample", folder)))
    if any(folder.glob("checkpoint-*")):
        say(_("To go on training: {command}", command=typed("train", folder, "--resume", f"--out_dir={folder}")))
