"""What the page answers: plans in both languages, runs side by side, losses of a text, runs that it starts."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from inference.test_sample import TEXT, tiny_model
from test_language import words_of

from hfgpt import config as configs
from hfgpt.base.errors import Fault, InputError
from hfgpt.base.language import using
from hfgpt.base.lock import FolderLock
from hfgpt.config import Config
from hfgpt.data import tokenizer
from hfgpt.inference.sampling import Sampling
from hfgpt.runs.metrics import MetricsWriter, write_sample
from hfgpt.share import export

pytest.importorskip("gradio", reason='needs Gradio: pip install -e ".[dev]"')
import gradio as gr

from hfgpt.playground import knobs, pieces, plan_view, text_tab, train_tab
from hfgpt.playground.page import Page
from hfgpt.playground.text_tab import Writer
from hfgpt.playground.trainer import Trainer, find, opening

STANDARD = "recipes/standard.yaml"
CARD = "RTX 3060"
CHINESE = re.compile(r"[一-鿿]")


def typed(recipe: str | None = STANDARD, **changes: Any) -> dict[str, Any]:
    """Return the knobs of a recipe, some of them changed."""
    return knobs.settings(recipe) | changes


@pytest.fixture(autouse=True)
def _in_the_checkout() -> Iterator[None]:
    with contextlib.chdir(ROOT):
        yield


def make_page(folder: str | Path = "out", recipe: str | None = STANDARD) -> Page:
    """Build a page inside an event loop; outside of one, Gradio makes its own and does not close it."""

    async def build() -> Page:
        return Page(folder, recipe)

    return asyncio.run(build())


# ----------------------------------------------------------------------------------------------------------- the plan


def test_a_recipe_as_it_is_needs_no_overrides() -> None:
    for recipe in [None, *(str(path) for path in Path("recipes").glob("*.yaml"))]:
        answer = knobs.answer(recipe, typed(recipe), CARD)
        assert answer.plan is not None, answer
        assert re.split(r"train(?:\.py)?", answer.command, maxsplit=1)[1].strip() == (recipe or "")


def test_the_command_trains_what_was_planned() -> None:
    moved = typed(
        n_layer=8, dropout=0.30000000000000004, learning_rate=2e-5, min_lr=None, activation_checkpointing=True
    )
    answer = knobs.answer(STANDARD, moved, CARD)
    words = shlex.split(answer.command)
    words = words[words.index(STANDARD) :]
    assert "--dropout=0.3" in words
    assert "--min_lr=none" in words
    assert configs.load(STANDARD, words[1:]) == answer.config


def test_the_decay_follows_the_steps_as_in_the_terminal() -> None:
    fast = "recipes/fast_cpu.yaml"
    for change, decay in (({"max_iters": 800}, 800), ({"max_iters": 800, "lr_decay_iters": 400}, 400)):
        answer = knobs.answer(fast, typed(fast, **change), CARD)
        words = shlex.split(answer.command)
        assert answer.config is not None
        assert answer.config.lr_decay_iters == decay
        assert configs.load(fast, words[words.index(fast) + 1 :]) == answer.config


def test_more_layers_are_more_of_everything() -> None:
    before, after = (knobs.answer(STANDARD, typed(n_layer=n), CARD).plan for n in (6, 12))
    assert before is not None
    assert after is not None
    assert after.memory.needed > before.memory.needed
    assert after.time.total_seconds > before.time.total_seconds


@pytest.mark.parametrize(
    ("change", "key", "fix"),
    [
        ({"n_head": 5}, "n_head", "4 or 6"),
        ({"min_lr": 0.01}, "min_lr", "leave it out (then 0.0001)"),
        ({"warmup_iters": 5000}, "warmup_iters", "raise max_iters"),
        ({"lr_decay_iters": 50}, "lr_decay_iters", "leave it out"),
        ({"vocab_size": 500}, "vocab_size", "'bpe'"),
        ({"n_layer": None}, "n_layer", ""),
        ({"dropout": 1}, "dropout", ""),
    ],
)
def test_a_broken_rule_is_marked_beside_its_value_in_both_languages(change: Any, key: str, fix: str) -> None:
    answer = knobs.answer(STANDARD, typed(**change), CARD)
    assert answer.plan is None
    assert [item.key for item in answer.faults] == [key]
    assert fix in answer.faults[0].fix
    tab = make_page().plan
    for language in ("en", "zh"):
        shown = tab.plan(language, STANDARD, CARD, *typed(**change).values())
        marks = dict(zip(tab.faults, shown[5:-1], strict=True))
        assert [name for name, mark in marks.items() if mark["visible"]] == [key]
        assert bool(CHINESE.search(marks[key]["value"])) == (language == "zh")
        left = re.sub(r"<[^>]*>|'\w+'", "", marks[key]["value"])
        assert language == "en" or not re.search(r"\b(must|set|leave|than|least|and|or)\b", left), left


def test_what_does_not_fit_says_what_would() -> None:
    tab = make_page().plan
    large = typed(batch_size=128, block_size=2048)
    shown = tab.plan("en", STANDARD, CARD, *large.values())
    assert "does not fit" in shown[0]
    assert shown[1]["visible"], "the recommended values can be taken"
    marks = dict(zip(tab.faults, shown[5:-1], strict=True))
    assert marks["batch_size"]["visible"]
    values = tab.recommend("en", STANDARD, CARD, *large.values())
    taken = dict(zip((knob.key for knob in knobs.ALL), values, strict=True))
    changed = {key: value for key, value in taken.items() if isinstance(value, int)}
    again = knobs.answer(STANDARD, large | changed, CARD).plan
    assert again is not None
    assert plan_view.verdict(again)[0] != "bad"
    assert again.survey.config.global_batch == 128


def test_a_card_overrides_a_recipe_for_the_cpu(tmp_path: Path) -> None:
    recipe = tmp_path / "cpu.yaml"
    recipe.write_text("device: cpu\n")
    answer = knobs.answer(str(recipe), typed(str(recipe)), CARD)
    assert answer.plan is not None
    assert "--device=auto" in answer.command
    assert knobs.answer(str(recipe), typed(str(recipe)), None).command.endswith(str(recipe))


def test_a_recipe_that_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("n_layer: [")
    answer = knobs.answer(str(recipe), {}, None)
    assert "not valid YAML" in answer.message
    with pytest.raises(InputError):
        make_page("out", str(recipe))
    assert "is not in the list" in make_page().plan.plan("en", "/etc/passwd", CARD, *typed().values())[0]


def test_every_knob_is_a_parameter_and_has_a_chinese_name() -> None:
    for knob in knobs.ALL:
        assert knob.key in Config.model_fields
    labels = [component.label for component in make_page().plan.knobs.values()]
    assert "batch_size (sequences)" in labels
    assert {"weight_decay", "grad_clip (gradient norm)", "lr_schedule", "optimizer (adamw or muon)"} <= set(labels)


def test_what_takes_days_gets_no_green_light() -> None:
    def shown(recipe: str, **changes: Any) -> str:
        return str(make_page().plan.plan("en", recipe, "here", *typed(recipe, **changes).values())[0])

    assert "notice warn" in shown(STANDARD, max_iters=20_000, n_layer=12, n_embd=768, n_head=12, batch_size=64)
    assert "notice good" in shown("recipes/fast_cpu.yaml", max_iters=100)


def test_only_what_can_run_can_be_started() -> None:
    def start(**changes: Any) -> bool:
        return bool(
            make_page().plan.plan("en", STANDARD, "here", *typed(STANDARD, **changes).values())[-1]["interactive"]
        )

    assert start()
    assert not start(n_head=5), "it breaks a rule"
    assert not start(batch_size=256, block_size=4096, n_layer=48, n_embd=4096, n_head=32), "it does not fit"


def test_the_schedule_is_drawn() -> None:
    answer = knobs.answer(STANDARD, typed(lr_schedule="constant"), CARD)
    assert answer.plan is not None
    assert "polyline" in plan_view.tables(answer.plan)
    assert "which then holds" in plan_view.drawn_schedule(answer.plan.survey.config)


def test_the_recipe_to_start_from_suits_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from hfgpt.base import hardware

    for card, recipe in ((None, "fast_cpu"), ("RTX 3060", "standard")):
        monkeypatch.setattr(hardware, "local_accelerator", lambda card=card: card)
        assert make_page(recipe=None).plan.first == f"recipes/{recipe}.yaml"


def test_what_comes_from_outside_is_escaped() -> None:
    assert "<b>" not in pieces.message("<b>", "bad")
    fault = Fault("n_head", "<i>", "<b>", "<u>")
    assert not re.search("<[biu]>", plan_view.fault(fault) + plan_view.refused([fault], "").replace("<b>This", ""))


def test_planning_loads_no_torch() -> None:
    code = (
        "import sys; from hfgpt.playground import knobs, page; tab = page.Page('nowhere').plan;"
        "tab.plan('en', tab.first, 'here', *knobs.settings(tab.first).values());"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


# ----------------------------------------------------------------------------------------------------------- the runs


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of runs: two finished ones, and one with an exported model."""
    folder = tmp_path_factory.mktemp("out")
    for name in ("healthy.4x64", "overfitting.100k"):
        shutil.copytree(ROOT / "tests/fixtures/curves" / name, folder / name)
    chars = tokenizer.train_char([TEXT])
    model = tiny_model(chars)
    (folder / "tiny").mkdir()
    export.write(folder / "tiny", model, chars, export.weights(model.state_dict()))
    (folder / "tiny/checkpoint-1").mkdir()
    (folder / "tiny/checkpoint-1/model.safetensors").touch()
    return folder


