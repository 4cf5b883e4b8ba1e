"""A launcher's variables give the place of one process, or one message."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfgpt.base.errors import InputError
from hfgpt.base.threads import Launch, launch

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"} | {
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the launcher's variables."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def setting(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, Launch(0, 1, 0, 1)),
        (TORCHRUN, Launch(3, 4, 1, 2)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, Launch(0, 1, 0, 1)),  # as job operators set them for one process
        ({"WORLD_SIZE": "1"}, Launch(0, 1, 0, 1)),
        ({"RANK": "0"}, Launch(0, 1, 0, 1)),
    ],
)
def test_a_place(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], place: Launch) -> None:
    setting(monkeypatch, variables)
    assert launch() == place


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"LOCAL_RANK": "0"}, "RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set, and RANK, LOCAL_RANK, MASTER_ADDR"),
        ({"RANK": ""}, "RANK = '': must be a whole number"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK = '-1'"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two'"),
        ({"RANK": "1"}, "RANK = 1: must be less than WORLD_SIZE (1)"),
        (TORCHRUN | {"RANK": "4"}, "RANK = 4: must be less than WORLD_SIZE (4)"),
        (TORCHRUN | {"MASTER_PORT": ""}, "MASTER_PORT is not"),
        (TORCHRUN | {"MASTER_PORT": "99999"}, "MASTER_PORT = '99999': must be from 1 to 65535"),
        (TORCHRUN | {"MASTER_PORT": "x"}, "MASTER_PORT = 'x'"),
    ],
)
def test_variables_that_do_not_go_together(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    setting(monkeypatch, variables)
    with pytest.raises(InputError) as caught:
        launch()
    assert said in str(caught.value)
    assert "unset" in str(caught.value)


@pytest.mark.e2e
@pytest.mark.parametrize(
    "variables",
    [{"LOCAL_RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": ""}, {"PMI_SIZE": "2"}, {"ACCELERATE_USE_CPU": "maybe"}],
    ids=str,
)
def test_a_script_says_so(
    tiny: dict[str, Any],
    write_recipe: Callable[..., Path],
    run_script: Callable[..., subprocess.CompletedProcess[str]],
    variables: dict[str, str],
) -> None:
    done = run_script("train.py", write_recipe(tiny), env=variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 2, done.stderr
