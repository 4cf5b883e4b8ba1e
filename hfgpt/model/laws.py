"""The shipped laws behind the forecasts.

In:  laws.json beside this module, written by benchmarks/step_times.py and benchmarks/loss_laws.py.
Out: :class:`Laws`.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("laws.json")


@dataclass(frozen=True)
class Laws:
    """Coefficients: `step` for the time of a CPU step (hfgpt/plan/step_time.py), `loss` for the loss (loss_law.py)."""

    step: dict[str, Any]
    loss: dict[str, Any]


@lru_cache(maxsize=1)
def laws() -> Laws:
    """Return the laws shipped with this version."""
    return Laws(**json.loads(FILE.read_text(encoding="utf-8")))


def write(**parts: dict[str, Any]) -> None:
    """Replace parts of the file after a new fit."""
    old = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"step": {}, "loss": {}}
    FILE.write_text(json.dumps(old | parts, indent=1) + "\n", encoding="utf-8")
    laws.cache_clear()
