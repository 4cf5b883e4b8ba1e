"""Command-line arguments: declared once, then parsed, checked and explained by --help.

In:  a command's arguments, options and flags, a recipe's parameters if it takes them, and the words typed.
Out: :class:`Arguments`, or every error on the command line at once; the --help page.
"""

import argparse
import difflib
import re
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hfgpt.base.errors import CommandError, Fault
from hfgpt.base.language import LANGUAGES, _, listed
from hfgpt.base.terminal import Layout

# ------------------------------------------------------------------------------------------------- command strings


def installed() -> bool:
    """Whether the program runs as the installed command `hfgpt`, not as a script from a checkout."""
    program = Path(sys.argv[0])
    return program.name in ("hfgpt", "hfgpt.exe") or program.parts[-2:] == ("hfgpt", "__main__.py")


def quoted(*words: object) -> str:
    """Return the words as one shell command, quoted where they hold spaces, `#` and the like."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if sys.platform == "win32" else shlex.join(texts)


def typed(name: str, *words: object) -> str:
    """Return one of our commands as the user would type it, such as ``python scripts/sample.py out/standard``.

    A script lies beside the one that runs, wherever it was started from. Training on a CPU needs no launcher.
    """
    if installed():
        return quoted("hfgpt", name, *words)
    from hfgpt.base.hardware import local_accelerator  # reads the table of cards, which most commands have no use for

    launcher = ("accelerate", "launch") if name == "train" and local_accelerator() else ("python",)
    return quoted(*launcher, _scripts() / f"{name}.py", *words)


def _scripts() -> Path:
    """Return the folder of the script that runs, relative to the current one if it lies inside."""
    folder = Path(sys.argv[0]).parent
    if folder.name != "scripts":
        return Path("scripts")
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


# --------------------------------------------------------------------------------------------------- kinds of values


def whole(text: str) -> int:
    """Parse an integer."""
    try:
        value = int(text)
    except ValueError:
        raise ValueError(_("must be a whole number")) from None
    if abs(value) >= 2**63:
        raise ValueError(_("must be a number of less than 2^63"))
    return value


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a parser for integers from `least` up to `most`, if that is given."""

    def read(text: str) -> int:
        value = whole(text)
        if most is not None and not least <= value <= most:
            raise ValueError(_("must be a whole number from {least} to {most:,}", least=least, most=most))
        if value < least:
            raise ValueError(_("must be a whole number of at least {least}", least=least))
        return value

    return read


