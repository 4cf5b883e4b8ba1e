"""A recipe as a file, with the reason beside each value.

In:  a resolved Config and reasons by key.
Out: YAML that loads to the same config.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

from hfgpt import config as configs
from hfgpt.base.errors import InputError
from hfgpt.base.files import replace_file
from hfgpt.base.language import _
from hfgpt.config import Config


def recipe_text(config: Config, reasons: Mapping[str, str], head: str) -> str:
    """A commented recipe that loads to this config: what differs from the defaults, and what has a reason.

    Args:
        config: resolved; out_dir is None if it follows from the recipe's name.
        reasons: why a value is what it is, by key.
        head: the comment that the file begins with.
    """
    plain = configs.build({}, "run")
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    for group, title in configs.GROUPS.items():
        entries = []
        for key in Config.model_fields:
            value = getattr(config, key)
            default = (getattr(plain, key), Config.model_fields[key].default)
            if configs.group_of(key) != group or (value in default and key not in reasons):
                continue
            unit = f" ({configs.unit_of(key)})" if configs.unit_of(key) else ""
            comment = f"{Config.model_fields[key].description}{unit}"
            if key in reasons:
                comment = _("{meaning}. Here: {reason}", meaning=comment, reason=reasons[key])
            entries += textwrap.wrap(comment, 110, initial_indent="# ", subsequent_indent="#   ")
            entries.append(f"{key}: {configs.yaml_scalar(value)}")
        if entries:
            lines += ["", f"# -- {title}", *entries]
    return "\n".join(lines) + "\n"


def write_recipe(path: Path, config: Config, reasons: Mapping[str, str], head: str) -> Config:
    """Write a recipe file and return the config that it loads to.

    Raises:
        InputError: there is such a file already, or it cannot be written.
    """
    if path.exists():
        raise InputError(
            _("write = {path!r}: exists already → choose another name, or remove it first", path=str(path))
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, recipe_text(config, reasons, head))
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(_("write = {path!r}: cannot be written: {reason}", path=str(path), reason=reason)) from None
    return configs.load(path)
