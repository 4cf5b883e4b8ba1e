"""Figures of one run, its loss curve or a learning-rate range test; and the style of all figures.

In:  the history of a run (:mod:`hfgpt.runs.history`), or rates and losses.
Out: PNG files, 1200 pixels wide, in colours that colour-blind readers can distinguish (Okabe and Ito, 2008).

Figures use the user's language if a font for it is installed, otherwise English: never boxes. They use matplotlib's
object interface and the Agg backend only: no window, no global state. Imports neither torch nor transformers.
"""

import contextlib
import json
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, font_manager, ft2font, rc_context, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfgpt.base.errors import UNREADABLE
from hfgpt.base.files import check_regular, replacing
from hfgpt.base.language import _, current, using
from hfgpt.base.units import quantity
from hfgpt.config import Config
from hfgpt.model import sizes
from hfgpt.runs import metrics
from hfgpt.runs.history import History, read_run
from hfgpt.runs.metrics import smooth

BLUE, SKY, VERMILION, GREEN, ORANGE, PURPLE, GREY = (
    "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#666666",
)  # fmt: skip

MARKERS = "osD^vPX"
RUNS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)  # the colours of runs in a figure, in order

STYLE = {
    "figure.dpi": 100,
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.edgecolor": GREY,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}

LATIN = "DejaVu Sans"  # bundled with matplotlib

CHINESE = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "PingFang SC", "Hiragino Sans GB", "STHeiti", "Heiti SC", "Songti SC", "Arial Unicode MS",
    "Microsoft YaHei", "SimHei", "SimSun", "Noto Sans CJK JP", "Droid Sans Fallback",
)  # fmt: skip


@contextmanager
def drawing() -> Iterator[None]:
    """Inside, figures have this style, and labels are in a language that the fonts can display."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # says of each font that has a single weight
    language = current() if current() == "en" or _chinese_fonts() else "en"
    with rc_context({**STYLE, "font.family": [LATIN, *_chinese_fonts()]}), using(language):
        yield


def _chinese_fonts() -> list[str]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    if current() == "zh" and installed.isdisjoint(CHINESE) and _find_new_fonts():
        installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in CHINESE if name in installed]


@lru_cache(1)
def _find_new_fonts() -> bool:
    """Register fonts installed since matplotlib built its list; return whether there are any."""
    listed = {font.fname for font in font_manager.fontManager.ttflist}
    new = [path for path in font_manager.findSystemFonts() if path not in listed]
    for path in new:
        with contextlib.suppress(OSError, RuntimeError):  # no font, or one that cannot be read
            font_manager.fontManager.addfont(path)
    return bool(new)


@lru_cache
def _characters(fonts: tuple[str, ...]) -> frozenset[int]:
    """Return the characters that some fonts can display."""
    paths = (font_manager.findfont(font_manager.FontProperties(family=[name])) for name in fonts)
    return frozenset(code for path in paths for code in ft2font.FT2Font(path).get_charmap())


def plain(text: str) -> str:
    """Escape a text from outside for a figure: dollar signs are literal, and characters without a font become '?'."""
    known = _characters((LATIN, *_chinese_fonts()))
    shown = "".join(c if ord(c) in known else "?" for c in " ".join(text.split()))
    return shown.replace("$", r"\$")


def loss_label() -> str:
    return _("loss (nats per token)")


def validation_label() -> str:
    return _("validation loss (nats per token)")


def colours(count: int) -> list[Any]:
    """Return `count` colours, as distinguishable as possible."""
    if count <= len(RUNS):
        return list(RUNS[:count])
    return [colormaps["viridis"](0.92 * number / (count - 1)) for number in range(count)]


def title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontweight="bold", wrap=True)


def fit_losses(axes: Axes, values: Iterable[float]) -> None:
    """Use a log axis for losses that span orders of magnitude, as in a divergence."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and 0 < 10 * min(finite) < max(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _place: f"{value:g}"))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def is_png(path: Path) -> bool:
    """Whether an existing path is a PNG file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8) == b"\x89PNG\r\n\x1a\n"


def save(figure: Figure, target: Path) -> Path:
    """Write a figure as PNG, atomically, and return its path."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(temporary, format="png")
    return target


def loss_curve(source: str | Path, target: str | Path | None = None) -> Path:
    """Draw a run's losses and learning rate against its steps.

    Args:
        source: anything that :func:`hfgpt.runs.history.read_run` reads, including a run in progress.
        target: the PNG file; by default ``loss.png`` beside the record.

    Returns:
        The path of the PNG.

    Raises:
        InputError: there is no record of a run.
    """
    run = read_run(source)
    with drawing():
        figure = Figure(figsize=(12, 7), layout="constrained")
        rates = run.series("learning_rate")
        if rates[0]:
            losses, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
            _draw_rate(below, *rates)
        else:
            losses = below = figure.subplots()
        _draw_losses(losses, run)
        below.set_xlabel(_("optimizer steps"))
        below.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        below.xaxis.set_major_formatter(ticker.FuncFormatter(lambda step, _place: f"{step:,.0f}"))
        if run.config is not None:
            _tokens_on_top(losses, run.config)
        title(figure, _title(run))
        figure.legend(loc="outside lower center", ncols=3)
        return save(figure, Path(target) if target else run.path.with_name("loss.png"))


