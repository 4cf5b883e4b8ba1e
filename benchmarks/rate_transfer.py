"""Whether the best learning rate stays the same for wider models, with and without `mup_base_width`.

    python benchmarks/rate_transfer.py [--seeds 3]                     AdamW, about 6 CPU-minutes per seed; resumes
    python benchmarks/rate_transfer.py --optimizer muon [--seeds 1]    Muon, about 15

In:  the embedded Shakespeare; two layers with heads of 16 channels, at widths 64, 128 and 256, tuned at 64.
Out: benchmarks/results/rate_transfer.csv, docs/images/rate-transfer.png (in Chinese rate-transfer-zh.png), and the
     best rate of each width.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import math
import os
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from hfgpt import config
from hfgpt.base.language import using
from hfgpt.model import gpt2, optim, schedule
from hfgpt.runs.plots import RUNS, drawing, save

ROOT = Path(__file__).parent.parent
TABLE, FIGURE = ROOT / "benchmarks/results/rate_transfer.csv", ROOT / "docs/images/rate-transfer.png"

# The figure's words by language.
WORDS: dict[str, dict[Any, str]] = {
    "en": {True: "{optimizer}, with mup_base_width: 64", False: "{optimizer}, without the rule",
           "apart": "best rates within a factor of {factor:.1f}",
           "rate": "{field} (dotted: the best, fitted)",
           "loss": "validation loss (nats per character)"},
    "zh": {True: "{optimizer}，使用 mup_base_width: 64", False: "{optimizer}，不用这条规则",
           "apart": "最佳学习率相差 {factor:.1f} 倍以内",
           "rate": "{field}（虚线：拟合出的最佳值）", "loss": "验证损失（nat/字符）"},
}  # fmt: skip

WIDTHS, BASE = (64, 128, 256), 64


class Rule(NamedTuple):
    """What is swept: an optimizer's rate, with mup_base_width or without."""

    optimizer: str
    scaled: bool
    rates: list[float]

    @property
    def field(self) -> str:
        return "learning_rate" if self.optimizer == "adamw" else "muon_learning_rate"


ADAMW_RATES = [2.0 ** (power / 2) for power in range(-20, -10)]  # 0.001 to 0.022
MUON_RATES = [2.0 ** (power / 2) for power in range(-14, -4)]  # 0.008 to 0.18
RULES = {
    "none": Rule("adamw", False, ADAMW_RATES),
    "muP": Rule("adamw", True, ADAMW_RATES),
    "Muon": Rule("muon", False, MUON_RATES),
    "Muon muP": Rule("muon", True, MUON_RATES),
}
Run = tuple[str, int, float, int]  # rule, width, rate, seed

RECIPE = {"n_layer": 2, "block_size": 32, "batch_size": 16, "max_iters": 120, "warmup_iters": 12, "min_lr": 0.0}


def tokens() -> tuple[torch.Tensor, int]:
    """Return the text as characters numbered in their order."""
    text = gzip.decompress((files("hfgpt.data") / "shakespeare.txt.gz").read_bytes()).decode()[:1_000_000]
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    return torch.tensor([letters[letter] for letter in text]), len(letters)


