"""Large libraries are imported without garbage collection, and what a process leaves later is collected as ever."""

from __future__ import annotations

import gc
import importlib
import sys
import weakref

from hfgpt.base.shell import uncollected


class Ring:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.own = self


def test_garbage_between_two_commands_is_collected() -> None:
    """A process that runs many commands does not keep what they leave."""
    left = weakref.ref(Ring())
    with uncollected():
        pass  # what a second command needs is imported already
    gc.collect()
    assert left() is None


def test_what_is_imported_is_set_aside() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "wave"]:
        del sys.modules[name]
    before = gc.get_freeze_count()
    with uncollected():
        importlib.import_module("wave")
    assert gc.get_freeze_count() > before
    assert gc.isenabled()
