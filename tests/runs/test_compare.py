"""Comparisons: the right runs in the right order, in words that the numbers support."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.base.language import using
from hfgpt.base.lock import FolderLock
from hfgpt.runs import compare, comparison_plots, plots, report
from hfgpt.runs.answer import answer
from hfgpt.runs.compare import Comparison, Entry
from hfgpt.runs.history import read_run
from hfgpt.runs.metrics import MetricsWriter

CURVES = ROOT / "tests" / "fixtures" / "curves"


def make_run(folder: Path, end: float, steps: int = 100, seconds: float = 0.1, **fields: Any) -> Path:
    folder.mkdir(parents=True)
    shape = {"batch_size": 4, "block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 8}
    values = {**shape, "max_iters": steps, "out_dir": str(folder), **fields}
    (folder / "recipe.yaml").write_text(config.to_yaml(config.build(values, folder.name)))
    writer = MetricsWriter(folder / "metrics.jsonl")
    for step in range(0, steps + 1, 10):
        loss = end + (4.2 - end) * (1 - step / steps)
        writer.write(step, train_loss=loss, train_eval_loss=loss, val_loss=loss, seconds=step * seconds)
    return folder


def entries(tmp_path: Path, key: str, ends: dict[Any, float], **more: Any) -> list[Entry]:
    return [
        Entry(f"{key}={value}", {key: value}, read_run(make_run(tmp_path / str(value), end, **{key: value}, **more)))
        for value, end in ends.items()
    ]


def words(made: list[Entry]) -> str:
    return " ".join(answer(Comparison("test", made)))


def test_the_best_and_the_worst_and_the_way_between(tmp_path: Path) -> None:
    said = words(entries(tmp_path, "batch_size", {16: 1.9, 4: 2.3, 8: 2.1}))
    assert "The lowest final validation loss is 1.9000, with batch_size=16; the highest is 2.3000" in said
    assert "From batch_size 4 to 16 the loss falls all the way: 2.300 → 2.100 → 1.900." in said
    assert "other seeds" not in said


def test_the_models_kept_are_compared_where_a_run_ends_above_its_lowest_loss(tmp_path: Path) -> None:
    entries(tmp_path, "dropout", {0.0: 1.9, 0.2: 2.1})
    with (tmp_path / "0.0/metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "val_loss": 2.5, "train_eval_loss": 1.0}\n')
    made = [Entry(f"dropout={value}", {"dropout": value}, read_run(tmp_path / str(value))) for value in (0.0, 0.2)]
    said = words(made)
    assert "The lowest final validation loss is 2.1000, with dropout=0.2" in said
    assert "lowest loss: 1.9000 with dropout=0.0, up to 2.1000 with dropout=0.2" in said
    assert "all the way" not in said, "two values do not make a trend"


def test_the_model_kept_of_a_branch_is_its_own(tmp_path: Path) -> None:
    made = entries(tmp_path, "dropout", {0.0: 1.9, 0.2: 2.1})
    assert made[0].run
    made[0].run.records[0]["branch_step"] = 80
    made[0].run.records[3]["val_loss"] = 1.2  # step 30
    made[0].run.records[-1]["val_loss"] = 2.5
    assert made[0].best == (pytest.approx(2.13), 90)
    assert "lowest loss: 2.1000 with dropout=0.2, up to 2.1300 with dropout=0.0" in words(made)


def test_a_run_with_a_new_recipe_is_not_called_too_high(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 1.0, steps=100)
    writer = MetricsWriter(folder / "metrics.jsonl")
    for step in (70, 80, 90, 100):
        writer.write(step, train_eval_loss=2.5 - step / 1000)
    assert Entry("run", {}, read_run(folder)).kinds == ["learning_rate_too_high"]
    lines = [{"step": step, "recipe": {"dropout": dropout}} for step, dropout in ((0, 0.0), (60, 0.3))]
    (folder / "segments.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Entry("run", {}, read_run(folder)).kinds == ["healthy"]


def test_equal_runs_are_called_equal(tmp_path: Path) -> None:
    said = words(entries(tmp_path, "seed", {1: 2.0, 2: 2.0 + 1e-8}))
    assert "All of them end with the same validation loss, 2.0000." in said
    assert "behind" not in said


def test_equal_runs_have_no_trend(tmp_path: Path) -> None:
    said = words(entries(tmp_path, "grad_clip", {1.0: 1.6009, 2.0: 1.60089, 4.0: 1.60088}))
    assert "All of them end with the same validation loss, 1.6009." in said
    assert "From grad_clip" not in said


def test_seeds_that_are_not_told_apart_have_no_trend(tmp_path: Path) -> None:
    def said(ends: dict[float, float], spread: float) -> str:
        runs = [
            make_run(tmp_path / f"{spread}-{rate}-{seed}", end + spread * ((seed * 7 + i) % 3), seed=seed, dropout=rate)
            for i, (rate, end) in enumerate(ends.items())
            for seed in range(3)
        ]
        return " ".join(answer(compare.of_folders(runs)))

    ends = {0.0: 2.0, 0.1: 2.1, 0.2: 2.2}
    assert "the loss rises all the way" in said(ends, 0.001)
    assert "all the way" not in said(ends, 0.5)


def test_the_number_of_evaluated_tokens_makes_no_model_better(tmp_path: Path) -> None:
    said = words(entries(tmp_path, "eval_iters", {2: 2.1, 20: 1.9, 200: 2.0}))
    assert "The runs differ in eval_iters" in said
    assert "lowest" not in said
    assert "From eval_iters" not in said
    folders = [
        make_run(tmp_path / f"{iters}-{seed}", iters + seed / 10, eval_iters=iters, seed=seed)
        for iters in (1, 2)
        for seed in (1, 2, 3)
    ]
    comparison = compare.of_folders(folders)
    assert comparison.ranking is None
    assert "better" not in " ".join(answer(comparison))


def test_the_time_of_training_is_that_of_the_runs_that_ended(tmp_path: Path) -> None:
    made = entries(tmp_path, "dropout", {0.0: 2.0, 0.2: 2.1})
    died = Entry(
        "seed", {"dropout": 0.0}, read_run(make_run(tmp_path / "died", 2.0, 50)), "failed", setting="dropout=0.0"
    )
    assert "Training took 10s with dropout=0.0, 10s with dropout=0.2." in words([*made, died])


def test_a_loss_that_is_not_a_number_has_no_place_in_an_order(tmp_path: Path) -> None:
    made = entries(tmp_path, "batch_size", {2: 2.2, 4: 2.0, 8: 1.8})
    assert made[2].run
    made[2].run.records[2]["val_loss"] = math.nan
    said = words(made)
    assert "At equal tokens (1,600 tokens, where the shortest run ends) the order is: 2.200" in said
    assert "nan" not in said


def test_a_constant_rate_is_not_said_to_come_down(tmp_path: Path) -> None:
    said = [words(entries(tmp_path / each, "batch_size", {4: 2.0, 8: 1.8}, lr_schedule=each))
            for each in ("cosine", "constant")]  # fmt: skip
    assert all("At equal tokens" in each for each in said)
    assert ["learning rate had not come down yet." in each for each in said] == [True, False]


def test_a_lowest_point_in_the_middle_and_a_near_tie(tmp_path: Path) -> None:
    said = words(entries(tmp_path, "dropout", {0.0: 2.1, 0.1: 1.9, 0.2: 1.905}))
    assert "the loss goes 2.100 → 1.900 → 1.905, lowest at 0.1." in said
    assert "dropout=0.2, is 0.0050 behind, less than 1%: another seed may reverse their order" in said


@pytest.mark.parametrize(("key", "paired"), [("dropout", True), ("batch_size", False), ("block_size", False)])
def test_seeds_are_paired_where_the_order_of_the_text_is_the_same(tmp_path: Path, key: str, paired: bool) -> None:
    """Seeds move both settings alike; Welch's test, which does not use the pairs, sees their whole spread."""
    first, second = [1.9, 2.0, 2.1], [1.95, 2.051, 2.149]
    values = {"dropout": (0.0, 0.1), "batch_size": (4, 8), "block_size": (8, 16)}[key]
    folders = [
        make_run(tmp_path / f"{value}-{seed}", end, seed=seed, **{key: value})
        for value, ends in zip(values, (first, second), strict=True)
        for seed, end in enumerate(ends)
    ]
    comparison = compare.of_folders(folders)
    assert comparison.ranking is not None
    [_best, behind] = [comparison.ranking.behind.get(label) for label in comparison.ranking.settings]
    assert behind is not None
    assert behind.paired is paired
    test = stats.ttest_rel(second, first) if paired else stats.ttest_ind(second, first, equal_var=False)
    assert behind.p == pytest.approx(test.pvalue, rel=1e-3)
    assert behind.distinct is paired
    said = " ".join(answer(comparison))
    assert ("is better than every other setting" in said) is paired
    assert ("seeds are not compared in pairs (Welch's t-test)" in said) is not paired
    data = json.loads((report.write(comparison, tmp_path / "report", samples=False).parent / "report.json").read_text())
    assert data["settings"][1]["behind"]["paired"] is paired


