"""Compare hfgpt with its peers: one table, each row a ratio measured within one run.

    make bench NANOGPT=path                          the table, under 20 minutes on two cores
    python benchmarks/bench.py --list                the rows
    python benchmarks/bench.py --only small --quick  some of them, once
    python benchmarks/bench.py --report              put the figures of benchmarks/results/ into benchmarks/README.md

In:  environment variables: NANOGPT, a checkout of nanoGPT (without it, rows lack their peer); TEXT, a file to train on
     (default: the corpus of hfgpt); GPT2_TOKENIZER, a folder with GPT-2's tokenizer.
Out: the table, and benchmarks/results/<machine>.json. Rows not measured this time stay in that file if machine and
     versions are the same. A trial (--quick, --iterations, --allocator) is written only to the file given by --json.
     Ctrl-C stops and writes the results so far.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rows
import table
import watch
from rows import ROWS, Row, Setting

from hfgpt.base import hardware, threads

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE / "README.md"
PACKAGES = ("hfgpt", "torch", "transformers", "accelerate", "tokenizers", "numpy")
# Measurements besides the rows: a name for --only, and approximate seconds on two slow cores.
SCALING, PROFILE = ("scaling", 140), ("profile", 60)


def main() -> int:
    arguments = parse()
    if arguments.list:
        for row in ROWS:
            print(f"{row.name:20} {row.title} [{row.unit}]{'  (--long)' if row.long else ''}")
        print(f"{SCALING[0]:20} step time and peak memory against each size\n{PROFILE[0]:20} where a step's time goes")
        return 0
    if arguments.report:
        saved = measured_tables()
        PAGE.write_text(table.page(PAGE.read_text(encoding="utf-8"), saved), encoding="utf-8")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: child processes end too
    with tempfile.TemporaryDirectory(prefix="hfgpt-bench-") as scratch:
        setting = Setting(
            scratch=Path(scratch),
            nanogpt=path_of("NANOGPT"),
            text=path_of("TEXT"),
            gpt2_tokenizer=path_of("GPT2_TOKENIZER"),
            device=arguments.device,
            threads=threads.cores(),
            quick=arguments.quick,
            iterations=arguments.iterations,
            allocator=arguments.allocator,
        )
        results = measure(setting, arguments.only, arguments.long, arguments.json)
    print(table.report(results, table.plain))
    return int(any(row.get("error") for row in results["rows"]))


def measured_tables() -> dict[str, Any]:
    """Return this program's tables in benchmarks/results/, by machine; other benchmarks also keep files there."""
    tables = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    return {name: table for name, table in tables.items() if "ceiling" in table}


