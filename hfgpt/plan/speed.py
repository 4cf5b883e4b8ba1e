"""The speed of this machine's CPU, measured in a fraction of a second without torch, corrected by its runs, and cached.

In:  nothing but the machine; later, what its runs, probes and trials took (hfgpt/plan/step_time.py).
Out: :class:`Speed`: FLOP/s of a matrix product, bytes/s of memory, seconds of a small call; in the user's cache folder
     (`hfgpt/speed.json`), measured again after a month, on another processor, or soon if the machine was busy.
"""

import json
import math
import os
import platform
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hfgpt.base import hardware, threads
from hfgpt.base.errors import UNREADABLE
from hfgpt.base.files import expanded, replace_file
from hfgpt.base.language import _
from hfgpt.model.laws import laws

FRESH = 30 * 86400  # seconds for which a measurement is valid
FRESH_IF_BUSY = 600  # ... if other work on the machine disturbed it
SHARED = 0.08  # loss per further core in the parallel part of a step. Two cores of a Zen 4: 1.85 times one
AIM = 0.25  # approximate seconds of the whole measurement
SIZE = 64  # of the matrices: so short a product that BLAS takes one thread and other work seldom interrupts it

EMULATED = 0.1  # float16 over float32, at most: CPUs have no instructions that torch uses for it


# The speeds that decide how long the parts of a step take: of calls, of matrix products in a type, and of memory.
PARTS = ("calls", "float32", "bfloat16", "memory")

# Standard deviations of the logs of their corrections on a processor of a kind that the law was fitted on. Two machines
# of a kind differ in their clocks and their neighbours.
KNOWN = (0.2, 0.1, 0.1, 0.1)
UNKNOWN = (0.5, 0.25, 0.5, 0.35)  # on another processor


@dataclass(frozen=True)
class Speed:
    """One measurement; with the corrections by which a step is priced."""

    key: str  # what it was measured on; another key makes it stale
    when: float  # seconds since 1970
    float32: float  # FLOP/s of a matrix product on one core, by numpy's BLAS
    bfloat16: float  # the same, by what its instructions usually reach: numpy has no such type
    cores: int  # that a run may use
    bandwidth: float  # bytes/s of a copy in memory, read and written
    call: float  # seconds of a small numpy operation, the unit of a step's fixed costs
    busy: bool  # whether other work ran meanwhile; the machine may then be faster
    # seconds from a training command to its first step, from a run, a trial or a probe; None before the first
    start: float | None = None
    # for each of PARTS the log of its real time over the measured one, and their covariance
    corrections: Sequence[float] = (0.0, 0.0, 0.0, 0.0)
    covariance: Sequence[Sequence[float]] = field(default_factory=lambda: _diagonal(KNOWN))

    def core(self, dtype: str) -> float:
        """Return the FLOP/s of a matrix product in a type, on one core."""
        if dtype == "bfloat16":
            return self.bfloat16 / self._correction("bfloat16")
        single = self.float32 / self._correction("float32")
        return single if dtype == "float32" else single * min(EMULATED, self.bfloat16 / self.float32)

    @property
    def memory(self) -> float:
        """The bytes/s of memory, read and written, by one core."""
        return self.bandwidth / self._correction("memory")

    @property
    def small_call(self) -> float:
        """The seconds of a small operation."""
        return self.call * self._correction("calls")

    def _correction(self, part: str) -> float:
        return math.exp(self.corrections[PARTS.index(part)])

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
        part = PARTS.index("bfloat16" if dtype == "bfloat16" else "float32")
        if self.covariance[part][part] > max(KNOWN) ** 2:
            return _(
                "how fast this processor is in {dtype} is assumed, until a run or --probe measures it", dtype=dtype
            )
        return ""


def this_machine(cpu_threads: int | str = "auto") -> Speed:
    """Return the cached measurement, or a new one; with the cores that a run with so many `cpu_threads` uses."""
    kept, key = _read(), _key()
    if kept and kept.key == key and 0 <= time.time() - kept.when < (FRESH_IF_BUSY if kept.busy else FRESH):
        return replace(kept, cores=threads.cores(cpu_threads))
    speed = measure()
    if kept and kept.key == key:
        speed = replace(speed, corrections=kept.corrections, covariance=kept.covariance, start=kept.start)
    _write(speed)
    return replace(speed, cores=threads.cores(cpu_threads))


def loaded() -> bool:
    """Whether other processes have been running in the last minute."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return load > threads.cores() + 0.5


def learn(**measured: Any) -> None:
    """Store what a run, a probe or a trial measured on this machine: `corrections` and `covariance`, `start`."""
    _write(replace(this_machine(), **measured))


def measure() -> Speed:
    """Measure now; take the best of many repetitions, since other work can only slow one down."""
    left = np.full((SIZE, SIZE), 0.5, dtype=np.float32)
    product, source = np.empty_like(left), np.full(1 << 21, 0.5, dtype=np.float32)
    copy, small = np.empty_like(source), np.full(64, 0.5, dtype=np.float32)
    before, cpu = time.perf_counter(), time.process_time()
    seconds = _best(lambda: np.matmul(left, left, out=product), AIM / 2)
    copying = _best(lambda: np.copyto(copy, source), AIM / 4)
    calling = _best(lambda: [np.add(small, small) for _ in range(100)], AIM / 8) / 100
    used = (time.process_time() - cpu) / (time.perf_counter() - before)
    float32 = 2 * SIZE**3 / seconds
    return Speed(
        key=_key(),
        when=time.time(),
        float32=float32,
        bfloat16=float32 * hardware.usual_bfloat16_ratio(),
        cores=threads.cores(),
        bandwidth=2 * source.nbytes / copying,
        call=calling,
        busy=used < 0.9,
        **_prior(),
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


def _prior() -> dict[str, Any]:
    """Return the corrections to begin with, and their covariance: those of this kind of processor, if it is known.

    The law was fitted on several kinds. On another one their mean is the best guess.
    """
    known: dict[str, list[float]] = laws().step["processors"]
    if (own := known.get(hardware.processor_family())) is not None:
        return {"corrections": own, "covariance": _diagonal(KNOWN)}
    return {"corrections": np.mean(list(known.values()), axis=0).tolist(), "covariance": _diagonal(UNKNOWN)}


def _diagonal(deviations: Sequence[float]) -> list[list[float]]:
    variances: list[list[float]] = np.diag(np.square(deviations)).tolist()
    return variances


@cache
def _key() -> str:
    """Return what makes a measurement stale: another machine, or another law, which other corrections suit."""
    law = zlib.crc32(json.dumps(laws().step).encode())
    return f"{platform.node()} {platform.machine()} {hardware.processor()} {law:x}"


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
    if name in ("corrections", "covariance"):
        shape = (len(PARTS),) * (1 if name == "corrections" else 2)
        if np.shape(value) != shape or not np.isfinite(np.array(value, dtype=float)).all():
            return False
        return name == "corrections" or bool(np.linalg.eigvalsh(value).min() > 0)
    if value is None:
        return name == "start"
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
