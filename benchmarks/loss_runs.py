"""The runs that the loss laws are fitted on: many small recipes trained in memory, one per line of a table.

    python benchmarks/loss_runs.py [--count 240] [--chinese FILE]      about 6 CPU-seconds a run; resumes

In:  texts that every machine has (the embedded Shakespeare, Python's language reference and standard library), and one
     of 300 Tang poems, of the course.
Out: benchmarks/results/loss_runs.csv. Losses depend only on the seed; CPU-seconds are those of one thread.
"""

from __future__ import annotations

import argparse
import gzip
import math
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import table

from hfgpt.config import Config, build
from hfgpt.data import encoding, tokenizer
from hfgpt.data.blocks import TokenStream
from hfgpt.model import sizes

TABLE = Path(__file__).parent / "results" / "loss_runs.csv"
CHINESE = str(Path(__file__).parents[1] / "docs" / "course" / "tang300.txt")
MOST_CODE = 2_000_000  # characters of the standard library


class Series(NamedTuple):
    """Limits of the runs numbered below `end`: their seconds, least steps, smallest batch and block.

    Their length follows from a speed (operations a second) and fixed costs (seconds a block and a step).
    """

    end: int
    shortest: float
    longest: float
    least_steps: int
    smallest: tuple[int, int]
    speed: float
    fixed: tuple[float, float]


SERIES = (
    Series(74, 1.5, 40, 60, (8, 32), 25e9, (4e-3, 5e-3)),
    Series(84, 4, 45, 150, (8, 64), 60e9, (1.5e-3, 3e-3)),
    Series(129, 2, 10, 100, (8, 32), 60e9, (1.5e-3, 3e-3)),
    Series(1_000_000, 1.5, 5, 100, (8, 32), 60e9, (1.5e-3, 3e-3)),
)
FRACTIONS = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85)  # of the run, at which it is evaluated


def text(name: str, chinese: str) -> str:
    """Return a text by its name in the table."""
    if name == "shakespeare":
        import hfgpt.data

        return gzip.decompress(next(Path(hfgpt.data.__file__).parent.glob("*.gz")).read_bytes()).decode()
    if name == "topics":
        from pydoc_data import topics

        return "\n\n".join(topics.topics.values())
    if name == "tang300":
        return Path(chinese).read_text(encoding="utf-8")
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    return "".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)[:MOST_CODE]


# How many characters of each text are taken.
LENGTHS = {
    "shakespeare": (20_000, 50_000, 100_000, 200_000, 500_000, 1_115_394, 2_000_000, 4_814_324),
    "topics": (20_000, 60_000, 150_000, 465_000),
    "code": (20_000, 70_000, 250_000, 800_000, 2_000_000),
    "tang300": (12_000, 29_000),
}


