"""The duration and the cost of a run.

In:  a Survey, the Target that it runs on and, if a probe ran, its measurements.
Out: :class:`Time` in seconds, with a range; :class:`Cost`.
"""

import math
from dataclasses import dataclass

from hfgpt.base.units import seconds_of
from hfgpt.config import Config
from hfgpt.config.fields import EVAL_BATCH, SAMPLE_TOKENS
from hfgpt.model.laws import laws
from hfgpt.model.sizes import (
    COMPILING,
    HOST_SECONDS_PER_BLOCK,
    eager_seconds,
    flops_per_token,
    flops_per_update,
    parameters,
)
from hfgpt.plan import step_time
from hfgpt.plan.survey import Survey
from hfgpt.plan.target import Target


@dataclass(frozen=True)
class Time:
    """A run's duration in seconds; 19 of 20 runs are expected between `low_seconds` and `high_seconds`.

    The clock ends a run with a `time_budget`: its steps are what is uncertain, between `low_steps` and `high_steps`.
    """

    seconds_per_step: float  # one optimizer step
    training_seconds: float  # all steps
    evaluation_seconds: float  # all losses at every evaluation, and its sample; not eval_tasks
    saving_seconds: float  # checkpoints and the exported model
    start_seconds: float  # from the command to the first step
    total_seconds: float  # the total of these
    # the range of the total
    low_seconds: float
    high_seconds: float
    # the range of the steps; both are max_iters if the clock does not decide
    low_steps: int
    high_steps: int
    tokens_per_second: float  # of all processes together
    mfu: float  # model FLOPs utilisation: the share of the peak that the model's arithmetic uses
    source: str  # 'probe', 'machine' (priced by this machine's speed) or 'card' (by the card's data sheet)
    busy: bool  # whether other work ran while it was measured

    @property
    def measured(self) -> bool:
        return self.source == "probe"


@dataclass(frozen=True)
class Measured:
    """A probe's measurements in seconds: an optimizer step, a token at evaluation, an evaluation's sample, a save."""

    seconds_per_step: float
    seconds_per_eval_token: float
    seconds_per_sample: float
    seconds_per_save: float = 0.0
    spread: float = 0.0  # the relative spread of the timed steps (their quartiles over the median)
    peak: float | None = None  # the FLOP/s that the device reaches; None if unknown
    peak_bytes: int | None = None  # the peak memory of a step; None if not measured
    busy: bool = False  # whether the timed steps got clearly less CPU time than they could have used


# Standard deviation of the log of a forecast's error: for a card, whose speed was not measured; for a probe on a quiet
# machine, besides the spread of its own steps. On a CPU the fit (laws.json) and the machine's speeds have their own.
CARD_SPREAD, PROBE_SPREAD = 0.35, 0.05

ENDS = 0.95  # least share of a time_budget that a run uses: it keeps a margin of 3%
VARIES = 0.07  # of a machine's own speed, from one hour to another
BUSY_SPREAD = 0.25  # other work comes and goes
CORES_SPREAD = 0.05  # per doubling of the cores beyond the two that the law was fitted on
CPU_START = 4.3  # seconds from the command to the first step; two cores of a Zen 4 (benchmarks/README.md)
CARD_START = 12.0  # plus the device's context
COMPILE_START = 60.0  # of a compiled run: a minute is usual, not measured here
DISK = 200e6  # bytes/s at which a checkpoint is written, with fsync
COPY = 10e9  # bytes/s at which weights and averages are copied, to be written behind the steps (benchmarks/README.md)


def time(survey: Survey, target: Target, measured: Measured | None = None) -> Time:
    """Forecast a run's duration, from a probe or from the device's speed."""
    config = survey.config
    measurements = measured or priced(survey, target)
    training = measurements.seconds_per_step * config.tokens_by(config.max_iters) / config.tokens_per_iter
    times = evaluations(config)
    evaluating = times * measurements.seconds_per_eval_token * evaluation_tokens(survey)
    evaluating += (times - 1) * measurements.seconds_per_sample  # nothing is sampled before the first step
    # A checkpoint and an export are the weights twice and the optimizer's averages once.
    written = 0.1 + 16 * parameters(config, survey.vocab_size).total / DISK
    between = config.max_iters // config.checkpoint_interval if config.checkpoint_interval else 0
    each = measurements.seconds_per_save or written
    if config.saves_behind(target.kind):  # the last one is waited for
        each = min(each, 12 * parameters(config, survey.vocab_size).total / COPY)
    saving = (times - 2 + between) * each + (measurements.seconds_per_save or written)
    start = CARD_START if target.kind == "accelerator" else (target.speed and target.speed.start) or CPU_START
    if target.kind == "accelerator" and compiles(config, target):
        start += COMPILE_START
    total, spread = training + evaluating + saving + start, _spread(survey, target, measured)
    low, high = total * math.exp(-2 * spread), total * math.exp(2 * spread)
    low_steps = high_steps = config.max_iters
    if config.time_budget:
        # A run makes at least one step, even if its start alone takes longer than the budget.
        high = max(float(seconds_of(config.time_budget)), total - training)
        total = min(total, high)
        low = min(total, ENDS * high)
        low_steps = max(1, round(low_steps * math.exp(-2 * spread)))
        high_steps = round(high_steps * math.exp(2 * spread))
    speed = config.tokens_per_iter / measurements.seconds_per_step
    peak = (measured.peak if measured else None) or target.peak
    return Time(
        seconds_per_step=measurements.seconds_per_step,
        training_seconds=training,
        evaluation_seconds=evaluating,
        saving_seconds=saving,
        start_seconds=start,
        total_seconds=total,
        low_seconds=low,
        high_seconds=high,
        low_steps=low_steps,
        high_steps=high_steps,
        tokens_per_second=speed,
        mfu=speed * flops_per_token(config, survey.vocab_size) / (peak * target.processes),
        source="probe" if measured else "machine" if target.speed else "card",
        busy=measurements.busy,
    )