def number(text: str) -> float:
    """Parse a number."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(_("must be a number")) from None


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser that accepts only these words."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(_("must be one of {choices}", choices=listed(map(repr, choices))))
        return text

    return read


# ------------------------------------------------------------------------------------------------------- the reader


class Arguments(argparse.Namespace):
    """The parsed command line: one attribute for each argument, option and flag that the command declares."""

    overrides: list[str]  # recipe parameters that were typed, as ``--key=value``
    # errors, if the command takes recipe parameters; other commands raise them
    faults: list[Fault]


class _Positional(NamedTuple):
    name: str
    metavar: str
    many: bool
    required: bool


class _Option(NamedTuple):
    read: Callable[[str], Any] | None  # None: a flag
    default: Any
    may_stand_alone: bool = False  # --name as well as --name=VALUE


class Reader:
    """A command's argument parser: declare with :meth:`argument`, :meth:`option`, :meth:`flag`; then :meth:`read`.

    Args:
        about: what the command does, for --help.
        examples: arguments to type after the name, and what they do.
        notes: text at the end of --help, or what returns it, if it takes long.
        parameters: the recipe parameters that it takes, each 'flag', 'text' (which is taken as it is) or 'value'.
        called: what else people call them, and the parameter that each means.
    """

    def __init__(
        self,
        name: str,
        about: str,
        examples: Iterable[tuple[str, str]] = (),
        notes: str | Callable[[], str] = "",
        parameters: Mapping[str, str] | None = None,
        called: Mapping[str, str] | None = None,
    ) -> None:
        self._name, self._called, self._notes = name, called or {}, notes
        self._takes_parameters, self._parameters = parameters is not None, dict(parameters or {})
        self._flags = {key for key, kind in self._parameters.items() if kind == "flag"}
        self._positionals: list[_Positional] = []
        self._options: dict[str, _Option] = {}
        self._exclusive: list[tuple[str, ...]] = []
        shown = "\n".join(f"  {typed(name)} {words}\n      {text}" for words, text in examples)
        self._parser = argparse.ArgumentParser(
            usage=argparse.SUPPRESS, description=f"{about}\n\n{shown}",
            add_help=False, allow_abbrev=False, formatter_class=Layout,
        )  # fmt: skip
        self._arguments = self._parser.add_argument_group(_("What it is given"))
        self._choices = self._parser.add_argument_group(_("Options"))

    def argument(self, name: str, metavar: str, text: str, *, many: bool = False, required: bool = True) -> None:
        """Declare a positional argument of one word or many."""
        self._positionals.append(_Positional(name, metavar, many, required))
        self._arguments.add_argument(name, metavar=metavar, nargs="*" if many else "?", help=text.replace("%", "%%"))

    def option(self, name: str, metavar: str, text: str, read: Callable[[str], Any] = str, default: Any = None) -> None:
        """Declare ``--name VALUE``; `read` parses the text, or raises a ValueError that states the rule."""
        self._options[name] = _Option(read, default)
        self._declare(name, text, metavar)

    def flag(self, name: str, text: str, metavar: str = "", read: Callable[[str], Any] | None = None) -> None:
        """Declare ``--name``, which is True if typed; with `read`, ``--name=VALUE`` is accepted too."""
        self._options[name] = _Option(read, False, may_stand_alone=True)
        self._declare(name, text, metavar)

    def exclusive(self, *names: str) -> None:
        """Declare that at most one of these options may be typed."""
        self._exclusive.append(names)

    def _declare(self, name: str, text: str, metavar: str = "") -> None:
        self._choices.add_argument(f"--{name}", nargs="?", metavar=metavar, help=text.replace("%", "%%"))

    # ------------------------------------------------------------------------------------------------------- reading

    def read(self, words: Sequence[str]) -> Arguments:
        """Parse the words; for -h or --help, print the help page and exit instead.

        Raises:
            CommandError: lists every error, if an argument is missing or the command takes no recipe parameters.
        """
        if {"-h", "--help"} & set(words):
            print(self.help())
            raise SystemExit(0)
        places, texts = self._split(words)
        known = {*self._options, *self._parameters, *(f"no_{key}" for key in self._flags)}
        unknown = [(key, text) for key, given in texts.items() if key not in known for text in given]
        arguments, faults = Arguments(overrides=[], faults=[]), [self._unknown(*word) for word in unknown]
        faults += self._place(places, arguments)
        is_whole = all(getattr(arguments, place.name) for place in self._positionals if place.required)
        for name, option in self._options.items():
            setattr(arguments, name, self._value(name, option, texts.get(name, []), faults))
        for names in self._exclusive:
            if len(both := [name for name in names if name in texts]) > 1:
                faults.append(Fault(both[0], None, _("cannot be given together with {other}", other=f"--{both[1]}")))
        for key in self._parameters:
            self._override(key, texts, arguments, faults)
        if faults and (not self._takes_parameters or not is_whole):
            raise CommandError(faults, typed(self._name, "--help"))
        arguments.faults = faults
        return arguments

    def _split(self, words: Sequence[str]) -> tuple[list[str], dict[str, list[str | None]]]:
        """Split the words into positional ones and options, by key; ``--key`` without a value is None."""
        places, options, rest = list[str](), dict[str, list[str | None]](), list(words)
        while rest:
            word = rest.pop(0)
            if not word.startswith("--") or word == "--":
                places.append(word)
                continue
            key, equals, text = word[2:].partition("=")
            key = key.replace("-", "_")
            if not equals and rest and self._takes_next(key, rest[0]):
                equals, text = "=", rest.pop(0)
            options.setdefault(key, []).append(text if equals else None)
        return places, options

    def _takes_next(self, key: str, word: str) -> bool:
        """Whether the word after ``--key`` is its value."""
        if key in self._options:
            option = self._options[key]
            return option.read is not None and not option.may_stand_alone and not word.startswith("--")
        if key in self._flags:
            return word.lower() in ("true", "false")
        no = key.startswith("no_") and key[3:] in self._flags
        return self._takes_parameters and not no and not word.startswith("--")

    def _place(self, words: list[str], arguments: Arguments) -> list[Fault]:
        faults = [fault for word in words if (fault := _mistyped(word))]
        words = [word for word in words if not _mistyped(word)]
        for place in self._positionals:
            taken, words = (words, []) if place.many else (words[:1], words[1:])
            if taken and taken[0].startswith("-") and taken[0] != "-":
                taken, words = [], [*taken, *words]
            if not taken and place.required:
                told = next(str(action.help) for action in self._parser._actions if action.dest == place.name)
                told = told.replace("%%", "%")
                missing = _("is missing") if told == place.metavar else _("is missing: {told}", told=told)
                faults.append(Fault(place.metavar, None, missing))
            setattr(arguments, place.name, taken if place.many else taken[0] if taken else None)
        return faults + [self._stray(word) for word in words]

    def _stray(self, word: str) -> Fault:
        key = re.match(r"-?(\w+)[=＝]", word)
        if key and key[1] in {*self._options, *self._parameters}:
            fix = _("write {form}", form="--" + _in_ascii(word.removeprefix("-")))
            return Fault(repr(word), None, _("lacks its two hyphens"), fix)
        if self._takes_parameters:
            return Fault(repr(word), None, _("is not an override"), _("write --key=value; the recipe comes first"))
        return Fault(repr(word), None, _("is one word too many"))

    def _unknown(self, key: str, text: str | None) -> Fault:
        """Return the fault for an unknown option, with the closest known one."""
        if fault := _mistyped(f"--{key}" if text is None else f"--{key}={text}"):
            return fault
        known = [*self._options, *self._parameters, "lang", "help"]
        if (name := self._called.get(key)) in known:
            names = [str(name)]
        else:
            names = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        if names:
            fix = _("did you mean {name}?", name=repr(names[0]))
        else:
            fix = _("--help lists all parameters") if self._takes_parameters else _("--help lists the options")
        return Fault(key, None, _("is not a parameter") if self._takes_parameters else _("is not an option"), fix)

    def _value(self, name: str, option: _Option, texts: list[str | None], faults: list[Fault]) -> Any:
        """Return the value of an option or flag; add what is wrong with it to `faults`."""
        if not texts:
            return option.default
        text, wrong = texts[-1], ""
        if len(texts) > 1:
            wrong = _("is given twice on the command line")
        elif text is None and option.may_stand_alone:
            return True
        elif option.read is None:
            wrong = _("takes no value") if text is not None else ""
        elif text is None or (not text and option.read is not str):
            wrong = _("needs a value")
        if not wrong and option.read is not None:
            try:
                return option.read(str(text))
            except ValueError as error:
                wrong = str(error)
        if wrong:
            faults.append(Fault(name, text, wrong))
        return option.read is None

    def _override(
        self, key: str, texts: dict[str, list[str | None]], arguments: Arguments, faults: list[Fault]
    ) -> None:
        """Add the typed values of a recipe parameter to the overrides."""
        given = texts.get(key, [])
        if key in self._flags:
            given = [text if text is not None else "true" for text in given]
            denied = texts.get(f"no_{key}", [])
            given += ["false" for _text in denied]
            faults += [Fault(f"no_{key}", text, _("takes no value")) for text in denied if text is not None]
        if len(given) > 1:
            faults.append(Fault(key, given[-1], _("is given twice on the command line")))
        elif given and given[0] is None:
            faults.append(Fault(key, None, _("needs a value"), _("write {form}", form=f"--{key}={_('VALUE')}")))
        elif given and self._parameters[key] != "text" and (narrow := _narrowed(str(given[0]))):
            fix = _("write {form}", form=f"--{key}={narrow}")
            faults.append(Fault(key, given[0], _("has full-width characters"), fix))
        elif given:
            arguments.overrides.append(f"--{key}={given[0]}")

    # ---------------------------------------------------------------------------------------------------------- help

    def help(self) -> str:
        """Return the --help page."""
        self._choices.add_argument("--lang", metavar="|".join(LANGUAGES), help=_("the language of what is printed"))
        self._choices.add_argument("--help", action="store_true", help=_("show this page"))
        places = [f"{place.metavar}{' …' if place.many else ''}" for place in self._positionals]
        shown = [word if place.required else f"[{word}]" for word, place in zip(places, self._positionals, strict=True)]
        more = [f"[{_('--key=value')} …]"] if self._takes_parameters else []
        usage = _("usage: {command}", command=" ".join([typed(self._name), *shown, f"[{_('options')}]", *more]))
        self._parser.epilog = self._notes if isinstance(self._notes, str) else self._notes()
        return f"{usage}\n\n{self._parser.format_help().strip()}"


def _narrowed(text: str) -> str:
    """Return numbers typed with a Chinese keyboard, such as １０ or 0，0.1, in ASCII; "" for other values."""
    if text.isascii() or not re.fullmatch(r"[\d.．,，、eE+\-\s]+", text):
        return ""
    narrow = unicodedata.normalize("NFKC", text).replace("、", ",").strip(",")
    return narrow if narrow.isascii() else ""


def _in_ascii(word: str) -> str:
    """Return key=value with the equals sign, and a number, of an English keyboard."""
    key, *value = re.split("[=＝]", word, maxsplit=1)
    return "=".join([key, *(_narrowed(text) or text for text in value)])


def _mistyped(word: str) -> Fault | None:
    """Return the fault of an option typed with a Chinese keyboard's dash or equals sign; None for other words."""
    word = word if len(word) <= 120 else f"{word[:120]}…"
    if dashes := re.match(r"[\u2010-\u2015\u2212\uff0d]+-?", word):
        fix = _("write {form}", form="--" + _in_ascii(word[dashes.end() :]))
        return Fault(word, None, _("begins with the dash {dash}, not with two hyphens", dash=word[0]), fix)
    if word.startswith("--") and "＝" in word.partition("=")[0]:
        fix = _("write {form}", form=_in_ascii(word))
        return Fault(word, None, _("has the full-width sign ＝ in the place of ="), fix)
    return None
