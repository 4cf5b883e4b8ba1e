"""The promises of docs/en/reliability.md at length: fifty kills, two processes, two hosts, twenty thousand steps."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import survival
from survival import (
    ROOT,
    STAGES,
    KillAt,
    LogBatches,
    attempt,
    batches_of,
    differences,
    finish,
    kill_after,
    launch_two,
    ranks,
    start,
    wait_for_step,
)

from hfgpt.train import checkpoint

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

KILLS = 50


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    survival.end_all()


# ------------------------------------------------------------------------------------------- 1. killed at any instant


def test_fifty_kills(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Half at random instants after the process starts; half in the writing of a checkpoint, at each stage.

    A run that reaches its end is compared, bit by bit, and the next begins, until there have been fifty kills.
    """
    draw = random.Random(0)
    values = tiny | {"dropout": 0.2, "spike_guard": 3.0, "max_iters": 300, "eval_interval": 5, "save_total_limit": 1}
    whole = tmp_path / "whole"
    began = time.monotonic()
    assert finish(attempt(values | {"out_dir": str(whole)})) == 0
    length = time.monotonic() - began
    kills, ended, stages = 0, 0, list(STAGES) * 3
    draw.shuffle(stages)
    while kills < KILLS or not ended:
        run = values | {"out_dir": str(tmp_path / f"run{ended}")}
        if kills >= KILLS:
            code = finish(attempt(run))
        elif stages and kills % 2:
            code = finish(attempt(run, KillAt(stages.pop(), draw.randint(1, 12))))
        else:
            code = kill_after(attempt(run), draw.uniform(0, length / 2))
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        if code == 0:
            assert differences(Path(run["out_dir"]), whole) == []
            ended += 1
    print(f"{kills} kills, {ended} runs to their end")


