"""Errors of the Hub: retried if they may be transient, otherwise turned into one plain message.

In:  an action of huggingface_hub's client.
Out: its result; or an InputError (the user can fix it) or a HubError (the network or the Hub failed).

Imports neither torch nor transformers.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hfgpt.base.errors import Failure, InputError
from hfgpt.base.language import N_, _, strerror

T = TypeVar("T")

# Seconds before each retry with a busy or restarting server; the client itself is more patient with uploads.
WAITS = (1.0, 2.0, 4.0)


class HubError(Failure):
    """The Hub could not be reached or failed."""


def patiently(action: Callable[[], T]) -> T:
    """Run an action, with retries if the Hub is busy or the connection breaks. The action must be repeatable."""
    for wait in WAITS:
        try:
            return action()
        except Exception as error:
            if not _may_pass(error):
                raise
        time.sleep(wait)
    return action()


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in (408, 412, 429) or status >= 500  # 412: another commit came first
    return isinstance(error, httpx2.TransportError) and not isinstance(error, httpx2.ConnectError)


@contextmanager
def explained(repo_id: str, api: HfApi, revision: str | None = None) -> Iterator[None]:
    """Turn the client's errors into an InputError or a HubError with a single message."""
    try:
        yield
    except (InputError, HubError):
        raise
    except HFValidationError:
        raise InputError(
            "{name!r}: not a name for a repository; write user/name, of letters, digits, '-', '_' and '.'", name=repo_id
        ) from None
    except OfflineModeIsEnabled:
        raise InputError("HF_HUB_OFFLINE is set, so the Hub is not asked; unset it to push or pull") from None
    except (httpx2.ConnectError, httpx2.ConnectTimeout, LocalEntryNotFoundError) as error:
        if isinstance(error.__cause__, HfHubHTTPError):  # the Hub answered with an error status
            raise _of_status(error.__cause__, repo_id, revision) from None
        raise HubError(
            _("{endpoint} cannot be reached ({reason}): check the network, and try again",
              endpoint=api.endpoint, reason=_reason(error))
        ) from None  # fmt: skip
    except HfHubHTTPError as error:
        raise _of_status(error, repo_id, revision) from None
    except OSError as error:
        raise InputError(
            "{path}: cannot be read or written: {reason}", path=error.filename, reason=strerror(error)
        ) from None
    except Exception as error:
        raise _failed(error, repo_id) from error


OF_STATUS = {
    401: N_("the Hub does not know this token (expired, revoked or mistyped): type 'hf auth login' again"),
    403: N_("{repo}: the token has no right to write there; take a token with the role 'write', or another name"),
    404: N_("{repo}: no such repository or revision"),
    409: N_("{repo}: the name is taken; choose another"),
}


def _of_status(error: Exception, repo_id: str, revision: str | None) -> Exception:
    """Return the message for the Hub's status code."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, RevisionNotFoundError):
        return InputError(
            "{repo}: has no revision {revision!r} → name one of its branches, tags or commits",
            repo=repo_id,
            revision=revision or "main",
        )
    if isinstance(error, RepositoryNotFoundError):
        return InputError("{repo}: no such repository, or it is private and the token does not reach it", repo=repo_id)
    if status == 404 and revision is not None:
        return InputError("{repo}: no such repository, or it has no revision {revision!r}", repo=repo_id,
                          revision=revision)  # fmt: skip
    if message := OF_STATUS.get(status or 0):
        return InputError(message, repo=repo_id)
    return _failed(error, repo_id)


def _failed(error: Exception, repo_id: str) -> HubError:
    return HubError(
        _("{repo}: the Hub failed: {reason}; what arrived is kept, so try again", repo=repo_id, reason=_reason(error))
    )


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