def test_runs_and_models_are_answer_by_their_names(out: Path) -> None:
    assert sorted(find(out, "metrics.jsonl")) == ["healthy.4x64", "overfitting.100k"]
    assert list(find(out, "model.safetensors")) == ["tiny"]
    assert list(find(out / "tiny", "model.safetensors")) == ["tiny"]
    assert find(out / "nowhere", "metrics.jsonl") == {}


def test_runs_are_shown_side_by_side_in_both_languages(out: Path) -> None:
    tab = make_page(out).runs
    for language, told in (("en", "overfitting, since step"), ("zh", "过拟合")):
        shown, *_lists = tab.watch(language, ["healthy.4x64", "overfitting.100k"], "tokens", "", None)
        assert told in shown
        assert language == "en" or "教材 6.3 节，策略 1" in shown
        assert "--dropout=0.2" in shown
        assert shown.count("<svg") == 2
    alone, *_lists = tab.watch("en", ["healthy.4x64"], "time", "", None)
    assert alone.count("<article>") == 1


def test_what_the_page_says_of_runs_in_chinese_is_chinese() -> None:
    """One run of each kind: curves' titles, tables, findings, remedies and the chapter's sections about them."""
    curves = ROOT / "tests/fixtures/curves"
    kinds = {folder.name.partition(".")[0]: folder.name for folder in sorted(curves.iterdir()) if folder.is_dir()}
    tab = make_page(curves).runs
    for name in kinds.values():
        shown = tab.watch("zh", [name], "steps", "", None)[0]
        said = re.sub(r"<svg.*?</svg>|<code>.*?</code>", " ", shown.replace(name, " "), flags=re.DOTALL)
        assert words_of(re.sub(r"<[^>]*>|&[a-z]+;", " ", said)) == [], name


