"""The regret of the dial: plan.py's choice for a time, against the best of a search over the same space.

    python benchmarks/regret.py --text FILE --seconds 60 --trials 30 [--until 200]     resumes where its table ends
    python benchmarks/regret.py --text FILE --seconds 60 --dial       the dial's choice again

Several processes may work on one table, each on cores of its own and with its own --seed.

In:  a text and a time for each run, including its start; the machine should be otherwise idle.
Out: benchmarks/results/regret-NAME-SECONDS.jsonl: the text's statistics, so that a fit needs no text, then one line per
     run, of the dial and of the search; on the screen the regret.

The search is Optuna's (a seeded tree of Parzen estimators) over the dial's own grid (hfgpt/plan/grid.py), both learning
rates and dropout. Every run is the command that a user types, with `time_budget`, so that each gets the same time. The
loss is that of the last evaluation, on the same blocks for all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import loss_pairs
import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from hfgpt.data import ngrams
from hfgpt.model.loss_law import BYTE_ENTRIES
from hfgpt.plan import grid

HERE = Path(__file__).parent
SCRIPTS = HERE.parent / "scripts"
SPACE: dict[str, BaseDistribution] = {
    **{key: CategoricalDistribution(values) for key, values in grid.CPU_GRID.items()},
    "dropout": CategoricalDistribution(grid.DROPOUTS),
    "learning_rate": FloatDistribution(1e-3, 1.2e-2, log=True),
    "muon_learning_rate": FloatDistribution(0.01, 0.08, log=True),
}
EVAL_ITERS = 40  # 480 blocks: losses over the same ones are compared
START = 1000  # steps, which time_budget replaces


def recipe(values: dict[str, Any], text: str, seconds: int) -> dict[str, Any]:
    """Return the recipe of a point of the space; all other values are those of the dial."""
    fixed = {
        "n_head": max(1, values["n_embd"] // grid.HEAD), "beta2": 0.99, "min_lr": 0.0, "muon_momentum": 0.9,
        "max_iters": START, "warmup_iters": START // 20, "eval_interval": START, "tokenizer": "char",
        "gradient_accumulation_steps": 1,
    }  # fmt: skip
    return values | fixed | {"dataset": text, "time_budget": f"{seconds}s"}


def train(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train a recipe with the command; return its last loss, its steps and its seconds."""
    path, out = folder / "recipe.yaml", folder / "run"
    path.write_text(yaml.safe_dump(values | {"eval_iters": EVAL_ITERS}), encoding="utf-8")
    began = time.monotonic()
    command = [sys.executable, str(SCRIPTS / "train.py"), str(path), f"--out_dir={out}", "--overwrite"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [record["val_loss"] for record in records if "val_loss" in record]
    return {"val_loss": losses[-1], "steps": records[-1]["step"], "seconds": round(time.monotonic() - began, 1)}


def chosen(text: str, seconds: int, folder: Path) -> tuple[dict[str, Any], float]:
    """Return the dial's recipe, and the seconds that its choice took."""
    path, began = folder / "chosen.yaml", time.monotonic()
    command = [sys.executable, str(SCRIPTS / "plan.py"), f"--time-budget={seconds}s", f"--data={text}",
               "--tokenizer=char", f"--write={path}"]  # fmt: skip
    subprocess.run(command, capture_output=True, check=True)
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    values.pop("dataset", None)  # a path of this machine
    return values, time.monotonic() - began


def counted(name: str) -> dict[str, Any]:
    """Return what the loss laws use of a text."""
    whole = loss_pairs.text(name)
    orders, characters = ngrams.measure(whole)
    return {"orders": orders, "characters": characters, "vocabulary": len(set(whole)) + BYTE_ENTRIES,
            "train_tokens": len(whole) * 9 // 10}  # fmt: skip


def search(lines: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Return the next point, after those in the table."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1000 * seed + len(lines), n_startup_trials=8))
    for line in lines:
        study.add_trial(
            optuna.trial.create_trial(params=line["values"], distributions=SPACE, value=line["result"]["val_loss"])
        )
    return dict(study.ask(SPACE).params)


def report(lines: list[dict[str, Any]]) -> str:
    """Return the regret so far."""
    own = [line for line in lines if line["by"] == "dial"]
    others = [line for line in lines if line["by"] == "search"]
    if not own or not others:
        return "nothing to compare yet"
    dial = own[-1]["result"]["val_loss"]
    best = min(others, key=lambda line: line["result"]["val_loss"])
    ends = sorted(line["result"]["val_loss"] for line in others)
    return (
        f"dial {dial:.4f}; best of {len(others)} {ends[0]:.4f}, median {ends[len(ends) // 2]:.4f}: "
        f"regret {dial - ends[0]:+.4f}\nthe best: {best['values']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="shakespeare", help="'shakespeare' (embedded) or a file")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--until", type=float, default=float("inf"), help="begin no run after so many seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dial", action="store_true", help="run the dial's choice again, after a change of the laws")
    options = parser.parse_args()
    table = HERE / "results" / f"regret-{Path(options.text).stem}-{options.seconds}.jsonl"
    began = time.monotonic()

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in table.read_text("utf-8").splitlines()] if table.exists() else []

    def keep(line: dict[str, Any]) -> None:
        with table.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(line, file=sys.stderr, flush=True)

    if not read():
        keep({"by": "text", **counted(options.text)})
    again = options.dial
    while time.monotonic() - began < options.until:
        lines = read()
        searched = [line for line in lines if line["by"] == "search"]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            if again or not any(line["by"] == "dial" for line in lines):
                again = False
                values, took = chosen(options.text, options.seconds, folder)
                result = train(values | {"dataset": options.text}, folder)
                keep({"by": "dial", "values": values, "chosen_in": round(took, 1), "result": result})
            elif len(searched) < options.trials:
                values = search(searched, options.seed)
                result = train(recipe(values, options.text, options.seconds), folder)
                keep({"by": "search", "values": values, "result": result})
            else:
                break
    print(report(read()))


if __name__ == "__main__":
    main()
