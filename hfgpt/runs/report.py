"""A comparison as a report: Markdown, data and figures in a folder.

In:  a :class:`hfgpt.runs.compare.Comparison`.
Out: ``report.md``, ``report.json`` (keys in English) and PNG files. Imports torch only to sample from the models.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfgpt.base.files import check_writable, replace_file
from hfgpt.base.language import N_, _
from hfgpt.base.units import duration, quantity
from hfgpt.config import unit_of
from hfgpt.runs import answer, comparison_plots, markdown
from hfgpt.runs.compare import Comparison, Entry, Setting
from hfgpt.runs.comparison_plots import By, Curve, Point
from hfgpt.runs.plots import drawing
from hfgpt.runs.statistics import Difference

SAMPLED = 8  # most settings of which a sample is shown


def write(comparison: Comparison, folder: str | Path, samples: bool = True) -> Path:
    """Write the comparison's report and figures into a folder; return the path of report.md.

    Args:
        folder: created if missing; files of an earlier report are replaced.
        samples: whether to show a text of each setting (up to 8), sampled with the same seed; imports torch.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = Path(folder)
    check_writable(folder, "out_dir")
    folder.mkdir(parents=True, exist_ok=True)
    if samples:
        _sample(comparison.settings)
    with drawing():  # the figures use these labels too
        figures = _draw(comparison, folder)
    sentences = [*answer.answer(comparison), *comparison.remarks]
    data = {
        "title": comparison.heading,
        "question": comparison.question,
        "equal": comparison.equal,
        "answer": sentences,
        "settings": _settings(comparison),
        "runs": [_row(entry) for entry in comparison.entries],
        "figures": [path.name for path in figures],
        **comparison.data,
    }
    replace_file(folder / "report.json", json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n")
    replace_file(folder / "report.md", _markdown(comparison, sentences, figures))
    return folder / "report.md"


def _settings(comparison: Comparison) -> list[dict[str, Any]]:
    """List the settings by mean loss, with spread and interval; empty if each has a single seed."""
    ranking = comparison.ranking
    if ranking is None:
        return []
    rows = []
    for label, summary in ranking.settings.items():
        row = {"seeds": summary.count, "mean": summary.mean, "spread": summary.spread,
               "low": summary.low, "high": summary.high}  # fmt: skip
        finite = {key: value if math.isfinite(value) else None for key, value in row.items()}
        rows.append({"label": label, **finite, "behind": _behind(ranking.behind.get(label))})
    return rows


def _behind(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    return {
        "mean": difference.mean, "low": difference.low, "high": difference.high, "p": difference.p,
        "paired": difference.paired, "distinct": difference.distinct, "seeds_needed": difference.seeds,
    }  # fmt: skip


def _row(entry: Entry) -> dict[str, Any]:
    best = entry.best
    return {
        "label": entry.label,
        "setting": entry.setting,
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
    curves = [curve for setting in comparison.settings if (curve := _curve(setting)) is not None]
    if not curves:
        return []
    bys: tuple[By, ...] = ("steps", "tokens", "time")
    drawn = []
    for by in bys:
        heading = _("{label}: {what}", label=comparison.heading, what=comparison_plots.heading_against(by))
        drawn.append(comparison_plots.compare_curves(curves, by, folder / f"loss_against_{by}.png", heading))
    drawn += [figure for key in comparison.axes if (figure := _draw_ends(comparison, key, folder))]
    panels = {
        key: [Point(setting.value(key), setting.final) for setting in comparison.settings if setting.final is not None]
        for key in comparison.axes
    }
    panels = {key: points for key, points in panels.items() if len({repr(point.value) for point in points}) > 1}
    ended = comparison.ended
    if len(panels) > 1 and not answer.indistinct(ended[0].final, ended[-1].final):
        heading = _("{title}: each parameter by itself", title=comparison.heading)
        drawn.append(comparison_plots.isolation(panels, folder / "isolation.png", heading))
    return drawn


def _curve(setting: Setting) -> Curve | None:
    runs = [entry.run for entry in setting.drawn if entry.run is not None]
    if not runs:
        return None
    entry = next((entry for entry in setting.entries if entry.outcome != "finished"), setting.entries[0])
    ended = (
        setting.label
        if entry.outcome == "finished"
        else _("{what} ({note})", what=setting.label, note=answer.ended(entry.outcome.partition(": ")[0]))
    )
    return Curve(ended, runs[0], tuple(runs[1:]))


def _draw_ends(comparison: Comparison, key: str, folder: Path) -> Path | None:
    others = [k for k in comparison.keys if k != key] if key != "parameters" else []
    points = []
    for entry in [entry for setting in comparison.settings for entry in setting.drawn]:
        value = entry.value(key)
        if value is None or (entry.final is None and entry.outcome == "running"):
            continue
        group = ", ".join(f"{k}={entry.values.get(k)}" for k in others) if comparison.joined else ""
        points.append(Point(value, entry.final, entry.last("seconds"), group))
    if len(points) < 2:
        return None
    few = len({point.group for point in points}) <= 6
    if not few:
        points = [Point(point.value, point.loss, point.seconds) for point in points]
    name = "final_loss.png" if len(comparison.axes) == 1 else f"final_loss_{key}.png"
    unit = "" if key == "parameters" else unit_of(key)
    heading = _("{title}: final validation loss against {key}", title=comparison.heading, key=key)
    if not few:
        heading = _("{heading} (mean over the values of the others)", heading=heading)
    joined = comparison.joined and few
    return comparison_plots.final_loss_against(key, points, folder / name, unit, heading, joined=joined)


def _sample(settings: Sequence[Setting]) -> None:
    """Sample from each setting's first exported model with the same seed, as in the chapter's third experiment."""
    from hfgpt.inference import exported, sampling

    for setting in settings[:SAMPLED]:
        entry = next((entry for entry in setting.entries if _model(entry)), None)
        folder = _model(entry) if entry else None
        if entry is None or folder is None or entry.sample:
            continue
        model, tokenizer = exported.load_folder(folder, "cpu")
        prompt = entry.config.sample_prompt if entry.config else "\n"
        text = "".join(sampling.generate(model, tokenizer, prompt, sampling.Sampling(max_new_tokens=200)))
        entry.sample = prompt + text


def _model(entry: Entry) -> Path | None:
    """Return the folder of a run's exported model."""
    folder = entry.run.path.parent if entry.run else None
    return folder if folder and (folder / "model.safetensors").is_file() else None


def _alternative(stem: str) -> str:
    """Return a figure's alternative text."""
    if known := PICTURES.get(stem.removeprefix("loss_against_")):
        return _(known)
    key = stem.removeprefix("final_loss").lstrip("_")
    return _("final validation loss against {key}", key=key) if key else _("final validation loss")


PICTURES = {
    "isolation": N_("each parameter by itself"),
    "steps": N_("loss against steps"),
    "tokens": N_("loss against tokens"),
    "time": N_("loss against time"),
}


def _markdown(comparison: Comparison, sentences: Sequence[str], figures: Sequence[Path]) -> str:
    lines = [f"# {markdown.cell(comparison.heading)}", ""]
    if comparison.question:
        lines += [_("**Question:** {question}", question=markdown.cell(comparison.question)), ""]
    lines += [*(f"- {markdown.cell(sentence)}" for sentence in sentences), ""]
    if comparison.equal:
        equal = markdown.cell(comparison.equal)
        lines += [_("Held equal: {equal}. Losses are in nats per token.", equal=equal), ""]
    lines += _settings_table(comparison)
    columns = [_("run"), _("outcome"), _("steps"), _("tokens"), _("time"), _("parameters"), _("train"), _("val"),
               _("best val"), _("at step"), _("diagnosis")]  # fmt: skip
    lines += [f"| {' | '.join(columns)} |", "|:--|:--|--:|--:|--:|--:|--:|--:|--:|--:|:--|"]
    lines += [_table_line(comparison, entry) for entry in comparison.entries]
    lines += comparison.sections
    for figure in figures:
        lines += ["", f"![{_alternative(figure.stem)}]({figure.name})"]
    written = [entry for entry in comparison.entries if entry.sample]
    if written:
        lines += ["", "## " + _("What each model writes"), ""]
    for entry in written:
        lines += [_("{label}:", label=markdown.cell(entry.label)), "", markdown.block(entry.sample), ""]
    return "\n".join(lines).rstrip() + "\n"


def _settings_table(comparison: Comparison) -> list[str]:
    """Tabulate mean, spread and interval of each setting, if there are seeds."""
    if comparison.ranking is None:
        return []
    columns = [_("setting"), _("seeds"), _("mean val"), _("95% interval"), _("spread"), _("behind the first")]
    lines = [f"| {' | '.join(columns)} |", "|:--|--:|--:|--:|--:|--:|"]
    for row in _settings(comparison):
        interval = "–" if row["low"] is None else f"{row['low']:.4f} – {row['high']:.4f}"
        spread = "–" if row["spread"] is None else f"{row['spread']:.4f}"
        behind = row["behind"]
        if behind is None:
            shown = "–"
        else:
            shown = f"{behind['mean']:.4f}"
            if not behind["distinct"]:
                shown = _("{what} ({note})", what=shown, note=_("not told apart"))
        cells = (markdown.cell(row["label"]), str(row["seeds"]), f"{row['mean']:.4f}", interval, spread, shown)
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _table_line(comparison: Comparison, entry: Entry) -> str:
    row, best = _row(entry), entry.best

    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    seconds, count = row["seconds"], row["parameters"]
    cells = [
        entry.label,
        answer.ended(entry.outcome),
        f"{entry.steps:,}",
        "–" if entry.tokens is None else quantity(entry.tokens),
        "–" if seconds is None else duration(seconds),
        "–" if count is None else f"{count:,}",
        cell(row["final_train_loss"], ".4f"),
        cell(entry.final, ".4f"),
        cell(best[0] if best else None, ".4f"),
        cell(best[1] if best else None, ",d"),
        answer.titles(answer.kinds(comparison, entry)),
    ]
    return "| " + " | ".join(markdown.cell(text) for text in cells) + " |"
