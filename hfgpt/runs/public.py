"""What of a run may leave this machine: names instead of paths.

In:  a recipe as text, whose paths name people and their folders.
Out: the same recipe with the last parts of those paths, and without the run folder's place.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from hfgpt.config.yaml_text import RecipeDumper, RecipeLoader

SOURCES = ("dataset", "init_from", "tokenizer")  # fields that may name a path


def name(source: str) -> str:
    """A path's last part if it is absolute or leads out of the working folder; everything else as it is."""
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
        if key in values and values[key] != _shown(values[key]):
            text = _set(text, key, _shown(values[key]))
    return _remove(text, "out_dir")


def hidden(text: str) -> dict[str, str]:
    """The paths that :func:`recipe` shortens in a recipe's text, each with what stands for it."""
    values = yaml.load(text, RecipeLoader)
    pairs = {}
    for key in (*SOURCES, "out_dir"):
        for source in _sources(values.get(key) if isinstance(values, dict) else None):
            if name(source) != source:
                pairs[source] = name(source)
    return pairs


def _sources(value: Any) -> list[str]:
    """The strings in a field's value, which may be a mix: a list of {name, weight}."""
    if isinstance(value, str):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [source for child in children for source in _sources(child)]


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return name(value)
    if isinstance(value, dict):
        return {key: _shown(child) for key, child in value.items()}
    return [_shown(child) for child in value] if isinstance(value, list) else value


def _line(key: str) -> re.Pattern[str]:
    """A field of a recipe with the lines that belong to it: deeper ones, and those of a list."""
    return re.compile(rf"^{key}[ ]*:.*\n(?:(?:[ \t]+|-[ ]).*\n|[ \t]*\n(?=[ \t]))*", re.MULTILINE)


def _set(text: str, key: str, value: Any) -> str:
    line = str(yaml.dump({key: value}, Dumper=RecipeDumper, allow_unicode=True, sort_keys=False, width=10**6))
    return _line(key).sub(lambda _match: line, text if text.endswith("\n") else text + "\n", count=1)


def _remove(text: str, key: str) -> str:
    return _line(key).sub("", text if text.endswith("\n") else text + "\n", count=1)
