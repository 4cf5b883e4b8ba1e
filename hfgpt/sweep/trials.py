"""Run a sweep: each trial a real training in a process of its own, started as a user would start it.

In:  a :class:`hfgpt.sweep.definition.Sweep`.
Out: its folder, with a run folder a trial (``trials/``), what each printed (``logs/``), Optuna's storage
     (``journal.log``, for its dashboard too), and the comparison: ``report.md``, ``report.json`` and pictures.

What is tried is kept in ``sweep.json``; Optuna's storage says which trials are waiting, done or failed. A trial belongs
to the process that holds the lock on its file in ``locks/``, and its training inherits the lock. So a sweep that was
killed goes on with the same command, several processes share the work when the same command is given several times, and
a training that outlived its sweep is waited for.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from hfgpt import config as configs
from hfgpt.base.errors import InputError
from hfgpt.base.units import duration
from hfgpt.config import Config
from hfgpt.runs import compare
from hfgpt.runs.compare import Comparison, Entry
from hfgpt.runs.metrics import FILE_NAME, Record, Run, read, read_run, series
from hfgpt.sweep.definition import Sweep, Trial, equalised

PROBE_STEPS = 20  # to measure a step, for equal time

POLL_SECONDS = 1.0


class Stopped(Exception):
    """A signal ended the sweep politely; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        self.number = number


def run(sweep: Sweep, train: Sequence[str], say: Callable[[str], None] = print) -> Path:
    """Run what is still to be done, wait for what other processes are doing, and write the report.

    Args:
        sweep: what to run.
        train: what stands behind `python` to train a recipe, such as a script.
        say: is told of each event in a line.

    Returns:
        The path of report.md.

    Raises:
        InputError: the folder holds another sweep, or Optuna is not installed.
        Stopped: a signal came; the trial in hand has written its checkpoint.
    """
    study = _open(sweep)
    say(f"{sweep.folder}: {len(sweep.trials)} trials of {sweep.name}, equal {sweep.equal}")
    with _Signals() as signals:
        progress = _Progress(sweep, say)
        while (claim := _claim(sweep, study)) is not None or _running_elsewhere(sweep, study):
            if claim is None:  # wait: a training that outlived its sweep is then to be recorded
                time.sleep(POLL_SECONDS)
                progress.show(None)
            else:
                trial, optuna_trial, lock = claim
                with lock:
                    _run_trial(sweep, trial, optuna_trial, study, train, lock.fileno(), signals, progress)
            if signals.received:
                raise Stopped(signals.received)
    with _folder_lock(sweep):
        return compare.write(comparison(sweep, study), sweep.folder)