@pytest.mark.parametrize(("key", "values"), [("dataset", ("a.txt", "b.txt")), ("tokenizer", ("char", "gpt2")),
                                             ("val_fraction", (0.1, 0.2))])  # fmt: skip
def test_losses_on_other_texts_are_not_comparable(tmp_path: Path, key: str, values: tuple[Any, Any]) -> None:
    made = [make_run(tmp_path / str(number), 2.0 + number, **{key: value}) for number, value in enumerate(values)]
    said = " ".join(answer(compare.of_folders(made)))
    assert f"The runs differ in {key}: losses on different texts, or in different tokens, cannot be compared." in said
    same = [make_run(tmp_path / f"same{rate}", 2.0, learning_rate=rate) for rate in (1e-3, 3e-3)]
    assert "cannot be compared" not in " ".join(answer(compare.of_folders(same)))


def test_what_is_equal_at_the_end_of_the_shortest_run(tmp_path: Path) -> None:
    said = words(entries(tmp_path, "batch_size", {4: 2.0, 8: 1.8}))
    # Half-way, when the larger batch has seen as many tokens: 1.8 + 2.4 / 2 = 3.0.
    assert (
        "At equal tokens (3,200 tokens, where the shortest run ends) the order is: 2.000 with batch_size=4, 3.000"
        in said
    )