def test_a_run_in_progress_is_followed(tmp_path: Path) -> None:
    tab = make_page(tmp_path).runs
    shown, nothing_yet, *_lists = tab.watch("en", [], "steps", "", None)
    assert "No run in" in shown
    writer = MetricsWriter(tmp_path / "live/metrics.jsonl")
    writer.path.parent.mkdir()
    writer.path.touch()
    shown, seen, *_lists = tab.watch("en", ["live"], "steps", "", None)
    assert "holds no step yet" in shown
    writer.write(1, train_loss=4.0, val_loss=4.1)
    shown, seen, *_lists = tab.watch("en", ["live"], "steps", seen, None)
    assert "4.1000" in shown
    assert tab.watch("en", [], "steps", nothing_yet, None)[0] == shown, "the first run shows itself"
    assert tab.watch("en", [], "steps", seen, None)[0] != "", "also if the page asks again before it has the answer"
    empty, cleared, *_lists = tab.choose("en", [], "steps", seen, None)
    assert "Choose a run" in empty
    assert tab.watch("en", [], "steps", cleared, None)[0] == {"__type__": "update"}, "a choice taken back stays so"
    nothing = tab.watch("en", ["live"], "steps", seen, None)
    assert all(update == {"__type__": "update"} for update in nothing), "nothing is drawn again"
    writer.write(2, train_loss=float("nan"), val_loss=3.9)
    assert "3.9000" in tab.watch("en", ["live"], "steps", seen, None)[0]


