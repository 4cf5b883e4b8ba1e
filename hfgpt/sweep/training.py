"""One training of a sweep: a process of its own, started as a user would start it.

In:  a resolved Config, and what stands behind `python` to train, such as a script.
Out: a run folder, what it printed, and how it ended; or how long one of its steps takes; and :class:`Signals`, by
     which a polite stop of the sweep reaches the training, which writes its checkpoint.
"""

from __future__ import annotations

import math
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hfgpt import config as configs
from hfgpt.base import child
from hfgpt.base.errors import InputError
from hfgpt.base.files import replace_file
from hfgpt.base.language import N_, _
from hfgpt.config import Config
from hfgpt.runs.compare import Entry
from hfgpt.runs.history import History
from hfgpt.runs.metrics import FILE_NAME, Record, read, series

PROBE_STEPS = 20  # to measure a step, for equal time


def start(train: Sequence[str], config: Config, recipe: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start or resume a training. Ctrl-C reaches it through the sweep, once: it has a session of its own."""
    write_recipe(recipe, config)
    with log.open("a") as out:
        return child.start([*train, str(recipe), "--resume"], out)


def write_recipe(path: Path, config: Config) -> None:
    """Write a config as a recipe."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, configs.to_yaml(config))


def records(folder: Path) -> list[Record]:
    """What a run has recorded; empty if it has not recorded anything yet."""
    path = folder / FILE_NAME
    return read(path) if path.exists() else []


def outcome(label: str, config: Config, code: int, log: Path) -> tuple[str, float | None]:
    """How a training ended ("finished", "diverged", "failed: …"), and the best validation loss of a finished one."""
    written = records(config.run_dir)
    losses = [loss for loss in series(written, "val_loss")[1] if math.isfinite(loss)]
    run = History(label, config.run_dir / FILE_NAME, written, config) if written else None
    if Entry(label, {}, run).outcome == "diverged":
        return "diverged", None
    if code != 0:
        return f"failed: exit code {code}: {_last_words(log)}", None
    return ("finished", min(losses)) if losses else ("failed: " + N_("no evaluation was recorded"), None)


def _last_words(log: Path) -> str:
    """The line of a training's output that says why it failed: its own message, an exception, else the last line."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line and not line[0].isspace()]
    own = re.escape(_("The run failed at {place}", place=""))
    for pattern in (own, r"[\w.]*(Error|Exception)\b", r""):
        for line in reversed(lines):
            if re.match(pattern, line):
                return line[:200]
    return N_("it printed nothing")


def seconds_per_step(train: Sequence[str], config: Config, folder: Path, name: str) -> float:
    """Seconds of a step, the median of a short run in `folder`/probes; NaN if that run fails."""
    probe = config.model_copy(
        update={"max_iters": PROBE_STEPS, "eval_interval": PROBE_STEPS, "eval_iters": 1, "log_interval": 1,
                "warmup_iters": 1, "batch_warmup_iters": 0, "lr_decay_iters": PROBE_STEPS, "sample_prompt": "",
                "max_time": None, "out_dir": str(folder / "probes" / name)}
    )  # fmt: skip
    recipe = folder / "recipes" / f"probe-{name}.yaml"
    write_recipe(recipe, probe)
    with (folder / "logs" / f"probe-{name}.log").open("w") as out:
        subprocess.run([sys.executable, *train, str(recipe), "--overwrite"], stdout=out, stderr=out, check=False)
    try:
        speeds = series(read(probe.run_dir / FILE_NAME), "tokens_per_second")[1]
    except InputError:
        return math.nan
    later = sorted(speeds[len(speeds) // 2 :])  # the first steps warm up
    return probe.tokens_per_iter / later[len(later) // 2] if later else math.nan


# ------------------------------------------------------------------------------------------------------- a polite stop


PASSED_ON = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(Exception):
    """A signal ended the sweep politely; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        self.number = number


class Signals:
    """Passes SIGINT, SIGTERM and SIGHUP on to the training in hand, and remembers the first."""

    def __init__(self) -> None:
        self.received = 0
        self.child: subprocess.Popen[bytes] | None = None
        self._previous: dict[int, Any] = {}

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = self.received or number
        self.stop_child()

    def stop_child(self) -> None:
        """Ask the training in hand to stop."""
        if self.child is not None and self.child.poll() is None:
            child.ask_to_stop(self.child)

    def __enter__(self) -> Signals:
        for number in PASSED_ON:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
