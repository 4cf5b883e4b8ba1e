"""To the Hub and back, with huggingface_hub's own client.

In:  a run folder and a repository's name; or a repository's name and where to put it.
Out: the repository holds the model, its tokenizer, card, recipe and record, and on request the checkpoints, from which
     another machine resumes; or the folder holds what was pushed.

The card and the config go last: who finds them finds the weights too. An upload that was cut off goes on where it
was, since the Hub keeps every whole file it got. Nothing but safetensors, text and pictures travels, so nothing that
is pulled can hold code. Imports neither torch nor transformers.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hfgpt.base import threads
from hfgpt.base.errors import Failure, InputError
from hfgpt.inference.exported import check_folder
from hfgpt.runs import card, metrics

if TYPE_CHECKING:
    from huggingface_hub import HfApi


T = TypeVar("T")

# What of a run folder belongs to the model. Other files in it (trackers' logs, notes) stay where they are.
FILES = (
    "model*.safetensors", "model.safetensors.index.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "recipe.yaml", "metrics.jsonl", "samples.jsonl", "*.png",
)  # fmt: skip

LAST = ("config.json", "README.md")

CHECKPOINTS = "checkpoint-*"

CHECKPOINT_MARKER = "COMPLETE"  # hfgpt/train/checkpoint.py writes it into a checkpoint as its last file

# A busy or restarting server is asked again after so many seconds; the client itself is more patient with uploads.
WAITS = (1.0, 2.0, 4.0)


class HubError(Failure):
    """The Hub could not be reached or failed."""


# ------------------------------------------------------------------------------------------------------------- push


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    include_checkpoints: bool = False,
    overwrite: bool = False,
    license: str = "mit",
    api: HfApi | None = None,
) -> str:
    """Push an exported folder; returns the address of the repository.

    Args:
        folder: the run folder. Its README.md is pushed as it is, and written first where there is none.
        repo_id: 'user/name', or 'name' for the token's own account; made if it does not exist.
        private: who sees a repository that is made now; None leaves it to the account's setting.
        revision: branch to push to, made if it does not exist; None: the main one.
        include_checkpoints: push the checkpoints too, and remove pushed ones that the folder no longer has.
        overwrite: push although the repository holds another run's model.
        license: for a card that is written now, see :func:`hfgpt.runs.card.model_card`.
        api: a client with an endpoint and a token of its own.

    Raises:
        InputError: no exported model, no token, no right, a name that is taken or no name.
        HubError: no network, or the Hub failed. Pushing again goes on from there.
    """
    import huggingface_hub
    from huggingface_hub.utils import HfHubHTTPError

    path = check_folder(folder)
    api = api or huggingface_hub.HfApi()
    if not (api.token or huggingface_hub.get_token()):
        raise InputError("the Hub needs a token to push: type 'hf auth login', or set HF_TOKEN to one that may write")
    if not (path / "README.md").is_file():
        card.write(path, license)
    files = _files(path, include_checkpoints)
    with _explained(repo_id, api):
        url = _patiently(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        repo = url.repo_id
        if revision is not None:
            _patiently(lambda: api.create_branch(repo, branch=revision, exist_ok=True))
        try:
            if not overwrite:
                _check_same_run(path, repo, revision, api)
            stale = [f"{CHECKPOINTS}/*"] if include_checkpoints else None
            for names, message in ((files, "Weights, tokenizer and record"), (list(LAST), "Card and config")):
                _upload(api, path, repo, revision, names, message, stale)
                stale = None
        except HfHubHTTPError as error:
            if error.response.status_code == 403:
                raise InputError(
                    f"{repo}: the name is taken, and this token may not write to it; choose another name, or take a "
                    "token with the role 'write'"
                ) from None
            raise
    return str(url)


def _files(folder: Path, include_checkpoints: bool) -> list[str]:
    """What to push before the card and the config: paths inside the folder, checkpoints only where they are whole."""
    found = [path for pattern in FILES for path in folder.glob(pattern) if path.is_file()]
    if include_checkpoints:
        whole = (path for path in folder.glob(CHECKPOINTS) if (path / CHECKPOINT_MARKER).is_file())
        found += [path for checkpoint in whole for path in checkpoint.rglob("*") if path.is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _upload(
    api: HfApi, folder: Path, repo: str, revision: str | None, names: list[str], message: str, stale: list[str] | None
) -> None:
    _patiently(
        lambda: api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, allow_patterns=names, delete_patterns=stale,
            commit_message=message,
        )
    )  # fmt: skip


def _check_same_run(folder: Path, repo: str, revision: str | None, api: HfApi) -> None:
    """A run's record begins with one line, which no other run has: refuse to push over a model that has another."""
    there = set(_patiently(lambda: api.list_repo_files(repo, revision=revision)))
    if "config.json" not in there:
        return
    theirs = b""
    if metrics.FILE_NAME in there:
        theirs = _patiently(lambda: Path(_download(api, repo, revision))).read_bytes()
    ours = (folder / metrics.FILE_NAME).read_bytes() if (folder / metrics.FILE_NAME).is_file() else b""
    if theirs.split(b"\n")[0] != ours.split(b"\n")[0]:
        raise InputError(
            f"{repo}: the name is taken: it holds another model\n"
            "    → choose another name, or replace it with --overwrite"
        )


