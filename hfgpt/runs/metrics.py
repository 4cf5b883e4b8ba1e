"""The one record of a run: written a line at a time while it trains, read by everything that looks at a run.

In:  what the training loop measures at a step.
Out: ``metrics.jsonl`` (one JSON object a line: ``step`` and what was measured there), and records: a list of
     dictionaries in the order of their steps, each step once. Beside it ``samples.jsonl``, with what the model wrote.

Names and units: ``train_loss`` (of that step's global batch), ``train_eval_loss`` and ``val_loss`` (of the fixed
evaluation blocks) in nats per token; ``learning_rate``; ``grad_norm`` before clipping; ``tokens_per_second``; ``mfu``
(share of the device's peak); ``memory_bytes``; ``seconds`` since the run began, without the time between a stop and
its resume; ``data_seconds``, spent waiting for data, per step; ``epoch``, how often the training text was seen;
``branched``, in the first record of a run that goes on from another's checkpoint, when it did (seconds since 1970).

A number that is not finite (a diverged loss) is written as ``null``, since JSON has no NaN, and is read as NaN.
A value that was not measured is left out. Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hfgpt.base import files
from hfgpt.base.errors import UNREADABLE, InputError
from hfgpt.base.language import why

FILE_NAME = "metrics.jsonl"

SAMPLES = "samples.jsonl"

Record = dict[str, float]

OF_THE_TRAINING = ("share/", "epoch/")  # figures of the corpora that a mix is trained on

MOST_STEPS = 2**53  # beyond it, floats are no longer whole numbers


def apart(records: Sequence[Record]) -> dict[str, float]:
    """The last figures of tasks and of single validation texts, by their names: `accuracy/…`, `val_loss/…`."""
    figures = {key: value for record in records for key, value in record.items() if "/" in key}
    return {key: value for key, value in figures.items() if not key.startswith(OF_THE_TRAINING)}


# ------------------------------------------------------------------------------------------------------ writing


class MetricsWriter:
    """Appends to a run's ``metrics.jsonl``. A line is on its way to the disk when :meth:`write` returns.

    Args:
        path: the file; made with the first line. A torn last line, left by a crash, is removed before.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._is_whole = False

    def _drop_torn_line(self) -> None:
        self._is_whole = True
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)

    def write(self, step: int, **values: float | None) -> None:
        """Add what was measured at `step` (optimizer steps done); None means not measured. Floats keep every digit."""
        if not self._is_whole:
            self._drop_torn_line()
        line = _to_line({"step": step, **{key: value for key, value in values.items() if value is not None}})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    def truncate_after(self, step: int) -> None:
        """Forget every record after `step`, in one atomic replacement: for a resume from the checkpoint of `step`."""
        if not self.path.exists():
            return
        kept = (_to_line(record) for record in read(self.path) if record["step"] <= step)
        files.replace_file(self.path, "".join(kept))


def copy_as_branch(source: Path, target: Path) -> None:
    """Copy a record for a run that branches; ``branched`` in its first line makes it another run's on the Hub."""
    records = read(source)
    if records:
        records[0]["branched"] = time.time()
    files.replace_file(target, "".join(map(_to_line, records)))


def _to_line(record: Record) -> str:
    return json.dumps({key: value if math.isfinite(value) else None for key, value in record.items()}) + "\n"


# ------------------------------------------------------------------------------------------------------ samples


def write_sample(path: Path, step: int, text: str) -> None:
    """Add what the model wrote at `step` to a run's ``samples.jsonl``."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_sample_line(step, text))


def read_samples(path: Path) -> dict[int, str]:
    """The texts of a ``samples.jsonl`` by their steps, in the order of the file; empty if there is no file.

    Of two texts of one step the later counts. A line that cannot be read, as after a crash, is left out.
    """
    samples = dict[int, str]()
    for line in read_text(path).split("\n") if path.is_file() else []:
        try:
            sample = json.loads(line)
            step, text = whole_step(sample["step"]), sample["text"]
        except UNREADABLE:
            continue
        if not isinstance(text, str):
            continue
        samples.pop(step, None)
        samples[step] = text
    return samples


def truncate_samples(path: Path, step: int) -> None:
    """Forget every sample after `step`, as :meth:`MetricsWriter.truncate_after` does with records."""
    if path.exists():
        kept = (_sample_line(at, text) for at, text in read_samples(path).items() if at <= step)
        files.replace_file(path, "".join(kept))


def _sample_line(step: int, text: str) -> str:
    return json.dumps({"step": step, "text": text}, ensure_ascii=False) + "\n"


# ------------------------------------------------------------------------------------------------------ reading


def series(records: Iterable[Record], key: str) -> tuple[list[float], list[float]]:
    """The steps at which `key` was measured, and its values there."""
    pairs = [(record["step"], record[key]) for record in records if key in record]
    return [step for step, _value in pairs], [value for _step, value in pairs]


def smooth(values: Sequence[float], half: int | None = None) -> list[float]:
    """Moving medians, in which a single bad batch leaves no trace.

    Args:
        values: in the order of their steps; those that are not finite stay as they are and count for nothing.
        half: how many neighbours on each side count (default a fortieth of the series); fewer towards the beginning,
            where losses fall steeply.
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
        InputError: there is no such file, or a line before the last one is not a record; names the line.
    """
    path = Path(path)
    lines = read_text(path).split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(_from_line(line))
        except UNREADABLE:
            if number < len(lines):  # with a newline after it, it was not torn by a crash
                raise InputError(
                    "{path}, line {number}: not a record (a JSON object of numbers with a 'step'); remove that line",
                    path=path,
                    number=number,
                ) from None
    return merge(records)


def _from_line(line: str) -> Record:
    values = json.loads(line)
    record = {str(key): math.nan if value is None else _number(value) for key, value in values.items()}
    record["step"] = whole_step(values["step"])
    return record


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("not a number")
    float(value)  # OverflowError: an integer beyond every float
    return value


def whole_step(value: Any) -> int:
    """A step of a record that comes from outside.

    Raises:
        one of UNREADABLE: it is not a step.
    """
    step = int(_number(value))
    if step != value or not 0 <= step <= MOST_STEPS:
        raise ValueError("not a step")
    return step


def merge(records: Iterable[Record]) -> list[Record]:
    """Records with each step once, in order: what later ones say of a step is added to, and wins over, earlier ones."""
    by_step: dict[float, Record] = {}
    for record in records:
        by_step.setdefault(record["step"], {}).update(record)
    return [by_step[step] for step in sorted(by_step)]


def read_text(path: Path) -> str:
    """A file's text, with U+FFFD for what is not UTF-8.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError("{path}: cannot be read: {reason}", path=path, reason=why(error)) from None
