"""The one record of a run: written a line at a time while it trains, read by everything that looks at a run.

In:  what the training loop measures at a step; later a run folder, a Trainer's ``trainer_state.json``, or the log that
     nanoGPT printed.
Out: ``metrics.jsonl`` (one JSON object a line: ``step`` and what was measured there), and records: a list of
     dictionaries in the order of their steps, each step once. Beside it ``samples.jsonl``, with what the model wrote.

Names and units: ``train_loss`` (of that step's global batch), ``train_eval_loss`` and ``val_loss`` (of the fixed
evaluation blocks) in nats per token; ``learning_rate``; ``grad_norm`` before clipping; ``tokens_per_second``; ``mfu``
(share of the device's peak); ``memory_bytes``; ``seconds`` since the run began, without the time between a stop and
its resume; ``data_seconds``, spent waiting for data, per step; ``epoch``, how often the training text was seen.

A number that is not finite (a diverged loss) is written as ``null``, since JSON has no NaN, and is read as NaN.
A value that was not measured is left out. Imports neither torch nor transformers.
"""

from __future__ import annotations

import ast
import json
import math
import os
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgpt import config as configs
from hfgpt.base.errors import ConfigError, InputError
from hfgpt.config import Config

FILE_NAME = "metrics.jsonl"

SAMPLES = "samples.jsonl"

Record = dict[str, float]


# ------------------------------------------------------------------------------------------------------ writing


class MetricsWriter:
    """Appends to a run's ``metrics.jsonl``. A line is on its way to the disk when :meth:`write` returns.

    Args:
        path: the file; made with the first line. A torn last line, left by a crash, is removed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists():
            self._drop_torn_line()

    def _drop_torn_line(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)

    def write(self, step: int, **values: float | None) -> None:
        """Add what was measured at `step` (optimizer steps done); None means not measured. Floats keep every digit."""
        line = _to_line({"step": step, **{key: value for key, value in values.items() if value is not None}})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    def truncate_after(self, step: int) -> None:
        """Forget every record after `step`, in one atomic replacement: for a resume from the checkpoint of `step`."""
        if not self.path.exists():
            return
        _replace(self.path, (_to_line(record) for record in read(self.path) if record["step"] <= step))


def _replace(path: Path, lines: Iterable[str]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _to_line(record: Record) -> str:
    return json.dumps({key: value if math.isfinite(value) else None for key, value in record.items()}) + "\n"


# ------------------------------------------------------------------------------------------------------ samples


def write_sample(path: Path, step: int, text: str) -> None:
    """Add what the model wrote at `step` to a run's ``samples.jsonl``."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_sample_line(step, text))


def read_samples(path: Path) -> dict[int, str]:
    """The texts of a ``samples.jsonl`` by their steps, in the order of the file; none where there is no file.

    Of two texts of one step the later counts. A line that is none, such as one that a crash cut short, is left out.
    """
    samples = dict[int, str]()
    for line in _text(path).split("\n") if path.is_file() else []:
        try:
            sample = json.loads(line)
            step, text = int(sample["step"]), str(sample["text"])
        except (ValueError, KeyError, TypeError):
            continue
        samples.pop(step, None)
        samples[step] = text
    return samples


def truncate_samples(path: Path, step: int) -> None:
    """Forget every sample after `step`, as :meth:`MetricsWriter.truncate_after` does with records."""
    if path.exists():
        _replace(path, (_sample_line(at, text) for at, text in read_samples(path).items() if at <= step))


def _sample_line(step: int, text: str) -> str:
    return json.dumps({"step": step, "text": text}, ensure_ascii=False) + "\n"


# ------------------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True)
class Run:
    """What is known of a run: its name, its records in the order of their steps, its recipe where there is one."""

    name: str
    path: Path
    records: list[Record]
    config: Config | None = None

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """See :func:`series`."""
        return series(self.records, key)


def series(records: Iterable[Record], key: str) -> tuple[list[float], list[float]]:
    """The steps at which `key` was measured, and its values there."""
    pairs = [(record["step"], record[key]) for record in records if key in record]
    return [step for step, _ in pairs], [value for _, value in pairs]


