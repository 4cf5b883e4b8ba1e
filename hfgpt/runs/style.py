"""The style of all figures: colours, fonts, numbers, and saving.

In:  matplotlib figures.
Out: PNG files, 1200 pixels wide, in colours that colour-blind readers can distinguish (Okabe and Ito, 2008).

Figures use the user's language if a font for it is installed, otherwise English: never boxes. They use matplotlib's
object interface and the Agg backend only: no window, no global state.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from matplotlib import colormaps, font_manager, ft2font, rc_context, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfgpt.base.files import replacing
from hfgpt.base.language import _, current, using

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
    """Return the label of a train loss axis."""
    return _("loss (nats per token)")


def validation_label() -> str:
    """Return the label of a validation loss axis."""
    return _("validation loss (nats per token)")


def quantity(value: float) -> str:
    """Format a large number briefly: 16.4M, 10.65M, 1,024."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.4g}{letter}"
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def colours(count: int) -> list[Any]:
    """Return `count` colours, as distinguishable as possible."""
    if count <= len(RUNS):
        return list(RUNS[:count])
    return [colormaps["viridis"](0.92 * number / (count - 1)) for number in range(count)]


def title(figure: Figure, text: str) -> None:
    """Set a figure's title."""
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
