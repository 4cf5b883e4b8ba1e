"""No user command needs a POSIX system, as far as this can be tested without Windows and macOS."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

ELSEWHERE = ROOT / "tests" / "elsewhere.py"

IMPORT_ALL = """
import pkgutil, sys
sys.path.insert(0, sys.argv[1])
import hfgpt
for module in pkgutil.walk_packages(hfgpt.__path__, "hfgpt."):
    if not module.name.startswith("hfgpt.locale") and module.name != "hfgpt.__main__":
        __import__(module.name)
print("all")
"""


def elsewhere(folder: Path, *words: Any) -> str:
    """Return what a program prints on a system without POSIX's modules."""
    done = subprocess.run(
        [sys.executable, ELSEWHERE, *map(str, words)], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.e2e
def test_every_module_is_imported(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(IMPORT_ALL)
    assert elsewhere(tmp_path, program, ROOT).endswith("all\n")


@pytest.mark.e2e
def test_from_the_plan_to_a_sample(tmp_path: Path, tiny: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe({**tiny, "num_proc": 2})
    scripts = ROOT / "scripts"
    assert "Parameters" in elsewhere(tmp_path, scripts / "plan.py", recipe)
    assert "next:" in elsewhere(tmp_path, scripts / "train.py", recipe)
    elsewhere(tmp_path, scripts / "train.py", tmp_path / "run", "--resume", "--max_iters=12")
    assert elsewhere(tmp_path, scripts / "sample.py", tmp_path / "run", "--max_new_tokens=5")
    assert "steps" in elsewhere(tmp_path, scripts / "diagnose.py", tmp_path / "run")


@pytest.mark.e2e
def test_a_sweep(tmp_path: Path, tiny: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    pytest.importorskip("optuna")
    tiny.pop("out_dir")
    words = [write_recipe(tiny), "--learning_rate=1e-3,1e-2", "--out_dir=both"]
    assert "report and pictures" in elsewhere(tmp_path, ROOT / "scripts" / "sweep.py", *words)


PAGE = """
import asyncio, sys, time
from pathlib import Path
from hfgpt import config
from hfgpt.playground.page import Page
from hfgpt.playground.page import application, listen
from hfgpt.playground.trainer import Trainer

async def build():
    return Page("runs", sys.argv[1], "en", ["-m", "hfgpt", "train"])

page = asyncio.run(build())
application(page)
listen("127.0.0.1", int(sys.argv[2])).close()
trainer = Trainer(Path("runs"), sys.argv[3:])
trainer.start("mine", config.load(sys.argv[1]))
while trainer.state("mine").step == 0:
    assert trainer.is_running("mine"), trainer.state("mine").log
    time.sleep(0.1)
trainer.pause("mine")
while trainer.is_running("mine"):
    time.sleep(0.1)
state = trainer.state("mine")
assert state.step and not state.finished, state
print(sorted(path.name for path in Path("runs/mine").glob("checkpoint-*")))
"""


@pytest.mark.e2e
def test_the_page_starts_and_pauses_a_run(
    tmp_path: Path, tiny: dict[str, Any], write_recipe: Callable[..., Path]
) -> None:
    pytest.importorskip("gradio")
    program = tmp_path / "program.py"
    program.write_text(PAGE)
    recipe = write_recipe({**tiny, "max_iters": 10**6, "lr_decay_iters": 10**6, "log_interval": 1, "out_dir": "runs/a"})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    train = (ELSEWHERE, ROOT / "scripts" / "train.py")
    assert "checkpoint-" in elsewhere(tmp_path, program, recipe, port, *train)
