"""A chart in the terminal of the learning rate over a planned run (chapter 4).

In:  a resolved Config.
Out: lines of text; or points, for a page.
"""

from __future__ import annotations

from hfgpt.base.language import _
from hfgpt.config import Config
from hfgpt.model.schedule import learning_rate

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
        label = f"{top:.2g}" if row == HEIGHT - 1 else f"{min(rates):.2g}" if row == 0 else ""
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
    if config.lr_schedule == "hold_cosine":
        return _("{warmup} steps of warm-up to {peak}, held until step {decay}, {low} at step {end}", **values)
    return _("{warmup} steps of warm-up to {peak}, then a cosine to {low} at step {decay}", **values)
