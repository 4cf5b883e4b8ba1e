"""Figures are drawn from any record, finished or not, healthy or diverged, without a warning and in the right size."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from hfgpt import config
from hfgpt.base.errors import InputError
from hfgpt.base.language import current, using
from hfgpt.base.units import quantity
from hfgpt.runs import comparison_plots, plots
from hfgpt.runs.comparison_plots import Curve, Point
from hfgpt.runs.history import read_run
from hfgpt.runs.metrics import MetricsWriter


def make_run(folder: Path, steps: int = 100, lost_at: int | None = None, recipe: bool = True, **fields: object) -> Path:
    folder.mkdir(parents=True)
    if recipe:
        values = {
            "batch_size": 4,
            "block_size": 8,
            "n_layer": 1,
            "n_head": 1,
            "n_embd": 8,
            "max_iters": steps,
            **fields,
        }
        (folder / "recipe.yaml").write_text(config.to_yaml(config.build(values, folder.name)))
    writer = MetricsWriter(folder / "metrics.jsonl")
    for step in range(steps + 1):
        loss = 1.5 + 3 * math.exp(-step / 30)
        if lost_at is not None and step >= lost_at:
            loss = math.nan
        if step:
            writer.write(step, train_loss=loss, learning_rate=1e-3, seconds=0.1 * step)
        if step % 20 == 0:
            writer.write(step, train_eval_loss=loss, val_loss=loss + 0.1)
    return folder


def width(path: Path) -> int:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    return int(struct.unpack(">I", content[16:20])[0])


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"steps": 1},
        {"steps": 5},
        {"lost_at": 50},
        {"lost_at": 1},
        {"recipe": False},
    ],
    ids=str,
)
def test_the_loss_curve_of_any_run(tmp_path: Path, kind: dict[str, object]) -> None:
    folder = make_run(tmp_path / "run", **kind)  # type: ignore[arg-type]
    assert plots.loss_curve(folder) == folder / "loss.png"
    assert width(folder / "loss.png") == 1200
    assert not list(folder.glob("*.tmp"))


def drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the words in a run's figure."""
    figures: list[Figure] = []
    with monkeypatch.context() as patch:
        patch.setattr(plots, "save", lambda figure, target: figures.append(figure))
        plots.loss_curve(folder)
    return [text.get_text() for text in figures[0].findobj(Text) if isinstance(text, Text)]


def test_the_best_loss_of_a_branch_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "branch")
    writer = MetricsWriter(folder / "metrics.jsonl")
    writer.write(0, branch_step=70)
    writer.write(60, val_loss=1.0)
    assert any("best validation loss 1.7070, at step 100" in word for word in drawn(folder, monkeypatch))


def test_a_run_that_recovered_is_not_said_to_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "recovered")
    MetricsWriter(folder / "metrics.jsonl").write(50, train_loss=math.nan)
    assert not any("not a number" in word for word in drawn(folder, monkeypatch))
    lost = make_run(tmp_path / "lost", lost_at=50)
    assert any("not a number from step 50" in word for word in drawn(lost, monkeypatch))


