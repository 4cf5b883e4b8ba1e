"""Measure the reference curves that ship with the package (hfgpt/runs/reference_curves.json).

    python benchmarks/reference_curves.py                       every recipe below, three seeds each
    python benchmarks/reference_curves.py --recipes fast_cpu --out runs/     keep the run folders there, go on from them

In:  recipes of this repository, run as they are but for more evaluations, which change no weight.
Out: for each, its validation losses by step and seed, its tokens and seconds a step, and the machine's name. A recipe
     that was not run keeps the curve that it had.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hfgpt.base.machine import cpu_cores
from hfgpt.runs import reference
from hfgpt.runs.history import History, read_run

ROOT = Path(__file__).parents[1]

SEEDS = (1, 2, 3)

# The recipes, with what each takes more of: places in its curve. A decay that is written out keeps the schedule of a
# recipe that is run in part.
RECIPES = {
    "quick_experiment": ["--eval_interval=50"],
    "fast_cpu": ["--eval_interval=50"],
    "shakespeare_char_cpu": ["--eval_interval=100"],
    "learning": ["--eval_interval=50", "--max_iters=300", "--lr_decay_iters=3000"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--out", type=Path, help="folder for the run folders; finished ones are not run again")
    parser.add_argument("--machine", default=f"{cpu_cores()} cores, {platform.processor() or platform.machine()}")
    args = parser.parse_args()
    kept = {entry["recipe"]: entry for entry in json.loads(reference.FILE.read_text(encoding="utf-8"))}
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.recipes:
            runs = [run(name, seed, args.out or Path(scratch)) for seed in SEEDS]
            kept[name] = entry(name, runs, args.machine)
    reference.FILE.write_text(json.dumps(list(kept.values()), indent=1) + "\n", encoding="utf-8")


def run(name: str, seed: int, folder: Path) -> History:
    """Train one seed of a recipe, unless its folder holds the finished run."""
    out = folder / f"{name}.{seed}"
    if not (out / "loss.png").is_file():  # drawn at the end
        command = [sys.executable, ROOT / "scripts" / "train.py", ROOT / "recipes" / f"{name}.yaml", f"--seed={seed}",
                   f"--out_dir={out}", "--overwrite", "--sample_prompt=", "--no_always_save_checkpoint",
                   *RECIPES[name]]  # fmt: skip
        subprocess.run(command, check=True)
    return read_run(out)


def entry(name: str, runs: list[History], machine: str) -> dict[str, Any]:
    """A recipe's entry in the file."""
    series = [dict(zip(*run.series("val_loss"), strict=True)) for run in runs]
    config = runs[0].config
    assert config is not None, "a run folder has its recipe"
    # The fastest tenth of the steps: those that no other work on the machine held up.
    speeds = [statistics.quantiles(run.series("tokens_per_second")[1], n=10)[-1] for run in runs]
    return {
        "recipe": name,
        "identity": reference.identity_of(config),
        "data": reference.data_of(config),
        "machine": machine,
        "tokens_per_iter": config.tokens_per_iter,
        "step_seconds": round(config.tokens_per_iter / max(speeds), 5),
        "val_loss": {int(step): [round(own[step], 4) for own in series] for step in sorted(series[0])},
    }


if __name__ == "__main__":
    main()
