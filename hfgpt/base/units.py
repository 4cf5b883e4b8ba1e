"""Numbers, durations and sizes, formatted and parsed."""

import math
import re
from collections.abc import Iterator
from typing import Any

from hfgpt.base.language import _


def seconds_of(time: str) -> int:
    """Parse '11h30m' or '11小时30分' → 41400; 0 if the text is not of this form, or lasts decades."""
    match = re.fullmatch(
        r"(?:(\d{1,6}) ?(?:h|小时))? ?(?:(\d{1,8}) ?(?:m|min|分钟?))? ?(?:(\d{1,9}) ?(?:s|秒钟?))?", time.strip()
    )
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    return hours * 3600 + minutes * 60 + seconds


def is_number(value: Any) -> bool:
    """Whether a field's value is a number; a bool is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def rounded(value: float) -> float:
    """Round a value to two digits: more would suggest a measurement."""
    return float(f"{value:.2g}")


def short(value: Any) -> str:
    """Format a field's value for a table."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown(value: Any) -> str:
    """Format a field's value for a sentence: a float with six digits at most."""
    if value is None:
        return _("unset")
    return str(float(f"{value:.6g}")) if isinstance(value, float) else str(value)


def signed(value: float) -> str:
    """Format a difference with its sign and three decimals."""
    return f"{round(value, 3) + 0:+.3f}"  # adding 0 makes -0 positive


def divisors(number: int, most: int) -> Iterator[int]:
    """Return a number's divisors up to `most`, largest first."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return (n for n in sorted({*small, *(number // n for n in small)}, reverse=True) if n <= most)


def duration(seconds: float) -> str:
    """Format seconds as 12 ms, 3.4s, 45s, 3m20s, 1h05m or 4.2 d; in Chinese 45 秒, 3 分 20 秒 and so on."""
    if seconds <= 0:
        return _("{n}s", n=0)
    if seconds < 1:
        return _("{n} ms", n=f"{seconds * 1000:.3g}")
    if seconds < 9.95:
        return _("{n}s", n=f"{seconds:.1f}".removesuffix(".0"))
    whole = round(seconds)
    if whole < 60:
        return _("{n}s", n=whole)
    if whole < 3600:
        return _("{minutes}m{seconds:02d}s", minutes=whole // 60, seconds=whole % 60)
    if whole < 2 * 86400:
        return _("{hours}h{minutes:02d}m", hours=whole // 3600, minutes=whole % 3600 // 60)
    return _("{n} d", n=f"{seconds / 86400:,.1f}")


def size(amount: float) -> str:
    """Format bytes as MiB or GiB."""
    return f"{amount / 2**30:,.2f} GiB" if amount >= 2**30 else f"{amount / 2**20:,.0f} MiB"


def number(value: float) -> str:
    """Format a number with three digits, and all digits before the point: 0.259, 2.7, 68,100."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def quantity(value: float) -> str:
    """Format a large number briefly: 16.4M, 10.65M, 1,024."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.4g}{letter}"
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"
