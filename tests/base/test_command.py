"""Commands as they are to be typed: from the folder that the user is in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hfgpt.base.command import typed


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("scripts/train.py", "python scripts/sample.py out/a"),
        ("../kit/scripts/train.py", "python ../kit/scripts/sample.py out/a"),
        ("{here}/kit/scripts/train.py", "python kit/scripts/sample.py out/a"),
        ("/elsewhere/scripts/train.py", "python /elsewhere/scripts/sample.py out/a"),
        ("/usr/bin/hfgpt", "hfgpt sample out/a"),
        ("/usr/lib/hfgpt/__main__.py", "hfgpt sample out/a"),
        ("/usr/bin/pytest", "python scripts/sample.py out/a"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="the paths are POSIX's")
def test_the_next_command_works_from_the_folder_that_this_one_was_typed_in(
    program: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [program.format(here=tmp_path)])
    assert typed("sample", "out/a") == command


@pytest.mark.parametrize(("card", "launcher"), [(None, "python"), ("H100", "accelerate launch")])
def test_only_an_accelerator_takes_the_launcher(
    card: str | None, launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the launcher warns of its defaults, and prints a traceback of its own below our message."""
    monkeypatch.setattr(sys, "argv", ["scripts/plan.py"])
    monkeypatch.setattr("hfgpt.base.hardware.local_accelerator", lambda: card)
    assert typed("train", "a.yaml") == f"{launcher} scripts/train.py a.yaml"
