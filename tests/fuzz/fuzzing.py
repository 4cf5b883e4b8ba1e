"""The fuzz lane: `make fuzz`, for FUZZ_MINUTES (by default 5), divided evenly among its targets.

Each target tries new inputs until its time has passed. Hypothesis keeps the failing ones in `.hypothesis/`, and the
next start tries them first. This module has what the targets share: runs to corrupt, a command under supervision, and
ways to corrupt a file.
"""

from __future__ import annotations

import contextlib
import copy as copies
import faulthandler
import hashlib
import io
import json
import math
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from hfgpt import config
from hfgpt.base import shell
from hfgpt.commands.choice import carry_out
from hfgpt.train import loop

MINUTES = float(os.environ.get("FUZZ_MINUTES", "5"))

TINY = {"device": "cpu", "n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "batch_size": 2, "max_iters": 2}
TINY |= {"warmup_iters": 1, "eval_interval": 1, "eval_iters": 1, "num_proc": 1, "sample_prompt": "a"}

SECONDS = 20  # how long a command may compute for a tiny input

PATIENCE = 300  # seconds after which a command that does not compute hangs; other work may take the machine

MEMORY = 3 << 30  # bytes of address space that it may use in addition to the tests


Fuzz = Callable[[st.SearchStrategy[Any], Callable[[Any], None]], None]
Copy = Callable[[str], Path]


class TookTooLong(BaseException):
    """The time limit has passed; no handler of hfgpt catches it."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Limit time and memory. A hang outside Python ends the process, with its place on stderr."""

    def over(_number: int, _frame: FrameType | None) -> None:
        raise TookTooLong

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = {number: signal.signal(number, over) for number in (signal.SIGALRM, signal.SIGPROF)}
    faulthandler.dump_traceback_later(2 * PATIENCE, exit=True, file=sys.__stderr__)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, limits[1]))
    signal.alarm(PATIENCE)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        faulthandler.cancel_dump_traceback_later()
        for number, handler in before.items():
            signal.signal(number, handler)


def contents(folder: Path) -> dict[str, str]:
    """Return each file below a folder with a checksum of its content."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


def command(name: str, *words: str, watched: Path) -> tuple[int, str, str]:
    """Run a command in this process; return exit code, output, errors. A refusal must not change `watched`.

    Raises:
        AssertionError: it ended in a way that no command may.
        BaseException: any other exception of the command.
    """
    output, errors, before = io.StringIO(), io.StringIO(), contents(watched)
    interrupt = signal.getsignal(signal.SIGINT)
    code: Any = None
    try:
        streams = contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors)
        with bounded(), contextlib.chdir(watched), streams[0], streams[1]:
            shell.run(lambda rest: carry_out(name, rest), words)
    except SystemExit as ended:
        code = ended.code
    finally:
        signal.signal(signal.SIGINT, interrupt)
    shown, told = output.getvalue(), errors.getvalue()
    assert code in (0, 2), (code, told)
    assert "Traceback" not in told
    seen = told if name == "sample" else shown + told  # text goes into a pipe unescaped
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", seen.replace("\r", "")), "raw control characters"
    if code == 2:
        assert told.strip(), "refused without a word"
        assert contents(watched) == before, "refused, and wrote"
        assert len(told) < 10_000, "a message of thousands of characters"
    return code, shown, told


# ------------------------------------------------------------------------------------------ spoilt JSON and bytes

DEEP = "\x00deep\x00"  # a placeholder for a hundred thousand nested brackets

ODD: list[Any] = [
    *(-1, 0, 1, 2, 7, 2**31, 2**63, -(2**63), 10**7, 10**30, 10**400),
    *(0.5, -0.0, 1e308, 1e-320, math.inf, -math.inf, math.nan),
    *(None, True, False, "", "x", "0", "1e5", "../x", "/etc/passwd", "\ud800", "\x1b[2Jx", "\r", "(a+)+$", "字" * 300),
    *([], {}, [[]], [None], {"a": {}}, [0] * 1000, DEEP),
]
LEAVES = st.sampled_from(ODD).map(copies.deepcopy) | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))


@st.composite
def spoilt_json(draw: Any, value: Any) -> Any:
    """Draw a JSON value with one to three parts replaced, removed, renamed or added."""
    root = {"": json.loads(json.dumps(value))}
    for _time in range(draw(st.integers(1, 3))):
        holder: Any = root
        key: Any = ""
        while True:
            inner = holder[key]
            if not inner or not isinstance(inner, dict | list) or not draw(st.integers(0, 4)):
                break
            places = sorted(inner) if isinstance(inner, dict) else range(len(inner))
            holder, key = inner, draw(st.sampled_from(places))
        deed = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add", "copy"]))
        if deed == "replace" or not isinstance(holder, dict) or holder is root or key not in holder:
            holder[key] = draw(VALUES)
        elif deed == "remove":
            del holder[key]
        elif deed == "rename":
            name = draw(st.text(max_size=8) | st.sampled_from(sorted(holder)))
            holder[name] = holder.pop(key)
        elif deed == "copy":
            holder[key] = holder[draw(st.sampled_from(sorted(holder)))]
        else:
            holder[draw(st.text(max_size=8))] = draw(VALUES)
    return root[""]


def written(value: Any) -> bytes:
    """Return JSON as Python writes it, even if it is invalid (Infinity, lone surrogates), with DEEP expanded."""
    with digits():
        text = json.dumps(value, ensure_ascii=True)
    return text.replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000).encode()


@contextlib.contextmanager
def digits() -> Iterator[None]:
    """Allow integers of any number of digits to be written."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


