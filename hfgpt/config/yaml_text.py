"""The YAML of recipes: without objects, aliases or repeated keys, and with 1e-3 as a number; a mix of corpora in it.

In:  text of at most :data:`LIMIT` characters; `dataset` as a list of {name, weight}, or the same list as text.
Out: its values, or a yaml.YAMLError that says what is invalid; values as text that loads back unchanged; the corpora
     of a mix with their weights.
"""

import json
import os
import re
from pathlib import PurePath
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from hfgpt.base.language import N_, _

LIMIT = 200_000  # characters; a recipe has a few thousand
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")  # parsed by our own rules
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)")
LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
FLOAT = re.compile(
    r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*\.[0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)"
    r"|\.(nan|NaN|NAN)"
)


def leading_zero(text: str) -> str:
    """Explain why an integer such as 012 is refused: some read it as 12, YAML and others as octal, that is 10."""
    digits = text.lstrip("+-").replace("_", "")
    decimal = digits.lstrip("0") or "0"
    if set(digits) <= set("01234567") and len(digits) < 25:
        octal = str(int(digits, 8))
        return _("{text} can be read as {decimal} or as octal {octal}: write the number that is meant",
                 text=text, decimal=decimal, octal=octal)  # fmt: skip
    return _("{text} begins with a zero: write {decimal}", text=text[:40], decimal=decimal[:40])


# PyYAML's messages, and what each says in a recipe.
PLAINLY = (
    ("mapping values are not allowed", N_("the line has two values, or begins with too many spaces")),
    ("could not find expected ':'", N_("the line is not of the form 'key: value'")),
    ("that cannot start any token", N_("a value cannot begin with this character: put the value in quotes, and "
                                       "begin lines with spaces, not tabs")),
    ("expected <block end>", N_("the line does not begin with as many spaces as those before it")),
    ("expected ',' or", N_("a bracket or brace is not closed")),
    ("found unexpected end of stream", N_("a quotation mark is not closed")),
    ("expected the node content", N_("a value is missing")),
    ("expected alphabetic or numeric", N_("a value cannot begin with this character: put the value in quotes")),
    ("could not determine a constructor", N_("tags (!name) are not read in a recipe")),
    ("special characters are not allowed", N_("it contains control characters")),
    ("found unknown escape character", N_("in double quotes, write \\\\ for a backslash")),
    ("sequence entries are not allowed", N_("a list's item (-) cannot stand here")),
    ("expected a single document", N_("the line --- begins a second document")),
    ("expected ", N_("the line is not of the form 'key: value'")),
)  # fmt: skip


def in_plain_words(problem: str) -> str:
    """Return a message of PyYAML's in the words of a recipe and in the current language."""
    return next((_(plain) for library, plain in PLAINLY if library in problem), problem)


class RecipeLoader(yaml.SafeLoader):
    """YAML 1.1 without objects and aliases; reads 1e-3 as a number, and refuses repeated keys and 012.

    Aliases are refused, since a few lines of nested aliases expand to a value of any size.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in NUMBERS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ConstructorError(None, None, _("aliases (*name) are not read in a recipe; write the value"), mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):  # '!!set 0'
            raise ConstructorError(None, None, _("this is not a mapping"), node.start_mark)
        seen: set[str] = set()
        for key_node, _value in node.value:
            key = str(getattr(key_node, "value", key_node))
            if key in seen:
                raise ConstructorError(
                    None, None, _("key {key} is given twice", key=repr(key[:120])), key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:  # text that does not match its tag, such as a date or number
            raise ConstructorError(None, None, str(error)[:200], node.start_mark) from None

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        if LEADING_ZERO.fullmatch(text):
            raise ValueError(leading_zero(text))
        if not INTEGER.fullmatch(text):
            raise ValueError(_("{text} is not an integer", text=repr(text[:40])))
        return int(text.replace("_", ""), 16 if "x" in text else 10)

    def construct_number(self, node: yaml.ScalarNode) -> float:
        text = str(self.construct_scalar(node)).lower().replace("_", "")
        if not FLOAT.fullmatch(text) and not INTEGER.fullmatch(text):
            raise ValueError(_("{text} is not a number", text=repr(text[:40])))
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))


RecipeLoader.add_constructor(NUMBERS[0], RecipeLoader.construct_integer)
RecipeLoader.add_constructor(NUMBERS[1], RecipeLoader.construct_number)


class RecipeDumper(yaml.SafeDumper):
    """Writes YAML that :class:`RecipeLoader` reads back: text such as '1e3' is quoted, and aliases are not used."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Unquoted, a Unicode line break (U+0085) would be read back as a space.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


