"""Pictures of runs: the loss curve of one, the curves of many, and what a swept value does to the loss.

In:  records of runs (:mod:`hfgpt.runs.metrics`).
Out: PNG files, 1200 pixels wide, in colours that colour-blind readers can tell apart (Okabe and Ito, 2008).

Drawn with matplotlib's objects and the Agg backend alone: no window, no global state. Imports neither torch nor
transformers.
"""

from __future__ import annotations

import io
import json
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import mul
from pathlib import Path
from typing import Any, Literal

from matplotlib import font_manager, rc_context, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfgpt.config import Config
from hfgpt.model import sizes
from hfgpt.runs.metrics import Run, read_run, smooth

BLUE, SKY, VERMILION, GREEN, ORANGE, PURPLE, GREY = (
    "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#666666",
)  # fmt: skip

MARKERS = "osD^vPX"

LOSS = "loss (nats per token)"

RUNS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)  # the colours of runs in one picture, in their order

POINTS = 2000  # of a curve on a page: a screen shows no more

By = Literal["steps", "tokens", "time"]

STYLE = {
    "figure.dpi": 100,
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.edgecolor": GREY,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}


def loss_curve(source: str | Path, target: str | Path | None = None) -> Path:
    """Draw a run's losses and learning rate against its steps.

    Args:
        source: anything that :func:`hfgpt.runs.metrics.read_run` reads, also of a run in progress.
        target: where the PNG goes; by default ``loss.png`` beside the record.

    Returns:
        The path of the PNG.

    Raises:
        InputError: there is no record of a run.
    """
    run = read_run(source)
    with rc_context(_style()):
        figure = Figure(figsize=(12, 7), layout="constrained")
        rates = run.series("learning_rate")
        if rates[0]:
            losses, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
            _draw_rate(below, *rates)
        else:
            losses = below = figure.subplots()
        _draw_losses(losses, run)
        below.set_xlabel("optimizer steps")
        below.xaxis.set_major_formatter(ticker.FuncFormatter(lambda step, _: f"{step:,.0f}"))
        if run.config is not None:
            _tokens_on_top(losses, run.config.tokens_per_iter)
        figure.suptitle(_title(run), x=0.01, ha="left", fontweight="bold")
        figure.legend(loc="outside lower center", ncols=3)
        return _save(figure, Path(target) if target else run.path.with_name("loss.png"))


def _draw_losses(axes: Axes, run: Run) -> None:
    steps, values = run.series("train_loss")
    many = len(values) >= 20
    if values:
        axes.plot(steps, values, color=SKY, lw=1, alpha=0.55 if many else 1, label="train, each step's batch")
    if many:
        axes.plot(steps, smooth(values), color=BLUE, lw=2, label="train, smoothed")
    for key, colour, marker, label in (
        ("train_eval_loss", GREEN, "s", "train, evaluated"),
        ("val_loss", VERMILION, "o", "validation, evaluated"),
    ):
        if run.series(key)[0]:
            axes.plot(*run.series(key), color=colour, lw=1.6, marker=marker, ms=5, label=label)
    axes.set_ylabel(LOSS)
    _fit_losses(axes, [value for key in ("train_loss", "train_eval_loss", "val_loss") for value in run.series(key)[1]])
    _mark_best(axes, *run.series("val_loss"))
    _mark_divergence(axes, steps, values)


def _mark_best(axes: Axes, steps: Sequence[float], values: Sequence[float]) -> None:
    finite = [(value, step) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    if finite:
        value, step = min(finite)
        label = f"best validation loss {value:.4f}, at step {step:,.0f}"
        axes.plot([step], [value], marker="*", ms=18, mfc="white", mec=VERMILION, mew=1.6, ls="", zorder=5, label=label)


def _mark_divergence(axes: Axes, steps: Sequence[float], values: Sequence[float]) -> None:
    lost = [step for step, value in zip(steps, values, strict=True) if not math.isfinite(value)]
    if lost:
        axes.axvline(lost[0], color=GREY, ls="--")
        axes.text(lost[0], 0.98, f" not a number from step {lost[0]:,.0f} ", transform=axes.get_xaxis_transform(),
                  va="top", ha="right" if lost[0] > sum(axes.get_xlim()) / 2 else "left", color=GREY)  # fmt: skip


def _fit_losses(axes: Axes, values: Iterable[float]) -> None:
    """A log axis for losses that span orders of magnitude: a divergence."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and 0 < 10 * min(finite) < max(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_rate(axes: Axes, steps: Sequence[float], rates: Sequence[float]) -> None:
    axes.plot(steps, rates, color=PURPLE, lw=2)
    axes.set_ylim(0, max(rates) * 1.15 or 1)
    axes.set_yticks([0, max(rates)], ["0", f"{max(rates):.3g}"])
    axes.set_ylabel("learning\nrate")


def _tokens_on_top(axes: Axes, tokens_per_iter: int) -> None:
    top = axes.secondary_xaxis("top", functions=(partial(mul, tokens_per_iter), partial(mul, 1 / tokens_per_iter)))
    top.set_xlabel("tokens trained", color=GREY)
    top.xaxis.set_major_formatter(ticker.FuncFormatter(lambda tokens, _: quantity(tokens)))
    top.tick_params(colors=GREY)


def _title(run: Run) -> str:
    parts = [run.name]
    count = parameters(run)
    if count:
        parts.append(f"{quantity(count)} parameters")
    if run.config is not None:
        c = run.config
        if c.init_from in ("scratch", "resume"):
            parts.append(f"{c.n_layer} layers × {c.n_head} heads × {c.n_embd}")
        parts.append(f"{c.tokens_per_iter:,} tokens a step")
    return _plain("  ·  ".join(parts))


# ------------------------------------------------------------------------------------------------- many runs


@dataclass(frozen=True)
class Curve:
    """One run in a picture of many, under a short label such as 'batch_size=16'."""

    label: str
    run: Run


def compare_curves(curves: Sequence[Curve], by: By, target: str | Path, title: str = "") -> Path:
    """Draw the validation losses of runs (and, fainter, their smoothed train losses) against steps, tokens or time.

    Runs that have no such axis (no recipe for tokens, no clock for time) are left out of the picture.
    """
    with rc_context(_style()):
        figure = Figure(figsize=(12, 6.5), layout="constrained")
        axes = figure.subplots()
        scale, unit = _axis(curves, by)
        colours = _colours(len(curves))
        evaluated: list[float] = []
        for number, curve in enumerate(curves):
            colour, marker = colours[number], MARKERS[number % len(MARKERS)]
            steps, losses = along(curve.run, "train_loss", by)
            axes.plot([x / scale for x in steps], smooth(losses), color=colour, lw=1.2, alpha=0.45)
            steps, losses = along(curve.run, "val_loss", by)
            axes.plot([x / scale for x in steps], losses, color=colour, lw=2, marker=marker, ms=5,
                      label=_plain(curve.label))  # fmt: skip
            evaluated += [loss for loss in losses if math.isfinite(loss)]
        _limit_losses(axes, curves, evaluated)
        axes.set_xlabel(unit)
        axes.set_ylabel(f"validation {LOSS}")
        axes.xaxis.set_major_formatter(
            ticker.FuncFormatter(lambda x, _: quantity(x) if by == "tokens" else f"{x:,.10g}")
        )
        figure.suptitle(_plain(title or f"Loss against {by}"), x=0.01, ha="left", fontweight="bold")
        many = len(curves) > 12
        figure.legend(loc="outside right upper", title="faint: train, smoothed", fontsize=8 if many else None,
                      ncols=1 + len(curves) // 36)  # fmt: skip
        return _save(figure, Path(target))


def panel(curves: Sequence[Curve], key: str, by: By) -> str:
    """One series of up to six runs for a page: SVG whose letters are text, without a title and a legend.

    Args:
        curves: the runs; each has its colour of :data:`RUNS`.
        key: 'val_loss', or 'train_loss', which is smoothed.
        by: what it is drawn against.

    Returns:
        An <svg> element; "" where no run has such a series or axis.
    """
    series = [along(curve.run, key, by) for curve in curves]
    if not any(xs for xs, _ in series):
        return ""
    with rc_context({**_style(), "svg.fonttype": "none", "svg.hashsalt": key}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has its own fonts
        figure = Figure(figsize=(6.4, 3.9), layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.set_facecolor("none")
        scale, unit = _axis(curves, by)
        for number, (xs, losses) in enumerate(series):
            every = -(-len(xs) // POINTS) or 1
            shown = smooth(losses[::every]) if key == "train_loss" else losses[::every]
            style: dict[str, Any] = (
                {"marker": MARKERS[number], "ms": 4} if key == "val_loss" and len(shown) <= 40 else {}
            )
            axes.plot([x / scale for x in xs[::every]], shown, color=RUNS[number], lw=2, **style)
        if key == "val_loss":
            _limit_losses(axes, curves, [loss for _, losses in series for loss in losses if math.isfinite(loss)])
        else:
            _fit_losses(axes, [loss for _, losses in series for loss in losses])
        axes.set_xlabel(unit)
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: quantity(x)))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def along(run: Run, key: str, by: By) -> tuple[list[float], list[float]]:
    """A series against steps, tokens or seconds (of the record itself or of the nearest timed one before it)."""
    steps, values = run.series(key)
    if by == "steps":
        return steps, values
    if by == "tokens":
        per_step = run.config.tokens_per_iter if run.config else None
        return ([step * per_step for step in steps], values) if per_step else ([], [])
    clock = dict(zip(*run.series("seconds"), strict=True))
    timed = [(clock[step], value) for step, value in zip(steps, values, strict=True) if step in clock]
    return [seconds for seconds, _ in timed], [value for _, value in timed]


def _axis(curves: Sequence[Curve], by: By) -> tuple[float, str]:
    if by != "time":
        return 1, {"steps": "optimizer steps", "tokens": "tokens trained"}[by]
    longest = max((x for curve in curves for x in curve.run.series("seconds")[1]), default=0)
    for seconds, unit in ((3600, "hours"), (60, "minutes")):
        if longest > 2 * seconds:
            return seconds, f"training time ({unit})"
    return 1, "training time (seconds)"


def _limit_losses(axes: Axes, curves: Sequence[Curve], evaluated: Sequence[float]) -> None:
    """The picture begins at the height of the second evaluations: the fall from chance, the same in every run, would
    flatten the rest, and so would a divergence, which leaves the picture at its top."""
    if evaluated:
        series = [[v for v in curve.run.series("val_loss")[1] if math.isfinite(v)] for curve in curves]
        starts, seconds = [s[0] for s in series if s], [s[1] for s in series if len(s) > 3]
        top, low = min(max(starts), max(seconds, default=math.inf)), min(evaluated)
        room = (top - low) or 1.0
        axes.set_ylim(low - 0.06 * room, top + 0.08 * room)


@dataclass(frozen=True)
class Point:
    """A run's end in a picture of losses against a value; loss None: it diverged or failed. `group` joins points."""

    value: Any
    loss: float | None
    seconds: float | None = None
    group: str = ""


def final_loss_against(
    name: str, points: Sequence[Point], target: str | Path, unit: str = "", title: str = "", joined: bool = True
) -> Path:
    """Draw what a swept value does to the validation loss, and under it to the training time.

    Args:
        name, unit: of the value, for its axis.
        points: the runs' ends.
        target: where the PNG goes.
        title: above the picture.
        joined: whether a line joins the points of a group; not where other values differ too, as in a random search.

    The axis is logarithmic where the values are positive and span a factor of four or more; its ticks are the values
    themselves where they are few. Runs without a loss are crosses along the top.
    """
    with rc_context(_style()):
        figure = Figure(figsize=(12, 7), layout="constrained")
        timed = any(point.seconds is not None for point in points)
        panels = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.3], squeeze=False) if timed else None
        above, below = (panels[0][0], panels[1][0]) if panels is not None else [figure.subplots()] * 2
        position = _value_axis(below, [point.value for point in points])
        groups = sorted({point.group for point in points})
        for number, group in enumerate(groups):
            style = {"color": _colours(len(groups))[number], "marker": MARKERS[number % len(MARKERS)], "ms": 8,
                     "lw": 2 if joined else 0}  # fmt: skip
            members = sorted((p for p in points if p.group == group), key=lambda point: position(point.value))
            _draw_ends(above, members, position, style, group)
            if timed:
                times = [(position(p.value), p.seconds) for p in members if p.seconds is not None]
                below.plot([x for x, _ in times], [seconds for _, seconds in times], **style)
        above.set_ylabel(f"validation {LOSS}")
        above.margins(y=0.2)
        below.set_xlabel(_plain(f"{name} ({unit})" if unit else name))
        if timed:
            below.set_ylabel("training time (s)")
            below.set_ylim(0, 1.2 * max(point.seconds or 0 for point in points) or 1)
        figure.suptitle(_plain(title or f"Validation loss against {name}"), x=0.01, ha="left", fontweight="bold")
        if len(groups) > 1:
            figure.legend(loc="outside right upper")
        return _save(figure, Path(target))


