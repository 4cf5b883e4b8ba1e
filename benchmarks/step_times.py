"""Timed steps of many shapes, and the coefficients by which hfgpt/plan/laws.py prices a CPU step.

    python benchmarks/step_times.py --count 120     about two seconds per shape; resumes
    python benchmarks/step_times.py --fit           writes the coefficients into hfgpt/plan/laws.json

Out: benchmarks/results/step_times.csv: the CPU time of the fastest step of a shape on one thread, since other work on
     the machine can only make a step slower; and the machine's speed, measured in the same minute.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path
from typing import Any

ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_MMAP_THRESHOLD_": "1073741824"}  # as training sets it
if not ALLOCATOR.keys() <= os.environ.keys():  # glibc reads them when a process begins
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import table  # noqa: E402

from hfgpt.base import hardware  # noqa: E402
from hfgpt.config import Config, build  # noqa: E402
from hfgpt.model.sizes import flops_per_token, flops_per_update  # noqa: E402
from hfgpt.plan import laws, speed  # noqa: E402
from hfgpt.plan.speed import Speed  # noqa: E402

TABLE = Path(__file__).parent / "results" / "step_times.csv"
SECONDS = 0.8  # of CPU for the steps of a shape
LARGEST = 2e10  # operations of a step


def draw(number: int) -> dict[str, Any]:
    """Return a recipe's shape by its number."""
    rng = np.random.default_rng([7, number])
    size = int(rng.choice([16, 32, 64]))
    heads = int(rng.choice([1, 2, 3, 4, 6, 8, 12]))
    row = {
        "n_layer": int(rng.choice([1, 2, 3, 4, 6, 8])),
        "n_head": heads,
        "n_embd": heads * size,
        "block_size": int(rng.choice([32, 64, 128, 256, 512], p=[0.2, 0.3, 0.2, 0.2, 0.1])),
        "batch_size": int(rng.choice([4, 8, 12, 16, 32, 64])),
        "gradient_accumulation_steps": int(rng.choice([1, 2], p=[0.85, 0.15])),
        "optimizer": str(rng.choice(["adamw", "muon"])),
        "dropout": float(rng.choice([0.0, 0.1], p=[0.8, 0.2])),
        "vocab_size": int(rng.choice([100, 330, 1000, 3000, 8192], p=[0.2, 0.4, 0.15, 0.15, 0.1])),
        "dtype": str(rng.choice(["float32", "bfloat16"])),
    }
    while row["batch_size"] > 1 and cost(row) > LARGEST:
        row["batch_size"] //= 2
    while row["n_layer"] > 1 and cost(row) > LARGEST:
        row["n_layer"] //= 2
    return row


def cost(row: dict[str, Any]) -> float:
    """Return the arithmetic of a step."""
    config = config_of(row)
    return config.tokens_per_iter * flops_per_token(config, row["vocab_size"]) + flops_per_update(config, "cpu")


def config_of(row: dict[str, Any]) -> Config:
    values = {key: row[key] for key in row if key in Config.model_fields and key != "vocab_size"}
    return build({**values, "n_embd": row["n_embd"], "max_iters": 10_000}, "run")


def timed(row: dict[str, Any]) -> dict[str, float]:
    """Return the CPU time of the fastest step, in ms, and the machine's speed."""
    import torch

    from hfgpt.data.blocks import TokenStream
    from hfgpt.plan import trial

    torch.set_num_threads(1)
    config = config_of(row).model_copy(update={"eval_iters": 1})
    tokens = config.tokens_per_iter * 4 + config.block_size + 1
    stream = TokenStream([np.random.default_rng(0).integers(row["vocab_size"], size=tokens, dtype=np.uint32)])

    def keep_on(seen: trial.Trial) -> bool:
        return len(seen.cpu_times) < 4 or sum(seen.cpu_times[1:]) < SECONDS

    times = trial.train(config, trial.Tokens(stream, stream, row["vocab_size"]), [], keep_on).cpu_times[1:]
    machine = speed.measure()
    return {
        "ms": round(min(times) * 1000, 4),
        "median_ms": round(float(np.median(times)) * 1000, 4),
        "gflops": round(machine.float32 / 1e9, 1),
        "gbytes": round(machine.bandwidth / 1e9, 2),
        "call_ns": round(machine.call * 1e9, 1),
    }


def fit(ratio: float) -> None:
    """Fit relative errors by least squares with coefficients of at least zero; print each type's errors."""
    from scipy.optimize import nnls

    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    # One machine made the table: its speed is the best of all rounds.
    machine = Speed("", 0, max(float(row["gflops"]) for row in rows) * 1e9, 1,
                    max(float(row["gbytes"]) for row in rows) * 1e9,
                    min(float(row["call_ns"]) for row in rows) / 1e9, False, ratio)  # fmt: skip
    out: dict[str, Any] = {}
    for dtype in ("float32", "bfloat16"):
        own = [row for row in rows if row["dtype"] == dtype]
        seconds = np.array([float(row["ms"]) / 1000 for row in own])
        typed = [{key: _number(value) for key, value in row.items()} for row in own]
        matrix = np.array([laws.terms(config_of(row), row["vocab_size"], dtype, machine) for row in typed])
        weights, _ = nnls(matrix / seconds[:, None], np.ones(len(own)))
        errors = []
        for left_out in range(5):  # cross-validated
            kept = np.arange(len(own)) % 5 != left_out
            part, _ = nnls((matrix / seconds[:, None])[kept], np.ones(kept.sum()))
            errors += list((matrix @ part / seconds)[~kept])
        off = np.abs(np.log(errors))
        print(f"{dtype}: {len(own)} shapes, off by {np.median(off):.1%} median, {np.quantile(off, 0.95):.1%} at 95%")
        print("  ", dict(zip(laws.TERMS, weights.round(3), strict=True)))
        out[dtype] = [float(f"{weight:.4g}") for weight in weights]
        out[f"{dtype} spread"] = float(f"{np.sqrt(np.mean(off**2)):.3g}")
    laws.write(step=out)


def _number(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--fit", action="store_true")
    options = parser.parse_args()
    if options.fit:
        fit(speed.this_machine().bfloat16_ratio or hardware.usual_bfloat16_ratio())
        return
    for number in sorted(set(range(options.count)) - table.numbers(TABLE)):
        row = draw(number)
        line = {"number": number, **row, **timed(row)}
        table.append(TABLE, line)
        print(line, flush=True)


if __name__ == "__main__":
    main()
