"""Trials: the arithmetic of a run in memory, and the dial that decides by them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hfgpt import config
from hfgpt.config import Config
from hfgpt.data.prepare import prepare
from hfgpt.plan import grid, speed, timing, trial
from hfgpt.plan.grid import Candidate
from hfgpt.plan.speed import Speed
from hfgpt.plan.survey import survey_of
from hfgpt.plan.target import Target, find_target
from hfgpt.runs import metrics
from hfgpt.train.loop import train

MACHINE = Speed("a machine", 0.0, 93e9, 177e9, 2, 77e9, 3.5e-7, False, 5.0)


def tokens_of(recipe: Config, tmp_path: Path) -> trial.Tokens:
    prepared = prepare(recipe, tmp_path / "cache")
    return trial.Tokens(prepared.train, prepared.val, survey_of(recipe).vocab_size)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_trial_ends_where_the_run_ends(tiny: dict[str, Any], tmp_path: Path, optimizer: str) -> None:
    recipe = config.build({**tiny, "optimizer": optimizer, "gradient_accumulation_steps": 2}, "run")
    seen = trial.train(recipe, tokens_of(recipe, tmp_path), [4])
    assert seen.steps == [4, 8]
    assert train(recipe) == 0
    records = metrics.read(recipe.run_dir / metrics.FILE_NAME)
    steps, losses = metrics.series(records, "val_loss")
    assert list(steps) == [0, 4, 8]
    assert seen.val_losses == pytest.approx(losses[1:], abs=2e-4)
    _, ends = metrics.series(records, "train_eval_loss")
    assert seen.train_loss == pytest.approx(ends[-1], abs=2e-4)


def test_a_trial_ends_when_it_is_told_to(tiny: dict[str, Any], tmp_path: Path) -> None:
    recipe = config.build({**tiny, "max_iters": 100_000}, "run")
    seen = trial.train(recipe, tokens_of(recipe, tmp_path), [], lambda so_far: so_far.steps_made < 3)
    assert seen.steps_made == len(seen.times) == 3
    assert seen.steps == []
    assert 0 < seen.seconds_per_step < 10


@pytest.fixture
def candidates(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Candidate]:
    """Return two shapes, the law's favourite first."""
    monkeypatch.setattr(speed, "this_machine", lambda *_: MACHINE)
    monkeypatch.setattr(speed, "learn", lambda **_: None)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    out = []
    for width, ends in ((32, 2.0), (16, 2.01)):
        survey = survey_of(config.build({**tiny, "n_embd": width, "tokenizer": "char"}, "run"))
        out.append(Candidate(grid.with_length(survey, 500), ends, 20.0))
    return out


def test_trials_keep_their_time_and_measure_the_steps(candidates: list[Candidate]) -> None:
    target = find_target(candidates[0].config)
    began = time.perf_counter()
    done = trial.settle(candidates, lambda _: candidates, target, 60, 3.0)
    best, forecast = done.best, done.forecast
    assert done.seconds <= time.perf_counter() - began
    if best.measured is None:  # the machine was busy
        assert best.busy
        return
    assert 0 < best.measured.seconds_per_step < 1
    assert best.seconds <= 60
    assert forecast.source == "trials"
    assert forecast.low < forecast.loss < forecast.high


def test_a_trial_that_is_slower_than_foreseen_keeps_its_result(
    candidates: list[Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes time from the ones after it, instead of losing its own; by a clock of the test's own."""
    clock = [0.0]

    def slowed(recipe: Config, _tokens: Any, _at: Any, keep_on: Any) -> trial.Trial:
        first_timed, seen = recipe.eval_iters == 1, trial.Trial()
        each = 0.0145 if recipe.n_embd == 32 and not first_timed else 0.01
        while seen.steps_made < recipe.max_iters and keep_on(seen):
            clock[0] += each
            seen.times.append(each)
            seen.cpu_times.append(each * torch.get_num_threads())
            seen.steps_made += 1
        seen.val_losses.append(2.0 if recipe.n_embd == 32 else 4.0)
        return seen

    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(trial, "train", slowed)
    done = trial.settle(candidates, lambda _: candidates, find_target(candidates[0].config), 60, 8.0)
    assert done.best.measured is not None
    assert (done.best.config.n_embd, done.best.measured.seconds_per_step) == (32, 0.0145)
    assert done.forecast.source == "trials"
    assert done.seconds <= 8


def test_steps_that_other_work_slowed_do_not_count(
    candidates: list[Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial.Trial, "busy", property(lambda self: True))
    done = trial.settle(candidates, lambda _: candidates, find_target(candidates[0].config), 60, 1.0)
    assert done.best == replace(candidates[0], busy=True)
    assert done.forecast.source == "laws"


def test_candidates_are_ranked_again_at_the_speed_that_a_step_shows(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a machine that is faster than foreseen, a larger model is the best: it has to be among those tried."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(trial.Trial, "busy", False)
    survey = survey_of(config.build({**tiny, "tokenizer": "char", "device": "cpu", "dtype": "float32"}, "run"))
    speed.learn(
        busy=False, corrections=[4.0] * 4, covariance=np.diag([9.0] * 4).tolist()
    )  # fifty times slower than it is, even if others use it, and unsure
    target = find_target(survey.config)
    said = timing.time(survey, target).seconds_per_step
    seen = list[float]()

    def rank(target: Target) -> list[Candidate]:
        seen.append(timing.time(survey, target).seconds_per_step)
        return [Candidate(grid.with_length(survey, 500), 2.0, 20.0)]

    settled = trial.settle(rank(target), rank, target, 60, 2.0)
    assert seen[0] == said
    assert seen[1] < said / 2
    assert timing.time(survey, settled.target).seconds_per_step == seen[1]
