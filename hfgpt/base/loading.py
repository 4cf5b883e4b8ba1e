"""Large libraries, loaded sooner.

In:  a block that imports them.
Out: the same modules, and less time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no garbage inside, nor later among what was made inside.

    torch and transformers make a million objects that stay. To look through them over and over is a sixth of the time
    that the import takes, and would be a part of every later search.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
