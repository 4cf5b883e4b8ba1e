"""A file in another runtime's format, which is there only once it was read back and found to be the same model.

In:  the name of a file that does not exist yet.
Out: the whole file, or none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hfgpt.base.errors import Failure, InputError
from hfgpt.base.files import sync
from hfgpt.base.language import _


class ConversionError(Failure):
    """What was written is not the same model."""


@contextmanager
def needing_elsewhere() -> Iterator[None]:
    """Say how to install a package that an import inside does not find."""
    try:
        yield
    except ImportError as error:
        raise InputError(_("this needs {package} → pip install -e '.[elsewhere]'", package=error.name)) from None


@contextmanager
def new_file(target: str | Path) -> Iterator[Path]:
    """A temporary name beside `target`, which becomes `target` if all goes well and is removed if not."""
    path = Path(target).expanduser()
    if path.exists():
        raise InputError(_("{file!r}: exists already; name another file", file=str(path)))
    temporary = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            _("{file!r}: cannot be written: {reason}", file=str(path), reason=error.strerror or error)
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
