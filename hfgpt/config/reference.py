"""Text for the fields: help, the reference page, a recipe as YAML.

In:  the declarations of the fields, or a Config.
Out: text in the current language; a recipe that loads back to the same Config.
"""

import json
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from hfgpt.base import course
from hfgpt.base.language import _, either, listed
from hfgpt.base.terminal import visible, wrap
from hfgpt.config.fields import GROUPS, WORDS, Config, declared
from hfgpt.config.rules import resolve
from hfgpt.config.yaml_text import RecipeDumper, as_list


def alternatives(annotation: Any) -> list[Any]:
    """Return the types and Literals that an annotation allows."""
    if get_origin(annotation) in (Union, UnionType):
        return [leaf for option in get_args(annotation) for leaf in alternatives(option)]
    return [annotation]


def allowed(key: str) -> str:
    """Describe the values a field accepts: 'an integer, at least 1 (sequences)'."""
    field = Config.model_fields[key]
    names = {int: _("an integer"), float: _("a number"), str: _("text"), type(None): _("nothing (null)")}
    parts = list[str]()
    for option in alternatives(field.annotation):
        if option is bool:
            parts += ["true", "false"]
        else:
            parts += map(repr, get_args(option)) if get_origin(option) is Literal else [names[option]]
    words = either(parts) if len(parts) < 3 else _("one of {choices}", choices=listed(parts))
    if bounds := _(" and ").join(_bounds(field.metadata)):
        words = _("{kind}, {bounds}", kind=words, bounds=bounds)
    return _("{what} ({unit})", what=words, unit=unit_of(key)) if unit_of(key) else words


def _bounds(rules: list[Any]) -> list[str]:
    """Describe the bounds of a field's range."""
    bounds = []
    for rule in rules:
        if (limit := getattr(rule, "ge", None)) is not None:
            bounds.append(_("at least {limit}", limit=f"{limit:,}"))
        if (limit := getattr(rule, "gt", None)) is not None:
            bounds.append(_("more than {limit}", limit=f"{limit:,}"))
        if (limit := getattr(rule, "le", None)) is not None:
            bounds.append(_("at most {limit}", limit=f"{limit:,}"))
        if (limit := getattr(rule, "lt", None)) is not None:
            bounds.append(_("less than {limit}", limit=f"{limit:,}"))
        if getattr(rule, "pattern", None) == WORDS:
            bounds.append(_("not empty"))
    return bounds


def unit_of(key: str) -> str:
    """Return a field's unit; "" if it is not a count."""
    unit = str(declared(key)["unit"])
    return _(unit) if unit else ""


def group_of(key: str) -> str:
    """Return a field's group, a key of GROUPS."""
    return str(declared(key)["group"])


def default_of(key: str) -> str:
    """Return a field's default as typed, or in words if it depends on other fields; "none" if it is null."""
    default, derived = Config.model_fields[key].default, str(declared(key)["derived"])
    if isinstance(default, str) and not default.isprintable():
        return json.dumps(default)  # "\n", which is valid YAML too
    if derived:
        return _(derived)
    return _("none") if default is None else yaml_scalar(default)


def help_text() -> str:
    """Return the help for every field, in the chapter's groups: name, default and unit on one line, meaning below."""
    lines = wrap(
        _("Parameters, each with its default. --flag and --no_flag stand for true and false. {folder} explains the "
          "chapter's parts, under its numbers.", folder=course.folder()), 92
    )  # fmt: skip
    for group, title in GROUPS.items():
        lines.append(f"\n{_(title)}")
        for key, field in Config.model_fields.items():
            if group_of(key) != group:
                continue
            choices = [repr(choice) for choice in _choices(key) if choice != field.default]
            others = _("  (or {choices})", choices=listed(choices)) if choices else ""
            unit = _("  ({unit})", unit=unit_of(key)) if unit_of(key) else ""
            lines.append(f"  --{key:<30}{default_of(key)}{others}{unit}")
            lines += [f"      {line}" for line in wrap(_(str(field.description)), 86)]
    return "\n".join(lines)


def _choices(key: str) -> list[str]:
    """Return the words that a Literal field accepts."""
    return [
        str(choice)
        for option in alternatives(Config.model_fields[key].annotation)
        if get_origin(option) is Literal
        for choice in get_args(option)
    ]


def to_yaml(config: Config, *, in_folder: bool = False) -> str:
    """Write a resolved config as a recipe, in groups, that loads back to the same config.

    Derived values are written as comments, so that they still follow the fields they depend on.

    Args:
        in_folder: leave out `out_dir`, since the recipe lies in its run folder.
    """
    comments = derivable(config) - config.model_fields_set
    lines = []
    for group, title in GROUPS.items():
        lines.append(f"# {_(title)}")
        for key in Config.model_fields:
            if group_of(key) == group and not (in_folder and key == "out_dir"):
                value = getattr(config, key)
                line = _dump({key: as_list(value) if key == "dataset" else value})
                lines.append(f"# {line}  {_('(derived)')}" if key in comments else line)
        lines.append("")
    return "\n".join(lines)


DERIVED = ("warmup_iters", "lr_decay_iters", "min_lr", "vocab_size", "tokenizer")


def derivable(config: Config) -> set[str]:
    """Return the fields whose values :func:`resolve` would derive from the others, given or not."""
    out = set[str]()
    for key in DERIVED:
        default = Config.model_fields[key].default
        given = config.model_fields_set - {key}
        again = resolve(Config.model_construct(_fields_set=given, **{**config.model_dump(), key: default}), "")
        if getattr(config, key) == getattr(again, key) != default:
            out.add(key)
    return out


def yaml_scalar(value: Any) -> str:
    """Return a value as typed in a recipe."""
    return _dump(value, default_flow_style=True).removesuffix("\n...")


def _dump(value: Any, **options: Any) -> str:
    text = str(yaml.dump(value, Dumper=RecipeDumper, allow_unicode=True, width=10_000, **options)).strip()
    if visible(text) != text:  # a recipe is shown on terminals: what would turn their text's direction is escaped
        text = str(yaml.dump(value, Dumper=RecipeDumper, allow_unicode=False, width=10_000, **options)).strip()
    return text