def _download(api: HfApi, repo: str, revision: str | None) -> str:
    return str(api.hf_hub_download(repo, metrics.FILE_NAME, revision=revision))


# ------------------------------------------------------------------------------------------------------------- pull


def pull(repo_id: str, folder: str | Path, *, revision: str | None = None, api: HfApi | None = None) -> Path:
    """Bring a repository here as a run folder, ready to sample, evaluate, fine-tune or, with checkpoints, resume.

    The files gather in a hidden folder beside, which becomes `folder` when all are there; a pull that was cut off
    goes on from it.

    Args:
        repo_id: 'user/name'.
        folder: a new or empty folder.
        revision: branch, tag or commit; None: the main branch.
        api: a client with an endpoint and a token of its own.

    Raises:
        InputError: the folder is in use; no such repository or revision; no GPT-2 in it.
        HubError: no network, or the Hub failed.
    """
    import huggingface_hub

    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{str(folder)!r}: is in use already; name a new folder")
    api = api or huggingface_hub.HfApi()
    label = f"{repo_id}-{revision}".replace("/", "--")
    beside = target.with_name(f".{target.name}.pulling-{label}")
    wanted = [*FILES, *LAST, *(f"{CHECKPOINTS}/{name}" for name in ("*.safetensors", "*.json", CHECKPOINT_MARKER))]
    with _explained(repo_id, api):
        _patiently(lambda: api.snapshot_download(repo_id, revision=revision, local_dir=beside, allow_patterns=wanted))
    try:
        check_folder(beside)
    except InputError as error:
        shutil.rmtree(beside)
        raise InputError(f"{repo_id}: is no model that hfgpt reads: {str(error).partition(': ')[2]}") from None
    shutil.rmtree(beside / ".cache", ignore_errors=True)  # the client's notes on an unfinished download
    if target.exists():
        target.rmdir()
    os.replace(beside, target)
    return target


# ----------------------------------------------------------------------------------------------------------- errors


def _patiently(action: Callable[[], T]) -> T:
    """Do it, and again after a while where the Hub was busy or the connection was cut. Every action here can repeat."""
    for wait in WAITS:
        try:
            return action()
        except Exception as error:
            if not _may_pass(error):
                raise
        time.sleep(wait)
    return action()


def _may_pass(error: Exception) -> bool:
    import httpx2
    from huggingface_hub.utils import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in (408, 429) or status >= 500
    return isinstance(error, httpx2.TransportError) and not isinstance(error, httpx2.ConnectError)


