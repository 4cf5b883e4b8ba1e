"""scripts/train.py --resume, whose second process sees another run folder than the main process.

TEST_SEES says how it differs: the newest checkpoint is hidden from it; or it cannot be read; or it has other content.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hfgpt.commands import run
from hfgpt.train import checkpoint

if __name__ == "__main__":
    sees, folders, read = os.environ["TEST_SEES"], checkpoint.folders, checkpoint.read

    def altered(path: Path) -> Any:
        saved = read(path)
        files = {name: facts | {"sha256": "0"} for name, facts in saved.state["files"].items()}
        return replace(saved, state=saved.state | {"files": files})

    def fail(path: Path) -> Any:
        raise checkpoint.CheckpointError("cannot be read here")

    if os.environ["RANK"] == "1":
        if sees == "older":
            checkpoint.folders = lambda run_dir: folders(run_dir)[1:]
        else:
            checkpoint.read = altered if sees == "other" else fail
    sys.argv.append("--resume")
    run("train")
