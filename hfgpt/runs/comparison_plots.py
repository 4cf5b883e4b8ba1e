"""Figures of many runs: their curves, and how a swept value affects the loss.

In:  the histories of runs, grouped by setting (several seeds).
Out: PNG files, or SVG for a page. Imports neither torch nor transformers.
"""

import bisect
import io
import math
import statistics as numbers
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib import rc_context, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfgpt.base.language import _, current, using
from hfgpt.base.units import quantity
from hfgpt.runs import statistics
from hfgpt.runs.history import History
from hfgpt.runs.metrics import smooth
from hfgpt.runs.plots import (
    BLUE,
    GREY,
    MARKERS,
    RUNS,
    VERMILION,
    colours,
    drawing,
    fit_losses,
    plain,
    save,
    title,
    validation_label,
)

POINTS = 2000  # points of a curve on a page: a screen cannot show more

By = Literal["steps", "tokens", "time"]

Series = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Curve:
    """One setting in a figure, with a short label such as 'batch_size=16'; `others` are its other seeds."""

    label: str
    run: History
    others: tuple[History, ...] = ()

    @property
    def runs(self) -> list[History]:
        return [self.run, *self.others]


def compare_curves(curves: Sequence[Curve], by: By, target: str | Path, heading: str = "") -> Path:
    """Draw the validation losses of runs (and, fainter, their smoothed train losses) against steps, tokens or time.

    Several seeds are one line through their means, in a band of the means' 95% intervals. Of more than six settings,
    only the means are drawn. Runs without the axis's data (no recipe for tokens, no clock for time) are left out.
    """
    with drawing():
        figure = Figure(figsize=(12, 6.5), layout="constrained")
        axes = figure.subplots()
        scale, unit = _axis(curves, by)
        palette, few = colours(len(curves)), len(curves) <= len(RUNS)
        evaluated, faint = list[float](), list[Any]()
        for number, curve in enumerate(curves):
            colour, marker = palette[number], MARKERS[number % len(MARKERS)]
            for run in curve.runs if few else ():
                steps, losses = along(run, "train_loss", by)
                alpha = 0.45 / len(curve.runs) ** 0.5
                faint += axes.plot([x / scale for x in steps], smooth(losses), color=colour, lw=1.2, alpha=alpha)
            xs, means, lows, highs = _mean(curve, by)
            places = [x / scale for x in xs]
            axes.plot(places, means, color=colour, lw=2, marker=marker, ms=5, label=plain(curve.label))
            if few:
                axes.fill_between(places, lows, highs, color=colour, alpha=0.15, lw=0)
            evaluated += [loss for loss in means if math.isfinite(loss)]
        _limit_losses(axes, curves, evaluated)
        low, high = axes.get_ylim()
        for line in faint:  # of a train loss that leaves the figure, only a steep piece would be seen
            seen = [low <= loss <= high for loss in line.get_ydata()]
            line.set_visible(2 * sum(seen) > len(seen))
        axes.set_xlabel(unit)
        axes.set_ylabel(validation_label())
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=by == "steps"))
        axes.xaxis.set_major_formatter(
            ticker.FuncFormatter(lambda x, _place: quantity(x) if by == "tokens" else f"{x:,.10g}")
        )
        title(figure, plain(heading or heading_against(by)))
        legend = [_("faint: train, smoothed")] if any(line.get_visible() for line in faint) else []
        if any(curve.others for curve in curves):
            legend.append(_("band: 95% interval over seeds") if few else _("mean over seeds"))
        many = len(curves) > 12
        figure.legend(loc="outside right center", title="\n".join(legend), fontsize=8 if many else None,
                      ncols=1 + len(curves) // 36)  # fmt: skip
        return save(figure, Path(target))


def heading_against(by: By) -> str:
    """Return the title of a figure of curves."""
    return {"steps": _("Loss against steps"), "tokens": _("Loss against tokens"), "time": _("Loss against time")}[by]


def _mean(curve: Curve, by: By) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return positions, mean validation losses and their intervals, at the evaluations that all seeds have."""
    series = [dict(zip(*run.series("val_loss"), strict=True)) for run in curve.runs]
    places = [_places(run, run.series("val_loss")[0], by) for run in curve.runs]
    common = [step for step in series[0] if all(step in by_step for by_step in (*series, *places))]
    xs, means, lows, highs = list[float](), list[float](), list[float](), list[float]()
    for step in common:
        losses = [by_step[step] for by_step in series]
        xs.append(numbers.fmean(by_step[step] for by_step in places))
        summary = statistics.summarise(losses) if all(map(math.isfinite, losses)) else None
        means.append(summary.mean if summary else math.nan)
        lows.append(summary.low if summary else math.nan)
        highs.append(summary.high if summary else math.nan)
    return xs, means, lows, highs


def panel(curves: Sequence[Curve], key: str, by: By) -> str:
    """Draw a series of up to six runs for a page: SVG with letters as text, without title and legend.

    Args:
        curves: the runs; each gets its colour from :data:`RUNS`.
        key: 'val_loss', or 'train_loss', which is smoothed.

    Returns:
        An <svg> element; "" if no run has this series and axis.
    """
    series = [along(curve.run, key, by) for curve in curves]
    if not any(xs for xs, _ in series):
        return ""
    language = current()
    with (
        drawing(),
        using(language),  # the browser supplies the fonts
        rc_context({"svg.fonttype": "none", "svg.hashsalt": key}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure = Figure(figsize=(6.4, 3.9), layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.set_facecolor("none")
        scale, unit = _axis(curves, by)
        for number, (xs, losses) in enumerate(series):
            every = -(-len(xs) // POINTS) or 1
            shown = smooth(losses[::every]) if key == "train_loss" else losses[::every]
            marked = len(shown) == 1 or (key == "val_loss" and len(shown) <= 40)
            style: dict[str, Any] = {"marker": MARKERS[number], "ms": 4} if marked else {}
            axes.plot([x / scale for x in xs[::every]], shown, color=RUNS[number], lw=2, **style)
        if key == "val_loss":
            _limit_losses(axes, curves, [loss for _, losses in series for loss in losses if math.isfinite(loss)])
        else:
            fit_losses(axes, [loss for _, losses in series for loss in losses])
        axes.set_xlabel(unit)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=6, integer=by != "time"))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _place: quantity(x)))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def along(run: History, key: str, by: By) -> Series:
    """Return a series against steps, tokens or seconds, without the values whose place is not known."""
    steps, values = run.series(key)
    places = _places(run, steps, by)
    placed = [(places[step], value) for step, value in zip(steps, values, strict=True) if step in places]
    return [place for place, _ in placed], [value for _, value in placed]


def _places(run: History, steps: Sequence[float], by: By) -> dict[float, float]:
    """Return the places of steps: in seconds, a step that was not timed is at the last timed one before it."""
    if by == "steps":
        return dict(zip(steps, steps, strict=True))
    if by == "tokens":
        return {step: run.config.tokens_by(int(step)) for step in steps} if run.config else {}
    timed, seconds = run.series("seconds")
    before = {step: bisect.bisect_right(timed, step) for step in steps}
    return {step: seconds[count - 1] for step, count in before.items() if count}


def _axis(curves: Sequence[Curve], by: By) -> tuple[float, str]:
    if by != "time":
        return 1, {"steps": _("optimizer steps"), "tokens": _("tokens trained")}[by]
    longest = max(
        (x for curve in curves for run in curve.runs for x in run.series("seconds")[1] if math.isfinite(x)), default=0
    )
    for seconds, unit in ((3600, _("training time (hours)")), (60, _("training time (minutes)"))):
        if longest > 2 * seconds:
            return seconds, unit
    return 1, _("training time (seconds)")


def _limit_losses(axes: Axes, curves: Sequence[Curve], evaluated: Sequence[float]) -> None:
    """Cut the figure off above the second evaluations. The fall from chance, the same in every run, would flatten the
    rest; so would a divergence, which leaves the figure at its top.
    """
    if evaluated:
        series = [[v for v in curve.run.series("val_loss")[1] if math.isfinite(v)] for curve in curves]
        starts, seconds = [s[0] for s in series if s], [s[1] for s in series if len(s) > 3]
        top, low = min(max(starts), max(seconds, default=math.inf)), min(evaluated)
        room = (top - low) or 1.0
        axes.set_ylim(low - 0.06 * room, top + 0.08 * room)


@dataclass(frozen=True)
class Point:
    """A run's end in a figure of losses against a value; loss None: diverged or failed. A line joins each `group`."""

    value: Any
    loss: float | None
    seconds: float | None = None
    group: str = ""


def final_loss_against(
    name: str, points: Sequence[Point], target: str | Path, unit: str = "", heading: str = "", joined: bool = True
) -> Path:
    """Draw how a swept value affects the validation loss and, below it, the training time.

    Args:
        name, unit: the value's, for its axis.
        points: the runs' ends.
        target: the PNG file. heading: the title. joined: whether a line joins the points of a group; not if other
            values differ too, as in a random search.

    Several points at one value are its seeds, drawn as their mean with its 95% interval. The axis is logarithmic if the
    values are positive and span a factor of four or more. Runs without a loss are crosses along the top.
    """
    with drawing():
        figure = Figure(figsize=(12, 7), layout="constrained")
        timed = any(point.seconds is not None for point in points)
        panels = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.3], squeeze=False) if timed else None
        above, below = (panels[0][0], panels[1][0]) if panels is not None else [figure.subplots()] * 2
        position = _value_axis(below, [point.value for point in points])
        groups = sorted({point.group for point in points})
        palette = colours(len(groups))
        for number, group in enumerate(groups):
            style = {"color": palette[number], "marker": MARKERS[number % len(MARKERS)], "ms": 8,
                     "lw": 2 if joined else 0}  # fmt: skip
            members = sorted((p for p in points if p.group == group), key=lambda point: position(point.value))
            _draw_ends(above, members, position, style, group, (number, len(groups)))
            if timed:
                times = _times(members, position)
                below.plot(list(times), list(times.values()), **style)
        above.set_ylabel(validation_label())
        above.margins(y=0.2)
        below.set_xlabel(plain(_("{what} ({note})", what=name, note=unit) if unit else name))
        if timed:
            below.set_ylabel(_("training time (s)"))
            below.set_ylim(0, 1.2 * max(point.seconds or 0 for point in points) or 1)
        title(figure, plain(heading or _("Validation loss against {name}", name=name)))
        if len(groups) > 1:
            figure.legend(loc="outside right center")
        return save(figure, Path(target))