def test_samples_over_steps_stand_side_by_side(tmp_path: Path) -> None:
    from hfgpt.runs.metrics import SAMPLES, write_sample

    writer = MetricsWriter(tmp_path / "live/metrics.jsonl")
    writer.path.parent.mkdir()
    for step in range(0, 100, 10):
        writer.write(step, train_loss=4.0, val_loss=4.0 - step / 100)
        write_sample(tmp_path / "live" / SAMPLES, step, f"<b>sample {step}")
    shown = make_page(tmp_path).runs.watch("en", ["live"], "steps", "", None)[0]
    strip = shown.partition('class="strip"')[2]
    assert strip.count("<article>") == 6
    assert "step 0 · loss 4.000" in strip
    assert "&lt;b&gt;sample 90" in strip


# ----------------------------------------------------------------------------------------------------------- a text


def test_the_losses_of_a_text_are_those_of_its_model(out: Path) -> None:
    import torch

    from hfgpt.inference import exported

    text = TEXT[:20]
    shown, unknown = Writer().losses(out / "tiny", text)
    assert (unknown, "".join(piece.text for piece in shown)) == ("", text)
    assert shown[0].loss is None
    model, chars = exported.load_folder(out / "tiny", "cpu")
    ids = torch.tensor([chars.encode(text, add_special_tokens=False)])
    with torch.inference_mode():
        expected = torch.nn.functional.cross_entropy(
            model(input_ids=ids[:, : model.config.n_positions]).logits[0, :-1].float(), ids[0, 1:], reduction="none"
        )
    got = torch.tensor([piece.loss for piece in shown[1:]])
    assert torch.allclose(
        got[: model.config.n_positions - 1], expected[: len(got)][: model.config.n_positions - 1], atol=1e-4
    )
    html = text_tab.coloured(shown)
    assert html.count("title=") == len(text) - 1
    assert f"{sum(got.tolist()) / len(got):.4f}" in html


@pytest.mark.parametrize("text", ["a😀b", "😀ab", "你好"])
def test_the_tokens_of_a_character_are_counted_one_by_one(tmp_path: Path, text: str) -> None:
    import torch

    from hfgpt.inference import exported

    made = tokenizer.train_bpe(["abc abc abc"], 257)  # so an emoji is of four tokens
    model = tiny_model(made)
    (tmp_path / "bytes").mkdir()
    export.write(tmp_path / "bytes", model, made, export.weights(model.state_dict()))
    model, made = exported.load_folder(tmp_path / "bytes", "cpu")
    ids = torch.tensor([made.encode(text, add_special_tokens=False)])
    with torch.inference_mode():
        losses = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1].float(), ids[0, 1:])
    shown, _unknown = Writer().losses(tmp_path / "bytes", text)
    assert len(shown) == len(text) < ids.shape[1]
    html = text_tab.coloured(shown)
    assert f"{losses.item():.4f}" in html
    assert f"of {ids.shape[1] - 1} tokens" in html
    assert max(piece.tokens for piece in shown) > 1
    heats = [float(heat) for heat in re.findall(r'--heat:([\d.]+)" title', html)]
    assert heats == [
        pytest.approx(min(1, piece.loss / piece.tokens / text_tab.STRONGEST), abs=0.006)
        for piece in shown
        if piece.loss is not None
    ]


