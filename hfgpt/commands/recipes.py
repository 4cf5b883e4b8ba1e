"""List the recipes that come with hfgpt, or copy them."""

import shutil
from pathlib import Path

from hfgpt import config as configs
from hfgpt.base import language
from hfgpt.base.command import Reader, typed
from hfgpt.base.errors import InputError
from hfgpt.base.language import _, strerror
from hfgpt.base.terminal import say


def main(words: list[str]) -> None:
    parser = Reader(
        "recipes",
        _("List the recipes that come with hfgpt, or copy them into a folder, to be changed there."),
        [("", _("the names, with what each is for")), ("mine", _("copy all of them into the folder mine"))],
        _("A recipe's name can be given in its file's place: {command}", command=typed("train", "standard")),
    )
    parser.argument("folder", _("DIR"), _("folder to copy them into"), required=False)
    arguments = parser.read(words)
    shipped = configs.shipped_recipes()
    if arguments.folder is None:
        for name, path in shipped.items():
            say(f"  {name:26}{purpose(path)}")
        return
    folder = Path(arguments.folder)
    copies = {path: folder / f"{name}.yaml" for name, path in shipped.items()}
    if existing := [str(copy) for copy in copies.values() if copy.exists()]:
        raise InputError("{path} exists; it is left as it is", path=existing[0])
    begun = list[Path]()
    try:
        for path, copy in copies.items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            begun.append(copy)
            shutil.copyfile(path, copy)
    except OSError as error:
        for half in begun:  # else the next try would find them there
            half.unlink(missing_ok=True)
        raise InputError("{path} cannot be written: {reason}", path=copy, reason=strerror(error)) from None
    for copy in copies.values():
        say(copy)


def purpose(path: Path) -> str:
    """Return a recipe's purpose: the first line of its head comment, in Chinese the second."""
    with path.open(encoding="utf-8") as file:
        english, chinese = (file.readline().lstrip("# ").strip() for _line in range(2))
    return chinese if language.current() == "zh" and chinese else english
