"""Comparison of a run with its recipe's reference curve, to tell whether the run is normal.

In:  a recipe and its evaluated losses; reference_curves.json, which benchmarks/reference_curves.py measures.
Out: the reference at a step, with the interval in which another seed is expected; or None unless they are comparable:
     the text and everything that decides the losses must be the same.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hfgpt.base.files import expanded, sha256
from hfgpt.config import EMBEDDED_DATASET, Config
from hfgpt.data.sources import EMBEDDED
from hfgpt.runs.laws import Prediction
from hfgpt.runs.segments import LOCAL, deciding, differences

FILE = Path(__file__).parent / "reference_curves.json"
LARGEST = 64 * 2**20  # largest text in bytes that is hashed to compare it with the reference's
CONFIDENCE = 0.95

# Fields that neither change a weight before the run's end nor identify the recipe. The schedule itself says how long
# the run is (lr_decay_iters), and the global batch stands for the micro-batch.
FREE = LOCAL | {"seed", "dtype", "max_iters", "eval_interval", "early_stopping_patience", "max_bad_steps",
                "dataset_split", "text_column", "batch_size", "gradient_accumulation_steps"}  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """One recipe's curve: validation losses of several seeds by step."""

    # what was run, and where
    recipe: str
    machine: str
    step_seconds: float  # seconds of a step there, without evaluations
    tokens_per_iter: int  # tokens per step
    losses: dict[int, list[float]]  # for each step, one loss per seed

    @property
    def seeds(self) -> int:
        return len(next(iter(self.losses.values())))

    def at(self, step: int) -> Prediction | None:
        """Return the mean at a step, and the interval in which another seed is expected; None outside the curve."""
        before = max((recorded for recorded in self.losses if recorded <= step), default=None)
        after = min((recorded for recorded in self.losses if recorded >= step), default=None)
        if before is None or after is None:
            return None
        share = (step - before) / (after - before) if after > before else 0.0
        pairs = zip(self.losses[before], self.losses[after], strict=True)
        losses = [a + share * (b - a) for a, b in pairs]
        from scipy.special import stdtrit  # Student's t without scipy.stats, which takes a second to load

        mean, count = statistics.fmean(losses), len(losses)
        limit = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))
        half = limit * statistics.stdev(losses) * math.sqrt(1 + 1 / count)
        return Prediction(mean, mean - half, mean + half)


def of(config: Config) -> Reference | None:
    """Return the reference curve of a recipe on its text; None if there is not one."""
    identity = identity_of(config)
    for entry in _entries():
        if entry["identity"] == identity and entry["data"] == data_of(config):
            losses = {int(step): list(values) for step, values in entry["val_loss"].items()}
            return Reference(entry["recipe"], entry["machine"], entry["step_seconds"], entry["tokens_per_iter"], losses)
    return None


def identity_of(config: Config) -> dict[str, Any]:
    """Return the fields of a recipe that decide its losses, except those at their defaults."""
    plain = Config()
    values = {key: value for key, value in deciding(config, config.dtype).items() if key not in FREE}
    values |= {"tokenizer": config.tokenizer, "init_from": config.init_from}
    if config.lr_schedule in ("hold_cosine", "wsd"):
        values["max_iters"] = config.max_iters
    if config.optimizer != "muon":
        values = {key: value for key, value in values.items() if not key.startswith("muon_")}
    changed = {key: value for key, value in values.items() if value != getattr(plain, key)}
    return {**changed, "global_batch": config.global_batch}


def differ(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two recipes of one run decide its losses differently."""
    return any(key not in FREE for key, _then, _now in differences(before, now))


def data_of(config: Config) -> str | None:
    """Return the SHA-256 of a recipe's text: the embedded one or a single file; None for anything else."""
    path = EMBEDDED if config.dataset == EMBEDDED_DATASET else expanded(str(config.dataset))
    try:
        return _sum(path) if path.is_file() and path.stat().st_size <= LARGEST else None
    except (OSError, ValueError):
        return None


_sum = lru_cache(sha256)  # a text is looked at by several commands of one process


@lru_cache(maxsize=1)
def _entries() -> Sequence[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return entries
