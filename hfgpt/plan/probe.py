"""The speed at which this machine trains a recipe, measured on a few real steps.

In:  a Survey: the config with the model's shape, and the size of its vocabulary.
Out: seconds of an optimizer step, of an evaluated token and of a sample, the FLOP/s that the device can reach, and the
     peak memory of a step.

The steps are the training loop's own, on the recipe's model, batch, precision and device. The tokens are random, since
the arithmetic does not depend on them, so nothing is downloaded or tokenised; and nothing is written. Call
:func:`hfgpt.base.threads.configure` before this module is imported, as the training script does.
"""

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate.utils import is_compiled_module
from safetensors.torch import save_file

from hfgpt.base.files import disk_errors, sync
from hfgpt.base.threads import BUSY
from hfgpt.base.units import divisors
from hfgpt.config import Config
from hfgpt.config.fields import SAMPLE_TOKENS
from hfgpt.data.blocks import Batches, TokenStream
from hfgpt.data.prepare import Corpus
from hfgpt.inference import figures
from hfgpt.inference import sampling as sample
from hfgpt.model import gpt2 as models
from hfgpt.model import optim
from hfgpt.model.sizes import flops_per_token
from hfgpt.plan import speed, step_time
from hfgpt.plan.survey import Survey
from hfgpt.plan.timing import Measured
from hfgpt.runs.metrics import FILE_NAME, MetricsWriter
from hfgpt.train.display import Display
from hfgpt.train.launch import make_accelerator
from hfgpt.train.meter import peak_flops
from hfgpt.train.run import Run
from hfgpt.train.step import to_device, train_step

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # set before torch loads, to silence its profiler

AIM = 2.0  # seconds of measurement per timed action
LONGEST = 10.0  # seconds that a timed micro-batch may take on a CPU; a slower one is reduced, and its time scaled
SHORT = 1e11  # operations of a micro-batch that takes at most a second on a slow CPU


def probe(survey: Survey, processes: int = 1, loading: float | None = None) -> Measured:
    """Time a few optimizer steps and a part of an evaluation.

    A step of n micro-batches takes as long as a step of one plus n - 1 times what a second micro-batch adds. Both are
    measured, so that a recipe with much accumulation need not run a whole step.

    Args:
        processes: how many share a step; this machine times one share, without communication. On a CPU they share the
            cores too, so each is slower by their number.
        loading: seconds that the libraries took to load; None if they were loaded already.

    Raises:
        InputError: the recipe cannot be run here (device, dtype).
    """
    run = prepare(survey, processes)
    try:
        sequences = _fitting(run, flops_per_token(survey.config, survey.vocab_size))

        def look() -> None:
            if not windows or windows[0].seconds < AIM / 2:  # a slow step is not run again
                windows.append(_timed(lambda: step(run, sequences, 1), AIM / 2))

        # Three times, with the other measurements between them: a machine that others share is slow by the second.
        windows = list[Timing]()
        look()
        micro_batches = survey.config.global_batch / processes / sequences
        another = 0.0
        if micro_batches > 1:
            another = _timed(lambda: step(run, sequences, 2)).seconds - windows[0].seconds
        sampled = _timed(lambda: _sample(run, survey.vocab_size)).seconds if run.config.sample_prompt else 0.0
        look()
        evaluated = _timed(lambda: _evaluate(run)).seconds
        saved = _timed(lambda: _save(run), AIM / 4).seconds
        look()
        times = Timing([each for window in windows for each in window.times], sum(window.cpu for window in windows))
        seconds = times.seconds + (micro_batches - 1) * another
        if run.device.type == "cpu" and processes == 1 and not times.busy:
            if not is_compiled_module(run.model):
                step_time.learn(run.config, survey.vocab_size, run.dtype, seconds)
                seconds = _weighed(seconds, run.config, survey.vocab_size, run.dtype)
            if loading is not None:
                speed.learn(start=loading + PREPARING)
        at_once = processes if run.device.type == "cpu" else 1
        peak = peak_flops(run)
        return Measured(
            seconds_per_step=seconds * at_once,
            seconds_per_eval_token=evaluated * at_once / (run.micro_batch * run.config.block_size * processes),
            seconds_per_sample=sampled,
            seconds_per_save=saved,
            spread=times.spread,
            peak=peak / at_once if peak else None,
            peak_bytes=peak_bytes(run) if sequences == run.micro_batch else None,
            busy=times.busy,
        )
    finally:
        run.accelerator.end_training()


def _weighed(seconds: float, config: Config, vocab_size: int, dtype: str) -> float:
    """Return the mean of a step's measured time and that which this machine's steps of before make likely.

    A probe sees the machine's speed of a few seconds, the law that of days, but no recipe's own ways: far from its
    forecast, only the probe counts.
    """
    likely = step_time.step_seconds(config, vocab_size, dtype, speed.this_machine(config.cpu_threads))
    return math.sqrt(seconds * likely) if abs(math.log(seconds / likely)) < ALIKE else seconds


ALIKE = 0.25  # the largest log of the ratio of the two
PREPARING = 1.5  # seconds of a run's start besides the libraries: Python, the text, the folder, the slower first step


