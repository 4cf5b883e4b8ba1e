"""Fit the loss laws to the table of runs, and say how far off they are on texts that they have not seen.

    python benchmarks/loss_laws.py [--chinese FILE]

In:  benchmarks/results/loss_runs.csv (loss_runs.py), the runs in tests/fixtures/curves, and a few that were published.
Out: the coefficients in hfgpt/plan/laws.json; on the screen the errors, each text left out in turn.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from loss_runs import CHINESE, TABLE, recipe, text

from hfgpt.config import Config, build
from hfgpt.plan import laws, loss, ngrams
from hfgpt.plan.survey import Statistics

# Each coefficient begins at its prior, and may leave it by its deviation (of the logarithm).
PRIORS = {
    "floor": (0.7, 0.3), "floor data": (0.05, 0.7),
    "a": (0.15, 0.7), "alpha": (0.3, 0.3),
    "b": (0.12, 0.7), "beta": (0.35, 0.3),
    "c": (0.1, 0.7), "gamma": (0.7, 0.4),
    "shape": (0.005, 1.0), "dropped": (0.1, 1.0),
    "muon steps": (1.8, 0.5), "muon tokens": (1.5, 0.5), "repeats": (15.0, 0.5), "bend": (1.1, 0.2),
    "overfit": (1.0, 1.0), "overfit power": (1.5, 0.3), "onset size": (0.3, 0.5), "onset sharp": (6.0, 0.5),
    "onset dropout": (1.0, 0.7),
    "adamw rate cost": (0.05, 0.5), "muon rate cost": (0.05, 0.5), "embedding rate cost": (0.02, 0.5),
    "embedding rate": (4e-3, 0.3),
}  # fmt: skip
# These may be of either sign: prior and deviation themselves.
SIGNED = {
    "adamw rate": (float(np.log(4e-3)), 0.5), "adamw rate steps": (0.1, 0.07), "adamw rate width": (0.4, 0.15),
    "block": (0.05, 0.1), "block trained": (-0.03, 0.05), "muon trained": (0.0, 0.1), "size trained": (-0.03, 0.05),
    "onset": (0.8, 0.4),
    "muon rate": (float(np.log(0.03)), 0.4), "muon rate steps": (0.1, 0.07), "muon rate width": (0.1, 0.1),
}  # fmt: skip
NOISE = 0.03  # nats: of a loss over the blocks that a row was evaluated on
TEXT = 0.1  # nats: by which texts differ from the law, about
SHORT = 150  # steps, below which a run counts half: nobody plans such runs

CURVES = Path(__file__).parents[1] / "tests" / "fixtures" / "curves"

# Longer runs on tiny Shakespeare, a text of the embedded one's kind: nanoGPT's README (two recipes), and
# recipes/fast_cpu.yaml as its head says. Text, characters, what differs from fast_cpu's values, loss.
PUBLISHED: list[tuple[dict[str, Any], float]] = [
    ({"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 16, "max_iters": 400,
      "optimizer": "muon", "learning_rate": 3e-3, "muon_learning_rate": 0.03}, 1.856),
    ({"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12, "max_iters": 2000,
      "learning_rate": 1e-3}, 1.8815),
    ({"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 64, "max_iters": 5000,
      "learning_rate": 1e-3, "dropout": 0.2}, 1.4697),
]  # fmt: skip
TINY = ("shakespeare", 1_115_394, 65)  # characters, distinct ones


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


def others(measured: Callable[[str, int], Statistics]) -> list[tuple[Config, int, int, Statistics, float]]:
    """The examples that loss_runs.py did not make; all of them Shakespeare."""
    out = []
    for folder in sorted(CURVES.glob("healthy.*")) + sorted(CURVES.glob("overfitting.*")):
        values = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        length = values.pop("slice", 0) or int(folder.name.partition(".")[2].replace("k", "000")) if (
            folder.name.startswith("overfitting.")) else 4_814_324  # fmt: skip
        values.pop("dataset", None)
        losses = [
            record["val_loss"]
            for record in map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
            if "val_loss" in record
        ]
        config = build(values, "run")
        if config.lr_schedule == "cosine" and config.grad_clip:
            out.append((config, 330, length * 9 // 10, measured("shakespeare", length), losses[-1]))
    name, length, distinct = TINY
    for values, ends in PUBLISHED:
        out.append((build(values, "run"), distinct + 256, length * 9 // 10, measured(name, length), ends))
    return out


def unpack(vector: np.ndarray) -> dict[str, float]:
    law = {
        key: prior * np.exp(deviation * v) for v, (key, (prior, deviation)) in zip(vector, PRIORS.items(), strict=False)
    }
    rest = vector[len(PRIORS) :]
    law |= {key: prior + deviation * v for v, (key, (prior, deviation)) in zip(rest, SIGNED.items(), strict=True)}
    return law


def pack(law: Mapping[str, float]) -> np.ndarray:
    """The inverse of :func:`unpack`."""
    positive = [np.log(law[key] / prior) / deviation for key, (prior, deviation) in PRIORS.items()]
    return np.array(positive + [(law[key] - prior) / deviation for key, (prior, deviation) in SIGNED.items()])


def fit(examples: list[tuple[Config, int, int, Statistics, float]], start: np.ndarray | None = None) -> np.ndarray:
    """Coefficients in units of their deviations; robust to single runs.

    Each text may differ from the law by an amount of its own, which is fitted beside it and then left away.
    """
    from scipy.optimize import least_squares

    def errors(vector: np.ndarray) -> np.ndarray:
        law = unpack(vector[:known])
        off = np.array([loss.predict(law, *example[:4]) - example[4] for example in examples])
        own = vector[known:] * TEXT
        return np.concatenate([(off + own[group]) / scale, vector])

    scale = np.array([NOISE if example[0].max_iters >= SHORT else 2 * NOISE for example in examples])
    known = len(PRIORS) + len(SIGNED)
    texts, group = np.unique([str(example[3].orders) for example in examples], return_inverse=True)
    begin = np.zeros(known + len(texts))
    begin[:known] = 0 if start is None else start
    most = 250 if start is None else 20
    return least_squares(errors, begin, loss="soft_l1", f_scale=1.5, max_nfev=most, x_scale=1.0).x[:known]


def after_trials(table: list[dict[str, Any]], errors: np.ndarray) -> dict[str, float]:
    """How much of a short run's error a longer run on the same text shares, and what is then left of its own."""
    pairs = []
    for i, short in enumerate(table):
        for j, long in enumerate(table):
            same = (short["text"], short["characters"]) == (long["text"], long["characters"])
            seen = [row["max_iters"] * row["batch_size"] * row["block_size"] for row in (short, long)]
            if same and seen[1] > 2 * seen[0]:
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
    parser.add_argument("--afresh", action="store_true", help="begin at the priors instead of the shipped coefficients")
    options = parser.parse_args()

    @cache
    def measured(name: str, characters: int) -> Statistics:
        return ngrams.measure(text(name, options.chinese)[:characters])

    table = rows()
    examples = [
        (recipe(row), row["vocabulary"], row["train_tokens"], measured(row["text"], row["characters"]), row["val_loss"])
        for row in table
    ]
    more = others(measured)
    whole = fit(examples + more, None if options.afresh else pack(laws.laws().loss))
    law = unpack(whole)
    for example in more:
        if abs(loss.predict(law, *example[:4]) - example[4]) > 0.1:
            print("  far off:", example[0].model_dump(include={"n_layer", "n_embd", "max_iters"}), example[4])
    inside = np.array([loss.predict(law, *example[:4]) - example[4] for example in examples])
    outside, foreseen = np.zeros(len(examples)), np.zeros(len(examples), dtype=bool)
    groups = sorted({(row["text"], row["characters"]) for row in table})
    for fold in range(4):
        held = {group for index, group in enumerate(groups) if index % 4 == fold}
        kept = [e for e, row in zip(examples, table, strict=True) if (row["text"], row["characters"]) not in held]
        part = unpack(fit(kept + more, whole)) | {"spread": 0.0, "spread overfitting": 0.0}
        for index, (example, row) in enumerate(zip(examples, table, strict=True)):
            if (row["text"], row["characters"]) in held:
                said = loss.by_law(part, *example[:4])
                outside[index], foreseen[index] = said.loss - example[4], said.overfits
    off = np.abs(outside)
    overfitted = np.array([row["val_loss"] > row["best_val_loss"] + loss.OVERFITS for row in table])
    usual = np.array([row["max_iters"] >= SHORT for row in table]) & ~overfitted
    print(f"{len(table)} runs; those of {SHORT} steps and more, not overfitted: "
          f"{np.median(np.abs(inside[usual])):.3f} nats median on texts that were fitted")  # fmt: skip
    print(f"on texts that were not: median {np.median(off[usual]):.3f}, 95% {np.quantile(off[usual], 0.95):.3f}; "
          f"overfitted ({overfitted.sum()}): median {np.median(off[overfitted]):.3f}")  # fmt: skip
    print(f"overfitting foreseen in {np.sum(foreseen & overfitted)} of {overfitted.sum()} where it happened, said in "
          f"{np.sum(foreseen & ~overfitted)} of {np.sum(~overfitted)} where it did not")  # fmt: skip
    for name in sorted({row["text"] for row in table}):
        own = np.array([o for o, u, row in zip(outside, usual, table, strict=True) if u and row["text"] == name])
        print(f"  {name}: {len(own)} runs, mean {own.mean():+.3f}, deviation {own.std():.3f}")
    law["spread"] = float(np.quantile(off[usual], 0.95) / loss.WIDTH)
    law["spread overfitting"] = float(np.quantile(off[overfitted], 0.9) / loss.WIDTH)
    law |= after_trials([row for row, u in zip(table, usual, strict=True) if u], outside[usual])
    laws.write(loss={key: float(f"{value:.4g}") for key, value in law.items()})


if __name__ == "__main__":
    main()
