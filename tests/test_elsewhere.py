"""Nothing on the way of a user needs a POSIX system: what can be tried of Windows and macOS without one."""

from __future__ import annotations

import os
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
    """What a program prints on a system without POSIX's modules."""
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