def _spread(survey: Survey, target: Target, measured: Measured | None) -> float:
    """Return the standard deviation of the log of the forecast's error."""
    if measured:
        return math.hypot(PROBE_SPREAD, measured.spread, BUSY_SPREAD if measured.busy else 0)
    if target.speed is None:
        return CARD_SPREAD
    fit_spread: float = laws().step["bfloat16 spread" if target.dtype == "bfloat16" else "float32 spread"]
    unknown = step_time.spread(survey.config, survey.vocab_size, target.dtype, target.speed)
    cores = CORES_SPREAD * max(0.0, math.log2(target.speed.cores) - 1)
    return math.hypot(fit_spread, unknown, VARIES, cores, BUSY_SPREAD if target.speed.busy else 0)


def priced(survey: Survey, target: Target) -> Measured:
    """Forecast without a probe, from the card's data sheet or this machine's speed."""
    config, processes = survey.config, target.processes
    per_process = config.of_process(processes)
    if target.speed is None:
        return _on_card(per_process, survey.vocab_size, target, compiles(config, target))
    step = step_time.step_seconds(per_process, survey.vocab_size, target.dtype, target.speed)
    token = step_time.evaluation_seconds(per_process, survey.vocab_size, target.dtype, target.speed)
    if processes > 1:  # the processes share the cores, so each is slower by their number
        step, token = step * processes, token * processes
    sample = SAMPLE_TOKENS * token * SAMPLE_COST if config.sample_prompt else 0.0
    return Measured(step, token / processes, sample, busy=target.speed.busy)


SAMPLE_COST = 20  # approximate time of a token sampled singly relative to one in a batch


def compiles(config: Config, target: Target) -> bool:
    """Whether a run compiles: as the recipe says; with `auto`, on a CUDA card if an eager run would take long."""
    if config.compile != "auto":
        return config.compile
    return target.own_memory and eager_seconds(config, target.peak, target.processes) > COMPILING


def _on_card(config: Config, vocab_size: int, target: Target, compiled: bool) -> Measured:
    """Price a process's step on a card: its arithmetic and, in eager mode, each operation's memory traffic.

    The bytes are those by which a step of GPT-2 124M on an H100 takes 44 ms eagerly and 24 ms compiled, from its
    operators' sizes; no card has confirmed them here.
    """
    rate = target.peak * target.utilisation / flops_per_token(config, vocab_size)  # tokens/s of a process
    tokens, repeats = config.batch_size * config.block_size, config.gradient_accumulation_steps
    work = 4 / 3 if config.activation_checkpointing else 1.0  # a second forward pass
    once, host = tokens / rate * work, (config.n_layer + 2) * HOST_SECONDS_PER_BLOCK
    if compiled:
        host /= 4
    else:
        moved = tokens * (EAGER_BYTES * config.n_layer * config.n_embd * work + EAGER_HEAD_BYTES * vocab_size)
        once += moved / target.bandwidth
    update: float = flops_per_update(config, "accelerator") / (target.peak * target.utilisation)
    weights = parameters(config, vocab_size).total
    update += 28 * weights / target.bandwidth  # in and out: weights, gradients, averages
    if target.processes > 1:  # the gradients are summed behind the last backward pass, two thirds of the work
        update += max(0.0, 8 * weights / BETWEEN_CARDS - 2 / 3 * once)
    return Measured(max(once, host) * repeats + update, 1 / (3 * rate * target.processes), 0.0)


BETWEEN_CARDS = 50e9  # bytes/s at which cards sum their gradients: assumed, between PCIe and NVLink
EAGER_BYTES, EAGER_HEAD_BYTES = 350.0, 24.0  # per token, for each channel of each block, and for each vocabulary entry


def evaluations(config: Config) -> int:
    """Return how often a run evaluates: before the first step, every eval_interval, and at the last step."""
    return 1 + -(-config.max_iters // config.eval_interval)


def evaluation_tokens(survey: Survey) -> int:
    """Return the tokens of one evaluation, on both splits and on the further texts."""
    config = survey.config
    most = config.eval_iters * EVAL_BATCH * config.block_size
    further = sum(most if tokens is None else min(most, tokens) for tokens in survey.further)
    if survey.train_tokens is None:
        return 2 * most + further
    val_tokens = int(survey.train_tokens * config.val_fraction / (1 - config.val_fraction))
    return min(most, survey.train_tokens) + min(most, val_tokens) + further


@dataclass(frozen=True)
class Cost:
    """A run's cost: in money, if a price was given, and in energy (an upper bound), if the card's power is known."""

    money: float | None
    energy_kwh: float | None


def cost(duration: Time, target: Target, price_per_hour: float | None) -> Cost:
    """Return price and energy of a run. The price is per device and hour; energy assumes full power throughout."""
    hours = duration.total_seconds / 3600 * target.processes
    return Cost(
        money=None if price_per_hour is None else price_per_hour * hours,
        energy_kwh=None if target.power_w is None else target.power_w / 1000 * hours,
    )
