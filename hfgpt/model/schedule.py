"""The learning rate as a pure function of the optimizer step.

In:  a step number, and a resolved Config.
Out: AdamW's learning rate in that step; Muon's is this times the ratio of the two peak rates. Over the whole run: a
     chart for the terminal, points for a page, a sentence.
"""

import math
from collections.abc import Callable

from hfgpt.base.language import _
from hfgpt.config import Config

# The remaining share of the distance from the peak to min_lr, by the share of the decay from 0 to 1. "1-sqrt": Hägele
# et al. 2024, "Scaling laws and compute-optimal training beyond fixed training durations".
SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "linear": lambda done: 1.0 - done,
    "1-sqrt": lambda done: 1.0 - math.sqrt(done),
}


def learning_rate(step: int, config: Config) -> float:
    """Return the learning rate of optimizer step `step`, counted from 1 (chapter 4.1, 4.2; nanoGPT's get_lr).

    Step 0 is the state before training: rate 0 if there is a warm-up.
    """
    warmup, decay, peak, low = config.warmup_iters, config.lr_decay_iters, config.learning_rate, config.min_lr
    if warmup is None or decay is None or low is None:
        raise ValueError("the config is not resolved")
    if step < warmup:
        return peak * step / warmup
    if config.lr_schedule == "constant":
        return peak
    start, end = (warmup, decay) if config.lr_schedule == "cosine" else (decay, config.max_iters)
    shape = config.decay_shape if config.lr_schedule == "wsd" else "cosine"
    done = min(1.0, max(0.0, (step - start) / (end - start or 1)))  # equal in a run that a time_budget cut short
    return low + SHAPES[shape](done) * (peak - low)


WIDTH, HEIGHT = 60, 8
EIGHTHS = " ▁▂▃▄▅▆▇█"


def points(config: Config, count: int = WIDTH) -> list[dict[str, float]]:
    """Return steps, evenly spread from 1 to the end, and the learning rate of each."""
    steps = sorted({max(1, round(1 + index * (config.max_iters - 1) / max(1, count - 1))) for index in range(count)})
    return [{"step": step, "learning_rate": learning_rate(step, config)} for step in steps]


def chart(config: Config) -> str:
    """Draw columns whose height is the learning rate, with labelled steps below."""
    rates = [point["learning_rate"] for point in points(config)]
    top = max(rates) or 1.0
    heights = [round(rate / top * HEIGHT * 8) for rate in rates]
    lines = []
    for row in range(HEIGHT - 1, -1, -1):
        label = f"{top:.2g}" if row == HEIGHT - 1 else "0" if row == 0 else ""
        cells = "".join(EIGHTHS[min(8, max(0, height - 8 * row))] for height in heights)
        lines.append(f"{label:>8} │{cells}".rstrip())
    end = f"{config.max_iters:,}"
    lines.append(f"{'':8} └{'─' * len(heights)}")
    lines.append(f"{'':10}1{end:>{len(heights) - 1}}")
    lines.append("          " + explained(config))
    return "\n".join(lines)


def explained(config: Config) -> str:
    """Describe the schedule in a sentence."""
    values = {
        "warmup": f"{config.warmup_iters:,}",
        "peak": f"{config.learning_rate:g}",
        "decay": f"{config.lr_decay_iters:,}",
        "low": f"{config.min_lr:g}",
        "end": f"{config.max_iters:,}",
    }
    if config.lr_schedule == "constant":
        return _("{warmup} steps of warm-up to {peak}, which then holds", **values)
    if config.lr_schedule == "wsd":
        values["shape"] = config.decay_shape
        return _(
            "{warmup} steps of warm-up to {peak}, held until step {decay}, then by {shape!r} to {low} at step {end}",
            **values,
        )
    if config.lr_schedule == "hold_cosine":
        return _("{warmup} steps of warm-up to {peak}, held until step {decay}, {low} at step {end}", **values)
    return _("{warmup} steps of warm-up to {peak}, then a cosine to {low} at step {decay}", **values)
