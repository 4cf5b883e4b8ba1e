"""The command that checks hfgpt on a card: its arithmetic, and the command itself on a CPU. No card is needed here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run benchmarks/gpu.py in its own process."""
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *words], capture_output=True, text=True, timeout=280
    )


def test_what_a_trace_says() -> None:
    """Two steps: a flash kernel in each, one wait in all, the card idle for 0.4 of the time, a tenth for the head."""
    kernels = [("flash_fwd_kernel", 0, 20), ("gemm", 20, 34), ("nll_loss", 70, 6)]
    events = [{"cat": "kernel", "name": name, "ts": ts, "dur": dur} for name, ts, dur in kernels]
    events += [{"cat": "kernel", "name": "flash_bwd_kernel", "ts": 100, "dur": 0}]
    events += [{"cat": "cuda_runtime", "name": name} for name in ("cudaLaunchKernel", "cudaStreamSynchronize")]
    seen = gpu.read_trace(events, 2)
    assert seen == {"flash": 1.0, "waits": 0.5, "idle": pytest.approx(0.4), "head": pytest.approx(0.1)}


def test_speed_is_that_of_the_second_half() -> None:
    rates = [1.0, 2.0, 10.0, 12.0, 14.0]
    records = [{"tokens_per_second": rate, "memory_bytes": 100 - rate, "mfu": rate / 100} for rate in rates]
    assert gpu.speed([{"val_loss": 3.0}, *records]) == {"tokens_per_second": 12.0, "memory_bytes": 99.0, "mfu": 0.12}


def test_the_parts_are_listed() -> None:
    done = command("--list")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(gpu.PARTS)


def test_without_a_card_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    done = command("--json", str(tmp_path / "card.json"))
    assert done.returncode == 2
    assert "no CUDA card here" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.e2e
def test_it_goes_on_where_it_stopped_and_a_failure_is_told(tmp_path: Path) -> None:
    """On a CPU, as short as possible: a finished part is not measured again."""
    path = tmp_path / "cpu.json"
    done = command("--device=cpu", "--json", str(path), "--only", "waits")
    assert done.returncode == 0, done.stdout + done.stderr
    saved = json.loads(path.read_text())
    assert saved["parts"]["waits"]["rows"] == [
        {"what": "a step without a wait", "seen": "none", "unit": "", "wanted": "none", "holds": True}
    ]
    again = command("--device=cpu", "--json", str(path), "--only", "waits", "fit")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "waits: measured already" in again.stdout
    assert "✓ fit, compile: steps in 6 GB: 20" in again.stdout