def parse() -> argparse.Namespace:
    """The command line."""
    names = [*(row.name for row in ROWS), SCALING[0], PROFILE[0]]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the rows, and stop")
    parser.add_argument("--report", action="store_true", help="write the figures into the page, and stop")
    parser.add_argument("--only", action="append", choices=names, metavar="ROW", help="this row; may be repeated")
    parser.add_argument("--quick", action="store_true", help="one round of each, and nothing compiled")
    parser.add_argument("--long", action="store_true", help="also the rows that take ten minutes each")
    parser.add_argument("--iterations", type=int, help="steps or tokens that count in each round (a row's own number)")
    parser.add_argument("--allocator", action="store_true", help="peers with hfgpt's setting of malloc (not kept)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="cpu")
    parser.add_argument("--json", type=Path, help="where to write (benchmarks/results/<machine>.json)")
    return parser.parse_args()


def path_of(variable: str) -> Path | None:
    """Return the absolute path in an environment variable; None if it is not set."""
    value = os.environ.get(variable)
    return Path(value).expanduser().resolve() if value else None


def measure(setting: Setting, only: list[str] | None, long: bool, target: Path | None) -> dict[str, Any]:
    """Measure what is requested, and write the file after each part, so that nothing is lost."""
    todo = chosen(setting, only, long)
    results: dict[str, Any] = {"machine": machine(setting), "versions": versions(setting)}
    results |= {"ceiling": watch.script("ceiling.py", setting.bound, setting.device)}
    trial = setting.quick or setting.iterations is not None or setting.allocator
    target = target or (None if trial else RESULTS / f"{file_name(results['machine'])}.json")
    results |= kept(target, results)
    began, planned = time.monotonic(), sum(seconds for _, seconds, _ in todo)
    try:
        for number, (name, seconds, action) in enumerate(todo, 1):
            left = planned * (0.5 if setting.quick else 1)
            print(f"[{number}/{len(todo)}] {name}: about {left / 60:.0f} min left", file=sys.stderr, flush=True)
            action(results)
            planned -= seconds
            write(target, results)
    except KeyboardInterrupt:
        print("stopped: what was measured is kept", file=sys.stderr)
        write(target, results)
    print(f"{time.monotonic() - began:.0f} s{f'; {target}' if target else ''}\n", file=sys.stderr)
    return results


Action = Callable[[dict[str, Any]], None]


def chosen(setting: Setting, only: list[str] | None, long: bool) -> list[tuple[str, int, Action]]:
    """Return (name, seconds, function that adds it to the results) for everything requested."""
    todo: list[tuple[str, int, Action]] = [
        (row.name, row.seconds, lambda results, row=row: put(results, measured(row, setting)))
        for row in ROWS
        if (row.name in only if only else long or not row.long) and (setting.device == "cpu" or not row.cpu_only)
    ]
    for (name, seconds), action in ((SCALING, rows.measure_scaling), (PROFILE, rows.measure_profile)):
        if (name in only if only else True) and setting.device == "cpu":
            todo.append((name, seconds, lambda results, key=name, go=action: results.update({key: go(setting)})))
    return todo


def measured(row: Row, setting: Setting) -> dict[str, Any]:
    """Return a row of the results; a failed row says why, and the others continue."""
    known = {"name": row.name, "title": row.title, "unit": row.unit, "peer_name": row.peer, "goal": row.goal}
    try:
        found = row.measure(setting)
    except Exception as error:  # any error of a side is that row's result
        return {**known, "error": f"{type(error).__name__}: {error}"[:300]}
    return {
        **known,
        **table.entry(found.ours, found.peer, row.lower, found.flops),
        "dtypes": found.dtypes,
        "note": found.note,
    }


def put(results: dict[str, Any], row: dict[str, Any]) -> None:
    """Replace the row of this name; rows stay in the order of the table."""
    by_name = {each["name"]: each for each in results["rows"]} | {row["name"]: row}
    results["rows"] = [by_name[each.name] for each in ROWS if each.name in by_name]


def kept(target: Path | None, results: dict[str, Any]) -> dict[str, Any]:
    """Return the earlier rows of the same versions on the same machine, and the best of its ceilings."""
    parts: dict[str, Any] = {"rows": [], "scaling": [], "profile": {}}
    if target is not None and target.exists():
        saved = json.loads(target.read_text())
        if all(saved[key] == results[key] for key in ("machine", "versions")):
            parts = {key: saved[key] for key in parts}
            before, now = saved["ceiling"], results["ceiling"]
            products = {name: max(value, before["gflops"][name]) for name, value in now["gflops"].items()}
            parts["ceiling"] = {"gflops": products, "memory_gbps": max(now["memory_gbps"], before["memory_gbps"])}
    return parts


def write(target: Path | None, results: dict[str, Any]) -> None:
    """Write the file atomically; do nothing without a target."""
    if target is None:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(temporary, target)


def machine(setting: Setting) -> dict[str, Any]:
    """Describe the machine, without a host name."""
    processor = platform.machine()
    if (information := Path("/proc/cpuinfo")).exists():
        found = re.search(r"^model name\s*: (.*)$", information.read_text(), re.MULTILINE)
        processor = found[1].strip() if found else processor
    out = {"processor": processor, "cores": setting.threads, "memory_gb": round(hardware.cpu_memory_bytes() / 1e9)}
    return out | ({"accelerator": hardware.local_accelerator()} if setting.device == "cuda" else {})


def file_name(machine: dict[str, Any]) -> str:
    """Return a name such as amd-epyc-2-cores."""
    name = machine.get("accelerator") or f"{machine['processor']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def versions(setting: Setting) -> dict[str, str]:
    """Return the packages' versions, and the commits of both sides if git knows them."""
    out = {"python": platform.python_version()}
    for package in PACKAGES:
        out[package] = importlib.metadata.version(package)
    for name, folder in (("hfgpt", watch.ROOT / "hfgpt"), ("nanoGPT", setting.nanogpt)):
        if folder is not None and (commit := commit_of(folder)):
            out[name] = commit
    return out


def commit_of(folder: Path) -> str:
    """Return the last commit that changed a folder, with "+" if files differ from it; "" if git knows none."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("log", "-1", "--format=%h", "--", ".")
    return commit and commit + ("+" if git("status", "--porcelain", "--untracked-files=no", "--", ".") else "")


if __name__ == "__main__":
    sys.exit(main())
