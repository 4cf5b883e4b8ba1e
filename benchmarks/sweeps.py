"""What a sweep can distinguish: equal settings (A/A), and Muon from AdamW.

    python benchmarks/sweeps.py aa [PAIRS]     how often a sweep of two equal settings names a winner
    python benchmarks/sweeps.py pruning        what --prune saves, and what it costs
    python benchmarks/sweeps.py optimizer      the study of docs/en/experiments.md
    python benchmarks/sweeps.py options [SEEDS]   how options for schedule and stability affect the loss

Results go to benchmarks/results/. Trials run one after another in this process, on one thread, into the folders that
sweep.py would use, so that a tiny trial takes seconds without the start of a process. A step's time is this thread's
CPU time, which other work on the machine hardly changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_PROC_BIND": "false", "HF_HUB_OFFLINE": "1"}

from matplotlib.figure import Figure

from hfgpt import config as configs
from hfgpt.base.language import using
from hfgpt.config import Config
from hfgpt.runs import statistics
from hfgpt.runs.history import read_run
from hfgpt.runs.metrics import smooth
from hfgpt.runs.plots import RUNS, drawing, save, title
from hfgpt.sweep import report, storage, training
from hfgpt.sweep.definition import Sweep, Trial, equalised
from hfgpt.sweep.reading import define

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"

TINY = {"batch_size": 8, "block_size": 32, "n_layer": 1, "n_head": 2, "n_embd": 32, "max_iters": 60, "dropout": 0.0,
        "learning_rate": 5e-3, "eval_interval": 30, "eval_iters": 10, "sample_prompt": "",
        "log_interval": 20}  # fmt: skip


def train(config: Config, log: Path) -> None:
    """Train in this process, with its output in a file."""
    from hfgpt.train import loop

    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        loop.train(config, overwrite=True)
    _forget()
    for folder in config.run_dir.glob("checkpoint-*"):
        shutil.rmtree(folder)


def seconds_per_step(sweep: Sweep) -> dict[str, float]:
    """Return CPU seconds per step by setting."""
    seconds = {}
    for setting, (trial, *_others) in sweep.settings().items():
        own = {"max_time": None, "out_dir": str(sweep.folder / "probes" / trial.name)}
        seconds[setting] = cpu_seconds(sweep.config(trial).model_copy(update=own))
    return seconds


def cpu_seconds(config: Config, steps: int = 40) -> float:
    """Return CPU seconds of a recipe's step: the median of some, after as many to warm up."""
    from hfgpt.train.start import start
    from hfgpt.train.step import to_device, train_step

    run = start(config.model_copy(update={"eval_only": True}), overwrite=True)
    run.model.train()
    spent = []
    for step in range(2 * steps):
        began = time.process_time()
        batches = to_device(run.corpus.batches.micro_batches(step, *run.share), run.device)
        train_step(run, batches, config.tokens_per_iter, 1e-4)
        spent.append(time.process_time() - began)
    run.display.close()
    run.accelerator.end_training()
    _forget()
    return sorted(spent[steps:])[steps // 2]


def _forget() -> None:
    """Reset Accelerate, whose state is global to the process."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run(sweep: Sweep, seconds: dict[str, float]) -> dict[str, str]:
    """Run every trial that has not ended; return each outcome."""
    outcomes = {}
    for trial in sweep.trials:
        config = equalised(sweep, trial, seconds.get(trial.setting))
        log = sweep.folder / "logs" / f"{trial.name}.log"
        if not (config.run_dir / "loss.png").exists():  # drawn at the end
            train(config, log)
        outcome, value = training.outcome(trial.label, config, 0, log)
        outcomes[trial.name] = outcome
        print(f"{trial.label}: {config.max_iters} steps, {outcome} {value}", flush=True)
    return outcomes


def losses(sweep: Sweep) -> dict[str, dict[int, float]]:
    """Return final validation losses by setting and seed."""
    return {
        setting: {trial.seed or 0: training.records(sweep.config(trial).run_dir)[-1]["val_loss"] for trial in trials}
        for setting, trials in sweep.settings().items()
    }


NAMES = {"adamw": "AdamW", "muon": "Muon"}

# The figure's words by language.
WORDS = {
    "en": {"title": "Muon and AdamW at equal time: the mean of {seeds} seeds, with its 95% interval",
           "time": "CPU time in steps (seconds)", "loss": "loss (nats per token)",
           "curve": "{setting}: train loss, smoothed", "end": "{setting}: validation loss at the end"},
    "zh": {"title": "同样时间下的 Muon 与 AdamW：{seeds} 个随机种子的均值与 95% 区间",
           "time": "训练步所用的 CPU 时间（秒）", "loss": "损失（nat/词元）",
           "curve": "{setting}：训练损失（平滑后）", "end": "{setting}：结束时的验证损失"},
}  # fmt: skip


def optimizer(folder: Path) -> None:
    """Muon against AdamW: the rates by one other seed at two fifths of the time, then five seeds at equal time."""
    base = define(str(ROOT / "recipes/experiments/optimizer.yaml"), [], {"out_dir": str(folder / "study")})
    tried = {f"adamw {rate:g}": {"optimizer": "adamw", "learning_rate": rate} for rate in (1e-3, 2e-3, 4e-3, 8e-3)}
    tried |= {
        f"muon {rate:g}": {"optimizer": "muon", "muon_learning_rate": rate, "learning_rate": 3e-3}
        for rate in (0.02, 0.04, 0.08)
    }
    rates = [Trial(f"{name.replace(' ', '-')}_seed-7", values, 7, name) for name, values in tried.items()]
    recipe = {**base.recipe, "max_time": "8s"}
    tuning = dataclasses.replace(base, name="rates", recipe=recipe, trials=rates, folder=folder / "rates")
    seconds = measured(base)
    by_optimizer = {trial.setting: seconds["adamw" if "adamw" in trial.name else "muon"] for trial in rates}
    run(tuning, by_optimizer)
    tuned = {setting: statistics.summarise([*by_seed.values()]).mean for setting, by_seed in losses(tuning).items()}
    print(json.dumps(tuned, indent=2), flush=True)
    best = {kind: min((s for s in tuned if kind in s), key=tuned.__getitem__) for kind in ("adamw", "muon")}
    trials = [
        Trial(f"{kind}_seed-{seed}", tried[best[kind]], seed, NAMES[kind])
        for seed in range(1337, 1342)
        for kind in best
    ]
    study = dataclasses.replace(base, trials=trials)
    outcomes = run(study, {trial.setting: seconds[trial.name.partition("_")[0]] for trial in trials})
    ranking = statistics.rank(losses(study))
    write("optimizer", {"rates": tuned, "cpu_seconds_per_step": seconds, "losses": losses(study),
                        "answer": statistics.in_words(ranking)})  # fmt: skip
    report.write(study, outcomes)
    figure = ROOT / "docs/images/optimizer-time.png"
    draw(study, seconds, "en", figure)
    draw(study, seconds, "zh", figure.with_stem(f"{figure.stem}-zh"))


def draw(study: Sweep, seconds: dict[str, float], language: str, target: Path) -> None:
    """Draw the losses of the study's settings over CPU time: the mean of the seeds in a band of its 95% interval."""
    words = WORDS[language]
    with using(language), drawing():
        figure = Figure(figsize=(12, 6.5), layout="constrained")
        axes = figure.subplots()
        for (setting, trials), colour in zip(study.settings().items(), RUNS, strict=False):
            runs = [read_run(study.config(trial).run_dir) for trial in trials]
            curves = [dict(zip(steps, smooth(values), strict=True)) for steps, values in
                      (run.series("train_loss") for run in runs)]  # fmt: skip
            common = sorted(set.intersection(*({*curve} for curve in curves)))
            times = [step * seconds[setting.lower()] for step in common]
            means = [statistics.summarise([curve[step] for curve in curves]) for step in common]
            axes.plot(
                times, [mean.mean for mean in means], color=colour, lw=2, label=words["curve"].format(setting=setting)
            )
            axes.fill_between(times, [m.low for m in means], [m.high for m in means], color=colour, alpha=0.2, lw=0)
            end = statistics.summarise([run.series("val_loss")[1][-1] for run in runs])
            axes.errorbar(times[-1:], [end.mean], [end.high - end.mean], color=colour, fmt="o", ms=8, capsize=5,
                          label=words["end"].format(setting=setting))  # fmt: skip
        axes.set(xlabel=words["time"], ylabel=words["loss"], ylim=(1.75, 4.0))
        axes.legend()
        title(figure, words["title"].format(seeds=len(trials)))
        save(figure, target)


def measured(sweep: Sweep) -> dict[str, float]:
    """Return CPU seconds per step of each named trial, stored in the sweep's folder."""
    path = sweep.folder / "seconds_per_step.json"
    if not path.exists():
        by_setting = seconds_per_step(sweep)
        by_name = {trial.name.partition("_")[0].lower(): by_setting[trial.setting] for trial in sweep.trials}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(by_name))
    known: dict[str, float] = json.loads(path.read_text())
    print(known, flush=True)
    return known


