"""The speed of this machine's CPU, measured in a fraction of a second without torch, and cached.

In:  nothing but the machine.
Out: :class:`Speed`: FLOP/s of a matrix product, bytes/s of memory, seconds of a small call; in the user's cache folder
     (`hfgpt/speed.json`), measured again after a month, on another processor, or soon if the machine was busy.
"""

import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hfgpt.base import hardware, threads
from hfgpt.base.errors import UNREADABLE
from hfgpt.base.files import expanded, replace_file
from hfgpt.base.language import _

FRESH = 30 * 86400  # seconds for which a measurement is valid
FRESH_IF_BUSY = 600  # ... if other work on the machine disturbed it
SHARED = 0.08  # loss per further core in the parallel part of a step. Two cores of a Zen 4: 1.85 times one
AIM = 0.25  # approximate seconds of the whole measurement
SIZE = 64  # of the matrices: so short a product that BLAS takes one thread and other work seldom interrupts it

BUSY = 0.8  # share of all threads' time below which other work was running
EMULATED = 0.1  # float16 over float32, at most: CPUs have no instructions that torch uses for it


@dataclass(frozen=True)
class Speed:
    """One measurement."""

    key: str  # what it was measured on; another key makes it stale
    when: float  # seconds since 1970
    float32: float  # FLOP/s of a matrix product on one core, by numpy's BLAS
    cores: int  # that a run may use
    bandwidth: float  # bytes/s of a copy in memory, read and written
    call: float  # seconds of a small numpy operation, the unit of a step's fixed costs
    busy: bool  # whether other work ran meanwhile; the machine may then be faster
    # bfloat16 over float32 by torch, from a probe on this machine; None before the first
    bfloat16_ratio: float | None = None
    # seconds from a training command to its first step, from a trial or a probe; None before the first
    start: float | None = None

    def core(self, dtype: str) -> float:
        """Return the FLOP/s of a matrix product in a type, on one core."""
        if dtype == "float32":
            return self.float32
        ratio = self.bfloat16_ratio or hardware.usual_bfloat16_ratio()
        return self.float32 * (ratio if dtype == "bfloat16" else min(ratio, EMULATED))

    def peak(self, dtype: str) -> float:
        """Return the FLOP/s of a matrix product in a type, on all cores."""
        return self.core(dtype) * self.cores

    @property
    def parallel(self) -> float:
        """The speed-up of all cores over one in the parallel part of a step."""
        return self.cores / (1 + SHARED * (self.cores - 1))

    def note(self, dtype: str) -> str:
        """Describe what a forecast from these figures assumes."""
        if self.busy:
            return _("measured while other work ran on this machine, which is faster without it")
        if dtype == "bfloat16" and self.bfloat16_ratio is None:
            return _("bfloat16 is assumed to be {ratio:g} times as fast as float32, until --probe measures it",
                     ratio=hardware.usual_bfloat16_ratio())  # fmt: skip
        return ""


def this_machine(cpu_threads: int | str = "auto") -> Speed:
    """Return the cached measurement, or a new one; with the cores that a run with so many `cpu_threads` uses."""
    kept, key = _read(), _key()
    if kept and kept.key == key and 0 <= time.time() - kept.when < (FRESH_IF_BUSY if kept.busy else FRESH):
        return replace(kept, cores=threads.cores(cpu_threads))
    speed = measure()
    if kept and kept.key == key:
        speed = replace(speed, bfloat16_ratio=kept.bfloat16_ratio, start=kept.start)
    _write(speed)
    return replace(speed, cores=threads.cores(cpu_threads))


def loaded() -> bool:
    """Whether other processes have been running in the last minute."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return load > threads.cores() + 0.5


def learn(**measured: Any) -> None:
    """Store what a probe or a trial measured on this machine: `bfloat16_ratio`, `start`."""
    _write(replace(this_machine(), **measured))


def measure() -> Speed:
    """Measure now; take the best of many repetitions, since other work can only slow one down."""
    import numpy as np

    left = np.full((SIZE, SIZE), 0.5, dtype=np.float32)
    product, source = np.empty_like(left), np.full(1 << 21, 0.5, dtype=np.float32)
    copy, small = np.empty_like(source), np.full(64, 0.5, dtype=np.float32)
    before, cpu = time.perf_counter(), time.process_time()
    seconds = _best(lambda: np.matmul(left, left, out=product), AIM / 2)
    copying = _best(lambda: np.copyto(copy, source), AIM / 4)
    calling = _best(lambda: [np.add(small, small) for _ in range(100)], AIM / 8) / 100
    used = (time.process_time() - cpu) / (time.perf_counter() - before)
    return Speed(
        key=_key(),
        when=time.time(),
        float32=2 * SIZE**3 / seconds,
        cores=threads.cores(),
        bandwidth=2 * source.nbytes / copying,
        call=calling,
        busy=used < 0.9,
    )


def _best(action: Callable[[], object], limit: float) -> float:
    """Return the seconds of the fastest repetition within the limit; at least three are run."""
    action()
    times: list[float] = []
    while len(times) < 3 or sum(times) < limit:
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


@cache
def _key() -> str:
    return f"{platform.node()} {platform.machine()} {hardware.processor()}"


def _path() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or expanded("~/.cache")) / "hfgpt" / "speed.json"


_unwritten: dict[Path, Speed] = {}  # what could not be cached, by the file in which it belongs


def _read() -> Speed | None:
    if (speed := _unwritten.get(_path())) is not None:
        return speed
    try:
        kept = Speed(**json.loads(_path().read_text(encoding="utf-8")))
        return kept if isinstance(kept.key, str) and all(_is_measured(*pair) for pair in vars(kept).items()) else None
    except (OSError, *UNREADABLE):
        return None


def _is_measured(name: str, value: Any) -> bool:
    """Whether a cached figure is plausible: a finite number above zero, or None if nothing was measured yet."""
    if name in ("key", "busy"):
        return True
    if value is None:
        return name in ("bfloat16_ratio", "start")
    return isinstance(value, int | float) and 0 < value < math.inf


def _write(speed: Speed) -> None:
    path = _path()
    try:
        if not path.is_absolute():  # the user has no home folder
            raise FileNotFoundError
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(asdict(speed)))
    except OSError:  # the next plan takes a quarter of a second longer
        _unwritten[path] = speed
    else:
        _unwritten.pop(path, None)
