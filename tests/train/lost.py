"""scripts/train.py, whose second process stops at a place; or whose main process is busy there for six seconds.

TEST_PLACE names the place and TEST_FATE what happens. The waits are watched as if they were NCCL's, which would abort
the process; gloo, in its place, raises an error.
"""

from __future__ import annotations

import os
import time
from typing import Any

from hfgpt.commands import run
from hfgpt.train import evaluate, failures, horizon, states


def happen() -> None:
    fate, main = os.environ["TEST_FATE"], os.environ["RANK"] == "0"
    if fate == "busy" and main:
        time.sleep(6)
    elif fate != "busy" and not main:
        time.sleep(9 if fate == "silent" else 0)
        os._exit(1)


def at(module: Any, name: str, first: int = 1) -> None:
    """Have it happen at the first call of a function, or at a later one."""
    real, calls = getattr(module, name), [0]

    def changed(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == first:
            happen()
        return real(*arguments, **options)

    setattr(module, name, changed)


if __name__ == "__main__":
    failures.aborts = lambda run: True
    match os.environ["TEST_PLACE"]:
        case "evaluation":
            at(evaluate, "losses", 2)  # the first one is before the first step
        case "save":
            at(states, "generators")
        case "sample":
            at(evaluate, "sample_text")
        case "rehearsal":
            at(horizon, "rehearse")
    run("train")
