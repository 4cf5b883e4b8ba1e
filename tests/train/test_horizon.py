"""A run with a time budget ends within it, with its schedule finished and evaluated; a resume repeats its decisions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from survival import figures

from hfgpt import config
from hfgpt.model.schedule import learning_rate
from hfgpt.runs import metrics
from hfgpt.runs.horizon import lengthened
from hfgpt.train import checkpoint, horizon, meter, start
from hfgpt.train import evaluate as evaluate_module
from hfgpt.train import loop as train
from hfgpt.train import step as step_module
from hfgpt.train.run import Run

TIMED = {"max_iters": 5000, "warmup_iters": 250, "eval_interval": 50, "log_interval": 1, "learning_rate": 1e-3}


class Killed(Exception):
    """Simulates the end of the process in the middle of a step."""


class Clock:
    """A machine of known speed: seconds of a step, of an evaluation, and of the drawing at the end."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, step: float, evaluation: float = 0.6, drawing: float = 0.4
    ) -> None:
        self.now, self.step, self.killed_at, self.slow = 0.0, step, 0, 1.0
        for module in (horizon, meter):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        train_step, evaluate = step_module.train_step, evaluate_module.evaluate

        def timed_step(run: Run, *rest: Any) -> Any:
            if run.progress.step + 1 == self.killed_at:
                raise Killed
            self.now += self.slow * self.step
            return train_step(run, *rest)

        def timed_evaluation(*arguments: Any) -> bool:
            self.now += self.slow * evaluation
            return evaluate(*arguments)

        def timed_drawing(_run: Run) -> float:
            self.now += self.slow * drawing
            return self.slow * drawing

        monkeypatch.setattr(train, "train_step", timed_step)
        monkeypatch.setattr(train, "evaluate", timed_evaluation)
        monkeypatch.setattr(horizon, "rehearse", timed_drawing)


def series(path: Path, key: str) -> dict[int, float]:
    steps, values = metrics.series(metrics.read(path / "metrics.jsonl"), key)
    return dict(zip(map(int, steps), values, strict=True))


@pytest.mark.parametrize("change", [0.0, 0.1, -0.1], ids=["steady", "slower", "faster"])
def test_the_schedule_is_finished_and_evaluated_in_time(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, change: float
) -> None:
    """It holds even if the machine becomes half or twice as fast during the run."""
    resolved = config.build(tiny | TIMED | {"time_budget": "60s"}, "test")
    clock = Clock(monkeypatch, step=0.2)
    real = train.learning_rate

    def changing(step: int, of: config.Config) -> float:
        if step == 100:
            clock.step += change
        return real(step, of)

    monkeypatch.setattr(train, "learning_rate", changing)
    assert train.train(resolved, began=0.0) == 0
    assert 0.9 * 60 < clock.now + 0.4 <= 60
    path = resolved.run_dir
    rates, decided = series(path, "learning_rate"), series(path, "horizon")
    last = max(rates)
    assert list(decided.values())[-1] == last
    assert rates[last] == pytest.approx(resolved.min_lr, rel=0.02)
    assert last in series(path, "val_loss")
    assert max(rates.values()) == pytest.approx(1e-3, rel=0.01)
    written = config.load(path)
    assert (written.max_iters, written.time_budget) == (last, "60s")
    # The rates follow from the record alone.
    lengths = list[int]()
    for step in range(1, last):
        assert rates[step] == learning_rate(step, lengthened(resolved, lengths) if lengths else resolved)
        if step in decided:
            lengths.append(int(decided[step]))


