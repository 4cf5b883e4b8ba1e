"""Where the parts of benchmarks/gpu.py run, and what they read from a run's record.

In:  a device, a checkout of nanoGPT, a deadline.
Out: :class:`Bench`, which runs hfgpt's own scripts, each in its own process; figures of their records.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peers
import watch
from peers import Shape, Tokens
from watch import ROOT

GPT2 = Shape(n_layer=12, n_head=12, n_embd=768, block_size=1024, batch_size=12)
STANDARD = ROOT / "recipes" / "standard.yaml"
LOGGED = ["--eval_interval=100000", "--eval_iters=1"]
QUIET = [*LOGGED, "--log_interval=1", "--sample_prompt="]  # for a recipe; random tokens are not sampled anyway
# On a CPU, which only tries the command itself, a model that trains in a second.
TINY = {"--n_layer": 2, "--n_head": 2, "--n_embd": 16, "--block_size": 16, "--batch_size": 4}


@dataclass
class Row:
    """One figure: its name, its value, its goal, and whether it meets it; None without a goal."""

    what: str
    seen: float | str
    unit: str = ""
    wanted: str = ""
    holds: bool | None = None


@dataclass
class Bench:
    """Where the parts run, and on which device."""

    scratch: Path
    device: str
    nanogpt: Path | None
    deadline: float  # time.monotonic() at which everything is to end

    @property
    def trial(self) -> bool:
        """Whether this is a CPU, on which the parts are cut to a minimum."""
        return self.device == "cpu"

    def run(self, *command: str | Path, cwd: Path = ROOT) -> watch.Finished:
        """Run a Python program until it ends, or until all time is used up.

        A compilation that does not work is an error, and so are training's other warnings about `compile`.
        """
        env = watch.environment(None, self.scratch) | {"HFGPT_LANG": "en", "PYTHONWARNINGS": "error:compile"}
        return watch.run([sys.executable, *command], env, cwd, limit=self.deadline - time.monotonic())

    def train(self, name: str, *flags: str) -> list[dict[str, Any]]:
        """Run scripts/train.py with these arguments in its own folder; return its records."""
        return self.launch(name, (ROOT / "scripts" / "train.py",), *flags)[0]

    def launch(self, name: str, program: tuple[str | Path, ...], *flags: str) -> tuple[list[dict[str, Any]], list[str]]:
        """Train by another program; return its records, and what it printed."""
        folder = self.scratch / name
        done = self.run(*program, *self.cut(flags), f"--device={self.device}", f"--out_dir={folder}")
        return peers.records(folder / "metrics.jsonl"), done.lines

    def cut(self, flags: Sequence[str]) -> list[str]:
        """Return the arguments; on a CPU with a tiny shape in place of theirs."""
        if not self.trial:
            return list(flags)
        return [flag for flag in flags if flag.partition("=")[0] not in TINY] + [f"{k}={v}" for k, v in TINY.items()]

    def inside(self, name: str, *words: str) -> dict[str, Any]:
        """Return what on_card.py measures in one process."""
        done = self.run(ROOT / "benchmarks" / "on_card.py", name, f"--device={self.device}", *words)
        seen: dict[str, Any] = watch.answer(done.lines)
        return seen

    @functools.cached_property
    def gpt2(self) -> Tokens:
        """Random tokens of GPT-2's vocabulary, for both sides: arithmetic and memory do not depend on the text.

        nanoGPT then takes its own vocabulary of 50,304, which is faster on a card.
        """
        drawn = np.random.default_rng(0).integers(peers.GPT2_VOCABULARY, size=(2, 400_000)).astype(np.uint16)
        names = [f"<{i}>" for i in range(peers.GPT2_VOCABULARY)]
        tokens = peers.write_tokens(
            self.scratch, "gpt2", drawn[0], drawn[1][: 40 * GPT2.block_size], names
        )  # few, since evaluate.py reads all
        (self.scratch / "nanoGPT" / "data" / tokens.nanogpt / "meta.pkl").unlink()
        return tokens

    @functools.cached_property
    def first_loss(self) -> float:
        """The standard recipe's first loss on a CPU, in float32."""
        folder = self.scratch / "standard-cpu"
        flags = [*self.cut(still()), "--device=cpu", "--dtype=float32", "--max_iters=1", f"--out_dir={folder}"]
        self.run(ROOT / "scripts" / "train.py", *flags)
        return losses(peers.records(folder / "metrics.jsonl"))[0]


def still() -> list[str]:
    """Return the standard recipe without what would make two runs of it differ."""
    return [str(STANDARD), "--dropout=0", "--warmup_iters=0", *QUIET]


def losses(records: list[dict[str, Any]]) -> list[float]:
    """Return the training losses, in order."""
    return [line["train_loss"] for line in records if "train_loss" in line]


def speed(records: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median seconds of a step in the second half, when the model is compiled and warm, and the peak memory.

    As with nanoGPT's lines, the time is that from one record to the next.
    """
    steps, seconds = [line for line in records if "tokens_per_second" in line], peers.our_steps(records)
    late = steps[len(steps) // 2 :]
    out = {
        "seconds": statistics.median(seconds[len(seconds) // 2 :]),
        "memory_bytes": max(line["memory_bytes"] for line in steps),
    }
    if mfu := [line["mfu"] for line in late if "mfu" in line]:
        out["mfu"] = statistics.median(mfu)
    return out


def gap(a: list[float], b: list[float]) -> float:
    """Return the largest difference of two runs' losses."""
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def delays(records: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Return the seconds of each evaluation, and those from an evaluation's record to the end of the next step.

    In the latter the checkpoint is written and the model exported; a run must record each step.
    """
    evaluations, afterwards = list[float](), list[float]()
    for before, line in itertools.pairwise(records):
        if "val_loss" in line and "train_loss" in before:
            evaluations.append(line["seconds"] - before["seconds"])
        if "val_loss" in before and "train_loss" in line and line["step"] > 1:
            afterwards.append(line["seconds"] - before["seconds"])
    return evaluations, afterwards


@functools.cache
def card_name() -> str:
    """Return the card's name by torch; "" without one."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
