"""Ctrl-C at any moment of a command's start ends the process with 130 and without a message."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from conftest import ROOT

# Sends Ctrl-C to this process when it imports a certain module.
AT_IMPORT = """
import importlib.abc, os, runpy, signal, sys

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == moment:
            os.kill(os.getpid(), signal.SIGINT)

moment = sys.argv.pop(1)
sys.meta_path.insert(0, Interrupt())
"""


@pytest.mark.parametrize("how", ["script", "module"])
@pytest.mark.parametrize("moment", ["hfgpt.base.shell", "hfgpt.base.language", "hfgpt.commands.runs", "pydantic"])
def test_ctrl_c_while_a_command_starts(how: str, moment: str) -> None:
    start = (
        f"runpy.run_path({str(ROOT / 'scripts' / 'diagnose.py')!r}, run_name='__main__')"
        if how == "script"
        else "sys.argv[1:1] = ['diagnose']; runpy.run_module('hfgpt', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", AT_IMPORT + start, moment, "nothing"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
