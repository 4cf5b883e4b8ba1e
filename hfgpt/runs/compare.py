"""Compare runs: a table, pictures, and in words what the differing value did.

In:  runs, each under a label, with the values in which they differ.
Out: ``report.md``, ``report.json`` and their PNG files in a folder.

A final loss is the last evaluation's; the best one is that of the exported model. Imports torch only where the
models' own words are wanted.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfgpt.base.errors import InputError
from hfgpt.base.units import duration
from hfgpt.config import Config, group_of, unit_of
from hfgpt.runs import diagnose, plots
from hfgpt.runs.metrics import Run, read_run
from hfgpt.runs.plots import By, Curve, Point, quantity

SAME = 0.01  # share: losses nearer than this may differ by the seed alone

SAMPLED = 8  # runs, at most, whose words are shown


@dataclass
class Entry:
    """One run in a comparison. `run` is None where nothing was recorded; `outcome` says how it ended."""

    label: str
    values: dict[str, Any]
    run: Run | None
    outcome: str = "finished"
    kinds: list[str] = field(default_factory=list)
    sample: str = ""

    def __post_init__(self) -> None:
        if self.run is not None:
            self.kinds = [finding.kind for finding in diagnose.diagnose(self.run.records, self.run.config)]
            if "diverged" in self.kinds:
                self.outcome = "diverged"
            if self.outcome not in ("finished", "running"):
                self.kinds = [kind for kind in self.kinds if kind != "healthy"]

    def last(self, key: str) -> float | None:
        """The last value of a series, None where there is none or it is no number."""
        values = self.run.series(key)[1] if self.run else []
        return values[-1] if values and math.isfinite(values[-1]) else None

    @property
    def config(self) -> Config | None:
        """The run's recipe."""
        return self.run.config if self.run else None

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return int(self.run.records[-1]["step"]) if self.run else 0

    @property
    def tokens(self) -> int | None:
        """Tokens trained."""
        return self.steps * self.config.tokens_per_iter if self.config else None

    @property
    def final(self) -> float | None:
        """The last validation loss of a run that neither failed nor diverged."""
        return self.last("val_loss") if self.outcome in ("finished", "running") else None

    @property
    def best(self) -> tuple[float, int] | None:
        """The lowest validation loss and its step."""
        steps, values = self.run.series("val_loss") if self.run else ([], [])
        pairs = [(value, int(step)) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
        return min(pairs) if pairs else None

    @property
    def tokens_per_second(self) -> float | None:
        """The median speed."""
        speeds = self.run.series("tokens_per_second")[1] if self.run else []
        return statistics.median(speeds) if speeds else None

    @property
    def parameters(self) -> int | None:
        """The model's parameters."""
        return plots.parameters(self.run) if self.run else None


@dataclass(frozen=True)
class Comparison:
    """Runs to compare, and why: the title, the question asked, and what was held equal."""

    title: str
    entries: list[Entry]
    question: str = ""
    equal: str = ""
    joined: bool = True  # whether the values form a grid, so that lines between runs mean something

    @property
    def keys(self) -> list[str]:
        """The fields in which the runs differ."""
        every = list(dict.fromkeys(key for entry in self.entries for key in entry.values))
        return [key for key in every if len({repr(entry.values.get(key)) for entry in self.entries}) > 1]

    @property
    def ended(self) -> list[Entry]:
        """The runs that have a final loss, the best first."""
        return sorted((e for e in self.entries if e.final is not None), key=lambda e: e.final or math.inf)


def of_folders(sources: Sequence[str | Path]) -> Comparison:
    """A comparison of finished runs, labelled by the recipe's fields in which they differ, else by their names.

    Raises:
        InputError: fewer than two runs, or one of them cannot be read.
    """
    if len(sources) < 2:
        raise InputError("compare: needs at least two runs → python scripts/compare.py OUT1 OUT2 …")
    runs = [read_run(source) for source in sources]
    dumps = [run.config.model_dump(exclude={"out_dir", "max_time", "cpu_threads", "num_proc"}) if run.config else {}
             for run in runs]  # fmt: skip
    differing = [key for key in Config.model_fields if len({repr(dump.get(key)) for dump in dumps}) > 1]
    # What follows from another field (min_lr from learning_rate), and chance, is no difference of its own.
    keys = [key for key in differing if key not in ("min_lr", "warmup_iters", "lr_decay_iters", "seed")] or differing
    keys = keys if len(keys) <= 2 else []  # runs that differ in more say nothing of any one of them
    entries = []
    for run, dump in zip(runs, dumps, strict=True):
        values = {key: dump.get(key) for key in keys}
        label = ", ".join(f"{key}={value}" for key, value in values.items()) or run.name
        unfinished = run.config is not None and diagnose.Facts(run.records, run.config).finished is False
        entries.append(Entry(label, values, run, "running" if unfinished else "finished"))
    return Comparison(f"{len(runs)} runs compared", entries)


# -------------------------------------------------------------------------------------------------------- in words


def answer(comparison: Comparison) -> list[str]:
    """What the runs say, in sentences with their numbers."""
    ended = comparison.ended
    if not ended:
        return ["No run came to an end with a loss; see the outcomes below."]
    sentences = [_best(ended)]
    axes = _axes(comparison)
    if len(axes) == 1 and comparison.joined:
        sentences += _trend(axes[0], ended)
    sentences += [_rates(comparison)] if comparison.keys == ["learning_rate"] else []
    sentences += [_at_equal(comparison, by) for by in ("tokens", "time")]
    sentences += [_cost(ended), _trouble(comparison)]
    return [sentence for sentence in sentences if sentence]


def _best(ended: Sequence[Entry]) -> str:
    best = ended[0]
    text = f"The lowest final validation loss is {best.final:.4f}, with {best.label}"
    if len(ended) > 1:
        worst = ended[-1]
        text += f"; the highest is {worst.final:.4f}, with {worst.label}"
        if _near(ended[0].final, ended[1].final):
            text += (
                f". The second, {ended[1].label}, is {(ended[1].final or 0) - (best.final or 0):.4f} behind, less than "
                f"{SAME:.0%}: other seeds may turn them round"
            )
    return text + "."


def _trend(key: str, ended: Sequence[Entry]) -> list[str]:
    """How the loss moves with a value, where it is a number."""
    pairs = [(value, entry.final) for entry in ended if _is_number(value := _value(entry, key))]
    ordered = sorted((value, loss) for value, loss in pairs if loss is not None)
    if len({value for value, _ in ordered}) < 2:
        return []
    losses = [loss for _, loss in ordered]
    span = f"From {key} {_told(ordered[0][0])} to {_told(ordered[-1][0])} the loss"
    shown = " → ".join(f"{loss:.3f}" for loss in losses)
    if losses == sorted(losses, reverse=True):
        return [f"{span} falls all the way: {shown}."]
    if losses == sorted(losses):
        return [f"{span} rises all the way: {shown}."]
    best = ordered[losses.index(min(losses))][0]
    return [f"{span} goes {shown}, lowest at {_told(best)}."]


def _told(value: float) -> str:
    return quantity(value) if value >= 10_000 else f"{value:g}"


def _rates(comparison: Comparison) -> str:
    """The chapter's three questions of experiment 2: which converges best, which oscillates, which is too slow."""
    ended = comparison.ended
    best = ended[0]
    slow, wild = [], []
    for entry in comparison.entries:
        rate = entry.values["learning_rate"]
        behind = None if entry.final is None or best.final is None else entry.final - best.final
        if entry is best or (behind is not None and _near(entry.final, best.final)):
            continue
        if rate < best.values["learning_rate"] and behind is not None:
            slow.append(f"{rate:g} is too slow (at the end still {behind:.2f} above)")
        elif rate > best.values["learning_rate"]:
            how = "diverges" if entry.outcome == "diverged" else "failed" if behind is None else "is too high"
            if "learning_rate_too_high" in entry.kinds:
                how = "is too high and unsteady"
            wild.append(f"{rate:g} {how}" + (f" (it ends {behind:.2f} above)" if behind is not None else ""))
    parts = [f"{best.values['learning_rate']:g} converges best", *slow, *wild]
    return "Of the learning rates, " + "; ".join(parts) + "."


def _at_equal(comparison: Comparison, by: By) -> str:
    """The losses where the shortest run ends, where the runs differ much in how far they go."""
    ended = [entry for entry in comparison.ended if entry.run is not None]
    lengths = [_length(entry, by) for entry in ended]
    if len(ended) < 2 or any(length is None for length in lengths):
        return ""
    work = {(entry.tokens, entry.config.n_layer, entry.config.n_embd) for entry in ended if entry.config}
    if by == "time" and len(work) == 1:
        return ""  # the same work: what their times differ by is the machine's affair
    shortest, longest = min(x for x in lengths if x is not None), max(x for x in lengths if x is not None)
    if longest < 1.2 * shortest:
        return ""
    there = [(entry, _loss_at(entry, by, shortest)) for entry in ended]
    known = sorted(((e, loss) for e, loss in there if loss is not None), key=lambda pair: pair[1])
    if len(known) < 2:
        return ""
    where = f"{quantity(shortest)} tokens" if by == "tokens" else f"{duration(shortest)} of training"
    listed = _listed([f"{loss:.3f} with {entry.label}" for entry, loss in known])
    return (
        f"At equal {by} ({where}, where the shortest run ends) the order is: {listed}; the longer runs' learning rate "
        f"had not come down yet."
    )


def _length(entry: Entry, by: By) -> float | None:
    return entry.tokens if by == "tokens" else entry.last("seconds")


def _loss_at(entry: Entry, by: By, place: float) -> float | None:
    """The validation loss at a number of tokens or seconds, between the two evaluations around it."""
    assert entry.run is not None
    xs, losses = plots.along(entry.run, "val_loss", by)
    for x0, x1, y0, y1 in zip(xs, xs[1:], losses, losses[1:], strict=False):
        if x0 <= place <= x1 and x1 > x0:
            return y0 + (y1 - y0) * (place - x0) / (x1 - x0)
    return losses[-1] if xs and math.isclose(xs[-1], place, rel_tol=0.02) else None


def _cost(ended: Sequence[Entry]) -> str:
    timed = [(entry, seconds) for entry in ended if (seconds := entry.last("seconds")) is not None]
    if len(timed) < 2:
        return ""
    timed.sort(key=lambda pair: pair[1])
    shown = [
        f"{duration(seconds)}{f' ({quantity(speed)} tokens/s)' if (speed := entry.tokens_per_second) else ''} "
        f"with {entry.label}"
        for entry, seconds in timed
    ]
    return f"Training took {_listed(shown)}."


def _listed(parts: Sequence[str]) -> str:
    """A list in a sentence: of many, the first three and the last."""
    return ", ".join(parts if len(parts) <= 6 else [*parts[:3], "…", parts[-1]])


def _trouble(comparison: Comparison) -> str:
    told = []
    for entry in comparison.entries:
        if entry.outcome not in ("finished", "running"):
            told.append(f"{entry.label} {entry.outcome}")
        elif kinds := [kind for kind in entry.kinds if kind != "healthy"]:
            told.append(f"{entry.label}: {' and '.join(kind.replace('_', ' ') for kind in kinds)}")
    return f"What the diagnosis says: {'; '.join(told)}." if told else ""


def _near(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and abs(a - b) < SAME * min(a, b)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value(entry: Entry, key: str) -> Any:
    return entry.parameters if key == "parameters" else entry.values.get(key)


# ------------------------------------------------------------------------------------------------------- the report


def write(comparison: Comparison, folder: str | Path, samples: bool = True) -> Path:
    """Write the comparison's report and pictures into a folder; returns the path of report.md.

    Args:
        comparison: what to compare.
        folder: made where it is missing; files of an earlier report are replaced.
        samples: whether to show a text of each model (up to 8), written from the same seed; imports torch.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if samples:
        _sample(comparison.entries)
    pictures = _draw(comparison, folder)
    sentences = answer(comparison)
    data = {
        "title": comparison.title,
        "question": comparison.question,
        "equal": comparison.equal,
        "answer": sentences,
        "runs": [_row(entry) for entry in comparison.entries],
        "figures": [path.name for path in pictures],
    }
    replace(folder / "report.json", json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n")
    replace(folder / "report.md", _markdown(comparison, sentences, pictures))
    return folder / "report.md"


def _row(entry: Entry) -> dict[str, Any]:
    best = entry.best
    return {
        "label": entry.label,
        "values": entry.values,
        "outcome": entry.outcome,
        "findings": entry.kinds,
        "steps": entry.steps,
        "tokens": entry.tokens,
        "seconds": entry.last("seconds"),
        "tokens_per_second": entry.tokens_per_second,
        "parameters": entry.parameters,
        "final_train_loss": entry.last("train_eval_loss"),
        "final_val_loss": entry.final,
        "best_val_loss": best[0] if best else None,
        "best_step": best[1] if best else None,
        "folder": str(entry.run.path.parent) if entry.run else None,
        "sample": entry.sample,
    }


def _draw(comparison: Comparison, folder: Path) -> list[Path]:
    curves = [Curve(_legend(entry), entry.run) for entry in comparison.entries if entry.run is not None]
    if not curves:
        return []
    bys: tuple[By, ...] = ("steps", "tokens", "time")
    drawn = [
        plots.compare_curves(curves, by, folder / f"loss_against_{by}.png", f"{comparison.title}: loss against {by}")
        for by in bys
    ]
    return drawn + [picture for key in _axes(comparison) if (picture := _draw_ends(comparison, key, folder))]


def _legend(entry: Entry) -> str:
    return entry.label if entry.outcome == "finished" else f"{entry.label} ({entry.outcome.split(':')[0]})"


def _axes(comparison: Comparison) -> list[str]:
    """The values to draw final losses against: parameters where the model's shape differs, else each swept field."""
    shape = [key for key in comparison.keys if group_of(key) == "model"]
    if len(shape) > 1 and shape == comparison.keys:
        return ["parameters"]
    return [key for key in comparison.keys if all(key in entry.values for entry in comparison.entries)]


def _draw_ends(comparison: Comparison, key: str, folder: Path) -> Path | None:
    others = [k for k in comparison.keys if k != key] if key != "parameters" else []
    points = []
    for entry in comparison.entries:
        value = _value(entry, key)
        if value is None or (entry.final is None and entry.outcome == "running"):
            continue
        group = ", ".join(f"{k}={entry.values.get(k)}" for k in others) if comparison.joined else ""
        points.append(Point(value, entry.final, entry.last("seconds"), group))
    if len(points) < 2:
        return None
    few = len({point.group for point in points}) <= 6
    if not few:
        points = [Point(point.value, point.loss, point.seconds) for point in points]
    name = "final_loss.png" if len(_axes(comparison)) == 1 else f"final_loss_{key}.png"
    unit = "" if key == "parameters" else unit_of(key)
    title = f"{comparison.title}: final validation loss against {key}"
    return plots.final_loss_against(key, points, folder / name, unit, title, joined=comparison.joined and few)


def _sample(entries: Sequence[Entry]) -> None:
    """Let each exported model write, from the same seed, as the chapter's third experiment compares."""
    from hfgpt.inference import exported
    from hfgpt.inference import sampling as sample

    for entry in entries[:SAMPLED]:
        folder = entry.run.path.parent if entry.run else None
        if folder is None or entry.sample or not (folder / "model.safetensors").is_file():
            continue
        model, tokenizer = exported.load_folder(folder, "cpu")
        prompt = entry.config.sample_prompt if entry.config else "\n"
        entry.sample = prompt + "".join(sample.generate(model, tokenizer, prompt, sample.Sampling(max_new_tokens=200)))


def _markdown(comparison: Comparison, sentences: Sequence[str], pictures: Sequence[Path]) -> str:
    lines = [f"# {comparison.title}", ""]
    if comparison.question:
        lines += [f"**Question:** {comparison.question}", ""]
    lines += [*(f"- {sentence}" for sentence in sentences), ""]
    if comparison.equal:
        lines += [f"Held equal: {comparison.equal}. Losses are in nats per token.", ""]
    lines += ["| run | outcome | steps | tokens | time | parameters | train | val | best val | at step | diagnosis |",
              "|:--|:--|--:|--:|--:|--:|--:|--:|--:|--:|:--|"]  # fmt: skip
    lines += [_table_line(entry) for entry in comparison.entries]
    for picture in pictures:
        lines += ["", f"![{picture.stem.replace('_', ' ')}]({picture.name})"]
    written = [entry for entry in comparison.entries if entry.sample]
    if written:
        lines += ["", "## What each model writes", ""]
    for entry in written:
        lines += [f"{entry.label}:", "", "```text", entry.sample.strip("\n"), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _table_line(entry: Entry) -> str:
    row, best = _row(entry), entry.best

    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    seconds, count = row["seconds"], row["parameters"]
    cells = [
        entry.label,
        entry.outcome,
        f"{entry.steps:,}",
        "–" if entry.tokens is None else quantity(entry.tokens),
        "–" if seconds is None else duration(seconds),
        "–" if count is None else f"{count:,}",
        cell(row["final_train_loss"], ".4f"),
        cell(entry.final, ".4f"),
        cell(best[0] if best else None, ".4f"),
        cell(best[1] if best else None, ",d"),
        ", ".join(kind.replace("_", " ") for kind in entry.kinds),
    ]
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
