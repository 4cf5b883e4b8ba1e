"""plan.py from its arguments to its output: keys, errors, files; fast, and without torch."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hfgpt import config
from hfgpt.base import hardware, language
from hfgpt.base.errors import InputError
from hfgpt.base.terminal import json_text
from hfgpt.base.units import duration
from hfgpt.commands import plan
from hfgpt.plan import command
from hfgpt.plan.survey import Survey

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
STANDARD = str(ROOT / "recipes" / "standard.yaml")


def figures(*words: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(plan.run([*words, "--json"]))
    return result


@pytest.mark.parametrize("name", ["no/such", "no/such.md", "no/such/x", "./nothing", "nothing", "~/nothing", "../x"])
def test_a_text_that_is_not_here_is_no_text(name: str) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        plan.run(["--data", name])


@pytest.mark.parametrize("word", [
    "--vram=" + "9" * 400 + "GB", "--price_per_hour=" + "9" * 400, "--processes=" + "9" * 400,
    "--time_budget=" + "9" * 400 + "h", "--max_time=" + "9" * 5000 + "h", "--process_timeout=" + "9" * 30 + "s",
    "--gradient_accumulation_steps=2147483647",
])  # fmt: skip
def test_numbers_that_nothing_has_are_refused(word: str) -> None:
    """The refusal is immediate and names the argument."""
    with pytest.raises(InputError, match=word[2:].split("=")[0]) as caught:
        plan.run([word, "--batch_size=2147483629"])
    assert len(str(caught.value)) < 1000


def test_all_but_nothing_of_a_text_for_validation_is_refused_as_by_training() -> None:
    with pytest.raises(InputError, match=r"has 0\n.*or change val_fraction"):
        plan.run([STANDARD, "--val_fraction=0.999999999999"])


def test_a_step_of_a_billion_sequences_is_planned_at_once() -> None:
    """It must work for a prime number too, whose next smaller divisor is 1."""
    assert figures("--batch_size=999999937")["recommendation"]["batch_size"] == 1


def test_names_cannot_steer_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither tables nor JSON pass them on, and JSON stays valid; a name that is not UTF-8 enters no recipe."""
    monkeypatch.chdir(tmp_path)
    name = "\x1b[31mred\x9b2J\u202e.yaml"
    Path(name).write_text("n_layer: 1\n", encoding="utf-8")
    shown = plan.run([name])
    assert not re.search("[\x1b\x9b\u202e]", shown)
    assert "\\x1b[31mred" in shown
    assert not re.search("[\x1b\x9b\u202e]", json_text({"name": name}))
    assert json.loads(json_text({"name": name})) == {"name": name}
    with pytest.raises(InputError, match=r"write = .* cannot be written: its name is not UTF-8"):
        plan.run(["--write=new/\udcff.yaml"])
    assert not Path("new").exists()


# ------------------------------------------------------------------------------------------------------ as data