def draw(number: int) -> dict[str, Any]:
    """Draw the text and the recipe of a run; they depend only on its number."""
    if LONG_FROM <= number < LONG_FROM + len(LONG):
        return long(*LONG[number - LONG_FROM])
    rng = np.random.default_rng([2026, number])
    name = rng.choice(list(LENGTHS), p=[0.4, 0.2, 0.25, 0.15])
    heads, layers = int(rng.choice([2, 3, 4, 6, 8], p=[0.2, 0.2, 0.3, 0.2, 0.1])), int(rng.choice([1, 2, 3, 4, 6]))
    block, batch = int(rng.choice([32, 64, 128], p=[0.3, 0.5, 0.2])), int(rng.choice([8, 16, 32]))
    muon = bool(rng.random() < 0.7)
    width = 32 * heads
    series = next(series for series in SERIES if number < series.end)
    seconds = math.exp(rng.uniform(math.log(series.shortest), math.log(series.longest)))
    least, smallest, speed, fixed = series.least_steps, series.smallest, series.speed, series.fixed
    while (step := step_seconds(layers, width, block, batch, muon, speed, fixed)) > seconds / least and (
        batch > smallest[0] or block > smallest[1]
    ):
        batch, block = max(smallest[0], batch // 2), max(smallest[1], block // 2)  # fewer steps would say little
    steps = int(min(2500, max(least, seconds / step)))
    return {
        "text": str(name),
        "characters": int(rng.choice(LENGTHS[str(name)])),
        "n_layer": layers,
        "n_head": heads,
        "n_embd": width,
        "block_size": block,
        "batch_size": batch,
        "max_iters": steps,
        "optimizer": "muon" if muon else "adamw",
        "learning_rate": float(rng.choice([1.5e-3, 3e-3, 6e-3], p=[0.25, 0.5, 0.25])),
        "muon_learning_rate": float(rng.choice([0.015, 0.03, 0.06], p=[0.2, 0.6, 0.2])),
        "dropout": float(rng.choice([0.0, 0.1, 0.2], p=[0.7, 0.15, 0.15])),
        "weight_decay": float(rng.choice([0.1, 0.3], p=[0.8, 0.2])),
    }


# Longer runs of shapes that the dial chooses: text, characters, n_layer, n_embd, block_size, batch_size, max_iters.
LONG = (
    ("shakespeare", 4_814_324, 2, 128, 128, 8, 800),
    ("shakespeare", 1_115_394, 4, 128, 64, 16, 700),
    ("topics", 465_000, 3, 128, 64, 16, 500),
)
LONG_FROM = 129


def long(text: str, characters: int, layers: int, width: int, block: int, batch: int, steps: int) -> dict[str, Any]:
    """Return one of LONG, with Muon."""
    return {
        "text": text,
        "characters": characters,
        "n_layer": layers,
        "n_head": width // 32,
        "n_embd": width,
        "block_size": block,
        "batch_size": batch,
        "max_iters": steps,
        "optimizer": "muon",
        "learning_rate": 4e-3,
        "muon_learning_rate": 0.03,
        "dropout": 0.0,
        "weight_decay": 0.1,
    }


def step_seconds(
    layers: int, width: int, block: int, batch: int, muon: bool, speed: float, fixed: tuple[float, float]
) -> float:
    """Estimate how long one thread takes for a step, so that the runs do not take too long."""
    shape = build(
        {
            "n_layer": layers,
            "n_embd": width,
            "n_head": 1,
            "block_size": block,
            "optimizer": "muon" if muon else "adamw",
        },
        "run",
    )
    flops = batch * block * sizes.flops_per_token(shape, 100) + sizes.flops_per_update(shape, "cpu")
    return flops / speed + layers * fixed[0] + fixed[1]


def recipe(row: dict[str, Any]) -> Config:
    """Return the config of a drawn row; the values that all rows share are those of fast_cpu.yaml."""
    steps = row["max_iters"]
    fixed = {"beta2": 0.99, "muon_momentum": 0.9, "min_lr": 0.0, "warmup_iters": max(5, steps // 20), "eval_iters": 10}
    own = {key: value for key, value in row.items() if key in Config.model_fields}
    return build({**own, **fixed}, "run")


def encode(characters: str) -> tuple[TokenStream, TokenStream, int]:
    """Return the text as ids, the first nine tenths for training; the vocabulary is that of the tokenizer 'char'."""
    made = tokenizer.train_char([characters])
    ids = np.concatenate(encoding.encoder(made.backend_tokenizer.to_str())([characters]))
    cut = int(len(ids) * 0.9)
    return TokenStream([ids[:cut]]), TokenStream([ids[cut:]]), tokenizer.vocabulary_size(made)


def run(row: dict[str, Any], chinese: str) -> dict[str, Any]:
    """Train a drawn row; return the line of the table."""
    import torch

    from hfgpt.plan import trial

    torch.set_num_threads(1)
    config = recipe(row)
    train, val, vocabulary = encode(text(row["text"], chinese)[: row["characters"]])
    points = [max(1, round(share * config.max_iters)) for share in FRACTIONS]
    seen = trial.train(config, trial.Tokens(train, val, vocabulary), points)
    curve = " ".join(f"{step}:{loss:.4f}" for step, loss in zip(seen.steps, seen.val_losses, strict=True))
    return {
        **row,
        "vocabulary": vocabulary,
        "train_tokens": len(train),
        **table.learned(seen),
        "curve": curve,
        "cpu_ms_per_step": round(seen.cpu_seconds / config.max_iters * 1000, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--chinese", default=CHINESE)
    options = parser.parse_args()
    for number in sorted(set(range(options.count)) - table.numbers(TABLE)):
        line = {"number": number, **run(draw(number), options.chinese)}
        table.append(TABLE, line)
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
