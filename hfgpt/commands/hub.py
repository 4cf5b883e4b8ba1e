"""Exchange with the Hugging Face Hub: push, pull.

In:  the arguments of a command line.
Out: the URL of a repository; or a run folder.
"""

from hfgpt.base.command import Reader, typed
from hfgpt.base.language import _
from hfgpt.base.terminal import say, say_reading


def push(words: list[str]) -> None:
    """Push a run, and print the URL."""
    reader = Reader(
        "push",
        _("Push a run to the Hugging Face Hub."),
        [
            ("out/standard user/name", _("the model and its card")),
            ("out/standard user/name --include_checkpoints", _("... so that another machine can resume the run")),
        ],
    )
    reader.argument("folder", _("OUT"), _("run folder"))
    reader.argument("repo_id", _("NAME"), _("user/name; created if it does not exist"))
    reader.flag("private", _("make the repository private"))
    reader.option("revision", _("BRANCH"), _("branch to push to (the main one)"))
    reader.flag("include_checkpoints", _("push the checkpoints too"))
    reader.flag("overwrite", _("replace another model that has this name"))
    reader.option("license", _("NAME"), _("licence that the card is to state (the one it states)"))
    arguments = reader.read(words)
    from hfgpt.share import hub

    address = hub.push(
        arguments.folder,
        arguments.repo_id,
        private=arguments.private or None,  # without the option: the account's setting, not 'public'
        revision=arguments.revision,
        include_checkpoints=arguments.include_checkpoints,
        overwrite=arguments.overwrite,
        license=arguments.license,
    )
    say(address)


def pull(words: list[str]) -> None:
    """Download a model, and say what to do next."""
    reader = Reader(
        "pull",
        _("Download a model from the Hugging Face Hub as a run folder."),
        [("user/name out/name", _("all of it, with the checkpoints if they were pushed"))],
    )
    reader.argument("repo_id", _("NAME"), _("user/name of the repository"))
    reader.argument("folder", _("DIR"), _("folder to make"))
    reader.option("revision", _("REVISION"), _("branch, tag or commit (the main branch)"))
    arguments = reader.read(words)
    from hfgpt.share import hub

    say_reading(arguments.repo_id)
    folder = hub.pull(arguments.repo_id, arguments.folder, revision=arguments.revision)
    say(_("{folder} is here. Next: {command}", folder=folder, command=typed("sample", folder)))
    if any(folder.glob("checkpoint-*")):
        say(_("To continue training: {command}", command=typed("train", folder, "--resume", f"--out_dir={folder}")))
