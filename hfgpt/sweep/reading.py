"""Read a sweep: from a command line, or from an experiment's file (such as the chapter's 8.1).

In:  a recipe or an experiment's file (`base`, `set`, `sweep` or `trials`, `equal`, `question`), and arguments.
Out: a :class:`hfgpt.sweep.definition.Sweep`, checked. Nothing is written.
"""

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, cast, get_args

from hfgpt import config as configs
from hfgpt.base import language
from hfgpt.base.errors import ConfigError, Fault, InputError
from hfgpt.base.language import N_, _, listed
from hfgpt.config import Config, with_role
from hfgpt.sweep.definition import Equal, Sweep, Trial

# values of these fields may contain a comma
NOT_SWEPT = ("out_dir", "project", "wandb_project", "sample_prompt", "init_from", *with_role("paths"))
COMMA = re.compile(r",(?![^\[]*\])")  # between values, not inside a mix of corpora in brackets


def define(source: str, words: Sequence[str], options: Mapping[str, str]) -> Sweep:
    """Read a sweep from the command line.

    Args:
        source: a recipe, or an experiment's file.
        words: overrides; those with commas (``--batch_size=16,32``) or a range (``--learning_rate=1e-4..1e-2``) are
            swept, the others apply to every trial.
        options: `random` (how many), `seeds` (how many), `equal`, `out_dir`, as typed; `retry_failed`, `prune`.

    Raises:
        InputError: nothing to sweep, or a combination is invalid; names it. Nothing was written.
    """
    file = configs.read_recipe(source)
    base, swept, named = file, dict[str, list[Any]](), list[Trial]()
    experiment = "base" in file
    if experiment:
        _check_experiment(file)
        base = configs.merge(configs.read_recipe(Path(source).parent / str(file["base"])), file.get("set") or {})
        swept = {key: list(values) for key, values in (file.get("sweep") or {}).items()}
        named = [_named_trial(source, entry) for entry in file.get("trials") or []]
    fixed, typed, ranges = _read_words(words)
    swept = {key: values for key, values in (swept | typed).items() if key not in fixed}
    _check_distinct(swept)
    seeds = _seeds(
        base | fixed, swept, options.get("seeds") or (str(file["seeds"]) if experiment and "seeds" in file else "")
    )
    equal = options.get("equal") or (file.get("equal") if experiment else None) or "steps"
    if equal not in get_args(Equal):
        raise InputError("equal = {given!r}: must be one of {choices}", given=equal, choices=listed(get_args(Equal)))
    stem = Path(source).stem
    name = stem if experiment else "-".join([stem, *swept, *ranges])
    if options.get("random"):
        settings = _sample(base, fixed, swept, ranges, _count("random", options["random"]))
    elif ranges:
        raise InputError("{key}: a range is searched at random → add --random N", key=next(iter(ranges)))
    else:
        settings = named if named and not typed else _grid(swept)
    _check_number(len(settings) * len(seeds))
    if seeds != [None] and not settings:  # how much the recipe itself varies
        settings = [Trial(_file_name(stem), {})]
    if len(settings) * len(seeds) < 2:
        raise InputError(
            "{recipe}: nothing to sweep → give a field several values, such as --batch_size=16,32,64, or --seeds=3",
            recipe=source,
        )
    trials = settings
    if seeds != [None]:
        if "prune" in options:
            raise InputError(
                "prune: stops a setting's bad seeds and keeps its good ones, so its mean is too low → leave out --prune"
            )
        trials = [replace(each, name=f"{each.name}_seed-{seed}", seed=seed) for seed in seeds for each in settings]
    sweep = Sweep(
        name=name,
        recipe=base,
        trials=trials,
        folder=Path(options.get("out_dir") or f"out/sweep-{name}"),
        overrides=fixed,
        equal=cast(Equal, equal),
        question=_in_language(file.get("question", "")) if experiment else "",
        grid=not options.get("random"),
        retry_failed="retry_failed" in options,
        prune="prune" in options,
    )
    sweep.check()
    return sweep


# --------------------------------------------------------------------------------------------- an experiment's file

MOST_TRIALS = 10_000
EXPERIMENT_KEYS = ("base", "set", "sweep", "trials", "seeds", "equal", "question")

KINDS = {"set": (dict, N_("must be a mapping")), "sweep": (dict, N_("must be a mapping")),
         "trials": (list, N_("must be a list"))}  # fmt: skip


def _check_experiment(file: Mapping[str, Any]) -> None:
    known = listed(EXPERIMENT_KEYS)
    faults = [
        Fault(key, None, _("is not a key of an experiment"), _("there are {keys}", keys=known))
        for key in file
        if key not in EXPERIMENT_KEYS
    ]
    for key, (kind, rule) in KINDS.items():
        if not isinstance(file.get(key), kind | None):
            faults.append(Fault(key, file[key], _(rule)))
    for key, values in (file.get("sweep") or {}).items() if isinstance(file.get("sweep"), dict) else ():
        if not isinstance(values, list):
            fix = _("write {example}", example=f"{key}: [16, 32]")
            faults.append(Fault(f"sweep.{key}", values, _("must be a list of values"), fix))
    if faults:
        raise ConfigError(faults)


def _in_language(text: Any) -> str:
    """Return a text of an experiment's file, which may be given as {en: …, zh: …}, in the current language."""
    if isinstance(text, dict):
        text = text.get(language.current()) or text.get("en") or next(iter(text.values()), "")
    return str(text).strip()


