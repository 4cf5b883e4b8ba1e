"""The package as pip installs it: a wheel in its own environment, without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

pytest.importorskip("setuptools")

BUILT_FROM = ("LICENSE", "MANIFEST.in", "README.md", "hfgpt", "pyproject.toml", "recipes", "setup.cfg", "setup.py")

Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        part = ROOT / name
        shutil.copytree(part, source / name) if part.is_dir() else shutil.copy(part, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", "wheels", "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next((source / "wheels").glob("*.whl"))


@pytest.fixture(scope="module")
def hfgpt(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """hfgpt(*words) → the finished process of the installed command, run in an empty folder.

    Its environment contains only the wheel; the dependencies come from the environment in which the tests run.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(wheel)]
    # pip would take a checkout on PYTHONPATH for the installed package
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(command, env=environment, check=True)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    work = tmp_path_factory.mktemp("work")

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        program = python.with_name("hfgpt")
        return subprocess.run(
            [program, *words], cwd=work, env={**environment, **variables}, capture_output=True, text=True, check=False
        )

    return run


def test_the_wheel_holds_recipes_translations_and_the_text(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"hfgpt/recipes/standard.yaml", "hfgpt/recipes/experiments/batch_size.yaml"} <= names
    assert {"hfgpt/locale/zh/LC_MESSAGES/hfgpt.mo", "hfgpt/data/shakespeare.txt.gz", "hfgpt/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests", "recipes", "scripts"))]
    data = [path for path in (ROOT / "hfgpt").rglob("*") if path.is_file() and path.suffix not in (".po", ".pyc", "")]
    assert {path.relative_to(ROOT).as_posix() for path in data} <= names


@pytest.mark.e2e
def test_the_installed_command_lists_plans_and_trains(hfgpt: Program) -> None:
    listed = hfgpt("--help")
    assert listed.returncode == 0
    assert all(f"\n  {name} " in listed.stdout for name in ("train", "plan", "sample", "recipes"))
    planned = hfgpt("plan", "standard")
    assert (planned.returncode, planned.stderr) == (0, "")
    assert "10,872,576" in planned.stdout
    few = ["--max_iters=2", "--eval_iters=1", "--n_layer=1", "--n_embd=8", "--n_head=1", "--batch_size=2"]
    trained = hfgpt(
        "train", "recipes/quick_experiment.yaml", *few, "--block_size=16", "--sample_prompt=", "--device=cpu"
    )
    assert trained.returncode == 0, trained.stderr
    written = hfgpt("sample", "out/quick_experiment", "--max_new_tokens=2")
    assert written.returncode == 0, written.stderr


@pytest.mark.e2e
def test_the_installed_command_lists_and_copies_recipes(hfgpt: Program) -> None:
    assert "\n  standard " in hfgpt("recipes").stdout
    copied = hfgpt("recipes", "mine")
    assert copied.returncode == 0
    assert "mine/experiments/batch_size.yaml" in copied.stdout.replace(os.sep, "/")
    again = hfgpt("recipes", "mine")
    assert again.returncode == 2
    assert "exists" in again.stderr
    assert hfgpt("train", "mine/standard.yaml", "--print_config").returncode == 0


@pytest.mark.e2e
def test_a_command_that_does_not_exist_is_answered_with_the_closest(hfgpt: Program) -> None:
    answer = hfgpt("trian", "standard")
    assert answer.returncode == 2
    assert "did you mean 'train'?" in answer.stderr
