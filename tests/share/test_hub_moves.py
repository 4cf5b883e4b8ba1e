"""A run that moves between two machines by way of the Hub, and is killed while it trains and while it pushes."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import huggingface_hub
import pytest
from huggingface_hub import HfApi
from train import survival

from hfgpt.train import origin

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

REPO = "ada/traveller"


class OnHub:
    """A `change` that lets a training process speak with the Hub on the loopback."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self) -> None:
        os.environ.update(HF_TOKEN=hub_server.TOKEN, NO_PROXY="127.0.0.1")
        constants = huggingface_hub.constants
        constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = self.url, False, True
        constants.HUGGINGFACE_CO_URL_TEMPLATE = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        huggingface_hub.close_session()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.close_session()
    with hub_server.running() as server:
        yield server
    huggingface_hub.close_session()


def kill_at_request(server: hub_server.Hub, process: survival.Attempt, number: int) -> None:
    """SIGKILL while the `number`-th upload or commit from now on is under way."""
    left = [number]

    def on_request(method: str, path: str) -> None:
        left[0] -= method == "PUT" or "/commit/" in path
        if left[0] == 0 and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)

    server.on_request = on_request


def travel(server: hub_server.Hub, values: dict[str, Any], tmp_path: Path, kills: int) -> dict[str, int]:
    """Train on two machines by turns, each from what the Hub has, until there were so many kills and an end.

    Half of the kills come while a push is under way, half after a random time. Returns how many there were of each.
    """
    draw, count, ended = random.Random(0), {"pushing": 0, "training": 0}, 0
    whole = tmp_path / "whole"
    assert survival.finish(survival.attempt(values | {"out_dir": str(whole)})) == 0
    client = HfApi(endpoint=server.url, token=hub_server.TOKEN)
    for turn in range(20 * kills):
        pushed = REPO in server.repos and bool(held_checkpoints(server))
        folder = tmp_path / f"run{ended}-machine{turn % 2 if pushed else 0}"  # before that there is one machine
        if pushed:
            origin.bring(origin.HubRun(REPO), folder, api=client)
        run = values | {"out_dir": str(folder), "push_to_hub": "checkpoints", "hub_model_id": REPO}
        process = survival.attempt(run, OnHub(server.url), log=tmp_path / "log")
        left = kills - sum(count.values())
        if left > 0 and count["pushing"] <= count["training"]:
            kill_at_request(server, process, draw.randint(1, 12))
            code, kind = survival.finish(process), "pushing"
            server.on_request = lambda _method, _path: None
        elif left > 0:
            code, kind = survival.kill_after(process, draw.uniform(0.5, 4)), "training"
        else:
            code, kind = survival.finish(process), ""
        assert code in (0, -signal.SIGKILL), (tmp_path / "log").read_text()
        if code:
            count[kind] += 1
            continue
        assert survival.differences(folder, whole) == []
        assert held_checkpoints(server) == {f"checkpoint-{values['max_iters']}"}, (tmp_path / "log").read_text()
        if sum(count.values()) >= kills:
            return count
        server.repos.clear()  # the run is at its end: the next one begins
        ended += 1
    raise AssertionError(f"the run never ended: {count}")


def held_checkpoints(server: hub_server.Hub) -> set[str]:
    return {name.split("/")[0] for name in server.repos[REPO].files() or {} if "/" in name}


def moving(tiny: dict[str, Any], steps: int) -> dict[str, Any]:
    return tiny | {"dropout": 0.2, "max_iters": steps, "eval_interval": 4, "save_total_limit": 1}


@pytest.mark.e2e
def test_a_run_moves_between_machines_with_the_same_bits(
    server: hub_server.Hub, tiny: dict[str, Any], tmp_path: Path
) -> None:
    assert travel(server, moving(tiny, 24), tmp_path, kills=2) == {"pushing": 1, "training": 1}


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_twenty_kills(server: hub_server.Hub, tiny: dict[str, Any], tmp_path: Path) -> None:
    assert travel(server, moving(tiny, 100), tmp_path, kills=20) == {"pushing": 10, "training": 10}