def isolation(panels: Mapping[str, Sequence[Point]], target: str | Path, heading: str) -> Path:
    """Draw each swept parameter by itself: all settings, and a line through the best of each value over all others.

    Args:
        panels: by parameter, a point for each setting; its loss is the mean over the setting's seeds.
    """
    with drawing():
        rows = -(-len(panels) // 3)
        figure = Figure(figsize=(12, 1 + 4.5 * rows), layout="constrained")
        every = figure.subplots(rows, min(3, len(panels)), sharey=True, squeeze=False)
        for axes in every.flat[len(panels) :]:
            axes.remove()
        for axes, (name, points) in zip(every.flat, panels.items(), strict=False):
            position = _value_axis(axes, [point.value for point in points])
            ended = [(position(point.value), point.loss) for point in points if point.loss is not None]
            axes.plot(*zip(*ended, strict=True), "o", color=GREY, alpha=0.5, ms=6, label=_("a setting"))
            best: dict[Any, float] = {}
            for place, loss in ended:
                best[place] = min(loss, best.get(place, math.inf))
            line = sorted(best.items())
            axes.plot(*zip(*line, strict=True), "-o", color=BLUE, lw=2, ms=7, label=_("best over all others"))
            lowest = min(line, key=lambda end: end[1])
            axes.plot(*lowest, "o", ms=15, mfc="none", mec=VERMILION, mew=2, label=_("best of all"))
            axes.set_xlabel(plain(name))
        for axes in every[:, 0]:
            axes.set_ylabel(validation_label())
        title(figure, plain(heading))
        handles, labels = every.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return save(figure, Path(target))


def _times(points: Sequence[Point], position: Any) -> dict[Any, float]:
    by_place: dict[Any, list[float]] = {}
    for point in points:
        if point.seconds is not None:
            by_place.setdefault(position(point.value), []).append(point.seconds)
    return {x: numbers.fmean(seconds) for x, seconds in by_place.items()}


def _draw_ends(
    axes: Axes, points: Sequence[Point], position: Any, style: dict[str, Any], group: str, place: tuple[int, int]
) -> None:
    """Draw one group's ends; `place` is its index and the number of groups. The figures of two groups are printed on
    opposite sides of the points; those of more groups only in the table.
    """
    number, groups = place
    beside = {1: ((0, 10), "center"), 2: ((14, -4), "left") if number else ((-14, -4), "right")}.get(groups)
    by_place: dict[Any, list[float]] = {}
    for point in points:
        if point.loss is not None:
            by_place.setdefault(position(point.value), []).append(point.loss)
    ends = [(x, statistics.summarise(losses)) for x, losses in by_place.items()]
    axes.plot([x for x, _end in ends], [end.mean for _x, end in ends], label=plain(group), **style)
    for x, end in ends:
        if end.count > 1:
            axes.errorbar([x], [end.mean], [end.high - end.mean], color=style["color"], capsize=5)
        if len(ends) <= 12 and beside:
            axes.annotate(f"{end.mean:.3f}", (x, end.mean), xytext=beside[0],
                          textcoords="offset points", ha=beside[1], color=style["color"],
                          bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1})  # fmt: skip
    for point in points:
        if point.loss is None:
            axes.text(position(point.value), 0.97, "✕ " + _("no loss"), transform=axes.get_xaxis_transform(),
                      ha="center", va="top", color=style["color"])  # fmt: skip


def _value_axis(axes: Axes, values: Sequence[Any]) -> Any:
    """Set up the axis of a swept value; return the function from a value to its position on it."""
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    distinct = sorted(set(values)) if numeric else list(dict.fromkeys(values))
    if not numeric:
        axes.set_xticks(range(len(distinct)), [plain(str(value)) for value in distinct])
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
