"""The learning rate equals the chapter's and nanoGPT's at every step."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from hfgpt import config
from hfgpt.base.errors import ConfigError
from hfgpt.config import Config
from hfgpt.model import schedule


def made(**values: Any) -> Config:
    return config.build(values, "test")


PRODUCTION = {"learning_rate": 6e-4, "max_iters": 600_000, "warmup_iters": 2000, "min_lr": 6e-5}


@pytest.mark.parametrize("shape", ["cosine", "hold_cosine", "constant"])
@pytest.mark.parametrize(("step", "rate"), [(0, 0.0), (500, 1.5e-4), (1000, 3e-4), (2000, 6e-4)])
def test_the_chapters_warm_up(step: int, rate: float, shape: str) -> None:
    assert schedule.learning_rate(step, made(lr_schedule=shape, **PRODUCTION)) == pytest.approx(rate, abs=1e-18)


def test_cosine_falls_from_the_warm_up_to_lr_decay_iters_and_stays() -> None:
    c = made(learning_rate=1.0, min_lr=0.1, warmup_iters=10, lr_decay_iters=110, max_iters=200)
    expected = {10: 1.0, 35: 0.1 + 0.45 * (1 + math.cos(math.pi / 4)), 60: 0.55, 110: 0.1, 111: 0.1, 200: 0.1}
    assert {step: schedule.learning_rate(step, c) for step in expected} == pytest.approx(expected)


def test_hold_cosine_holds_until_lr_decay_iters_and_falls_to_the_end() -> None:
    c = made(
        lr_schedule="hold_cosine", learning_rate=1.0, min_lr=0.1, warmup_iters=10, lr_decay_iters=100, max_iters=200
    )
    expected = {10: 1.0, 60: 1.0, 100: 1.0, 150: 0.55, 200: 0.1}
    assert {step: schedule.learning_rate(step, c) for step in expected} == pytest.approx(expected)


def test_constant_holds() -> None:
    c = made(lr_schedule="constant", learning_rate=1.0, warmup_iters=4, max_iters=100)
    assert [schedule.learning_rate(step, c) for step in (2, 4, 5, 100)] == [0.5, 1.0, 1.0, 1.0]


def test_without_a_warm_up_the_first_step_has_the_full_rate() -> None:
    for shape in ("cosine", "hold_cosine", "constant"):
        c = made(lr_schedule=shape, learning_rate=1.0, warmup_iters=0, max_iters=10)
        assert schedule.learning_rate(0, c) == 1.0


@pytest.mark.parametrize("recipe", ["quick_experiment", "learning", "standard", "production", "shakespeare_char_cpu"])
def test_every_recipe_reaches_its_peak_and_ends_at_min_lr(recipe: str) -> None:
    c = config.load(ROOT / "recipes" / f"{recipe}.yaml")
    assert c.warmup_iters is not None
    assert schedule.learning_rate(c.warmup_iters, c) == c.learning_rate
    assert schedule.learning_rate(c.max_iters, c) == pytest.approx(c.min_lr)


@given(
    st.sampled_from(["cosine", "hold_cosine", "wsd", "constant"]),
    st.integers(2, 60),
    st.data(),
)
def test_it_rises_then_never_rises_again_and_stays_in_its_bounds(shape: str, max_iters: int, data: Any) -> None:
    warmup = data.draw(st.integers(0, max_iters - 2))
    decay = data.draw(st.integers(warmup + 1, max_iters - 1))
    c = made(
        lr_schedule=shape,
        max_iters=max_iters,
        warmup_iters=warmup,
        lr_decay_iters=decay,
        learning_rate=1.0,
        min_lr=0.25,
    )
    rates = [schedule.learning_rate(step, c) for step in range(max_iters + 1)]
    assert max(rates) == rates[warmup] == 1.0
    assert all(a < b for a, b in pairwise(rates[: warmup + 1]))
    assert all(a >= b >= 0.25 for a, b in pairwise(rates[warmup:]))
    assert rates[-1] == (1.0 if shape == "constant" else pytest.approx(0.25))


@pytest.mark.parametrize(
    ("shape", "half", "quarter"),
    [
        ("linear", 0.55, 0.775),
        ("cosine", 0.55, 0.1 + 0.45 * (1 + math.cos(math.pi / 4))),
        ("1-sqrt", 0.1 + 0.9 * (1 - math.sqrt(0.5)), 0.55),
    ],
)
def test_wsd_warms_up_stays_and_falls_in_its_shape(shape: str, half: float, quarter: float) -> None:
    c = made(
        lr_schedule="wsd", decay_shape=shape, learning_rate=1.0, min_lr=0.1, warmup_iters=10, lr_decay_iters=100,
        max_iters=200,
    )  # fmt: skip
    expected = {5: 0.5, 10: 1.0, 60: 1.0, 100: 1.0, 125: quarter, 150: half, 200: 0.1}
    assert {step: schedule.learning_rate(step, c) for step in expected} == pytest.approx(expected)


def test_wsd_decays_over_the_last_fifth_by_default_and_must_end_in_the_run() -> None:
    assert made(lr_schedule="wsd", max_iters=1000).lr_decay_iters == 800
    with pytest.raises(ConfigError, match="lr_schedule 'wsd'"):
        made(lr_schedule="wsd", max_iters=1000, lr_decay_iters=1000)


def test_a_branch_of_the_stable_part_has_the_rates_of_the_longer_run_so_far() -> None:
    """The purpose of wsd: the stable part does not depend on the run's last step."""
    short, long = (made(lr_schedule="wsd", max_iters=n, warmup_iters=10, lr_decay_iters=n - 50) for n in (200, 900))
    assert all(schedule.learning_rate(step, short) == schedule.learning_rate(step, long) for step in range(151))


@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
def test_a_schedule_is_told_as_it_runs(shape: str) -> None:
    told = schedule.explained(made(lr_schedule="wsd", decay_shape=shape, max_iters=5000, lr_decay_iters=4000))
    assert "held until step 4,000" in told
    assert f"by '{shape}' to" in told
    assert told.endswith("at step 5,000")