@contextmanager
def _explained(repo_id: str, api: HfApi) -> Iterator[None]:
    """Turn what the client raises into an InputError or a HubError of one message."""
    import httpx2
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except (InputError, HubError):
        raise
    except HFValidationError:
        raise InputError(
            f"{repo_id!r}: is no name for a repository; write user/name, of letters, digits, '-', '_' and '.'"
        ) from None
    except OfflineModeIsEnabled:
        raise InputError("HF_HUB_OFFLINE is set, so the Hub is not asked; unset it to push or pull") from None
    except (httpx2.ConnectError, httpx2.ConnectTimeout, LocalEntryNotFoundError) as error:
        raise HubError(
            f"{api.endpoint} cannot be reached ({_reason(error)}): check the network, and try again"
        ) from None
    except Exception as error:
        raise _of_status(error, repo_id) from error


def _of_status(error: Exception, repo_id: str) -> Exception:
    """The message for what the Hub answered."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{repo_id}: has no such revision")
    if isinstance(error, RepositoryNotFoundError):
        return InputError(f"{repo_id}: there is no such repository, or it is private and the token does not reach it")
    if status == 401:
        return InputError("the Hub does not know this token (expired, revoked or mistyped): type 'hf auth login' again")
    if status == 403:
        return InputError(
            f"{repo_id}: the token has no right to write there; take a token with the role 'write', or another name"
        )
    if status == 409:
        return InputError(f"{repo_id}: the name is taken; choose another")
    return HubError(f"{repo_id}: the Hub failed: {_reason(error)}; what arrived is kept, so try again")


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# ------------------------------------------------------------------------------------------------------- background


class BackgroundPusher:
    """Pushes a run's exported model while it trains, from a thread of the main process.

    What is pushed is frozen when :meth:`submit` is called, by hard links where the disk has them, so that training can
    go on to replace its files. Where a push takes longer than the time to the next, only the newest waits. A failure
    costs one warning, and the next submission tries again; the run never notices.

    Args:
        run_dir: the run folder.
        repo_id, private, overwrite: see :func:`push`.
        warn: is told of the first failure, from the pushing thread.
        api: see :func:`push`.
    """

    def __init__(
        self,
        run_dir: Path,
        repo_id: str,
        *,
        private: bool | None = None,
        overwrite: bool = False,
        warn: Callable[[str], None],
        api: HfApi | None = None,
    ) -> None:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # they would be drawn into the run's own
        self._run_dir, self._repo_id, self._private, self._overwrite = run_dir, repo_id, private, overwrite
        self._warn, self._api = warn, api
        self._state = threading.Condition()
        self._waiting: Path | None = None
        self._closed = False
        self._warned = False
        self._number = 0
        self._thread = threading.Thread(target=self._work, name="push", daemon=True)
        for left in run_dir.glob(".pushing-*"):
            shutil.rmtree(left, ignore_errors=True)
        with threads.unpinned():  # else it would share the one core of the thread that trains
            self._thread.start()

    def submit(self) -> None:
        """Push the folder as it is now, soon. Returns at once; never raises."""
        try:
            frozen = self._freeze()
        except OSError as error:
            self._failed(error)
            return
        with self._state:
            if self._waiting is not None:
                shutil.rmtree(self._waiting, ignore_errors=True)
            self._waiting = frozen
            self._state.notify()

    def close(self, timeout: float | None = None) -> bool:
        """Finish what is submitted; True when it is done, False when it was not after `timeout` seconds."""
        with self._state:
            self._closed = True
            self._state.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _freeze(self) -> Path:
        self._number += 1
        frozen = self._run_dir / f".pushing-{self._number}"
        frozen.mkdir()
        for name in (*_files(self._run_dir, include_checkpoints=False), *LAST):
            if name.endswith(".safetensors"):  # replaced as a whole, never written into
                _link(self._run_dir / name, frozen / name)
            elif (self._run_dir / name).is_file():
                shutil.copyfile(self._run_dir / name, frozen / name)
        return frozen

    def _work(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._waiting is not None or self._closed)
                folder, self._waiting = self._waiting, None
            if folder is None:
                return
            try:
                push(folder, self._repo_id, private=self._private, overwrite=self._overwrite, api=self._api)
            except Exception as error:  # whatever it is, it is not worth a run
                self._failed(error)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _failed(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f"the model was not pushed to the Hub, and the run goes on: {error}")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk without hard links
        shutil.copyfile(source, target)