def test_losses_are_drawn_at_their_times_whatever_steps_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"iter {step}: loss 3.0, time 100.00ms, mfu 1.00%" for step in range(0, 101, 7)]
    lines += [f"step {step}: train loss 3.0, val loss {4 - step / 100}" for step in range(0, 101, 20)]
    (tmp_path / "log.txt").write_text("\n".join(lines))
    figures: list[Figure] = []
    monkeypatch.setattr(comparison_plots, "save", lambda figure, target: figures.append(figure))
    comparison_plots.compare_curves([Curve("a", read_run(tmp_path / "log.txt"))], "time", tmp_path / "time.png")
    (line,) = [line for line in figures[0].axes[0].lines if line.get_label() == "a"]
    assert line.get_ydata() == pytest.approx([4 - step / 100 for step in range(0, 101, 20)])
    assert line.get_xdata() == pytest.approx([0.1 * (step // 7 * 7 + 1) for step in range(0, 101, 20)])


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    plots.loss_curve(make_run(tmp_path / "a$b$_^{实验"))


def test_a_record_with_evaluations_alone(tmp_path: Path) -> None:
    (tmp_path / "nanogpt.log").write_text(
        "step 0: train loss 4.2, val loss 4.3\nstep 9: train loss 0.67, val loss 3.9\n"
    )
    assert width(plots.loss_curve(tmp_path / "nanogpt.log", tmp_path / "curve.png")) == 1200


def test_no_record_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run here"):
        plots.loss_curve(tmp_path)


@pytest.mark.parametrize("by", ["steps", "tokens", "time"])
@pytest.mark.parametrize("count", [2, 9])
def test_many_runs_in_one_picture(tmp_path: Path, by: comparison_plots.By, count: int) -> None:
    runs = [make_run(tmp_path / str(i), steps=100 + i, lost_at=40 if i == 1 else None) for i in range(count)]
    curves = [Curve(f"seed=${i}", read_run(run)) for i, run in enumerate(runs)]
    assert width(comparison_plots.compare_curves(curves, by, tmp_path / "all.png")) == 1200


def test_a_train_loss_that_leaves_the_figure_is_not_drawn(tmp_path: Path) -> None:
    """Of a run that overfits, only a steep piece of it would be seen at the edge."""
    pictures = {}
    for name, trained in {"beside": 2.0, "below": 0.1, "none": None}.items():
        (tmp_path / name).mkdir()
        writer = MetricsWriter(tmp_path / name / "metrics.jsonl")
        for step in range(101):
            writer.write(step, train_loss=trained, val_loss=None if step % 20 else 2.0 + step / 1000)
        curve = Curve("a", read_run(tmp_path / name))
        pictures[name] = comparison_plots.compare_curves([curve], "steps", tmp_path / f"{name}.png").read_bytes()
    assert pictures["below"] == pictures["none"]
    assert pictures["beside"] != pictures["none"]


def test_a_run_without_a_recipe_has_no_tokens_and_is_left_out(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a", recipe=False))
    assert comparison_plots.along(run, "val_loss", "tokens") == ([], [])
    assert comparison_plots.along(run, "val_loss", "time")[0] == pytest.approx([2, 4, 6, 8, 10]), "step 0 was not timed"
    comparison_plots.compare_curves([Curve("a", run)], "tokens", tmp_path / "all.png")


@pytest.mark.parametrize(
    "values", [(16, 32, 64), (0.0, 0.1), ("char", "bpe"), (True, False), (1e-4, 1e-3, 1e-2)], ids=str
)
def test_final_losses_against_any_kind_of_value(tmp_path: Path, values: tuple[object, ...]) -> None:
    points = [Point(value, 1.5 + i, 10.0 * i) for i, value in enumerate(values)]
    points += [Point(values[0], None, None, "diverged")]
    assert width(comparison_plots.final_loss_against("value", points, tmp_path / "ends.png", unit="things")) == 1200


def test_an_axis_is_logarithmic_where_the_values_span_much() -> None:
    def scale(values: list[float]) -> str:
        axes = comparison_plots.Figure().subplots()
        comparison_plots._value_axis(axes, values)
        return axes.get_xscale()

    assert [scale(v) for v in ([16, 32, 64], [1e-4, 1e-2], [0.1, 0.2], [0.0, 1.0])] == [
        "log",
        "log",
        "linear",
        "linear",
    ]


def test_quantities_are_short() -> None:
    assert [quantity(x) for x in (0, 16, 1024, 16_384, 81_920_000, 1.5e9)] == [
        "0", "16", "1,024", "16.38k", "81.92M", "1.5B",
    ]  # fmt: skip


def test_parameters_are_counted_from_the_exported_config(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "config.json").write_text(
        '{"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257, "n_positions": 1024}'
    )
    assert plots.parameters(read_run(run)) == 124_439_808, "GPT-2 small"


def test_drawing_needs_no_torch_and_no_pyplot() -> None:
    code = "import sys, hfgpt.runs.plots; assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_font_of_a_single_weight_is_drawn_without_a_word(tmp_path: Path) -> None:
    """Many Chinese fonts have one; matplotlib said so twice a figure, in the middle of a run's lines."""
    program = (
        "from matplotlib.figure import Figure; from hfgpt.runs.plots import drawing\n"
        "with drawing():\n"
        "    figure = Figure(); figure.suptitle('\\u220f', family=['DejaVu Sans Display'], weight='bold')\n"
        f"    figure.savefig({str(tmp_path / 'a.png')!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_figures_speak_chinese_only_if_a_font_can_write_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with using("zh"), plots.drawing():
        assert current() == ("zh" if plots._chinese_fonts() else "en")
    monkeypatch.setattr(plots, "CHINESE", ("No Such Font",))
    with using("zh"):
        with plots.drawing():
            assert current() == "en"
        assert plots.plain("实验 a") == "?? a", "a name is never boxes"
        assert width(plots.loss_curve(make_run(tmp_path / "实验"))) == 1200
