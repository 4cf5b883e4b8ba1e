"""Push a run to the Hugging Face Hub."""

from __future__ import annotations

from hfgpt.base.command import Reader
from hfgpt.base.language import _
from hfgpt.base.terminal import say
from hfgpt.share.hub import push


def reader() -> Reader:
    """What the command takes."""
    made = Reader(
        "push",
        _("Push a run to the Hugging Face Hub."),
        [
            ("out/standard user/name", _("the model and its card")),
            ("out/standard user/name --include_checkpoints", _("... so that another machine can go on with the run")),
        ],
    )
    made.argument("folder", _("OUT"), _("run folder"))
    made.argument("repo_id", _("NAME"), _("user/name; made if it does not exist"))
    made.flag("private", _("make the repository private"))
    made.option("revision", _("BRANCH"), _("branch to push to (the main one)"))
    made.flag("include_checkpoints", _("push the checkpoints too"))
    made.flag("overwrite", _("replace another model that has this name"))
    made.option("license", _("NAME"), _("licence in the card, where there is no card yet (mit)"), default="mit")
    return made


def main(words: list[str]) -> None:
    """Push, and print the address."""
    arguments = reader().read(words)
    address = push(
        arguments.folder,
        arguments.repo_id,
        private=arguments.private or None,  # not asked for: as the account is set, not 'public'
        revision=arguments.revision,
        include_checkpoints=arguments.include_checkpoints,
        overwrite=arguments.overwrite,
        license=arguments.license,
    )
    say(address)
