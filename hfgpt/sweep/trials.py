"""Run a sweep: each trial is a real training run in its own process.

In:  a :class:`hfgpt.sweep.definition.Sweep`.
Out: its folder, with a run folder per trial (``trials/``), their output (``logs/``), Optuna's storage (``journal.log``,
     for its dashboard too), and the report: ``report.md``, ``report.json`` and figures.

A killed sweep resumes with the same command. Several processes share the work if the same command is started several
times. A training that outlived its sweep is waited for.
"""

import contextlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from hfgpt import config as configs
from hfgpt.base.errors import UNREADABLE
from hfgpt.base.files import disk_errors, read_regular, replace_file
from hfgpt.base.language import _, plural
from hfgpt.base.terminal import visible
from hfgpt.base.units import duration
from hfgpt.config import Config, with_role
from hfgpt.runs import horizon
from hfgpt.runs.answer import ended
from hfgpt.sweep import report, training
from hfgpt.sweep.definition import STARTUP_TRIALS, Sweep, Trial, equalised
from hfgpt.sweep.storage import Claim, Storage, wait_for
from hfgpt.sweep.training import Signals, records

POLL_SECONDS = 1.0
PROBE_ROUNDS = 2  # the step time is the lower of two interleaved measurements, since other work only slows one down


class Progress:
    def __init__(self, sweep: Sweep, say: Callable[[str], None], done: Collection[str] = ()) -> None:
        self._sweep, self._say, self._complete = sweep, say, set(done)
        self._work = dict[str, float]()
        for trial in sweep.trials:
            config = sweep.config(trial) if sweep.equal == "time" else equalised(sweep, trial, None)
            self._work[trial.name] = _work(config)
        self._began, self._before, self._last = time.monotonic(), self._done(), 0.0
        self._live = sys.stderr.isatty()

    def _share(self, trial: Trial) -> float:
        if trial.name in self._complete:
            return 1.0
        recipe = self._sweep.folder / "recipes" / f"{trial.name}.yaml"
        written = records(self._sweep.folder / "trials" / trial.name)
        if not written or not recipe.exists():
            return 0.0
        share = training.share(configs.load(recipe), written)
        if share == 1.0:
            self._complete.add(trial.name)
        return share

    def _done(self) -> float:
        return sum(self._work[trial.name] * self._share(trial) for trial in self._sweep.trials)

    def end(self, trial: Trial, text: str) -> None:
        """Print the end of a trial on its own line."""
        self._complete.add(trial.name)
        self.say(text)

    def say(self, text: str) -> None:
        """Print an event on its own line."""
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        self._say(text)

    def show(self, trial: Trial | None) -> None:
        """Show the sweep's progress; `trial` is the current one, None while waiting for other processes."""
        now = time.monotonic()
        if now - self._last < (2 if self._live else 30):
            return
        self._last = now
        total, done = sum(self._work.values()), self._done()
        gained, elapsed = done - self._before, now - self._began
        left = _("time left: not known yet")
        if gained > 0.002 * total:
            left = _("about {time} left", time=duration((total - done) / gained * elapsed))
        at = f"{trial.label} {self._share(trial):.0%}" if trial else _("waiting for other processes")
        line = _("sweep: {share:.0%} done; now {at}; {left}", share=done / total, at=at, left=left)
        if self._live:
            print(f"\r\033[K{visible(line)}", end="", file=sys.stderr, flush=True)
        else:
            self._say(line)


def _work(config: Config) -> float:
    """Estimate a run's arithmetic: tokens times weights and attention."""
    weights = 12 * config.n_layer * config.n_embd**2 + 400 * config.n_embd
    attention = 12 * config.n_layer * config.n_embd * config.block_size
    return config.tokens_by(config.max_iters) * (6 * weights + attention)


def run(sweep: Sweep, train: Sequence[str], say: Callable[[str], None] = print) -> Path:
    """Run the remaining trials, wait for those of other processes, and write the report.

    Args:
        train: the arguments of `python` that train a recipe, such as a script.
        say: called with each event as a line.

    Returns:
        The path of report.md.

    Raises:
        InputError: the folder holds another sweep, or Optuna is not installed.
        Stopped: a signal came; the current trial has written its checkpoint.
        OSError: the disk is full or not writable; the same command resumes.
    """
    with disk_errors(sweep.folder):
        return _run(sweep, train, say)


