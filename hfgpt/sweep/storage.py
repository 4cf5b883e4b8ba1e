"""A sweep's state: which trials wait, run or have ended, and how, in Optuna's storage, which its dashboard reads.

In:  a :class:`hfgpt.sweep.definition.Sweep`.
Out: ``sweep.json`` (the definition) and ``journal.log`` (Optuna's); trials to run, each claimed by one process.

The locks in ``locks/`` end with the process that holds them. Beside a trial's lock its training process is recorded, so
that a training whose sweep was killed is waited for, not started a second time.
"""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from hfgpt.base.errors import UNREADABLE, InputError
from hfgpt.base.files import check_regular, check_writable, read_regular, replace_file
from hfgpt.base.hardware import began
from hfgpt.base.language import _, listed
from hfgpt.base.lock import FolderLock, Holder, holder_of, machine
from hfgpt.base.terminal import say
from hfgpt.base.units import is_number
from hfgpt.runs.metrics import Record, series
from hfgpt.sweep.definition import STARTUP_TRIALS, Sweep, Trial

# Optuna's median rule: once STARTUP_TRIALS have finished, and past this share of a trial, one whose evaluation is worse
# than the others' median at the same share is hopeless.
WARMUP_PERCENT = 25

ENTRY = b'{"op_code":'  # how each line of Optuna's journal begins


