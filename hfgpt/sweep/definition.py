"""A sweep: the settings to try, the seeds of each, and what is held equal between trials.

In:  a base recipe, settings and seeds (hfgpt/sweep/reading.py reads them from a command line or an experiment's file).
Out: a :class:`Sweep`: its trials, all valid, and the config of each, with steps, tokens or time held equal.

:mod:`hfgpt.sweep.trials` runs it. Everything is decided and checked here, before the first trial begins.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hfgpt import config as configs
from hfgpt.base.errors import ConfigError, Fault, InputError
from hfgpt.base.language import _
from hfgpt.base.units import seconds_of
from hfgpt.config import Config
from hfgpt.config.fields import BatchSizes

Equal = Literal["steps", "tokens", "time"]

STARTUP_TRIALS = 4  # finished trials before one can be pruned: their median is the yardstick


@dataclass(frozen=True)
class Trial:
    """A run of the sweep: a setting (its values), and a seed if the sweep has several.

    `title` is the setting's name in the experiment's file, if it has one.
    """

    name: str
    values: dict[str, Any]
    seed: int | None = None
    title: str = ""

    @property
    def setting(self) -> str:
        """The setting in reports: its title, otherwise its values, or its name if there are many."""
        if self.title:
            return self.title
        if self.values and len(self.values) <= 2:
            return ", ".join(f"{key}={value}" for key, value in self.values.items())
        return self.name if self.seed is None else self.name.rpartition("_seed-")[0]

    @property
    def label(self) -> str:
        """The trial's label in reports."""
        return self.setting if self.seed is None else f"{self.setting}, seed={self.seed}"


@dataclass(frozen=True)
class Sweep:
    """All trials of a sweep, decided before the first one begins."""

    # its title, and the question that it is to answer
    name: str
    recipe: dict[str, Any]  # the base recipe's keys
    trials: list[Trial]  # every setting with the first seed, then every setting with the second, and so on
    folder: Path  # where the sweep is written
    overrides: dict[str, Any] = field(default_factory=dict)  # common to all trials
    equal: Equal = "steps"  # what is held equal between trials
    question: str = ""
    grid: bool = True  # whether the settings are all combinations of values, not a random sample
    # whether failed trials are retried, and hopeless ones are stopped early
    retry_failed: bool = False
    prune: bool = False

    @property
    def common(self) -> dict[str, Any]:
        """The recipe's keys with the overrides common to all trials."""
        return configs.merge(self.recipe, self.overrides)

    def config(self, trial: Trial) -> Config:
        """Return a trial's own config, before anything is held equal.

        Raises:
            ConfigError: this combination is invalid; lists its faults.
        """
        changes: dict[str, Any] = {"out_dir": str(self.folder / "trials" / trial.name)}
        if trial.seed is not None:
            changes["seed"] = trial.seed
        return configs.build(configs.merge(self.recipe, {**self.overrides, **trial.values, **changes}), trial.name)

    def settings(self) -> dict[str, list[Trial]]:
        """Return the trials by setting, one per seed."""
        grouped: dict[str, list[Trial]] = {}
        for trial in self.trials:
            grouped.setdefault(trial.setting, []).append(trial)
        return grouped

    def check(self) -> None:
        """Check that every trial can be run.

        Raises:
            InputError: a trial cannot run, two have the same name, or what is held equal contradicts what is swept.
        """
        faults, budgets, limits = [], list[str](), list[str]()
        for trial in self.trials:
            try:
                config = self.config(trial)
                budgets += filter(None, [config.time_budget])
                limits += filter(None, [config.max_time])
            except ConfigError as error:
                for fault in error.faults:
                    rule = fault.rule
                    if len(trial.values) > 1:
                        rule = _("{rule} (with {values})", rule=rule, values=trial.setting)
                    faults.append(Fault(fault.key, fault.value, rule, fault.fix))
        if faults:
            raise ConfigError(list(dict.fromkeys(faults)))
        names = [trial.name for trial in self.trials]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError("trials: two of them have the name {name!r}", name=twice)
        if limits and self.equal != "time":
            raise InputError(
                "max_time = {time!r}: would end a trial before its last step, and equal = {equal!r} compares whole "
                "ones → add --equal time, which gives each trial this time, or --max_time=none",
                time=limits[0],
                equal=self.equal,
            )
        if self.equal == "steps":
            return
        if budgets:
            raise InputError(
                "time_budget = {time!r}: decides the length of a trial, as equal = {equal!r} does → leave one of the "
                "two out",
                time=budgets[0],
                equal=self.equal,
            )
        for key in ("max_iters", "max_time"):
            if any(key in trial.values for trial in self.trials):
                raise InputError(
                    "equal = {equal!r}: decides {key}, which is swept here → sweep something else",
                    equal=self.equal,
                    key=key,
                )
        base = configs.build(self.common, "base")  # its length is the yardstick, so it must be valid too
        if self.equal == "time" and not base.max_time:
            raise InputError("equal = 'time': needs the time that each trial gets → add --max_time=10m")


def equalised(sweep: Sweep, trial: Trial, seconds_per_step: float | None) -> Config:
    """Return a trial's config with its length changed, so that all trials get equal steps, tokens or training time.

    Its schedules and evaluations are scaled with it, and the result is as valid as the trial's own config.

    Args:
        sweep, trial: the sweep, and one of its trials.
        seconds_per_step: measured for this trial's setting; for equal time.
    """
    config, base = sweep.config(trial), configs.build(sweep.common, "base")
    if sweep.equal == "steps":
        return config
    if sweep.equal == "tokens":
        sequences = base.tokens_by(base.max_iters) / config.block_size
    else:
        assert seconds_per_step is not None, "measured before"
        sequences = seconds_of(base.max_time or "") / seconds_per_step * config.global_batch
    # The batch's warm-up comes first: the number of steps that read these sequences follows from it.
    batch_warmup = round(config.batch_warmup_iters * sequences / config.batch_sizes.before(config.max_iters))
    steps = max(2, round(BatchSizes(config.global_batch, batch_warmup).steps(sequences)))
    return _stretched(config, steps).model_copy(update={"batch_warmup_iters": min(batch_warmup, steps - 1)})


def _stretched(config: Config, steps: int) -> Config:
    """Return a config with this many steps, and what is counted in steps scaled within the rules between fields."""
    assert config.warmup_iters is not None, "resolve() fills it in"

    def scaled(count: int | None) -> int:
        return max(1, round((count or 0) * steps / config.max_iters))

    # Rounding a few steps must not close the gaps that the rules ask for between the warm-up, the decay and the end.
    holds = config.lr_schedule in ("hold_cosine", "wsd")
    warmup = min(scaled(config.warmup_iters), steps - (2 if holds else 1)) if config.warmup_iters else 0
    decay = max(warmup + 1, scaled(config.lr_decay_iters))
    interval, tasks_interval = scaled(config.eval_interval), config.eval_tasks_interval
    return config.model_copy(
        update={
            "max_iters": steps,
            "max_time": None,
            "warmup_iters": warmup,
            "lr_decay_iters": min(decay, steps - 1) if holds else decay,
            "eval_interval": interval,
            "eval_tasks_interval": tasks_interval and tasks_interval // config.eval_interval * interval,
            "log_interval": scaled(config.log_interval),
        }
    )
