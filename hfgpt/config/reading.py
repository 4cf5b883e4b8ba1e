"""From a recipe and a command line to a Config.

In:  a recipe (YAML), and overrides from the command line: ``--key=value``, ``--key value``, ``--flag``, ``--no_flag``.
Out: one validated, immutable Config, or a ConfigError that lists every fault at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from hfgpt.base.errors import ConfigError, Fault, InputError
from hfgpt.config import nanogpt
from hfgpt.config.fields import INSTEAD, RENAMED, Config
from hfgpt.config.reference import allowed, alternatives
from hfgpt.config.rules import RULES, resolve
from hfgpt.config.yaml_text import RecipeLoader


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The keys and values of a recipe file, not yet validated. A `.py` file is read as nanoGPT's, as literals.

    Raises:
        InputError: the file cannot be read, or is no YAML mapping; the message names file, line and fix.
    """
    path = Path(path)
    if path.suffix == ".py":
        return nanogpt.read_config(path)
    try:
        if path.is_dir():
            path = path / "recipe.yaml"  # a run folder is a recipe: the one that it was made with
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = sorted(str(p) for p in Path("recipes").glob("*.yaml"))
        hint = f"; there are {', '.join(known)}" if known else ""
        raise InputError(f"recipe {str(path)!r}: no such file{hint}") from None
    except (OSError, ValueError) as error:  # ValueError: bytes that are no UTF-8, a name that no file can have
        raise InputError(f"recipe {str(path)!r} cannot be read as text: {error}") from None
    try:
        values = yaml.load(text, Loader=RecipeLoader)
    except RecursionError:
        raise InputError(f"recipe {str(path)!r}: must be lines of 'key: value', not lists within lists") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"recipe {str(path)!r}{_where(error, text)}: not valid YAML: {_problem(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"recipe {str(path)!r}: must be lines of 'key: value', not a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def _where(error: Exception, text: str) -> str:
    """The line that PyYAML's error is about."""
    if mark := getattr(error, "problem_mark", None) or getattr(error, "context_mark", None):
        return f", line {mark.line + 1}"
    position = getattr(error, "position", None)  # of a character that YAML does not allow
    return "" if position is None else f", line {text.count(chr(10), 0, position) + 1}"


def _problem(error: Exception) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """``--key=value``, ``--key value``, ``--flag``, ``--no_flag`` → keys and values, read by each field's type.

    Raises:
        ConfigError: a word that is no override, an override without a value, or one given twice.
    """
    words, values, faults = list(arguments), dict[str, Any](), list[Fault]()
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            faults.append(Fault(repr(word), None, "is not an override", "write --key=value; the recipe comes first"))
            continue
        key, equals, text = word[2:].partition("=")
        key = key.replace("-", "_")
        field = Config.model_fields.get(key)
        value: Any
        if equals:
            value = _read_text(field, text)
        elif key.startswith("no_") and _is_flag(key[3:]):
            key, value = key[3:], False
        elif _is_flag(key) and not (words and words[0].lower() in ("true", "false")):
            value = True
        elif words and not words[0].startswith("--"):
            value = _read_text(field, words.pop(0))
        elif field is None and key not in RENAMED:
            value = None  # an unknown key is reported as such, whatever it was given
        else:
            faults.append(Fault(key, None, "needs a value", f"write --{key}=VALUE"))
            continue
        if key in values:
            faults.append(Fault(key, value, "is given twice on the command line"))
        values[key] = value
    if faults:
        raise ConfigError(faults)
    return values


def _is_flag(key: str) -> bool:
    field = Config.model_fields.get(key)
    return (field is not None and field.annotation is bool) or key in ("decay_lr", "wandb_log", "bias")


