"""A blind test of the forecasts: plan.py's predictions against the runs that follow.

    python benchmarks/forecast.py --seed 1 --count 20          forecasts first, to a file, then the runs; resumes
    python benchmarks/forecast.py --seed 1 --report            the table of the results so far
    python benchmarks/forecast.py --seed 1 --text my.txt       with the user's text among those drawn

In:  a seed, which draws texts, recipes and budgets.
Out: benchmarks/results/forecast-SEED.jsonl: one line per forecast, written before any run begins; then one line per
     result. The report: errors of the time without and with a probe, how often the loss was inside its interval,
     overfitting predicted and observed, budgets kept.

Half of the cases are drawn recipes; the others are `plan.py --time-budget`, whose written recipe is trained. Times are
of the whole command. Each result includes the machine's load, since other work makes a run longer than its forecast.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from loss_runs import CHINESE, text

from hfgpt.model.loss_law import OVERFITS

HERE = Path(__file__).parent
SCRIPTS = HERE.parent / "scripts"
TEXTS = ("shakespeare", "topics", "code", "tang300")
SIZES = (20_000, 60_000, 200_000, 600_000, 2_000_000)  # characters, at most those of the text
BUDGETS = (60, 90, 120)  # seconds
FILES: dict[str, Path] = {}  # the user's texts by name
MOST_WORK = 2e13  # operations of a drawn recipe's matrix products: about 100 s on two cores


def draw(seed: int, number: int, texts: list[str]) -> dict[str, Any]:
    """Draw a case by its number: a text, and a recipe or a budget."""
    rng = np.random.default_rng([seed, number])
    in_turn = np.random.default_rng([seed, number // (2 * len(texts))]).permutation(texts)
    case: dict[str, Any] = {
        "number": number,
        "text": str(in_turn[number // 2 % len(texts)]),  # each equally often, with a recipe and with a budget
        "characters": int(rng.choice(SIZES)),
        "from": float(rng.random()),
    }
    if number % 2:
        return case | {"budget": int(rng.choice(BUDGETS))}
    layers, heads = int(rng.choice([1, 2, 3, 4])), int(rng.choice([2, 3, 4, 6]))
    block, batch = int(rng.choice([32, 64, 128])), int(rng.choice([8, 16, 32]))
    steps = int(np.exp(rng.uniform(np.log(150), np.log(1200))))
    steps = min(steps, int(MOST_WORK / (6 * 12 * layers * (32 * heads) ** 2 * block * batch)))
    recipe = {
        "n_layer": layers,
        "n_head": heads,
        "n_embd": 32 * heads,
        "block_size": block,
        "batch_size": batch,
        "max_iters": steps,
        "optimizer": str(rng.choice(["adamw", "muon"])),
        "learning_rate": float(rng.choice([1e-3, 3e-3])),
        "muon_learning_rate": 0.03,
        "beta2": 0.99,
        "dropout": float(rng.choice([0.0, 0.1])),
        "eval_interval": -(-steps // 5),
        "eval_iters": 20,
    }
    return case | {"recipe": recipe}


def stretch(case: dict[str, Any]) -> str:
    """Return the case's stretch of its text."""
    file = FILES.get(case["text"])
    whole = file.read_text(encoding="utf-8") if file else text(case["text"], CHINESE)
    length = min(case["characters"], len(whole))
    start = int(case["from"] * (len(whole) - length))
    return whole[start : start + length]


def write_text(case: dict[str, Any], folder: Path) -> Path:
    """Write the case's text to a file."""
    path = folder / f"text-{case['number']}.txt"
    path.write_text(stretch(case), encoding="utf-8")
    return path


