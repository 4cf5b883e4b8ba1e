"""The text that sample continues, from each of its sources."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from hfgpt.base import files
from hfgpt.base.errors import InputError
from hfgpt.commands import models


def prompt(*words: str) -> str:
    return models.read_prompt(models.reader().read(["out/run", *words]))


def test_a_prompt_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes("\ufeffROMEO:\r\n你好".encode())
    assert prompt("--prompt=ROMEO:") == "ROMEO:"
    assert prompt("--prompt", "-x") == "-x"
    assert prompt("--prompt=") == ""
    assert prompt() == "\n"
    assert prompt(f"--prompt_file={path}") == "ROMEO:\r\n你好", "without the mark of the encoding"


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffto be"))
    assert prompt("--prompt_file", "-") == "to be"
    monkeypatch.setattr(sys, "stdin", io.StringIO("to \udcff"))  # bytes that a locale could not decode
    with pytest.raises(InputError, match="prompt_file = '-': cannot be read as text"):
        prompt("--prompt_file=-")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt=a\udcff"], r"prompt = 'a\\udcff': cannot be read as text"),
        (["--prompt_file=no\udcff"], r"prompt_file = 'no\\udcff': cannot be read as text"),
        (["--prompt_file=a\0b"], "prompt_file"),
        (["--prompt=a", "--prompt_file=b"], "cannot be given together with --prompt_file"),
        (["--prompt"], "prompt: needs a value"),
        (["--top_k=x", "--seed=y", "--colour"], "top_k = 'x': must be a whole number\n  seed = 'y'"),
    ],
)
def test_what_cannot_be_read_is_said(words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        prompt(*words)


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes("你好".encode("gbk"))
    with pytest.raises(InputError, match="it is not UTF-8"):
        prompt(f"--prompt_file={path}")


def test_a_pipe_that_nobody_writes_into_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WRITER", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"pipe': cannot be read as text: a pipe into which no process writes"):
        prompt(f"--prompt_file={tmp_path / 'pipe'}")
    with pytest.raises(InputError, match=r"prompt_file = '~nobody-here/x': cannot be read as text: No such file"):
        prompt("--prompt_file=~nobody-here/x")
