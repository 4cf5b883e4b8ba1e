"""Run a sweep: each trial a real training in a process of its own.

In:  a :class:`hfgpt.sweep.definition.Sweep`.
Out: its folder, with a run folder a trial (``trials/``), what each printed (``logs/``), Optuna's storage
     (``journal.log``, for its dashboard too), and the report: ``report.md``, ``report.json`` and figures.

A sweep that was killed goes on with the same command. Several processes share the work if the same command is given
several times. A training that outlived its sweep is waited for.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hfgpt.base.files import replace_file
from hfgpt.base.language import _, plural
from hfgpt.config import Config
from hfgpt.sweep import locks, report, training
from hfgpt.sweep.definition import Sweep, equalised
from hfgpt.sweep.progress import Progress
from hfgpt.sweep.signals import Signals, Stopped
from hfgpt.sweep.storage import Claim, Storage

POLL_SECONDS = 1.0

PROBE_ROUNDS = 2  # a step's time is the lower of two measurements, taken in turns: other work only slows one down


def run(sweep: Sweep, train: Sequence[str], say: Callable[[str], None] = print) -> Path:
    """Run what is still to be done, wait for what other processes are doing, and write the report.

    Args:
        sweep: what to run.
        train: what stands behind `python` to train a recipe, such as a script.
        say: is given each event as a line.

    Returns:
        The path of report.md.

    Raises:
        InputError: the folder holds another sweep, or Optuna is not installed.
        Stopped: a signal came; the trial in hand has written its checkpoint.
    """
    storage = Storage(sweep)
    say(
        plural("{folder}: {n} trial of {name}, equal {equal}", "{folder}: {n} trials of {name}, equal {equal}",
               len(sweep.trials), folder=sweep.folder, name=sweep.name, equal=sweep.equal)
    )  # fmt: skip
    seconds = _measure_steps(sweep, train, say) if sweep.equal == "time" else {}
    ended = ("finished", "failed", "diverged", "pruned")
    done = [name for name, outcome in storage.outcomes().items() if outcome.startswith(ended)]
    with Signals() as signals:
        progress = Progress(sweep, say, done)
        while (claim := storage.claim()) is not None or storage.running_elsewhere():
            if claim is None:  # wait: a training that outlived its sweep is then to be recorded
                time.sleep(POLL_SECONDS)
                progress.show(None)
            else:
                with claim:
                    config = _config(sweep, claim, seconds)
                    _run_trial(sweep, claim, config, train, signals, progress)
            if signals.received:
                raise Stopped(signals.received)
    with storage.lock():
        return report.write(sweep, storage.outcomes())


def _config(sweep: Sweep, claim: Claim, seconds: dict[str, float]) -> Config:
    """The config that the trial runs with."""
    step = seconds.get(claim.trial.setting, math.nan)
    if sweep.equal == "time" and not math.isfinite(step):
        return sweep.config(claim.trial)  # it cannot train: the trial itself will say why
    return equalised(sweep, claim.trial, step)


def _measure_steps(sweep: Sweep, train: Sequence[str], say: Callable[[str], None]) -> dict[str, float]:
    """Seconds of a step by setting. Measured once, by one process, and kept: a resume has the same length."""
    path = sweep.folder / "seconds_per_step.json"
    lock = locks.take(sweep.folder / "locks" / "measuring", wait=True)
    assert lock is not None, "waited for"
    with lock:
        known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        missing = {setting: trials[0] for setting, trials in sweep.settings().items() if setting not in known}
        if missing:
            say(plural("measuring a step of {n} setting", "measuring a step of {n} settings", len(missing)))
        measured: dict[str, list[float]] = {setting: [] for setting in missing}
        for _round in range(PROBE_ROUNDS):
            for setting, trial in missing.items():
                measured[setting].append(
                    training.seconds_per_step(train, sweep.config(trial), sweep.folder, trial.name)
                )
        known |= {setting: min(times) for setting, times in measured.items() if all(map(math.isfinite, times))}
        replace_file(path, json.dumps(known, indent=2) + "\n")
    return known


def _run_trial(
    sweep: Sweep, claim: Claim, config: Config, train: Sequence[str], signals: Signals, progress: Progress
) -> None:
    """Train one trial to its end and record it; a stop leaves it to be resumed."""
    trial = claim.trial
    log = sweep.folder / "logs" / f"{trial.name}.log"
    child = training.start(train, config, sweep.folder / "recipes" / f"{trial.name}.yaml", log)
    claim.note_process(child.pid)
    signals.child, pruned = child, False
    while child.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(POLL_SECONDS)
        claim.report(training.records(config.run_dir), config.max_iters)
        if sweep.prune and not pruned and claim.is_hopeless():
            pruned = True
            signals.stop_child()
        progress.show(trial)
    signals.child = None
    written = training.records(config.run_dir)
    claim.report(written, config.max_iters)
    if signals.received:
        return
    share = written[-1]["step"] / config.max_iters if written else 0.0
    if pruned and share < 1:
        outcome, value = f"pruned at {share:.0%}", None
    else:
        outcome, value = training.outcome(trial.label, config, child.returncode, log)
    claim.end(outcome, value, config.run_dir)
    shown = _("validation loss {loss:.4f}", loss=value) if value is not None else outcome
    progress.end(trial, f"{trial.label}: {shown}")


__all__ = ["Stopped", "run"]
