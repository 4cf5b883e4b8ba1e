"""Speed, memory, time and power of a run.

In:  how long each step waited for data and trained.
Out: the figures of a record: tokens/s, MFU, peak memory, seconds.
"""

import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import psutil
import torch
from accelerate.utils import is_compiled_module
from torch.profiler import ProfilerActivity, profile

from hfgpt.base import hardware
from hfgpt.base.files import sync
from hfgpt.base.language import _, plural
from hfgpt.base.threads import BUSY
from hfgpt.model.gpt2 import parameter_count
from hfgpt.train.run import Run


class Pace(NamedTuple):
    """How fast this machine's CPU was in a run of one process that nothing else disturbed."""

    vocab_size: int
    dtype: str
    step_seconds: float  # the median
    start_seconds: float  # from the command to the first step, and by how much longer that step took


class Mark(NamedTuple):
    """A point in a run."""

    steps: int  # steps that this process has taken
    seconds: float  # their seconds, without evaluations


WARMING, FEW, RECENT = 3, 10, 200  # first steps that are slower; steps that are enough for a median; steps kept


class Meter:
    """Counts the steps since the last record, and the seconds of the whole run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._began = time.monotonic() - run.progress.seconds
        self._peak: float | None = None  # unknown before the second record
        self._records = 0
        self._power = Power(run.device, run.progress.gpu_joules)
        self.evaluation_seconds = 0.0  # of the last evaluation
        self._evaluations, self._all_steps = 0.0, 0
        self._first = 0.0  # seconds of the first step
        self._recent = deque[tuple[float, float]](maxlen=RECENT)  # seconds and CPU seconds of the last whole steps
        self._flops = flops_per_token(run)
        self._steps, self._tokens, self._step_seconds, self._data_seconds = 0, 0, 0.0, 0.0

    def add(self, tokens: int, data_seconds: float, step_seconds: float, cpu_seconds: float) -> None:
        """Add a step of `tokens` tokens: how long it waited for its data, how long it then took, and its CPU time."""
        self._tokens += tokens
        self._steps += 1
        self._all_steps += 1
        self._data_seconds += data_seconds
        self._step_seconds += step_seconds
        if self._all_steps == 1:
            self._first = data_seconds + step_seconds
        if self._all_steps > WARMING and tokens == self._run.config.tokens_per_iter:
            self._recent.append((data_seconds + step_seconds, cpu_seconds))

    def pace(self, until_ready: float) -> Pace | None:
        """Return the pace of the last steps, if nothing but this process's CPU decided it.

        Args:
            until_ready: seconds from the command to the first step.
        """
        run, steps = self._run, list(self._recent)
        wall, cpu = (sum(column) for column in zip(*steps, strict=True)) if steps else (0.0, 0.0)
        alone = run.device.type == "cpu" and run.accelerator.num_processes == 1 and not is_compiled_module(run.model)
        if not alone or len(steps) < FEW or cpu < BUSY * torch.get_num_threads() * wall:
            return None
        median = statistics.median(seconds for seconds, _cpu in steps)
        start = until_ready + max(0.0, self._first - median)
        return Pace(run.plain.gpt2.config.vocab_size, run.dtype, median, start)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Time an evaluation, with what it exports and saves."""
        began = time.monotonic()
        yield
        self.evaluation_seconds = time.monotonic() - began
        self._evaluations += self.evaluation_seconds

    def mark(self) -> Mark:
        """Return the present point; two such marks give the speed of the steps between them."""
        return Mark(self._all_steps, time.monotonic() - self._evaluations)

    def seconds(self) -> float:
        """Return the seconds since the run began, without the time between a stop and its resume."""
        return time.monotonic() - self._began

    def figures(self) -> dict[str, float]:
        """Return speed, memory and time since the last call.

        The first record has no `mfu`: its step includes warm-up, and measuring a CPU's peak would delay it by a
        fraction of a second.
        """
        run = self._run
        rate = self._tokens / (self._step_seconds + self._data_seconds)
        figures = {
            "tokens_per_second": rate,
            "memory_bytes": memory_bytes(run.device),
            "data_seconds": self._data_seconds / self._steps,
            "seconds": self.seconds(),
            **self._power.figures(),
        }
        run.progress.gpu_joules = figures.get("gpu_joules", 0.0)
        self._records += 1
        if self._records == 2:
            self._peak = peak_flops(run)
        if self._peak:
            figures["mfu"] = rate * self._flops / (self._peak * run.accelerator.num_processes)
        self._steps, self._tokens, self._step_seconds, self._data_seconds = 0, 0, 0.0, 0.0
        return figures


def flops_per_token(run: Run) -> float:
    """Return the FLOPs of a token, forward and backward (PaLM, appendix B, as nanoGPT counts them): 6N + 12·L·C·T."""
    shape = run.plain.gpt2.config
    weights = parameter_count(run.plain) - shape.n_positions * shape.n_embd
    weights -= 0 if shape.tie_word_embeddings else shape.vocab_size * shape.n_embd
    return float(6 * weights + 12 * shape.n_layer * shape.n_embd * shape.n_positions)