def prepare(survey: Survey, processes: int = 1) -> Run:
    """Prepare one process's run of a new model of the recipe's shape, on random tokens; no folder is touched."""
    config = survey.config.model_copy(update={"init_from": "scratch", "report_to": "none", "push_to_hub": False})
    accelerator = make_accelerator(config)
    torch.manual_seed(config.seed)
    model = models.build(config, survey.vocab_size, eos_token_id=0)
    length = config.block_size * max(64, config.batch_size) + 1
    stream = TokenStream([np.random.default_rng(0).integers(survey.vocab_size, size=length, dtype=np.uint32)])
    batches = Batches(stream, config.block_size, config.global_batch, config.seed)
    run = Run(
        config=config,
        accelerator=accelerator,
        corpus=Corpus(cast(Any, None), stream, stream, batches, ""),  # without a text, a tokenizer is not needed
        model=model,
        optimizer=optim.build(model, config, accelerator.device),
        display=Display(config.max_iters, speaks=False),
        metrics=MetricsWriter(config.run_dir / FILE_NAME),
        micro_batch=config.micro_batch(processes),
        val_characters=0,
    )
    run.model, run.optimizer = accelerator.prepare(run.model, run.optimizer)
    run.model.train()
    return run


def step(run: Run, sequences: int, micro_batches: int) -> None:
    """Run one optimizer step of the training loop, with so many micro-batches of so many sequences."""
    blocks = [next(iter(run.corpus.batches.micro_batches(0, 0, 1, run.micro_batch)))[:sequences]] * micro_batches
    targets = micro_batches * sequences * run.config.block_size
    train_step(run, to_device(blocks, run.device), targets, run.config.learning_rate)


def peak_bytes(run: Run) -> int:
    """Return torch's peak allocation in an optimizer step of at most two micro-batches.

    On a CPU it comes from the profiler's record of allocations, plus the memory in use before the step.
    """
    micro_batches = min(2, run.config.global_batch // run.micro_batch)
    step(run, run.micro_batch, micro_batches)  # so that the optimizer has its averages
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
        step(run, run.micro_batch, micro_batches)
        return torch.cuda.max_memory_allocated(run.device)
    states = [value for state in run.optimizer.state.values() for value in state.values()]
    live: int = sum(tensor.nbytes for tensor in [*run.model.parameters(), *states])
    peak = live
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(run, run.micro_batch, micro_batches)
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def _fitting(run: Run, flops_per_token: float) -> int:
    """Return the sequences of the timed micro-batch: the run's own, or as many as take LONGEST, judged by timing one.

    On a card, or compiled, the first step says nothing about the next ones.
    """
    takes_long = run.micro_batch * run.config.block_size * flops_per_token > SHORT
    if run.device.type != "cpu" or is_compiled_module(run.model) or not takes_long:
        return run.micro_batch
    start = time.perf_counter()
    step(run, 1, 1)
    seconds = time.perf_counter() - start
    fitting = min(run.micro_batch, max(1, int(LONGEST / seconds)))
    return next(divisors(run.micro_batch, fitting))


def _evaluate(run: Run) -> None:
    """Run one evaluation pass of a micro-batch, as at each evaluation."""
    indices = np.arange(run.micro_batch)
    stream, block_size = run.corpus.val, run.config.block_size
    figures.evaluate_blocks(run.model, stream, block_size, indices, run.micro_batch, run.device)


def _sample(run: Run, vocab_size: int) -> None:
    """Draw a sample as long as the one shown at each evaluation."""
    drawing = sample.Sampling(max_new_tokens=SAMPLE_TOKENS)
    for _ in sample.draw_tokens(run.plain.gpt2, [0], vocab_size, None, drawing):
        pass


def _save(run: Run) -> None:
    """Write as much as a checkpoint and an export, and delete it again."""
    weights = {name: tensor.contiguous() for name, tensor in run.plain.gpt2.state_dict().items()}
    del weights["lm_head.weight"]  # the token embedding once more
    with tempfile.TemporaryDirectory() as folder:
        for number in range(4):  # the export, the checkpoint's weights, two averages
            path = Path(folder) / f"{number}.safetensors"
            with disk_errors(path):
                save_file(weights, path)
            sync(path)


class Timing(NamedTuple):
    """The seconds of each repetition of an action, and the CPU seconds of all of them."""

    times: list[float]
    cpu: float

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(self.times)

    @property
    def spread(self) -> float:
        """Half the interquartile range, relative to the median."""
        low, high = np.quantile(self.times, [0.25, 0.75])
        return float((high - low) / 2 / self.seconds)

    @property
    def busy(self) -> bool:
        """Whether other work slowed them: on a CPU, wall time is longer than CPU time if threads wait for a core."""
        return not torch.accelerator.is_available() and self.cpu < BUSY * torch.get_num_threads() * sum(self.times)


def _timed(action: Callable[[], None], aim: float = AIM) -> Timing:
    """Time a warmed-up action for `aim` seconds, at least three times."""
    action()
    times: list[float] = []
    cpu = time.process_time()
    while len(times) < 3 or (sum(times) < aim and len(times) < 200):
        _wait()
        start = time.perf_counter()
        action()
        _wait()
        times.append(time.perf_counter() - start)
        if times[-1] > LONGEST:
            break
    return Timing(times, time.process_time() - cpu)


def _wait() -> None:
    """Wait until the accelerator has finished its work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
