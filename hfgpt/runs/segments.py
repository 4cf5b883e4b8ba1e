"""The segments of a run: which recipe applied from which step on.

In:  a recipe and the step from which it applies, at the start and at each resume that changes something.
Out: ``segments.jsonl`` in the run folder, one JSON object per line: ``step`` and ``recipe``, the values that decide
     what a run computes. Paths and machine settings are left out, so that the file can be shared.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgpt.base.errors import UNREADABLE
from hfgpt.base.files import replace_file
from hfgpt.base.language import listed
from hfgpt.base.units import shown
from hfgpt.config import Config, with_role
from hfgpt.model.schedule import learning_rate

FILE_NAME = "segments.jsonl"
LOCAL = frozenset(with_role("local", "output"))  # fields that affect no weight
RATES = {"warmup_iters", "lr_decay_iters", "decay_shape", "min_lr"}  # fields that only the learning rate reads
PLACES = 1000  # steps at which two schedules are compared, at most


@dataclass(frozen=True)
class Segment:
    """The recipe that applies after `step`, without :data:`LOCAL`."""

    step: int
    recipe: dict[str, Any]


def deciding(config: Config, dtype: str) -> dict[str, Any]:
    """Return the values of a resolved config that decide what a run computes; `dtype` is its resolved 'auto'."""
    values = config.model_dump(exclude={*LOCAL, *of_the_clock(config)})
    return {**values, "dtype": dtype}


def of_the_clock(config: Config) -> set[str]:
    """Return the fields that the clock sets in a run with a time budget."""
    return {"max_iters", "warmup_iters", "lr_decay_iters"} if config.time_budget else set()


def read(folder: Path) -> list[Segment]:
    """Read the segments of a run in order; lines that are not segments are skipped."""
    segments = list[Segment]()
    path = folder / FILE_NAME
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
            segments.append(Segment(int(values["step"]), dict(values["recipe"])))
        except UNREADABLE:
            continue
    return segments


def begin(folder: Path, step: int, recipe: dict[str, Any]) -> None:
    """Record that this recipe applies from `step` on: drop later segments, and add one if the recipe changed.

    Raises:
        OSError: the folder cannot be written.
    """
    kept = [segment for segment in read(folder) if segment.step <= step]
    if kept and kept[-1].step == step:
        kept.pop()
    if not kept or differences(kept[-1].recipe, recipe):
        kept.append(Segment(step, recipe))
    replace_file(folder / FILE_NAME, "".join(json.dumps(vars(each), ensure_ascii=False) + "\n" for each in kept))


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (key, old value, new value) for each difference; only keys in both are compared."""
    keys: Iterable[str] = (key for key in now if key in before)
    return [(key, before[key], now[key]) for key in keys if before[key] != now[key]]


def in_words(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the differences as text: 'max_iters 8 → 12, dropout 0.0 → 0.1'."""
    return listed(f"{key} {shown(old)} → {shown(new)}" for key, old, new in differences(before, now))


def matters(key: str, then: Any, config: Config, step: int) -> bool:
    """Whether it makes a difference after `step` that a field no longer has the value `then`."""
    if key.startswith("muon_"):
        return config.optimizer == "muon"
    if key not in RATES:
        return True
    other = config.model_copy(update={key: then})
    steps = [*range(step + 1, config.max_iters, 1 + (config.max_iters - step) // PLACES), config.max_iters]
    return any(learning_rate(at, config) != learning_rate(at, other) for at in steps)