def _open(sweep: Sweep) -> Any:
    """Optuna's study of this sweep, with every trial in it; made by the process that comes first."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise InputError("sweep: needs Optuna → pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in ("locks", "logs", "trials"):
        (sweep.folder / name).mkdir(parents=True, exist_ok=True)
    with _folder_lock(sweep):
        new = _agree(sweep)
        storage = JournalStorage(JournalFileBackend(str(sweep.folder / "journal.log")))
        study = optuna.create_study(storage=storage, study_name=sweep.name, load_if_exists=True)
        outcomes = _outcomes(study)
        known = {n for n, told in outcomes.items() if not (sweep.retry_failed and told.startswith("failed"))}
        for trial in sweep.trials:
            if trial.name not in known:
                study.enqueue_trial(trial.values, user_attrs={"name": trial.name})
        if new:
            compare.replace(sweep.folder / "sweep.json", json.dumps(_identity(sweep), indent=2, default=str) + "\n")
    return study


def _identity(sweep: Sweep) -> dict[str, Any]:
    return {
        "name": sweep.name,
        "recipe": sweep.recipe,
        "equal": sweep.equal,
        "question": sweep.question,
        "trials": [asdict(trial) for trial in sweep.trials],
    }


def _agree(sweep: Sweep) -> bool:
    """Whether sweep.json is to be written: none is there, or its trials are among these.

    Raises:
        InputError: the folder holds another sweep.
    """
    path = sweep.folder / "sweep.json"
    if not path.exists():
        return True
    theirs = json.loads(path.read_text(encoding="utf-8"))
    ours = json.loads(json.dumps(_identity(sweep), default=str))
    differing = [key for key in ("name", "recipe", "equal") if theirs.get(key) != ours[key]]
    if not differing and all(trial in ours["trials"] for trial in theirs["trials"]):
        return True
    what = ", ".join(differing or ["trials"])
    raise InputError(f"out_dir = {str(sweep.folder)!r}: holds another sweep (other {what}) → name another --out_dir")


class _Lock:
    """An exclusive lock on a file, held until the context ends and every process that inherited it has ended."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def fileno(self) -> int:
        """The descriptor, for a child to inherit."""
        return self._file.fileno()

    def take(self, wait: bool = False) -> bool:
        """Take the lock; False where another holds it."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            self._file.close()
            return False
        return True

    def __enter__(self) -> _Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextlib.contextmanager
def _folder_lock(sweep: Sweep) -> Iterator[None]:
    with _Lock(sweep.folder / "locks" / "sweep") as lock:
        lock.take(wait=True)
        yield


def _claim(sweep: Sweep, study: Any) -> tuple[Trial, Any, _Lock] | None:
    """A trial that nobody runs: first one that a dead process left, then a waiting one; None where there is neither."""
    import optuna
    from optuna.trial import TrialState

    by_name = {trial.name: trial for trial in sweep.trials}
    with _folder_lock(sweep):
        for frozen in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            trial = by_name.get(frozen.user_attrs.get("name"))
            lock = _Lock(sweep.folder / "locks" / trial.name) if trial else None
            if trial and lock and lock.take():
                return trial, optuna.trial.Trial(study, frozen._trial_id), lock
        if study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
            asked = study.ask()
            trial = by_name[asked.user_attrs["name"]]
            _suggest(sweep, trial, asked)
            lock = _Lock(sweep.folder / "locks" / trial.name)
            lock.take(wait=True)
            return trial, asked, lock
    return None


def _suggest(sweep: Sweep, trial: Trial, asked: Any) -> None:
    """Tell Optuna the trial's values as parameters, numbers with the range that the sweep spans."""
    for key in trial.values:
        values = [other.values[key] for other in sweep.trials if key in other.values]
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(numbers) < len(values) or len(set(values)) < 2:
            asked.suggest_categorical(key, list(dict.fromkeys(values)))
            continue
        wide = min(numbers) > 0 and max(numbers) >= 10 * min(numbers)
        suggest = asked.suggest_int if all(isinstance(n, int) for n in numbers) else asked.suggest_float
        suggest(key, min(numbers), max(numbers), log=wide)


def _run_trial(
    sweep: Sweep,
    trial: Trial,
    asked: Any,
    study: Any,
    train: Sequence[str],
    lock: int,
    signals: _Signals,
    progress: _Progress,
) -> None:
    """Train one trial to its end and tell Optuna; a stop leaves it to be resumed."""
    config = _trial_config(sweep, trial, train, asked)
    recipe = _write_recipe(sweep, config, trial.name)
    with (sweep.folder / "logs" / f"{trial.name}.log").open("a") as log:
        command = [sys.executable, *train, str(recipe), "--resume"]
        # Its own session: Ctrl-C reaches it through this process, once. The lock lives as long as the training does.
        child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, pass_fds=(lock,))
        signals.child = child
        while child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(POLL_SECONDS)
            _report(asked, config)
            progress.show(trial)
        signals.child = None
    _report(asked, config)
    if signals.received:
        return
    outcome, value = _outcome(sweep, trial, config, child.returncode)
    asked.set_user_attr("outcome", outcome)
    asked.set_user_attr("folder", config.out_dir)
    _tell(study, asked.number, value if outcome == "finished" else None)
    told = f"validation loss {value:.4f}" if outcome == "finished" and value is not None else outcome
    progress.say(f"{trial.label}: {told}")


