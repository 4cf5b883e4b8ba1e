"""Run a Python program as it is; at its end, print the peak of the card's memory that torch allocated in it.

    python benchmarks/peak.py train.py --batch_size=12

In:  a program in the working folder, and its arguments.
Out: its own output, then JSON on a line: peak_bytes (0 without a card).
"""

from __future__ import annotations

import json
import os
import runpy
import sys


def main() -> None:
    sys.argv = sys.argv[1:]
    sys.path[0] = os.getcwd()  # as if it had been started itself
    runpy.run_path(sys.argv[0], run_name="__main__")
    import torch

    print(json.dumps({"peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0}))


if __name__ == "__main__":
    main()
