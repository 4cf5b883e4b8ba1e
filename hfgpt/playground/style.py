"""The page's style: its fonts, and style.css beside this file."""

from __future__ import annotations

from pathlib import Path

# System fonts alone: nothing is fetched. The Chinese ones come after the Latin ones, so that figures stay the same.
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC")

MONOSPACE = ("ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "Noto Sans Mono CJK SC")


def css() -> str:
    """The text of style.css."""
    return (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
