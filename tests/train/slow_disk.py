"""scripts/train.py on a disk that takes five seconds for each checkpoint."""

import time

from hfgpt.commands import run
from hfgpt.train import checkpoint


def slow(stage: str) -> None:
    if stage == "optimizer.safetensors":
        time.sleep(5)


if __name__ == "__main__":
    checkpoint.at_stage = slow
    run("train")
