"""A run that is given a time: it ends in it, with its schedule finished and evaluated, and a resume replays it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import survival
from survival import KillAt, attempt, figures, finish

from hfgpt import config
from hfgpt.model.schedule import learning_rate
from hfgpt.runs import metrics
from hfgpt.train import checkpoint, horizon
from hfgpt.train import loop as train

TIMED = {"max_iters": 5000, "warmup_iters": 250, "eval_interval": 100, "log_interval": 1, "learning_rate": 1e-3}


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    survival.end_all()


def series(path: Path, key: str) -> dict[int, float]:
    steps, values = metrics.series(metrics.read(path / "metrics.jsonl"), key)
    return dict(zip(map(int, steps), values, strict=True))


def test_the_schedule_is_finished_and_evaluated_in_time(tiny: dict[str, Any]) -> None:
    values = tiny | TIMED | {"time_budget": "20s"}
    resolved = config.build(values, "test")
    began = time.monotonic()
    assert train.train(resolved) == 0
    taken = time.monotonic() - began
    assert 20 * 0.5 < taken < 20
    path = resolved.run_dir
    rates, decided = series(path, "learning_rate"), series(path, "horizon")
    last = max(rates)
    assert list(decided.values())[-1] == last
    assert rates[last] == pytest.approx(resolved.min_lr, rel=0.02)
    assert last in series(path, "val_loss")
    assert max(rates.values()) == pytest.approx(1e-3, rel=0.01)
    # The rates follow from the record alone.
    lengths = list[int]()
    for step in range(1, last):
        assert rates[step] == learning_rate(step, horizon.lengthened(resolved, lengths) if lengths else resolved)
        if step in decided:
            lengths.append(int(decided[step]))
    written = config.load(path)
    assert (written.max_iters, written.time_budget) == (last, "20s")


def test_a_crash_replays_what_was_decided(tiny: dict[str, Any], tmp_path: Path) -> None:
    """The steps behind the last checkpoint are made again with the rates that they had."""
    values = tiny | TIMED | {"time_budget": "20s", "dropout": 0.2}
    path = Path(values["out_dir"])
    assert finish(attempt(values, KillAt("begin", 2), resume=False)) == -signal.SIGKILL
    assert checkpoint.steps(path) == [100]
    before = {row[0]: row[1:4] for row in figures(path)}
    assert max(before) == 200
    decided = series(path, "horizon")
    assert any(step > 100 for step in decided)
    assert finish(attempt(values)) == 0
    after = {row[0]: row[1:4] for row in figures(path)}
    assert {step: after[step] for step in range(101, 200)} == {step: before[step] for step in range(101, 200)}
    now = series(path, "horizon")
    assert {step: length for step, length in now.items() if step < 200} == {
        step: length for step, length in decided.items() if step < 200
    }