def _named_trial(source: str, entry: Any) -> Trial:
    if not isinstance(entry, dict) or not entry.get("name"):
        raise InputError(
            "{recipe}: each of `trials` must be a mapping with a name, such as {example}",
            recipe=source,
            example="{name: small, n_layer: 2}",
        )
    with language.using("en"):  # the folder has one name in all languages
        name = _in_language(entry["name"])
    values = {key: value for key, value in entry.items() if key != "name"}
    return Trial(_file_name(name), values, title=_in_language(entry["name"]))


# ------------------------------------------------------------------------------------------------- the arguments typed

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})")


def _read_words(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[Any]], dict[str, tuple[float, float]]]:
    """Split overrides into common ones, lists of values, and ranges."""
    fixed, swept, ranges = list[str](), dict[str, list[Any]](), dict[str, tuple[float, float]]()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--") and "=" not in word and rest and not rest[0].startswith("--"):
            word = f"{word}={rest.pop(0)}"
        key, _equals, text = word.removeprefix("--").partition("=")
        if key in NOT_SWEPT or not word.startswith("--"):
            fixed.append(word)
        elif match := RANGE.fullmatch(text):
            ranges[key] = _range(key, float(match[1]), float(match[2]))
        elif COMMA.search(text):
            parts = [part.strip() for part in COMMA.split(text) if part.strip()]
            values = [configs.parse_overrides([f"--{key}={part}"])[key] for part in parts]
            swept[key] = values
        else:
            fixed.append(word)
    return configs.parse_overrides(fixed), swept, ranges


def _check_distinct(swept: Mapping[str, Sequence[Any]]) -> None:
    for key, values in swept.items():
        if twice := [value for value in values if values.count(value) > 1]:
            raise InputError("{key}: {value} is listed twice → --seeds=2 repeats a setting", key=key, value=twice[0])


def _range(key: str, low: float, high: float) -> tuple[float, float]:
    if not _number_types(key):
        raise InputError("{key}: has no range → give a list of values, such as --{key}=a,b", key=key)
    if low >= high:
        raise InputError("{key} = {low:g}..{high:g}: the range must rise", key=key, low=low, high=high)
    return low, high


def _number_types(key: str) -> list[type]:
    """Return the field's number types: int, float or both; [float] for an unknown field, which is reported later."""
    if key not in Config.model_fields:
        return [float]
    annotation = Config.model_fields[key].annotation
    return [kind for kind in (get_args(annotation) or (annotation,)) if kind in (int, float)]


def _count(key: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 12 or int(text) < 2:
        raise InputError("{key} = {given!r}: must be a whole number, at least 2", key=key, given=text[:40])
    _check_number(int(text))
    return int(text)


def _check_number(trials: int) -> None:
    """Refuse an unrealistic number of trials, before they are listed one by one. Raises InputError."""
    if trials > MOST_TRIALS:
        raise InputError(
            "sweep: {n:,} trials, and {most:,} are the most → fewer values, or --random N", n=trials, most=MOST_TRIALS
        )


def _seeds(base: Mapping[str, Any], swept: dict[str, list[Any]], given: str) -> list[int | None]:
    """Return the seeds of every setting: `seeds` of them from the recipe's own on, or those listed in --seed; [None]:
    only the recipe's own.
    """
    listed = swept.pop("seed", None)
    if listed and given:
        raise InputError("seeds: contradicts the list of --seed → give one of the two")
    if listed:
        return list(listed)
    if not given:
        return [None]
    first = int(base.get("seed", Config.model_fields["seed"].default))
    return list(range(first, first + _count("seeds", given)))


# ------------------------------------------------------------------------------------------------------ the settings


def _grid(swept: Mapping[str, Sequence[Any]]) -> list[Trial]:
    if not swept:
        return []
    _check_number(math.prod(map(len, swept.values())))
    return [_trial(dict(zip(swept, values, strict=True))) for values in product(*swept.values())]


def _trial(values: dict[str, Any]) -> Trial:
    return Trial(_file_name("_".join(f"{key}-{value}" for key, value in values.items())), values)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text)[:120]


def _sample(
    base: Mapping[str, Any],
    fixed: Mapping[str, Any],
    swept: Mapping[str, Sequence[Any]],
    ranges: Mapping[str, tuple[float, float]],
    count: int,
) -> list[Trial]:
    """Return valid random combinations, reproducibly; a longer search begins with those of a shorter one.

    Raises:
        ConfigError: hardly any combination is valid; lists the faults of the last one.
    """
    generator, trials, fault = (
        random.Random(configs.build(configs.merge(base, fixed), "sweep").seed),
        dict[str, Trial](),
        None,
    )
    for _attempt in range(100 * count):
        values: dict[str, Any] = {key: generator.choice(options) for key, options in swept.items()}
        values |= {key: _draw(generator, key, *ends) for key, ends in ranges.items()}
        trial = _trial(values)
        try:
            configs.build(configs.merge(base, {**fixed, **values}), trial.name)
        except ConfigError as error:
            fault = error
            continue
        trials.setdefault(trial.name, trial)
        if len(trials) == count:
            return list(trials.values())
    if fault is not None:
        raise fault
    raise InputError(
        "random = {count}: there are only {different} different combinations → ask for fewer",
        count=count,
        different=len(trials),
    )


def _draw(generator: random.Random, key: str, low: float, high: float) -> float | int:
    """Draw a value from a range: log-uniform if it spans a decade or more, an integer for an integer field."""
    if low > 0 and high >= 10 * low:
        value = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
        value = generator.uniform(low, high)
    return round(value) if _number_types(key) == [int] else float(f"{value:.3g}")