def test_a_stream_that_is_killed_again_and_again(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Every row occurs once and in the same order: of a repeated step, only the last attempt counts."""
    draw = random.Random(1)
    values = tiny | {"streaming": True, "dropout": 0.2, "max_iters": 400, "eval_interval": 10}
    once, whole = tmp_path / "once", tmp_path / "whole"
    assert finish(attempt(values | {"out_dir": str(whole)}, LogBatches(once))) == 0
    seen: list[Any] = []
    folder = Path(values["out_dir"])
    for number in range(6):
        log = tmp_path / f"log{number}"
        last = next(iter(checkpoint.steps(folder)), 0)
        process = attempt(values, LogBatches(log))
        if number < 5:
            wait_for_step(folder, last + draw.randint(11, 60), process)
            assert kill_after(process, draw.random() / 10) == -signal.SIGKILL
        else:
            assert finish(process) == 0
        seen[last:] = batches_of(log)
    assert seen == batches_of(once)
    assert differences(folder, whole) == []


# ---------------------------------------------------------------------------------------- 2. and 7. two processes


TWO_PROCESSES = {"dropout": 0.2, "max_iters": 240, "eval_interval": 20, "batch_size": 2, "process_timeout": "30s"}
TWO_PROCESSES |= {"gradient_accumulation_steps": 4}


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """whole_of_two(recipe) → the folder of the uninterrupted run of two processes, trained once."""
    folder = tmp_path_factory.mktemp("two") / "run"

    def undisturbed(recipe: Path) -> Path:
        if not folder.exists():
            launcher = launch_two(recipe, f"--out_dir={folder}")
            output, _ = launcher.communicate(timeout=300)
            assert launcher.returncode == 0, output
        return folder

    return undisturbed


@pytest.mark.parametrize("whom", ["one process", "the launcher", "the whole group"])
def test_a_signal_stops_both_at_the_same_step(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], whole_of_two: Callable[[Path], Path], whom: str
) -> None:
    recipe, folder = write_recipe(tiny | TWO_PROCESSES), Path(tiny["out_dir"])
    launcher = launch_two(recipe)
    wait_for_step(folder, 30)
    if whom == "one process":
        ranks(launcher)[1].send_signal(signal.SIGTERM)
    elif whom == "the launcher":
        launcher.terminate()
    else:  # as a batch system does it; the launcher sends the signal a second time
        os.killpg(launcher.pid, signal.SIGTERM)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode
    [line] = [line for line in output.splitlines() if "SIGTERM received: stopping after step" in line]
    step = int(line.split()[-1])
    assert 30 <= step < 240
    assert checkpoint.newest_valid(folder, pytest.fail).state["step"] == step
    assert f"{folder / 'recipe.yaml'} --resume" in output
    if whom == "one process":
        assert "143" in output
    again = launch_two(recipe, "--resume")
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert differences(folder, whole_of_two(recipe)) == []


def test_a_dead_process_is_started_again(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], whole_of_two: Callable[[Path], Path]
) -> None:
    """With --max_restarts the launcher starts both again; they resume by themselves, with --overwrite or without."""
    recipe, folder = write_recipe(tiny | TWO_PROCESSES), Path(tiny["out_dir"])
    launcher = launch_two(recipe, "--overwrite", launch=("--max_restarts", "2"))
    for step, rank in ((30, 1), (90, 0)):
        wait_for_step(folder, step)
        ranks(launcher)[rank].kill()
    output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, output
    assert output.count("going on after step") == 2
    assert differences(folder, whole_of_two(recipe)) == []


# ------------------------------------------------------------------------------------------------------ 8. two hosts


class Hosts:
    """Two network namespaces, joined by a link that can be cut."""

    def __init__(self) -> None:
        self.names = [f"hfgpt{letter}{os.getpid()}" for letter in "ab"]
        self.ends = [f"hf{letter}{os.getpid()}" for letter in "ab"]

    def make(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.ends[0], "type", "veth", "peer", "name", self.ends[1])
        for number, (name, end) in enumerate(zip(self.names, self.ends, strict=True), 1):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")

    def link(self, state: str) -> None:
        """Set the link to 'up' or 'down'."""
        ip("-n", self.names[1], "link", "set", self.ends[1], state)

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def launch(self, recipe: Path, *arguments: str) -> list[subprocess.Popen[str]]:
        """Run the documented command on each host."""
        script = [str(ROOT / "scripts" / "train.py"), str(recipe), *arguments]
        config = ["--config_file", str(ROOT / "accelerate_configs" / "multi_node.yaml"), "--num_processes", "2"]
        return [
            start(
                ["ip", "netns", "exec", name, sys.executable, "-m", "accelerate.commands.launch", *config,
                 "--machine_rank", str(rank), "--main_process_ip", "10.77.0.1", *script],
                recipe.parent, GLOO_SOCKET_IFNAME=end,
            )
            for rank, (name, end) in enumerate(zip(self.names, self.ends, strict=True))
        ]  # fmt: skip


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("no iproute2 here to make two hosts with")
    made = Hosts()
    try:
        made.make()
    except subprocess.CalledProcessError as error:
        made.remove()
        pytest.skip(f"two network namespaces cannot be made here: {error.stderr.strip()}")
    yield made
    made.remove()


def test_two_hosts_and_a_link_that_is_cut(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], hosts: Hosts, tmp_path: Path
) -> None:
    values = tiny | TWO_PROCESSES | {"process_timeout": "10s", "max_iters": 120}
    recipe, folder, whole = write_recipe(values), Path(tiny["out_dir"]), tmp_path / "whole"
    for launched in hosts.launch(recipe, f"--out_dir={whole}"):
        output, _ = launched.communicate(timeout=300)
        assert launched.returncode == 0, output

    cut = hosts.launch(recipe)
    wait_for_step(folder, 30)
    hosts.link("down")
    began = time.monotonic()
    for launched in cut:
        output, _ = launched.communicate(timeout=120)
        assert launched.returncode == 1
        assert "another process of this run has ended or cannot be reached" in output, output
    print(f"both hosts ended {time.monotonic() - began:.0f} s after the cut")
    assert checkpoint.newest_valid(folder, pytest.fail).state["step"] >= 20

    hosts.link("up")
    for launched in hosts.launch(recipe, "--resume"):
        output, _ = launched.communicate(timeout=300)
        assert launched.returncode == 0, output
    assert differences(folder, whole) == []


# ---------------------------------------------------------------------------------------------------- 11. a long run


def test_twenty_thousand_steps(tmp_path: Path) -> None:
    """benchmarks/long_run.py: memory at the end is within 5% of that at step 1,000, and as many handles are open."""
    script = ROOT / "benchmarks" / "long_run.py"
    done = subprocess.run([sys.executable, script, "--out_dir", tmp_path / "run"], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
