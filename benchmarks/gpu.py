"""Validate hfgpt on a card: each call under ten minutes, a table and a file of figures.

    make gpu                                          the parts not measured yet, on this machine's card
    python benchmarks/gpu.py --only profile --again   one of them again
    python benchmarks/gpu.py --list                   list the parts

In:  NANOGPT, a checkout of nanoGPT to run beside it (optional); a card (`--device cpu` tries the command itself).
Out: the table, and benchmarks/results/gpu-<card>.json with the versions. All parts take about half an hour, nanoGPT
     included: a call begins no part that would not end in time, and the next call goes on. A failed part reports what
     it saw, and the others continue; the next call tries it again, after those that were not measured yet. The exit
     status is 1 as long as a part failed or a figure misses its goal.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from card_bench import Bench, card_name
from card_parts import BESIDE, PARTS

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "accelerate", "triton", "numpy")


def main() -> int:
    arguments = parse()
    if arguments.list:
        for name, (part, seconds) in PARTS.items():
            text = getattr(part, "func", part).__doc__ or ""
            print(f"{name:15} {text.strip()} [about {seconds} s on an H100]")
        return 0
    card = "cpu" if arguments.device == "cpu" else card_name()
    if not card:
        said = "there is no CUDA card here that torch can use: nothing is measured (--device cpu tries the command)"
        print(said, *(f"{name} {version}" for name, version in versions().items()), sep="\n  ", file=sys.stderr)
        return 2
    path = arguments.json or RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', card.lower()).strip('-')}.json"
    parts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {}
    names = arguments.only or list(PARTS)
    checkout = os.environ.get("NANOGPT")
    for name, part in parts.items():  # its figures stay until it is measured again
        part["again"] |= (arguments.again and name in names) or bool(checkout and name in BESIDE and not part["beside"])
    with tempfile.TemporaryDirectory(prefix="hfgpt-gpu-") as scratch:
        deadline = math.inf if card == "cpu" else time.monotonic() + arguments.seconds
        bench = Bench(Path(scratch), arguments.device, Path(checkout).resolve() if checkout else None, deadline)
        for name in due(names, parts):
            if time.monotonic() + PARTS[name][1] > bench.deadline:
                print(f"{name}: left for the next call, {arguments.seconds} s are nearly over")
                continue
            parts[name] = measure(name, bench)
            path.write_text(json.dumps({"card": card, "parts": parts}, indent=1) + "\n")
    print(table(card, parts))
    return int(any(part["error"] or any(row["holds"] is False for row in part["rows"]) for part in parts.values()))


def due(names: list[str], parts: dict[str, Any]) -> list[str]:
    """Return the parts to measure: those not measured yet, then those that had failed; say which are done."""
    new = [name for name in names if name not in parts or parts[name]["again"]]
    failed = [name for name in names if name not in new and parts[name]["error"]]
    for name in names:
        if name not in (*new, *failed):
            print(f"{name}: measured already (--again repeats it)")
    return new + failed


def measure(name: str, bench: Bench) -> dict[str, Any]:
    """Return the rows of a part, as far as it got, its error, and the end of what the failed command printed.

    With them: the versions, whether nanoGPT ran beside it, and `again`, set once it is to be measured again.
    """
    rows, error, said, began = [], "", list[str](), time.monotonic()
    print(f"{name} …", flush=True)
    try:
        for row in PARTS[name][0](bench):
            rows.append(asdict(row))
            print(line(rows[-1]), flush=True)
    except Exception as problem:  # whatever it is, the other parts go on
        error, said = f"{type(problem).__name__}: {problem}", [*getattr(problem, "lines", [])][-60:]
        print("".join(said[-20:]), end="")
        print(f"✗ {name}: {error}", flush=True)
    made = {"versions": versions(), "beside": bench.nanogpt is not None, "again": False}
    return {"rows": rows, "error": error, "said": said, "seconds": round(time.monotonic() - began, 1)} | made


def versions() -> dict[str, str]:
    """Return the versions of the installed packages, and of the CUDA that torch was built for."""
    import torch

    found = {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)}
    return found | {"CUDA": torch.version.cuda or "none", "cuDNN": str(torch.backends.cudnn.version() or "none")}


def line(row: dict[str, Any]) -> str:
    """Format a row of the table."""
    mark = {True: "✓", False: "✗", None: " "}[row["holds"]]
    seen = f"{row['seen']:.4g}" if isinstance(row["seen"], float) else str(row["seen"])
    wanted = f"  (wanted: {row['wanted']})" if row["wanted"] else ""
    return f"{mark} {row['what']}: {seen} {row['unit']}{wanted}"


def table(card: str, parts: dict[str, Any]) -> str:
    """Return everything measured on this card, now or earlier."""
    lines = [f"\n{card}"]
    for name, part in parts.items():
        lines += [f"{name} ({part['seconds']:.0f} s)", *(f"  {line(row)}" for row in part["rows"])]
        lines += [f"  ✗ {part['error']}"] if part["error"] else []
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the parts, and stop")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART", help="these parts")
    parser.add_argument("--again", action="store_true", help="also what was measured already")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=int, default=570, help="end within so many seconds (570)")
    parser.add_argument("--json", type=Path, help="where the figures go (benchmarks/results/gpu-<card>.json)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
