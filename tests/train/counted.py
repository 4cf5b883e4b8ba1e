"""scripts/train.py, which says how many numbers its processes have exchanged; they ask each other every 100 steps.

The clock of the time budget is that of a machine whose steps take 30 ms, and 40 ms from step 100 on.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist

from hfgpt.commands import run
from hfgpt.train import horizon, loop, meter, stop

gathers, now = [0], [0.0]


def counting(*arguments: Any, _real: Any = dist.all_gather, **options: Any) -> Any:
    gathers[0] += 1
    return _real(*arguments, **options)


def timed(at: Any, *rest: Any, _real: Any = loop.train_step) -> Any:
    now[0] += 0.03 if at.progress.step < 100 else 0.04
    return _real(at, *rest)


def telling(at: Any, *rest: Any, _real: Any = loop.loop) -> int:
    gathers[0] = 0
    reason: int = _real(at, *rest)
    if os.environ["RANK"] == "0":
        print(f"gathers {gathers[0]}", flush=True)
    return reason


if __name__ == "__main__":
    stop.BETWEEN_QUESTIONS = 1e6
    horizon.time = meter.time = SimpleNamespace(monotonic=lambda: now[0])
    dist.all_gather, loop.loop, loop.train_step = counting, telling, timed
    loop.Horizon = lambda at, made, _began: horizon.Horizon(at, made, 0.0)
    run("train")
