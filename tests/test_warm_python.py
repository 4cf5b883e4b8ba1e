"""The Python that has the libraries loaded behaves like one that has not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hfgpt.base import shell

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="elsewhere it is the ordinary Python")

SHOWN = "import os, sys; print(sys.argv, os.getcwd(), os.environ['SAID'], input()); print('told', file=sys.stderr)"


def test_a_program_has_its_arguments_folder_environment_and_streams(python: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(f"{SHOWN}\nsys.exit(7)")
    words = (["-c", f"{SHOWN}; sys.exit(7)", "a b"], ["program.py", "a b"], ["-m", "program", "a b"])
    for command in words:
        ours, others = (
            subprocess.run(
                [interpreter, *command], cwd=tmp_path, env={**os.environ, "SAID": "yes"}, input="typed", text=True,
                capture_output=True, check=False,
            )
            for interpreter in (python, sys.executable)
        )  # fmt: skip
        assert (ours.returncode, ours.stdout, ours.stderr) == (7, others.stdout, others.stderr)


def test_what_libraries_read_when_they_are_imported_gets_a_process_of_its_own(python: str) -> None:
    code = "import sys; print('torch' in sys.modules)"
    cases: list[tuple[list[str], dict[str, str], bool]] = [
        ([], {}, True),
        ([], dict.fromkeys(shell.PROGRESS_BARS, "1") | shell.QUIET, True),  # as a command in this process leaves them
        ([], {"HF_TOKEN": "x"}, False),
        (["-X", "dev"], {}, False),
    ]
    for words, variables, loaded in cases:
        said = subprocess.check_output([python, *words, "-c", code], env={**os.environ, **variables}, text=True)
        assert said == f"{loaded}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it_and_what_it_started(python: str, number: int, tmp_path: Path) -> None:
    code = "import os, time; open('pid', 'w').write(str(os.getpid())); print('ready', flush=True); time.sleep(600)"
    with subprocess.Popen([python, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(60) == -number
    child, deadline = int((tmp_path / "pid").read_text()), time.monotonic() + 60
    while psutil.pid_exists(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(child)
