"""The files of recipes: finding them, and reading their keys and values.

In:  a path, a run folder, or the name of a shipped recipe.
Out: a dictionary of keys and values, not yet validated; or an InputError that names file, line and fix.
"""

import difflib
import os
import re
from pathlib import Path
from typing import Any

import yaml

from hfgpt.base.errors import InputError
from hfgpt.base.files import check_regular, open_text
from hfgpt.base.language import N_, _, listed, strerror
from hfgpt.config import nanogpt
from hfgpt.config.yaml_text import LIMIT, RecipeLoader, in_plain_words


def read_recipe(recipe: str | Path) -> dict[str, Any]:
    """Return a recipe's keys and values, not yet validated. A `.py` file is a nanoGPT configuration, read as literals.

    Raises:
        InputError: the recipe cannot be read, or is not a YAML mapping; the message names file, line and fix.
    """
    path = find_recipe(recipe)
    shown = repr(str(path))
    text = _read(path, shown)
    if path.suffix == ".py":
        return nanogpt.read_config(path, text)
    try:
        values = yaml.load(text, Loader=RecipeLoader)
        if isinstance(values, str):
            _check_colons(text, shown)
    except RecursionError:
        raise InputError("recipe {path}: must be lines of 'key: value', not lists within lists", path=shown) from None
    except (yaml.YAMLError, ValueError) as error:
        place = _line(error, text)
        problem = in_plain_words(getattr(error, "problem", None) or str(error).splitlines()[0])
        _check_colons(text, shown, place)
        if place:
            raise InputError(
                "recipe {path}, line {line}: not valid YAML: {problem}", path=shown, line=place, problem=problem
            ) from None
        raise InputError("recipe {path}: not valid YAML: {problem}", path=shown, problem=problem) from None
    if not isinstance(values, dict | None):
        kind = KINDS.get(type(values), N_("single value"))
        raise InputError("recipe {path}: must be lines of 'key: value', not a {kind}", path=shown, kind=_(kind))
    return {str(key): value for key, value in (values or {}).items()}


KINDS: dict[type, str] = {str: N_("line of text"), list: N_("list"), int: N_("number"), float: N_("number")}
COLON = r"(\w+)\s*(：\s*|:(?=[^\s/]))(.*)"  # a full-width colon, or one without a space


def _check_colons(text: str, shown: str, last: int | None = None) -> None:
    """Name the first line, up to the last one, whose colon separates no key and value, if there is one.

    Raises:
        InputError: there is one.
    """
    for number, line in enumerate(text.splitlines()[:last], 1):
        if match := re.fullmatch(COLON, line):
            written = f"{match[1]}: {match[3]}"
            written = written if len(written) <= 80 else f"{written[:80]}…"
            if match[2][0] == "：":
                raise InputError(
                    "recipe {path}, line {line}: its colon is the full-width ：\n    → write {form}",
                    path=shown, line=number, form=written,
                )  # fmt: skip
            raise InputError(
                "recipe {path}, line {line}: a space is missing after the colon\n    → write {form}",
                path=shown, line=number, form=written,
            )  # fmt: skip


def find_recipe(recipe: str | Path) -> Path:
    """Return the recipe's file: the path itself, the recipe in a run folder, or a shipped recipe."""
    path = Path(os.path.expanduser(recipe))
    try:
        if path.is_dir():
            return path / "recipe.yaml"
        if path.exists():
            return path
        return shipped_recipes().get(path.with_suffix("").as_posix().removeprefix("recipes/"), path)
    except (OSError, ValueError):  # not a valid file name: reading it raises the message
        return path


def shipped_recipes() -> dict[str, Path]:
    """Return the shipped recipes by name ('standard', 'experiments/batch_size')."""
    package = Path(__file__).parent.parent
    for folder in (package / "recipes", package.parent / "recipes"):  # installed, or in a checkout
        if found := {name: path for name in SHIPPED if (path := folder / f"{name}.yaml").exists()}:
            return found
    return {}


SHIPPED = (  # by name: a checkout's folder may hold recipes of the user's own
    "fast_cpu", "finetune", "learning", "production", "quick_experiment", "shakespeare_char_cpu", "standard",
    "experiments/batch_size", "experiments/learning_rate", "experiments/model_size", "experiments/optimizer",
)  # fmt: skip


def _read(path: Path, shown: str) -> str:
    """Return the text of a recipe.

    Raises:
        InputError: the file cannot be read, or is longer than a recipe can be.
    """
    try:
        if path.name == "recipe.yaml":  # a run folder's; another may come from a pipe
            check_regular(path)
        with open_text(path, "utf-8-sig") as file:
            text = file.read(LIMIT + 1)
    except FileNotFoundError:
        shipped = shipped_recipes()
        names = listed(shipped)
        if meant := difflib.get_close_matches(path.name, shipped, n=1, cutoff=0.5) or [
            name for name in shipped if path.name and name.startswith(path.name)
        ]:
            raise InputError(
                "recipe {path}: no such file; did you mean {name}? hfgpt comes with the recipes {names}",
                path=shown,
                name=repr(meant[0]),
                names=names,
            ) from None
        raise InputError(
            "recipe {path}: no such file; hfgpt comes with the recipes {names}", path=shown, names=names
        ) from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or not a valid file name
        reason = strerror(error) if isinstance(error, OSError) else error  # without the file name, which may be long
        raise InputError("recipe {path} cannot be read as text: {reason}", path=shown, reason=reason) from None
    if len(text) > LIMIT:
        raise InputError(
            "recipe {path}: has more than {limit} characters, which a recipe never has", path=shown, limit=LIMIT
        )
    return text


def _line(error: Exception, text: str) -> int | None:
    """Return the line number of PyYAML's error."""
    if mark := getattr(error, "problem_mark", None) or getattr(error, "context_mark", None):
        return int(mark.line) + 1
    position = getattr(error, "position", None)  # position of a character that YAML forbids
    return None if position is None else text.count("\n", 0, position) + 1


def run_folder(recipe: str | Path) -> Path | None:
    """Return the run folder that a recipe names, as a folder or as the recipe.yaml in it; None for other recipes."""
    path = Path(os.path.expanduser(recipe))
    try:
        folder = path if path.is_dir() else path.parent
        files = (folder / name for name in ("metrics.jsonl", "model.safetensors"))
        holds_run = any(file.exists() for file in files) or any(folder.glob("checkpoint-*"))
        if not path.is_dir() and (path.name != "recipe.yaml" or not holds_run):
            return None
        return folder if folder.name not in ("", "..") else folder.resolve()  # so that '.' has a name
    except (OSError, ValueError):
        return None