def test_a_finished_run_goes_on_if_it_gets_more_time(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same time, or hardly more, it is complete."""
    clock, ends = Clock(monkeypatch, step=0.2), list[float]()
    for budget, resume in (("20s", False), ("20s", True), ("21s", True), ("40s", True)):
        resolved = config.build(tiny | TIMED | {"time_budget": budget}, "test")
        clock.now = 0.0
        assert train.train(resolved, resume=resume, began=0.0) == 0
        ends.append(max(series(resolved.run_dir, "learning_rate")))
        if budget == "20s" and not resume:
            spent = clock.now
    assert ends[0] == ends[1] == ends[2] < 0.6 * ends[3]
    assert 0.9 * 40 < spent + clock.now <= 40
    rates = series(resolved.run_dir, "learning_rate")
    assert rates[ends[3]] == pytest.approx(resolved.min_lr, rel=0.02)
    assert ends[3] in series(resolved.run_dir, "val_loss")


def test_the_first_decision_is_recorded_also_where_the_recipe_has_that_length(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without one in its record, a run counts as not decided yet, and so as not finished."""
    clock, records = Clock(monkeypatch, step=0.2), list[dict[int, float]]()
    for name in ("a", "b"):
        length = next(iter(records[0].values())) if records else 40
        timed = {"max_iters": length, "warmup_iters": 4, "time_budget": "20s", "out_dir": str(tmp_path / name)}
        clock.now = 0.0
        assert train.train(config.build(tiny | TIMED | timed, "test"), began=0.0) == 0
        records.append(series(tmp_path / name, "horizon"))
    assert records[1] == records[0]


def test_a_late_and_heavy_load_also_slows_the_end(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, evaluations and drawing take six times as long from 70% of the time on, and so does the end."""
    resolved = config.build(tiny | TIMED | {"time_budget": "60s", "eval_interval": 1000}, "test")
    clock = Clock(monkeypatch, step=0.2)
    real = train.learning_rate

    def loaded(step: int, of: config.Config) -> float:
        clock.slow = 6.0 if clock.now > 42 else 1.0
        return real(step, of)

    monkeypatch.setattr(train, "learning_rate", loaded)
    assert train.train(resolved, began=0.0) == 0
    assert 0.85 * 60 < clock.now + 6 * 0.4 <= 60
    rates = series(resolved.run_dir, "learning_rate")
    last = max(rates)
    assert rates[last] == pytest.approx(resolved.min_lr, rel=0.02)
    assert last in series(resolved.run_dir, "val_loss")


def test_a_crash_replays_what_was_decided(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The steps after the last checkpoint are repeated with their former rates, on a slower machine too."""
    short = {"max_iters": 60, "warmup_iters": 3}  # as a recipe has them that was not made for this time
    resolved = config.build(tiny | TIMED | short | {"time_budget": "60s", "dropout": 0.2}, "test")
    path = resolved.run_dir
    clock = Clock(monkeypatch, step=0.2)
    clock.killed_at = 140
    with pytest.raises(Killed):
        train.train(resolved, began=0.0)
    assert checkpoint.steps(path) == [100, 50]
    before = {row[0]: row[1:4] for row in figures(path)}
    decided = series(path, "horizon")
    assert any(step > 100 for step in decided)
    clock.killed_at, clock.step, began = 0, 0.3, clock.now
    capsys.readouterr()
    assert train.train(resolved, resume=True, began=began) == 0
    printed = capsys.readouterr().out
    assert "going on after step 100" in printed
    assert "training is complete" not in printed, "the clock decides the length, not max_iters"
    after = {row[0]: row[1:4] for row in figures(path)}
    assert {step: after[step] for step in range(101, 140)} == {step: before[step] for step in range(101, 140)}
    now = series(path, "horizon")
    assert {step: length for step, length in now.items() if step < 140} == decided


def test_a_length_that_no_run_decides_is_passed_over(tmp_path: Path) -> None:
    lengths = ((10, 40), (20, 50), (30, 1e400), (31, -1e400), (32, math.nan), (33, -5), (34, 60))
    record = tmp_path / "metrics.jsonl"
    record.write_text("".join(json.dumps({"step": step, "horizon": length}) + "\n" for step, length in lengths))
    assert start.horizons_after(record, 15) == {20: 50, 34: 60}
    record.write_text('{"step": 41, "horizon": Infinity}\n')
    assert start.horizons_after(record, 15) == {41: 0}
