"""A learning rate for a recipe, from a range test: the rate rises with each step until the loss rises too.

In:  a resolved Config.
Out: a suggested rate, the reason, and the curve as a PNG (L. Smith, 2017, "Cyclical Learning Rates for Training Neural
     Networks", section 3.3).

A range test finds the order of magnitude in about a hundred steps; a sweep around it decides. It trains with the loop's
own step, writes nothing but its picture, and leaves the recipe's run folder alone.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hfgpt.base.errors import InputError
from hfgpt.base.files import check_writable
from hfgpt.base.language import _
from hfgpt.base.units import rounded
from hfgpt.config import Config
from hfgpt.runs import plots
from hfgpt.runs.metrics import smooth
from hfgpt.runs.plots import is_png
from hfgpt.train.start import start
from hfgpt.train.step import global_loss, to_device, train_step

LOWEST, HIGHEST = 1e-6, 1.0
GIVE_UP = 1.5  # factor of the first loss


@dataclass(frozen=True)
class RangeTest:
    """The rates tried, the batch loss at each, and the conclusions."""

    rates: list[float]
    losses: list[float]
    suggestion: float
    reason: str


def find(config: Config, picture: Path, steps: int = 100) -> RangeTest:
    """Run a range test, which :func:`draw` then plots.

    Args:
        config: what to train; its learning rate and schedule are not used. With Muon, muon_learning_rate rises with
            learning_rate, at the recipe's ratio of the two.
        picture: where the PNG will be, which is checked before the test.
        steps: optimizer steps over the whole range of rates; fewer if the loss rises before the end.

    Raises:
        InputError: too few steps, the recipe cannot be trained, or the picture would replace another file.
    """
    if steps < 30:
        raise InputError(
            "steps = {steps}: must be at least 30, or the rate leaps too far from step to step", steps=steps
        )
    if picture.exists() and not is_png(picture):
        raise InputError(
            "picture = {file!r}: exists already, and is not a PNG file → name another file", file=str(picture)
        )
    check_writable(picture.parent, "picture", picture)
    rates, losses = _train(config, [LOWEST * (HIGHEST / LOWEST) ** (i / (steps - 1)) for i in range(steps)])
    rate, reason = suggest(rates, losses)
    return RangeTest(rates, losses, rate, reason)


def draw(test: RangeTest, picture: Path) -> None:
    """Plot a range test. Raises OSError: the disk is full or not writable."""
    plots.range_test(test.rates, test.losses, test.suggestion, test.reason, picture)


def _train(config: Config, rates: Sequence[float]) -> tuple[list[float], list[float]]:
    """Take one step at each rate, until the losses stay far above their start or are not finite."""
    short = {"eval_only": True, "report_to": "none", "max_iters": len(rates), "batch_warmup_iters": 0}
    run = start(config.model_copy(update=short))
    run.model.train()
    losses: list[float] = []
    try:
        for step, rate in enumerate(rates):
            batches = to_device(run.corpus.batches.micro_batches(step, *run.share), run.device, run.least_sequences)
            loss = global_loss(run, train_step(run, batches, config.tokens_per_iter, rate))
            if not math.isfinite(loss) or statistics.median([*losses[-4:], loss]) > GIVE_UP * (losses or [loss])[0]:
                break  # a single bad batch does not end the test
            losses.append(loss)
    finally:
        run.display.close()
        run.accelerator.end_training()
    return list(rates[: len(losses)]), losses


def suggest(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, str]:
    """Return the rate of steepest descent, or a tenth of that where the loss turns up, if lower; and which it was.

    Raises:
        InputError: the loss never falls.
    """
    half = max(2, len(losses) // 24)
    curve = smooth(losses, half)
    fall = curve[0] - min(curve) if curve else 0.0
    if fall < 0.1:
        raise InputError("lr_finder: the loss does not fall at any rate → check the data, or give more --steps")
    # The loss turns up where it is near its minimum for the last time.
    turn = max(i for i, loss in enumerate(curve) if loss <= min(curve) + 0.05 * fall)
    slopes = {i: curve[i + half] - curve[i - half] for i in range(half, max(half + 1, turn - half + 1))}
    steepest = rates[min(slopes, key=lambda i: slopes[i])]
    if rates[turn] / 10 < steepest:
        return rounded(rates[turn] / 10), _("a tenth of where the loss turns up")
    return rounded(steepest), _("where the loss falls most steeply")