def _draw_ends(axes: Axes, points: Sequence[Point], position: Any, style: dict[str, Any], group: str) -> None:
    ends = [(position(point.value), point.loss) for point in points if point.loss is not None]
    axes.plot([x for x, _ in ends], [loss for _, loss in ends], label=_plain(group), **style)
    if len(points) <= 12:
        for x, loss in ends:
            axes.annotate(f"{loss:.3f}", (x, loss), xytext=(0, 10),
                          textcoords="offset points", ha="center", color=style["color"],
                          bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1})  # fmt: skip
    for point in points:
        if point.loss is None:
            axes.text(position(point.value), 0.97, "✕ no loss", transform=axes.get_xaxis_transform(), ha="center",
                      va="top", color=style["color"])  # fmt: skip


def _value_axis(axes: Axes, values: Sequence[Any]) -> Any:
    """Set up the axis of a swept value; returns the function from a value to its place on it."""
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    distinct = sorted(set(values)) if numeric else list(dict.fromkeys(values))
    if not numeric:
        axes.set_xticks(range(len(distinct)), [_plain(str(value)) for value in distinct])
        axes.set_xlim(-0.5, len(distinct) - 0.5)
        return distinct.index
    low, high = distinct[0], distinct[-1]
    if low > 0 and high >= 4 * low:
        axes.set_xscale("log")
        axes.set_xlim(low / (high / low) ** 0.08, high * (high / low) ** 0.08)
    else:
        room = 0.08 * (high - low) or 1
        axes.set_xlim(low - room, high + room)
    if len(distinct) <= 10:
        axes.set_xticks(distinct, [quantity(value) if value >= 1000 else f"{value:g}" for value in distinct])
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    return lambda value: value