def plan(*words: str) -> dict[str, Any]:
    """Return plan.py's output as data."""
    command = [sys.executable, str(SCRIPTS / "plan.py"), *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def forecast(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the case's forecasts, and the recipe that they are for."""
    file = write_text(case, folder)
    if "budget" in case:
        path = folder / f"recipe-{case['number']}.yaml"
        said = plan(f"--time-budget={case['budget']}s", f"--data={file}", f"--write={path}")
        return {
            "recipe": yaml.safe_load(path.read_text(encoding="utf-8")),
            "seconds": said["time"]["total_seconds"],
            "range": [said["time"]["low_seconds"], said["time"]["high_seconds"]],
            "loss": said["loss"],
            "trial_seconds": said["recommendation"]["trial_seconds"],
        }
    path = folder / f"recipe-{case['number']}.yaml"
    path.write_text(yaml.safe_dump(case["recipe"] | {"dataset": str(file), "tokenizer": "char"}), encoding="utf-8")
    plain, probed = plan(str(path)), plan(str(path), "--probe")
    return {
        "recipe": case["recipe"],
        "seconds": plain["time"]["total_seconds"],
        "range": [plain["time"]["low_seconds"], plain["time"]["high_seconds"]],
        "probed_seconds": probed["time"]["total_seconds"],
        "probed_range": [probed["time"]["low_seconds"], probed["time"]["high_seconds"]],
        "busy": probed["time"]["busy"],
        "loss": plain["loss"],
    }


def run(case: dict[str, Any], said: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train the recipe by the command that a user types; return its seconds, its losses and the machine's load."""
    file, out = write_text(case, folder), folder / f"run-{case['number']}"
    path = folder / f"train-{case['number']}.yaml"
    path.write_text(yaml.safe_dump(said["recipe"] | {"dataset": str(file), "tokenizer": "char"}), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "train.py"), str(path), f"--out_dir={out}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    seconds = time.monotonic() - began
    if done.returncode:
        raise RuntimeError(done.stderr)
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    curve = {record["step"]: round(record["val_loss"], 4) for record in records if "val_loss" in record}
    losses = list(curve.values())
    return {
        "seconds": seconds,
        "steps": records[-1]["step"],
        "horizons": [record["horizon"] for record in records if "horizon" in record],
        "curve": curve,
        "val_loss": losses[-1],
        "best_val_loss": min(losses),
        "overfitted": losses[-1] > min(losses) + OVERFITS,
        "load": os.getloadavg()[0],
    }


def report(lines: list[dict[str, Any]]) -> str:
    """Report the figures of all finished cases."""
    cases = {line["number"]: line for line in lines if "said" in line}
    pairs = [(cases[line["number"]], line["result"]) for line in lines if "result" in line]
    rows = ["| figure | cases | value |", "|---|---|---|"]

    def ratios(key: str, kind: str) -> np.ndarray:
        return np.array([case["said"][key] / result["seconds"] for case, result in pairs
                         if kind in case["case"] and key in case["said"]])  # fmt: skip

    def row(name: str, values: np.ndarray, told: str) -> None:
        if len(values):
            rows.append(f"| {name} | {len(values)} | {told} |")

    for name, key in (("time, no probe", "seconds"), ("time, with a probe", "probed_seconds")):
        off = np.abs(ratios(key, "recipe") - 1)
        if len(off):
            row(
                name,
                off,
                f"median error {np.median(off):.0%}, within 15%: {np.mean(off < 0.15):.0%}, most {off.max():.0%}",
            )
    used = np.array([result["seconds"] / case["case"]["budget"] for case, result in pairs if "budget" in case["case"]])
    if len(used):
        row("budget", used, f"used {np.median(used):.0%} at the median; exceeded in {np.sum(used > 1)}, "
                            f"at most {used.max():.0%}; below 85% in {np.sum(used < 0.85)}")  # fmt: skip
    known = [(case["said"]["loss"], result) for case, result in pairs if case["said"]["loss"]]
    if known:
        inside = np.array([said["low"] <= result["val_loss"] <= said["high"] for said, result in known])
        width = np.array([said["high"] - said["low"] for said, _ in known])
        off = np.array([said["loss"] - result["val_loss"] for said, result in known])
        row("loss", inside, f"inside its 95% interval in {inside.sum()}; width {np.median(width):.2f} nats at the "
                            f"median; error {np.median(np.abs(off)):.3f} at the median")  # fmt: skip
        right = np.array([said["overfits"] == result["overfitted"] for said, result in known])
        happened = sum(result["overfitted"] for _, result in known)
        row("overfitting", right, f"foreseen rightly in {right.sum()}; it happened in {happened}")
    loads = [result["load"] for _, result in pairs]
    if loads:
        rows.append(
            f"| load of the machine | {len(loads)} | {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--text", action="append", default=[], help="a text file beside those drawn from")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    record = HERE / "results" / f"forecast-{options.seed}.jsonl"
    lines = [json.loads(line) for line in record.read_text("utf-8").splitlines()] if record.exists() else []

    def keep(line: dict[str, Any]) -> None:
        lines.append(line)
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(line, file=sys.stderr, flush=True)

    if not options.report:
        FILES.update({Path(name).name: Path(name) for name in options.text})
        texts = [*TEXTS, *FILES]
        with tempfile.TemporaryDirectory() as scratch:
            for number in range(options.count):
                if not any(line["number"] == number and "said" in line for line in lines):
                    case = draw(options.seed, number, texts)
                    keep({"number": number, "case": case, "said": forecast(case, Path(scratch))})
            for line in [line for line in lines if "said" in line]:
                if not any(other["number"] == line["number"] and "result" in other for other in lines):
                    keep({"number": line["number"], "result": run(line["case"], line["said"], Path(scratch))})
    print(report(lines))


if __name__ == "__main__":
    main()
