"""Fit the loss laws to the table of runs, and say how far off they are on texts that they have not seen.

    python benchmarks/loss_laws.py [--chinese FILE]

In:  benchmarks/results/loss_runs.csv (loss_runs.py).
Out: the coefficients in hfgpt/plan/laws.json; on the screen the errors, each text left out in turn.
"""

from __future__ import annotations

import argparse
import csv
from functools import cache
from typing import Any

import numpy as np
from loss_runs import CHINESE, TABLE, recipe, text

from hfgpt.config import Config
from hfgpt.plan import laws, loss, ngrams
from hfgpt.plan.statistics import Statistics

# Each coefficient begins at its prior, and may leave it by its deviation (of the logarithm).
PRIORS = {
    "floor": (0.7, 0.3), "floor data": (0.05, 0.7),
    "a": (0.15, 0.7), "alpha": (0.3, 0.3),
    "b": (0.12, 0.7), "beta": (0.35, 0.3),
    "c": (0.1, 0.7), "gamma": (0.7, 0.4),
    "d": (0.03, 0.7), "delta": (0.5, 0.5),
    "shape": (0.005, 1.0), "dropped": (0.1, 1.0),
    "muon steps": (1.8, 0.5), "muon tokens": (1.5, 0.5), "repeats": (15.0, 0.5), "bend": (1.1, 0.2),
    "overfit": (0.15, 1.0), "onset": (15.0, 1.0), "onset size": (0.4, 0.5), "onset dropout": (5.0, 0.7),
    "adamw rate cost": (0.05, 1.0), "muon rate cost": (0.05, 1.0), "embedding rate cost": (0.02, 1.0),
    "embedding rate": (3e-3, 0.7),
}  # fmt: skip
# These may be of either sign: prior and deviation themselves.
SIGNED = {
    "adamw rate": (float(np.log(4e-3)), 0.5), "adamw rate steps": (0.1, 0.15), "adamw rate width": (0.5, 0.3),
    "muon rate": (float(np.log(0.03)), 0.4), "muon rate steps": (0.1, 0.15), "muon rate width": (0.1, 0.2),
}  # fmt: skip
NOISE = 0.03  # nats: of a loss over the blocks that a row was evaluated on


def rows() -> list[dict[str, Any]]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    whole = {"characters", "n_layer", "n_head", "n_embd", "block_size", "batch_size", "max_iters", "vocabulary",
             "train_tokens"}  # fmt: skip
    words = {"text", "optimizer", "curve"}
    return [
        {key: value if key in words else int(value) if key in whole else float(value) for key, value in line.items()}
        for line in lines
    ]


def unpack(vector: np.ndarray) -> dict[str, float]:
    law = {
        key: prior * np.exp(deviation * v) for v, (key, (prior, deviation)) in zip(vector, PRIORS.items(), strict=False)
    }
    rest = vector[len(PRIORS) :]
    law |= {key: prior + deviation * v for v, (key, (prior, deviation)) in zip(rest, SIGNED.items(), strict=True)}
    return law


def fit(examples: list[tuple[Config, int, int, Statistics, float]], start: np.ndarray | None = None) -> np.ndarray:
    """Coefficients in units of their deviations; robust to single runs."""
    from scipy.optimize import least_squares

    def errors(vector: np.ndarray) -> np.ndarray:
        law = unpack(vector)
        off = [loss.predict(law, *example[:4]) - example[4] for example in examples]
        return np.concatenate([np.array(off) / NOISE, vector])

    begin = np.zeros(len(PRIORS) + len(SIGNED)) if start is None else start
    return least_squares(errors, begin, loss="soft_l1", f_scale=1.5, max_nfev=60).x


def after_trials(table: list[dict[str, Any]], errors: np.ndarray) -> dict[str, float]:
    """How much of a short run's error a longer run on the same text shares, and what is then left of its own."""
    pairs = []
    for i, short in enumerate(table):
        for j, long in enumerate(table):
            same = (short["text"], short["characters"]) == (long["text"], long["characters"])
            seen = [row["max_iters"] * row["batch_size"] * row["block_size"] for row in (short, long)]
            if same and seen[1] > 2 * seen[0] and abs(errors[i]) < 1 and abs(errors[j]) < 1:
                pairs.append((errors[i], errors[j]))
    short_errors, long_errors = np.array(pairs).T
    kept = float(np.clip(np.median(long_errors * np.sign(short_errors)) / np.median(np.abs(short_errors)), 0.2, 1.0))
    left = np.abs(long_errors - kept * short_errors)
    print(f"{len(pairs)} pairs: {kept:.2f} of a trial's error is kept, {np.median(left):.3f} left at the median, "
          f"{np.quantile(left, 0.95):.3f} at 95%")  # fmt: skip
    return {"offset kept": kept, "spread after trials": float(np.quantile(left, 0.95) / loss.WIDTH)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chinese", default=CHINESE)
    options = parser.parse_args()

    @cache
    def measured(name: str, characters: int) -> Statistics:
        return ngrams.measure(text(name, options.chinese)[:characters])

    table = rows()
    examples = [
        (recipe(row), row["vocabulary"], row["train_tokens"], measured(row["text"], row["characters"]), row["val_loss"])
        for row in table
    ]
    whole = fit(examples)
    law = unpack(whole)
    inside = np.array([loss.predict(law, *example[:4]) - example[4] for example in examples])
    outside = np.zeros(len(examples))
    groups = sorted({(row["text"], row["characters"]) for row in table})
    for fold in range(6):
        held = {group for index, group in enumerate(groups) if index % 6 == fold}
        kept = [e for e, row in zip(examples, table, strict=True) if (row["text"], row["characters"]) not in held]
        part = unpack(fit(kept, whole))
        for index, (example, row) in enumerate(zip(examples, table, strict=True)):
            if (row["text"], row["characters"]) in held:
                outside[index] = loss.predict(part, *example[:4]) - example[4]
    off = np.abs(outside)
    print(f"{len(table)} runs; on texts that were fitted: {np.median(np.abs(inside)):.3f} nats median")
    print(f"on texts that were not: median {np.median(off):.3f}, 95% {np.quantile(off, 0.95):.3f}")
    for name in sorted({row["text"] for row in table}):
        own = np.array([o for o, row in zip(outside, table, strict=True) if row["text"] == name])
        print(f"  {name}: {len(own)} runs, mean {own.mean():+.3f}, deviation {own.std():.3f}")
    law["spread"] = float(np.quantile(off, 0.95) / loss.WIDTH)
    law |= after_trials(table, outside)
    laws.write(loss={key: float(f"{value:.4g}") for key, value in law.items()})


if __name__ == "__main__":
    main()
