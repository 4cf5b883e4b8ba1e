"""Build a Config from a recipe and a command line.

In:  a recipe (YAML, a nanoGPT configuration, a run folder, or the name of a shipped recipe), and overrides:
     ``--key=value``, ``--key value``, ``--flag``, ``--no_flag``.
Out: one validated, immutable Config, or a ConfigError that lists every fault at once.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from hfgpt.base.command import Reader
from hfgpt.base.errors import ConfigError, Fault
from hfgpt.base.language import _
from hfgpt.config import rules, yaml_text
from hfgpt.config.fields import CALLED, INSTEAD, RENAMED, Config, with_role
from hfgpt.config.recipe_files import read_recipe, run_folder
from hfgpt.config.reference import allowed, alternatives
from hfgpt.config.yaml_text import LEADING_ZERO, RecipeLoader, leading_zero

# -------------------------------------------------------------------------------------------------- the command line


FLAGS_ELSEWHERE = (
    "decay_lr",
    "wandb_log",
    "bias",
    "bf16",
    "fp16",
    "gradient_checkpointing",
)  # nanoGPT's, the Trainer's


def _kind(key: str) -> str:
    field = Config.model_fields.get(key)
    takes = alternatives(field.annotation) if field is not None else []
    if bool in takes or key in FLAGS_ELSEWHERE:
        return "flag"
    return "text" if str in takes else "value"


# What a pretrained model brings along.
OWN_SHAPE = ("n_layer", "n_head", "n_embd", "n_inner", "activation_function", "tie_word_embeddings")


# Every parameter that a command line may set, and its kind: for base.command.Reader.
PARAMETERS = {key: _kind(key) for key in (*Config.model_fields, *RENAMED, *INSTEAD)}


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """Parse ``--key=value``, ``--key value``, ``--flag`` and ``--no_flag`` into keys and values of each field's type.

    Raises:
        ConfigError: a word is not an override, or an override lacks a value or is given twice.
    """
    values, faults = _overrides(words)
    if faults:
        raise ConfigError(faults)
    return values


def _overrides(words: Iterable[str]) -> tuple[dict[str, Any], list[Fault]]:
    typed = Reader("train", "", parameters=PARAMETERS, called=CALLED).read(list(words))
    values = dict[str, Any]()
    for word in typed.overrides:
        key, _equals, text = word.removeprefix("--").partition("=")
        values[key] = _read_text(Config.model_fields.get(key), text)
    return values, typed.faults


def _read_text(field: FieldInfo | None, text: str) -> Any:
    """Parse a value from the command line: as text for a text field, otherwise as YAML."""
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


# ------------------------------------------------------------------------------------------------------- validation


def _translate(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """Translate nanoGPT's names to ours, and whole floats to integers for integer fields (max_iters: 1e4)."""
    out, faults = dict[str, Any](), list[Fault]()
    for key, value in values.items():
        if key in RENAMED:
            if key in ("decay_lr", "wandb_log") and not isinstance(value, bool):
                faults.append(Fault(key, value, _("must be true or false")))
                continue
            key, value = RENAMED[key](value)
            if key in values:
                continue  # our own name takes precedence over nanoGPT's
        if key in INSTEAD:
            faults.append(Fault(key, None, _("is not a parameter here"), _(INSTEAD[key])))
        elif key not in Config.model_fields:
            faults.append(Fault(key, None, _("is not a parameter"), _closest(key)))
        elif (reason := _unusable(value)) or (key == "dataset" and (reason := yaml_text.fault_of(value))):
            faults.append(Fault(key, None, reason))
        else:
            out[key] = _normal(key, value)
    return out, faults


def _normal(key: str, value: Any) -> Any:
    """Normalize a value for its field: 1e4 becomes an integer for integer fields, and ~ in paths is expanded."""
    options = alternatives(Config.model_fields[key].annotation)
    if isinstance(value, float) and int in options and float not in options and value.is_integer():
        return int(value)
    if key == "dataset":
        value = yaml_text.as_text(value)
    return os.path.expanduser(value) if key in with_role("path") and isinstance(value, str) else value


def _unusable(value: Any) -> str:
    """Return why this value is invalid for any parameter; "" if it may be valid."""
    if isinstance(value, int) and value.bit_length() > 63:
        return _("must be a number of less than 2^63")
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        return _("must be UTF-8 text without NUL characters; rename the file or folder that it names")
    return ""


def _closest(key: str) -> str:
    if key in CALLED:
        return _("did you mean {name}?", name=repr(CALLED[key]))
    names = difflib.get_close_matches(key, [*Config.model_fields, *RENAMED], n=1, cutoff=0.6)
    return _("did you mean {name}?", name=repr(names[0])) if names else _("--help lists all parameters")


