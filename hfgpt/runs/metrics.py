"""The record of a run: written line by line during training, and read by everything that inspects a run.

In:  what the training loop measures at a step.
Out: ``metrics.jsonl`` (one JSON object per line: ``step`` and what was measured there), and records: a list of
     dictionaries in step order, each step once. Beside it ``samples.jsonl``, with texts sampled from the model.

Names and units: ``train_loss`` (of that step's global batch), ``train_eval_loss`` and ``val_loss`` (of the fixed
evaluation blocks) in nats per token; ``learning_rate``; ``grad_norm`` before clipping; ``tokens_per_second``; ``mfu``
(share of the device's peak); ``memory_bytes``; ``seconds`` since the run began, without the time between a stop and
its resume; ``data_seconds``, spent waiting for data, per step; ``epoch``, how often the training text was seen;
``ngram_loss_1``, ``_2`` …, at the first evaluation, what counting single tokens, pairs … reaches on the validation
split, in nats, and with these, where the law of the loss covers the run, ``train_tokens`` and ``vocab_size``;
``branched`` and ``branch_step``, in the first record of a run that continues from another's checkpoint, when it
branched (seconds since 1970) and from which step; ``horizon``, with a time budget, the length in steps that the run
decided then.

A number that is not finite (a diverged loss) is written as ``null``, since JSON has no NaN, and is read as NaN.
A value that was not measured is left out. Imports neither torch nor transformers.
"""

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
from hfgpt.base.language import strerror

FILE_NAME = "metrics.jsonl"
NGRAM_LOSS = "ngram_loss_{}"  # by the order
SAMPLES = "samples.jsonl"

Record = dict[str, float]

OF_THE_TRAINING = ("share/", "epoch/")  # figures of the corpora in a mix
MOST_STEPS = 2**53  # above it, floats cannot represent every integer


def apart(records: Sequence[Record]) -> dict[str, float]:
    """Return a run's last figures of tasks and of single validation texts, by name: `accuracy/…`, `val_loss/…`."""
    first = branch_step(records) or 0  # those before are of another run's models
    own = (record for record in records if record["step"] >= first)
    figures = {key: value for record in own for key, value in record.items() if "/" in key}
    return {key: value for key, value in figures.items() if not key.startswith(OF_THE_TRAINING)}


def branch_step(records: Sequence[Record]) -> int | None:
    """Return the step from which a run branched off another one, whose record comes before it; None if it did not."""
    step = records[0].get("branch_step", math.nan) if records else math.nan
    return int(step) if math.isfinite(step) else None


def best(records: Sequence[Record]) -> Record | None:
    """Return the evaluation whose model a run exports: of its own, not of those that a branch copied, the lowest."""
    first = branch_step(records) or 0
    own = (line for line in records if line["step"] >= first and math.isfinite(line.get("val_loss", math.nan)))
    return min(own, key=lambda record: record["val_loss"], default=None)


# ------------------------------------------------------------------------------------------------------ writing


class MetricsWriter:
    """Appends to a run's ``metrics.jsonl``. :meth:`write` flushes each line.

    Args:
        path: the file; created with the first line. A torn last line from a crash is removed first.
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
        """Append what was measured at `step` (optimizer steps done); None: not measured. Floats keep every digit."""
        if not self._is_whole:
            self._drop_torn_line()
        line = _to_line({"step": step, **{key: value for key, value in values.items() if value is not None}})
        with files.disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    def truncate_after(self, step: int) -> None:
        """Drop all records after `step` by an atomic replacement: for a resume from the checkpoint of `step`."""
        if not self.path.exists():
            return
        kept = (_to_line(record) for record in read(self.path) if record["step"] <= step)
        files.replace_file(self.path, "".join(kept))


def begin_branch(target: Path, step: int, source: Path | None) -> None:
    """Begin the record of a branch from `step`; ``branched`` in its first line marks it as another run on the Hub.

    Args:
        source: the record to copy; None for a branch on another text, whose losses do not continue the other run's.
    """
    records: list[Record] = read(source) if source is not None else [{"step": 0}]
    for record in records:
        if record["step"] == step:  # the branch measures it again if an evaluation is due there, and exports it then
            record.pop("val_loss", None)
    if records:
        records[0] |= {"branched": time.time(), "branch_step": step}
    files.replace_file(target, "".join(map(_to_line, records)))


def _to_line(record: Record) -> str:
    return json.dumps({key: value if math.isfinite(value) else None for key, value in record.items()}) + "\n"


# ------------------------------------------------------------------------------------------------------ samples


def write_sample(path: Path, step: int, text: str) -> None:
    """Append a text sampled at `step` to a run's ``samples.jsonl``."""
    with files.disk_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(_sample_line(step, text))


def read_samples(path: Path) -> dict[int, str]:
    """Read the texts of a ``samples.jsonl`` by step, in file order; empty if there is no file.

    Of two texts of one step the later counts. An unreadable line, as after a crash, is skipped.
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
    """Drop all samples after `step`, as :meth:`MetricsWriter.truncate_after` does with records."""
    if path.exists():
        kept = (_sample_line(at, text) for at, text in read_samples(path).items() if at <= step)
        files.replace_file(path, "".join(kept))


def _sample_line(step: int, text: str) -> str:
    return json.dumps({"step": step, "text": text}, ensure_ascii=False) + "\n"


# ------------------------------------------------------------------------------------------------------ reading


def series(records: Iterable[Record], key: str) -> tuple[list[float], list[float]]:
    """Return the steps at which `key` was measured, and its values there."""
    pairs = [(record["step"], record[key]) for record in records if key in record]
    return [step for step, _value in pairs], [value for _step, value in pairs]


def smooth(values: Sequence[float], half: int | None = None) -> list[float]:
    """Return moving medians, which a single bad batch does not affect.

    Args:
        values: in step order; non-finite ones are kept as they are and otherwise ignored.
        half: the number of neighbours on each side (default a fortieth of the series); fewer near the beginning, where
            losses fall steeply.
    """
    half, out = half or max(1, len(values) // 40), []
    for i, value in enumerate(values):
        near = [x for x in values[i - min(half, i) : i + min(half, i) + 1] if math.isfinite(x)]
        out.append(statistics.median(near) if math.isfinite(value) else value)
    return out


def read(path: str | Path) -> list[Record]:
    """Read the records of a ``metrics.jsonl``, each step once (of two lines for one step the later wins, key by key).

    Works while the run is being written: a torn last line is skipped.

    Raises:
        InputError: there is no such file, or a line before the last one is not a record; names the line.
    """
    lines = read_text(Path(path)).split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(_from_line(line))
        except UNREADABLE:
            if number < len(lines):  # a line that ends in a newline was not torn by a crash
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
    float(value)  # OverflowError: an integer too large for a float
    return value


def whole_step(value: Any) -> int:
    """Read the step of a record from outside.

    Raises: one of UNREADABLE: it is not a step.
    """
    step = int(_number(value))
    if step != value or not 0 <= step <= MOST_STEPS:
        raise ValueError("not a step")
    return step


def merge(records: Iterable[Record]) -> list[Record]:
    """Merge records into one per step, in order; later values are added to earlier ones and override them."""
    by_step: dict[float, Record] = {}
    for record in records:
        by_step.setdefault(record["step"], {}).update(record)
    return [by_step[step] for step in sorted(by_step)]


def read_text(path: Path) -> str:
    """Read a file's text, with U+FFFD in place of invalid UTF-8.

    Raises:
        InputError: it cannot be read.
    """
    try:
        files.check_regular(path)
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError("{path}: cannot be read: {reason}", path=path, reason=strerror(error)) from None