def peak_flops(run: Run) -> float | None:
    """Return the peak FLOP/s of one process: a card's from the table, a CPU's by measurement; None if unknown."""
    if run.device.type == "cuda":
        return hardware.training_peak(torch.cuda.get_device_name(run.device), run.dtype)
    if run.device.type == "cpu":
        return hardware.measured_cpu_peak(run.dtype)
    return None


def memory_bytes(device: torch.device) -> int:
    """Return the peak memory so far: torch's allocations on a card; the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --------------------------------------------------------------------------------------------------------------- power


class Power:
    """Reads power from NVML; counts joules on top of the `joules` that the run had used before."""

    def __init__(self, device: torch.device, joules: float) -> None:
        self._handle, self._nvml = _open(device)
        self._before = joules - self._energy()

    def figures(self) -> dict[str, float]:
        """Return `gpu_utilization` (share of the last moments), `gpu_watts` and `gpu_joules` (since the run began)."""
        if self._handle is None:
            return {}
        figures = dict[str, float]()
        with suppress(Exception):  # the card or its driver does not report this figure
            figures["gpu_utilization"] = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100
        with suppress(Exception):
            figures["gpu_watts"] = self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000
        if energy := self._energy():
            figures["gpu_joules"] = self._before + energy
        return figures

    def _energy(self) -> float:
        """Return the card's joules since the driver was loaded; 0 if it does not report them."""
        if self._handle is None:
            return 0.0
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        except Exception:
            return 0.0


def _open(device: torch.device) -> tuple[Any, Any]:
    """Return the NVML library and this card's handle, found by UUID whatever CUDA_VISIBLE_DEVICES says; or None."""
    if device.type != "cuda":
        return None, None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"), pynvml
    except Exception:  # not installed, no driver, a MIG slice
        return None, None


# -------------------------------------------------------------------------------------------------------------- a trace

BEFORE, RECORDED = 3, 3  # steps that warm up, and steps in the trace
LARGEST = 10


class Trace:
    """Records a few steps of a run, on the main process: where the time of a step goes.

    It writes ``profile/steps-….pt.trace.json`` into the run folder, for Perfetto (ui.perfetto.dev) and TensorBoard, and
    shows the ten largest operations.
    """

    def __init__(self, run: Run, wanted: bool) -> None:
        self._run, self._first = run, run.progress.step + BEFORE
        self._profiler: profile | None = None
        self._wanted = wanted and run.main and not run.config.eval_only

    def look(self) -> None:
        """Call before each step: the recording begins and ends here."""
        if not self._wanted:
            return
        step = self._run.progress.step
        if self._profiler is None and step >= self._first:
            activities = [ProfilerActivity.CPU]
            if self._run.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # quiet
            self._profiler = profile(activities=activities, profile_memory=True)
            self._profiler.start()
        elif step >= self._first + RECORDED:
            self.close()

    def close(self) -> None:
        """End the recording, if there is one, and show it; say so if the run ended before it began."""
        if not self._wanted:
            return
        self._wanted, profiler, self._profiler = False, self._profiler, None
        if profiler is not None:
            if self._run.device.type == "cuda":
                torch.cuda.synchronize(self._run.device)
            profiler.stop()
        last = self._run.progress.step
        if profiler is None or last == self._first:
            text = _(
                "--profile has recorded nothing: it records from step {first} on, and the run ends after step {last}",
                first=self._first + 1,
                last=last,
            )
            self._run.display.say(text)
            return
        folder = self._run.folder / "profile"
        folder.mkdir(exist_ok=True)
        path = folder / f"steps-{self._first + 1}-{last}.pt.trace.json"
        profiler.export_chrome_trace(str(path))
        sync(path)
        self._run.display.say(largest(profiler, last - self._first, on_card=self._run.device.type == "cuda"))
        self._run.display.say(
            _("the trace is in {file}: open it in ui.perfetto.dev, or the folder in TensorBoard", file=path)
        )


def largest(profiler: profile, steps: int, on_card: bool) -> str:
    """Return the operations of some steps with the most self time: share, milliseconds, calls."""
    key = "self_device_time_total" if on_card else "self_cpu_time_total"
    rows = sorted(profiler.key_averages(), key=lambda row: float(getattr(row, key)), reverse=True)
    total = sum(float(getattr(row, key)) for row in rows) or 1.0
    lines = [
        plural(
            "the {largest} largest operations of {n} step:",
            "the {largest} largest operations of {n} steps:",
            steps,
            largest=LARGEST,
        )
    ]
    for row in rows[:LARGEST]:
        spent = float(getattr(row, key))
        lines.append(
            _(
                "  {share:6.1%}  {milliseconds:9.2f} ms  {calls:6} calls  {name}",
                share=spent / total,
                milliseconds=spent / 1000,
                calls=row.count,
                name=row.key,
            )
        )
    return "\n".join(lines)
