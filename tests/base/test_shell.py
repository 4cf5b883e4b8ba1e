"""Scripts end like other programs, even if nobody reads their output."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from hfgpt.base import shell
from hfgpt.base.errors import ConfigError, Failure, Fault, InputError, RunError


def unread(script: str, *arguments: Any, stderr: int) -> tuple[int, str]:
    """Return the exit code and standard error of a script whose output goes into a pipe without a reader."""
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()  # long before Python has started
        said = process.stderr.read() if process.stderr is not None else ""
        return process.wait(timeout=240), said


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("named", "answer"),
    [
        ("zh_CN.UTF-8", "没有这个训练文件夹"),
        ("中文", "没有这个训练文件夹"),
        ("en_GB", "no such run folder"),
        ("fr", "must be en | zh"),
    ],
)
def test_a_language_goes_by_its_other_names_and_is_never_ignored(named: str, answer: str) -> None:
    environment = os.environ | {"HFGPT_LANG": named, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(ROOT / "scripts/diagnose.py"), "out/none"]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 2
    assert answer in done.stderr
    done = subprocess.run([*command, "--lang=en"], env=environment, capture_output=True, encoding="utf-8", check=False)
    assert "no such run folder" in done.stderr, "--lang replaces the variable"


@pytest.mark.e2e
@pytest.mark.parametrize("arguments", [("plan.py", "recipes/standard.yaml"), ("train.py", "--help")])
def test_a_script_whose_reader_has_gone_ends_quietly(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert unread(*arguments, stderr=subprocess.PIPE) == (141, "")
    assert unread(*arguments, stderr=subprocess.STDOUT) == (141, "")


@pytest.mark.e2e
def test_a_run_whose_reader_has_gone_ends_quietly(tiny: dict[str, Any], write_recipe: Any) -> None:
    assert unread("train.py", write_recipe(tiny), stderr=subprocess.PIPE) == (141, "")


@pytest.mark.e2e
def test_the_message_of_bad_input_is_still_there(tiny: dict[str, Any], write_recipe: Any) -> None:
    code, said = unread("train.py", write_recipe(tiny | {"n_head": 3}), stderr=subprocess.PIPE)
    assert code == 2
    assert "n_head" in said


CALLS_AT_EACH_DEPTH = """
import resource
from hfgpt.base import shell

def callee():
    pass

def call(depth):
    for _ in range(1000):
        callee()
    if depth:
        call(depth - 1)

def main(words):
    call(100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call(500)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

shell.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted as Linux does")
def test_no_call_of_a_command_asks_the_system_for_memory_of_its_frame() -> None:
    done = subprocess.run([sys.executable, "-c", CALLS_AT_EACH_DEPTH], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 500  # a piece's edge within reach is crossed 1,000 times


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (130, 130)])
def test_the_exit_code_is_mains(returned: int | None, code: int) -> None:
    with pytest.raises(SystemExit) as left:
        shell.run(lambda words: returned, [])
    assert left.value.code == code


def take_from_python() -> object:
    return bytearray(1 << 60)


def take_from_torch() -> object:
    return torch.empty(1 << 50)


@pytest.mark.parametrize("take", [take_from_python, take_from_torch])
def test_no_memory_is_one_message(take: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> None:
    def main(words: list[str]) -> None:
        take()

    with pytest.raises(SystemExit) as left:
        shell.run(main, [])
    assert left.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("out of memory: ")
    assert len(message.splitlines()) == 2


def test_no_thread_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.stack_size(2**46)  # more than there can be
    try:
        with pytest.raises(SystemExit) as left:
            shell.run(lambda words: threading.Thread(target=print).start(), [])
    finally:
        threading.stack_size(before)
    assert left.value.code == 1
    assert capsys.readouterr().err == "the system starts no more threads → end other programs, or see ulimit -u\n"


def test_a_current_folder_that_was_deleted_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gone").mkdir()
    with contextlib.chdir(tmp_path / "gone"):
        (tmp_path / "gone").rmdir()
        with pytest.raises(SystemExit) as left:
            shell.run(lambda words: print(Path.cwd()), [])
    assert left.value.code == 2
    assert capsys.readouterr().err == "the current folder has been deleted → change into another one\n"


def test_another_error_of_torch_is_not_taken_for_it() -> None:
    def main(words: list[str]) -> None:
        torch.zeros(2) @ torch.zeros(3)

    with pytest.raises(RuntimeError, match="size"):
        shell.run(main, [])


def test_another_pipe_that_breaks_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def main(words: list[str]) -> None:
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        shell.run(main, [])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("port = 0: must be more"), 2, "port = 0: must be more\n"),
        (ConfigError([Fault("n_layer", "0", "must be at least 1")]), 2, "The recipe cannot be used:\n"),
        (Failure("the Hub failed"), 1, "the Hub failed\n"),
    ],
)
def test_an_error_that_is_meant_ends_with_its_message(
    error: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(words: list[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        shell.run(main, [])
    printed = capsys.readouterr()
    assert (left.value.code, printed.out) == (code, "")
    assert printed.err.startswith(said)
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(("rank", "said"), [("0", "n_layer"), ("1", "")])
def test_of_several_processes_one_says_what_is_wrong_with_the_recipe(
    rank: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(words: list[str]) -> None:
        raise ConfigError([Fault("n_layer", 0, "must be at least 1")])

    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(SystemExit) as left:
        shell.run(main, [])
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert said in message if said else not message


@pytest.mark.parametrize("error", [InputError("port = 0: must be more"), Failure("the Hub failed"), RunError("step 3")])
def test_the_report_of_a_launcher_ends_with_the_message(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun, with which Accelerate starts several processes, reads it from the file that it names."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    def main(words: list[str]) -> None:
        raise error

    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    with pytest.raises(SystemExit) as left:
        shell.run(main, [])
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=int(str(left.value.code)), error_file=str(path))
    last = ChildFailedError("train.py", {0: failure}).format_msg().strip("=\n").splitlines()[-1]
    assert last.strip().endswith(str(error))