class Storage:
    """The states of a sweep's trials.

    Raises:
        InputError: Optuna is not installed, or the folder holds another sweep.
    """

    def __init__(self, sweep: Sweep) -> None:
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ImportError:
            raise InputError("sweep: needs Optuna → pip install optuna") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._sweep = optuna, sweep
        self._by_name = {trial.name: trial for trial in sweep.trials}
        for name in ("locks", "logs", "trials"):
            check_writable(sweep.folder / name, "out_dir", sweep.folder)
        for name in ("locks", "logs", "trials"):
            (sweep.folder / name).mkdir(parents=True, exist_ok=True)
        with self.lock():
            check_folder(sweep)
            journal = sweep.folder / "journal.log"
            try:
                check_regular(journal)
                _drop_torn_line(journal)
                self.study = optuna.create_study(
                    storage=JournalStorage(JournalFileBackend(str(journal))),
                    study_name=sweep.name,
                    load_if_exists=True,
                    pruner=optuna.pruners.MedianPruner(STARTUP_TRIALS, WARMUP_PERCENT)
                    if sweep.prune
                    else optuna.pruners.NopPruner(),
                )
                self._check_trials()
            except (*UNREADABLE, AssertionError, OSError, optuna.exceptions.OptunaError) as error:
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise
                raise InputError("{path}: is not a sweep's record → name another --out_dir", path=journal) from None
            # The definition comes first: what an interruption leaves in the journal must not meet another sweep.
            replace_file(sweep.folder / "sweep.json", json.dumps(_identity(sweep), indent=2, default=str) + "\n")
            outcomes = self.outcomes()
            for trial in sweep.trials:
                outcome = outcomes.get(trial.name)
                if outcome is None or (sweep.retry_failed and outcome.startswith("failed")):
                    self.study.enqueue_trial(trial.values, user_attrs={"name": trial.name})

    def _check_trials(self) -> None:
        """Check what this module stores with each trial.

        Raises:
            ValueError: it stored something else, or another sweep did.
        """
        for trial in self.study.get_trials(deepcopy=False):
            noted = trial.user_attrs
            kinds = isinstance(noted.get("outcome", ""), str), type(noted.get("reported", 0)) is int
            if noted["name"] not in self._by_name or not all(kinds):
                raise ValueError(noted)

    def lock(self) -> FolderLock:
        """Take the lock of the whole folder, for brief work."""
        return wait_for(self._sweep.folder / "locks" / "sweep")

    def _lock_of(self, trial: Trial) -> FolderLock | None:
        """Take a trial's lock; None if another process holds it or a dead sweep's training of it still runs."""
        lock = take(self._sweep.folder / "locks" / trial.name)
        if lock is not None and training(self.process_file(trial)) is not None:
            lock.release()
            return None
        return lock

    def process_file(self, trial: Trial) -> Path:
        """Return the file that records the process training a trial."""
        return self._sweep.folder / "locks" / f"{trial.name}.json"

    def claim(self) -> Claim | None:
        """Claim a trial that no process runs: one that a dead process left, otherwise a waiting one, or None."""
        with self.lock():
            for frozen in self._in_state("RUNNING"):
                trial = self._by_name.get(frozen.user_attrs.get("name"))
                lock = self._lock_of(trial) if trial else None
                if trial and lock:
                    optuna_trial = self._optuna.trial.Trial(self.study, frozen._trial_id)
                    self._suggest(trial, optuna_trial)  # the dead process may not have come to it
                    return Claim(trial, optuna_trial, lock, self)
            waiting = self._in_state("WAITING")
            # Optuna hands out the first; another process may have started a longer sweep in this folder.
            if waiting and waiting[0].user_attrs.get("name") in self._by_name:
                optuna_trial = self.study.ask()
                trial = self._by_name[optuna_trial.user_attrs["name"]]
                self._suggest(trial, optuna_trial)
                return Claim(trial, optuna_trial, wait_for(self._sweep.folder / "locks" / trial.name), self)
        return None

    def running_elsewhere(self) -> dict[str, str]:
        """Return the trials claimed by other processes, and those whose training outlived its sweep."""
        running = {}
        for frozen in self._in_state("RUNNING"):
            if (trial := self._by_name.get(frozen.user_attrs.get("name"))) is None:
                continue
            if holder := holder_of(self._sweep.folder / "locks", f"{trial.name}.lock"):
                running[trial.name] = str(holder)
            elif process := training(self.process_file(trial)):
                running[trial.name] = _("a training without its sweep, process {process}", process=process.pid)
        return running

    def outcomes(self) -> dict[str, str]:
        """Return each trial's outcome by name, or that it is waiting or running; of several attempts the last."""
        trials = self.study.get_trials(deepcopy=False)
        return {t.user_attrs.get("name"): t.user_attrs.get("outcome", t.state.name.lower()) for t in trials}

    def tell(self, number: int, outcome: str, value: float | None) -> None:
        """Record how a trial ended."""
        state = self._optuna.trial.TrialState
        if value is not None:
            self.study.tell(number, value)
        else:
            self.study.tell(number, state=state.PRUNED if outcome.startswith("pruned") else state.FAIL)

    def _in_state(self, name: str) -> list[Any]:
        state = getattr(self._optuna.trial.TrialState, name)
        return list(self.study.get_trials(deepcopy=False, states=[state]))

    def _suggest(self, trial: Trial, optuna_trial: Any) -> None:
        """Pass the trial's values to Optuna: as parameters, numbers with the sweep's range, as far as it takes them.

        Optuna fixes a parameter's kind, its scale and the values of a choice at its first trial, but the sweep may be
        extended by another value. Such a value becomes an attribute of its trial.
        """
        known = dict[str, Any]()
        for other in self.study.get_trials(deepcopy=False):
            known = other.distributions | known
        for key, value in trial.values.items():
            try:
                self._suggest_one(key, known.get(key), optuna_trial)
            except ValueError:
                optuna_trial.set_user_attr(key, value)

    def _suggest_one(self, key: str, known: Any, optuna_trial: Any) -> None:
        """Pass a value of the trial to Optuna as a parameter; `known` is the form that the parameter has already.

        Raises:
            ValueError: the value does not fit into that form.
        """
        values = [other.values[key] for other in self._sweep.trials if key in other.values]
        numbers = [value for value in values if is_number(value)]
        if len(numbers) < len(values):
            optuna_trial.suggest_categorical(key, getattr(known, "choices", list(dict.fromkeys(values))))
            return
        wide = getattr(known, "log", min(numbers) > 0 and max(numbers) >= 10 * min(numbers))
        suggest = optuna_trial.suggest_int if all(isinstance(n, int) for n in numbers) else optuna_trial.suggest_float
        suggest(key, min(numbers), max(numbers), log=wide)


