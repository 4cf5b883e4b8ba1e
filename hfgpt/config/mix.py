"""Several corpora in one recipe, each with a weight.

In:  `dataset` from a recipe, a list of {name, weight}, or the same list as text from a command line.
Out: the field's text; :func:`corpora`, the names with their weights.
"""

from __future__ import annotations

import json
import os
from pathlib import PurePath
from typing import Any

import yaml

from hfgpt.base.language import _
from hfgpt.config.yaml_text import RecipeLoader

MOST = 64  # corpora


def corpora(dataset: str) -> list[tuple[str, float]]:
    """Return the corpora that `dataset` names, with their weights; a single corpus has weight 1."""
    if (entries := _entries(dataset)) is None:
        return [(dataset, 1.0)]
    return [(entry["name"], float(entry["weight"])) for entry in entries]


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
