"""The accuracy of the predicted memory of a training step: formula, simulation and real steps, as Markdown.

    python benchmarks/memory_model.py                 on this machine's device (a card if there is one, else the CPU)
    python benchmarks/memory_model.py --shapes 400    and the formula against the simulation on more shapes

A real step is the training loop's own (hfgpt/train/loop.py). Its peak is that of the live allocations: on a CPU from
torch's profiler, on a card from torch.cuda.max_memory_allocated.
"""

from __future__ import annotations

import argparse
import random
import warnings
from collections.abc import Iterator
from typing import Any

warnings.simplefilter("ignore")

from hfgpt import config  # noqa: E402
from hfgpt.config import Config  # noqa: E402
from hfgpt.plan import memory, probe, simulate  # noqa: E402
from hfgpt.plan.survey import Survey  # noqa: E402

BASE = {"n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 128, "batch_size": 8}
REAL: list[tuple[dict[str, Any], int]] = [
    ({}, 330),
    ({}, 8192),
    ({"dropout": 0.1}, 330),
    ({"batch_size": 1}, 330),
    ({"batch_size": 1}, 8192),
    ({"batch_size": 2, "gradient_accumulation_steps": 4}, 8192),
    ({"n_layer": 2, "n_embd": 512}, 330),
    ({"block_size": 512, "batch_size": 2, "dropout": 0.2}, 330),
    ({"activation_checkpointing": True}, 330),
    ({"activation_checkpointing": True}, 8192),
    ({"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "dropout": 0.2}, 330),  # standard, batch 8
    ({"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 256, "batch_size": 1}, 50257),  # GPT-2 124M
]
# The range in which the formula is used; it is compared with the simulation over these.
SHAPES = {
    "n_layer": [1, 2, 4, 8, 12],
    "head": [16, 32, 64, 96],
    "n_head": [1, 2, 4, 6, 12],
    "block_size": [32, 64, 128, 256, 512, 1024],
    "batch_size": [1, 2, 4, 8, 16, 32],
    "vocabulary": [80, 330, 2000, 8192, 50257],
}


def measured(shape: Config, vocab_size: int) -> int:
    """Return the peak bytes of a real step."""
    run = probe.prepare(Survey(shape, vocab_size, "", None, None, False))
    try:
        return probe.peak_bytes(run)
    finally:
        run.accelerator.end_training()
        forget_accelerate()


def forget_accelerate() -> None:
    """Reset Accelerate, which keeps the precision for the process; the next step may have another."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def real_steps(kind: simulate.Kind) -> None:
    """Return the table of formula, simulation and real steps."""
    print("| recipe | vocabulary | dtype | measured MiB | simulation | formula |\n|---|--:|---|--:|--:|--:|")
    worst = [0.0, 0.0]
    for values, vocab_size in REAL:
        for dtype in ("float32", "bfloat16"):
            shape = config.build({**BASE, **values, "dtype": dtype}, "run")
            real = measured(shape, vocab_size)
            off = [
                predicted / real - 1
                for predicted in (
                    simulate.peak(shape, vocab_size, kind, dtype).bytes,
                    memory.estimate(shape, vocab_size, kind, dtype).peak,
                )
            ]
            worst = [max(a, abs(b)) for a, b in zip(worst, off, strict=True)]
            words = ", ".join(f"{key} {value}" for key, value in values.items()) or "as below"
            print(
                f"| {words} | {vocab_size:,} | {dtype} | {real / 2**20:,.1f} | {off[0]:+.2%} | {off[1]:+.2%} |",
                flush=True,
            )
    print(f"\nWorst: simulation {worst[0]:.2%}, formula {worst[1]:.2%}. Where not said otherwise: {BASE}.")


def drawn(count: int) -> Iterator[tuple[Config, int]]:
    """Return random shapes, the same at every call."""
    draw = random.Random(7)
    for _ in range(count):
        heads = draw.choice(SHAPES["n_head"])
        values = {key: draw.choice(SHAPES[key]) for key in ("n_layer", "block_size", "batch_size")}
        values |= {"n_head": heads, "n_embd": heads * draw.choice(SHAPES["head"])}
        values |= {"gradient_accumulation_steps": draw.choice([1, 1, 4])}
        switches = {"activation_checkpointing": draw.random() < 0.4, "dropout": draw.choice([0.0, 0.1])}
        yield config.build({**values, **switches}, "run"), draw.choice(SHAPES["vocabulary"])


def formula_against_simulation(count: int) -> None:
    """Return the table of the formula's errors, by device, precision and checkpointing."""
    errors: dict[tuple[str, str, str], list[float]] = {}
    for index, (shape, vocab_size) in enumerate(drawn(count)):
        kind: simulate.Kind = "cpu" if index % 2 else "accelerator"
        dtype = ("float32", "bfloat16")[index // 2 % 2]
        simulated = simulate.peak(shape, vocab_size, kind, dtype).bytes
        formula = memory.estimate(shape, vocab_size, kind, dtype).peak
        key = (kind, dtype, "checkpointed" if shape.activation_checkpointing else "plain")
        errors.setdefault(key, []).append(formula / simulated - 1)
    print("\n| device | dtype | | shapes | worst | mean of sizes |\n|---|---|---|--:|--:|--:|")
    for key in sorted(errors):
        off = errors[key]
        worst = max(off, key=abs)
        print(f"| {' | '.join(key)} | {len(off)} | {worst:+.2%} | {sum(map(abs, off)) / len(off):.2%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=200, help="shapes to hold the formula to the simulation on")
    count = parser.parse_args().shapes
    import torch

    real_steps("accelerator" if torch.cuda.is_available() else "cpu")
    formula_against_simulation(count)


if __name__ == "__main__":
    main()
