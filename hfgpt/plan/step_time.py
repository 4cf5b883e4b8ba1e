"""The law for the time of an optimizer step on a CPU, and what a timed step says about this machine.

In:  a resolved Config, the size of its vocabulary, the precision, and a :class:`~hfgpt.plan.speed.Speed`; the
     coefficients in laws.json. To learn: the measured time of a step.
Out: seconds of a step, and of a token at evaluation. A step's time is the sum of its parts: calls, matrix products
     (narrow ones reach less of the peak), passes over memory, the update. The coefficients are a least-squares fit to
     timed steps of many shapes on two processors; they hold on both, given each one's four speeds.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hfgpt.config import Config
from hfgpt.model.laws import laws
from hfgpt.model.sizes import flops_per_update, parameters
from hfgpt.plan import speed as machine
from hfgpt.plan.speed import PARTS, Speed

Array = NDArray[np.float64]

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
    peak, bandwidth, call = speed.core(dtype) * speed.parallel, speed.memory * speed.parallel, speed.small_call
    bytes_each = 4 if dtype == "float32" else 2
    count = parameters(config, vocab_size).total
    products = 6 * 12 * layers * width**2 * tokens / peak
    muon = config.optimizer == "muon"
    work = 4 / 3 if config.activation_checkpointing else 1.0
    once = [
        call,
        call * layers,
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
        call * layers if muon else 0.0,
        flops_per_update(config, "cpu") / (speed.core("float32") * speed.parallel),
    ]
    return [value * steps for value in once] + update


def step_seconds(config: Config, vocab_size: int, dtype: str, speed: Speed) -> float:
    """Return the seconds of an optimizer step of one process."""
    return float(weighted(dtype, terms(config, vocab_size, dtype, speed)).sum())


def evaluation_seconds(config: Config, vocab_size: int, dtype: str, speed: Speed) -> float:
    """Return the seconds per token at evaluation: only a forward pass, a third of forward and backward."""
    single = config.model_copy(update={"gradient_accumulation_steps": 1})
    step = weighted(dtype, terms(single, vocab_size, dtype, speed)[:UPDATE]).sum()
    return float(step) / (3 * config.batch_size * config.block_size)


UPDATE = TERMS.index("weights")  # index of the first term of the update


def weighted(dtype: str, values: list[float]) -> Array:
    """Return the seconds of each term at the rate that it reaches."""
    weights: list[float] = laws().step["bfloat16" if dtype == "float16" else dtype]
    return np.array(weights[: len(values)]) * values


# ----------------------------------------------------------------------------------------------- what a step says

# Standard deviations of logs: of a step's time, since the law errs and a machine's speed varies; and of what changes in
# a machine between two runs.
NOISE, DRIFT = 0.1, 0.02
MOST = 3  # standard deviations of a surprise that count: a laptop that slept during a step teaches no more


def limits(dtype: str) -> list[int]:
    """Return, for each of TERMS, which of the machine's speeds (speed.PARTS) it is priced by."""
    products = PARTS.index("float32" if dtype == "float32" else "bfloat16")
    by = {"products": products, "narrow products": products, "attention": products, "head": products}
    by |= dict.fromkeys(("calls", "calls of a block", "calls of Muon"), PARTS.index("calls"))
    by |= {"Muon": PARTS.index("float32")}
    return [by.get(term, PARTS.index("memory")) for term in TERMS]


def shares(config: Config, vocab_size: int, dtype: str, speed: Speed) -> Array:
    """Return the shares of a step's time that each of the machine's speeds decides."""
    seconds = weighted(dtype, terms(config, vocab_size, dtype, speed))
    by_part = np.zeros(len(PARTS))
    np.add.at(by_part, limits(dtype), seconds / seconds.sum())
    return by_part


def spread(config: Config, vocab_size: int, dtype: str, speed: Speed) -> float:
    """Return the standard deviation of the log of a step's time, for what is not known of the machine's speeds."""
    own = shares(config, vocab_size, dtype, speed)
    return float(np.sqrt(own @ np.array(speed.covariance) @ own))


def learn(config: Config, vocab_size: int, dtype: str, seconds: float) -> None:
    """Correct this machine's speeds by the measured time of a step of one process, and store them.

    Nothing is learnt while the speeds themselves are those of a busy machine: they will be measured again.
    """
    speed = machine.this_machine(config.cpu_threads)
    if not speed.busy:
        taught = corrected(speed, config, vocab_size, dtype, seconds)
        machine.learn(corrections=taught.corrections, covariance=taught.covariance)


def corrected(speed: Speed, config: Config, vocab_size: int, dtype: str, seconds: float) -> Speed:
    """Return a machine's speed after a step of `seconds` was seen on it.

    It is a Kalman filter's update: the logs of the four corrections are normal, and the step observes their sum,
    weighted by their shares of its time. A small model thus teaches what a call takes, a wide one the products.
    """
    own = shares(config, vocab_size, dtype, speed)
    covariance = np.array(speed.covariance) + DRIFT**2 * np.eye(len(PARTS))
    variance = own @ covariance @ own + NOISE**2
    surprise = np.log(seconds / step_seconds(config, vocab_size, dtype, speed))
    surprise = np.clip(surprise, -MOST * np.sqrt(variance), MOST * np.sqrt(variance))
    gain = covariance @ own / variance
    corrections = np.array(speed.corrections) + gain * surprise
    covariance -= np.outer(gain, own @ covariance)
    return replace(speed, corrections=corrections.tolist(), covariance=covariance.tolist())