def test_the_three_questions_about_the_learning_rate(tmp_path: Path) -> None:
    made = entries(tmp_path, "learning_rate", {1e-4: 2.2, 1e-3: 1.8, 1e-2: 1.9})
    made.append(Entry("learning_rate=1", {"learning_rate": 1.0}, None, "diverged"))
    said = words(made)
    assert "0.001 converges best; 0.0001 is too slow (it ends 0.40 above)" in said
    assert "0.01 is too high (it ends 0.10 above); 1 diverges" in said


def test_rates_that_cannot_be_told_apart_are_not_called_too_slow(tmp_path: Path) -> None:
    ends = {1e-4: (3.0, 3.1, 3.2), 1e-3: (1.9, 2.2, 2.5), 1e-2: (2.5, 2.3, 2.4)}
    runs = [
        make_run(tmp_path / f"{rate}-{seed}", end, seed=seed, learning_rate=rate)
        for rate, losses in ends.items()
        for seed, end in enumerate(losses)
    ]
    comparison = compare.of_folders(runs)
    assert comparison.ranking is not None
    said = " ".join(answer(comparison))
    assert comparison.ranking.ties == ["learning_rate=0.01", "learning_rate=0.0001"]
    assert "Of the learning rates: 0.001 ends lowest, but is not told apart from 0.0001, 0.01." in said
    assert "too slow" not in said


