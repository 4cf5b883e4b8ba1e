"""Timed steps of many shapes, and the coefficients by which hfgpt/plan/step_time.py prices a CPU step.

    python benchmarks/step_times.py --count 120     about two seconds per shape; resumes
    python benchmarks/step_times.py --fit           writes the coefficients into hfgpt/model/laws.json
    python benchmarks/step_times.py --elsewhere     each processor's steps by the law of the other ones, as it learns

Out: benchmarks/results/step_times.csv: the CPU time of the fastest step of a shape on one thread, since other work on
     the machine can only make a step slower; the kind of processor, and its speed, measured in the same minute. Run it
     on a kind of processor that the table has not got, and the law knows that one too.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_MMAP_THRESHOLD_": "1073741824"}  # as training sets it
if not ALLOCATOR.keys() <= os.environ.keys():  # glibc reads them when a process begins
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import table  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from hfgpt.base import hardware  # noqa: E402
from hfgpt.config import Config, build  # noqa: E402
from hfgpt.model import laws  # noqa: E402
from hfgpt.model.sizes import flops_per_token, flops_per_update  # noqa: E402
from hfgpt.plan import speed, step_time  # noqa: E402
from hfgpt.plan.speed import Speed  # noqa: E402

Array = NDArray[Any]
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
        "bfloat16_gflops": round(machine.bfloat16 / 1e9, 1),
        "gbytes": round(machine.bandwidth / 1e9, 2),
        "call_ns": round(machine.call * 1e9, 1),
    }


def fit() -> None:
    """Fit the law to the table; print each processor's errors, cross-validated.

    The law's coefficients are common to all processors. Each one has a correction of each of its speeds
    (speed.PARTS); those of the table's first one are zero.
    """
    rows = read()
    processors = list(dict.fromkeys(row["processor"] for row in rows))
    parts = {dtype: Part(dtype, processors, rows) for dtype in ("float32", "bfloat16")}
    errors = {dtype: np.zeros(len(part.seconds)) for dtype, part in parts.items()}
    for left_out in range(5):
        kept = {dtype: np.arange(len(part.seconds)) % 5 != left_out for dtype, part in parts.items()}
        weights, corrections = solve(parts, kept)
        for dtype, part in parts.items():
            errors[dtype][~kept[dtype]] = np.log(part.relative(corrections) @ weights[dtype])[~kept[dtype]]
    weights, corrections = solve(parts, {dtype: np.full(len(part.seconds), True) for dtype, part in parts.items()})
    out: dict[str, Any] = {}
    for dtype, part in parts.items():
        for number, processor in enumerate(processors):
            off = np.abs(errors[dtype][part.processor == number])
            print(f"{processor}, {dtype}: {len(off)} shapes, off by {np.median(off):.1%} at the median, "
                  f"{np.quantile(off, 0.95):.1%} at 95%, at most {off.max():.1%}")  # fmt: skip
        out[dtype] = [float(f"{weight:.4g}") for weight in weights[dtype]]
        out[f"{dtype} spread"] = float(f"{np.sqrt(np.mean(errors[dtype] ** 2)):.3g}")
    out["processors"] = {
        name: [round(float(value), 3) for value in own] for name, own in zip(processors, corrections, strict=True)
    }
    print(out["processors"])
    laws.write(step=out)


class Part:
    """The shapes of the table in one type."""

    def __init__(self, dtype: str, processors: list[str], rows: list[dict[str, Any]]) -> None:
        own = [row for row in rows if row["dtype"] == dtype]
        machines = {name: machine([row for row in rows if row["processor"] == name]) for name in processors}
        self.seconds = np.array([row["ms"] / 1000 for row in own])
        self.processor = np.array([processors.index(row["processor"]) for row in own])
        self.limits = step_time.limits(dtype)
        terms = [step_time.terms(config_of(row), row["vocab_size"], dtype, machines[row["processor"]]) for row in own]
        self._terms = np.array(terms) / self.seconds[:, None]

    def relative(self, corrections: Array) -> Array:
        """Return each term of each shape over the shape's measured time."""
        return self._terms * np.exp(corrections)[self.processor][:, self.limits]