def range_test(
    rates: Sequence[float], losses: Sequence[float], suggestion: float, why: str, target: str | Path
) -> Path:
    """Draw a learning-rate range test: the loss against the rate, raw and smoothed, with the suggested rate marked."""
    with rc_context(_style()):
        figure = Figure(figsize=(12, 6), layout="constrained")
        axes = figure.subplots()
        axes.plot(rates, losses, color=SKY, lw=1, alpha=0.6, label="loss of each step's batch")
        axes.plot(rates, smooth(losses), color=BLUE, lw=2.2, label="smoothed")
        axes.axvline(suggestion, color=VERMILION, lw=2, ls="--", label=_plain(f"suggested: {suggestion:.1e} ({why})"))
        axes.set_xscale("log")
        finite = [loss for loss in losses if math.isfinite(loss)]
        if finite:
            low, start = min(finite), finite[0]
            axes.set_ylim(low - 0.1 * (start - low or 1), start + 0.4 * (start - low or 1))
        axes.set_xlabel("learning rate")
        axes.set_ylabel(LOSS)
        figure.suptitle("Learning-rate range test", x=0.01, ha="left", fontweight="bold")
        figure.legend(loc="outside lower center", ncols=3)
        return _save(figure, Path(target))


# ------------------------------------------------------------------------------------------------- small things


