"""A CPU run uses every core that it may use, whatever the launcher's environment says, and only those."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from hfgpt.base import threads

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND")


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Simulate four physical cores, CPUs 0, 2, 4 and 6, without an accelerator and without limits."""
    for name in (*VARIABLES, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(threads, "_physical_cores", lambda: [0, 2, 4, 6])
    monkeypatch.setattr(threads, "_quota", lambda processes: 4)
    monkeypatch.setattr(threads, "_accelerator", lambda: False)
    monkeypatch.setattr(threads, "_main_cpu", None)
    monkeypatch.setattr(threads, "_all_cpus", set())
    return monkeypatch


def environment() -> tuple[str | None, ...]:
    return tuple(os.environ.get(name) for name in VARIABLES)


@pytest.mark.usefixtures("cores")
def test_auto_takes_every_physical_core_and_binds_a_thread_to_each() -> None:
    assert threads.configure() == 4
    assert environment() == ("4", "4", "{0},{2},{4},{6}", "true")


@pytest.mark.parametrize("mark", ["LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"])
def test_the_one_thread_that_a_launcher_leaves_is_not_the_users_wish(cores: pytest.MonkeyPatch, mark: str) -> None:
    cores.setenv("OMP_NUM_THREADS", "1")
    cores.setenv(mark, "0")
    assert threads.configure() == 4


def test_the_users_own_number_is_respected(cores: pytest.MonkeyPatch) -> None:
    cores.setenv("OMP_NUM_THREADS", "1")
    assert threads.configure() == 1
    assert environment() == ("1", "1", "{0}", "true")
    for name in VARIABLES:
        cores.delenv(name)
    cores.setenv("OMP_NUM_THREADS", "3")
    cores.setenv("LOCAL_RANK", "0")
    assert threads.configure() == 3


@pytest.mark.parametrize("asked", [1, 3])
def test_the_recipes_number_comes_before_the_environments(cores: pytest.MonkeyPatch, asked: int) -> None:
    cores.setenv("OMP_NUM_THREADS", "2")
    assert threads.configure(asked) == asked
    assert os.environ["OMP_NUM_THREADS"] == str(asked)


@pytest.mark.usefixtures("cores")
def test_more_threads_than_cores_are_not_bound() -> None:
    assert threads.configure(9) == 9
    assert environment() == ("9", "9", None, None)


def test_processes_of_a_machine_share_its_cores(cores: pytest.MonkeyPatch) -> None:
    places = []
    for rank in range(2):
        cores.setenv("LOCAL_RANK", str(rank))
        cores.setenv("LOCAL_WORLD_SIZE", "2")
        cores.setenv("OMP_NUM_THREADS", "1")  # set by torchrun
        for name in ("OMP_PLACES", "OMP_PROC_BIND"):
            cores.delenv(name, raising=False)
        assert threads.configure() == 2
        places.append(os.environ["OMP_PLACES"])
    assert places == ["{0},{2}", "{4},{6}"]


def test_more_processes_than_cores_have_a_thread_each_and_are_not_bound(cores: pytest.MonkeyPatch) -> None:
    for rank in range(5):
        cores.setenv("LOCAL_RANK", str(rank))
        cores.setenv("LOCAL_WORLD_SIZE", "5")
        for name in ("OMP_PLACES", "OMP_PROC_BIND"):
            cores.delenv(name, raising=False)
        assert threads.configure() == 1


@pytest.mark.parametrize("name", ["OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"])
def test_a_binding_of_the_users_own_is_left_alone(cores: pytest.MonkeyPatch, name: str) -> None:
    cores.setenv(name, "something")
    before = {key: os.environ.get(key) for key in ("OMP_PLACES", "OMP_PROC_BIND")}
    assert threads.configure() == 4
    assert {key: os.environ.get(key) for key in before} == before


def test_beside_an_accelerator_nothing_is_bound(cores: pytest.MonkeyPatch) -> None:
    cores.setattr(threads, "_accelerator", lambda: True)
    assert threads.configure() == 4
    assert "OMP_PLACES" not in os.environ


def test_a_containers_limit_is_kept_and_its_threads_are_not_bound(cores: pytest.MonkeyPatch) -> None:
    """The limit counts time, not cores: the two threads may run on any of the four cores."""
    cores.setattr(threads, "_quota", lambda processes: 2)
    assert threads.configure() == 2
    assert "OMP_PLACES" not in os.environ


def test_the_cores_of_a_run_are_known_before_and_after_its_threads_are_set(cores: pytest.MonkeyPatch) -> None:
    assert (threads.cores(), threads.cores(2), threads.cores(9)) == (4, 2, 4)
    threads.configure()
    assert (threads.cores(), threads.cores(2)) == (4, 2)
    cores.setenv("OMP_NUM_THREADS", "1")
    assert threads.cores() == 1, "the user's own number"
    cores.delenv("OMP_NUM_THREADS")
    cores.setattr(threads, "_quota", lambda processes: 2)
    assert threads.cores() == 2, "a container's limit"


def run(program: str) -> list[str]:
    """Return what a Python program prints in its own process, as words."""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_cores_are_those_that_the_process_may_use() -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("no affinity on this system")
    inherited = "import os; from hfgpt.base import threads; print(threads.configure(), *os.sched_getaffinity(0))"
    count, *allowed = run(inherited)
    assert 1 <= int(count) <= len(allowed)
    one = min(os.sched_getaffinity(0))
    program = (
        f"import os; os.sched_setaffinity(0, {{{one}}})\n"
        "from hfgpt.base import threads; print(threads.configure(), os.environ.get('OMP_PLACES', '{%d}'))"
    )
    assert run(program.replace("%d", str(one))) == ["1", f"{{{one}}}"]


# The head of a program whose main thread torch binds to a core, beside whatever accelerator and limit there is.
BINDS = """
import os
from hfgpt.base import threads
threads._accelerator = lambda: False
threads._quota = lambda processes: 10_000
all_cpus = os.sched_getaffinity(0)
threads.configure()
"""


def test_outside_of_torch_the_main_thread_uses_every_core_and_then_its_own() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    program = """
os.sched_setaffinity(0, {threads._main_cpu})  # what OpenMP does to the main thread
with threads.unpinned():
    assert os.sched_getaffinity(0) == all_cpus
assert os.sched_getaffinity(0) == {threads._main_cpu}
try:
    with threads.unpinned():
        raise KeyError
except KeyError:
    assert os.sched_getaffinity(0) == {threads._main_cpu}
"""
    assert run(BINDS + program) == []


def test_work_beside_training_uses_every_core() -> None:
    """A text is tokenised on all of them after torch has bound the main thread, and so are read-ahead and writing."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    program = """
import tempfile, threading
import torch
from pathlib import Path
from hfgpt import config
from hfgpt.data import prepare, tokens
assert os.sched_getaffinity(0) == {threads._main_cpu}, "OpenMP binds the main thread"
with tempfile.TemporaryDirectory() as folder:
    text = Path(folder, "text.txt")
    text.write_text("to be or not to be, that is the question\\n" * 2000)
    counted, count = [], tokens.process_count
    tokens.process_count = lambda config: counted.append(count(config)) or counted[-1]
    for streaming in (False, True):
        recipe = {"dataset": str(text), "tokenizer": "char", "block_size": 8, "streaming": streaming}
        batches = prepare.prepare(config.build(recipe, "run"), Path(folder, "cache")).batches
        next(iter(batches.micro_batches(0, 0, 1, 4)))
    assert set(counted) == {len(all_cpus)}, counted
    assert os.sched_getaffinity(0) == {threads._main_cpu}
    beside = {thread.name.partition("_")[0]: os.sched_getaffinity(thread.native_id)
              for thread in threading.enumerate() if thread is not threading.main_thread()}
    assert beside == dict.fromkeys(beside, all_cpus), beside
    assert "read-ahead" in beside, beside
"""
    assert run(BINDS + program) == []


def test_without_a_binding_unpinned_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_main_cpu", None)
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with threads.unpinned():
        assert before is None or os.sched_getaffinity(0) == before


def test_it_comes_before_torch_and_torch_heeds_it() -> None:
    program = """
import sys
from hfgpt.base import threads
threads.configure(2)
assert "torch" not in sys.modules
import torch
print(torch.get_num_threads())
"""
    assert run(program) == ["2"]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core cannot be left for another")
def test_a_run_leaves_the_core_that_its_launcher_was_bound_to() -> None:
    """With OMP_PROC_BIND exported, a launcher that imports torch is bound to a core, and so are its child processes."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    program = """
import os, sys
os.environ |= dict(OMP_PROC_BIND="true", OMP_NUM_THREADS="1", ACCELERATE_MIXED_PRECISION="no")
os.sched_setaffinity(0, range(os.cpu_count()))  # whatever core this test itself is bound to
allowed = os.sched_getaffinity(0)
os.sched_setaffinity(0, {min(allowed)})
sys.stderr = sys.stdout
from hfgpt.base import threads
count = threads.configure()
print(count == len(threads._physical_cores()), os.sched_getaffinity(0) == allowed)
"""
    words = run(program)
    assert words[:3] == ["OMP_PROC_BIND", "had", "bound"]
    assert words[-2:] == ["True", "True"]