def smooth(values: Sequence[float], half: int | None = None) -> list[float]:
    """Moving medians, in which a single bad batch leaves no trace.

    Args:
        values: in the order of their steps; those that are no number stay so and count for nothing.
        half: how many neighbours on each side count (default a fortieth of the series); towards the beginning, where
            losses fall steeply, fewer.
    """
    half, out = half or max(1, len(values) // 40), []
    for i, value in enumerate(values):
        near = [x for x in values[i - min(half, i) : i + min(half, i) + 1] if math.isfinite(x)]
        out.append(statistics.median(near) if math.isfinite(value) else value)
    return out


def read(path: str | Path) -> list[Record]:
    """The records of a ``metrics.jsonl``, each step once (of two lines for one step the later wins, key by key).

    Works while the run is being written: a torn last line is left out.

    Raises:
        InputError: there is no such file, or a line in its middle is no record; names the line.
    """
    path = Path(path)
    lines = _text(path).split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(_from_line(line))
        except (ValueError, TypeError, KeyError, AttributeError):
            if number < len(lines):  # with a newline after it, it was not torn by a crash
                raise InputError(
                    f"{path}, line {number}: is no record (a JSON object of numbers with a 'step'); remove that line"
                ) from None
    return merge(records)


def _from_line(line: str) -> Record:
    values = json.loads(line)
    record = {str(key): math.nan if value is None else value + 0 for key, value in values.items()}
    record["step"] = int(record["step"])
    return record


def merge(records: Iterable[Record]) -> list[Record]:
    """Records with each step once, in order: what later ones say of a step is added to, and wins over, earlier ones."""
    by_step: dict[float, Record] = {}
    for record in records:
        by_step.setdefault(record["step"], {}).update(record)
    return [by_step[step] for step in sorted(by_step)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def read_run(source: str | Path) -> Run:
    """Read a run, finished or in progress.

    Args:
        source: a run folder or its ``metrics.jsonl``; a Trainer's output or checkpoint folder or its
            ``trainer_state.json``; or a text file with what nanoGPT printed.

    Raises:
        InputError: nothing there is a record of a run; says what was looked for.
    """
    path = _record_file(Path(source))
    if path.suffix == ".jsonl":
        records, config = read(path), _recipe_beside(path)
    elif path.suffix == ".json":
        records, config = _read_trainer_state(path), None
    else:
        text = _text(path)
        records, config = _read_nanogpt(text), _nanogpt_config(text)
    if not records:
        raise InputError(f"{source}: holds no step yet: neither a loss nor an evaluation was recorded in {path}")
    folder = path.parent.resolve()
    name = folder.name if path.suffix in (".jsonl", ".json") else path.stem
    return Run(name, path, records, config)


def _record_file(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.exists():
        raise InputError(f"{source}: there is no such run folder or file")
    by_step = sorted(source.glob("checkpoint-*/trainer_state.json"), key=lambda path: (len(path.parent.name), path))
    for candidate in (source / FILE_NAME, source / "trainer_state.json", *reversed(by_step)):
        if candidate.is_file():
            return candidate
    raise InputError(f"{source}: no run here: it has neither {FILE_NAME} nor trainer_state.json")


def _recipe_beside(path: Path) -> Config | None:
    recipe = path.parent / "recipe.yaml"
    return configs.load(recipe) if recipe.is_file() else None


# The Trainer's names, and ours. Its train loss is the mean over the logged interval.
TRAINER_NAMES = {
    "loss": "train_loss",
    "eval_loss": "val_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
}


def _read_trainer_state(path: Path) -> list[Record]:
    try:
        lines = [
            {"step": int(line["step"])} | {ours: float(line[key]) for key, ours in TRAINER_NAMES.items() if key in line}
            for line in json.loads(_text(path))["log_history"]
        ]
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path}: is no trainer_state.json: it has no list 'log_history' of logged steps") from None
    return merge(line for line in lines if len(line) > 1)


NUMBER = r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))"

# A collector of logs may have put the time before each line.
NANOGPT_EVALUATION = re.compile(rf"\bstep (\d+): train loss {NUMBER}, val loss {NUMBER}")

NANOGPT_STEP = re.compile(rf"\biter (\d+): loss {NUMBER}, time {NUMBER}ms(?:, mfu {NUMBER}%)?")


def _read_nanogpt(text: str) -> list[Record]:
    evaluations = [
        {"step": int(step), "train_eval_loss": float(train), "val_loss": float(val)}
        for step, train, val in NANOGPT_EVALUATION.findall(text)
    ]
    return merge([*evaluations, *_nanogpt_steps(text)])


def _nanogpt_steps(text: str) -> Iterator[Record]:
    """nanoGPT prints the time of one step, which includes the evaluation before it; the steps between two printed
    ones are taken to be as quick as the quicker of the two."""
    seconds, last_step, last_took = 0.0, -1, math.inf
    for step_text, loss, milliseconds, mfu in NANOGPT_STEP.findall(text):
        step, took = int(step_text), float(milliseconds) / 1000
        seconds += took + max(step - last_step - 1, 0) * min(took, last_took)
        last_step, last_took = step, took
        record: Record = {"step": step, "train_loss": float(loss), "seconds": seconds}
        if mfu and float(mfu) >= 0:  # it prints -100% until it has measured
            record["mfu"] = float(mfu) / 100
        yield record


NANOGPT_SETTING = re.compile(r"^(?:Overriding: )?([a-z_0-9]+) = ([^#\n]+)", re.MULTILINE)


def _nanogpt_config(text: str) -> Config | None:
    """nanoGPT prints its config file and overrides; what it leaves out has its defaults, which are mostly ours."""
    found: dict[str, Any] = {}
    for key, value in NANOGPT_SETTING.findall(text):
        if key in Config.model_fields or key in configs.RENAMED:
            try:
                found[key] = ast.literal_eval(value.strip())
            except (ValueError, SyntaxError):
                continue  # an expression, such as 5 * 8
    try:
        return configs.build({"max_iters": 600_000, **found}, "nanogpt") if found else None
    except ConfigError:
        return None  # a value that means nothing here: the log is diagnosed without its recipe
