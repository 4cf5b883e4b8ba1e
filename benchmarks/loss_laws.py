"""Fit the loss laws to the tables of runs, and report their errors on texts that they have not seen.

    python benchmarks/loss_laws.py [--chinese FILE] [--rates] [--try]      --try: only report, write nothing

In:  benchmarks/results/loss_runs.csv (loss_runs.py) and loss_pairs.csv (loss_pairs.py), finished blind tests
     (forecast.py), searches for the best recipe (regret.py), the runs in tests/fixtures/curves, and published ones.
Out: the coefficients in hfgpt/model/laws.json; on the screen the errors, each text left out in turn.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import forecast
import loss_pairs
import numpy as np
import yaml
from loss_runs import CHINESE, TABLE, recipe, text

from hfgpt.config import Config, build
from hfgpt.data import ngrams
from hfgpt.model import laws, loss_law
from hfgpt.model.loss_law import BYTE_ENTRIES, Statistics
from hfgpt.model.schedule import learning_rate
from hfgpt.plan import grid
from hfgpt.runs import laws as curves

# Each coefficient starts at its prior; its deviation (of the logarithm) limits how far the fit moves it.
PRIORS = {
    "floor": (0.7, 0.3), "floor data": (0.05, 0.7),
    "a": (0.21, 0.7), "alpha": (0.34, 0.03),  # Hoffmann et al.'s: runs this short say little of large models
    "b": (0.17, 0.7), "beta": (0.35, 0.3),
    "c": (0.14, 0.7), "gamma": (0.7, 0.4),
    "shape": (0.007, 1.0), "dropped": (1.5, 1.0),
    "muon steps": (1.8, 0.5), "muon tokens": (1.5, 0.5), "repeats": (8.0, 0.7), "bend": (1.1, 0.2),
    "adamw rate cost": (0.05, 0.5), "muon rate cost": (0.05, 0.5), "embedding rate cost": (0.02, 0.5),
    "embedding rate": (4e-3, 0.3),
}  # fmt: skip
# These may have either sign: prior and deviation themselves.
SIGNED = {
    "adamw rate": (float(np.log(4e-3)), 0.5), "adamw rate steps": (0.1, 0.07), "adamw rate width": (0.4, 0.15),
    "block": (0.05, 0.1), "block trained": (-0.03, 0.05), "muon trained": (0.0, 0.1), "size trained": (-0.03, 0.05),
    "floor order": (0.0, 0.5), "pairs": (0.8, 0.3), "triples": (0.6, 0.3),
    "muon rate": (float(np.log(0.03)), 0.4), "muon rate steps": (0.1, 0.07),
    "muon rate width": (0.1, 0.1), "muon rate batch": (0.2, 0.15), "adamw rate batch": (0.2, 0.15),
    "embedding rate batch": (0.0, 0.15), "embedding rate epochs": (-0.2, 0.5),
}  # fmt: skip
# With --rates these alone are fitted: rates, shape and block. The others stay as they are: a fit of all trades
# what it said rightly of many texts for the searches' many runs on few texts.
OF_RATES = {key for key in (*PRIORS, *SIGNED) if " rate" in key} | {"shape", "size trained", "block", "block trained",
                                                                  "dropped"}  # fmt: skip
ODDS = ("odds", "odds epochs", "odds dropout", "odds width", "odds block", "odds text", "odds muon")
NOISE = 0.04  # nats: the error of a loss over the blocks on which a row was evaluated
TEXT = 0.1  # nats: the typical difference of a text from the law
SHORT = 150  # steps; a shorter run counts half, since such runs are not planned
INSIDE = 0.96  # share of the errors on known kinds of text inside an interval: a new kind errs more, and 95% are wanted
USUAL = 300  # steps; from here on runs are like planned ones, for which the intervals are made

CURVES = Path(__file__).parents[1] / "tests" / "fixtures" / "curves"

# Longer runs on tiny Shakespeare, a text of the embedded one's kind: nanoGPT's README (two recipes), and
# recipes/fast_cpu.yaml as its head says. Text, characters, what differs from fast_cpu's values, loss.
PUBLISHED: list[tuple[dict[str, Any], float]] = [
    ({"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 16, "max_iters": 400,
      "optimizer": "muon", "learning_rate": 3e-3, "muon_learning_rate": 0.03}, 1.856),
    ({"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12, "max_iters": 2000,
      "learning_rate": 1e-3}, 1.8815),
    ({"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 64, "max_iters": 5000,
      "learning_rate": 1e-3, "dropout": 0.2}, 1.4697),
]  # fmt: skip
TINY = ("shakespeare", 1_115_394, 65)  # characters, distinct characters


class Example(NamedTuple):
    """A run: the law's input, its result, and its origin."""

    config: Config
    vocabulary: int
    train_tokens: int
    text: Statistics
    best: float
    end: float
    name: str  # of the text, or of its language
    train_loss: float = float("nan")
    pair: int = -1  # of loss_pairs.csv
    share: float = 1.0  # length, as a share of the pair's run

    @property
    def given(self) -> tuple[Config, int, int, Statistics]:
        """Return the law's input."""
        return self[:4]

    @property
    def epochs(self) -> float:
        """Return how often the text is seen."""
        return self.config.tokens_per_iter * self.config.max_iters / self.train_tokens