def curve(config: Config, every: int) -> dict[int, float]:
    """Return a recipe's validation losses by step, trained with the loop's own step, without writing more."""
    from hfgpt.model.schedule import learning_rate
    from hfgpt.train import evaluate
    from hfgpt.train.start import start
    from hfgpt.train.step import to_device, train_step
    from hfgpt.train.stop import Stop

    losses = {}
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        run = start(config, overwrite=True)
        run.model.train()
        for step in range(config.max_iters):
            batches = to_device(run.corpus.batches.micro_batches(step, *run.share), run.device)
            targets = config.batch_sizes.at(step) * config.block_size
            train_step(run, batches, targets, learning_rate(step + 1, config))
            if (step + 1) % every == 0 or step + 1 == config.max_iters:
                figures = evaluate.losses(run, Stop(None, run.device))
                assert figures is not None, "no signal came"
                losses[step + 1] = figures["val_loss"]
        run.display.close()
        run.accelerator.end_training()
    _forget()
    return losses


def final_loss(config: Config) -> float:
    """Return a recipe's final validation loss."""
    return curve(config, config.max_iters)[config.max_iters]


# The standard recipe's six blocks and heads, cut to a CPU's size. min_lr is a tenth of the rate everywhere.
CUT = {"n_layer": 6, "n_head": 6, "n_embd": 96, "block_size": 64, "batch_size": 16, "dropout": 0.0, "max_iters": 300,
       "lr_decay_iters": 300, "learning_rate": 3e-3, "min_lr": 3e-4, "warmup_iters": 15, "eval_iters": 50,
       "sample_prompt": ""}  # fmt: skip

