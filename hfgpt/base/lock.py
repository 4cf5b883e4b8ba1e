"""A folder that one process works in at a time, also on a disk that several machines share.

In:  a folder.
Out: a :class:`FolderLock`; or an InputError that names the holder (machine, process, since when).

The lock is the file ``.lock`` in the folder, which names its holder. It appears under its name with its whole content,
by a hard link, which is atomic on NFS too; and the holder touches it every BEAT seconds. A lock is dead, and is taken
over, if its process has ended on this machine, or if it comes from another machine and has been silent for SILENCE
seconds by the file server's own clock. A lock that was copied with its folder counts for nothing: it names the inode of
the original. A holder that was suspended, and lost its folder meanwhile, finds out in :meth:`FolderLock.check`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

import psutil

from hfgpt.base.errors import UNREADABLE, Failure, InputError
from hfgpt.base.language import _

NAME = ".lock"

BEAT = 10.0  # seconds between two signs of life

SILENCE = 60.0  # seconds after which a holder on another machine is taken for dead

MOMENT = 2.0  # seconds of waiting after which one is told for whom

SETTLING = 0.2  # seconds in which several processes that take over the same dead lock find out which one has it


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. `began` and `since` are seconds since 1970."""

    machine: str
    process: int
    began: float  # when the process was started: its number may be used again
    since: float
    token: str  # of this lock alone
    inode: int  # of the lock's file: a copy has another

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).strftime("%Y-%m-%d %H:%M:%S")
        name = self.machine.split(" ")[0]
        return _("process {process} on {machine}, since {since}", process=self.process, machine=name, since=since)


class FolderLock:
    """Holds a folder from :meth:`acquire` to :meth:`release`; or use it as a context.

    Args:
        folder: must exist.
        name: of the lock's file, where a folder has several.
    """

    def __init__(self, folder: Path, name: str = NAME) -> None:
        self._path = folder / name
        self._holder: Holder | None = None
        self._ended = threading.Event()

    def acquire(self, waiting: Callable[[Holder], None] | None = None) -> FolderLock:
        """Take the folder. Waits only for a holder on another machine that may have died a moment ago.

        Args:
            waiting: where it is given, any holder is waited for; it is called once that takes more than a moment.

        Raises:
            InputError: another process works in the folder.
            OSError: the folder cannot be written.
        """
        began, told = time.monotonic(), False
        while self._holder is None:
            holder, silent = self._read()
            if holder is None or _is_dead(holder, silent):
                self._holder = self._write(holder)
            elif holder.machine != _machine() and silent > 2 * BEAT:
                time.sleep(1.0)  # either it gives a sign of life, or it is taken for dead soon
            elif waiting is not None:
                if not told and time.monotonic() - began > MOMENT:
                    told = True
                    waiting(holder)
                time.sleep(0.05)
            else:
                raise InputError(
                    "{folder}: is in use by {holder}\n    → wait until that has ended, or end it; if it does not "
                    "exist any more, remove {file}",
                    folder=self._path.parent,
                    holder=holder,
                    file=self._path,
                )
        threading.Thread(target=self._beat, name="lock", daemon=True).start()
        return self

    def check(self) -> None:
        """Make sure that the folder is still this process's.

        Raises:
            Failure: another process has taken it over while this one was suspended or cut off.
        """
        if self._holder is None:
            return
        holder, _silent = self._read()
        if holder is None or holder.token != self._holder.token:
            raise Failure(
                "{folder}: was taken over by {holder} while this process was suspended or cut off from the disk",
                folder=self._path.parent,
                holder=holder or _("another process"),
            )

    def release(self) -> None:
        """Give the folder back. Does nothing if it is not held, or no longer."""
        self._ended.set()
        with contextlib.suppress(OSError, Failure):
            self.check()
            if self._holder is not None:
                self._path.unlink()
        self._holder = None

    def __enter__(self) -> FolderLock:
        return self if self._holder else self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _write(self, dead: Holder | None) -> Holder | None:
        """Put this process's lock into the folder, also in the place of a dead one; None if another was faster."""
        token = uuid.uuid4().hex
        temporary = self._path.with_name(f"{self._path.name}.{token}")
        try:
            with open(temporary, "x", encoding="utf-8") as file:
                inode = _inode(file.fileno())
                holder = Holder(_machine(), os.getpid(), _began(os.getpid()) or 0.0, time.time(), token, inode)
                json.dump(vars(holder), file)
                file.flush()
                os.fsync(file.fileno())
            if not self._path.exists() and _link(temporary, self._path):
                return holder
            if self._read()[0] != dead:
                return None
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)
        time.sleep(SETTLING)
        last, _silent = self._read()
        return holder if last is not None and last.token == token else None

    def _read(self) -> tuple[Holder | None, float]:
        """The holder or None, and for how many seconds it has been silent, if it is on another machine."""
        try:
            with open(self._path, encoding="utf-8") as file:
                inode, touched = _inode(file.fileno()), os.fstat(file.fileno()).st_mtime
                holder = Holder(**json.load(file))
            datetime.fromtimestamp(holder.since)
            if [type(value) for value in vars(holder).values()] != [str, int, float, float, str, int]:
                raise TypeError
        except (OSError, *UNREADABLE):
            return None, 0.0
        if holder.inode != inode:
            return None, 0.0
        here = holder.machine == _machine()
        return holder, 0.0 if here else _now(self._path.parent) - touched

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def holder_of(folder: Path, name: str = NAME) -> Holder | None:
    """The living process that holds a folder; None if nobody does."""
    holder, silent = FolderLock(folder, name)._read()
    return None if holder is None or _is_dead(holder, silent) else holder


def _is_dead(holder: Holder, silent: float) -> bool:
    if holder.machine != _machine():
        return silent > SILENCE
    began = _began(holder.process)
    return began is None or abs(began - holder.began) > 10  # the clock may have been set meanwhile


def _began(process: int) -> float | None:
    """When a process of this machine was started; None if it has ended."""
    try:
        found = psutil.Process(process)
        return None if found.status() == psutil.STATUS_ZOMBIE else float(found.create_time())
    except psutil.Error:
        return None


def _machine() -> str:
    """This machine's name, with what tells its containers apart: only within one do process numbers say who lives."""
    parts = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            parts.append(os.readlink(source) if os.path.islink(source) else Path(source).read_text().strip())
    return " ".join(parts)


def _now(folder: Path) -> float:
    """The time by the clock that stamps this folder's files, which may be a server's."""
    probe = folder / f"{NAME}.{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:  # a folder that may only be read
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


def _link(source: Path, target: Path) -> bool:
    """Give a file a second name, unless that name is taken, or the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True
