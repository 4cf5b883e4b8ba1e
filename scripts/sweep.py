"""Try many values: a grid, a random search, or one of the chapter's experiments.

    python scripts/sweep.py recipes/experiments/batch_size.yaml
    python scripts/sweep.py recipes/quick_experiment.yaml --batch_size 16,32,64 --learning_rate 1e-4,1e-3
    python scripts/sweep.py recipes/quick_experiment.yaml --random 20 --learning_rate 1e-4..1e-2 --dropout 0,0.1,0.2

Values with commas are tried one by one, every combination of them; a range low..high is searched at random
(logarithmically where it spans a decade). All other --key=value hold for every trial, e.g. --max_iters=1000.

    --random N       N random combinations instead of all
    --equal WHAT     what every trial gets the same of: steps, tokens, or time (then also --max_time=10m)
    --retry_failed   try again what failed (not what diverged)
    --out_dir DIR    the sweep's folder (out/sweep-<name>)

The same command goes on after an interruption, and shares the work when it is given in several terminals. It ends with
report.md, report.json and pictures in the sweep's folder; `optuna-dashboard DIR/journal.log` shows it while it runs.
"""

import sys
from pathlib import Path

from hfgpt.base import shell
from hfgpt.sweep import definition as sweep
from hfgpt.sweep import trials


def main() -> int:
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    try:
        source, options, overrides = sweep.split(words)
        report = trials.run(sweep.define(source, overrides, options), Path(__file__).with_name("train.py"))
    except trials.Stopped as stopped:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 128 + stopped.number
    print(report.read_text(encoding="utf-8").split("\n![")[0])
    print(f"report and pictures: {report}")
    return 0


if __name__ == "__main__":
    shell.run(main)
