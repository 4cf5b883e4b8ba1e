"""Seconds and bytes, in words and back."""

from __future__ import annotations

import re


def seconds_of(time: str) -> int:
    """'11h30m' → 41400; 0 if it is not a time of this form."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", time.strip())
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    return hours * 3600 + minutes * 60 + seconds


def duration(seconds: float) -> str:
    """Seconds as 12 ms, 3.4s, 45s, 3m20s, 1h05m or 4.2 d."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s".replace(".0s", "s")
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 2 * 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{seconds / 86400:,.1f} d"


def size(amount: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{amount / 2**30:,.2f} GiB" if amount >= 2**30 else f"{amount / 2**20:,.0f} MiB"
