"""Figures and their display: medians with quartiles, ratios, one table as text and as Markdown.

In:  samples, or the results that bench.py wrote.
Out: dictionaries for JSON; lines of text; the Markdown between two markers in README.md.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

median = statistics.median

BEGIN, END = "<!-- figures: bench.py --report -->", "<!-- end of figures -->"


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median, lower and upper quartile, and the number of samples (at least one)."""
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
    return {"median": median(samples), "low": low, "high": high, "samples": len(samples)}


def ratio(ours: float, peer: float, lower_is_better: bool) -> float:
    """Return the ratio, above 1 if ours is better."""
    return peer / ours if lower_is_better else ours / peer


def entry(
    ours: Sequence[float], peer: Sequence[float] | None, lower_is_better: bool, flops: float | None
) -> dict[str, Any]:
    """Return the measured part of a row: both sides, their ratio, and the arithmetic for a share of the ceiling.

    Args:
        ours, peer: samples; either may be missing.
        lower_is_better: for the ratio.
        flops: arithmetic of one unit; None where a share of the ceiling means nothing.
    """
    sides = {"ours": summary(ours) if ours else None, "peer": summary(peer) if peer else None}
    found: dict[str, Any] = {**sides, "ratio": None, "flops": flops}
    if ours and peer:
        found["ratio"] = ratio(sides["ours"]["median"], sides["peer"]["median"], lower_is_better)
    return found


# ----------------------------------------------------------------------------------------- tables that grow by the line


def append(path: Path, line: dict[str, Any]) -> None:
    """Append a line to a CSV file; the first one adds the header."""
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(line), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(line)


def numbers(path: Path, **of: str) -> set[int]:
    """Return the column `number` of a CSV file that may not exist yet: the rows already measured.

    Args:
        of: only those with these values.
    """
    if not path.exists():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        return {int(line["number"]) for line in csv.DictReader(file) if of.items() <= line.items()}


def learned(seen: Any) -> dict[str, float]:
    """Return a finished trial's losses, as stored in tables."""
    return {
        "val_loss": round(seen.val_losses[-1], 4),
        "best_val_loss": round(min(seen.val_losses), 4),
        "train_loss": round(seen.train_loss, 4),
    }


# -------------------------------------------------------------------------------------------------------------- showing


def figure(value: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def side(measured: dict[str, float] | None) -> str:
    """Median (lower to upper quartile)."""
    if measured is None:
        return "–"
    spread = f" ({figure(measured['low'])}–{figure(measured['high'])})" if measured["samples"] > 1 else ""
    return figure(measured["median"]) + spread


def cells(row: dict[str, Any], ceiling: dict[str, float]) -> list[str]:
    """Return a row's cells: name, both sides, ratio, goal, share of the ceiling, remarks.

    Args:
        row: from :func:`entry`, with its names and the number types of both sides.
        ceiling: GFLOP/s by number type.
    """
    if row.get("error"):
        return [row["title"], row["unit"], "failed", "", "", "", "", row["error"]]
    sides = zip(("ours", "peer"), row["dtypes"], strict=True)
    known = [(row[name]["median"], ceiling[dtype] * 1e9) for name, dtype in sides if row[name] and row["flops"]]
    shares = [f"{rate * row['flops'] / most:.0%}" for rate, most in known]
    return [
        row["title"],
        row["unit"],
        side(row["ours"]),
        side(row["peer"]),
        "–" if row["ratio"] is None else f"{row['ratio']:.2f}",
        "" if row["goal"] is None else f"{row['goal']:g}",
        " / ".join(shares),
        "; ".join(part for part in (f"peer: {row['peer_name']}" if row["peer"] else "", row["note"]) if part),
    ]


HEADER = ["row", "unit", "ours", "peer", "ratio", "goal", "of ceiling", ""]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, with figures right-aligned."""
    lines = ["| " + " | ".join(header) + " |", "|---" * 2 + "|--:" * (len(header) - 3) + "|---|"]
    return "\n".join([*lines, *("| " + " | ".join(text.replace("|", "/") for text in row) + " |" for row in rows)])


def plain(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the table as text in aligned columns."""
    table = [header, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in table)


def ceiling_line(results: dict[str, Any]) -> str:
    """Describe the machine's ceiling."""
    ceiling = results["ceiling"]
    products = ", ".join(f"{name} {figure(value)}" for name, value in ceiling["gflops"].items())
    return f"Ceiling: matrix products {products} GFLOP/s; memory {figure(ceiling['memory_gbps'])} GB/s."


def machine_line(results: dict[str, Any]) -> str:
    """Describe the machine and the versions."""
    machine, versions = results["machine"], results["versions"]
    on = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB"
    return f"{on}; " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."


def scaling_rows(factors: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Factor, values, milliseconds and MB at each, measured and predicted exponents."""
    return [
        [
            each["factor"],
            ", ".join(f"{value:,}" for value in each["values"]),
            ", ".join(figure(seconds["median"] * 1e3) for seconds in each["seconds"]),
            f"{each['time_exponent']:.2f} / {each['time_theory']:.2f}",
            ", ".join(figure(held / 1e6) for held in each["bytes"]),
            f"{each['memory_exponent']:.2f} / {each['memory_theory']:.2f}",
            "",
        ]
        for each in factors
    ]


SCALING_HEADER = ["against", "values", "ms a step", "exponent / theory", "peak MB", "exponent / theory", ""]


def profile_rows(shapes: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the shares of a step."""
    groups = list(next(iter(shapes.values()))["shares"])
    rows = [
        [name, figure(each["milliseconds"]), *(f"{each['shares'][group]:.1%}" for group in groups), ""]
        for name, each in shapes.items()
    ]
    return ["shape", "ms a step", *groups, ""], rows


def report(results: dict[str, Any], table: Any = markdown) -> str:
    """Return everything measured on one machine."""
    rows = [cells(row, results["ceiling"]["gflops"]) for row in results["rows"]]
    parts = [machine_line(results), ceiling_line(results), table(HEADER, rows)]
    if results["scaling"]:
        parts.append(table(SCALING_HEADER, scaling_rows(results["scaling"])))
    if results["profile"]:
        parts.append(table(*profile_rows(results["profile"])))
    return "\n\n".join(parts)


def page(text: str, all_results: dict[str, dict[str, Any]]) -> str:
    """Return the page with the part between its markers replaced.

    Args:
        text: of the page.
        all_results: by machine.
    """
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    sections = [f"### {name}\n\n{report(results)}" for name, results in sorted(all_results.items())]
    return f"{before}{BEGIN}\n\n" + "\n\n".join(sections or ["Nothing has been measured yet."]) + f"\n\n{END}{after}"