def final_loss(width: int, rate: float, seed: int, rule: Rule, text: torch.Tensor, vocabulary: int) -> float:
    """Train; return the validation loss at the end, in nats a character."""
    base = {"mup_base_width": BASE} if rule.scaled else {}
    own = {"optimizer": rule.optimizer, "learning_rate": 4e-3, rule.field: rate}  # Muon's embeddings keep AdamW's best
    recipe = config.build({**RECIPE, **base, **own, "n_embd": width, "n_head": width // 16}, "run")
    torch.manual_seed(seed)
    model = gpt2.build(recipe, vocabulary, None)
    optimizer = optim.build(model, recipe, torch.device("cpu"))
    draw, cut = np.random.default_rng(seed), int(len(text) * 0.9)
    window = torch.arange(recipe.block_size + 1)
    for step in range(1, recipe.max_iters + 1):
        optim.set_learning_rate(optimizer, schedule.learning_rate(step, recipe))
        blocks = text[torch.from_numpy(draw.integers(cut - 40, size=(recipe.batch_size, 1))) + window]
        (model(blocks[:, :-1], blocks[:, 1:]) / blocks[:, 1:].numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        held = text[cut : cut + 33 * 512].view(512, 33)
        return float(model(held[:, :-1], held[:, 1:])) / held[:, 1:].numel()


def best_rate(losses: dict[float, float]) -> float:
    """Return the rate at the bottom of a parabola through the five best neighbours, in the logarithm of the rate."""
    rates = [*losses]
    best = rates.index(min(losses, key=losses.__getitem__))
    first = min(max(0, best - 2), len(rates) - 5)
    near = rates[first : first + 5]
    bend, slope, _height = np.polyfit(np.log(near), [losses[rate] for rate in near], 2)
    return float(np.exp(-slope / (2 * bend))) if bend > 0 else rates[best]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    options = parser.parse_args()
    seeds = range(options.seeds)
    text, vocabulary = tokens()
    done = read()
    for seed in seeds:
        for name, rule in RULES.items():
            for width in WIDTHS if rule.optimizer == options.optimizer else ():
                for rate in rule.rates:
                    key = (name, width, rate, seed)
                    if key not in done:
                        done[key] = final_loss(width, rate, seed, rule, text, vocabulary)
                        with TABLE.open("a", encoding="utf-8", newline="") as file:
                            writer = csv.writer(file)
                            if not file.tell():
                                writer.writerow(["rule", "width", "rate", "seed", "loss"])
                            writer.writerow([*key, round(done[key], 5)])
    mean = means(done)
    for name in measured(mean):
        best = {width: best_rate(mean[name, width]) for width in WIDTHS}
        for width in WIDTHS:
            print(f"{name:8} width {width:4}  best rate {best[width]:.4f}  loss {min(mean[name, width].values()):.4f}")
        print(f"{name:8} within a factor of {apart(mean, name):.2f}")
    draw(mean, "en", FIGURE)
    draw(mean, "zh", FIGURE.with_stem(f"{FIGURE.stem}-zh"))


def read() -> dict[Run, float]:
    """Return the losses already in the table."""
    with TABLE.open(encoding="utf-8", newline="") if TABLE.exists() else open(os.devnull) as file:
        return {(row["rule"], int(row["width"]), float(row["rate"]), int(row["seed"])): float(row["loss"])
                for row in csv.DictReader(file)}  # fmt: skip


def means(done: dict[Run, float]) -> dict[tuple[str, int], dict[float, float]]:
    """Return for each rule and width the loss at each rate: the mean of the seeds for which all losses exist."""
    mean = {}
    for name, (_optimizer, _scaled, rates) in RULES.items():
        known = sorted({seed for own, _width, _rate, seed in done if own == name})
        whole = [seed for seed in known if all((name, w, rate, seed) in done for w in WIDTHS for rate in rates)]
        for width in WIDTHS if whole else ():
            mean[name, width] = {
                rate: math.fsum(done[name, width, rate, seed] for seed in whole) / len(whole) for rate in rates
            }
    return mean


def measured(mean: dict[tuple[str, int], dict[float, float]]) -> list[str]:
    """Return the rules that have all their runs."""
    return [name for name in RULES if (name, WIDTHS[0]) in mean]


def apart(mean: dict[tuple[str, int], dict[float, float]], rule: str) -> float:
    """Return the factor between the highest and the lowest of the widths' best rates."""
    best = [best_rate(mean[rule, width]) for width in WIDTHS]
    return max(best) / min(best)


def draw(mean: dict[tuple[str, int], dict[float, float]], language: str, target: Path) -> None:
    """Draw loss against rate, a curve for each width, without the rule and with it."""
    words = WORDS[language]
    with using(language), drawing():
        names = measured(mean)
        rows = len(names) // 2  # an optimizer's two rules side by side
        figure = Figure(figsize=(12, 5 * rows), layout="constrained")
        for axes, name in zip(figure.subplots(rows, 2, sharey="row", squeeze=False).flat, names, strict=True):
            rule = RULES[name]
            for width, colour in zip(WIDTHS, RUNS, strict=False):
                losses = mean[name, width]
                axes.plot([*losses], [*losses.values()], marker="o", color=colour, label=f"n_embd {width}")
                axes.axvline(best_rate(losses), color=colour, linestyle=":")
            heading = words[rule.scaled].format(optimizer={"adamw": "AdamW", "muon": "Muon"}[rule.optimizer])
            heading += "\n" + words["apart"].format(factor=apart(mean, name))
            axes.set(xscale="log", xlabel=words["rate"].format(field=rule.field), title=heading)
            axes.set_ylim(None, max(loss for losses in mean.values() for loss in [*losses.values()][:3]) + 0.1)
            axes.legend()
        for axes in figure.axes[::2]:
            axes.set_ylabel(words["loss"])
        save(figure, target)


if __name__ == "__main__":
    main()
