"""Seconds and bytes, in words and back."""

from __future__ import annotations

import re

from hfgpt.base.language import _


def seconds_of(time: str) -> int:
    """'11h30m' → 41400; 0 if it is not a time of this form."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", time.strip())
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    return hours * 3600 + minutes * 60 + seconds


def duration(seconds: float) -> str:
    """Seconds as 12 ms, 3.4s, 45s, 3m20s, 1h05m or 4.2 d; in Chinese 45 秒, 3 分 20 秒 and so on."""
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
    """Bytes as MiB or GiB."""
    return f"{amount / 2**30:,.2f} GiB" if amount >= 2**30 else f"{amount / 2**20:,.0f} MiB"
