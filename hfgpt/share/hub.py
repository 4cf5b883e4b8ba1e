"""Push to and pull from the Hub, with huggingface_hub's own client.

In:  a run folder and a repository's name; or a repository's name and a target folder.
Out: the repository with the model, its tokenizer, card, recipe and record, and on request the checkpoints, from which
     another machine can resume; or the folder with what was pushed.

A push is one atomic commit: a checkpoint always comes with the record, the model and the card of the same step. An
interrupted upload resumes, since the Hub keeps every complete file. Only safetensors, text and pictures are
transferred: a pull cannot contain code, and a push follows no link and names no path of this machine (public.py).
Imports neither torch nor transformers.
"""

import contextlib
import functools
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import huggingface_hub
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from hfgpt.base.errors import InputError
from hfgpt.base.files import disk_errors, expanded, replacing
from hfgpt.base.lock import FolderLock
from hfgpt.inference.exported import check_folder
from hfgpt.runs import card, metrics, segments
from hfgpt.share import contents
from hfgpt.share.contents import CHECKPOINTS, FILES, LAST, MARKER
from hfgpt.share.hub_errors import explained, patiently

LOCK = ".push"  # a folder in the run folder: one process pushes at a time, even while another one trains


# ------------------------------------------------------------------------------------------------------------- push


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    include_checkpoints: bool = False,
    overwrite: bool = False,
    license: str | None = None,
    run_dir: Path | None = None,
    api: HfApi | None = None,
) -> str:
    """Push an exported folder; return the repository's URL.

    Args:
        folder: the run folder. Its README.md is pushed, and written first if it is missing.
        repo_id: 'user/name', or 'name' for the token's own account; created if it does not exist.
        private: whether a newly created repository is private; None uses the account's setting.
        revision: branch to push to, created if it does not exist; None: the main branch.
        include_checkpoints: also push the checkpoints, and remove older ones there that the folder no longer has.
        overwrite: push even if the repository holds another run's model, and then remove that run's checkpoints.
        license: the licence that the card is to state; None leaves a card that is there as it is, see
            :func:`hfgpt.runs.card.model_card` for a new one.
        run_dir: the run folder, if `folder` is a snapshot of it: one process pushes a run at a time.
        api: a client with an endpoint and a token of its own.

    Raises:
        InputError: there is no exported model, no token or no right; the name is taken or not a name; or another
            process pushes this folder.
        HubError: the Hub cannot be reached, or it failed. Pushing again resumes.
    """
    path, client = check_folder(folder), api or HfApi()
    with alone(run_dir or path):
        _needs_token(client)
        names = [*contents.names(path, include_checkpoints), *LAST]
        if not (path / "README.md").is_file():
            card.write(path, license)
        elif license is not None:
            _state_license(path / "README.md", license)
        with explained(repo_id, client, revision):
            url = patiently(lambda: client.create_repo(repo_id, private=private, exist_ok=True))
            repo = url.repo_id
            if revision is not None:
                patiently(lambda: client.create_branch(repo, branch=revision, exist_ok=True))
            try:
                remote = patiently(lambda: client.list_repo_files(repo, revision=revision))
                theirs = functools.partial(_download, client, repo, revision, remote)
                if not overwrite and {"config.json", metrics.FILE_NAME} & {*remote}:
                    _check_same_run(path, repo, remote, theirs)
                stale = contents.stale(path, remote) if include_checkpoints else []
                checkpoints = contents.checkpoint_files(remote).keys()
                if overwrite and checkpoints and not _is_same_run(path, theirs(metrics.FILE_NAME)):
                    stale = sorted(checkpoints - {*names})  # one of them would be resumed with this run's record
                # Files that the repository already has are skipped.
                added = [CommitOperationAdd(name, contents.public_content(path, name)) for name in names]
                removed = [CommitOperationDelete(name) for name in stale]
                steps = contents.checkpoint_steps(path) if any("/" in name for name in names) else []
                message = f"Step {steps[-1]}" if steps else "Model, tokenizer and record"
                patiently(
                    lambda: client.create_commit(repo, [*added, *removed], commit_message=message, revision=revision)
                )
            except HfHubHTTPError as error:
                if error.response.status_code == 403:
                    raise InputError(
                        "{repo}: the name is taken, and this token may not write to it; choose another name, or take "
                        "a token with the role 'write'",
                        repo=repo,
                    ) from None
                raise
    return str(url)


def _state_license(readme: Path, license: str) -> None:
    """State a licence in a card that is there; all else in it, which may be the user's own words, stays.

    Raises:
        InputError: the card's front matter cannot be read.
    """
    try:
        stated = huggingface_hub.metadata_load(readme) or {}
    except (ValueError, yaml.YAMLError, RecursionError):
        raise InputError(
            "{path}: its front matter is not a YAML mapping → correct it, or remove the file for a new card",
            path=readme,
        ) from None
    with replacing(readme) as changed:
        shutil.copyfile(readme, changed)
        huggingface_hub.metadata_save(changed, {**stated, "license": license})


def check_token(repo_id: str, api: HfApi | None = None) -> None:
    """Ask the Hub whether it knows the token.

    Raises:
        InputError: the token is missing, or the Hub does not know it.
        HubError: the Hub cannot be reached, or it failed.
    """
    client = api or HfApi()
    _needs_token(client)
    with explained(repo_id, client):
        patiently(client.whoami)