# These are left out together.
KINDS = dict.fromkeys(("tang300", "docs-zh", "handbook-zh", "manzh", "sanguo", "d2lzh"), "Chinese")
KINDS |= dict.fromkeys(("pylib", "redis", "cpp", "perl"), "code")


def rows() -> list[dict[str, Any]]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    whole = {"characters", "n_layer", "n_head", "n_embd", "block_size", "batch_size", "max_iters", "vocabulary",
             "train_tokens"}  # fmt: skip
    words = {"text", "optimizer", "curve"}
    return [
        {key: value if key in words else int(value) if key in whole else float(value) for key, value in line.items()}
        for line in lines
    ]


def examples(measured: Callable[[str, int], Statistics]) -> list[Example]:
    """Return the runs of both tables, and those of others."""
    out = []
    for row in rows():
        text_of = measured(row["text"], row["characters"])
        out.append(Example(recipe(row), row["vocabulary"], row["train_tokens"], text_of, row["best_val_loss"],
                           row["val_loss"], KINDS.get(row["text"], row["text"]), row["train_loss"]))  # fmt: skip
    for row in loss_pairs.rows():
        if len(row["orders"]) < ngrams.ORDERS:
            continue  # counted by an older measure, and its text is gone
        text_of, name = Statistics(row["orders"], row["characters"]), KINDS.get(row["text"], row["text"])
        tried = [(steps, ends, ends, steps / row["max_iters"]) for steps, ends in row["trials"]]
        for steps, best, end, share in [*tried, (row["max_iters"], row["best_val_loss"], row["val_loss"], 1.0)]:
            train_loss = row["train_loss"] if share == 1 else best
            out.append(Example(loss_pairs.recipe(row, steps), row["vocabulary"], row["train_tokens"], text_of, best,
                               end, name, train_loss, row["number"], share))  # fmt: skip
    out += [Example(*run, name="shakespeare") for run in others(measured)]
    return out + tested() + searched()


def tested() -> list[Example]:
    """Return the runs of finished blind tests (forecast.py): their results are known, so the fit may use them."""
    out = []
    for lines in blind_tests():
        results = {line["number"]: line["result"] for line in lines if "result" in line}
        for line in lines:
            if "said" not in line or line["number"] not in results or line["case"]["text"] not in forecast.TEXTS:
                continue
            result, kind = results[line["number"]], line["case"]["text"]
            own = {k: v for k, v in line["said"]["recipe"].items() if k not in ("dataset", "time_budget")}
            steps = {"max_iters": result["steps"], "lr_decay_iters": result["steps"], "tokenizer": "char"}
            stretch = forecast.stretch(line["case"])
            out.append(Example(build(own | steps, "run"), len(set(stretch)) + BYTE_ENTRIES, len(stretch) * 9 // 10,
                               Statistics(*ngrams.measure(stretch)), result["best_val_loss"], result["val_loss"],
                               KINDS.get(kind, kind)))  # fmt: skip
    return out


