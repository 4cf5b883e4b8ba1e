"""Threads of a CPU run, decided before torch loads its OpenMP.

In:  `cpu_threads` of the config, and what a launcher said about the processes of this machine.
Out: OMP_* variables set for this process, and :func:`unpinned` for the phases of a run that are not torch's.

Two traps make this necessary. `accelerate launch` without a configuration sets OMP_NUM_THREADS=1, so the plain
command would train on one core. And unbound OpenMP threads may share a core, which costs a multiple of the step time.
Importing this module imports no torch; call :func:`configure` before anything does.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hfgpt.base.language import _
from hfgpt.base.launch import launch

_BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")

_all_cpus: set[int] = set()

_main_cpu: int | None = None


def configure(cpu_threads: int | str = "auto") -> int:
    """Set the number and places of this process's threads; returns the number.

    `auto` takes the physical cores this process may use, shared between the processes of this machine. A number in
    `cpu_threads` is respected, and so is OMP_NUM_THREADS, unless a launcher put its own 1 there. Variables that
    already bind threads are left alone; with an accelerator present nothing is bound.

    Raises:
        InputError: what a launcher set does not go together.
    """
    global _main_cpu
    here = launch()
    rank, processes = here.local_rank, here.local_world_size
    if _leave_the_launchers_core():
        message = _("OMP_PROC_BIND had bound the launcher, and with it this run, to one core; it takes {n} again")
        print(message.format(n=len(_physical_cores())), file=sys.stderr)
    cores = _physical_cores()
    mine = cores[rank * len(cores) // processes : (rank + 1) * len(cores) // processes]
    launched = "LOCAL_RANK" in os.environ or any(key.startswith("ACCELERATE_") for key in os.environ)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if cpu_threads != "auto":
        threads = int(cpu_threads)
    elif asked.isdigit() and not (launched and asked == "1"):
        threads = int(asked)
    else:
        threads = max(1, min(len(mine), _quota(processes)))
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    # Binding pays where each thread has a core of its own; elsewhere the kernel's scheduler knows better.
    if threads <= len(mine) <= _quota(processes) and not any(k in os.environ for k in _BINDING) and not _accelerator():
        _all_cpus.update(os.sched_getaffinity(0))
        _main_cpu = mine[0]
        os.environ["OMP_PLACES"] = ",".join(f"{{{cpu}}}" for cpu in mine[:threads])
        os.environ["OMP_PROC_BIND"] = "true"
    return threads


def _leave_the_launchers_core() -> bool:
    """Undo a binding that this process has inherited; returns whether there was one.

    With OMP_PROC_BIND exported, a launcher that imports torch binds its own main thread to a core, and every process
    that it starts begins there. Threads are then placed by :func:`configure`, as without the variable.
    """
    launched = "LOCAL_RANK" in os.environ or any(key.startswith("ACCELERATE_") for key in os.environ)
    bound = os.environ.get("OMP_PROC_BIND", "false").lower() not in ("false", "0")
    placed = any(key in os.environ for key in _BINDING if key != "OMP_PROC_BIND")
    if not (launched and bound) or placed or not hasattr(os, "sched_setaffinity"):
        return False
    if len(os.sched_getaffinity(0)) > 1:
        return False
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # the kernel keeps to what a container allows
    del os.environ["OMP_PROC_BIND"]
    return len(os.sched_getaffinity(0)) > 1


@contextmanager
def unpinned() -> Iterator[None]:
    """Let the main thread, and processes started inside, use every core: OpenMP binds it, and children inherit that."""
    if _main_cpu is None:
        yield
        return
    os.sched_setaffinity(0, _all_cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, {_main_cpu})


def _physical_cores() -> list[int]:
    """One logical CPU of each physical core that this process may run on."""
    if not hasattr(os, "sched_getaffinity"):  # macOS has no affinity
        return list(range(os.cpu_count() or 1))
    seen, cores = set(), []
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = siblings.read_text().strip() if siblings.exists() else str(cpu)
        if core not in seen:
            seen.add(core)
            cores.append(cpu)
    return cores


def _quota(processes: int) -> int:
    """CPUs that a container's limit leaves to each process of this machine (cgroup v2), rounded up."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, -(-int(quota) // int(period)) // processes)
    except (OSError, ValueError):  # no such limit
        return os.cpu_count() or 1


def _accelerator() -> bool:
    return bool(glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/kfd") or not hasattr(os, "sched_setaffinity"))
