"""What of a run may leave this machine: names instead of paths.

In:  a recipe as text, whose paths name people and their folders.
Out: the same recipe with the last parts of those paths, and without the run folder's place.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from hfgpt.config.mix import as_list
from hfgpt.config.yaml_text import RecipeDumper, RecipeLoader

SEVERAL = ("eval_tasks", "val_datasets")  # fields that may name paths, with commas between them

SOURCES = ("dataset", "init_from", "tokenizer", *SEVERAL)  # all fields that may


def name(source: str) -> str:
    """A path's last part if it is absolute or leads out of the working folder; everything else as it is.

    A mix that is written as text is a mix of such names; of label=path the label stays.
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
    """A recipe's text without paths of this machine; comments and order stay."""
    values = yaml.load(text, RecipeLoader)
    if not isinstance(values, dict):
        return text
    for key in SOURCES:
        parts = _parts(key, values.get(key))
        if (shown := _shown(parts)) != parts:
            text = _set(text, key, ",".join(shown) if key in SEVERAL else shown)
    return _remove(text, "out_dir")


def hidden(text: str) -> dict[str, str]:
    """The paths that :func:`recipe` shortens in a recipe's text, each with what stands for it."""
    values = yaml.load(text, RecipeLoader)
    pairs = {}
    for key in (*SOURCES, "out_dir"):
        for source in _sources(_parts(key, values.get(key)) if isinstance(values, dict) else None):
            if name(source) != source:
                pairs[source] = name(source)
    return pairs


def _parts(key: str, value: Any) -> Any:
    """A field's value; where it is several paths with commas between them, a list of them."""
    return [part.strip() for part in value.split(",")] if key in SEVERAL and isinstance(value, str) else value


def _sources(value: Any) -> list[str]:
    """The strings in a field's value, which may be a mix: a list of {name, weight}."""
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
    """The entries of a mix, each with a name of its own: where only folders told two apart, the later is numbered."""
    taken = list[str]()
    for entry in entries:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            own, number = entry["name"], 2
            while entry["name"] in taken:
                entry["name"], number = f"{own} ({number})", number + 1
            taken.append(entry["name"])
    return entries


def _line(key: str) -> re.Pattern[str]:
    """A field of a recipe with the lines that belong to it: deeper ones, and those of a list."""
    return re.compile(rf"^{key}[ ]*:.*\n(?:(?:[ \t]+|-[ ]).*\n|[ \t]*\n(?=[ \t]))*", re.MULTILINE)


def _set(text: str, key: str, value: Any) -> str:
    line = str(yaml.dump({key: value}, Dumper=RecipeDumper, allow_unicode=True, sort_keys=False, width=10**6))
    return _line(key).sub(lambda _match: line, text if text.endswith("\n") else text + "\n", count=1)


def _remove(text: str, key: str) -> str:
    return _line(key).sub("", text if text.endswith("\n") else text + "\n", count=1)
