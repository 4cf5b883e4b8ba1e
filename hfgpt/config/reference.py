"""The fields in words: help, the reference page, a recipe written back.

In:  the declarations of the fields, or a Config.
Out: text.
"""

from __future__ import annotations

import json
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from hfgpt.config.fields import GROUPS, WORDS, Config
from hfgpt.config.yaml_text import RecipeDumper


def alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return [leaf for option in get_args(annotation) for leaf in alternatives(option)]
    return [annotation]


def allowed(key: str) -> str:
    """What a field takes, in words: 'an integer of at least 1 (sequences)'."""
    field = Config.model_fields[key]
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "nothing (null)"}
    parts = []
    for option in alternatives(field.annotation):
        if get_origin(option) is Literal:
            parts += [repr(choice) for choice in get_args(option)]
        else:
            parts.append(names[option])
    words = " or ".join(parts) if len(parts) < 3 else "one of " + ", ".join(parts)
    bounds = []
    for rule in field.metadata:
        for attribute, text in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
            if (limit := getattr(rule, attribute, None)) is not None:
                bounds.append(f"{text} {limit:,}")
        if getattr(rule, "pattern", None) == WORDS:
            bounds.append("not empty")
    words += (", " if bounds else "") + " and ".join(bounds)
    return words + (f" ({unit_of(key)})" if unit_of(key) else "")


def unit_of(key: str) -> str:
    """The unit a field is counted in, "" if it has none."""
    return str(_extra(key)["unit"])


def group_of(key: str) -> str:
    """The field's group, a key of GROUPS."""
    return str(_extra(key)["group"])


def _extra(key: str) -> dict[str, Any]:
    extra = Config.model_fields[key].json_schema_extra
    assert isinstance(extra, dict), "every field is declared with setting()"
    return extra


# ------------------------------------------------------------------------------------------------------ writing


def to_yaml(config: Config) -> str:
    """The resolved recipe as YAML, grouped, that loads back to the same config."""
    lines = []
    for group, title in GROUPS.items():
        lines.append(f"# {title}")
        for key in Config.model_fields:
            if group_of(key) == group:
                lines.append(_dump({key: getattr(config, key)}))
        lines.append("")
    return "\n".join(lines)


def default_of(key: str) -> str:
    """A field's default as it would be typed, or in words where it depends on other fields; "none" if it has none."""
    default = Config.model_fields[key].default
    if isinstance(default, str) and not default.isprintable():
        return json.dumps(default)  # "\n", as YAML reads it too
    return str(_extra(key)["derived"]) or ("none" if default is None else yaml_scalar(default))


def help_text() -> str:
    """Every field in the chapter's groups: name, default and unit on one line, the meaning below."""
    import textwrap

    lines = ["Parameters, each with its default. --flag and --no_flag stand for true and false."]
    for group, title in GROUPS.items():
        lines.append(f"\n{title}")
        for key, field in Config.model_fields.items():
            if group_of(key) != group:
                continue
            choices = [repr(choice) for choice in _choices(key) if choice != field.default]
            or_else = f"  (or {', '.join(choices)})" if choices else ""
            unit = f"  ({unit_of(key)})" if unit_of(key) else ""
            lines.append(f"  --{key:<30}{default_of(key)}{or_else}{unit}")
            lines += textwrap.wrap(str(field.description), 92, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _choices(key: str) -> list[str]:
    """The words that a field may be, where it may be nothing else."""
    return [
        str(choice)
        for option in alternatives(Config.model_fields[key].annotation)
        if get_origin(option) is Literal
        for choice in get_args(option)
    ]


def yaml_scalar(value: Any) -> str:
    """A value as it would be typed in a recipe."""
    return _dump(value, default_flow_style=True).removesuffix("\n...")


def _dump(value: Any, **options: Any) -> str:
    return str(yaml.dump(value, Dumper=RecipeDumper, allow_unicode=True, width=10_000, **options)).strip()
