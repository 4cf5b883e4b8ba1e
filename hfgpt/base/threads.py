"""How this process was launched, and its CPU threads, set before torch loads OpenMP.

In:  `cpu_threads` of the config; RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which
     torchrun, Accelerate and batch systems set.
Out: a :class:`Launch`, or an InputError if the variables contradict each other; OMP_* variables set for this process,
     :func:`unpinned` for the phases of a run outside torch, and :func:`pool` for work beside it.

Two traps make this necessary. `accelerate launch` without a configuration sets OMP_NUM_THREADS=1, so the plain command
would train on one core. Unbound OpenMP threads may also share a core, which multiplies the step time. This module does
not import torch; call :func:`configure` before anything else imports it.
"""

import glob
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from hfgpt.base.errors import InputError
from hfgpt.base.language import _, listed

# The least CPU time of a step, as a share of what its threads could use; below it, other work was running.
BUSY = 0.8


class Launch(NamedTuple):
    """This process's rank in its launch; a process started alone has rank 0 of 1."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def launch() -> Launch:
    """Read and check the variables.

    Raises:
        InputError: a variable is not a number, or the variables it needs are missing.
    """
    port = os.environ.get("MASTER_PORT")
    if port and not (port.isdecimal() and 0 < int(port[:9]) < 65536):
        raise InputError("MASTER_PORT = {text}: must be from 1 to 65535\n    → unset it", text=repr(port))
    rank, local_rank, world, local_world = (
        _number(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    )
    if local_rank is not None or (world or 1) > 1:
        needed = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": world}
        missing = [name for name, value in needed.items() if value is None]
        missing += [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            given = "LOCAL_RANK" if local_rank is not None else "WORLD_SIZE"
            raise InputError(
                "{given} is set, and {missing} is not: a launcher sets all of them\n    → unset {given} to train "
                "with one process, or start with accelerate launch or torchrun",
                given=given,
                missing=listed(missing),
            )
    if (rank or 0) >= (world or 1):
        raise InputError(
            "RANK = {rank}: must be less than WORLD_SIZE ({world})\n    → unset both, or start with accelerate "
            "launch or torchrun",
            rank=rank,
            world=world or 1,
        )
    return Launch(rank or 0, world or 1, local_rank or 0, local_world or 1)


def _number(name: str) -> int | None:
    """Return a variable's value; None if it is not set."""
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise InputError("{name} = {text}: must be a whole number\n    → unset it", name=name, text=repr(text))
    return int(text)


_BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")

_all_cpus: set[int] = set()

_main_cpu: int | None = None


def configure(cpu_threads: int | str = "auto") -> int:
    """Set the number and placement of this process's threads; return the number.

    `auto` divides the physical cores this process may use between the processes on this machine. A number in
    `cpu_threads` is respected, and so is OMP_NUM_THREADS, unless a launcher set it to 1. Variables that already bind
    threads stay unchanged; with an accelerator, threads are not bound.

    Raises:
        InputError: the launcher's variables contradict each other.
    """
    global _main_cpu
    here = launch()
    rank, processes = here.local_rank, here.local_world_size
    if _leave_the_launchers_core():
        message = _("OMP_PROC_BIND had bound the launcher, and with it this run, to one core; it takes {n} again")
        print(message.format(n=len(_physical_cores())), file=sys.stderr)
    cores = _physical_cores()
    own_cores = cores[rank * len(cores) // processes : (rank + 1) * len(cores) // processes]
    threads = _wanted(cpu_threads) or max(1, min(len(own_cores), _quota(processes)))
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    # Binding pays only if each thread has its own core; otherwise the kernel's scheduler does better.
    if (
        threads <= len(own_cores) <= _quota(processes)
        and not any(k in os.environ for k in _BINDING)
        and not _accelerator()
    ):
        _all_cpus.update(os.sched_getaffinity(0))
        _main_cpu = own_cores[0]
        os.environ["OMP_PLACES"] = ",".join(f"{{{cpu}}}" for cpu in own_cores[:threads])
        os.environ["OMP_PROC_BIND"] = "true"
    return threads


def pool(count: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of threads for work beside training: they use every core, not just that of the main thread."""
    return ThreadPoolExecutor(count, name, initializer=_unpin)


def _unpin() -> None:
    if _main_cpu is not None:
        os.sched_setaffinity(0, _all_cpus)


def cores(cpu_threads: int | str = "auto") -> int:
    """Return how many physical cores a run of one process uses, before :func:`configure` or after it."""
    available = max(1, min(len(_physical_cores()), _quota(1)))
    return min(available, _wanted(cpu_threads) or available)


def _wanted(cpu_threads: int | str) -> int | None:
    """Return the number of threads that the recipe or the user's environment sets; None if neither does."""
    if cpu_threads != "auto":
        return int(cpu_threads)
    text = os.environ.get("OMP_NUM_THREADS", "")
    launched = "LOCAL_RANK" in os.environ or any(key.startswith("ACCELERATE_") for key in os.environ)
    return int(text) if text.isdigit() and not (launched and text == "1") else None


def _leave_the_launchers_core() -> bool:
    """Undo an inherited CPU binding; return whether there was one.

    With OMP_PROC_BIND exported, a launcher that imports torch binds its own main thread to a core, and its child
    processes inherit that. :func:`configure` then places threads as it does without the variable.
    """
    launched = "LOCAL_RANK" in os.environ or any(key.startswith("ACCELERATE_") for key in os.environ)
    bound = os.environ.get("OMP_PROC_BIND", "false").lower() not in ("false", "0")
    placed = any(key in os.environ for key in _BINDING if key != "OMP_PROC_BIND")
    if not (launched and bound) or placed or not hasattr(os, "sched_setaffinity"):
        return False
    if len(os.sched_getaffinity(0)) > 1:
        return False
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # the kernel restricts this to the container's cores
    del os.environ["OMP_PROC_BIND"]
    return len(os.sched_getaffinity(0)) > 1


@contextmanager
def unpinned() -> Iterator[None]:
    """Let this thread and its child processes use every core inside; they would inherit OpenMP's binding."""
    if _main_cpu is None:
        yield
        return
    main = threading.current_thread() is threading.main_thread()
    before = {_main_cpu} if main else os.sched_getaffinity(0)
    _unpin()
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _physical_cores() -> list[int]:
    """Return one logical CPU for each physical core that this process may run on."""
    if not hasattr(os, "sched_getaffinity"):  # macOS does not support affinity
        return list(range(psutil.cpu_count(logical=False) or os.cpu_count() or 1))
    seen, cores = set(), []
    for cpu in sorted(_all_cpus or os.sched_getaffinity(0)):  # bound, the main thread has one of them
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = siblings.read_text().strip() if siblings.exists() else str(cpu)
        if core not in seen:
            seen.add(core)
            cores.append(cpu)
    return cores


def _quota(processes: int) -> int:
    """Return each process's share of the container's CPU limit (cgroup v2), rounded up."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, -(-int(quota) // int(period)) // processes)
    except (OSError, ValueError):  # no such limit
        return os.cpu_count() or 1


def _accelerator() -> bool:
    return bool(glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/kfd") or not hasattr(os, "sched_setaffinity"))
