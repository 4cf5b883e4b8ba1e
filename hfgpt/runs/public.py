"""The recipe that may be published: names instead of paths.

In:  a recipe's text, whose paths may reveal users and folders.
Out: the same recipe with only the last parts of those paths, and without the run folder's location.
"""

import json
import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from hfgpt.config import with_role
from hfgpt.config.yaml_text import RecipeDumper, RecipeLoader, as_list

SEVERAL = with_role("paths")
SOURCES = tuple(key for key in with_role("path", "paths") if key != "out_dir")


def name(source: str) -> str:
    """Return the last part of a path that is absolute or leaves the working folder; anything else unchanged.

    In a mix written as text, each entry is treated so; of label=path the label is kept.
    """
    if label := re.match(r"[\w .-]+=", source):
        return label[0] + name(source[label.end() :])
    if isinstance(mix := as_list(source), list):
        return json.dumps(_shown(mix), ensure_ascii=False)
    windows = PureWindowsPath(source)
    if windows.drive or windows.root or source.startswith("~") or ".." in windows.parts:
        return (windows.name if "\\" in source else PurePosixPath(source).name) or "data"
    return source


def recipe(text: str) -> str:
    """Return a recipe's text without this machine's paths; comments and order are kept."""
    values = yaml.load(text, RecipeLoader)
    if not isinstance(values, dict):
        return text
    text = text if text.endswith("\n") else text + "\n"
    for key in SOURCES:
        parts = _parts(key, values.get(key))
        if (shown := _shown(parts)) != parts:
            text = _set(text, key, ",".join(shown) if key in SEVERAL else shown)
    return _line("out_dir").sub("", _COMMENT.sub(_named, text), count=1)


# A derived value, written as a comment: "# tokenizer: /home/ada/model  (derived)".
_COMMENT = re.compile(rf"^# ({'|'.join(SOURCES)}): (.*?)(  \(.*\))?$", re.MULTILINE)


def _named(comment: re.Match[str]) -> str:
    try:
        value = yaml.load(comment[2], RecipeLoader)
    except yaml.YAMLError:
        return ""
    shown = name(value) if isinstance(value, str) else value
    return comment[0] if shown == value else f"# {comment[1]}: {shown}{comment[3] or ''}"


def hidden(text: str) -> dict[str, str]:
    """Return the paths that :func:`recipe` shortens in a recipe's text, with their replacements."""
    values = yaml.load(text, RecipeLoader)
    pairs = {}
    for key in (*SOURCES, "out_dir"):
        for source in _sources(_parts(key, values.get(key)) if isinstance(values, dict) else None):
            if name(source) != source:
                pairs[source] = name(source)
    return pairs


def _parts(key: str, value: Any) -> Any:
    """Return a field's value; if it is comma-separated paths, a list of them."""
    return [part.strip() for part in value.split(",")] if key in SEVERAL and isinstance(value, str) else value


def _sources(value: Any) -> list[str]:
    """Return the strings in a field's value, which may be a mix: a list of {name, weight}."""
    if isinstance(value, str):
        mix = as_list(value)
        return [value, *_sources(mix)] if isinstance(mix, list) else [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [source for child in children for source in _sources(child)]


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return name(value)
    if isinstance(value, dict):
        return {key: _shown(child) for key, child in value.items()}
    return _told_apart([_shown(child) for child in value]) if isinstance(value, list) else value


def _told_apart(entries: list[Any]) -> list[Any]:
    """Give the entries of a mix unique names: where only folders distinguished two, the later is numbered."""
    taken = list[str]()
    for entry in entries:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            own, number = entry["name"], 2
            while entry["name"] in taken:
                entry["name"], number = f"{own} ({number})", number + 1
            taken.append(entry["name"])
    return entries


def _line(key: str) -> re.Pattern[str]:
    """Match a recipe field with its lines: the deeper ones, and those of a list."""
    return re.compile(rf"^{key}[ ]*:.*\n(?:(?:[ \t]+|-[ ]).*\n|[ \t]*\n(?=[ \t]))*", re.MULTILINE)


def _set(text: str, key: str, value: Any) -> str:
    line = str(yaml.dump({key: value}, Dumper=RecipeDumper, allow_unicode=True, sort_keys=False, width=10**6))
    return _line(key).sub(lambda _match: line, text, count=1)
