"""A sweep: the settings to try, the seeds of each, and what is held equal between trials.

In:  a base recipe, settings and seeds (hfgpt/sweep/reading.py reads them from a command line or an experiment's file).
Out: a :class:`Sweep`: its trials, all valid, and the config of each, with steps, tokens or time held equal.

:mod:`hfgpt.sweep.trials` runs it. Everything is decided and checked here, before the first trial begins.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hfgpt import config as configs
from hfgpt.base.errors import ConfigError, Fault, InputError
from hfgpt.base.language import _
from hfgpt.base.units import seconds_of
from hfgpt.config import Config

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
    recipe: dict[str, Any]  # the base recipe's keys and the overrides common to all trials
    trials: list[Trial]  # every setting with the first seed, then every setting with the second, and so on
    folder: Path  # where the sweep is written
    equal: Equal = "steps"  # what is held equal between trials
    question: str = ""
    grid: bool = True  # whether the settings are all combinations of values, not a random sample
    # whether failed trials are retried, and hopeless ones are stopped early
    retry_failed: bool = False
    prune: bool = False

    def config(self, trial: Trial) -> Config:
        """Return a trial's own config, before anything is held equal.

        Raises:
            ConfigError: this combination is invalid; lists its faults.
        """
        changes: dict[str, Any] = {"out_dir": str(self.folder / "trials" / trial.name)}
        if trial.seed is not None:
            changes["seed"] = trial.seed
        return configs.build({**self.recipe, **trial.values, **changes}, trial.name)

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
        faults = []
        for trial in self.trials:
            try:
                self.config(trial)
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
        if self.equal == "time" and not configs.build(self.recipe, "base").max_time:
            raise InputError("equal = 'time': needs the time that each trial gets → add --max_time=10m")
        if self.equal == "tokens" and any("max_iters" in trial.values for trial in self.trials):
            raise InputError("equal = 'tokens': decides max_iters, which is swept here → sweep something else")


def equalised(sweep: Sweep, trial: Trial, seconds_per_step: float | None) -> Config:
    """Return a trial's config with its length changed, so that all trials get equal steps, tokens or training time.

    The learning-rate schedule and the evaluations are scaled with it.

    Args:
        sweep, trial: the sweep, and one of its trials.
        seconds_per_step: measured for this trial's setting; for equal time.
    """
    config, base = sweep.config(trial), configs.build(sweep.recipe, "base")
    if sweep.equal == "steps":
        return config
    if sweep.equal == "tokens":
        steps = config.batch_sizes.steps(base.tokens_by(base.max_iters) / config.block_size)
    else:
        assert seconds_per_step is not None, "measured before"
        steps = config.batch_sizes.steps(seconds_of(base.max_time or "") / seconds_per_step * config.global_batch)
    steps = max(2, round(steps))
    keys = ("warmup_iters", "lr_decay_iters", "eval_interval", "log_interval")
    scaled = {key: max(1, round(getattr(config, key) * steps / config.max_iters)) for key in keys}
    return config.model_copy(update={**scaled, "max_iters": steps, "max_time": None})