def _read_text(field: FieldInfo | None, text: str) -> Any:
    """A value typed on the command line: as text for a field that holds text, else as YAML would read it."""
    options = alternatives(field.annotation) if field else []
    if type(None) in options and text.lower() in ("none", "null", ""):
        return None
    if str in options:
        return text
    try:
        value = yaml.load(text, Loader=RecipeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    return text if value is None else value


def _translate(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """Apply nanoGPT's other names; whole floats become integers where an integer is meant (max_iters: 1e4)."""
    out, faults = dict[str, Any](), list[Fault]()
    for key, value in values.items():
        if key in RENAMED:
            if key in ("decay_lr", "wandb_log") and not isinstance(value, bool):
                faults.append(Fault(key, value, "must be true or false"))
                continue
            key, value = RENAMED[key](value)
            if key in values:
                continue  # our own name, given beside the old one, says it better
        if key in INSTEAD:
            faults.append(Fault(key, None, "is not a parameter here", INSTEAD[key]))
        elif key not in Config.model_fields:
            faults.append(Fault(key, None, "is not a parameter", _closest(key)))
        else:
            options = alternatives(Config.model_fields[key].annotation)
            if isinstance(value, float) and int in options and float not in options and value.is_integer():
                value = int(value)
            if reason := _unusable(value):
                faults.append(Fault(key, None, reason))
            else:
                out[key] = value
    return out, faults


def _unusable(value: Any) -> str:
    """Why no parameter can have this value, whatever its type and range; "" if one may."""
    if isinstance(value, int) and value.bit_length() > 63:
        return "must be a number of less than 2^63"
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        return "must be text without NUL characters and lone surrogates"
    return ""


def _closest(key: str) -> str:
    names = difflib.get_close_matches(key, [*Config.model_fields, *RENAMED], n=1, cutoff=0.6)
    return f"did you mean {names[0]!r}?" if names else "--help lists all parameters"


def _fault_of(error: Any) -> Fault:
    """One of pydantic's errors in our words: what is allowed, in the field's own unit."""
    key = str(error["loc"][0])
    return Fault(key, error["input"], f"must be {allowed(key)}")


def build(values: Mapping[str, Any], name: str) -> Config:
    """Validate keys and values against defaults, types, ranges and the rules across fields.

    Args:
        values: what the recipe and the command line say, later ones winning.
        name: the recipe's name, for the default out_dir.

    Raises:
        ConfigError: with every fault there is, each with key, value, rule and fix.
    """
    known, faults = _translate(values)
    try:
        config = Config(**known)
    except ValidationError as error:
        bad: dict[str, Fault] = {}
        for item in error.errors():
            bad.setdefault(str(item["loc"][0]), _fault_of(item))
        faults += bad.values()
        config = Config(**{key: value for key, value in known.items() if key not in bad})
    config = resolve(config, name)
    wrong = {fault.key for fault in faults}
    faults += [rule.fault(config) for rule in RULES if not wrong & set(rule.keys) and rule.broken(config)]
    if faults:
        raise ConfigError(faults)
    return config


def load(recipe: str | Path | None, overrides: Iterable[str] = ()) -> Config:
    """Defaults < recipe < overrides, validated and resolved. See :func:`build` for errors."""
    values = read_recipe(recipe) if recipe is not None else {}
    typed = parse_overrides(overrides)
    # An override by one name replaces the recipe's line by the other (decay_lr and lr_schedule).
    for old, to_new in RENAMED.items():
        new = to_new(None)[0]
        if new in typed or old in typed:
            values = {key: value for key, value in values.items() if key not in (old, new)}
    return build({**values, **typed}, Path(recipe).stem if recipe is not None else "run")


def split_command(arguments: Sequence[str], flags: Iterable[str]) -> tuple[str | None, set[str], list[str]]:
    """A script's arguments → (recipe or None, those of `flags` that are there, the overrides).

    The recipe, if any, comes first; `flags` are the script's own, such as "--resume".
    """
    recipe = arguments[0] if arguments and not arguments[0].startswith("-") else None
    rest = list(arguments if recipe is None else arguments[1:])
    given = {word for word in rest if word in flags}
    return recipe, given, [word for word in rest if word not in given]