@st.composite
def spoilt_bytes(draw: Any, raw: bytes) -> bytes:
    """Draw bytes with a part replaced, cut or doubled."""
    start = draw(st.integers(0, len(raw)))
    stop = draw(st.integers(start, min(len(raw), start + draw(st.sampled_from([0, 1, 8, 100, len(raw)])))))
    middle = draw(st.binary(max_size=20) | st.sampled_from([b"\0" * 1000, b"[" * 100_000, b"9" * 5000, b"\xff\xfe"]))
    return raw[:start] + middle + raw[stop:] * draw(st.integers(0, 2))


@st.composite
def spoilt_file(draw: Any, path: Path) -> bytes:
    """Draw the corrupted content of a file, according to its format."""
    raw = path.read_bytes()
    if draw(st.integers(0, 3)) == 0:
        return bytes(draw(spoilt_bytes(raw) | st.binary(max_size=50)))
    if path.suffix == ".json":
        return written(draw(spoilt_json(json.loads(raw))))
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in raw.splitlines()]
        for _time in range(draw(st.integers(1, 3))):
            number = draw(st.integers(0, len(lines) - 1))
            lines[number] = draw(spoilt_json(lines[number]))
        return b"".join(written(line) + b"\n" for line in lines)
    if path.suffix == ".safetensors":
        length = int.from_bytes(raw[:8], "little")
        header = written(draw(spoilt_json(json.loads(raw[8 : 8 + length]))))
        said = draw(st.sampled_from([len(header)] * 4 + [0, 2**40, 2**64 - 1]))
        return said.to_bytes(8, "little") + header + raw[8 + length :]
    return bytes(draw(spoilt_bytes(raw)))


def put(path: Path, raw: bytes) -> None:
    """Write a file of the input."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)


def put_data(place: Path, files: dict[str, bytes]) -> None:
    """Write the files of `data`, after removing those of an earlier input's run `made`."""
    for name in ("data", "made"):
        shutil.rmtree(place / name, ignore_errors=True)
    for name, content in files.items():
        put(place / "data" / name, content)


# ----------------------------------------------------------------------------------------------------- the lane


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Fuzz:
    """fuzz(strategy, check): check examples of the strategy until the target's time has passed."""

    share = MINUTES * 60 / sum(item.get_closest_marker("fuzz") is not None for item in request.session.items)

    def run(strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
        tried, end = 0, time.monotonic() + share

        @settings(
            max_examples=50,
            deadline=None,
            derandomize=False,
            database=DirectoryBasedExampleDatabase(".hypothesis/examples"),  # the tests' own profile keeps none
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        @given(strategy)
        def some(example: Any) -> None:
            nonlocal tried
            if time.monotonic() < end + 60:  # time to shrink a failing example
                tried += 1
                check(example)

        some.hypothesis.inner_test.__qualname__ = check.__qualname__  # type: ignore[attr-defined]  # its place in the database
        try:
            while time.monotonic() < end:
                some()
        except BaseException:  # pytest tells of it only when every target has had its time
            traceback.print_exc(file=sys.__stderr__)
            raise
        print(f"{tried:,} inputs", end=" ")

    return run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path) -> dict[str, Path]:
    """Return two run folders with checkpoints: one of characters, one of byte-pair tokens."""
    made = {}
    for name, more in {"char": {}, "bpe": {"tokenizer": "bpe", "vocab_size": 300}}.items():
        folder = tmp_path_factory.mktemp("fuzz") / name
        values = TINY | {"dataset": str(tiny_text), "out_dir": str(folder)} | more
        assert loop.train(config.build(values, "test")) == 0
        made[name] = folder
    return made


@pytest.fixture
def copy(runs: dict[str, Path], tmp_path: Path) -> Copy:
    """copy(name) → a new copy of a run folder to corrupt, always at the same path."""

    def made(name: str) -> Path:
        target = tmp_path / "in" / "run"
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(runs[name], target))

    return made
