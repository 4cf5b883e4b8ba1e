"""Extrapolation of learning curves: the loss at a later step, or at the end of a longer run, with an interval.

In:  a run's evaluated losses by step, its learning rate as a function of the step, and what the law of the loss said
     before it began.
Out: predictions with 95% intervals.

The law is that of Tissue, Wang and Wang, 2024 (arXiv 2408.11029): loss = floor + a · S1^-alpha - c · S2, where S1 sums
the learning rates so far, and S2 the effect of the rate's decay, with a memory. A drift is added for what four
parameters cannot describe: an integrated random walk over log S1, which widens the interval with the distance ahead.
All laws on a grid are fitted together by linear regression, and weighted by how well they explain the curve (Bayesian
model averaging). The priors were chosen on the curves of benchmarks/results/loss_pairs.csv. Imports neither torch nor
scipy.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfgpt.config import Config
from hfgpt.model import loss_law
from hfgpt.runs.metrics import NGRAM_LOSS, Record

Array = NDArray[np.float64]

Rate = Callable[[int], float]  # the learning rate of a step

CONFIDENCE = 0.95
LEAST = 4  # fewest points to which a curve is fitted
MOST = 40  # most points in a fit: more add nothing, since the drift correlates neighbours
BEGIN = 0.08  # first share of the steps, left out: the fall from chance follows another law
WIDEST = 0.25  # of the loss: half an interval as wide as this says nothing
GRID = 1000  # points at which a schedule is sampled

# The laws on the grid: the exponent with its prior (mean, deviation), the initial S1, the memory of S2 (both as shares
# of the run), and the deviation of one evaluation in nats.
EXPONENTS, EXPONENT = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.2), (0.5, 0.3)
BEGINNINGS = (0.0, 0.03, 0.1)
MEMORIES = (0.04, 0.1, 0.2, 0.4)
NOISES = (0.003, 0.006, 0.012, 0.024, 0.05)

# Prior means and deviations of floor, a and c, in nats; the drift's size in nats per log S1 to the power of 1.5.
COEFFICIENTS, DEVIATIONS = np.array([1.0, 1.0, 0.8]), np.array([1.0, 1.0, 0.35])
DRIFT = 0.3


@dataclass(frozen=True)
class Prediction:
    """A loss in nats, and its 95% interval."""

    loss: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2

    @property
    def telling(self) -> bool:
        """Whether the interval is narrow enough to say something; one that reaches below 0 is not."""
        return self.half <= WIDEST * self.loss

    def __str__(self) -> str:
        return f"{self.loss:.2f} ± {max(self.half, 0.01):.2f}"


@dataclass(frozen=True)
class Curve:
    """A fitted learning curve; see :func:`fit_curve`."""

    steps: Array
    losses: Array
    rate: Rate

    def at(self, step: int, rate: Rate | None = None) -> Prediction:
        """Predict the loss at a step.

        Args:
            step: of this run, or of a new one with another schedule.
            rate: the new run's schedule; None: the run's own.
        """
        last = int(self.steps[-1])
        fits: list[tuple[Array, Array, Array]] = []
        for memory in MEMORIES:
            here = _travelled(self.rate, self.steps, last * memory)
            there = _travelled(rate or self.rate, np.array([float(step)]), last * memory)
            fits += [_regress(self.losses, here, there, beginning) for beginning in BEGINNINGS]
        mean, variance, evidence = (np.concatenate(parts) for parts in zip(*fits, strict=True))
        weight = np.exp(evidence - evidence.max())
        weight /= weight.sum()
        loss = float(weight @ mean)
        spread = math.sqrt(max(float(weight @ (variance + mean**2)) - loss**2, 0.0))
        half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * spread
        return Prediction(loss, loss - half, loss + half)


def fit_curve(steps: Sequence[float], losses: Sequence[float], rate: Rate | None = None) -> Curve | None:
    """Fit a learning curve.

    Args:
        steps: optimizer steps, ascending; step 0 and the beginning of the run are ignored.
        losses: the evaluated losses there, in nats; non-finite ones are ignored.
        rate: the learning rate of each step up to the last one; None: constant.

    Returns:
        The curve; None if fewer than four points remain.
    """
    points = [(s, x) for s, x in zip(steps, losses, strict=True) if s > 0 and math.isfinite(x)]
    points = [point for point in points if point[0] >= BEGIN * points[-1][0]]
    if len(points) < LEAST:
        return None
    kept = np.unique(np.linspace(0, len(points) - 1, min(len(points), MOST)).round().astype(int))
    chosen = np.array(points, dtype=np.float64)[kept]
    return Curve(chosen[:, 0], chosen[:, 1], rate or (lambda step: 1.0))


def beforehand(records: Sequence[Record], config: Config) -> Prediction | None:
    """Return what the law of the loss says of a run's end, by what its record says of its text.

    None if the law does not cover the run, or says that it overfits, so that a fitted curve says nothing of its end.
    """
    text = next((record for record in records if "vocab_size" in record), None)
    if text is None:
        return None
    orders = [text[key] for order in range(1, len(text)) if (key := NGRAM_LOSS.format(order)) in text]
    statistics = loss_law.Statistics(tuple(orders), int(text["train_tokens"]))
    said = loss_law.foreseen(config, int(text["vocab_size"]), int(text["train_tokens"]), statistics)
    return Prediction(said.loss, said.low, said.high) if said and not said.overfits else None


def end_of_run(
    steps: Sequence[float],
    losses: Sequence[float],
    rate: Rate,
    warmup: int,
    end: int,
    before: Prediction | None = None,
) -> Prediction | None:
    """Predict the loss of a run's last step.

    Args:
        steps, losses, rate: as for :func:`fit_curve`.
        warmup: the last step of the warm-up, which does not show how the rest will fall.
        end: the last step.
        before: a prediction that does not come from this curve; the errors of the two are taken to be independent.

    Returns:
        The prediction; None if its interval is too wide to say anything. Inside the warm-up and of a short record it is
        that from before, or None.
    """
    curve = fit_curve(steps, losses, rate) if steps and steps[-1] > warmup else None
    expected = together(before, curve.at(end) if curve else None)
    return expected if expected is not None and expected.telling else None


def together(before: Prediction | None, now: Prediction | None) -> Prediction | None:
    """Combine two predictions whose errors are independent; intervals that do not touch show the one before wrong."""
    if before is None or now is None or before.low > now.high or before.high < now.low:
        return now or before
    weights = np.array([before.half, now.half]) ** -2.0
    loss, half = float(weights @ [before.loss, now.loss] / weights.sum()), float(weights.sum() ** -0.5)
    return Prediction(loss, loss - half, loss + half)


Travelled = tuple[Array, Array]


def _travelled(rate: Rate, steps: Array, memory: float) -> Travelled:
    """Return S1 and S2 at some steps, in steps at the peak learning rate; the memory is in steps."""
    places = np.unique(np.linspace(0, steps[-1], GRID).round())
    rates = np.array([rate(int(step)) for step in places])
    rates = rates / (rates.max() or 1.0)
    widths = np.diff(places, prepend=0.0)
    falls = np.maximum(0.0, -np.diff(rates, prepend=rates[0]))
    momentum, reached = 0.0, np.zeros(len(places))
    for i, (width, fall) in enumerate(zip(widths, falls, strict=True)):
        momentum = momentum * math.exp(-width / memory) + fall
        reached[i] = momentum * width
    return (np.interp(steps, places, np.cumsum(rates * widths)), np.interp(steps, places, np.cumsum(reached)))


def _regress(losses: Array, here: Travelled, there: Travelled, beginning: float) -> tuple[Array, Array, Array]:
    """Return mean and variance of the loss `there`, and the log evidence, for each exponent and noise."""
    scale = max(here[0][-1], 1e-9)
    exponents = np.repeat(EXPONENTS, len(NOISES))[:, None]
    noise = np.tile(NOISES, len(EXPONENTS)) ** 2
    features, target = (
        np.stack([
            np.ones((len(exponents), len(s1))),
            (np.maximum(s1 / scale, 1e-6) + beginning) ** -exponents,
            np.broadcast_to(-s2 / scale, (len(exponents), len(s1))),
        ], axis=-1)
        for s1, s2 in (here, there)
    )  # fmt: skip
    log_here, log_there = (np.log(np.maximum(s1 / scale, 1e-6)) for s1, _ in (here, there))
    origin = min(log_here[0], log_there[0])
    log_here, log_there = log_here - origin, log_there - origin
    weighted = features * DEVIATIONS**2
    covariance = weighted @ features.transpose(0, 2, 1) + _drift(log_here, log_here)
    covariance += noise[:, None, None] * np.eye(len(losses))
    shared = (weighted @ target.transpose(0, 2, 1))[..., 0] + _drift(log_here, log_there)[:, 0]
    residual = losses - features @ COEFFICIENTS
    solved = np.linalg.solve(covariance, np.stack([residual, shared], axis=-1))
    mean = (target @ COEFFICIENTS)[:, 0] + np.einsum("kn,kn->k", shared, solved[..., 0])
    own = np.einsum("kij,kij->k", target * DEVIATIONS**2, target) + _drift(log_there, log_there)[0, 0]
    variance = own - np.einsum("kn,kn->k", shared, solved[..., 1]) + noise
    prior = -0.5 * ((exponents[:, 0] - EXPONENT[0]) / EXPONENT[1]) ** 2
    fit = np.einsum("kn,kn->k", residual, solved[..., 0]) + np.linalg.slogdet(covariance)[1]
    return mean, np.maximum(variance, noise), prior - 0.5 * fit


def _drift(a: Array, b: Array) -> Any:
    """Return the covariance of an integrated random walk, starting at 0, between two sets of positions."""
    low, high = np.minimum.outer(a, b), np.maximum.outer(a, b)
    return DRIFT**2 * low**2 * (3 * high - low) / 6
