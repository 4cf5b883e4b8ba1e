"""Runs and short trials of the same recipes: how well a trial predicts the run, and a curve its end.

    python benchmarks/loss_pairs.py --seconds 200        draws and trains for so long; resumes where the table ends
    python benchmarks/loss_pairs.py --text FILE …        the same on stretches of these files

In:  stretches of texts that every machine has or the project ships, or of any files; recipes at the dial's rates, or at
     usual ones.
Out: benchmarks/results/loss_pairs.csv: one line per recipe, with the text's statistics, so that a fit needs no text.

Losses depend only on the seed, so a busy machine gives the same table.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import table
from loss_runs import encode, step_seconds

from hfgpt.config import Config, build
from hfgpt.data import ngrams
from hfgpt.plan import grid

HERE = Path(__file__).parent
TABLE = HERE / "results" / "loss_pairs.csv"
CHINESE = HERE.parent / "docs" / "course" / "tang300.txt"
LENGTHS = (40_000, 160_000, 320_000, 640_000, 2_000_000)  # characters, or as many as the text has
FRACTIONS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the run, at which it is evaluated
TRIALS = (0.025, 0.05, 0.1)  # of its steps; 0.03, 0.07 and 0.1 in the rows before 60
# Seconds of a run, about, as a learner's dial plans them. The rows before 60 took 4 to 40: a tenth of that says little.
SHORTEST, LONGEST = 30.0, 100.0
SHAPE = ("n_layer", "n_head", "n_embd", "block_size", "batch_size", "max_iters", "optimizer", "learning_rate",
         "muon_learning_rate", "dropout")  # fmt: skip


def text(name: str) -> str:
    """Return a text by its name in the table, or by its path."""
    if os.sep in name:
        return Path(name).read_text(encoding="utf-8")
    if name == "shakespeare":
        import hfgpt.data

        return gzip.decompress(next(Path(hfgpt.data.__file__).parent.glob("*.gz")).read_bytes()).decode()
    if name == "topics":
        from pydoc_data import topics

        return "\n\n".join(topics.topics.values())
    if name == "tang300":
        return CHINESE.read_text(encoding="utf-8")
    if name == "code":
        files = sorted(Path(os.__file__).parent.glob("*.py"))
    else:
        files = sorted((HERE.parent / "docs" / name.removeprefix("docs-")).glob("*.md"))
    return "".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)


TEXTS = ("shakespeare", "topics", "code", "tang300", "docs-en", "docs-zh")


def draw(number: int, texts: Sequence[str] = TEXTS) -> dict[str, Any]:
    """Draw a stretch of one of the texts and a recipe; they depend only on the number and the texts."""
    rng = np.random.default_rng([15, number])
    while True:
        heads = int(rng.choice([2, 3, 4, 6]))
        row = {
            "text": texts[number % len(texts)],
            "characters": int(rng.choice(LENGTHS)),
            "from": round(float(rng.random()), 4),
            "n_layer": int(rng.choice([1, 2, 3, 4])),
            "n_head": heads,
            "n_embd": 32 * heads,
            "block_size": int(rng.choice([32, 64, 128])),
            "batch_size": int(rng.choice([8, 16, 32])),
            "max_iters": int(np.exp(rng.uniform(np.log(600), np.log(8000)))),
            "optimizer": "muon" if rng.random() < 0.75 else "adamw",
            "dropout": float(rng.choice([0.0, 0.1, 0.2], p=[0.7, 0.15, 0.15])),
        }
        muon = row["optimizer"] == "muon"
        shape = (row["n_layer"], row["n_embd"], row["block_size"], row["batch_size"], muon)
        seconds = row["max_iters"] * step_seconds(*shape, speed=90e9, fixed=(1e-3, 2e-3))
        if SHORTEST < seconds < LONGEST:
            break
    start = recipe(row | {"learning_rate": 1e-3, "muon_learning_rate": 0.03})
    rates = grid.rates_for(start, row["characters"] * 9 // 10)
    if rng.random() < 0.3:  # as a person sets them
        rates = {"learning_rate": float(rng.choice([1e-3, 3e-3]))}
    return row | {"muon_learning_rate": 0.03} | rates


def recipe(row: dict[str, Any], steps: int | None = None) -> Config:
    """Return the config of a row, or of a trial of it."""
    own = {key: row[key] for key in SHAPE} | {"max_iters": steps or row["max_iters"]}
    fixed = {"beta2": 0.99, "muon_momentum": 0.9, "min_lr": 0.0, "eval_iters": 20, "tokenizer": "char"}
    return build({**own, **fixed, "warmup_iters": max(1, own["max_iters"] // 20)}, "run")


def run(row: dict[str, Any]) -> dict[str, Any]:
    """Train a row and its trials; return the line of the table."""
    import torch

    from hfgpt.plan import trial

    torch.set_num_threads(1)
    whole = text(row["text"])
    length = min(row["characters"], len(whole))
    start = int(row["from"] * (len(whole) - length))
    stretch = whole[start : start + length]
    train, val, vocabulary = encode(stretch)
    tokens = trial.Tokens(train, val, vocabulary)
    config = recipe(row)
    points = [max(1, round(share * config.max_iters)) for share in FRACTIONS]
    seen = trial.train(config, tokens, points)
    curve = " ".join(f"{step}:{loss:.4f}" for step, loss in zip(seen.steps, seen.val_losses, strict=True))
    tried = []
    for share in TRIALS:
        short = recipe(row, max(grid.LEAST_STEPS, round(share * config.max_iters)))
        if (tried and tried[-1].startswith(f"{short.max_iters}:")) or short.max_iters > 0.2 * config.max_iters:
            continue
        tried.append(f"{short.max_iters}:{trial.train(short, tokens, []).val_losses[-1]:.4f}")
    return {
        **row,
        "text": Path(row["text"]).stem,
        "characters": length,
        "orders": " ".join(map(str, ngrams.measure(stretch)[0])),
        "vocabulary": vocabulary,
        "train_tokens": len(train),
        **table.learned(seen),
        "curve": curve,
        "trials": " ".join(tried),
        "seconds": round(sum(seen.times), 2),
    }


def rows() -> list[dict[str, Any]]:
    """Return the lines of the table: numbers as numbers, curves and trials as pairs of a step and a loss."""
    out = []
    with TABLE.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            row: dict[str, Any] = {}
            for key, value in line.items():
                if key in ("text", "optimizer"):
                    row[key] = value
                elif key in ("curve", "trials"):
                    row[key] = [(int(s), float(x)) for s, x in (pair.split(":") for pair in value.split())]
                elif key == "orders":
                    row[key] = tuple(map(float, value.split()))
                else:
                    row[key] = float(value) if "." in value or "e" in value else int(value)
            out.append(row)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--text", action="append", help="a file, or one of the usual texts; may be repeated")
    options = parser.parse_args()
    own = [name if name in TEXTS else str(Path(name).resolve()) for name in options.text or []]
    texts = own or TEXTS
    ends = time.monotonic() + options.seconds
    number = max(table.numbers(TABLE), default=-1) + 1
    while time.monotonic() < ends:
        line = {"number": number, **run(draw(number, texts))}
        table.append(TABLE, line)
        print(line, file=sys.stderr, flush=True)
        number += 1


if __name__ == "__main__":
    main()