KEYS = {
    "parameters": {"total", "token_embedding", "position_embedding", "attention", "mlp", "norms", "rule_of_thumb"},
    "tokens": {"per_iter", "total", "epochs", "per_parameter"},
    "memory": {
        "peak_bytes", "weights_bytes", "gradients_bytes", "optimizer_bytes", "activations_bytes", "logits_bytes",
        "allowance_bytes", "binding", "fits",
    },
    "time": {"seconds_per_step", "total_seconds", "tokens_per_second", "mfu"},
    "cost": {"money", "energy_kwh"},
    "recommendation": {"batch_size", "gradient_accumulation_steps", "changes", "reasons"},
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_planned(recipe: Path) -> None:
    found = figures(str(recipe), "--gpu=RTX 3060")
    for group, keys in KEYS.items():
        assert keys <= found[group].keys(), group
    parts = found["parameters"]
    assert parts["total"] == sum(
        parts[key] for key in ("token_embedding", "position_embedding", "attention", "mlp", "norms")
    )
    shape = config.load(recipe)
    advice = found["recommendation"]
    assert advice["batch_size"] * advice["gradient_accumulation_steps"] == shape.global_batch
    assert found["tokens"]["per_iter"] == shape.tokens_per_iter
    assert "Parameters" in plan.run([str(recipe)])


def test_the_chapter_s_own_recipe() -> None:
    """Section 5.2 by its rule, and exactly."""
    found = figures(STANDARD)
    assert found["parameters"]["rule_of_thumb"] == 10_616_832
    assert found["parameters"]["total"] == 10_872_576
    assert found["tokens"]["total"] == 81_920_000


def test_tables_show_the_rule_beside_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = plan.run([STANDARD, "--vram=8GB", "--price-per-hour=0.5", "--simulate", "--n_layer=2", "--block_size=64"])
    for words in (
        "3,538,944", "chapter's rule of thumb", "tokens a parameter", "allowance", "cost", "simulated",
        "16-bit arithmetic", "activation checkpointing", "64 x 1", "of 8.00 GiB", "--gradient_accumulation_steps=4",
    ):  # fmt: skip
        assert words in text, words
    assert "\x1b[" not in text, "colours are for a terminal"


def test_the_optimizers_row() -> None:
    """Muon has one average of the blocks' matrices, 12 · n_layer · n_embd² values, and computes more."""
    adamw, muon = (figures(STANDARD, f"--optimizer={name}", "--device=cpu") for name in ("adamw", "muon"))
    assert adamw["memory"]["optimizer_bytes"] == 8 * adamw["parameters"]["total"]
    saved = adamw["memory"]["optimizer_bytes"] - muon["memory"]["optimizer_bytes"]
    assert saved == 4 * 12 * 6 * 384**2
    assert muon["time"]["seconds_per_step"] > adamw["time"]["seconds_per_step"]
    assert "Muon's one average" in plan.run([STANDARD, "--optimizer=muon"])
    assert "AdamW's two averages" in plan.run([STANDARD])


def test_memory_is_one_process_s() -> None:
    one = figures(STANDARD, "--gpu=a100")["memory"]["peak_bytes"]
    eight = figures(STANDARD, "--gpu=a100", "--processes=8")["memory"]["peak_bytes"]
    assert eight < one / 4


def test_a_simulated_peak_stands_beside_the_formula() -> None:
    memory = figures(STANDARD, "--n_layer=2", "--batch_size=4", "--simulate")["memory"]
    assert memory["peak_bytes"] == pytest.approx(memory["simulated_peak_bytes"], rel=0.05)


def test_the_written_recipe_trains_as_it_is(tiny_text: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    found = figures(
        STANDARD, f"--data={tiny_text}", "--time-budget=1h", "--gpu=RTX 3060", f"--write={path}", "--val_fraction=0.2"
    )
    assert found["written"] == str(path)
    written = config.load(path)
    changes = found["recommendation"]["changes"]
    assert {key: getattr(written, key) for key in changes} == changes
    assert (written.dataset, written.val_fraction, written.out_dir) == (str(tiny_text), 0.2, "out/mine")
    assert written.n_layer <= 6
    assert "expected loss" in path.read_text()
    with pytest.raises(InputError, match="exists already"):
        plan.run([STANDARD, f"--write={path}"])


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"max_iters": 20_000, "warmup_iters": 250, "lr_decay_iters": 5000, "min_lr": 6e-5},
        {"max_iters": 20_000, "learning_rate": 1e-3},
        {"lr_schedule": "wsd", "max_iters": 1000, "lr_decay_iters": 900},
        {"tokenizer": "bpe", "vocab_size": 8192},
        {"dataset": "stories.txt", "tokenizer": "gpt2", "n_embd": 96, "n_head": 3},
    ],
)
def test_a_recipe_is_written_with_all_that_it_was_given(values: dict[str, Any]) -> None:
    """Also what an empty recipe would derive, and this one would not."""
    given = config.build(values, "mine")
    again = config.build(yaml.safe_load(command.recipe_text(given, {}, "")) or {}, "mine")
    assert again == given


