"""The end of real curves is predicted from their beginnings and from shorter runs."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from hfgpt.model import loss_law
from hfgpt.model.schedule import learning_rate
from hfgpt.runs.history import read_run
from hfgpt.runs.laws import Curve, Prediction, beforehand, end_of_run, fit_curve, together

CURVES = Path(__file__).parents[1] / "fixtures" / "curves"
FALLING = sorted(path.name for path in CURVES.iterdir() if path.name.startswith(("healthy.", "underfitting.")))


def fitted(name: str, share: float = 1.0) -> tuple[Curve, float, int]:
    """Fit a curve to the first share of a run; also return the run's last loss and step."""
    run = read_run(CURVES / name)
    steps, losses = run.series("val_loss")
    end = int(steps[-1])
    seen = [(step, loss) for step, loss in zip(steps, losses, strict=True) if step <= share * end]
    assert run.config is not None
    recipe = run.config
    curve = fit_curve(*zip(*seen, strict=True), rate=lambda step: learning_rate(step, recipe))
    assert curve is not None
    return curve, losses[-1], end


def test_the_end_of_a_run_lies_in_the_interval() -> None:
    inside, misses = [], []
    for name in FALLING:
        for share in (0.6, 0.8):
            if name == "underfitting.few_steps" and share < 0.8:
                continue  # three evaluations
            curve, end, step = fitted(name, share)
            prediction = curve.at(step)
            inside.append(prediction.low <= end <= prediction.high)
            if share == 0.8:
                misses.append(abs(prediction.loss - end))
    assert sum(inside) / len(inside) >= 0.9
    assert sorted(misses)[len(misses) // 2] <= 0.01, "nats, in the median, from 80% of the run"


@pytest.mark.parametrize("seed", range(5))
def test_a_run_of_twice_the_steps_with_its_own_schedule(seed: int) -> None:
    curve, _, _ = fitted(f"healthy.seed_{seed}")
    longer = read_run(CURVES / "healthy.longer")
    recipe = longer.config
    assert recipe is not None
    prediction = curve.at(1000, lambda step: learning_rate(step, recipe))
    assert abs(prediction.loss - longer.series("val_loss")[1][-1]) <= min(0.05, prediction.half)


def test_a_power_law_is_found_again() -> None:
    steps = range(100, 2001, 100)
    curve = fit_curve(steps, [1.5 + 30 * step**-0.5 for step in steps])
    assert curve is not None
    prediction = curve.at(4000)
    assert prediction.loss == pytest.approx(1.5 + 30 * 4000**-0.5, abs=0.03)
    assert curve.at(2000).half < prediction.half < curve.at(20_000).half, "an interval widens with the way"


def test_numbers_that_are_not_finite_and_short_curves() -> None:
    assert fit_curve([], []) is None
    assert fit_curve([0, 1, 2, 3], [4.0, 3.0, 2.5, 2.2]) is None, "three evaluations after the start"
    with_gap = fit_curve(range(100, 1100, 100), [math.nan, *(2 + 100 / step for step in range(200, 1100, 100))])
    assert with_gap is not None
    assert math.isfinite(with_gap.at(1000).loss)


def test_fitting_needs_neither_torch_nor_scipy() -> None:
    code = "import sys, hfgpt.runs.laws; assert not {'torch', 'transformers', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_forecast_that_cannot_tell_is_not_made() -> None:
    """A run of 40 steps that goes on to 5,000: its evaluations so far say nothing of the end."""

    def rate(step: int) -> float:
        return 3e-3 * min(1.0, step / 250)

    steps = list(range(0, 81, 10))
    losses = [5.79, 4.53, 3.80, 3.57, 3.51, 3.45, 3.42, 3.40, 3.33]
    curve = fit_curve(steps, losses, rate)
    assert curve is not None
    wide = curve.at(5000)
    assert wide.low < 0
    assert not wide.telling
    assert end_of_run(steps, losses, rate, 0, 5000) is None, "too wide"
    assert end_of_run(steps, losses, rate, 80, 100) is None, "inside the warm-up"
    near = end_of_run(steps, losses, rate, 70, 100)
    assert near is not None
    assert near.half < 0.25 * near.loss
    assert end_of_run([], [], rate, 0, 100) is None


def test_two_predictions_together_are_surer_than_either() -> None:
    law, curve = Prediction(1.6, 1.4, 1.8), Prediction(1.5, 1.4, 1.6)
    both = together(law, curve)
    assert both is not None
    assert both.loss == pytest.approx(1.52), "weighted by precision"
    assert both.half == pytest.approx(0.2 / 5**0.5)
    assert together(None, curve) == curve
    assert together(law, None) == law
    assert together(law, Prediction(2.5, 2.3, 2.7)) == Prediction(2.5, 2.3, 2.7), "the law was wrong about this run"


def record_of(vocabulary: int, tokens: int) -> dict[str, float]:
    losses = {f"ngram_loss_{order}": loss for order, loss in enumerate(loss_law.EMBEDDED_STATISTICS.orders, 1)}
    return {"step": 0, "val_loss": 5.8, "vocab_size": vocabulary, "train_tokens": tokens, **losses}


def test_before_a_run_the_law_of_the_loss_speaks_and_then_both() -> None:
    run = read_run(CURVES / "healthy.seed_0")
    recipe = run.config
    assert recipe is not None
    records = [record_of(330, 4_332_891)]
    law = beforehand(records, recipe)
    assert law is not None
    assert law == end_of_run([0], [5.8], float, 0, recipe.max_iters, law)
    assert beforehand([{"step": 0, "val_loss": 5.8, "ngram_loss_2": 2.5}], recipe) is None, "not a run that it covers"
    assert beforehand([record_of(330, 2_000)], recipe) is None, "it overfits: a fitted curve does not know that"
    steps, losses = run.series("val_loss")
    half_way = [(step, loss) for step, loss in zip(steps, losses, strict=True) if step <= recipe.max_iters / 2]

    def rate(step: int) -> float:
        return learning_rate(step, recipe)

    alone, both = (
        end_of_run(*zip(*half_way, strict=True), rate, recipe.warmup_iters or 0, recipe.max_iters, before)
        for before in (None, law)
    )
    assert alone is not None
    assert both is not None
    assert both.half < min(alone.half, law.half)
    assert both.low <= losses[-1] <= both.high
