"""Check a long run for leaks: memory and open files of a tiny model's 20,000 steps, observed from outside.

In:  the number of steps, and a folder for the run.
Out: a table of steps, resident memory, open files and threads; it fails if memory at the end is more than 5% above that
     at step 1,000, or if the number of open files has changed.

    python benchmarks/long_run.py --steps 20000

Evaluations, samples, exports and checkpoints come every 500 steps, as in a real run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).parent.parent
RECIPE = ["--n_layer=2", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4", "--eval_iters=2"]
RECIPE += ["--eval_interval=500", "--log_interval=50", "--device=cpu", "--cpu_threads=1", "--num_proc=1"]
TOLERANCE = 1.05


class Sample(NamedTuple):
    """The resources of the training process at a step."""

    step: int
    resident: int  # bytes
    files: int
    threads: int


def last_step(record: Path) -> int:
    """Return the newest step in a metrics.jsonl; -1 before the first."""
    lines = record.read_text().split("\n")[:-1] if record.exists() else []
    return json.loads(lines[-1])["step"] if lines else -1


def watch(process: psutil.Popen, record: Path, every: int) -> list[Sample]:
    """Yield a sample every `every` steps, half-way between two evaluations, until the process ends."""
    seen, due = list[Sample](), every
    while process.poll() is None:
        step = last_step(record)
        if step >= due and step % 500 not in range(50):
            held = process.memory_info()
            files = min(process.num_fds() for _ in range(5))  # ignore a checkpoint that is being written
            seen.append(Sample(step, held.rss, files, process.num_threads()))
            due += every
        time.sleep(0.05)
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--out_dir", type=Path, help="default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out_dir or Path(temporary) / "run"
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), *RECIPE]
        command += [f"--max_iters={arguments.steps}", f"--out_dir={folder}"]
        began = time.monotonic()
        process = psutil.Popen(command, stdout=subprocess.DEVNULL)
        seen = watch(process, folder / "metrics.jsonl", 1000)
        seconds = time.monotonic() - began
    print("   step  resident MiB  open files  threads")
    for step, resident, files, threads in seen:
        print(f"{step:7,}  {resident / 2**20:12.1f}  {files:10}  {threads:7}")
    first, last = seen[0], seen[-1]
    growth = last.resident / first.resident - 1
    print(f"{seconds:.0f} s; memory {growth:+.2%} since step {first.step:,}; open files {first.files} → {last.files}")
    return int(process.returncode != 0 or last.resident > first.resident * TOLERANCE or last.files != first.files)


if __name__ == "__main__":
    sys.exit(main())