@pytest.mark.parametrize(
    "given",
    [
        ("--init_from=gpt2", "--lr_schedule=hold_cosine", "--tokenizer=gpt2", "--gpu=A100"),
        ("--eval_tasks=questions.jsonl", "--eval_interval=250", "--eval_tasks_interval=250", "--no_trials"),
        ("--batch_warmup_iters=100", "--no_trials"),
    ],
    ids=["schedule", "questions", "batch warm-up"],
)
def test_a_recipe_chosen_for_a_time_is_one_that_trains(given: tuple[str, ...], tmp_path: Path) -> None:
    """Whatever the recipe at hand says that its new length would contradict."""
    path = tmp_path / "mine.yaml"
    plan.run(["--time-budget=10m", "--dataset=tinyshakespeare", f"--write={path}", *given])
    assert config.load(path).max_iters > 0


def test_a_recipe_that_training_would_refuse_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    odd = config.build({}, "mine").model_copy(update={"eval_interval": 7, "eval_tasks_interval": 10})
    with pytest.raises(InputError, match="eval_tasks_interval"):
        command.write_recipe(path, odd, {}, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("minutes", [2, 60])
def test_a_recipe_with_a_time_budget_is_planned_for_its_time(minutes: int, tmp_path: Path) -> None:
    """More steps than max_iters says, or fewer: the clock decides."""
    recipe = tmp_path / "timed.yaml"
    recipe.write_text(Path(STANDARD).read_text() + f"\ntime_budget: {minutes}m\n")
    planned = figures(str(recipe), "--gpu=RTX 3060")
    assert 0.8 < planned["time"]["total_seconds"] / (60 * minutes) <= 1
    assert planned["schedule"][-1]["step"] != config.load(STANDARD).max_iters


def test_a_batch_that_its_processes_cannot_share_is_no_remedy() -> None:
    """Half of 12 sequences cannot be shared by 4 processes; the recipe itself can."""
    remedies = figures("--gpu=A100", "--processes=4")["remedies"]
    assert {way["name"]: way["change"] for way in remedies}["smaller batch"] == {}


def test_nothing_that_does_not_fit_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no variant of the recipe fits"):
        plan.run([STANDARD, "--vram=0.1GB", f"--write={tmp_path / 'x.yaml'}"])
    assert not list(tmp_path.iterdir())


def test_explanations() -> None:
    assert "n_layer=8" in plan.run([STANDARD, "--explain=n_layer"])
    with language.using("zh"):
        assert "参数量" in plan.run([STANDARD, "--explain", "n_layer"])
    assert len(json.loads(plan.run([STANDARD, "--explain=n_layer", "--json"]))["neighbours"]) == 3


@pytest.mark.filterwarnings("ignore")  # torch warns while it compiles
@pytest.mark.parametrize("compiled", [False, True])
def test_a_compiled_probe_is_not_judged_by_its_first_step(
    compiled: bool, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """That step includes the compilation: judged by it, a single sequence would be timed, and stand for all."""
    from hfgpt.plan import probe

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in (("AIM", 0.05), ("LONGEST", 1e-9), ("SHORT", 0)):
        monkeypatch.setattr(probe, name, value)
    shape = config.build(tiny | {"compile": compiled, "sample_prompt": ""}, "run")
    measured = probe.probe(Survey(shape, 65, "", None, None, False))
    assert (measured.peak_bytes is not None) == compiled, "the peak is known only of the recipe's own micro-batch"


def test_a_probe_measures_this_machine(tiny: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    from hfgpt.plan import probe

    recipe = write_recipe({**tiny, "n_layer": 1, "gradient_accumulation_steps": 2})
    original, probe.AIM = probe.AIM, 0.05
    try:
        found = figures(str(recipe), "--probe")
    finally:
        probe.AIM = original
    assert found["time"]["measured"]
    assert 1e-4 < found["time"]["seconds_per_step"] < 10
    assert 0 < found["time"]["mfu"] < 1
    memory = found["memory"]
    assert memory["peak_bytes"] == pytest.approx(memory["measured_peak_bytes"], rel=0.05)
    assert not Path(tiny["out_dir"]).exists(), "nothing is written"


@pytest.mark.parametrize("words", [("--gpu=A100",), ("--vram=8GB",), ("--device=cuda",)])
def test_a_probe_of_another_device_is_refused(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine takes says nothing about a card that is elsewhere."""
    monkeypatch.setattr(hardware, "local_accelerator", lambda: None)
    with pytest.raises(InputError, match="probe: it measures this machine's own device"):
        plan.run([STANDARD, "--probe", *words])


def test_processes_on_a_cpu_share_its_cores(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A probe times one of them alone, with all cores."""
    from hfgpt.plan import probe

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(probe, "AIM", 0.01)
    monkeypatch.setattr(probe.Timing, "seconds", 1.0)
    what = Survey(config.build(tiny | {"sample_prompt": "", "device": "cpu"}, "run"), 65, "", None, None, False)
    one, two = (probe.probe(what, processes) for processes in (1, 2))
    assert two.seconds_per_step == pytest.approx(2.0)
    tokens = what.config.block_size * what.config.batch_size
    assert two.seconds_per_eval_token == pytest.approx(2 / tokens)
    assert one.seconds_per_eval_token == pytest.approx(1 / tokens)


@pytest.mark.parametrize(("likely", "told"), [(1.2, math.sqrt(1.2)), (0.9, math.sqrt(0.9)), (2.0, 1.0), (0.5, 1.0)])
def test_a_probe_is_weighed_with_what_the_machine_did_before(
    likely: float, told: float, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The machine's speed of a few seconds is not that of the run; but only the probe knows the recipe's own ways."""
    from hfgpt.plan import probe, step_time

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(probe, "AIM", 0.01)
    monkeypatch.setattr(probe.Timing, "seconds", 1.0)
    monkeypatch.setattr(probe.Timing, "busy", False)
    monkeypatch.setattr(step_time, "step_seconds", lambda *_: likely)
    shape = config.build(tiny | {"sample_prompt": "", "device": "cpu"}, "run")
    assert probe.probe(Survey(shape, 65, "", None, None, False)).seconds_per_step == pytest.approx(told)


# ------------------------------------------------------------------------------------------------------ the script


def script(*words: str, loads: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-X", "importtime"] if loads else []), str(ROOT / "scripts" / "plan.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_script_prints_json_without_loading_torch() -> None:
    done = script(STANDARD, "--json", loads="yes")
    assert done.returncode == 0
    assert json.loads(done.stdout)["parameters"]["total"] == 10_872_576
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hfgpt.plan.command" in loaded
    assert not loaded & {"torch", "transformers", "accelerate", "datasets", "rich"}


def test_the_script_prints_tables_and_help() -> None:
    assert "Memory of a training step" in script(STANDARD).stdout
    assert "--time-budget" in script("--help").stdout


@pytest.mark.e2e
def test_the_next_plan_uses_what_a_probe_has_learnt(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """torch binds the main thread to one core; the machine is the same one then, with as many cores as before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipe = str(write_recipe(tiny | {"n_layer": 1, "sample_prompt": ""}))
    assert json.loads(script(recipe, "--json").stdout)["time"]["start_seconds"] != 9.5
    before = json.loads((tmp_path / "hfgpt" / "speed.json").read_text())
    learning = (
        "from hfgpt.base import threads; threads.configure(); import torch\n"
        "from hfgpt.plan import speed; speed.learn(start=9.5)"  # as a probe does, if nothing disturbs it
    )
    subprocess.run([sys.executable, "-c", learning], cwd=ROOT, check=True)
    assert json.loads((tmp_path / "hfgpt" / "speed.json").read_text()) == before | {"start": 9.5}
    assert json.loads(script(recipe, "--json").stdout)["time"]["start_seconds"] == 9.5


def test_bad_input_exits_with_two() -> None:
    done = script(STANDARD, "--vram=lots")
    assert (done.returncode, done.stdout) == (2, "")
    assert "must be a size" in done.stderr
    assert "Traceback" not in done.stderr
    assert script("no_such_recipe.yaml").returncode == 2


def test_the_page_on_planning_says_what_plan_says() -> None:
    page = (ROOT / "docs" / "en" / "planning.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| .*\|$", page, re.M)]
    recipes = {row[0]: row[1:] for row in rows if row[0] in {recipe.stem for recipe in RECIPES}}
    assert list(recipes) == ["quick_experiment", "learning", "standard", "production"]
    for name, cells in recipes.items():
        recipe = str(ROOT / "recipes" / f"{name}.yaml")
        planned = figures(recipe, "--gpu", "RTX 3060")
        smaller = figures(recipe, "--vram", "8GB")["recommendation"]
        assert cells == [
            f"{planned['parameters']['total']:,}",
            f"{planned['parameters']['rule_of_thumb']:,}",
            f"{planned['tokens']['per_iter']:,}",
            f"{planned['tokens']['total']:,}",
            f"{planned['memory']['peak_bytes'] / 2**20:,.0f}",
            duration(planned["time"]["total_seconds"]),
            f"{smaller['batch_size']} x {smaller['gradient_accumulation_steps']}",
        ]


@pytest.mark.parametrize(("device", "own", "other"), [("RTX 3060", "显存", "内存"), ("M2 Pro", "内存", "显存")])
def test_in_chinese_a_card_has_its_own_word_for_memory(device: str, own: str, other: str) -> None:
    with language.using("zh"):
        for more in ([], ["--explain=batch_size"], ["--vram=1GB"]):
            shown = plan.run([STANDARD, "--gpu", device, *more])
            assert own in shown
            assert other not in shown


def test_the_end_says_what_to_type_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is printed on one line, to be copied, at any width."""
    monkeypatch.setenv("COLUMNS", "60")
    path = tmp_path / "mine.yaml"
    said = plan.run([STANDARD, "--n_layer=2"]).splitlines()
    assert [line for line in said if line.startswith("Next: ") and line.endswith(f"{STANDARD} --n_layer=2")], (
        "on a slow machine a shorter way follows"
    )
    assert "add --write" in plan.run([STANDARD, "--time-budget=1m", "--no_trials"])
    assert plan.run([STANDARD, f"--write={path}"]).rstrip().endswith(str(path))


def test_ways_to_a_faster_run_start_from_the_run_itself() -> None:
    made = figures(STANDARD, "--gpu", "RTX 3060")
    rows = {way["name"]: way["seconds"] for way in made["faster"]}
    assert rows["record less often"] == pytest.approx(made["time"]["total_seconds"])


def test_a_text_of_one_character_has_a_plan(tmp_path: Path) -> None:
    """n-gram counts say nothing about it, so no loss is forecast."""
    (tmp_path / "same.txt").write_text("[" * 100_000)
    said = figures(f"--dataset={tmp_path / 'same.txt'}", "--tokenizer=char", "--no_trials", "--device=cpu")
    assert said["tokens"]


@pytest.mark.parametrize("columns", [60, 79, 80, 100, 101, 103])
@pytest.mark.parametrize("recipe", ["standard", "finetune"])
def test_no_line_of_a_chinese_plan_begins_with_punctuation(
    recipe: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with language.using("zh"):
        lines = plan.run([recipe, "--gpu=T4"]).splitlines()
        lines += plan.run([recipe, "--gpu=T4", "--explain=block_size"]).splitlines()
    assert [line for line in lines if line.strip()[:1] in tuple("，。；、）")] == []
    assert [line for line in lines if re.search(r"(^|\s{2,})(毫秒|秒|[KMG]iB|位)(\s|$)", line)] == []
