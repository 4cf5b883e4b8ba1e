"""A lock that lets one process at a time work in a folder, even on a disk that several machines share.

In:  a folder.
Out: a :class:`FolderLock`, or an InputError that names the holder (machine, process, since when).

The lock is the file ``.lock`` in the folder, which names its holder. A hard link, which is atomic on NFS too, creates
it with its whole content; the holder touches it every BEAT seconds. A lock is dead, and may be taken over, if its
process on this machine has ended. If its process cannot be seen from here, since it is on another machine or hidden
from this user, the lock is dead after SILENCE seconds without a touch, by the file server's clock. A lock that was
copied with its folder is ignored, since it names the original's inode. A holder that was suspended and lost its folder
finds out in :meth:`FolderLock.check`.
"""

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
from typing import Self

from hfgpt.base.errors import UNREADABLE, Failure, InputError
from hfgpt.base.files import disk_errors
from hfgpt.base.hardware import began, is_hidden
from hfgpt.base.language import _

NAME = ".lock"
BEAT = 10.0  # seconds between two touches of the lock
SILENCE = 60.0  # seconds without a touch after which a holder on another machine counts as dead
MOMENT = 2.0  # seconds of waiting before the user is told who holds the lock
SETTLING = 0.2  # seconds for processes that take over the same dead lock to settle which one got it


@dataclass(frozen=True)
class Holder:
    """The holder of a lock. `since` is in seconds since 1970."""

    machine: str
    process: int
    began: float  # by hfgpt.base.hardware.began, since process numbers are reused
    since: float
    token: str  # unique to this lock
    inode: int  # of the lock file: a copy has a different one

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).strftime("%Y-%m-%d %H:%M:%S")
        name = self.machine.split(" ")[0]
        return _("process {process} on {machine}, since {since}", process=self.process, machine=name, since=since)


class FolderLock:
    """Holds a folder from :meth:`acquire` to :meth:`release`; also a context manager.

    Args:
        folder: must exist.
        name: the lock file's name, if a folder has several locks.
    """

    def __init__(self, folder: Path, name: str = NAME) -> None:
        self._path = folder / name
        self._holder: Holder | None = None
        self._ended = threading.Event()

    def acquire(self, waiting: Callable[[Holder], None] | None = None) -> Self:
        """Acquire the folder. Waits only for a holder on another machine that may have just died.

        Args:
            waiting: if given, wait for any holder, and call this once the wait exceeds MOMENT.

        Raises:
            InputError: another process works in the folder.
            OSError: the folder cannot be written.
        """
        began, announced = time.monotonic(), False
        while self._holder is None:
            holder, silent = self._read()
            if holder is None or _is_dead(holder, silent):
                self._holder = self._write(holder)
            elif silent > 2 * BEAT:
                time.sleep(1.0)  # it soon touches its lock or counts as dead
            elif waiting is not None:
                if not announced and time.monotonic() - began > MOMENT:
                    announced = True
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
        """Check that this process still holds the folder.

        Raises:
            Failure: the folder has gone, or another process took it over while this one was suspended or cut off.
        """
        if self._holder is None:
            return
        holder, _silent = self._read()
        if holder is None:
            raise Failure(
                "{folder}: was moved or deleted while this process worked in it, or its file {file} was",
                folder=self._path.parent,
                file=self._path.name,
            )
        if holder.token != self._holder.token:
            raise Failure(
                "{folder}: was taken over by {holder} while this process was suspended or cut off from the disk",
                folder=self._path.parent,
                holder=holder,
            )

    def release(self) -> None:
        """Release the folder. Does nothing if this process does not hold it."""
        self._ended.set()
        with contextlib.suppress(OSError, Failure):
            self.check()
            if self._holder is not None:
                self._path.unlink()
        self._holder = None

    def __enter__(self) -> Self:
        return self if self._holder else self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _write(self, dead: Holder | None) -> Holder | None:
        """Write this process's lock, replacing a dead one; None if another process was faster."""
        token = uuid.uuid4().hex
        temporary = self._path.with_name(f"{self._path.name}.{token}")
        try:
            with disk_errors(self._path), open(temporary, "x", encoding="utf-8") as file:
                inode = _inode(file.fileno())
                with contextlib.suppress(OSError):  # other users must see who works here, whatever the umask
                    temporary.chmod(0o644)
                holder = Holder(machine(), os.getpid(), began(os.getpid()) or 0.0, time.time(), token, inode)
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
        """Return the holder or None, and how many seconds ago it touched the lock, if it cannot be seen from here.

        Raises:
            PermissionError: another user's lock.
        """
        try:
            if not self._path.is_file():  # a pipe would be waited for, a device read without end
                return None, 0.0
            with open(self._path, encoding="utf-8") as file:
                inode, touched = _inode(file.fileno()), os.fstat(file.fileno()).st_mtime
                holder = Holder(**json.load(file))
            datetime.fromtimestamp(holder.since)
            if [type(value) for value in vars(holder).values()] != [str, int, float, float, str, int]:
                raise TypeError
        except PermissionError:  # another user's
            raise
        except (OSError, *UNREADABLE):
            return None, 0.0
        if holder.inode != inode:
            return None, 0.0
        return holder, 0.0 if _is_visible(holder) else _now(self._path.parent) - touched

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def holder_of(folder: Path, name: str = NAME) -> Holder | None:
    """Return the live process that holds a folder; None if nobody does, or if its lock may not be read."""
    try:
        holder, silent = FolderLock(folder, name)._read()
    except PermissionError:
        return None
    return None if holder is None or _is_dead(holder, silent) else holder


def _is_visible(holder: Holder) -> bool:
    """Whether this process can tell if the holder still runs."""
    return holder.machine == machine() and not is_hidden(holder.process)


def _is_dead(holder: Holder, silent: float) -> bool:
    if not _is_visible(holder):
        return silent > SILENCE
    alive = began(holder.process)
    return alive is None or abs(alive - holder.began) > 1


def machine() -> str:
    """Return this machine's name, boot id and container: only within these do process numbers identify a process."""
    parts = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            parts.append(os.readlink(source) if os.path.islink(source) else Path(source).read_text().strip())
    return " ".join(parts)


def _now(folder: Path) -> float:
    """Return the time by the clock that stamps this folder's files, which may be a file server's."""
    probe = folder / f"{NAME}.{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:  # a read-only folder
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


def _link(source: Path, target: Path) -> bool:
    """Hard-link a file; False if the name is taken or the file system does not support hard links."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True
