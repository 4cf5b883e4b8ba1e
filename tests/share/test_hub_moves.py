"""A run that moves between two machines through the Hub, and is killed while it trains and while it pushes."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import huggingface_hub
import pytest
from huggingface_hub import HfApi
from train import survival

from hfgpt.share import contents, hub
from hfgpt.train import loop, origin

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

REPO = "ada/traveller"

INTERVAL = 5  # steps between two checkpoints

PACE = 0.25  # seconds that a step takes at least, so that kills hit the training


class OnHub:
    """A `change` that lets a training process use the Hub on the loopback.

    The step before a checkpoint waits until the last one is pushed, so a push fits between two on any machine.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder, self.steps = url, folder, 0

    def __call__(self) -> None:
        os.environ.update(HF_TOKEN=hub_server.TOKEN, NO_PROXY="127.0.0.1")
        constants = huggingface_hub.constants
        constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = self.url, False, True
        constants.HUGGINGFACE_CO_URL_TEMPLATE = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        huggingface_hub.close_session()
        real = loop.to_device

        def slowly(*batch: Any) -> Any:
            self.steps += 1
            time.sleep(PACE)
            while self.steps % INTERVAL == 0 and list(self.folder.glob(".pushing-*")):
                time.sleep(0.02)
            return real(*batch)

        loop.to_device = slowly


class KilledOnHub(OnHub):
    """An `OnHub` whose process is killed when it begins to write a checkpoint, at the first time or a later one."""

    def __init__(self, url: str, folder: Path, time: int) -> None:
        super().__init__(url, folder)
        self.kill = survival.KillAt("begin", time)

    def __call__(self) -> None:
        super().__call__()
        self.kill()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    with hub_server.reached(monkeypatch) as server:
        yield server


def kill_at_request(server: hub_server.Hub, process: survival.Attempt, number: int) -> None:
    """Send SIGKILL during the `number`-th upload or commit from now on."""
    left = [number]

    def on_request(method: str, path: str) -> None:
        left[0] -= method == "PUT" or "/commit/" in path
        if left[0] == 0 and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)

    server.on_request = on_request


def travel(server: hub_server.Hub, values: dict[str, Any], tmp_path: Path, kills: int) -> dict[str, int]:
    """Train on two machines by turns, each from the Hub's state, until there have been enough kills and one end.

    Half of the kills happen during a push, half after a random time. At each kill the Hub is at most one checkpoint
    behind. Returns how many there were of each kind.
    """
    draw, count, ended = random.Random(0), {"pushing": 0, "training": 0}, 0
    lags = list[int]()
    whole = tmp_path / "whole"
    assert survival.finish(survival.attempt(values | {"out_dir": str(whole)})) == 0
    client = HfApi(endpoint=server.url, token=hub_server.TOKEN)
    for turn in range(20 * kills):
        pushed = REPO in server.repos and bool(held_checkpoints(server))
        folder = tmp_path / f"run{ended}-machine{turn % 2 if pushed else 0}"  # one machine before the first push
        if pushed:
            origin.bring(origin.HubRun(REPO), folder, api=client)
        run = values | {"out_dir": str(folder), "push_to_hub": "checkpoints", "hub_model_id": REPO}
        process = survival.attempt(run, OnHub(server.url, folder), log=tmp_path / "log")
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
            lags.append((newest_here(folder) - newest_held(server)) // INTERVAL)
            assert lags[-1] <= 1, (lags, (tmp_path / "log").read_text())
            continue
        assert survival.differences(folder, whole) == []
        assert held_checkpoints(server) == {f"checkpoint-{values['max_iters']}"}, (tmp_path / "log").read_text()
        assert survival.differences(hub.pull(REPO, tmp_path / f"pulled{ended}", api=client), whole) == []
        if sum(count.values()) >= kills:
            print(f"checkpoints that the Hub was behind after each kill: {lags}; runs that ended: {ended + 1}")
            return count
        server.repos.clear()  # the run has ended: the next one begins
        ended += 1
    raise AssertionError(f"the run never ended: {count}")


def held_checkpoints(server: hub_server.Hub) -> set[str]:
    return {name.split("/")[0] for name in server.repos[REPO].files() or {} if "/" in name}


def newest_held(server: hub_server.Hub) -> int:
    """Return the step of the newest checkpoint on the Hub, 0 without one; check that it is complete."""
    files = (server.repos[REPO].files() if REPO in server.repos else None) or {}
    [newest] = contents.newest(files) or ["checkpoint-0"]
    return int(newest.split("-")[1])


def newest_here(folder: Path) -> int:
    return max(contents.checkpoint_steps(folder), default=0)


def moving(tiny: dict[str, Any], steps: int) -> dict[str, Any]:
    return tiny | {"dropout": 0.2, "max_iters": steps, "eval_interval": INTERVAL, "save_total_limit": 1}


@pytest.mark.e2e
def test_a_run_moves_between_machines_with_the_same_bits(
    server: hub_server.Hub, tiny: dict[str, Any], tmp_path: Path
) -> None:
    assert travel(server, moving(tiny, 15), tmp_path, kills=2) == {"pushing": 1, "training": 1}


@pytest.mark.e2e
def test_a_polite_stop_pushes_its_checkpoint_first(
    server: hub_server.Hub, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """A machine that is shut down leaves its last step on the Hub."""
    folder = tmp_path / "run"
    run = moving(tiny, 10_000) | {"out_dir": str(folder), "push_to_hub": "checkpoints", "hub_model_id": REPO}
    process = survival.attempt(run, OnHub(server.url, folder), log=tmp_path / "log")
    survival.wait_for_step(folder, 7, process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    assert survival.finish(process) == 128 + signal.SIGTERM, (tmp_path / "log").read_text()
    assert newest_held(server) == newest_here(folder) >= 7


@pytest.mark.e2e
def test_a_run_killed_before_its_first_checkpoint_is_pushed_when_it_begins_anew(
    server: hub_server.Hub, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Also without checkpoints on the Hub; and the first model is there as soon as the first checkpoint is written."""
    folder, log = tmp_path / "run", tmp_path / "log"
    run = moving(tiny, 15) | {"out_dir": str(folder), "push_to_hub": True, "hub_model_id": REPO}
    for time_of_death, pushed in ((1, False), (2, True)):
        process = survival.attempt(run, KilledOnHub(server.url, folder, time_of_death), log=log)
        assert survival.finish(process) == -signal.SIGKILL, log.read_text()
        assert (REPO in server.repos) == pushed, log.read_text()
    assert survival.finish(survival.attempt(run, OnHub(server.url, folder), log=log)) == 0
    held = server.repos[REPO].files() or {}
    assert held["metrics.jsonl"].data == (folder / "metrics.jsonl").read_bytes(), log.read_text()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_twenty_kills(server: hub_server.Hub, tiny: dict[str, Any], tmp_path: Path) -> None:
    assert travel(server, moving(tiny, 100), tmp_path, kills=20) == {"pushing": 10, "training": 10}