def quantity(value: float) -> str:
    """A large number in few letters: 16.4M, 10.65M, 1,024."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.4g}{letter}"
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def parameters(run: Run) -> int | None:
    """The parameters of a run's GPT-2, counted from its exported config.json; None where there is none."""
    try:
        c = json.loads((run.path.parent / "config.json").read_text(encoding="utf-8"))
        shape = Config(n_layer=c["n_layer"], n_head=c["n_head"], n_embd=c["n_embd"], block_size=c["n_positions"])
        return sizes.parameters(shape, c["vocab_size"]).total
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _colours(count: int) -> list[Any]:
    if count <= 6:
        return list(RUNS[:count])
    from matplotlib import colormaps

    return [colormaps["viridis"](0.92 * number / (count - 1)) for number in range(count)]


def _plain(text: str) -> str:
    """Text as it is: a dollar sign in a run's name does not begin a formula."""
    return text.replace("$", r"\$")


def _style() -> dict[str, Any]:
    """The style, with the fonts for Chinese, Japanese and Korean names that this machine has."""
    wanted = (
        "Noto Sans CJK SC",
        "Source Han Sans SC",
        "WenQuanYi Micro Hei",
        "PingFang SC",
        "Microsoft YaHei",
        "SimHei",
    )
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return {**STYLE, "font.family": ["DejaVu Sans", *(name for name in wanted if name in installed)]}


def _save(figure: Figure, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that no font here has: boxes, then
        figure.savefig(temporary, format="png")
    os.replace(temporary, target)
    return target