def _trial_config(sweep: Sweep, trial: Trial, train: Sequence[str], asked: Any) -> Config:
    """The config that the trial runs with; a measured step is kept, so that a resume has the same length."""
    if sweep.equal != "time":
        return equalised(sweep, trial, None)
    seconds = asked.user_attrs.get("seconds_per_step") or _measure_step(sweep, trial, train)
    if not math.isfinite(seconds):
        return sweep.config(trial)  # it cannot train: the trial itself will say why
    asked.set_user_attr("seconds_per_step", seconds)
    return equalised(sweep, trial, seconds)


def _measure_step(sweep: Sweep, trial: Trial, train: Sequence[str]) -> float:
    """Seconds of a step of this trial, from a short run of its own; NaN where that fails."""
    folder = sweep.folder / "probes" / trial.name
    probe = sweep.config(trial).model_copy(
        update={"max_iters": PROBE_STEPS, "eval_interval": PROBE_STEPS, "eval_iters": 1, "log_interval": 1,
                "warmup_iters": 1, "lr_decay_iters": PROBE_STEPS, "sample_prompt": "", "max_time": None,
                "out_dir": str(folder)}
    )  # fmt: skip
    recipe = _write_recipe(sweep, probe, f"probe-{trial.name}")
    log = sweep.folder / "logs" / f"probe-{trial.name}.log"
    with log.open("w") as out:
        subprocess.run([sys.executable, *train, str(recipe), "--overwrite"], stdout=out, stderr=out, check=False)
    try:
        speeds = series(read(folder / FILE_NAME), "tokens_per_second")[1]
    except InputError:
        return math.nan
    later = sorted(speeds[len(speeds) // 2 :])  # the first steps warm up
    return probe.tokens_per_iter / later[len(later) // 2] if later else math.nan


def _write_recipe(sweep: Sweep, config: Config, name: str) -> Path:
    path = sweep.folder / "recipes" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(configs.to_yaml(config), encoding="utf-8")
    temporary.replace(path)
    return path


def _report(asked: Any, config: Config) -> None:
    """Optuna's intermediate values: the evaluations so far."""
    known = asked.user_attrs.get("reported", -1)
    for step, loss in zip(*series(_records(config.run_dir), "val_loss"), strict=True):
        if step > known and math.isfinite(loss):
            asked.report(loss, int(step))
            asked.set_user_attr("reported", int(step))


def _records(folder: Path) -> list[Record]:
    path = folder / FILE_NAME
    return read(path) if path.exists() else []


def _outcome(sweep: Sweep, trial: Trial, config: Config, code: int) -> tuple[str, float | None]:
    """How a training ended, and its best validation loss."""
    records = _records(config.run_dir)
    losses = [loss for loss in series(records, "val_loss")[1] if math.isfinite(loss)]
    run = Run(trial.name, config.run_dir / FILE_NAME, records, config) if records else None
    if Entry(trial.label, trial.values, run).outcome == "diverged":
        return "diverged", None
    if code != 0:
        reason = _last_words(sweep.folder / "logs" / f"{trial.name}.log")
        return ("diverged" if "not finite" in reason else f"failed: exit code {code}: {reason}"), None
    return ("finished", min(losses)) if losses else ("failed: no evaluation was recorded", None)


def _last_words(log: Path) -> str:
    """The line of a training's output that says why it failed: its own message, an exception, else the last line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line and not line[0].isspace()]
    for pattern in (r"The run failed", r"[\w.]*(Error|Exception)\b", r""):
        for line in reversed(lines):
            if re.match(pattern, line):
                return line[:200]
    return "it printed nothing"


def _tell(study: Any, number: int, value: float | None) -> None:
    from optuna.trial import TrialState

    if value is None:
        study.tell(number, state=TrialState.FAIL)
    else:
        study.tell(number, value)


def _running_elsewhere(sweep: Sweep, study: Any) -> bool:
    """Whether another process holds a trial."""
    from optuna.trial import TrialState

    for frozen in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        with _Lock(sweep.folder / "locks" / str(frozen.user_attrs.get("name"))) as lock:
            if not lock.take():
                return True
    return False


class _Signals:
    """Passes SIGINT, SIGTERM and SIGHUP on to the training in hand, which stops politely, and remembers the first."""

    def __init__(self) -> None:
        self.received = 0
        self.child: subprocess.Popen[bytes] | None = None
        self._previous: dict[int, Any] = {}

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = self.received or number
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class _Progress:
    """Where the whole sweep is: the work done of all trials, by whichever process, and the time left."""

    def __init__(self, sweep: Sweep, say: Callable[[str], None]) -> None:
        self._sweep, self._say, self._complete = sweep, say, set[str]()
        self._work = {trial.name: _work(self._expected(trial)) for trial in sweep.trials}
        self._began, self._before, self._last = time.monotonic(), self._done(), 0.0
        self._live = sys.stderr.isatty()

    def _expected(self, trial: Trial) -> Config:
        sweep = self._sweep
        return sweep.config(trial) if sweep.equal == "time" else equalised(sweep, trial, None)

    def _share(self, trial: Trial) -> float:
        if trial.name in self._complete:
            return 1.0
        recipe = self._sweep.folder / "recipes" / f"{trial.name}.yaml"
        records = _records(self._sweep.folder / "trials" / trial.name)
        if not records or not recipe.exists():
            return 0.0
        share = min(1.0, records[-1]["step"] / configs.load(recipe).max_iters)
        if share == 1.0:
            self._complete.add(trial.name)
        return share

    def _done(self) -> float:
        return sum(self._work[trial.name] * self._share(trial) for trial in self._sweep.trials)

    def say(self, text: str) -> None:
        """An event, on a line of its own."""
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        self._say(text)

    def show(self, trial: Trial | None) -> None:
        """One line, rewritten on a terminal, else every half a minute."""
        now = time.monotonic()
        if now - self._last < (2 if self._live else 30):
            return
        self._last = now
        total, done = sum(self._work.values()), self._done()
        gained, elapsed = done - self._before, now - self._began
        left = (
            f"about {duration((total - done) / gained * elapsed)} left"
            if gained > 0.002 * total
            else "time left: not known yet"
        )
        at = f"  {trial.label} {self._share(trial):.0%}" if trial else "  waiting for other processes"
        line = f"sweep {done / total:.0%}{at}  {left}"
        if self._live:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            self._say(line)


def _work(config: Config) -> float:
    """A run's arithmetic, roughly: tokens times weights and attention."""
    weights = 12 * config.n_layer * config.n_embd**2 + 400 * config.n_embd
    return (
        config.max_iters
        * config.tokens_per_iter
        * (6 * weights + 12 * config.n_layer * config.n_embd * config.block_size)
    )


# ------------------------------------------------------------------------------------------------------- its outcome


def _outcomes(study: Any) -> dict[str, str]:
    """By a trial's name: how it ended, or that it is waiting or running; of several attempts the last."""
    trials = study.get_trials(deepcopy=False)
    return {t.user_attrs.get("name"): t.user_attrs.get("outcome", t.state.name.lower()) for t in trials}


def comparison(sweep: Sweep, study: Any) -> Comparison:
    """The sweep's trials as entries of a comparison, in the order in which they were defined."""
    outcomes = _outcomes(study)
    entries = []
    for trial in sweep.trials:
        folder = sweep.folder / "trials" / trial.name
        run = read_run(folder) if _records(folder) else None
        entries.append(Entry(trial.label, trial.values, run, outcomes.get(trial.name, "waiting")))
    time_each = configs.build(sweep.recipe, "base").max_time
    held = {
        "steps": "the number of optimizer steps",
        "tokens": "the number of tokens trained",
        "time": f"the training time, {time_each} each, by a step measured beforehand",
    }
    return Comparison(sweep.name, entries, sweep.question, held[sweep.equal], sweep.grid)
