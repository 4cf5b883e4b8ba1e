"""How this process was launched, from the variables that torchrun, Accelerate and batch systems set.

In:  RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT.
Out: a :class:`Launch`, or an InputError if they contradict each other.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from hfgpt.base.errors import InputError
from hfgpt.base.language import listed


class Launch(NamedTuple):
    """This process's rank in its launch; a process started alone has rank 0 of 1."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def launch() -> Launch:
    """Read and check the variables.

    Raises:
        InputError: a variable is not a number, or the variables it needs are missing.
    """
    _check_port()
    rank, local_rank, world, local_world = (
        _number(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    )
    if local_rank is not None or (world or 1) > 1:
        needed = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": world}
        missing = [name for name, value in needed.items() if value is None]
        missing += [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            given = "LOCAL_RANK" if local_rank is not None else "WORLD_SIZE"
            raise InputError(
                "{given} is set, and {missing} is not: a launcher sets all of them\n    → unset {given} to train "
                "with one process, or start with accelerate launch or torchrun",
                given=given,
                missing=listed(missing),
            )
    if (rank or 0) >= (world or 1):
        raise InputError(
            "RANK = {rank}: must be less than WORLD_SIZE ({world})\n    → unset both, or start with accelerate "
            "launch or torchrun",
            rank=rank,
            world=world or 1,
        )
    return Launch(rank or 0, world or 1, local_rank or 0, local_world or 1)


def _check_port() -> None:
    """Raises InputError if MASTER_PORT is not one."""
    port = os.environ.get("MASTER_PORT")
    if port and not (port.isdecimal() and 0 < int(port[:9]) < 65536):
        raise InputError("MASTER_PORT = {text}: must be from 1 to 65535\n    → unset it", text=repr(port))


def _number(name: str) -> int | None:
    """Return a variable's value; None if it is not set."""
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise InputError("{name} = {text}: must be a whole number\n    → unset it", name=name, text=repr(text))
    return int(text)
