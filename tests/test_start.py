"""A start is short: what the first step does not need is not loaded before it."""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from hfgpt import config
from hfgpt.base import shell
from hfgpt.data.prepare import prepare

# Each takes much of a second to import. Imports of torch and transformers themselves cannot be avoided.
HEAVY = ("datasets", "pandas", "evaluate", "scipy.stats", "matplotlib", "sklearn", "optuna", "gradio", "tensorboard")

FIRST_STEP = f"""
import json, os, sys
sys.argv = sys.argv[1:]
from hfgpt.train import loop as train

def after_a_step(run, meter, result):
    loaded = [name for name in {HEAVY} if name in sys.modules]
    print(json.dumps([run.progress.step, loaded]), file=sys.stderr, flush=True)
    os._exit(0)

train.log = after_a_step
with open(sys.argv[0]) as script:
    exec(compile(script.read(), sys.argv[0], "exec"))
"""


@pytest.mark.e2e
def test_nothing_heavy_is_loaded_before_the_first_step(tiny: dict[str, Any], write_recipe: Any) -> None:
    """The first step comes after the corpus, an evaluation and an export."""
    prepare(config.build(tiny, "test"))  # the caches are warm
    command = [sys.executable, "-c", FIRST_STEP, str(ROOT / "scripts" / "train.py"), str(write_recipe(tiny))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    assert json.loads(done.stderr.splitlines()[-1]) == [1, []]


@pytest.mark.parametrize(
    ("command", "unused"),
    [
        ("models", "pydantic"),
        ("models", "torch"),
        ("train", "torch"),
        ("runs", "matplotlib"),
        ("hub", "hfgpt.base.hardware"),
    ],
)
def test_a_command_begins_without_libraries_that_it_needs_later_or_never(command: str, unused: str) -> None:
    program = f"import sys, hfgpt.commands.{command}; print({unused!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"


@pytest.mark.e2e
@pytest.mark.parametrize(
    "variables",
    [{}, {"HF_HOME": "/a"}, {"XDG_CACHE_HOME": "~/b"}, {"HF_HOME": "~/c", "HF_DATASETS_CACHE": "/d"}],
)
def test_the_cache_is_where_datasets_has_its_own(variables: dict[str, str], tmp_path: Path) -> None:
    program = "import datasets; from hfgpt.data.prepare import default_cache; print(datasets.config.HF_DATASETS_CACHE)"
    program += "; print(default_cache())"
    kept = {k: v for k, v in os.environ.items() if k not in ("HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME")}
    environment = kept | {"HOME": str(tmp_path)} | variables
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment, timeout=240
    )
    theirs, ours = done.stdout.splitlines()
    assert ours == theirs


def test_loading_leaves_the_collector_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_large_library.py").write_text("made = [{} for _ in range(1000)]\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    frozen = gc.get_freeze_count()
    try:
        with shell.uncollected():
            assert not gc.isenabled()
            importlib.import_module("a_large_library")
        assert gc.isenabled()
        assert gc.get_freeze_count() >= frozen + 1000
        gc.disable()
        with shell.uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.unfreeze()
        gc.enable()
