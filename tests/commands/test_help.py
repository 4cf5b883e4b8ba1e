"""Each command's --help fits its width in Chinese, whose characters take two columns."""

from __future__ import annotations

import contextlib
import itertools

import pytest

from hfgpt.base import language
from hfgpt.commands.choice import COMMANDS, carry_out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_gap_stands_after_each_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with language.using("zh"), contextlib.suppress(SystemExit):
        carry_out(name, ["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  --lang") for line in lines)
    for line, after in itertools.pairwise(lines):
        if line.startswith("  --") and not after.startswith("      "):
            assert "  " in line.strip(), line


@pytest.mark.parametrize(
    ("name", "usage"),
    [
        ("train", "[--名称=值 …]"),
        ("playground", "[存放训练的文件夹]"),
        ("evaluate", "训练文件夹"),
    ],
)
def test_the_first_line_of_help_is_chinese(name: str, usage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with language.using("zh"), contextlib.suppress(SystemExit):
        carry_out(name, ["--help"])
    first = capsys.readouterr().out.splitlines()[0]
    assert usage in first
    assert "key" not in first
