"""What a sweep tries: a grid, a random search, or one of the chapter's experiments (8.1).

In:  a recipe, or an experiment's file (`base`, `set`, `sweep` or `trials`, `equal`, `question`), and values to try.
Out: a :class:`Sweep`: its trials, all valid, and the config of each, with steps, tokens or time held equal.

:mod:`hfgpt.sweep.trials` runs it. Everything is decided and checked here before the first trial begins.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast, get_args

from hfgpt import config as configs
from hfgpt.base.errors import ConfigError, Fault, InputError
from hfgpt.base.units import seconds_of
from hfgpt.config import Config

Equal = Literal["steps", "tokens", "time"]

NOT_SWEPT = ("out_dir", "project", "sample_prompt", "init_from")  # text of these may hold a comma


@dataclass(frozen=True)
class Trial:
    """One combination of values: a run."""

    name: str
    values: dict[str, Any]

    @property
    def label(self) -> str:
        """The name in reports."""
        given = self.values.items()
        return ", ".join(f"{key}={value}" for key, value in given) if len(self.values) <= 2 else self.name


@dataclass(frozen=True)
class Sweep:
    """What is tried, decided before the first trial."""

    name: str
    recipe: dict[str, Any]  # the base recipe's keys and the overrides of every trial
    trials: list[Trial]
    folder: Path
    equal: Equal = "steps"
    question: str = ""
    grid: bool = True
    retry_failed: bool = False

    def config(self, trial: Trial) -> Config:
        """A trial's own config, before anything is held equal.

        Raises:
            ConfigError: with the faults of this combination.
        """
        out_dir = str(self.folder / "trials" / trial.name)
        return configs.build({**self.recipe, **trial.values, "out_dir": out_dir}, trial.name)


# ----------------------------------------------------------------------------------------------- what is to be tried


def define(source: str, words: Sequence[str], options: Mapping[str, str]) -> Sweep:
    """Read a sweep from the command line.

    Args:
        source: a recipe, or an experiment's file.
        words: overrides; those with commas (``--batch_size=16,32``) or a range (``--learning_rate=1e-4..1e-2``) are
            swept, the others hold for every trial.
        options: `random` (how many), `equal`, `out_dir`, `retry_failed`, as given.

    Raises:
        InputError: nothing to sweep, or a combination is not valid; names it. Nothing was written.
    """
    file = configs.read_recipe(source)
    base, swept, named = file, dict[str, list[Any]](), list[Trial]()
    if "base" in file:
        _check_experiment(source, file)
        base = configs.read_recipe(Path(source).parent / str(file["base"]))
        base |= file.get("set") or {}
        swept = {key: list(values) for key, values in (file.get("sweep") or {}).items()}
        named = [_named_trial(source, entry) for entry in file.get("trials") or []]
    fixed, typed, ranges = _read_words(words)
    swept |= typed
    swept = {key: values for key, values in swept.items() if key not in fixed}
    base = {**base, **fixed}
    equal = options.get("equal") or file.get("equal") or "steps"
    if equal not in get_args(Equal):
        raise InputError(f"equal = {equal!r}: must be one of {', '.join(get_args(Equal))}")
    stem = Path(source).stem
    keys = [*swept, *ranges]
    name = stem if "base" in file else "-".join([stem, *keys])
    folder = Path(options.get("out_dir") or f"out/sweep-{name}")
    if options.get("random"):
        trials = _sample(base, swept, ranges, _count(options["random"]))
    elif ranges:
        raise InputError(f"{next(iter(ranges))}: a range is searched at random → add --random N")
    else:
        trials = named if named and not typed else _grid(swept)
    if len(trials) < 2:
        raise InputError(f"{source}: nothing to sweep → give a field several values, such as --batch_size=16,32,64")
    question = str(file.get("question", "")).strip() if "base" in file else ""
    grid, retry = not options.get("random"), "retry_failed" in options
    sweep = Sweep(name, base, trials, folder, cast(Equal, equal), question, grid, retry)
    _check_trials(sweep)
    return sweep


EXPERIMENT_KEYS = ("base", "set", "sweep", "trials", "equal", "question")


def _check_experiment(source: str, file: Mapping[str, Any]) -> None:
    wrong = [key for key in file if key not in EXPERIMENT_KEYS]
    faults = [
        Fault(key, None, "is not a key of an experiment", f"there are {', '.join(EXPERIMENT_KEYS)}") for key in wrong
    ]
    for key, kind, told in (("set", dict, "mapping"), ("sweep", dict, "mapping"), ("trials", list, "list")):
        if not isinstance(file.get(key), kind | None):
            faults.append(Fault(key, file[key], f"must be a {told}"))
    for key, values in (file.get("sweep") or {}).items() if isinstance(file.get("sweep"), dict) else ():
        if not isinstance(values, list):
            faults.append(Fault(f"sweep.{key}", values, "must be a list of values", f"write {key}: [16, 32]"))
    if faults:
        raise ConfigError(faults)


def _named_trial(source: str, entry: Any) -> Trial:
    if not isinstance(entry, dict) or not entry.get("name"):
        raise InputError(
            f"{source}: each of `trials` must be a mapping with a name, such as {{name: small, n_layer: 2}}"
        )
    return Trial(_file_name(str(entry["name"])), {key: value for key, value in entry.items() if key != "name"})


NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"

RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})")


def _read_words(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[Any]], dict[str, tuple[float, float]]]:
    """Overrides → those of every trial, lists of values, and ranges."""
    fixed, swept, ranges = list[str](), dict[str, list[Any]](), dict[str, tuple[float, float]]()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--") and "=" not in word and rest and not rest[0].startswith("--"):
            word = f"{word}={rest.pop(0)}"
        key, _, text = word.removeprefix("--").partition("=")
        if key in NOT_SWEPT or not word.startswith("--"):
            fixed.append(word)
        elif match := RANGE.fullmatch(text):
            ranges[key] = _range(key, float(match[1]), float(match[2]))
        elif "," in text:
            parts = [part.strip() for part in text.split(",") if part.strip()]
            values = [configs.parse_overrides([f"--{key}={part}"])[key] for part in parts]
            swept[key] = list(dict.fromkeys(values))
        else:
            fixed.append(word)
    return configs.parse_overrides(fixed), swept, ranges


def _range(key: str, low: float, high: float) -> tuple[float, float]:
    options = _number_types(key)
    if not options:
        raise InputError(f"{key}: has no range → give a list of values, such as --{key}=a,b")
    if low >= high:
        raise InputError(f"{key} = {low:g}..{high:g}: the range must rise")
    return low, high


def _number_types(key: str) -> list[type]:
    """int, float or both, as the field takes them; [float] for a name that is no field, which is reported later."""
    if key not in Config.model_fields:
        return [float]
    annotation = Config.model_fields[key].annotation
    return [kind for kind in (get_args(annotation) or (annotation,)) if kind in (int, float)]


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 2:
        raise InputError(f"random = {text!r}: must be a whole number of trials, at least 2")
    return int(text)


def _grid(swept: Mapping[str, Sequence[Any]]) -> list[Trial]:
    if not swept:
        return []
    return [_trial(dict(zip(swept, values, strict=True))) for values in product(*swept.values())]


def _trial(values: dict[str, Any]) -> Trial:
    return Trial(_file_name("_".join(f"{key}-{value}" for key, value in values.items())), values)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text)[:120]


def _sample(
    base: Mapping[str, Any], swept: Mapping[str, Sequence[Any]], ranges: Mapping[str, tuple[float, float]], count: int
) -> list[Trial]:
    """Random combinations that are valid, the same ones each time; a longer search begins with a shorter one's.

    Raises:
        ConfigError: hardly any combination is valid; the faults of the last one.
    """
    generator, trials, fault = random.Random(configs.build(base, "sweep").seed), dict[str, Trial](), None
    for _ in range(100 * count):
        values: dict[str, Any] = {key: generator.choice(options) for key, options in swept.items()}
        values |= {key: _draw(generator, key, *ends) for key, ends in ranges.items()}
        trial = _trial(values)
        try:
            configs.build({**base, **values}, trial.name)
        except ConfigError as error:
            fault = error
            continue
        trials.setdefault(trial.name, trial)
        if len(trials) == count:
            return list(trials.values())
    if fault is not None:
        raise fault
    raise InputError(f"random = {count}: there are only {len(trials)} different combinations → ask for fewer")


def _draw(generator: random.Random, key: str, low: float, high: float) -> float | int:
    """A value of a range: logarithmic where it spans a decade or more, whole for a field of whole numbers."""
    if low > 0 and high >= 10 * low:
        value = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
        value = generator.uniform(low, high)
    return round(value) if _number_types(key) == [int] else float(f"{value:.3g}")


def _check_trials(sweep: Sweep) -> None:
    faults = []
    for trial in sweep.trials:
        try:
            sweep.config(trial)
        except ConfigError as error:
            told = "" if len(trial.values) < 2 else f" (with {trial.label})"
            faults += [Fault(fault.key, fault.value, fault.rule + told, fault.fix) for fault in error.faults]
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))
    names = [trial.name for trial in sweep.trials]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"trials: {twice!r} is there twice")
    if sweep.equal == "time" and not configs.build(sweep.recipe, "base").max_time:
        raise InputError("equal = 'time': needs the time that each trial gets → add --max_time=10m")
    if sweep.equal == "tokens" and any("max_iters" in trial.values for trial in sweep.trials):
        raise InputError("equal = 'tokens': decides max_iters, which is swept here → sweep something else")


# ------------------------------------------------------------------------------------------------- what is held equal


def equalised(sweep: Sweep, trial: Trial, seconds_per_step: float | None) -> Config:
    """A trial's config with its length changed, so that all trials get equal steps, tokens or training time.

    The learning-rate schedule and the evaluations are stretched or shrunk with it.

    Args:
        sweep, trial: what is run.
        seconds_per_step: of this trial, measured; for equal time.
    """
    config, base = sweep.config(trial), configs.build(sweep.recipe, "base")
    if sweep.equal == "steps":
        return config
    if sweep.equal == "tokens":
        steps = base.max_iters * base.tokens_per_iter / config.tokens_per_iter
    else:
        assert seconds_per_step is not None, "measured before"
        steps = seconds_of(base.max_time or "") / seconds_per_step
    steps = max(2, round(steps))
    keys = ("warmup_iters", "lr_decay_iters", "eval_interval", "log_interval")
    scaled = {key: max(1, round(getattr(config, key) * steps / config.max_iters)) for key in keys}
    return config.model_copy(update={**scaled, "max_iters": steps, "max_time": None})
