"""Only one process uses a folder: who holds the lock, who is refused, and when a dead holder's lock is taken over."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from hfgpt.base import lock
from hfgpt.base.errors import Failure, InputError
from hfgpt.base.lock import FolderLock, holder_of

HOLD = """
import sys, time
from pathlib import Path
from hfgpt.base.lock import FolderLock
FolderLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


def another_process(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    process = another_process(tmp_path)
    try:
        before = (tmp_path / ".lock").read_bytes()
        with pytest.raises(InputError, match=rf"is in use by process {process.pid} on .*, since 20\d\d-"):
            FolderLock(tmp_path).acquire()
        assert (tmp_path / ".lock").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        holder = holder_of(tmp_path)
        assert holder
        assert holder.process == process.pid
    finally:
        process.kill()
    assert process.stdout
    process.stdout.close()
    # The process is dead and its parent has not waited for it; nobody holds the lock.
    deadline = time.monotonic() + 10
    while holder_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    with FolderLock(tmp_path):
        assert holder_of(tmp_path) is not None
    assert not list(tmp_path.iterdir())
    process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process's start is not counted from the machine's")
def test_a_clock_that_is_set_kills_no_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a step of the clock, Linux gives another time of its own start, and psutil one of each process's."""
    process = another_process(tmp_path)
    try:
        before = psutil.boot_time()
        for hours in (-1, 1):
            for module in (psutil, psutil._psplatform):  # the public name, and what a process's start is counted from
                monkeypatch.setattr(module, "boot_time", lambda hours=hours: before + 3600 * hours)
            holder = holder_of(tmp_path)
            assert holder
            assert holder.process == process.pid
            with pytest.raises(InputError, match="is in use by process"):
                FolderLock(tmp_path).acquire()
    finally:
        process.kill()
        assert process.stdout
        process.stdout.close()
        process.wait()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs another user, and a mount of its own")
def test_a_holder_that_another_user_cannot_see_holds_on() -> None:
    """Clusters mount /proc with hidepid: the process seems to have ended. Its files may be for its own eyes."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    mask = os.umask(0o077)
    process = another_process(folder)
    os.umask(mask)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    try:
        other = context.Process(target=take_as_nobody, args=(folder, results))
        other.start()
        told = results.get(timeout=60)
        other.join()
        if told.startswith("cannot"):
            pytest.skip(told)
        assert f"is in use by process {process.pid}" in told
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(folder)


def take_as_nobody(folder: Path, results: Any) -> None:
    """Try to take a lock as another user, who sees only their own processes."""
    libc, new_mounts, private = ctypes.CDLL(None), 0x20000, 0x40000 | 0x4000
    if libc.unshare(new_mounts) or libc.mount(None, b"/", None, private, None):
        return results.put("cannot unshare the mounts here")
    if libc.mount(b"proc", b"/proc", b"proc", 0, b"hidepid=2"):
        return results.put("cannot mount /proc here")
    os.setgid(65534)
    os.setuid(65534)
    try:
        FolderLock(folder).acquire()
        return results.put("took it")
    except InputError as error:
        return results.put(str(error))


def take(folder: str, results: object, all_tried: object) -> None:
    try:
        FolderLock(Path(folder)).acquire()
        results.put(os.getpid())  # type: ignore[attr-defined]
        all_tried.wait(60)  # type: ignore[attr-defined]
    except InputError:
        results.put(0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("dead", [False, True], ids=["free", "a dead holder"])
def test_of_many_at_once_one_has_it(tmp_path: Path, dead: bool) -> None:
    if dead:
        process = another_process(tmp_path)
        process.kill()
        process.communicate()
    context = multiprocessing.get_context("fork")
    results, all_tried = context.Queue(), context.Event()
    processes = [context.Process(target=take, args=(str(tmp_path), results, all_tried)) for _ in range(8)]
    for each in processes:
        each.start()
    taken = [results.get(timeout=60) for _ in processes]
    all_tried.set()
    for each in processes:
        each.join()
    assert sum(who != 0 for who in taken) == 1


def of_another_machine(folder: Path, silent: float) -> None:
    """Write a lock as another machine on the shared disk would, last touched this many seconds ago."""
    path = folder / ".lock"
    path.touch()
    content = {"machine": "node7 boot namespace", "process": 1, "began": 0.0, "since": time.time(), "token": "x"}
    path.write_text(json.dumps({**content, "inode": path.stat().st_ino}))
    os.utime(path, (time.time() - silent,) * 2)


def test_another_machines_lock_lives_while_it_gives_signs_of_life(tmp_path: Path) -> None:
    of_another_machine(tmp_path, silent=5)
    with pytest.raises(InputError, match="is in use by process 1 on node7, since"):
        FolderLock(tmp_path).acquire()
    of_another_machine(tmp_path, silent=lock.SILENCE + 5)
    with FolderLock(tmp_path) as held:
        held.check()


def test_a_silent_machine_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection may only be interrupted: the lock is taken over after SILENCE, not earlier."""
    monkeypatch.setattr(lock, "BEAT", 0.2)
    monkeypatch.setattr(lock, "SILENCE", 4.0)
    of_another_machine(tmp_path, silent=0.5)
    began = time.monotonic()
    with FolderLock(tmp_path):
        assert time.monotonic() - began > 1.0


def test_a_holder_whose_folder_was_moved_finds_out(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    held = FolderLock(folder).acquire()
    folder.rename(tmp_path / "moved")
    with pytest.raises(Failure, match=r"run: was moved or deleted while this process worked in it"):
        held.check()
    held.release()
    assert not folder.exists()


def test_a_holder_that_was_suspended_finds_out(tmp_path: Path) -> None:
    held = FolderLock(tmp_path).acquire()
    held.check()
    of_another_machine(tmp_path, silent=0)
    with pytest.raises(Failure, match="was taken over by process 1 on node7"):
        held.check()
    held.release()
    assert (tmp_path / ".lock").exists(), "it is the other's now"


def test_a_copied_lock_counts_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with FolderLock(tmp_path / "a"):
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        assert holder_of(tmp_path / "b") is None
        with FolderLock(tmp_path / "b"):
            pass
        (tmp_path / "a").rename(tmp_path / "c")  # the lock moves with the folder
        assert holder_of(tmp_path / "c") is not None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"machine": 1}', "\0" * 40])
def test_a_damaged_lock_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / ".lock").write_text(content)
    with FolderLock(tmp_path):
        assert holder_of(tmp_path) is not None


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_lock_that_never_ends_is_taken_over(tmp_path: Path, kind: str) -> None:
    """A foreign archive may hold a pipe, into which nobody would write."""
    path = tmp_path / ".lock"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with FolderLock(tmp_path):
        assert path.is_file()
        assert not path.is_symlink()


def test_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with FolderLock(tmp_path), pytest.raises(InputError, match="is in use by"):
        FolderLock(tmp_path).acquire()
    assert not list(tmp_path.iterdir())


def test_it_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with FolderLock(tmp_path):
        os.utime(tmp_path / ".lock", (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / ".lock").stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / ".lock").stat().st_mtime > 0


def test_who_waits_is_told_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the lock as soon as the other process has ended, killed or not."""
    monkeypatch.setattr(lock, "MOMENT", 0.1)
    process, told = another_process(tmp_path), list[lock.Holder]()

    def waiting(holder: lock.Holder) -> None:
        told.append(holder)
        process.kill()

    with FolderLock(tmp_path).acquire(waiting):
        assert [holder.process for holder in told] == [process.pid]
    process.wait()
    assert process.stdout
    process.stdout.close()


def test_a_folder_has_locks_of_several_names(tmp_path: Path) -> None:
    with FolderLock(tmp_path, "a.lock"), FolderLock(tmp_path, "b.lock"):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.lock", "b.lock"]
        assert holder_of(tmp_path, "a.lock")
        assert holder_of(tmp_path) is None
    assert not list(tmp_path.iterdir())
