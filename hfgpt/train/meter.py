"""Speed, memory, time and power of a run.

In:  how long the loop waited for data and trained, step by step.
Out: the figures of a record: tokens/s, MFU, peak memory, seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import psutil
import torch

from hfgpt.base import cards, machine
from hfgpt.model.gpt2 import parameter_count
from hfgpt.train.run import Run


class Mark(NamedTuple):
    """A point in a run."""

    steps: int  # that this process has made
    seconds: float  # that they took, without evaluations


class Meter:
    """Counts the steps since the last record, and the seconds of the whole run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._began = time.monotonic() - run.progress.seconds
        self._peak: float | None = None  # not known before the second record
        self._records = 0
        self._power = Power(run.device, run.progress.gpu_joules)
        self.evaluation_seconds = 0.0  # of the last one
        self._evaluations, self._all_steps = 0.0, 0
        self._flops = flops_per_token(run)
        self._steps, self._tokens, self._step_seconds, self._data_seconds = 0, 0, 0.0, 0.0

    def add(self, tokens: int, data_seconds: float, step_seconds: float) -> None:
        """One more step, of so many tokens: how long it waited for its data, and how long it took then."""
        self._tokens += tokens
        self._steps += 1
        self._all_steps += 1
        self._data_seconds += data_seconds
        self._step_seconds += step_seconds

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Time an evaluation, with what it exports and saves."""
        began = time.monotonic()
        yield
        self.evaluation_seconds = time.monotonic() - began
        self._evaluations += self.evaluation_seconds

    def mark(self) -> Mark:
        """Where this process is: the speed between two marks is that of the steps."""
        return Mark(self._all_steps, time.monotonic() - self._evaluations)

    def seconds(self) -> float:
        """Since the run began, without the time between a stop and its resume."""
        return time.monotonic() - self._began

    def figures(self) -> dict[str, float]:
        """Speed, memory and time since the last call.

        The first record has no `mfu`: its step also warms up, and would wait while a CPU's peak is measured, which
        takes a part of a second.
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
    """Forward and backward arithmetic of a token (PaLM, appendix B, as nanoGPT counts it): 6N + 12·L·C·T."""
    shape = run.plain.gpt2.config
    weights = parameter_count(run.plain) - shape.n_positions * shape.n_embd
    weights -= 0 if shape.tie_word_embeddings else shape.vocab_size * shape.n_embd
    return float(6 * weights + 12 * shape.n_layer * shape.n_embd * shape.n_positions)


def peak_flops(run: Run) -> float | None:
    """The FLOP/s one process could reach: the card's by its table, a CPU's by measurement; None if not known."""
    if run.device.type == "cuda":
        dtype = "tf32" if run.dtype == "float32" else run.dtype
        return cards.peak_flops(torch.cuda.get_device_name(run.device), dtype)
    if run.device.type == "cpu":
        return machine.measured_cpu_peak(run.dtype)
    return None


def memory_bytes(device: torch.device) -> int:
    """Peak memory so far: what torch allocated on a card; the whole process on a CPU."""
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
    """Reads NVML. Counts joules from `joules` on, which a run had used before.

    Args:
        device: where the process trains.
        joules: of the run so far.
    """

    def __init__(self, device: torch.device, joules: float) -> None:
        self._handle, self._nvml = _open(device)
        self._before = joules - self._energy()

    def figures(self) -> dict[str, float]:
        """`gpu_utilization` (share of the last moments), `gpu_watts`, `gpu_joules` (since the run began)."""
        if self._handle is None:
            return {}
        figures = dict[str, float]()
        with suppress(Exception):  # a card or a driver that does not say one of them
            figures["gpu_utilization"] = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100
        with suppress(Exception):
            figures["gpu_watts"] = self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000
        if energy := self._energy():
            figures["gpu_joules"] = self._before + energy
        return figures

    def _energy(self) -> float:
        """The card's joules since the driver was loaded; 0 if it does not say."""
        if self._handle is None:
            return 0.0
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        except Exception:
            return 0.0


def _open(device: torch.device) -> tuple[Any, Any]:
    """NVML's handle of this card, found by its UUID whatever CUDA_VISIBLE_DEVICES says, and the library; or None."""
    if device.type != "cuda":
        return None, None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"), pynvml
    except Exception:  # not installed, no driver, a MIG slice
        return None, None