class Claim:
    """A trial claimed by this process, until the `with` ends."""

    def __init__(self, trial: Trial, optuna_trial: Any, lock: FolderLock, storage: Storage) -> None:
        self.trial, self._optuna_trial, self._lock, self._storage = trial, optuna_trial, lock, storage

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._lock.release()

    def note_process(self, pid: int) -> None:
        note_training(self._storage.process_file(self.trial), pid)

    def report(self, records: list[Record], max_iters: int) -> None:
        """Report the evaluations so far to Optuna, by percent of the trial, since trials differ in their steps."""
        reported = self._optuna_trial.user_attrs.get("reported", -1)
        for step, loss in zip(*series(records, "val_loss"), strict=True):
            percent = round(100 * step / max_iters)
            if percent > reported and math.isfinite(loss):
                reported = percent  # the first of several: Optuna warns of every other one
                self._optuna_trial.report(loss, percent)
                self._optuna_trial.set_user_attr("reported", percent)

    def is_hopeless(self) -> bool:
        """Whether the sweep prunes, and Optuna's pruner would stop the trial."""
        return bool(self._optuna_trial.should_prune())

    def end(self, outcome: str, value: float | None, folder: Path) -> None:
        self._optuna_trial.set_user_attr("outcome", outcome)
        self._optuna_trial.set_user_attr("folder", str(folder))
        self._storage.tell(self._optuna_trial.number, outcome, value)


def _drop_torn_line(journal: Path) -> None:
    """Drop a last line that a full disk or a power cut left unfinished: Optuna would write the next one behind it."""
    from optuna.storages.journal import JournalFileSymlinkLock

    if not (journal.is_file() and _torn(journal)):
        return
    lock = JournalFileSymlinkLock(str(journal))  # another process may only be writing it
    lock.acquire()
    try:
        os.truncate(journal, journal.stat().st_size - len(_torn(journal)))
    finally:
        lock.release()


def _torn(journal: Path) -> bytes:
    """Return the unfinished last line of Optuna's journal; empty if the last line is whole, or not Optuna's."""
    last = journal.read_bytes().rpartition(b"\n")[2]
    return last if last.startswith(ENTRY) or ENTRY.startswith(last) else b""


def _identity(sweep: Sweep) -> dict[str, Any]:
    return {
        "name": sweep.name,
        "recipe": sweep.common,
        "equal": sweep.equal,
        "question": sweep.question,
        "trials": [asdict(trial) for trial in sweep.trials],
    }


def check_folder(sweep: Sweep) -> None:
    """Check that a folder is new, or holds this sweep or its beginning.

    Raises:
        InputError: it holds another sweep.
    """
    path = sweep.folder / "sweep.json"
    if not path.exists():
        return
    try:
        before = json.loads(read_regular(path))
        trials = [{"seed": None, **trial, "title": ""} for trial in before["trials"]]
    except (OSError, *UNREADABLE):
        raise InputError("{path}: is not a sweep's record → name another --out_dir", path=path) from None
    now = json.loads(json.dumps(_identity(sweep), default=str))
    differing = [key for key in ("name", "recipe", "equal") if before.get(key) != now[key]]
    # A title is in the language of the sweep that wrote it.
    if not differing and all(trial in [{**each, "title": ""} for each in now["trials"]] for trial in trials):
        return
    raise InputError(
        "out_dir = {folder!r}: holds another sweep (other {what}) → name another --out_dir",
        folder=str(sweep.folder),
        what=listed(differing or ["trials"]),
    )


# --------------------------------------------------------------------------------------------- locks between processes


def take(path: Path) -> FolderLock | None:
    """Take a lock, which `with` releases; None if another process holds it."""
    if holder_of(path.parent, f"{path.name}.lock") is not None:
        return None
    try:
        return FolderLock(path.parent, f"{path.name}.lock").acquire()
    except InputError:  # another process took it first
        return None


def wait_for(path: Path) -> FolderLock:
    """Take a lock, which `with` releases; if it must wait for long, print for whom."""

    def waiting(holder: Holder) -> None:
        say(_("{folder} is being worked on by {holder}; waiting for it", folder=path.parent.parent, holder=holder))

    return FolderLock(path.parent, f"{path.name}.lock").acquire(waiting)


def note_training(path: Path, pid: int) -> None:
    """Record which process trains."""
    if (started := began(pid)) is None:  # it has already ended
        return
    replace_file(path, json.dumps({"host": machine(), "pid": pid, "started": started}))


def training(path: Path) -> psutil.Process | None:
    """Return the recorded process while it trains. One on another machine is assumed to have ended with its sweep."""
    try:
        noted = json.loads(read_regular(path))
        alive = began(noted["pid"])
        if noted["host"] != machine() or alive is None or abs(alive - noted["started"]) > 1:
            return None
        return psutil.Process(noted["pid"])
    except (OSError, psutil.Error, *UNREADABLE):
        return None