def _fault_of(error: Any) -> Fault:
    """Convert a pydantic error to a Fault that says what is allowed, in the field's unit."""
    key, value = str(error["loc"][0]), error["input"]
    ambiguous = isinstance(value, str) and LEADING_ZERO.fullmatch(value)
    return Fault(key, value, _("must be {what}", what=allowed(key)), leading_zero(value) if ambiguous else "")


def build(values: Mapping[str, Any], name: str, faults: Iterable[Fault] = ()) -> Config:
    """Validate keys and values against defaults, types, ranges and the rules across fields.

    Args:
        values: the merged values of the recipe and the command line.
        name: the recipe's name, for the default out_dir.
        faults: faults found earlier, to report with the rest.

    Raises:
        ConfigError: lists every fault, each with key, value, rule and fix.
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
    config = rules.resolve(config, re.sub("[\0\ud800-\udfff]", "_", name))
    keys = {fault.key for fault in wrong}
    wrong += [fault for fault in rules.faults(config) if not keys & {fault.key, *fault.others}]
    if wrong:
        raise ConfigError(wrong)
    return config


def load(
    recipe: str | Path | None,
    overrides: Iterable[str] = (),
    faults: Iterable[Fault] = (),
    changes: Mapping[str, Any] | None = None,
) -> Config:
    """Merge defaults < recipe < changes < overrides, validate and resolve. See :func:`build` for `faults` and errors.

    For a run folder, or the recipe in it, `out_dir` is the folder's present location.

    Args:
        changes: values in the place of the recipe's own, as an earlier recipe of its run had them.
    """
    typed, wrong = _overrides(overrides)
    values = {**(read_recipe(recipe) if recipe is not None else {}), **(changes or {})}
    if recipe is not None and (folder := run_folder(recipe)) is not None:
        values["out_dir"] = str(folder)
    name = Path(recipe).stem if recipe is not None else "run"
    return build(merge(values, typed), name, [*faults, *wrong])


def merge(values: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's values with the typed ones in their place, also those typed under another name, and with an
    lr_decay_iters that follows the typed max_iters.
    """
    replaced = set[str]()
    for old, to_new in RENAMED.items():  # such as decay_lr and lr_schedule
        new = to_new(None)[0]
        if new in typed or old in typed:
            replaced |= {old, new}
    if follows(values, typed):
        replaced.add("lr_decay_iters")
    return {**{key: value for key, value in values.items() if key not in replaced}, **typed}


def follows(values: Mapping[str, Any], typed: Mapping[str, Any]) -> bool:
    """Whether lr_decay_iters follows a typed max_iters, as it does if the recipe sets both to the same value."""
    end = values.get("lr_decay_iters")
    return end is not None and end == values.get("max_iters") and "max_iters" in typed and "lr_decay_iters" not in typed


# ----------------------------------------------------------------------------------------------------------- remarks


def remarks(recipe: str | Path | None, overrides: Iterable[str], config: Config) -> list[str]:
    """Return notes on typed values: those without effect, and their side effects."""
    typed = _overrides(overrides)[0]
    notes = []
    if recipe is not None and "max_iters" in typed and follows(read_recipe(recipe), typed):
        notes.append(
            _("lr_decay_iters follows max_iters to {steps}, as the two are equal in the recipe", steps=config.max_iters)
        )
    elif {"max_iters", "lr_decay_iters"} & typed.keys() and config.lr_schedule == "cosine":
        assert config.lr_decay_iters is not None
        if config.lr_decay_iters > config.max_iters:
            notes.append(
                _(
                    "the learning rate does not reach its minimum: it decays until step {decay}, and the run ends at "
                    "{steps}; --lr_decay_iters={steps} ends the decay with the run",
                    decay=config.lr_decay_iters,
                    steps=config.max_iters,
                )
            )
        elif config.lr_decay_iters < config.max_iters:
            notes.append(
                _(
                    "the learning rate stays at min_lr ({rate}) from step {decay} to the end at {steps}",
                    rate=f"{config.min_lr:g}",
                    decay=config.lr_decay_iters,
                    steps=config.max_iters,
                )
            )
    for keys, idle, reason in (
        (("lr_decay_iters", "min_lr"), config.lr_schedule == "constant", "lr_schedule: constant"),
        (("muon_learning_rate", "muon_momentum"), config.optimizer != "muon", f"optimizer: {config.optimizer}"),
        (OWN_SHAPE, config.pretrained, f"init_from: {config.init_from}"),
        (("decay_shape",), config.lr_schedule != "wsd", f"lr_schedule: {config.lr_schedule}"),
        (("project",), config.report_to == "none", "report_to: none"),
        (("hub_model_id", "hub_private"), not config.push_to_hub, "push_to_hub: false"),
    ):
        for key in keys:
            if idle and key in typed:
                notes.append(_("{key} has no effect with {reason}", key=key, reason=reason))
    return notes