@pytest.mark.parametrize(("text", "said"), [("", "at least two tokens"), ("a" * 2001, "shorten it to 2,000")])
def test_a_text_that_cannot_be_judged_is_one_message(out: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Writer().losses(out / "tiny", text)


def test_tokens_are_counted_not_pieces(out: Path) -> None:
    *_growing, last = Writer().write(out / "tiny", TEXT[:5], Sampling(max_new_tokens=7, seed=1))
    assert last[2] == 7


def test_a_prompt_comes_from_the_runs_own_text_wherever_the_page_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is trained in `project` on a text of that folder, and viewed from another; then the text is deleted."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    run = project / "out/run"
    run.mkdir(parents=True)
    elsewhere.mkdir()
    (project / "诗.txt").write_text("\n春眠不觉晓\n处处闻啼鸟\n", encoding="utf-8")
    (run / "recipe.yaml").write_text(configs.to_yaml(configs.build({"dataset": "诗.txt"}, "run")), encoding="utf-8")
    write_sample(run / "samples.jsonl", 10, "\n夜来风雨声")
    monkeypatch.chdir(elsewhere)
    assert opening(run) == "春眠不觉晓"
    (project / "诗.txt").unlink()
    assert opening(run) == "夜来风雨声"
    (run / "samples.jsonl").unlink()
    assert opening(run) == ""


# ------------------------------------------------------------------------------------------------- runs started here

# Replaces the training: it records a step at a time, stops with a checkpoint, and resumes.
STAND_IN = """
import signal, sys, time
from hfgpt import config
from hfgpt.runs.metrics import MetricsWriter, read

c = config.load(sys.argv[1], [sys.argv[2]])
c.run_dir.mkdir(parents=True, exist_ok=True)
(c.run_dir / "recipe.yaml").write_text(config.to_yaml(c))
signal.signal(getattr(signal, "SIGBREAK", signal.SIGTERM), lambda *_: sys.exit(143))
writer = MetricsWriter(c.run_dir / "metrics.jsonl")
begin = read(writer.path)[-1]["step"] + 1 if writer.path.exists() else 0
print("begins at", begin, flush=True)
for step in range(begin, c.max_iters + 1):
    writer.write(step, train_loss=4.0, val_loss=4.1, seconds=step / 10)
    time.sleep(float(open(sys.argv[0] + ".delay").read()))
"""


@pytest.fixture
def trainer(tmp_path: Path) -> tuple[Trainer, Path]:
    """Return a trainer of a folder, and the file that sets how long a step takes."""
    script, delay = tmp_path / "train.py", tmp_path / "train.py.delay"
    script.write_text(STAND_IN)
    delay.write_text("0.05")
    return Trainer(tmp_path / "out", [str(script)]), delay


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_a_run_is_started_paused_and_resumed(
    trainer: tuple[Trainer, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    runs, delay = trainer
    config = configs.load("recipes/fast_cpu.yaml", ["--max_iters=300"])
    runs.start("mine", config)
    wait_for(lambda: runs.state("mine").step > 3)
    state = runs.state("mine")
    assert (state.running, state.steps, state.finished) == (True, 300, False)
    assert state.seconds_left == pytest.approx((300 - state.step) / 10, abs=1)
    with pytest.raises(InputError, match="is in progress → pause it first"):
        runs.start("other", config)
    # After a reload of the page or the server, another trainer of the folder knows the run, and can stop it.
    again = Trainer(tmp_path / "out", [str(tmp_path / "train.py")])
    assert again.names() == ["mine", "other"] or again.names() == ["mine"]
    assert again.state("mine").running
    assert not again.state("mine").pausing
    again.pause("mine")
    asked = again.state("mine")
    assert asked.pausing == asked.running
    wait_for(lambda: not again.state("mine").running)
    stopped = again.state("mine")
    assert not stopped.pausing
    assert 3 < stopped.step < 300
    delay.write_text("0")
    again.resume("mine")
    wait_for(lambda: again.state("mine").finished)
    assert f"begins at {stopped.step + 1}" in again.state("mine").log
    with pytest.raises(InputError, match="is not in progress"):
        again.pause("mine")
    assert not runs.state("mine").running, "the first one has let its ended process go"


def test_a_run_that_stopped_early_is_not_paused(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests/fixtures/curves/overfitting.100k", tmp_path / "early")
    recipe = tmp_path / "early/recipe.yaml"
    text = recipe.read_text().replace("max_iters: 800", "max_iters: 100000")
    recipe.write_text(text + "early_stopping_patience: 3\n")
    state = Trainer(tmp_path, ["train.py"]).state("early")
    assert state.step < state.steps
    assert state.finished
    with using("zh"):
        assert "提前停止" in train_tab.progress(state)


def test_a_run_with_a_time_budget_is_as_long_as_its_record_says(tmp_path: Path) -> None:
    """Its recipe gets the decided length only at the end."""
    trainer, folder = Trainer(tmp_path, ["train.py"]), tmp_path / "timed"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("time_budget: 10m\n")  # max_iters: 5000
    writer = MetricsWriter(folder / "metrics.jsonl")
    for step in (7990, 8000):
        writer.write(step, train_loss=1.5, seconds=step / 100)
    state = trainer.state("timed")
    assert (state.steps, state.finished) == (0, False), "nothing is decided"
    assert "5,000" not in train_tab.progress(state)
    writer.write(8000, horizon=60_000)
    state = trainer.state("timed")
    assert (state.step, state.steps, state.finished) == (8000, 60_000, False)
    with FolderLock(folder):
        left = trainer.state("timed").seconds_left
    assert left == pytest.approx(520)
    writer.write(60_000, train_loss=1.2)
    assert trainer.state("timed").finished


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 61, "a b"])
def test_a_run_has_a_name_that_is_a_folder(trainer: tuple[Trainer, Path], name: str) -> None:
    with pytest.raises(InputError, match="must be of letters"):
        trainer[0].start(name, configs.load("recipes/fast_cpu.yaml"))


def test_a_page_that_only_looks_starts_nothing(tmp_path: Path) -> None:
    page = make_page(tmp_path)
    values = knobs.settings("recipes/fast_cpu.yaml").values()
    text, *_ = page.plan.begin("en", "mine", "recipes/fast_cpu.yaml", "here", *values)
    assert "starts no runs" in text


def test_a_file_that_the_system_refuses_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here the folder in which the page keeps the recipes of its runs is a file."""
    (tmp_path / ".playground").write_text("")

    async def build() -> Page:
        return Page(tmp_path, STANDARD, train=["train.py"])

    page = asyncio.run(build())
    values = knobs.settings("recipes/fast_cpu.yaml").values()
    with pytest.raises(gr.Error, match="File exists") as caught:
        page.plan.begin("en", "mine", "recipes/fast_cpu.yaml", "here", *values)
    assert not caught.value.print_exception
    assert "File exists" in capsys.readouterr().err


def test_each_request_speaks_its_own_language(out: Path) -> None:
    page = make_page(out)
    with using("en"):
        assert CHINESE.search(page.train.stop("zh", "nobody"))
        assert not CHINESE.search(page.train.stop("en", "nobody"))
        steps = list(page.text.continue_text("zh", "tiny", "To", 0.8, 5, 3, 1))
        assert all(CHINESE.search(status) for _text, status in steps)