WARMED = 100  # steps in which the batch grows

OPTIONS: dict[str, dict[str, Any]] = {
    "the recipe as it is": {},
    "lr_schedule: wsd": {"lr_schedule": "wsd", "lr_decay_iters": 240},
    "wsd, decay_shape: cosine": {"lr_schedule": "wsd", "lr_decay_iters": 240, "decay_shape": "cosine"},
    "wsd, decay_shape: 1-sqrt": {"lr_schedule": "wsd", "lr_decay_iters": 240, "decay_shape": "1-sqrt"},
    "batch_warmup_iters: 100": {"batch_warmup_iters": WARMED},
    "the same, for as many tokens": {"batch_warmup_iters": WARMED, "max_iters": 0},
    "z_loss: 1e-4": {"z_loss": 1e-4},
    "activation_function: gelu_new": {"activation_function": "gelu_new"},
    "activation_function: relu2": {"activation_function": "relu2"},
    "n_inner: 192 (twice n_embd)": {"n_inner": 192},
    "tie_word_embeddings: false": {"tie_word_embeddings": False},
}


def option(name: str, seed: int, folder: Path) -> Config:
    """Return the cut recipe with one option; `max_iters: 0` means as many tokens as without the option."""
    own = {**CUT, **OPTIONS[name], "seed": seed, "out_dir": str(folder), "eval_only": True}
    if not own["max_iters"]:
        whole, steps = CUT["max_iters"] * CUT["batch_size"], CUT["max_iters"]
        while configs.build({**own, "max_iters": steps}, "options").batch_sizes.before(steps) < whole:
            steps += 1
        own |= {"max_iters": steps, "lr_decay_iters": steps}
    return configs.load(ROOT / "recipes/standard.yaml", [f"--{key}={value}" for key, value in own.items()])


def options(folder: Path, seeds: int) -> None:
    """Compare each option with the recipe without it: final losses by seed. Runs already in the table are skipped."""
    path = RESULTS / "sweep-options.json"
    known: dict[str, dict[str, float]] = json.loads(path.read_text())["losses"] if path.exists() else {}
    for seed in range(1, seeds + 1):
        for name in OPTIONS:
            if str(seed) not in known.setdefault(name, {}):
                config = option(name, seed, folder)
                known[name][str(seed)] = final_loss(config)
                print(f"{name}, seed {seed}: {known[name][str(seed)]:.4f}", flush=True)
                write("options", {"losses": known})
    write("options", {"recipe": CUT, "rows": compared(known, folder), "losses": known})


def compared(known: dict[str, dict[str, float]], folder: Path) -> dict[str, dict[str, Any]]:
    """Compare each option with the recipe without it, in pairs of one seed where the order of the text is the same."""
    plain, rows = known["the recipe as it is"], {}
    for name, own in known.items():
        config = option(name, 1, folder)
        paired = "batch_warmup_iters" not in OPTIONS[name]
        found = statistics.difference(plain, own, paired=paired) if OPTIONS[name] else None
        behind = {**dataclasses.asdict(found), "distinct": found.distinct} if found else None
        rows[name] = {"seeds": len(own), "steps": config.max_iters, "tokens": config.tokens_by(config.max_iters),
                      "mean": statistics.summarise([*own.values()]).mean,
                      "behind": behind}  # fmt: skip
    return rows


