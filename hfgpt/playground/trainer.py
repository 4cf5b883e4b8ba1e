"""The runs of the page's folder, and those that it starts: each is a separate process, which outlives the page.

In:  a folder of runs, a config, and the arguments of `python` that start a training.
Out: run folders; beside them ``.playground/`` with the recipe, the log and the process of each run started here. All
     state of a run is in files, so that nothing is lost if the page is reloaded or restarted.
"""

import re
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from hfgpt import config as configs
from hfgpt.base.errors import InputError
from hfgpt.base.files import check_regular
from hfgpt.base.lock import holder_of
from hfgpt.base.terminal import visible
from hfgpt.config import EMBEDDED_DATASET, Config
from hfgpt.runs import horizon, metrics
from hfgpt.runs.facts import Facts
from hfgpt.sweep import storage
from hfgpt.sweep.training import ask_to_stop, spawn
from hfgpt.train.display import SAMPLED

FOLDER = ".playground"
WEIGHTS = "model.safetensors"
LOG_BYTES = 16000  # bytes read from the end of a log
RECENT = 20  # records from which the time left is estimated


@dataclass(frozen=True)
class State:
    """Where a run is."""

    name: str  # of the run
    running: bool  # whether a process trains it
    # steps done, and all steps; 0 if their number is not known, as before a time_budget has decided it
    step: int
    steps: int
    seconds_left: float | None  # None if unknown, or if the run is not in progress
    # the last ones
    train_loss: float | None
    val_loss: float | None
    log: str  # the end of its output; "" if it was not started here
    stopped_early: bool = False  # whether early stopping ended it
    pausing: bool = False  # whether it was asked to stop, and has not yet

    @property
    def finished(self) -> bool:
        """Whether the run is finished: no process trains it, and its last step is done or early stopping ended it.

        After the last step a run still writes its model, so a live process means that it is in progress.
        """
        return not self.running and (self.step >= self.steps > 0 or self.stopped_early)


