"""What the processes of a machine tell each other through shared memory is what they would tell through gloo."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hfgpt.together import Together


def test_a_process_alone_hears_itself() -> None:
    assert Together(torch.device("cpu")).gather(1, 2.5, False).tolist() == [[1.0, 2.5, 0.0]]


@pytest.mark.e2e
def test_shared_memory_is_what_gloo_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = Path(__file__).parent / "meeting.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["numbers"] is True
    assert found["mean"] < 1e-6
    assert found["same"] is True
    assert found["gradients"] < 1e-7
    assert found["files"] == []
    assert found["silent"].startswith("DistNetworkError after a while")
    assert found["gone"].startswith("DistNetworkError after no time")