def searched() -> list[Example]:
    """Return the runs of regret.py, both the dial's and the search's."""
    out = []
    for path in sorted(TABLE.parent.glob("regret-*.jsonl")):
        known, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if len(known["orders"]) < ngrams.ORDERS:
            continue  # as above
        name = path.stem.split("-", 1)[1].rpartition("-")[0]
        for line in lines:
            shape = {key: line["values"][key] for key in loss_pairs.SHAPE if key in line["values"]}
            heads = {"n_head": max(1, shape["n_embd"] // grid.HEAD)}
            config = loss_pairs.recipe(heads | shape | {"max_iters": line["result"]["steps"]})
            ends = line["result"]["val_loss"]
            best = line["result"].get("best_val_loss", ends)
            out.append(Example(config, known["vocabulary"], known["train_tokens"],
                               Statistics(tuple(known["orders"]), known["characters"]), best, ends,
                               KINDS.get(name, name)))  # fmt: skip
    return out


def others(measured: Callable[[str, int], Statistics]) -> list[tuple[Config, int, int, Statistics, float, float]]:
    """Return runs from elsewhere, with their lowest and last losses; all of them on Shakespeare."""
    out = []
    for folder in sorted(CURVES.glob("healthy.*")) + sorted(CURVES.glob("overfitting.*")):
        values = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        length = values.pop("slice", 0) or int(folder.name.partition(".")[2].replace("k", "000")) if (
            folder.name.startswith("overfitting.")) else 4_814_324  # fmt: skip
        values.pop("dataset", None)
        losses = [
            record["val_loss"]
            for record in map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
            if "val_loss" in record
        ]
        config = build(values, "run")
        if config.lr_schedule == "cosine" and config.grad_clip:
            out.append((config, 330, length * 9 // 10, measured("shakespeare", length), min(losses), losses[-1]))
    name, length, distinct = TINY
    for values, ends in PUBLISHED:
        out.append((build(values, "run"), distinct + 256, length * 9 // 10, measured(name, length), ends, ends))
    return out


def unpack(vector: np.ndarray) -> dict[str, float]:
    law = {
        key: prior * np.exp(deviation * v) for v, (key, (prior, deviation)) in zip(vector, PRIORS.items(), strict=False)
    }
    rest = vector[len(PRIORS) :]
    law |= {key: prior + deviation * v for v, (key, (prior, deviation)) in zip(rest, SIGNED.items(), strict=True)}
    return law


def keep_all_but_rates() -> None:
    """Let the next fits move hardly more than the rates, the shape and the block away from the shipped law."""
    shipped = laws.laws().loss
    for table in (PRIORS, SIGNED):
        for key, (_prior, deviation) in table.items():
            if key not in OF_RATES:
                table[key] = (shipped[key], deviation / 1000)


def fit(runs: Sequence[Example], start: np.ndarray | None = None) -> np.ndarray:
    """Coefficients of the lowest loss in units of their deviations; robust to single runs.

    The fit includes an offset for each text, which is then dropped.
    """
    from scipy.optimize import least_squares

    def errors(vector: np.ndarray) -> np.ndarray:
        law = unpack(vector[:known])
        off = np.array([loss_law.lowest(law, *run.given) - run.best for run in runs])
        own = vector[known:] * TEXT
        return np.concatenate([(off + own[group]) / scale, vector])

    scale = np.array([NOISE if run.config.max_iters >= SHORT else 2 * NOISE for run in runs])

    def slopes(vector: np.ndarray) -> np.ndarray:
        out, base, step = np.array(offsets), errors(vector), 1e-5
        for i in range(known):
            out[:, i] = (errors(vector + step * np.eye(1, len(vector), i)[0]) - base) / step
        return out

    known = len(PRIORS) + len(SIGNED)
    texts, group = np.unique([str(run.text.orders) for run in runs], return_inverse=True)
    begin = np.zeros(known + len(texts))
    begin[:known] = 0 if start is None else start
    offsets = np.concatenate([np.zeros((len(runs), len(begin))), np.eye(len(begin))])  # the slopes that are constant
    offsets[np.arange(len(runs)), known + group] = TEXT / scale
    most = 40 if start is None else 30
    return least_squares(errors, begin, slopes, loss="soft_l1", f_scale=1.5, max_nfev=most).x[:known]


def overfitted(run: Example) -> bool:
    """Whether it ended above its lowest loss after learning its text; a leap without learning does not count."""
    return run.end > run.best + loss_law.OVERFITS and not run.train_loss > run.best


def fit_odds(runs: Sequence[Example]) -> dict[str, float]:
    """Fit the logistic regression by Newton's method, and the power law of the rise."""
    unit = {key: 0.0 for key in ODDS}
    features = np.array([
        [loss_law.odds(unit | {key: 1.0}, run.config, run.vocabulary, run.train_tokens) for key in ODDS] for run in runs
    ])  # fmt: skip
    happened, weights, ridge = np.array([overfitted(run) for run in runs], dtype=float), np.zeros(len(ODDS)), 0.02
    for _ in range(50):
        chance = 1 / (1 + np.exp(-features @ weights))
        slope = (features * (chance * (1 - chance))[:, None]).T @ features + ridge * np.eye(len(ODDS))
        weights -= np.linalg.solve(slope, features.T @ (chance - happened) + ridge * weights)
    law = dict(zip(ODDS, map(float, weights), strict=True))
    rose = [run for run in runs if overfitted(run) and run.end > run.best + 0.1]
    log_odds = np.array([loss_law.odds(law, *run.given[:3]) for run in rose])
    sizes = np.log([(run.end - run.best) / run.text.unigram for run in rose]) + np.log1p(np.exp(-log_odds))
    risen = list(zip(np.log(np.log1p(np.exp(log_odds))), sizes, strict=True))  # without the chance that it rises
    x, y = np.array(risen).T
    power = float(np.clip(np.polyfit(x, y, 1)[0], 0.7, 2.5))
    left = y - power * x
    return law | {"rise": float(np.exp(np.median(left))), "rise power": power,
                  "rise spread": float(np.median(np.abs(left - np.median(left))) * 1.48)}  # fmt: skip


def spreads(runs: Sequence[Example], off: np.ndarray) -> dict[str, float]:
    """Return the intervals' width, from errors on texts left out, and how much of a trial's error to keep."""
    usual = [i for i, run in enumerate(runs) if run.config.max_iters >= USUAL and run.end < run.best + loss_law.OVERFITS
             and run.share == 1]  # fmt: skip
    size = np.array([min(1.0, run.train_tokens / loss_law.LARGE) for run in runs])
    slope = -np.polyfit(np.log(size[usual]), np.log(np.abs(off[usual]) + 0.01), 1)[0]
    power = float(np.clip(slope, 0.0, 0.5))
    inside = float(np.quantile(np.abs(off[usual]) * size[usual] ** power, INSIDE))
    pairs = [(max((j for j, short in enumerate(runs) if short.pair == run.pair and short.share < 1),
                  key=lambda j: runs[j].share, default=None), i)
             for i, run in enumerate(runs) if run.pair >= 0 and i in usual]  # fmt: skip
    both = np.array([(off[j], off[i]) for j, i in pairs if j is not None])
    choices = np.linspace(0, 1, 21)
    left = [np.abs(both[:, 1] - kept * both[:, 0]) for kept in choices]
    best = int(np.argmin([np.mean(np.minimum(value, 0.5) ** 2) for value in left]))
    alone, after = np.abs(off[usual]), left[best]
    print(f"{len(usual)} runs of {USUAL} steps and more that did not overfit: error {np.median(alone):.3f} at the "
          f"median, {np.quantile(alone, 0.95):.3f} at 95%; as text^-{power:.2f}")  # fmt: skip
    without = np.median(np.abs(both[:, 1]))
    with_it = f"{np.median(after):.3f}, at 95% {np.quantile(after, 0.95):.3f}"
    print(
        f"{len(both)} with a trial of a tenth: {without:.3f} without; with {choices[best]:.2f} of its error {with_it}"
    )
    return {"spread": inside / loss_law.WIDTH, "spread size": power, "offset kept": float(choices[best])}


def during(runs: Sequence[Example], off: np.ndarray, law: dict[str, float]) -> None:
    """Report what the curve, the law (which has not seen the text) and both say of a run's end while it runs."""
    rows = {row["number"]: row for row in loss_pairs.rows()}
    known = [(rows[run.pair], run, error) for run, error in zip(runs, off, strict=True)
             if run.pair >= 0 and run.share == 1 and run.config.max_iters >= USUAL and not overfitted(run)
             and len(rows[run.pair]["curve"]) == len(loss_pairs.FRACTIONS) + 1]  # fmt: skip
    for share in (0.25, 0.5, 0.7):
        said: dict[str, list[curves.Prediction]] = {"curve": [], "both": []}
        ends = [run.end for _row, run, _error in known]
        for row, run, error in known:
            half = loss_law.WIDTH * loss_law.spread(law, run.train_tokens)
            before = curves.Prediction(run.best - error, run.best - error - half, run.best - error + half)
            seen = [point for point in row["curve"] if point[0] <= 1.01 * share * run.config.max_iters]
            rate = partial(learning_rate, config=run.config)
            if (curve := curves.fit_curve(*zip(*seen, strict=True), rate)) is not None:
                said["curve"].append(curve.at(run.config.max_iters))
                said["both"].append(curves.together(before, said["curve"][-1]) or before)
        for name, all_said in said.items():
            errors = [abs(end - one.loss) for end, one in zip(ends, all_said, strict=True)]
            inside = sum(one.low <= end <= one.high for end, one in zip(ends, all_said, strict=True))
            width = np.median([one.high - one.low for one in all_said])
            print(f"at {share:.0%} of {len(ends)} runs, {name}: inside in {inside}, {width:.2f} nats wide; "
                  f"error {np.median(errors):.3f} at the median, {np.quantile(errors, 0.95):.3f} at 95%")  # fmt: skip


def blind_tests() -> list[list[dict[str, Any]]]:
    """Return the lines of each blind test (forecast.py)."""
    paths = sorted(TABLE.parent.glob("forecast-?.jsonl"))
    return [[json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in paths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chinese", default=CHINESE)
    parser.add_argument("--rates", action="store_true", help="fit rates, shape and block; the others stay as shipped")
    parser.add_argument("--try", dest="only", action="store_true", help="say how good a fit is, and write nothing")
    options = parser.parse_args()

    @cache
    def measured(name: str, characters: int) -> Statistics:
        return Statistics(*ngrams.measure(text(name, options.chinese)[:characters]))

    runs = examples(measured)
    if options.rates:
        keep_all_but_rates()
    whole = fit(runs)
    law = unpack(whole) | fit_odds(runs)
    off, foreseen = np.zeros(len(runs)), np.zeros(len(runs), dtype=bool)
    for name in sorted({run.name for run in runs}):
        kept, held = [run for run in runs if run.name != name], [i for i, run in enumerate(runs) if run.name == name]
        part = unpack(fit(kept, whole)) | fit_odds(kept)
        for i in held:
            off[i] = runs[i].best - loss_law.lowest(part, *runs[i].given)
            foreseen[i] = loss_law.odds(part, *runs[i].given[:3]) > 0
        own = [off[i] for i in held if runs[i].config.max_iters >= SHORT]
        if own:
            print(f"  {name}: {len(own)} runs, mean {np.mean(own):+.3f}, deviation {np.std(own):.3f}")
    law |= spreads(runs, off)
    during(runs, off, law)
    happened = np.array([overfitted(run) for run in runs])
    often = np.array([run.epochs > 2 and run.share == 1 for run in runs])
    print(f"overfitting: happened in {happened.sum()} of {len(runs)}, foreseen in {np.sum(foreseen & happened)} of "
          f"these; said in {np.sum(foreseen & ~happened)} where it did not happen; of the {often.sum()} that saw their "
          f"text more than twice, {np.sum((foreseen == happened) & often)} foreseen rightly")  # fmt: skip
    own = [run for run in runs if run.config.max_iters < 5000]  # without the published ones
    law["most tokens"] = float(max(run.config.tokens_per_iter * run.config.max_iters for run in own))
    law["most body"] = float(max(loss_law.body(run.config, run.vocabulary) for run in own))
    if not options.only:
        laws.write(loss={key: float(f"{value:.4g}") for key, value in law.items()})


if __name__ == "__main__":
    main()
