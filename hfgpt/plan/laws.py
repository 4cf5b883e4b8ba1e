"""The shipped laws behind the forecasts, and the law for the time of an optimizer step on a CPU.

In:  laws.json beside this module, written by benchmarks/step_times.py and benchmarks/loss_laws.py; a resolved Config,
     the size of its vocabulary, the precision, and a :class:`~hfgpt.plan.speed.Speed`.
Out: :class:`Laws`; seconds of a step, and of a token at evaluation. A step's time is the sum of its parts: calls,
     matrix products (narrow ones reach less of the peak), passes over memory, the update. The coefficients are a
     least-squares fit to timed steps of many shapes; the only other inputs are the machine's three speeds, so that they
     hold on other machines.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hfgpt.config import Config
from hfgpt.model.sizes import flops_per_update, parameters
from hfgpt.plan.speed import Speed

FILE = Path(__file__).with_name("laws.json")


@dataclass(frozen=True)
class Laws:
    """Coefficients: `step` for the time of a CPU step, `loss` for the loss (hfgpt/plan/loss.py)."""

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


TERMS = (
    "calls",
    "calls of a block",
    "products",
    "narrow products",
    "attention",
    "attention weights",
    "activations",
    "head",
    "head's scores",
    "weights",
    "calls of Muon",
    "Muon",
)


def terms(config: Config, vocab_size: int, dtype: str, speed: Speed) -> list[float]:
    """Return the seconds of each of TERMS at the machine's full speed, calls on one core; a step is their weighted sum.

    `config.batch_size` is a process's micro-batch; accumulation repeats all but the update.
    """
    layers, width, length = config.n_layer, config.n_embd, config.block_size
    tokens, steps = config.batch_size * length, config.gradient_accumulation_steps
    peak, bandwidth = speed.core(dtype) * speed.parallel, speed.bandwidth * speed.parallel
    bytes_each = 4 if dtype == "float32" else 2
    count = parameters(config, vocab_size).total
    products = 6 * 12 * layers * width**2 * tokens / peak
    muon = config.optimizer == "muon"
    work = 4 / 3 if config.activation_checkpointing else 1.0
    once = [
        speed.call,
        speed.call * layers,
        products * work,
        products * work * 64 / width,
        12 * layers * width * length * tokens / peak * work,
        layers * config.n_head * length * tokens * bytes_each / bandwidth * work,
        layers * width * tokens * bytes_each * (2 if config.dropout else 1) / bandwidth * work,
        6 * vocab_size * width * tokens / peak,
        vocab_size * tokens * 4 / bandwidth,
    ]
    update = [
        count * 4 / bandwidth,
        speed.call * layers if muon else 0.0,
        flops_per_update(config, "cpu") / (speed.float32 * speed.parallel),
    ]
    return [value * steps for value in once] + update


def step_seconds(config: Config, vocab_size: int, dtype: str, speed: Speed) -> float:
    """Return the seconds of an optimizer step of one process."""
    return _weighted(dtype, terms(config, vocab_size, dtype, speed))


def evaluation_seconds(config: Config, vocab_size: int, dtype: str, speed: Speed) -> float:
    """Return the seconds per token at evaluation: only a forward pass, a third of forward and backward."""
    single = config.model_copy(update={"gradient_accumulation_steps": 1})
    step = _weighted(dtype, terms(single, vocab_size, dtype, speed)[:UPDATE])
    return step / (3 * config.batch_size * config.block_size)


UPDATE = TERMS.index("weights")  # index of the first term of the update


def _weighted(dtype: str, values: list[float]) -> float:
    weights: list[float] = laws().step["bfloat16" if dtype == "float16" else dtype]
    return sum(weight * value for weight, value in zip(weights, values, strict=False))
