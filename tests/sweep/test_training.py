"""How a sweep starts a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfgpt import config
from hfgpt.sweep import training


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_training_speaks_to_its_log_as_the_sweep_does(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep searches the log for the reason of a trial's failure, and reports it."""
    monkeypatch.setenv("HFGPT_LANG", language)
    script = tmp_path / "train.py"
    script.write_text("import os; print(os.environ['HFGPT_LANG'])")
    log = tmp_path / "log"
    assert training.start([str(script)], config.build({}, "trial"), tmp_path / "r.yaml", log).wait() == 0
    assert log.read_text().split() == [language]