def test_a_run_that_was_stopped_is_no_finished_one(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole", 2.0)
    cut = make_run(tmp_path / "cut", 2.1, dropout=0.1)
    lines = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_text("".join(lines[: len(lines) // 2]))
    found = compare.of_folders([whole, cut])
    assert [entry.outcome for entry in found.entries] == ["finished", "stopped"]
    assert "(stopped before its end): its loss below is not that of its end." in " ".join(answer(found))
    with FolderLock(cut):
        assert [entry.outcome for entry in compare.of_folders([whole, cut]).entries] == ["finished", "running"]


def test_a_diverged_run_is_told_by_its_record(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "lost", 2.0)
    MetricsWriter(folder / "metrics.jsonl").write(100, train_loss=math.nan)
    entry = Entry("lost", {}, read_run(folder))
    assert (entry.outcome, entry.final) == ("diverged", None)


def test_no_run_with_an_end() -> None:
    assert answer(Comparison("test", [Entry("a", {}, None, "failed"), Entry("b", {}, None, "failed")])) == [
        "No run came to an end with a loss; see the outcomes below."
    ]


def test_folders_are_labelled_by_what_differs(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, 2.0, **fields) for name, fields in
            {"a": {"learning_rate": 1e-3}, "b": {"learning_rate": 1e-2, "seed": 2}}.items()]  # fmt: skip
    found = compare.of_folders(runs)
    assert [entry.label for entry in found.entries] == ["learning_rate=0.001", "learning_rate=0.01"]
    assert found.keys == ["learning_rate"], "min_lr follows from it, and the seed is chance"


def test_folders_that_differ_in_much_go_by_their_names(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", 2.0), make_run(tmp_path / "b", 1.9, dropout=0.1, weight_decay=0.2, grad_clip=2.0)]
    found = compare.of_folders(runs)
    assert [entry.label for entry in found.entries] == ["a", "b"]


def test_one_run_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two"):
        compare.of_folders([tmp_path])


def test_without_a_chinese_font_nothing_in_a_figure_is_a_question_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "CHINESE", ("No Such Font",))
    written: list[str] = []

    def save(figure: Figure, target: Path) -> Path:
        written.extend(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))
        return plots.save(figure, target)

    monkeypatch.setattr(comparison_plots, "save", save)
    made = entries(tmp_path, "dropout", {0.0: 2.2, 0.2: 1.8})
    made += [Entry("dropout=0.3", {"dropout": 0.3}, made[0].run, "failed: exit code 1: a")]
    with using("zh"):
        path = report.write(Comparison("", made), tmp_path / "out", samples=False)
    assert path.read_text().startswith("# 3 次训练的比较")
    assert "3 runs compared: Loss against steps" in written
    assert "dropout=0.3 (failed)" in written
    assert not [text for text in written if "?" in text]


def test_a_font_that_was_installed_after_matplotlib_listed_them_is_found() -> None:
    """matplotlib keeps the list in its cache folder; every matplotlib includes the font of this test."""
    code = (
        "from matplotlib import font_manager as f, get_data_path; from pathlib import Path\n"
        "from hfgpt.base.language import using; from hfgpt.runs import plots\n"
        "font = str(Path(get_data_path(), 'fonts/ttf/STIXGeneral.ttf')); plots.CHINESE = ('STIXGeneral',)\n"
        "f.fontManager.ttflist = [one for one in f.fontManager.ttflist if one.name != 'STIXGeneral']\n"
        "f.findSystemFonts = lambda: [font]\n"
        "with using('zh'): assert plots._chinese_fonts() == ['STIXGeneral'], plots._chinese_fonts()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_report_holds_every_run_and_picture(tmp_path: Path) -> None:
    made = entries(tmp_path, "learning_rate", {1e-4: 2.2, 1e-3: 1.8})
    made += [Entry("learning_rate=9", {"learning_rate": 9.0}, None, "failed: exit code 1: a | b")]
    path = report.write(Comparison("Rates", made, "Which?", "steps"), tmp_path / "out", samples=False)
    text, data = path.read_text(), json.loads(path.with_suffix(".json").read_text())
    assert "**Question:** Which?" in text
    assert "| learning_rate=0.001 | finished | 100 | 3,200 | 10s | – | 1.8000 | 1.8000 | 1.8000 | 100 |" in text
    assert "failed, exit code 1: a \\| b" in text, "a bar does not break the table"
    assert [row["final_val_loss"] for row in data["runs"]] == [2.2, 1.8, None]
    for name in data["figures"]:
        assert (tmp_path / "out" / name).stat().st_size > 1000
        assert f"]({name})" in text
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_a_report_that_has_no_place_is_refused(tmp_path: Path) -> None:
    made = entries(tmp_path, "learning_rate", {1e-4: 2.2, 1e-3: 1.8})
    (tmp_path / "broken").symlink_to("nowhere")
    for wrong in (tmp_path / "0.001" / "recipe.yaml", tmp_path / "broken"):
        with pytest.raises(InputError, match=r"^out_dir = .*: cannot be written: Not a directory"):
            report.write(Comparison("Rates", made), wrong)


def test_runs_of_other_programs_can_be_compared(tmp_path: Path) -> None:
    found = compare.of_folders([CURVES / "nanogpt_issue_97.log", CURVES / "healthy.seed_0"])
    assert [entry.label for entry in found.entries] == ["nanogpt_issue_97", "healthy.seed_0"]
    report.write(found, tmp_path, samples=False)


def seeded(tmp_path: Path, losses: dict[float, list[float]]) -> Comparison:
    folders = [
        make_run(tmp_path / f"{rate}-{seed}", loss, learning_rate=rate, seed=seed)
        for rate, own in losses.items()
        for seed, loss in enumerate(own)
    ]
    return compare.of_folders(folders)


def test_seeds_of_a_setting_are_one_row_with_mean_and_interval(tmp_path: Path) -> None:
    made = seeded(tmp_path, {1e-3: [1.80, 1.82, 1.84], 3e-3: [1.90, 1.93, 1.94]})
    assert [setting.label for setting in made.settings] == ["learning_rate=0.001", "learning_rate=0.003"]
    said = "\n".join(answer(made))
    assert "learning_rate=0.001 is better than every other setting" in said
    assert "may reverse" not in said
    path = report.write(made, tmp_path / "out", samples=False)
    settings = json.loads(path.with_suffix(".json").read_text())["settings"]
    assert [row["seeds"] for row in settings] == [3, 3]
    assert settings[0]["mean"] == pytest.approx(1.82)
    assert settings[1]["behind"]["distinct"]
    assert "| learning_rate=0.001 | 3 | 1.8200 | 1.7703 – 1.8697 | 0.0200 | – |" in path.read_text()


@pytest.mark.parametrize("other", [{}, {"dropout": 0.1}], ids=["alone", "beside another field"])
def test_a_warm_up_of_its_own_is_a_setting_of_its_own(tmp_path: Path, other: dict[str, Any]) -> None:
    runs = {(10, 1): 1.501, (10, 2): 1.502, (50, 1): 1.201, (50, 2): 1.202}
    folders = [
        make_run(tmp_path / f"{warmup}-{seed}", loss, warmup_iters=warmup, seed=seed)
        for (warmup, seed), loss in runs.items()
    ]
    folders += [make_run(tmp_path / "other", 1.9, warmup_iters=10, seed=1, **other)] if other else []
    made = compare.of_folders(folders)
    assert [setting.final for setting in made.settings][:2] == [pytest.approx(1.5015), pytest.approx(1.2015)]
    assert "warmup_iters=50" in made.settings[1].label
    assert len(made.settings) == (3 if other else 2)


def test_a_schedule_that_follows_the_length_is_no_difference_of_its_own(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / f"{steps}-{seed}", 2.0, steps=steps, seed=seed) for steps in (100, 200) for seed in (1, 2)
    ]
    made = compare.of_folders(folders)
    assert [setting.label for setting in made.settings] == ["max_iters=100", "max_iters=200"]


def test_seeds_of_one_time_budget_are_one_setting(tmp_path: Path) -> None:
    """The clock gives each of them another length."""
    folders = [
        make_run(tmp_path / f"{budget}-{seed}", 2.0, steps=100 + 10 * seed, time_budget=budget, seed=seed)
        for budget in ("10m", "20m")
        for seed in (1, 2)
    ]
    made = compare.of_folders(folders)
    assert [(setting.label, len(setting.entries)) for setting in made.settings] == [
        ("time_budget=10m", 2),
        ("time_budget=20m", 2),
    ]


def test_settings_that_seeds_cannot_tell_apart_have_no_winner(tmp_path: Path) -> None:
    made = seeded(tmp_path, {1e-3: [1.80, 1.85, 1.82], 3e-3: [1.81, 1.83, 1.84]})
    said = "\n".join(answer(made))
    assert "learning_rate=0.001 and learning_rate=0.003 cannot be told apart" in said
    assert "is better than" not in said
    assert "not told apart" in report.write(made, tmp_path / "out", samples=False).read_text()


def test_a_seed_that_diverged_is_told(tmp_path: Path) -> None:
    made = seeded(tmp_path, {1e-3: [1.80, 1.85, 1.82], 3e-3: [1.81, 1.83, math.nan]})
    assert "learning_rate=0.003: 1 of 3 seeds ended without a loss" in "\n".join(answer(made))


def test_a_setting_and_seed_run_twice_are_one_seed_with_one_mean(tmp_path: Path) -> None:
    runs = {
        "a": (1e-3, 1, 1.8),
        "b": (1e-3, 2, 1.9),
        "again": (1e-3, 1, 1.84),
        "c": (3e-3, 1, 2.0),
        "d": (3e-3, 2, 2.1),
    }
    folders = [
        make_run(tmp_path / name, loss, learning_rate=rate, seed=seed, max_iters=100)
        for name, (rate, seed, loss) in runs.items()
    ]
    made = compare.of_folders(folders)
    for entry in made.entries:
        entry.kinds = ["underfitting"]
    said = "\n".join(answer(made))
    assert "The lowest final validation loss is 1.8600, with learning_rate=0.001" in said
    assert "ended without a loss" not in said
    assert "learning_rate=0.001: underfitting (2 of 2 seeds)" in said
    path = report.write(made, tmp_path / "out", samples=False)
    settings = json.loads(path.with_suffix(".json").read_text())["settings"]
    assert [(row["seeds"], round(row["mean"], 4)) for row in settings] == [(2, 1.86), (2, 2.05)]
    assert [len(setting.drawn) for setting in made.settings] == [2, 2]


def test_labels_of_a_sample_are_printed_as_they_are_in_the_table(tmp_path: Path) -> None:
    made = entries(tmp_path, "dropout", {0.0: 1.9, 0.2: 2.1})
    made[0].label, made[0].sample = "learning_rate=0.003, seed=1 (1)", "To be"
    path = report.write(Comparison("tiny (1)", made), tmp_path / "out", samples=False)
    assert path.read_text().startswith("# tiny (1)\n")
    assert "\nlearning_rate=0.003, seed=1 (1):\n" in path.read_text()


def test_one_seed_of_each_setting_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = seeded(tmp_path, {1e-3: [1.80, 1.82, 1.84], 3e-3: [1.90, 1.93, 1.94]})
    for entry in made.entries[1:]:  # the first run left no model
        assert entry.run
        (entry.run.path.parent / "model.safetensors").touch()
    monkeypatch.setattr("hfgpt.inference.exported.load_folder", lambda folder, device: (folder, None))
    monkeypatch.setattr("hfgpt.inference.sampling.generate", lambda *given: [f" by {given[0].name}"])
    text = report.write(made, tmp_path / "out").read_text()
    assert [entry.label for entry in made.entries if entry.sample] == [
        "learning_rate=0.001, seed=1",
        "learning_rate=0.003, seed=0",
    ]
    assert text.count("```text") == 2


def test_a_seed_is_no_advice_where_texts_differ(tmp_path: Path) -> None:
    made = [make_run(tmp_path / name, loss, dataset=f"{name}.txt") for name, loss in (("a", 2.0), ("b", 2.001))]
    said = " ".join(answer(compare.of_folders(made)))
    assert "cannot be compared" in said
    assert "seed" not in said


def test_a_mix_is_named_by_its_weights_and_corpora(tmp_path: Path) -> None:
    mix = [{"name": "a.txt", "weight": 3}, {"name": "[b].txt", "weight": 0.5}]
    made = [make_run(tmp_path / "mix", 2.0, dataset=mix), make_run(tmp_path / "alone", 2.1, dataset="a.txt")]
    for folder, record in ((made[0], {"accuracy/x": 0.5}), (made[1], {"accuracy/x": 0.4})):
        MetricsWriter(folder / "metrics.jsonl").write(100, **record)
    found = compare.of_folders(made)
    assert [entry.label for entry in found.entries] == ["dataset=3 a.txt + 0.5 [b].txt", "dataset=a.txt"]
    text = report.write(found, tmp_path / "out", samples=False).read_text()
    assert text.count("| dataset=3 a.txt + 0.5 [b].txt |") == 2, "in both tables alike"


def test_a_sweeps_folder_stands_for_its_trials(tmp_path: Path) -> None:
    for rate in (1e-3, 3e-3):
        make_run(tmp_path / f"sweep/trials/learning_rate-{rate}", 2.0, learning_rate=rate)
    (tmp_path / "sweep/trials/waiting").mkdir()
    other = make_run(tmp_path / "other", 1.9, learning_rate=1e-2)
    found = compare.of_folders([tmp_path / "sweep", other])
    assert [entry.label for entry in found.entries] == [f"learning_rate={rate}" for rate in (0.001, 0.003, 0.01)]
    with pytest.raises(InputError, match=r"sweep: is a sweep of 2 runs, such as .*learning_rate-0\.001 → name one"):
        read_run(tmp_path / "sweep")


def test_the_best_rate_is_not_called_too_high(tmp_path: Path) -> None:
    made = entries(tmp_path, "learning_rate", {1e-4: 2.2, 1e-2: 1.8, 1e-1: 1.9})
    for entry in made[1:]:
        entry.kinds = ["learning_rate_too_high"]
    said = words(made)
    assert "0.01 converges best" in said
    assert "learning_rate=0.01: learning rate too high" not in said
    assert "learning_rate=0.01: the loss leaps" in said
    assert "learning_rate=0.1: learning rate too high" in said
    text = report.write(Comparison("Rates", made), tmp_path / "out", samples=False).read_text()
    assert not any("too high" in line for line in text.splitlines() if line.startswith("| learning_rate=0.01 "))


HOSTILE = "a\x1b[2Jb <img src=x onerror=alert(1)> | ```"


def test_what_comes_from_outside_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run\x1b[2J", 2.0)
    made = [Entry(HOSTILE, {}, read_run(run), sample=f"```\n<script>{HOSTILE}"), Entry("b", {}, read_run(run))]
    path = report.write(Comparison(HOSTILE, made, HOSTILE), tmp_path / "out", samples=False)
    text = path.read_text()
    assert "\x1b" not in text
    outside = text.split("````text")[0]
    assert "<img" not in outside
    assert "&lt;img" in outside