def _run(sweep: Sweep, train: Sequence[str], say: Callable[[str], None]) -> Path:
    storage = Storage(sweep)
    say(
        plural("{folder}: {n} trial of {name}, equal {equal}", "{folder}: {n} trials of {name}, equal {equal}",
               len(sweep.trials), folder=sweep.folder, name=sweep.name, equal=_(sweep.equal))
    )  # fmt: skip
    if sweep.prune and len(sweep.trials) <= STARTUP_TRIALS:
        say(
            _("--prune stops nothing here: it begins once {n} trials have finished, with a trial after them",
              n=STARTUP_TRIALS)
        )  # fmt: skip
    seconds, unmeasured = _measure_steps(sweep, train, say) if sweep.equal == "time" else ({}, {})
    ended = ("finished", "failed", "diverged", "pruned")
    done = [name for name, outcome in storage.outcomes().items() if outcome.startswith(ended)]
    with Signals() as signals:
        progress = Progress(sweep, say, done)
        announced = dict[str, str]()
        while (claim := storage.claim()) is not None or (running := storage.running_elsewhere()):
            if claim is None:  # wait, then record the trainings that outlived their sweep
                for name, holder in running.items():
                    if announced.get(name) != holder:
                        say(_("waiting for {trial}: {holder}", trial=name, holder=holder))
                announced = running
                time.sleep(POLL_SECONDS)
                progress.show(None)
            else:
                with claim:
                    setting = claim.trial.setting
                    if setting in unmeasured:  # at its own length it would have another time than the others
                        own = sweep.config(claim.trial).run_dir
                        _end(claim, unmeasured[setting], None, own, progress)
                    else:
                        config = equalised(sweep, claim.trial, seconds.get(setting))
                        _run_trial(sweep, claim, config, train, signals, progress)
            signals.check()
    with storage.lock():
        return report.write(sweep, storage.outcomes())


def _measure_steps(
    sweep: Sweep, train: Sequence[str], say: Callable[[str], None]
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the seconds per step by setting, and how the trials end of settings whose step cannot be measured.

    The seconds are measured once and kept, so that a resume has the same length. Settings whose steps do the same work
    share a measurement: otherwise its error would give one of them more steps.
    """
    path = sweep.folder / "seconds_per_step.json"
    with wait_for(sweep.folder / "locks" / "measuring"):
        known, failed = _known_seconds(path), dict[str, str]()
        alike = _alike(sweep)
        # Of the settings with the same work one is measured; if it cannot train, the next one.
        while missing := {
            settings[0]: sweep.settings()[settings[0]][0]
            for same in alike
            if not known.keys() & set(same) and (settings := [each for each in same if each not in failed])
        }:
            say(plural("measuring a step of {n} setting", "measuring a step of {n} settings", len(missing)))
            measured: dict[str, list[float]] = {setting: [] for setting in missing}
            with Signals() as signals:  # not before: Ctrl-C must end the wait above
                for _round in range(PROBE_ROUNDS):
                    for setting, trial in missing.items():
                        if setting in failed:
                            continue
                        config = sweep.config(trial)
                        try:
                            seconds = training.seconds_per_step(train, config, sweep.folder, trial.name, signals)
                            measured[setting].append(seconds)
                        except training.Unmeasured as error:
                            failed[setting] = error.outcome
            known |= {setting: min(times) for setting, times in measured.items() if setting not in failed}
        for same in alike:
            times = [known[setting] for setting in same if setting in known][:1]
            known |= {setting: second for second in times for setting in same if setting not in known}
        replace_file(path, json.dumps(known, indent=2) + "\n")
    return known, {setting: outcome for setting, outcome in failed.items() if setting not in known}


def _alike(sweep: Sweep) -> list[list[str]]:
    """Return the settings, grouped by the work of a step."""
    same_work, groups = {*with_role("output", "timeless")}, dict[str, list[str]]()
    for setting, trials in sweep.settings().items():
        work = sweep.config(trials[0]).model_dump_json(exclude=same_work)
        groups.setdefault(work, []).append(setting)
    return list(groups.values())


def _known_seconds(path: Path) -> dict[str, float]:
    """Return earlier measurements, as far as they are numbers above 0; empty if the file is damaged."""
    try:
        known = json.loads(read_regular(path))
        return {setting: float(seconds) for setting, seconds in known.items() if 0 < seconds < math.inf}
    except (OSError, *UNREADABLE):
        return {}


def _run_trial(
    sweep: Sweep, claim: Claim, config: Config, train: Sequence[str], signals: Signals, progress: Progress
) -> None:
    """Train one trial to its end and record it; a stopped one can be resumed."""
    trial = claim.trial
    log = sweep.folder / "logs" / f"{trial.name}.log"
    child = training.start(train, config, sweep.folder / "recipes" / f"{trial.name}.yaml", log)
    claim.note_process(child.pid)
    pruned = False
    with signals.passed_on(child):
        while child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(POLL_SECONDS)
            written = training.records(config.run_dir)
            claim.report(written, horizon.decided(config, written).max_iters)
            if sweep.prune and not pruned and claim.is_hopeless():
                pruned = True
                signals.stop_child()
            progress.show(trial)
    written = training.records(config.run_dir)
    claim.report(written, horizon.decided(config, written).max_iters)
    if signals.received:
        return
    share = training.share(config, written)
    if pruned and share < 1:
        outcome, value = f"pruned at {share:.0%}", None
    else:
        outcome, value = training.outcome(trial.label, config, child.returncode, log)
    _end(claim, outcome, value, config.run_dir, progress)


def _end(claim: Claim, outcome: str, value: float | None, folder: Path, progress: Progress) -> None:
    """Record and print how a trial ended."""
    claim.end(outcome, value, folder)
    shown = _("validation loss {loss:.4f}", loss=value) if value is not None else ended(outcome)
    progress.end(claim.trial, _("{label}: {what}", label=claim.trial.label, what=shown))