class Trainer:
    """Starts, pauses and resumes the runs of a folder.

    Args:
        folder: of the runs. train: the arguments of `python` that train a recipe; empty: the page does not start runs.
    """

    def __init__(self, folder: Path, train: Sequence[str]) -> None:
        self._folder, self._train = folder, list(train)
        self._children: list[subprocess.Popen[bytes]] = []
        self._asked = set[psutil.Process]()  # to stop
        self._lock = threading.Lock()

    @property
    def can_train(self) -> bool:
        """Whether the page may start runs."""
        return bool(self._train)

    def start(self, name: str, config: Config) -> None:
        """Start a new run in the folder `name`.

        Raises:
            InputError: the name cannot be used, or another run is in progress.
        """
        name = name.strip()
        if not re.fullmatch(r"\w[\w.+-]{0,59}", name):
            raise InputError("name = {name!r}: must be of letters, digits and . + - _, at most 60 of them", name=name)
        with self._lock:
            if (self._folder / name).exists():
                raise InputError("name = {name!r}: is a run already → choose another name, or resume it", name=name)
            recipe = self._file(name, "yaml")
            recipe.parent.mkdir(parents=True, exist_ok=True)
            own = config.model_copy(update={"out_dir": str(self._folder / name)})
            recipe.write_text(configs.to_yaml(own), encoding="utf-8")
            self._begin(name, recipe)

    def resume(self, name: str) -> None:
        """Resume a run from its newest checkpoint.

        Raises:
            InputError: it is not a run here, or a run is in progress.
        """
        with self._lock:
            recipe = self._folder / name / "recipe.yaml"
            began_here = self._file(name, "yaml")
            self._file(name, "log").parent.mkdir(parents=True, exist_ok=True)
            self._begin(name, recipe if recipe.exists() or not began_here.exists() else began_here)

    def pause(self, name: str) -> None:
        """Ask a run to stop gracefully: it finishes its step and writes a checkpoint.

        Raises:
            InputError: no process trains it on this machine.
        """
        process = self._process(name)
        if process is None:
            raise InputError("{name}: is not in progress on this machine", name=name)
        ask_to_stop(process)
        self._asked.add(process)

    def names(self) -> list[str]:
        """Return the runs that were started here or have recorded something, newest first."""
        began = {path.stem: path.stat().st_mtime for path in (self._folder / FOLDER).glob("*.log")}
        recorded = {path.parent.name: path.stat().st_mtime for path in self._folder.glob(f"*/{metrics.FILE_NAME}")}
        newest = began | {name: max(time, began.get(name, 0)) for name, time in recorded.items()}
        return sorted(newest, key=lambda name: newest[name], reverse=True)

    def is_running(self, name: str) -> bool:
        """Whether a process, on this machine or another, trains a run."""
        return self._process(name) is not None or holder_of(self._folder / name) is not None

    def state(self, name: str) -> State:
        """Return where a run is. Raises: InputError: its record cannot be read."""
        folder = self._folder / name
        records = metrics.read(folder / metrics.FILE_NAME) if (folder / metrics.FILE_NAME).exists() else []
        process = self._process(name)
        running = process is not None or holder_of(folder) is not None
        step = int(records[-1]["step"]) if records else 0
        config = self._config(name)
        config = config and horizon.decided(config, records)
        steps = config.max_iters if config and not horizon.undecided(config, records) else 0
        timed = [record for record in records if "seconds" in record][-RECENT:]
        left = None
        if running and steps and len(timed) > 1 and (gained := timed[-1]["step"] - timed[0]["step"]) > 0:
            left = (timed[-1]["seconds"] - timed[0]["seconds"]) / gained * max(0, steps - step)
        return State(name, running, step, steps, left, _last(records, "train_loss"), _last(records, "val_loss"),
                     self._log(name), not running and Facts(records, config).stopped_early,
                     process in self._asked)  # fmt: skip

    def _begin(self, name: str, recipe: Path) -> None:
        if not self._train:
            raise InputError("this page starts no runs")
        if not recipe.exists():
            raise InputError("{name}: is not a run of this folder", name=name)
        busy = next((other for other in self.names() if self._process(other) is not None), None)
        if busy is not None:
            raise InputError("{name}: is in progress → pause it first; two would slow each other down", name=busy)
        with self._file(name, "log").open("ab") as log:
            child = spawn([*self._train, str(recipe), f"--out_dir={self._folder / name}", "--resume"], log)
        self._children.append(child)
        storage.note_training(self._file(name, "json"), child.pid)

    def _process(self, name: str) -> psutil.Process | None:
        """Return the process on this machine that trains a run: one started here, or one that holds the folder."""
        self._children = [child for child in self._children if child.poll() is None]  # forget those that have ended
        noted = storage.training(self._file(name, "json"))
        if noted is not None:
            return noted
        holder = holder_of(self._folder / name)
        if holder is None or holder.machine.partition(" ")[0] != socket.gethostname():
            return None
        try:
            return psutil.Process(holder.process)
        except psutil.Error:
            return None

    def _config(self, name: str) -> Config | None:
        for recipe in (self._folder / name / "recipe.yaml", self._file(name, "yaml")):
            if recipe.exists():
                try:
                    return configs.load(str(recipe))
                except InputError:
                    continue
        return None

    def _file(self, name: str, kind: str) -> Path:
        return self._folder / FOLDER / f"{name}.{kind}"

    def _log(self, name: str) -> str:
        """Return the last lines of a log, without overwritten progress lines and the samples underway, which have a
        place of their own.
        """
        path = self._file(name, "log")
        if not path.exists():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            text = file.read().decode("utf-8", errors="replace")
        lines = list[str]()
        for line in text.split("\n"):
            shown = visible(line.rstrip("\r").rpartition("\r")[2])
            announced = bool(lines) and lines[-1].endswith((":", "："))
            if not shown.startswith(SAMPLED) or announced or (lines and lines[-1].startswith(SAMPLED)):
                lines.append(shown)
        return "\n".join(lines[-30:]).strip("\n")


def _last(records: Sequence[metrics.Record], key: str) -> float | None:
    return next((record[key] for record in reversed(records) if key in record), None)


def find(folder: Path, file: str) -> dict[str, Path]:
    """Return the folders up to three levels deep that hold a file, by relative name, newest first."""
    dated = list[tuple[float, Path]]()
    for path in [path for depth in ("", "*/", "*/*/", "*/*/*/") for path in folder.glob(f"{depth}{file}")]:
        with suppress(OSError):  # a run may be removed meanwhile
            if path.is_file():
                dated.append((path.stat().st_mtime, path.parent))
    dated.sort(reverse=True)
    inside = [path for _time, path in dated if not any(part.startswith("checkpoint-") for part in path.parts)]
    return {str(path.relative_to(folder)) if path != folder else path.resolve().name: path for path in inside}


OPENING = 24  # characters of a prompt


def opening(folder: Path) -> str:
    """Return a prompt that suits a run's model: the beginning of its text, otherwise its last sample; "" if neither.

    A text's relative path is resolved from here, then from the run's parent folders, where it was probably trained.
    """
    try:
        dataset = configs.load(str(folder / "recipe.yaml")).dataset
    except InputError:
        return ""
    if dataset == EMBEDDED_DATASET:
        return "ROMEO:"
    for place in (Path(), *folder.resolve().parents):
        with suppress(OSError, ValueError):
            check_regular(place / dataset)
            with (place / dataset).open(encoding="utf-8") as file:
                return _first_line(file.read(1000))
    with suppress(InputError):
        written = metrics.read_samples(folder / metrics.SAMPLES)
        return _first_line(list(written.values())[-1]) if written else ""
    return ""


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= OPENING else line[:OPENING].rpartition(" ")[0] or line[:OPENING]
