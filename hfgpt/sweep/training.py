"""One training run of a sweep: a separate process, started as a user would start it.

In:  a resolved Config, and the arguments of `python` that start a training, such as a script.
Out: a run folder, its output, and its outcome; or the time of one step; and :class:`Signals`, which forwards a graceful
     stop of the sweep to the training, so that it writes its checkpoint.
"""

import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self

import psutil

from hfgpt import config as configs
from hfgpt.base import hardware
from hfgpt.base.errors import InputError
from hfgpt.base.files import check_regular, replace_file
from hfgpt.base.language import N_, VARIABLE, _, current
from hfgpt.base.units import seconds_of
from hfgpt.config import Config
from hfgpt.model import sizes
from hfgpt.runs import horizon
from hfgpt.runs.compare import Entry
from hfgpt.runs.history import History
from hfgpt.runs.metrics import FILE_NAME, Record, read, series

OWN: dict[str, Any]
if sys.platform == "win32":
    # Windows has process groups instead of sessions: Ctrl-C does not reach a new group either. SIGTERM would end the
    # process at once; Ctrl-Break can be sent to a group.
    OWN, POLITE = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}, signal.CTRL_BREAK_EVENT
else:
    OWN, POLITE = {"start_new_session": True}, signal.SIGTERM


def spawn(words: Sequence[str], log: IO[Any]) -> subprocess.Popen[bytes]:
    """Start `python words…`, with all output going to `log` in UTF-8."""
    extra = {VARIABLE: current(), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **extra}, **OWN
    )


def ask_to_stop(process: subprocess.Popen[bytes] | psutil.Process) -> None:
    """Ask a training run to finish its step, write a checkpoint and end."""
    process.send_signal(POLITE)


PROBE_STEPS = 20  # steps of a probe that measures the step time, for equal time


def start(train: Sequence[str], config: Config, recipe: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start or resume a training, in its own session, so that Ctrl-C reaches it only once, through the sweep."""
    write_recipe(recipe, config)
    check_regular(log)
    with log.open("a") as out:
        return spawn([*train, str(recipe), "--resume"], out)


def write_recipe(path: Path, config: Config) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, configs.to_yaml(config))


def share(config: Config, written: Sequence[Record]) -> float:
    """Return how much of its length a training has done; 0 while the clock has yet to decide its length."""
    if not written or horizon.undecided(config, written):
        return 0.0
    return min(1.0, written[-1]["step"] / horizon.decided(config, written).max_iters)


def records(folder: Path) -> list[Record]:
    """Return a run's records; empty if it has not recorded anything yet."""
    path = folder / FILE_NAME
    return read(path) if path.exists() else []


def outcome(label: str, config: Config, code: int, log: Path) -> tuple[str, float | None]:
    """Return a training's outcome ("finished", "diverged", "failed: …"), and the best validation loss if finished."""
    written = records(config.run_dir)
    losses = [loss for loss in series(written, "val_loss")[1] if math.isfinite(loss)]
    run = History(label, config.run_dir / FILE_NAME, written, config) if written else None
    if Entry(label, {}, run).outcome == "diverged":
        return "diverged", None
    if code != 0:
        return f"failed: exit code {code}: {_last_words(log)}", None
    return ("finished", min(losses)) if losses else ("failed: " + N_("no evaluation was recorded"), None)


def _last_words(log: Path) -> str:
    """Return the output line that says why a training failed: its own message, an exception, or the last line."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line and not line[0].isspace()]
    own = re.escape(_("The run failed at {place}", place=""))
    for pattern in (own, r"[\w.]*(Error|Exception)\b", r""):
        for line in reversed(lines):
            if re.match(pattern, line):
                # The lines below say which faults a recipe has.
                below = text.rpartition(line)[2].split("\n")[1:] if line.endswith((":", "：")) else []
                return " ".join([line, *(part.strip() for part in below[:1])])[:200]
    return N_("it printed nothing")


PASSED_ON = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class Stopped(Exception):
    """A signal stopped the sweep gracefully; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        self.number = number


class Signals:
    """Forwards SIGINT, SIGTERM, SIGHUP and SIGUSR1 to the current training, and remembers the first.

    A signal that the process was started to ignore (nohup) stays ignored.
    """

    def __init__(self) -> None:
        self.received = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._previous: dict[int, Any] = {}

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = self.received or number
        self.stop_child()

    @contextmanager
    def passed_on(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Forward signals to this training inside, also one that came while it was being started."""
        self._child = process
        if self.received:
            self.stop_child()
        try:
            yield
        finally:
            self._child = None

    def stop_child(self) -> None:
        """Ask the current training to stop."""
        if self._child is not None and self._child.poll() is None:
            ask_to_stop(self._child)

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.received:
            raise Stopped(self.received)

    def __enter__(self) -> Self:
        for number in PASSED_ON:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Unmeasured(Exception):
    """A step could not be measured; `outcome` is how a trial ends that needs the measurement."""

    def __init__(self, outcome: str) -> None:
        self.outcome = outcome


def probe_of(config: Config, folder: Path) -> Config:
    """Return a short run with the same steps: without what another length could contradict, and what reaches others.

    `compile: auto` goes by the time of a whole run, which is what each trial gets.
    """
    compiled: bool | str = config.compile
    if compiled == "auto" and config.max_time:
        own_card = config.device in ("auto", "cuda") and sys.platform != "darwin" and hardware.local_accelerator()
        compiled = bool(own_card) and seconds_of(config.max_time) > sizes.COMPILING
    return config.model_copy(
        update={"compile": compiled, "max_iters": PROBE_STEPS, "max_time": None, "time_budget": None,
                "out_dir": str(folder), "lr_schedule": "constant", "warmup_iters": 1, "lr_decay_iters": PROBE_STEPS,
                "batch_warmup_iters": 0,
                "eval_interval": PROBE_STEPS, "eval_iters": 1, "log_interval": 1, "sample_prompt": "",
                "val_datasets": None, "eval_tasks": None, "eval_tasks_interval": None, "checkpoint_interval": None,
                "report_to": "none", "push_to_hub": False}
    )  # fmt: skip


def seconds_per_step(train: Sequence[str], config: Config, folder: Path, name: str, signals: Signals) -> float:
    """Return the seconds per step, the median of a short run in `folder`/probes.

    Raises:
        Unmeasured: that run recorded no step.
        Stopped: a signal came, and the run has ended.
    """
    probe, log = probe_of(config, folder / "probes" / name), folder / "logs" / f"probe-{name}.log"
    recipe = folder / "recipes" / f"probe-{name}.yaml"
    write_recipe(recipe, probe)
    with log.open("w") as out:
        process = spawn([*train, str(recipe), "--overwrite"], out)
        with signals.passed_on(process):
            code = process.wait()
    signals.check()
    try:
        speeds = series(records(probe.run_dir), "tokens_per_second")[1]
    except InputError:
        speeds = []
    later = sorted(speed for speed in speeds[len(speeds) // 2 :] if 0 < speed < math.inf)  # the first steps warm up
    if later:
        return probe.tokens_per_iter / later[len(later) // 2]
    raise Unmeasured(outcome(name, probe, code, log)[0] if code else "failed: " + N_("no step was recorded"))
