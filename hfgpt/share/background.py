"""Pushing a run while it trains.

In:  a run folder, after each export or checkpoint.
Out: the repository, kept up to date by a thread of the main process. Imports neither torch nor transformers.
"""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils.tqdm import disable_progress_bars

from hfgpt.base import threads
from hfgpt.base.language import _
from hfgpt.share import contents, hub

RETRY = 60.0  # seconds after which a failed push is retried


class BackgroundPusher:
    """Pushes a run's exported model, and its checkpoints on request, while it trains.

    :meth:`submit` takes a snapshot, by hard links if the file system has them, so that training can continue to replace
    its files. If pushes are slower than submissions, only the newest waits. A failure costs one warning, and the next
    submission retries; the run is not affected.

    Args:
        checkpoints: also push the checkpoints, and remove those that the folder no longer has.
        warn: called with the first failure in a row, from the pushing thread.

    Attributes:
        held_back: whether a submission waits for the run's first checkpoint; submit again once it is written.
        problem: why the Hub lacks the last submission; None if it does not, or if nothing has failed so far.
    """

    def __init__(
        self,
        run_dir: Path,
        repo_id: str,
        *,
        private: bool | None = None,
        overwrite: bool = False,
        checkpoints: bool = False,
        warn: Callable[[str], None],
        api: HfApi | None = None,
    ) -> None:
        disable_progress_bars()  # its progress bars would mix with the run's
        self.checkpoints = checkpoints
        self._run_dir, self._repo_id, self._private, self._overwrite = run_dir, repo_id, private, overwrite
        self._warn, self._api = warn, api
        self._state = threading.Condition()
        self._waiting: Path | None = None
        self._closed = False
        self.held_back = False
        self.problem: Exception | None = None
        self._number = 0
        self._thread = threading.Thread(target=self._work, name="push", daemon=True)
        for left in run_dir.glob(".pushing-*"):
            shutil.rmtree(left, ignore_errors=True)
        with threads.unpinned():  # otherwise it would share the training thread's core
            self._thread.start()

    def submit(self) -> None:
        """Push the folder's present state, soon. Returns at once; never raises.

        Nothing is pushed before the first checkpoint: a run killed earlier starts again as a new run, which would find
        its name taken.
        """
        try:
            self.held_back = not contents.checkpoint_steps(self._run_dir)
            if self.held_back:
                return
            frozen = self._freeze()
        except Exception as error:  # no error of a push is worth losing a run
            self._failed(error)
            return
        with self._state:
            if self._waiting is not None:
                shutil.rmtree(self._waiting, ignore_errors=True)
            self._waiting = frozen
            self._state.notify()

    def close(self, timeout: float | None = None) -> bool:
        """Finish what is submitted; return True when it is done, False if it is not within `timeout` seconds."""
        with self._state:
            self._closed = True
            self._state.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _freeze(self) -> Path:
        self._number += 1
        frozen = self._run_dir / f".pushing-{self._number}"
        names = (*contents.names(self._run_dir, self.checkpoints), *contents.LAST)
        try:
            frozen.mkdir()
            for name in names:
                source, target = self._run_dir / name, frozen / name
                target.parent.mkdir(exist_ok=True)
                if name.endswith(".safetensors") or "/" in name:  # always replaced, never modified in place
                    _link(source, target)
                elif source.is_file():
                    shutil.copyfile(source, target)
        except BaseException:  # its links would keep deleted checkpoints on the disk
            shutil.rmtree(frozen, ignore_errors=True)
            raise
        return frozen

    def _work(self) -> None:
        try:  # a token that the Hub refuses is heard of now, not after the first hours
            hub.check_token(self._repo_id, self._api)
        except Exception as error:
            self._warn(_("the run will not reach the Hub as things are, and continues: {reason}", reason=error))
            self.problem = error
        unsent: Path | None = None  # what could not be pushed
        while True:
            with self._state:
                self._state.wait_for(lambda: self._waiting is not None or self._closed, RETRY if unsent else None)
                newer, self._waiting, last = self._waiting, None, self._closed
            if newer is not None and unsent is not None:
                shutil.rmtree(unsent, ignore_errors=True)
            folder = newer or unsent
            if folder is None:
                return
            pushed = self._push(folder)
            unsent = None if pushed else folder
            if pushed or last:
                shutil.rmtree(folder, ignore_errors=True)
            if last:
                return

    def _push(self, folder: Path) -> bool:
        try:
            hub.push(
                folder, self._repo_id, private=self._private, overwrite=self._overwrite,
                include_checkpoints=self.checkpoints, run_dir=self._run_dir, api=self._api,
            )  # fmt: skip
        except Exception as error:
            self._failed(error)
            return False
        self._overwrite = False  # the repository's content is now this run's
        self.problem = None
        return True

    def _failed(self, error: Exception) -> None:
        first, self.problem = self.problem is None, error
        if first:
            self._warn(_("the run was not pushed to the Hub, and continues: {reason}", reason=error))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