def machine(rows: list[dict[str, Any]]) -> Speed:
    """Return the uncorrected speed of the machine that timed these rows: the best of all rounds."""
    best = {key: max(row[key] for row in rows) * 1e9 for key in ("gflops", "bfloat16_gflops", "gbytes")}
    call = min(row["call_ns"] for row in rows) / 1e9
    return Speed("", 0, best["gflops"], best["bfloat16_gflops"], 1, best["gbytes"], call, False)


def solve(parts: dict[str, Part], kept: dict[str, Array]) -> tuple[dict[str, Array], Array]:
    """Return the coefficients by type and the corrections by processor that fit the kept shapes best.

    The errors are relative; the coefficients are at least zero, and the two are fitted in turns.
    """
    from scipy.optimize import least_squares, nnls

    count = 1 + max(int(part.processor.max()) for part in parts.values())
    corrections = np.zeros((count, len(speed.PARTS)))
    for _turn in range(TURNS):
        weights = {
            dtype: nnls(part.relative(corrections)[kept[dtype]], np.ones(kept[dtype].sum()))[0]
            for dtype, part in parts.items()
        }

        def off(free: Array, weights: dict[str, Array] = weights) -> Array:
            tried = np.vstack([np.zeros(len(speed.PARTS)), free.reshape(count - 1, -1)])
            return np.concatenate(
                [(part.relative(tried) @ weights[dtype] - 1)[kept[dtype]] for dtype, part in parts.items()]
            )

        if count > 1:
            corrections[1:] = least_squares(off, corrections[1:].ravel()).x.reshape(count - 1, -1)
    return weights, corrections


TURNS = 40


# -------------------------------------------------------------------------------------- on a processor of another kind

TAUGHT, ORDERS = (0, 1, 3, 10, 30), 10  # shapes timed before the forecast; random orders of them


def elsewhere() -> None:
    """Print, for each processor, the errors of a law that was fitted without it and corrected by some of its steps."""
    rows = read()
    for left_out in dict.fromkeys(row["processor"] for row in rows):
        others = [row for row in rows if row["processor"] != left_out]
        names = list(dict.fromkeys(row["processor"] for row in others))
        parts = {dtype: Part(dtype, names, others) for dtype in ("float32", "bfloat16")}
        weights, corrections = solve(parts, {dtype: np.full(len(part.seconds), True) for dtype, part in parts.items()})
        laws.laws().step.update({dtype: weights[dtype].tolist() for dtype in weights})
        own = [row for row in rows if row["processor"] == left_out]
        first = replace(machine(own), corrections=np.mean(corrections, axis=0).tolist(),
                        covariance=np.diag(np.square(speed.UNKNOWN)).tolist())  # fmt: skip
        for taught in TAUGHT:
            errors: dict[str, list[float]] = {"float32": [], "bfloat16": []}
            for seed in range(ORDERS):
                order = np.random.default_rng(seed).permutation(len(own))
                known = first
                for number in order[:taught]:
                    row = own[number]
                    observed = (config_of(row), row["vocab_size"], row["dtype"], row["ms"] / 1000)
                    known = step_time.corrected(known, *observed)
                for number in order[max(TAUGHT) :]:
                    row = own[number]
                    said = step_time.step_seconds(config_of(row), row["vocab_size"], row["dtype"], known)
                    errors[row["dtype"]].append(abs(np.log(said / row["ms"] * 1000)))
            for dtype, off in errors.items():
                middle, most = np.expm1(np.quantile(off, [0.5, 0.95]))
                print(f"{left_out}, {taught} shapes, {dtype}: {middle:.0%} at the median, {most:.0%} at 95%")


def read() -> list[dict[str, Any]]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]


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
    parser.add_argument("--elsewhere", action="store_true")
    options = parser.parse_args()
    if options.elsewhere:
        elsewhere()
        return
    if options.fit:
        fit()
        return
    processor = hardware.processor_family() or platform.processor()
    for number in sorted(set(range(options.count)) - table.numbers(TABLE, processor=processor)):
        row = draw(number)
        line = {"processor": processor, "number": number, **row, **timed(row)}
        table.append(TABLE, line)
        print(line, flush=True)


if __name__ == "__main__":
    main()