RecipeDumper.add_representer(str, _represent_text)

for _tool in (RecipeLoader, RecipeDumper):
    for _tag, _pattern in zip(NUMBERS, (f"{INTEGER.pattern}|{LEADING_ZERO.pattern}", FLOAT.pattern), strict=True):
        _tool.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list("-+.0123456789"))


MOST = 64  # corpora


def corpora(dataset: str) -> list[tuple[str, float]]:
    """Return the corpora that `dataset` names, with their weights; a single corpus has weight 1."""
    if (entries := _entries(dataset)) is None:
        return [(dataset, 1.0)]
    return [(entry["name"], float(entry["weight"])) for entry in entries]


def in_short(dataset: str) -> str:
    """Return a mix as its weights and corpora, such as "3 a.txt + 1 b.txt"; a single corpus unchanged."""
    if _entries(dataset) is None:
        return dataset
    return " + ".join(f"{weight:g} {name}" for name, weight in corpora(dataset))


def named(val_datasets: str | None) -> list[tuple[str, str]]:
    """Return (name, source) for each entry of `val_datasets`; without ``name=``, the name is the source's last part."""
    parts = [part.strip() for part in (val_datasets or "").split(",") if part.strip()]
    pairs = [part.partition("=")[::2] if "=" in part else ("", part) for part in parts]
    return [(name.strip() or PurePath(source).name.split(".")[0] or source, source.strip()) for name, source in pairs]


def as_text(value: Any) -> Any:
    """Return a mix as the field's text, with ~ expanded; any other value unchanged."""
    if (entries := _entries(value)) is None or fault_of(value):
        return value
    return json.dumps([{**entry, "name": os.path.expanduser(entry["name"])} for entry in entries], ensure_ascii=False)


def as_list(dataset: str) -> Any:
    """Return the value for a recipe: a list for a mix, otherwise the text."""
    return dataset if (entries := _entries(dataset)) is None else entries


def fault_of(value: Any) -> str:
    """Return what is wrong with a mix; "" if it is valid, or the value is not a mix."""
    entries = _entries(value)
    if entries is None:
        if isinstance(value, list):
            return _("must be text, or a list such as [{example}]", example="{name: a.txt, weight: 3}")
        return ""
    for entry in entries:
        name, weight = entry.get("name"), entry.get("weight")
        if entry.keys() != {"name", "weight"} or not isinstance(name, str) or not name.strip():
            return _("a mix is a list of corpora, each with a name and a weight, not {entry}", entry=repr(entry)[:120])
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1e9:
            return _("the weight of {name} must be a number of more than 0", name=repr(name))
    names = [entry["name"] for entry in entries]
    if len(names) > MOST:
        return _("a mix has at most {most} corpora, and this one has {n}", most=MOST, n=len(names))
    if len({*names}) < len(names):
        return _("a corpus is named twice in the mix; add up its weights")
    return ""


def _entries(value: Any) -> list[dict[str, Any]] | None:
    """Return the entries of a mix; None if the value is not a mix."""
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return None
        try:
            value = yaml.load(value, Loader=RecipeLoader)
        except (yaml.YAMLError, ValueError, RecursionError):
            return None  # a glob, such as [ab]*.txt
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        return None
    return value
