"""The history of a run: its records and its recipe, from any supported source.

In:  a run folder, a Trainer's ``trainer_state.json``, or the log that nanoGPT printed.
Out: one :class:`History`, its records by our names (:mod:`hfgpt.runs.metrics`).
"""

import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hfgpt import config as configs
from hfgpt.base.errors import ConfigError, InputError
from hfgpt.base.lock import holder_of
from hfgpt.config import Config, nanogpt
from hfgpt.runs import horizon, metrics, reference, segments
from hfgpt.runs.facts import Surroundings
from hfgpt.runs.metrics import UNREADABLE, Record, merge, read_text, whole_step


@dataclass(frozen=True)
class History:
    """A run's history: its name, its records in step order, its recipe if there is one, and what its folder says."""

    name: str
    path: Path
    records: list[Record]
    config: Config | None = None
    around: Surroundings = field(default_factory=Surroundings)

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """See :func:`hfgpt.runs.metrics.series`."""
        return metrics.series(self.records, key)


def read_run(source: str | Path) -> History:
    """Read the history of a run, finished or in progress.

    Args:
        source: a run folder or its ``metrics.jsonl``; a Trainer's output or checkpoint folder or its
            ``trainer_state.json``; or a text file with nanoGPT's output.

    Raises:
        InputError: there is no record of a run; says what was looked for.
    """
    path = _record_file(Path(source))
    config: Config | None = None
    around = Surroundings()
    if path.suffix == ".jsonl":
        records, config = metrics.read(path), _recipe_beside(path)
        config = config and horizon.decided(config, records)
        around = surroundings(path.parent)
    elif path.suffix == ".json":
        records = read_trainer_state(path)
    else:
        records, config = read_nanogpt(path)
    if not records:
        raise InputError(
            "{source}: holds no step yet: there is neither a loss nor an evaluation in {path}", source=source, path=path
        )
    name = path.parent.resolve().name if path.suffix in (".jsonl", ".json") else path.stem
    return History(name, path, records, config, around)


def surroundings(folder: Path) -> Surroundings:
    """Return what a run's folder says beside its record and its recipe."""
    try:
        written = (folder / metrics.FILE_NAME).stat().st_mtime if holder_of(folder) is None else None
        steps = [int(path.parent.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*/COMPLETE")]
    except (OSError, ValueError):  # a folder that cannot be read, or holds what looks like a checkpoint
        return Surroundings()
    parts = segments.read(folder)
    changes = (now.step for before, now in itertools.pairwise(parts) if reference.differ(before.recipe, now.recipe))
    return Surroundings(written, max(steps, default=None), tuple(changes))


def _record_file(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.exists():
        raise InputError("{source}: no such run folder or file", source=source)
    by_step = sorted(source.glob("checkpoint-*/trainer_state.json"), key=lambda path: (len(path.parent.name), path))
    for candidate in (source / metrics.FILE_NAME, source / "trainer_state.json", *reversed(by_step)):
        if candidate.is_file():
            return candidate
    if trials := trials_of(source):
        raise InputError(
            "{source}: is a sweep of {n} runs, such as {run} → name one of them; {report} compares them",
            source=source,
            n=len(trials),
            run=trials[0],
            report=source / "report.md",
        )
    raise InputError(
        "{source}: no run here; it has neither {name} nor trainer_state.json", source=source, name=metrics.FILE_NAME
    )


def trials_of(source: Path) -> list[Path]:
    """Return the runs of a sweep's folder; empty if it is not one."""
    return sorted(record.parent for record in source.glob(f"trials/*/{metrics.FILE_NAME}"))


def _recipe_beside(path: Path) -> Config | None:
    recipe = path.parent / "recipe.yaml"
    return configs.load(recipe) if recipe.is_file() else None


# The Trainer's names → ours. Its train loss is the mean over the logged interval.
TRAINER_NAMES = {
    "loss": "train_loss",
    "eval_loss": "val_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
}


def read_trainer_state(path: Path) -> list[Record]:
    """Read the logged steps of a ``trainer_state.json``.

    Raises:
        InputError: the file is not a trainer state.
    """
    try:
        lines = [
            {"step": whole_step(line["step"])}
            | {ours: float(line[key]) for key, ours in TRAINER_NAMES.items() if key in line}
            for line in json.loads(read_text(path))["log_history"]
        ]
    except UNREADABLE:
        raise InputError(
            "{path}: not a trainer_state.json; it has no list 'log_history' of logged steps", path=path
        ) from None
    return merge(line for line in lines if len(line) > 1)


STEP, NUMBER = r"(\d{1,15})", r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))"

# A log collector may have prefixed each line with the time.
NANOGPT_EVALUATION = re.compile(rf"\bstep {STEP}: train loss {NUMBER}, val loss {NUMBER}")

NANOGPT_STEP = re.compile(rf"\biter {STEP}: loss {NUMBER}, time {NUMBER}ms(?:, mfu {NUMBER}%)?")
NANOGPT_SETTING = re.compile(r"^(?:Overriding: )?([a-z_0-9]{1,40}) = ([^#\n]{1,200})", re.MULTILINE)

NANOGPT_TOKENS = re.compile(r"\btokens per iteration will be: (\d[\d,]{0,20})")


def read_nanogpt(path: Path) -> tuple[list[Record], Config | None]:
    """Read the steps and evaluations that nanoGPT printed, and those of its settings that exist here."""
    text = read_text(path)
    evaluations = [
        {"step": int(step), "train_eval_loss": float(train), "val_loss": float(val)}
        for step, train, val in NANOGPT_EVALUATION.findall(text)
    ]
    return merge([*evaluations, *_steps(text)]), _settings(text)


def _steps(text: str) -> Iterator[Record]:
    """nanoGPT prints the time of one step, which includes the evaluation before it; the steps between two printed ones
    are assumed to be as quick as the quicker of the two.
    """
    seconds, last_step, last_took = 0.0, -1, math.inf
    for step_text, loss, milliseconds, mfu in NANOGPT_STEP.findall(text):
        step, took = int(step_text), float(milliseconds) / 1000
        seconds += took + max(step - last_step - 1, 0) * min(took, last_took)
        last_step, last_took = step, took
        record: Record = {"step": step, "train_loss": float(loss), "seconds": seconds}
        if mfu and float(mfu) >= 0:  # nanoGPT prints -100% until it has measured
            record["mfu"] = float(mfu) / 100
        yield record


def _settings(text: str) -> Config | None:
    """nanoGPT prints its config file and overrides; the rest has its defaults."""
    tokens = NANOGPT_TOKENS.search(text)
    recipe = nanogpt.read_printed(NANOGPT_SETTING.findall(text), int(tokens[1].replace(",", "")) if tokens else None)
    try:
        return configs.build(recipe, "nanogpt") if recipe else None
    except ConfigError:
        return None  # a value that is invalid here: diagnose the log without its recipe