def _draw_losses(axes: Axes, run: History) -> None:
    steps, values = run.series("train_loss")
    many = len(values) >= 20
    if values:
        axes.plot(steps, values, color=SKY, lw=1, alpha=0.55 if many else 1, label=_("train, each step's batch"))
    if many:
        axes.plot(steps, smooth(values), color=BLUE, lw=2, label=_("train, smoothed"))
    for key, colour, marker, label in (
        ("train_eval_loss", GREEN, "s", _("train, evaluated")),
        ("val_loss", VERMILION, "o", _("validation, evaluated")),
    ):
        if run.series(key)[0]:
            axes.plot(*run.series(key), color=colour, lw=1.6, marker=marker, ms=5, label=label)
    axes.set_ylabel(loss_label())
    fit_losses(axes, [value for key in ("train_loss", "train_eval_loss", "val_loss") for value in run.series(key)[1]])
    _mark_best(axes, run)
    _mark_divergence(axes, steps, values)


def _mark_best(axes: Axes, run: History) -> None:
    best = metrics.best(run.records)
    if best is not None:
        value, step = best["val_loss"], best["step"]
        label = _("best validation loss {loss:.4f}, at step {step:,}", loss=value, step=int(step))
        axes.plot([step], [value], marker="*", ms=18, mfc="white", mec=VERMILION, mew=1.6, ls="", zorder=5, label=label)


def _mark_divergence(axes: Axes, steps: Sequence[float], values: Sequence[float]) -> None:
    known = max((step for step, value in zip(steps, values, strict=True) if math.isfinite(value)), default=-math.inf)
    lost = [step for step in steps if step > known]  # empty if the run recovered
    if lost:
        axes.axvline(lost[0], color=GREY, ls="--")
        text = _("not a number from step {step:,}", step=int(lost[0]))
        axes.text(lost[0], 0.98, f" {text} ", transform=axes.get_xaxis_transform(),
                  va="top", ha="right" if lost[0] > sum(axes.get_xlim()) / 2 else "left", color=GREY)  # fmt: skip


def _draw_rate(axes: Axes, steps: Sequence[float], rates: Sequence[float]) -> None:
    axes.plot(steps, rates, color=PURPLE, lw=2)
    axes.set_ylim(0, max(rates) * 1.15 or 1)
    axes.set_yticks([0, max(rates)], ["0", f"{max(rates):.3g}"])
    axes.set_ylabel(_("learning\nrate"))


def _tokens_on_top(axes: Axes, config: Config) -> None:
    batch, far = config.batch_sizes, 10**9  # with a growing batch, tokens are not linear in steps
    steps = np.array([-far, *range(batch.warmup + 1), far])
    tokens = np.array([-far * batch.full, *map(batch.before, range(batch.warmup + 1)), batch.before(far)])
    tokens *= config.block_size
    ways = (lambda at: np.interp(at, steps, tokens), lambda at: np.interp(at, tokens, steps))
    top = axes.secondary_xaxis("top", functions=ways)
    top.set_xlabel(_("tokens trained"), color=GREY)
    top.xaxis.set_major_formatter(ticker.FuncFormatter(lambda tokens, _place: quantity(tokens)))
    top.tick_params(colors=GREY)


def _title(run: History) -> str:
    parts = [run.name]
    count = parameters(run)
    if count:
        parts.append(_("{count} parameters", count=quantity(count)))
    if run.config is not None:
        c = run.config
        if c.init_from in ("scratch", "resume"):
            parts.append(
                _("{layers} layers × {heads} heads × {width}", layers=c.n_layer, heads=c.n_head, width=c.n_embd)
            )
        parts.append(_("{tokens:,} tokens a step", tokens=c.tokens_per_iter))
    return plain("  ·  ".join(parts))


def parameters(run: History) -> int | None:
    """Count the parameters of a run's GPT-2 from its exported config.json; None if it cannot be read."""
    try:
        path = run.path.parent / "config.json"
        check_regular(path)
        c = json.loads(path.read_text(encoding="utf-8"))
        return sizes.exported_parameters(c).total
    except (OSError, *UNREADABLE):
        return None


def range_test(
    rates: Sequence[float], losses: Sequence[float], suggestion: float, reason: str, target: str | Path
) -> Path:
    """Draw a learning-rate range test: the loss against the rate, raw and smoothed, with the suggested rate marked."""
    with drawing():
        figure = Figure(figsize=(12, 6), layout="constrained")
        axes = figure.subplots()
        axes.plot(rates, losses, color=SKY, lw=1, alpha=0.6, label=_("loss of each step's batch"))
        axes.plot(rates, smooth(losses), color=BLUE, lw=2.2, label=_("smoothed"))
        axes.axvline(
            suggestion,
            color=VERMILION,
            lw=2,
            ls="--",
            label=plain(_("suggested: {rate:.1e} ({why})", rate=suggestion, why=reason)),
        )
        axes.set_xscale("log")
        finite = [loss for loss in losses if math.isfinite(loss)]
        if finite:
            low, start = min(finite), finite[0]
            axes.set_ylim(low - 0.1 * (start - low or 1), start + 0.4 * (start - low or 1))
        axes.set_xlabel(_("learning rate"))
        axes.set_ylabel(loss_label())
        title(figure, _("Learning-rate range test"))
        figure.legend(loc="outside lower center", ncols=3)
        return save(figure, Path(target))