def _needs_token(client: HfApi) -> None:
    if not (client.token or huggingface_hub.get_token()):
        raise InputError("the Hub needs a token to push: type 'hf auth login', or set HF_TOKEN to one that may write")


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the folder's lock for pushes; a read-only folder has no lock."""
    try:
        (path / LOCK).mkdir(exist_ok=True)
        lock = FolderLock(path / LOCK).acquire()
    except OSError as error:
        if isinstance(error, PermissionError) and os.access(path, os.W_OK):
            raise  # another user's lock
        yield
        return
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):  # another process waits for it
            (path / LOCK).rmdir()


def _download(api: HfApi, repo: str, revision: str | None, repo_files: Sequence[str], name: str) -> Path | None:
    """Download a file of a repository; None if it does not hold one of this name."""
    if name not in repo_files:
        return None
    return Path(patiently(lambda: api.hf_hub_download(repo, name, revision=revision)))


def _is_same_run(folder: Path, record: Path | None) -> bool:
    """Whether a repository's record is this run's, at whatever step; its first line identifies a run."""
    return (first_line(record.parent) if record else b"") == first_line(folder)


def _check_same_run(folder: Path, repo: str, repo_files: Sequence[str], theirs: Callable[[str], Path | None]) -> None:
    """Refuse to overwrite another run's model, or what another machine has added to this run.

    It went on elsewhere if the Hub's copy was evaluated later than this one, or had a recipe that this one never had.
    """
    record = theirs(metrics.FILE_NAME)
    if not _is_same_run(folder, record):
        if contents.newest(repo_files):
            raise InputError(
                "{repo}: the name is taken: it holds another run\n    → resume that run with --resume=hf://{repo}, "
                "choose another name, or replace it with --overwrite",
                repo=repo,
            )
        raise InputError(
            "{repo}: the name is taken: it holds another model\n    → choose another name, or replace it with "
            "--overwrite",
            repo=repo,
        )
    if record is None:  # both are models without a record
        return
    steps = theirs(segments.FILE_NAME)
    step, own = (_last_evaluated(path) for path in (record, folder / metrics.FILE_NAME))
    unknown = [each for each in segments.read(steps.parent) if each not in segments.read(folder)] if steps else []
    if step > own or unknown:
        raise InputError(
            "{repo}: holds steps of this run that this folder does not have, up to step {step}\n    → continue "
            "them with --resume=hf://{repo}, choose another name, or replace them with --overwrite",
            repo=repo,
            step=step,
        )


def _last_evaluated(record: Path) -> int:
    return int(max(metrics.series(metrics.read(record), "val_loss")[0], default=0))


def first_line(folder: Path) -> bytes:
    """Return the first line of a run's record, which is unique to the run; empty without a record."""
    path = folder / metrics.FILE_NAME
    return path.read_bytes().split(b"\n")[0] if path.is_file() else b""


# ------------------------------------------------------------------------------------------------------------- pull


def pull(
    repo_id: str, folder: str | Path, *, revision: str | None = None, newest: bool = False, api: HfApi | None = None
) -> Path:
    """Download a repository as a run folder, ready to sample, evaluate, fine-tune or, with checkpoints, resume.

    The files are collected in a hidden folder, and moved into place when complete; an interrupted pull resumes.

    Args:
        repo_id: 'user/name'.
        revision: branch, tag or commit; None: the main branch.
        newest: for a run to be resumed: of several checkpoints, download only the newest.
        api: a client with an endpoint and a token of its own.

    Raises:
        InputError: the folder is in use; there is no such repository or revision; it holds no GPT-2.
        HubError: the Hub cannot be reached, or it failed.
    """
    target = Path(os.path.abspath(expanded(folder)))
    # What arrives is collected on the target's disk.
    label = re.sub(r"[^\w.-]", "-", f"{repo_id}-{revision}")[:80]
    label += "-" + hashlib.sha256(f"{repo_id} {revision}".encode(errors="replace")).hexdigest()[:8]
    gathering = target.with_name(f".{target.name[:80]}.pulling-{label}")
    if target.is_dir():
        gathering = target / f".pulling-{label}"
    if target.exists() and (not target.is_dir() or any(path != gathering for path in target.iterdir())):
        raise InputError("{folder!r}: is in use already; name a new folder", folder=str(folder))
    client = api or HfApi()
    with explained(repo_id, client, revision), disk_errors(gathering):
        checkpoints = [CHECKPOINTS]
        if newest:
            remote = patiently(lambda: client.list_repo_files(repo_id, revision=revision))
            checkpoints = contents.newest(remote)
        inside = [f"{folder}/{name}" for folder in checkpoints for name in ("*.safetensors", "*.json", MARKER)]
        patiently(
            lambda: client.snapshot_download(
                repo_id, revision=revision, local_dir=gathering, allow_patterns=[*FILES, *LAST, *inside]
            )
        )
        shutil.rmtree(gathering / ".cache", ignore_errors=True)  # the client's metadata of unfinished downloads
    try:
        check_folder(gathering)
    except InputError as error:
        shutil.rmtree(gathering, ignore_errors=True)
        reason = str(error).partition(": ")[2]
        raise InputError("{repo}: not a model that hfgpt reads: {reason}", repo=repo_id, reason=reason) from None
    if gathering.parent == target:  # an existing folder keeps its location and permissions
        for path in sorted(gathering.iterdir(), key=lambda path: path.name == "config.json"):
            path.replace(target / path.name)
        gathering.rmdir()
    else:
        os.replace(gathering, target)
    return target
