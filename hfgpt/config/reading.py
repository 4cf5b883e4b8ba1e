"""From a recipe and a command line to a Config.

In:  a recipe (YAML), and overrides from the command line: ``--key=value``, ``--key value``, ``--flag``, ``--no_flag``.
Out: one validated, immutable Config, or a ConfigError that lists every fault at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from hfgpt.base.command import Reader
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
        if not path.exists():
            path = shipped_recipes().get(_shipped_name(path), path)
        if path.is_dir():
            path = path / "recipe.yaml"  # a run folder is a recipe: the one that it was made with
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"recipe {str(path)!r}: no such file; there are {', '.join(shipped_recipes())}") from None
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


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with hfgpt, by name ('standard', 'experiments/batch_size')."""
    package = Path(__file__).parent.parent
    folder = next((f for f in (package / "recipes", package.parent / "recipes") if f.is_dir()), package)
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path.name)) if folder != package else []
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def _shipped_name(path: Path) -> str:
    """The name that a missing file would have among the recipes: 'recipes/standard.yaml' → 'standard'."""
    return path.with_suffix("").as_posix().removeprefix("recipes/")


def _where(error: Exception, text: str) -> str:
    """The line that PyYAML's error is about."""
    if mark := getattr(error, "problem_mark", None) or getattr(error, "context_mark", None):
        return f", line {mark.line + 1}"
    position = getattr(error, "position", None)  # of a character that YAML does not allow
    return "" if position is None else f", line {text.count(chr(10), 0, position) + 1}"


def _problem(error: Exception) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]


def _is_flag(key: str) -> bool:
    field = Config.model_fields.get(key)
    return (field is not None and field.annotation is bool) or key in ("decay_lr", "wandb_log", "bias")


# What a command line may say of a recipe, and whether it is true or false: for base.command.Reader.
PARAMETERS = {key: _is_flag(key) for key in (*Config.model_fields, *RENAMED, *INSTEAD)}


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """``--key=value``, ``--key value``, ``--flag``, ``--no_flag`` → keys and values, read by each field's type.

    Raises:
        ConfigError: a word that is not an override, an override without a value, or one given twice.
    """
    values, faults = _overrides(words)
    if faults:
        raise ConfigError(faults)
    return values


def _overrides(words: Iterable[str]) -> tuple[dict[str, Any], list[Fault]]:
    typed = Reader("train", "", parameters=PARAMETERS).read(list(words))
    values = dict[str, Any]()
    for word in typed.overrides:
        key, _equals, text = word.removeprefix("--").partition("=")
        values[key] = _read_text(Config.model_fields.get(key), text)
    return values, typed.faults


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


def build(values: Mapping[str, Any], name: str, faults: Iterable[Fault] = ()) -> Config:
    """Validate keys and values against defaults, types, ranges and the rules across fields.

    Args:
        values: what the recipe and the command line say, later ones winning.
        name: the recipe's name, for the default out_dir.
        faults: what is known to be wrong already, to be reported with the rest.

    Raises:
        ConfigError: with every fault there is, each with key, value, rule and fix.
    """
    known, wrong = _translate(values)
    wrong = [*faults, *wrong]
    try:
        config = Config(**known)
    except ValidationError as error:
        bad: dict[str, Fault] = {}
        for item in error.errors():
            bad.setdefault(str(item["loc"][0]), _fault_of(item))
        wrong += bad.values()
        config = Config(**{key: value for key, value in known.items() if key not in bad})
    config = resolve(config, name)
    keys = {fault.key for fault in wrong}
    wrong += [rule.fault(config) for rule in RULES if not keys & set(rule.keys) and rule.broken(config)]
    if wrong:
        raise ConfigError(wrong)
    return config


def load(recipe: str | Path | None, overrides: Iterable[str] = (), faults: Iterable[Fault] = ()) -> Config:
    """Defaults < recipe < overrides, validated and resolved. See :func:`build` for `faults` and errors."""
    values = read_recipe(recipe) if recipe is not None else {}
    typed, wrong = _overrides(overrides)
    # An override by one name replaces the recipe's line by the other (decay_lr and lr_schedule).
    for old, to_new in RENAMED.items():
        new = to_new(None)[0]
        if new in typed or old in typed:
            values = {key: value for key, value in values.items() if key not in (old, new)}
    return build({**values, **typed}, Path(recipe).stem if recipe is not None else "run", [*faults, *wrong])