def pruning(folder: Path) -> None:
    """Measure what sweep.py's pruner saves: full curves of 16 rates in random order, and where it would stop each."""
    import optuna

    rates = [float(f"{1e-4 * 1.65**place:.2g}") for place in range(16)]
    random.Random(0).shuffle(rates)
    own = {"max_iters": 100, "eval_only": True, "seed": 1, "out_dir": str(folder)}
    curves = {rate: curve(configs.build({**TINY, **own, "learning_rate": rate}, "pruning"), 10) for rate in rates}
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(storage.STARTUP_TRIALS, storage.WARMUP_PERCENT))
    stopped: dict[float, int] = {}
    for rate, losses in curves.items():
        asked = study.ask()
        for step, loss in losses.items():
            asked.report(loss, step)
            if asked.should_prune():
                stopped[rate] = step
                break
        if rate in stopped:
            study.tell(asked, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(asked, losses[100])
    finals = {rate: losses[100] for rate, losses in curves.items()}
    best, kept = min(finals.values()), min(loss for rate, loss in finals.items() if rate not in stopped)
    saved = sum(100 - step for step in stopped.values()) / (100 * len(rates))
    write("pruning", {"recipe": {**TINY, "max_iters": 100}, "rates": rates, "final_losses": finals,
                      "stopped_at": stopped, "steps_left_out": saved, "best": best,
                      "best_of_those_kept": kept})  # fmt: skip
    print(f"{len(stopped)} of {len(rates)} stopped, {saved:.0%} of the steps left out; best {best}, kept {kept}")


def aa(folder: Path, pairs: int, seeds: int = 3) -> None:
    """Count how often a sweep calls one of two equal settings better, each pair with its own seeds. Losses already in
    the table are not trained again.
    """
    path = RESULTS / "sweep-aa.json"
    known: dict[str, float] = json.loads(path.read_text())["losses"] if path.exists() else {}
    for number in range(2 * seeds * pairs):
        seed = 1000 * (number // 10) + 10 * (number % 10 // 2) + number % 2  # any, as long as all differ
        if str(seed) not in known:
            own = {"seed": seed, "out_dir": str(folder), "eval_only": True}
            known[str(seed)] = final_loss(configs.build({**TINY, **own}, "aa"))
            print(f"seed {seed}: {known[str(seed)]:.4f}", flush=True)
            write("aa", {"losses": known})
    write("aa", judged(known, seeds))


def judged(known: dict[str, float], seeds: int) -> dict[str, Any]:
    """Cut one recipe's losses into pairs of settings, and judge each pair as a sweep does."""
    losses = list(known.values())
    p_values, named, by_one_seed = [], 0, 0
    for begin in range(0, len(losses) - 2 * seeds + 1, 2 * seeds):
        first, second = losses[begin : begin + seeds], losses[begin + seeds : begin + 2 * seeds]
        ranking = statistics.rank({"A": dict(enumerate(first)), "B": dict(enumerate(second))})
        difference = next(iter(ranking.behind.values()))
        assert difference is not None, "each has several seeds"
        p_values.append(difference.p)
        named += ranking.winner is not None
        by_one_seed += abs(first[0] - second[0]) > 0.01 * min(first[0], second[0])
    return {"seeds": seeds, "pairs": len(p_values), "winners": named, "apart_by_1_percent_in_one_run_each": by_one_seed,
            "spread": statistics.summarise(losses).spread, "recipe": TINY, "p_values": p_values,
            "losses": known}  # fmt: skip


def write(name: str, data: dict[str, Any]) -> None:
    """Write a table of results."""
    path = RESULTS / f"sweep-{name}.json"
    path.write_text(json.dumps(data, indent=1, default=str) + "\n")


if __name__ == "__main__":
    folder = Path(os.environ.get("SWEEPS_FOLDER") or tempfile.mkdtemp(prefix="hfgpt-sweeps-"))
    what = sys.argv[1]
    if what == "aa":
        aa(folder / "aa", int(sys.argv[2]) if len(sys.argv) > 2 else 40)
    elif what == "pruning":
        pruning(folder / "pruning")
    elif what == "options":
        options(folder / "options", int(sys.argv[2]) if len(sys.argv) > 2 else 5)
    else:
        optimizer(folder / "optimizer")
