"""Measure the reference curves that ship with the package (hfgpt/runs/reference_curves.json).

    python benchmarks/reference_curves.py                       the recipes for a CPU, three seeds: 2 core-hours
    python benchmarks/reference_curves.py standard finetune     those for a GPU
    python benchmarks/reference_curves.py --out runs            keep the run folders; the same command resumes from them
    python benchmarks/reference_curves.py --seconds             only the time of a step on one core, anew

In:  recipes of this repository, run unmodified except for more evaluations, which change no weight.
Out: for each, its validation losses by step and seed, its tokens and seconds per step, and the machine's name; and
     their figure in both languages, docs/images/reference-curves.png and …-zh.png. A recipe that was not run keeps its
     earlier curve; an interrupted run gives the first part of one.
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

from matplotlib.figure import Figure

from hfgpt import config
from hfgpt.base.language import using
from hfgpt.runs import reference
from hfgpt.runs.history import History, read_run
from hfgpt.runs.plots import RUNS, drawing, save, title

ROOT = Path(__file__).parents[1]
FIGURE = ROOT / "docs/images/reference-curves.png"

# The figure's words by language: its title, the loss, and what the loss is drawn over.
WORDS = {
    "en": {"title": "Reference curves, three seeds each, on {machine}", "loss": "validation loss (nats per character)",
           "steps": "steps", "tokens": "tokens", "seconds": "seconds"},
    "zh": {"title": "参考曲线，每份配方三个随机种子", "loss": "验证损失（nat/字符）",
           "steps": "步数", "tokens": "词元数", "seconds": "时间（秒）"},
}  # fmt: skip

SEEDS = (1, 2, 3)

# The recipes that have a fixed text, and how often their curve is measured. `production` streams its text from the Hub,
# and trains for days.
EVERY = {"quick_experiment": 50, "fast_cpu": 50, "shakespeare_char_cpu": 100, "learning": 100,
         "standard": 250, "finetune": 20}  # fmt: skip
FOR_A_GPU = ("standard", "finetune")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"of {', '.join(EVERY)}")
    parser.add_argument("--out", type=Path, help="folder for the run folders")
    parser.add_argument("--read", action="store_true", help="train nothing: read the run folders as they are")
    parser.add_argument("--seconds", action="store_true", help="measure only the time of a step")
    parser.add_argument("--machine", default=f"one core, {platform.processor() or platform.machine()}")
    args = parser.parse_args()
    if unknown := set(args.recipes) - EVERY.keys():
        parser.error(f"{', '.join(sorted(unknown))}: no such recipe; there are {', '.join(EVERY)}")
    known = {entry["recipe"]: entry for entry in json.loads(reference.FILE.read_text(encoding="utf-8"))}
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.recipes or [name for name in EVERY if name not in FOR_A_GPU]:
            runs = list[History]()
            if not args.seconds:
                folders = [(args.out or Path(scratch)) / f"{name}.{seed}" for seed in SEEDS]
                for seed, folder in zip(SEEDS, folders, strict=True):
                    if not args.read:
                        train(name, folder, f"--seed={seed}", f"--eval_interval={EVERY[name]}", "--save_total_limit=1")
                runs = [read_run(folder) for folder in folders]
                known[name] = {**curve(name, runs), "machine": args.machine,
                               "step_seconds": known.get(name, {}).get("step_seconds")}  # fmt: skip
            if args.seconds or known[name]["step_seconds"] is None:
                seconds = step_seconds(name, runs, Path(scratch))
                print(f"{name}: {seconds} seconds a step", flush=True)
                if name in known:
                    known[name] |= {"machine": args.machine, "step_seconds": seconds}
            entries = [known[name] for name in EVERY if name in known]
            reference.FILE.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    draw(entries, "en", FIGURE)
    draw(entries, "zh", FIGURE.with_stem(f"{FIGURE.stem}-zh"))


def train(name: str, folder: Path, *overrides: str) -> None:
    """Train a recipe, or resume it."""
    command = [sys.executable, str(ROOT / "scripts/train.py"), str(ROOT / f"recipes/{name}.yaml"),
               f"--out_dir={folder}", "--resume", "--sample_prompt=", *overrides]  # fmt: skip
    subprocess.run(command, check=True)


def curve(name: str, runs: list[History]) -> dict[str, Any]:
    """Return a recipe's losses, up to the last step that every seed has reached."""
    series = [dict(zip(*run.series("val_loss"), strict=True)) for run in runs]
    common = sorted(set.intersection(*({*own} for own in series)))
    recipe = runs[0].config
    assert recipe is not None, "a run folder has its recipe"
    return {
        "recipe": name,
        "identity": reference.identity_of(recipe),
        "data": reference.data_of(recipe),
        "tokens_per_iter": recipe.tokens_per_iter,
        "val_loss": {int(step): [round(own[step], 4) for own in series] for step in common},
    }


def step_seconds(name: str, runs: list[History], scratch: Path) -> float:
    """Return a step's time: that of the runs on a GPU; else CPU time on one core, which other work hardly changes."""
    if name in FOR_A_GPU and runs and runs[0].config is not None:
        speeds = [speed for run in runs for speed in run.series("tokens_per_second")[1]]
        return round(runs[0].config.tokens_per_iter / statistics.median(speeds), 5)
    import sweeps  # sets one thread, so before torch is imported

    own = {"out_dir": str(scratch / f"{name}.timed"), "sample_prompt": ""}
    recipe = config.load(ROOT / "recipes" / f"{name}.yaml").model_copy(update=own)
    return round(sweeps.cpu_seconds(recipe, 40 if recipe.n_embd <= 128 else 10), 5)


def draw(entries: list[dict[str, Any]], language: str, target: Path) -> None:
    """Draw every recipe's loss over steps, tokens and seconds: the mean of the seeds, and each seed as a thin line."""
    words = WORDS[language]
    with using(language), drawing():
        figure = Figure(figsize=(12, 5), layout="constrained")
        for axes, unit in zip(figure.subplots(1, 3, sharey=True), ("steps", "tokens", "seconds"), strict=True):
            for entry, colour in zip(entries, RUNS, strict=False):
                scale = {"steps": 1.0, "tokens": entry["tokens_per_iter"], "seconds": entry["step_seconds"]}[unit]
                places = [int(step) * scale for step in entry["val_loss"] if int(step)]
                seeds = [losses for step, losses in entry["val_loss"].items() if int(step)]
                axes.plot(places, seeds, color=colour, lw=0.7, alpha=0.6)
                axes.plot(places, [statistics.fmean(each) for each in seeds], color=colour, label=entry["recipe"])
            axes.set(xscale="log", xlabel=words[unit])
        figure.axes[0].set_ylabel(words["loss"])
        figure.axes[-1].legend()  # where no curve is
        title(figure, words["title"].format(machine=entries[0]["machine"]))
        save(figure, target)


if __name__ == "__main__":
    main()
