"""Sweeps: what is varied and what is kept equal; every trial runs once and is reported truthfully after any failure."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from hfgpt.base.errors import InputError
from hfgpt.base.language import using
from hfgpt.sweep import reading as sweep
from hfgpt.sweep import storage, training, trials
from hfgpt.sweep.definition import Sweep, equalised

ROOT = Path(__file__).parents[2]
OWN_PROCESS = sys.executable
BASE = {"batch_size": 4, "block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 8, "max_iters": 100, "eval_interval": 20}

# Replaces the training script in tests of the orchestration: it writes a training's record, resumes, obeys SIGTERM, and
# fails or diverges for certain learning rates.
STAND_IN = """
import signal, sys, time
from hfgpt import config
from hfgpt.runs.metrics import MetricsWriter, read

c = config.load(sys.argv[1])
assert sys.argv[2:] == ["--resume"]
c.run_dir.mkdir(parents=True, exist_ok=True)
(c.run_dir / "recipe.yaml").write_text(config.to_yaml(c))
with (c.run_dir / "attempts").open("a") as file:
    file.write("x")
signal.signal(getattr(signal, "SIGBREAK", signal.SIGTERM), lambda *_: sys.exit(143))
writer = MetricsWriter(c.run_dir / "metrics.jsonl")
begin = read(writer.path)[-1]["step"] + 1 if writer.path.exists() else 0
if c.learning_rate == 0.5:
    raise ValueError("no such luck")
for step in range(begin, c.max_iters + 1):
    loss = float("nan") if c.learning_rate == 1.0 and step > 3 else 4.0 / (1 + step / 20) + c.learning_rate
    writer.write(step, train_loss=loss, seconds=step / 100, tokens_per_second=c.tokens_per_iter * 100)
    if step % c.eval_interval == 0:
        writer.write(step, val_loss=loss, train_eval_loss=loss)
    if loss != loss:
        print("The run failed at step 4: loss or gradients are not finite", file=sys.stderr)
        sys.exit(1)
    time.sleep(DELAY)
"""


@pytest.fixture
def define(tmp_path: Path) -> Callable[..., Sweep]:
    """define("--batch_size=4,8", equal="tokens") → the sweep, over a small recipe, in `tmp_path`/sweep."""

    def make(*words: str, **options: str) -> Sweep:
        recipe = tmp_path / "small.yaml"
        recipe.write_text(yaml.safe_dump(BASE))
        return sweep.define(str(recipe), words, {"out_dir": str(tmp_path / "sweep"), **options})

    return make


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[str], Path]:
    """stand_in(seconds of a step, a number or an expression) → a training script."""

    def write(delay: str = "0") -> Path:
        path = tmp_path / "train.py"
        path.write_text(STAND_IN.replace("DELAY", delay))
        return path

    return write


@pytest.fixture(autouse=True)
def _trials_start_at_once(monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "executable", python)


def names(made: Sweep) -> list[str]:
    return [trial.name for trial in made.trials]


# ---------------------------------------------------------------------------------------------------- what is tried


def test_a_grid_is_every_combination(define: Callable[..., Sweep]) -> None:
    made = define("--batch_size", "4,8", "--learning_rate=1e-4,1e-3", "--dropout=0.1")
    assert [trial.values for trial in made.trials] == [
        {"batch_size": size, "learning_rate": rate} for size in (4, 8) for rate in (1e-4, 1e-3)
    ]
    assert made.config(made.trials[3]).dropout == 0.1
    assert made.trials[3].label == "batch_size=8, learning_rate=0.001"


def test_a_random_search_is_the_same_each_time_and_grows(define: Callable[..., Sweep]) -> None:
    words = ("--learning_rate=1e-4..1e-2", "--batch_size=4..12", "--tokenizer=char,bpe")
    short, long = define(*words, random="5"), define(*words, random="9")
    assert names(long)[:5] == names(short)
    for trial in long.trials:
        assert 1e-4 <= trial.values["learning_rate"] <= 1e-2
        assert trial.values["batch_size"] in range(4, 13)
        assert trial.values["tokenizer"] in ("char", "bpe")
    rates = [trial.values["learning_rate"] for trial in define(*words, random="40").trials]
    assert 8 <= sum(rate < 1e-3 for rate in rates) <= 32, "logarithmic over two decades: half of them in each"


def test_a_random_search_leaves_out_what_is_not_valid(define: Callable[..., Sweep]) -> None:
    made = define("--n_head=1,2,3,4,5", "--n_embd=8,16,20,24", random="8")
    assert all(trial.values["n_embd"] % trial.values["n_head"] == 0 for trial in made.trials)


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        ((), {}, "nothing to sweep"),
        (("--batch_size=4",), {}, "nothing to sweep"),
        (("--learning_rate=3e-3,0.003",), {}, r"learning_rate: 0\.003 is listed twice → --seeds=2"),
        (("--learning_rate=3e-3,3e-3",), {"seeds": "2"}, r"learning_rate: 0\.003 is listed twice"),
        (("--seed=1,1",), {}, "seed: 1 is listed twice"),
        (("--batch_size=4,8",), {"seeds": "2", "prune": "true"}, "prune: stops a setting's bad seeds"),
        (("--batch_size=4,8", "--seed=1,2"), {"prune": "true"}, "so its mean is too low → leave out --prune"),
        (("--batch_size=4,x",), {}, "batch_size = 'x': must be an integer"),
        (("--batchsize=4,8",), {}, "did you mean 'batch_size'"),
        (("--n_head=1,3",), {}, "n_head = 3: must divide n_embd"),
        (("--learning_rate=1e-4..1e-2",), {}, "add --random N"),
        (("--learning_rate=1e-2..1e-4",), {"random": "3"}, "must rise"),
        (("--tokenizer=1..2",), {"random": "3"}, "tokenizer: has no range"),
        (("--batch_size=4,8",), {"random": "many"}, "random = 'many'"),
        (("--batch_size=4,8",), {"random": "3"}, "only 2 different combinations"),
        (("--batch_size=4,8",), {"seeds": "100000000"}, "10,000 are the most"),
        (("--learning_rate=1e-4..1e-2",), {"random": "9" * 11}, "10,000 are the most"),
        (("--batch_size=4,8",), {"random": "\N{SUPERSCRIPT TWO}"}, "must be a whole number"),
        (
            tuple(
                f"--{key}=1,2,3,4,5,6,7,8,9"
                for key in (
                    "seed",
                    "n_layer",
                    "max_iters",
                    "eval_iters",
                    "batch_size",
                    "log_interval",
                    "eval_interval",
                    "block_size",
                )
            ),
            {},
            "10,000 are the most",
        ),
        (("--batch_size=4,8",), {"equal": "cost"}, "equal = 'cost'"),
        (("--batch_size=4,8",), {"equal": "time"}, "add --max_time"),
        (("--batch_size=4,8", "--max_time=10m"), {}, "max_time = '10m': .* add --equal time"),
        (("--batch_size=4,8", "--max_time=10m"), {"equal": "tokens"}, "max_time = '10m': .* add --equal time"),
        (("--max_time=10m,20m",), {}, "max_time = '10m': .* or --max_time=none"),
        (("--max_iters=4,8",), {"equal": "tokens"}, "decides max_iters"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anything_is_written(
    define: Callable[..., Sweep], tmp_path: Path, words: tuple[str, ...], options: dict[str, str], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        define(*words, **options)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_experiment_is_valid_as_it_is(path: Path) -> None:
    assert len(sweep.define(str(path), [], {}).trials) > 1


@pytest.mark.parametrize(
    ("name", "count", "text"),
    [("batch_size", 3, "time"), ("learning_rate", 3, "oscillates"), ("model_size", 3, "quality")],
)
def test_the_chapters_experiments(name: str, count: int, text: str) -> None:
    made = sweep.define(str(ROOT / f"recipes/experiments/{name}.yaml"), [], {})
    assert len(made.trials) == count
    assert text in made.question
    with using("zh"):
        asked = sweep.define(str(ROOT / f"recipes/experiments/{name}.yaml"), [], {}).question
    assert re.search("[一-鿿]", asked)
    assert str(made.folder) == f"out/sweep-{name}"


def test_a_cut_of_an_experiment_keeps_its_schedule_whole() -> None:
    made = sweep.define(str(ROOT / "recipes/experiments/model_size.yaml"), ["--max_iters=40", "--n_embd=64"], {})
    c = made.config(made.trials[0])
    assert (c.max_iters, c.lr_decay_iters, c.warmup_iters) == (40, 40, 2)
    assert c.n_embd == 128, "what a trial says of itself wins"


@pytest.mark.parametrize(
    ("words", "options", "decays"),
    [
        (("--max_iters=800",), {"seeds": "2"}, [800, 800]),
        (("--max_iters=200,400,800",), {}, [200, 400, 800]),
        (("--max_iters=400,800", "--lr_decay_iters=300"), {}, [300, 300]),
        (("--max_iters=400,800", "--lr_decay_iters=400"), {}, [400, 400]),
        (("--learning_rate=1e-4..1e-2", "--max_iters=800"), {"random": "2"}, [800, 800]),
    ],
)
def test_the_decay_ends_with_each_trial_as_it_does_in_training(
    words: tuple[str, ...], options: dict[str, str], decays: list[int]
) -> None:
    """fast_cpu sets both to 400, and so lr_decay_iters follows a typed max_iters."""
    made = sweep.define("fast_cpu", words, options)
    assert [made.config(trial).lr_decay_iters for trial in made.trials] == decays


def test_the_decay_ends_with_each_trial_of_an_experiment(tmp_path: Path) -> None:
    lengths = "trials: [{name: a, max_iters: 300}, {name: b, max_iters: 500}]\n"
    (tmp_path / "longer.yaml").write_text(f"base: {ROOT}/recipes/fast_cpu.yaml\nset: {{max_iters: 100}}\n{lengths}")
    made = sweep.define(str(tmp_path / "longer.yaml"), [], {})
    assert [made.config(trial).lr_decay_iters for trial in made.trials] == [300, 500]


def test_faults_of_an_experiments_file_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("base: x.yaml\nsweeps: {}\nsweep: {batch_size: 3}\ntrials: {}\n")
    with pytest.raises(InputError) as caught:
        sweep.define(str(tmp_path / "bad.yaml"), [], {})
    for said in ("sweeps: is not a key", "sweep.batch_size = 3: must be a list", "trials = {}: must be a list"):
        assert said in str(caught.value)


# ------------------------------------------------------------------------------------------------ what is held equal


def test_equal_tokens_change_the_length_and_stretch_the_schedule(define: Callable[..., Sweep]) -> None:
    made = define("--batch_size=2,4,16", equal="tokens")
    got = [equalised(made, trial, None) for trial in made.trials]
    assert [c.max_iters for c in got] == [200, 100, 25]
    assert {c.max_iters * c.tokens_per_iter for c in got} == {3200}
    assert [c.eval_interval for c in got] == [40, 20, 5]
    assert [c.lr_decay_iters for c in got] == [200, 100, 25]
    assert [c.warmup_iters for c in got] == [10, 5, 1]


def test_equal_time_gives_a_slower_step_fewer_of_them(define: Callable[..., Sweep]) -> None:
    made = define("--batch_size=4,8", "--max_time=30s", equal="time")
    got = [equalised(made, trial, seconds) for trial, seconds in zip(made.trials, (0.1, 0.2), strict=True)]
    assert [(c.max_iters, c.max_time, c.eval_interval) for c in got] == [(300, None, 60), (150, None, 30)]


def test_equal_steps_change_nothing(define: Callable[..., Sweep]) -> None:
    made = define("--batch_size=4,8")
    assert [equalised(made, trial, None).max_iters for trial in made.trials] == [100, 100]


# ------------------------------------------------------------------------------------------------------- running


def attempts(made: Sweep) -> list[int]:
    """Return how often each trial was started."""
    files = [made.folder / "trials" / name / "attempts" for name in names(made)]
    return [len(file.read_text()) if file.exists() else 0 for file in files]


def report(made: Sweep) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((made.folder / "report.json").read_text())
    return data


def study(made: Sweep) -> optuna.Study:
    return optuna.load_study(
        study_name=made.name, storage=JournalStorage(JournalFileBackend(str(made.folder / "journal.log")))
    )


def test_failed_and_diverged_trials_are_told_and_not_fatal(
    define: Callable[..., Sweep], stand_in: Callable[..., Path]
) -> None:
    made = define("--learning_rate=0.1,0.5,1.0,0.2")
    told: list[str] = []
    path = trials.run(made, [str(stand_in())], told.append)
    data = report(made)
    assert [row["outcome"] for row in data["runs"]] == [
        "finished",
        "failed: exit code 1: ValueError: no such luck",
        "diverged",
        "finished",
    ]
    assert data["runs"][0]["final_val_loss"] == pytest.approx(4 / 6 + 0.1)
    assert "The lowest final validation loss is 0.7667, with learning_rate=0.1" in data["answer"][0]
    assert "0.1 converges best; 0.5 failed; 1 diverges; 0.2 is too high" in " ".join(data["answer"])
    assert set(data["figures"]) == {f"loss_against_{by}.png" for by in ("steps", "tokens", "time")} | {"final_loss.png"}
    assert all((made.folder / name).exists() for name in data["figures"])
    assert "learning_rate=0.5: failed" in path.read_text() + "\n".join(told)


def test_a_trial_says_in_the_users_language_why_it_failed(
    define: Callable[..., Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "fails.py"
    script.write_text(
        "import sys\n"
        "from hfgpt.base import errors, shell\n"
        "def main(words):\n"
        "    raise errors.RunError('4') if 'learning_rate: 0.1' in open(words[0]).read() else SystemExit(3)\n"
        "shell.run(main)\n"
    )
    monkeypatch.setenv("HFGPT_LANG", "zh")
    told: list[str] = []
    trials.run(define("--learning_rate=0.1,0.5"), [str(script)], told.append)
    assert "learning_rate=0.1：失败，退出码 1：训练失败：4" in told
    assert "learning_rate=0.5：失败，退出码 3：它没有打印任何内容" in told


def test_optuna_knows_it_all(define: Callable[..., Sweep], stand_in: Callable[..., Path]) -> None:
    made = define("--learning_rate=0.1,0.5", "--batch_size=4,8")
    trials.run(made, [str(stand_in())], lambda _: None)
    known = study(made).get_trials()
    assert sorted((t.params["learning_rate"], t.params["batch_size"]) for t in known) == [
        (0.1, 4),
        (0.1, 8),
        (0.5, 4),
        (0.5, 8),
    ]
    assert {t.params["learning_rate"]: t.state.name for t in known} == {0.1: "COMPLETE", 0.5: "FAIL"}
    assert study(made).best_value == pytest.approx(4 / 6 + 0.1)
    assert sorted(study(made).best_trial.intermediate_values) == [0, 20, 40, 60, 80, 100]


def test_more_evaluations_than_optuna_counts_raise_no_warning(
    define: Callable[..., Sweep], stand_in: Callable[..., Path]
) -> None:
    """Warnings are errors in a test."""
    made = define("--learning_rate=0.1,0.2", "--max_iters=300", "--eval_interval=1")
    trials.run(made, [str(stand_in())], lambda _: None)
    assert sorted(study(made).best_trial.intermediate_values) == list(range(101))


def test_a_finished_sweep_runs_nothing_again_and_failures_only_when_asked(
    define: Callable[..., Sweep], stand_in: Callable[..., Path]
) -> None:
    words = ("--learning_rate=0.1,0.5,1.0",)
    for options, expected in (({}, [1, 1, 1]), ({}, [1, 1, 1]), ({"retry_failed": "true"}, [1, 2, 1])):
        made = define(*words, **options)
        trials.run(made, [str(stand_in())], lambda _: None)
        assert attempts(made) == expected
        assert [row["outcome"].split(":")[0] for row in report(made)["runs"]] == ["finished", "failed", "diverged"]


def test_a_longer_random_search_adds_to_the_shorter(
    define: Callable[..., Sweep], stand_in: Callable[..., Path]
) -> None:
    for count in (2, 4):
        made = define("--learning_rate=1e-3..1e-1", random=str(count))
        trials.run(made, [str(stand_in())], lambda _: None)
        assert attempts(made) == [1] * count


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ("--activation_function=gelu,relu2", ",gelu_new"),
        ("--learning_rate=0.1,0.2", ",0.001"),  # a linear scale, then a logarithmic one
        ("--weight_decay=0.001,0.1", ",0"),
        ("--grad_clip=0,1", ",0.5"),
        ("--vocab_size=300,400", ",none"),
    ],
)
def test_a_sweep_goes_on_with_another_value(
    define: Callable[..., Sweep], stand_in: Callable[..., Path], words: str, more: str
) -> None:
    fixed = ["--tokenizer=bpe", "--max_iters=20"]
    for typed, count in ((words, 2), (words + more, 3), (words + more, 3)):
        made = define(typed, *fixed)
        trials.run(made, [str(stand_in())], lambda _: None)
        assert [row["outcome"] for row in report(made)["runs"]] == ["finished"] * count
        assert attempts(made) == [1] * count


def test_a_folder_with_another_sweep_is_left_alone(define: Callable[..., Sweep], stand_in: Callable[..., Path]) -> None:
    trials.run(define("--learning_rate=0.1,0.2"), [str(stand_in())], lambda _: None)
    for other in (define("--learning_rate=0.1,0.3"), define("--learning_rate=0.1,0.2", "--dropout=0.1")):
        with pytest.raises(InputError, match="holds another sweep"):
            trials.run(other, [str(stand_in())], lambda _: None)


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000 + "\n", "[]\n", "5\n", "\0\n{}\n", '{"op_code": 99, "worker_id": "x"}\n', '{"op_code": 0}\n',
     None],
    ids=lambda content: str(content)[:20],
)  # fmt: skip
def test_a_journal_of_something_else_is_one_message(
    define: Callable[..., Sweep], stand_in: Callable[..., Path], content: str | None
) -> None:
    made = define("--learning_rate=0.1,0.2")
    made.folder.mkdir()
    if content is None:
        (made.folder / "journal.log").mkdir()
    else:
        (made.folder / "journal.log").write_text(content)
    with pytest.raises(InputError, match=r"journal\.log: is not a sweep's record"):
        trials.run(made, [str(stand_in())], lambda _: None)


@pytest.mark.parametrize(
    "noted", [{}, {"name": 5}, {"name": ["x"]}, {"name": "another"}, {"outcome": 5}, {"reported": "x"}], ids=str
)
def test_a_journal_with_trials_of_something_else_is_one_message(
    define: Callable[..., Sweep], stand_in: Callable[..., Path], noted: dict[str, Any]
) -> None:
    made, script = define("--learning_rate=0.1,0.2"), [str(stand_in())]
    trials.run(made, script, lambda _: None)
    named = {"name": names(made)[0]} if noted else {}
    study(made).enqueue_trial({"learning_rate": 0.1}, user_attrs=named | noted)
    with pytest.raises(InputError, match=r"journal\.log: is not a sweep's record"):
        trials.run(made, script, lambda _: None)


def test_a_longer_search_that_begins_beside_a_shorter_one_keeps_its_trials(define: Callable[..., Sweep]) -> None:
    short = storage.Storage(define("--learning_rate=1e-3..1e-1", random="2"))
    long = storage.Storage(define("--learning_rate=1e-3..1e-1", random="3"))
    claims = [short.claim(), short.claim(), short.claim()]
    assert [claim is not None for claim in claims] == [True, True, False]
    assert long.claim() is not None


def test_a_sweep_that_is_killed_at_its_start_keeps_its_folder(
    define: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trials are in the journal: another sweep must not take them for its own."""
    with monkeypatch.context() as patched:
        patched.setattr(optuna.Study, "enqueue_trial", killed)
        with pytest.raises(KeyboardInterrupt):
            storage.Storage(define("--learning_rate=0.1,0.2"))
    with pytest.raises(InputError, match="holds another sweep"):
        storage.Storage(define("--learning_rate=0.3,0.4"))
    assert storage.Storage(define("--learning_rate=0.1,0.2")).claim() is not None


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("seconds", ["0", "-1", "NaN", "Infinity", "null", '"x"', "[" * 5000, "pipe"])
def test_a_step_time_that_is_none_is_measured_again(define: Callable[..., Sweep], tmp_path: Path, seconds: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(STAND_IN.replace("DELAY", "0").replace('assert sys.argv[2:] == ["--resume"]', ""))
    made = define("--batch_size=4,8", "--max_time=1s", equal="time")
    made.folder.mkdir()
    if seconds == "pipe":
        os.mkfifo(made.folder / "seconds_per_step.json")
    else:
        (made.folder / "seconds_per_step.json").write_text(f'{{"batch_size=4": {seconds}}}')
    trials.run(made, [str(script)], lambda _: None)
    assert [row["steps"] for row in report(made)["runs"]] == [100, 100]


@pytest.mark.parametrize("kept", [0.3, 0.99, -1, None], ids=str)
def test_a_torn_line_of_the_journal_costs_that_line_alone(
    define: Callable[..., Sweep], stand_in: Callable[..., Path], kept: float | int | None
) -> None:
    """A full disk or a power cut leaves a part of a line; the next one must not be written behind it."""
    made, script = define("--learning_rate=0.1,0.2"), [str(stand_in())]
    trials.run(made, script, lambda _: None)
    journal = made.folder / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    last = next(number for number, line in enumerate(lines) if b'"RUNNING"' in line or b'"op_code":5' in line)
    torn = lines[last]
    if kept is None:  # the first line of a new journal
        last, torn = 0, lines[0]
        kept = 0.5
    at = kept if kept == -1 else max(1, int(len(torn) * kept))
    journal.write_bytes(b"".join(lines[:last]) + torn[:at])
    for _again in range(2):
        trials.run(made, script, lambda _: None)
    assert [row["outcome"] for row in report(made)["runs"]] == ["finished"] * 2


def test_a_folder_that_cannot_be_written_is_one_message(
    define: Callable[..., Sweep], stand_in: Callable[..., Path]
) -> None:
    made = define("--learning_rate=0.1,0.2")
    made.folder.write_text("a file")
    with pytest.raises(InputError, match=r"out_dir = .*: cannot be written"):
        trials.run(made, [str(stand_in())], lambda _: None)


def test_equal_time_gives_settings_with_the_same_work_the_same_steps(
    define: Callable[..., Sweep], tmp_path: Path
) -> None:
    """The error of a measurement would otherwise decide which learning rate trains longer. One that cannot train does
    not count.
    """
    script = tmp_path / "train.py"
    script.write_text(STAND_IN.replace("DELAY", "0").replace('assert sys.argv[2:] == ["--resume"]', ""))
    made, told = define("--learning_rate=0.5,0.1,0.2", "--max_time=1s", equal="time"), list[str]()
    trials.run(made, [str(script)], told.append)
    assert sorted(path.name for path in (made.folder / "recipes").glob("probe-*")) == [
        "probe-learning_rate-0.1.yaml",
        "probe-learning_rate-0.5.yaml",
    ]
    steps = {row["label"]: row["steps"] for row in report(made)["runs"]}
    assert steps["learning_rate=0.1"] == steps["learning_rate=0.2"] == 100
    assert told.count("measuring a step of 1 setting") == 2


def test_equal_time_measures_each_trials_step(define: Callable[..., Sweep], tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(STAND_IN.replace("DELAY", "0").replace('assert sys.argv[2:] == ["--resume"]', ""))
    made = define("--batch_size=4,8", "--max_time=2s", equal="time")
    trials.run(made, [str(script)], lambda _: None)
    assert [row["steps"] for row in report(made)["runs"]] == [200, 200], "100 steps a second, as the stand-in records"
    assert "2s each" in report(made)["equal"]


RUNNER = """
import sys
from pathlib import Path
from hfgpt.sweep import reading as sweep, training, trials
recipe, folder, script, *words = sys.argv[1:]
options = {"equal": "time"} if words else {}
try:
    trials.run(sweep.define(recipe, ["--learning_rate=0.1,0.2,0.3", *words], {"out_dir": folder, **options}), [script])
except training.Stopped as stopped:
    sys.exit(128 + stopped.number)
"""


def begin(made: Sweep, script: Path, *words: str) -> subprocess.Popen[bytes]:
    recipe = script.with_name("small.yaml")
    return subprocess.Popen([OWN_PROCESS, "-c", RUNNER, str(recipe), str(made.folder), str(script), *words])


def steps_of(made: Sweep, name: str) -> list[int]:
    """Return the steps in a trial's record, in the order in which they were written."""
    record = made.folder / "trials" / name / "metrics.jsonl"
    return [json.loads(line)["step"] for line in record.read_text().splitlines()] if record.exists() else []


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.e2e
def test_two_processes_share_the_trials(define: Callable[..., Sweep], stand_in: Callable[..., Path]) -> None:
    made, script = define("--learning_rate=0.1,0.2,0.3"), stand_in("0.01")
    both = [begin(made, script), begin(made, script)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert attempts(made) == [1, 1, 1]
    assert [row["outcome"] for row in report(made)["runs"]] == ["finished"] * 3
    assert len(study(made).get_trials()) == 3


@pytest.mark.e2e
def test_a_polite_stop_passes_on_and_the_same_command_goes_on(
    define: Callable[..., Sweep], stand_in: Callable[..., Path]
) -> None:
    made, script = define("--learning_rate=0.1,0.2,0.3"), stand_in("600 if step == 50 else 0")
    process, first = begin(made, script), names(made)[0]
    wait_for(lambda: 50 in steps_of(made, first))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert begin(made, stand_in()).wait(60) == 0
    assert attempts(made) == [2, 1, 1]
    steps = [step for step in steps_of(made, first) if step % 20]  # every 20th step has both a loss and an evaluation
    assert steps == [step for step in range(101) if step % 20], "resumed, not begun anew"


@pytest.mark.e2e
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="signals that Windows does not have")
def test_slurms_signal_stops_politely_and_nohup_is_heeded(
    define: Callable[..., Sweep], stand_in: Callable[..., Path]
) -> None:
    """SIGHUP is ignored where the sweep was started to ignore it; SIGUSR1 reaches the training like any other."""
    made, script = define("--learning_rate=0.1,0.2"), stand_in("600 if step == 50 else 0")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = begin(made, script)
    finally:
        signal.signal(signal.SIGHUP, before)
    first = names(made)[0]
    wait_for(lambda: 50 in steps_of(made, first))
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 128 + signal.SIGUSR1
    assert storage.training(made.folder / "locks" / f"{first}.json") is None
    assert begin(made, stand_in()).wait(60) == 0
    assert attempts(made) == [2, 1]


@pytest.mark.e2e
def test_a_stop_while_steps_are_measured_leaves_no_process(define: Callable[..., Sweep], tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    held = STAND_IN.replace("DELAY", "600 if step == 5 else 0").replace('assert sys.argv[2:] == ["--resume"]', "")
    script.write_text(held)
    made = define("--learning_rate=0.1,0.2,0.3", "--max_time=2s", equal="time")
    process, record = begin(made, script, "--max_time=2s"), made.folder / "probes" / names(made)[0] / "metrics.jsonl"
    wait_for(lambda: record.exists() and '"step": 5' in record.read_text())
    [measuring] = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert not measuring.is_running()
    script.write_text(held.replace("600", "0"))
    assert begin(made, script, "--max_time=2s").wait(60) == 0
    assert [row["outcome"] for row in report(made)["runs"]] == ["finished"] * 3


def test_a_signal_while_a_training_starts_reaches_it() -> None:
    with training.Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with signals.passed_on(process):
            assert process.wait(60) == -signal.SIGTERM
        with pytest.raises(training.Stopped):
            signals.check()


def test_a_trial_that_was_claimed_and_no_more_keeps_its_parameters(
    define: Callable[..., Sweep], stand_in: Callable[..., Path]
) -> None:
    """A sweep that was killed right after Optuna handed out a trial: the dashboard shows its values later."""
    made = define("--learning_rate=0.1,0.2")
    storage.Storage(made).study.ask()
    trials.run(made, [str(stand_in())], lambda _: None)
    assert [t.params for t in study(made).get_trials()] == [{"learning_rate": 0.1}, {"learning_rate": 0.2}]


def test_a_clock_that_is_set_leaves_a_training_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.note_training(tmp_path / "x.json", os.getpid())
    before = psutil.boot_time()
    for module in (psutil, psutil._psplatform):  # the public name, and what a process's start is counted from
        monkeypatch.setattr(module, "boot_time", lambda: before + 3600)
    running = storage.training(tmp_path / "x.json")
    assert running
    assert running.pid == os.getpid()


@pytest.mark.e2e
def test_a_training_that_outlives_its_sweep_is_waited_for(
    define: Callable[..., Sweep], stand_in: Callable[..., Path]
) -> None:
    made, script = define("--learning_rate=0.1,0.2,0.3"), stand_in("0.02")
    process = begin(made, script)
    wait_for(lambda: attempts(made)[0] == 1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert begin(made, stand_in()).wait(60) == 0
    assert [row["outcome"] for row in report(made)["runs"]] == ["finished"] * 3
    record = (made.folder / "trials" / names(made)[0] / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in record if "seconds" in line]
    assert steps == sorted(set(steps)), "never two trainings in one folder"


@pytest.mark.e2e
def test_real_trainings_are_swept_and_compared(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    tiny.pop("out_dir")
    recipe = write_recipe(tiny)
    done = run_script("sweep.py", recipe, "--learning_rate", "1e-3,1e-2", "--equal", "tokens", "--out_dir=both")
    assert done.returncode == 0, done.stderr
    assert "Of the learning rates" in done.stdout
    folder = recipe.with_name("both")
    data = json.loads((folder / "report.json").read_text())
    assert [row["outcome"] for row in data["runs"]] == ["finished", "finished"]
    assert all(row["sample"] and row["parameters"] for row in data["runs"])
    runs = [folder / "trials" / f"learning_rate-{rate}" for rate in (0.001, 0.01)]
    again = run_script("compare.py", *runs, "--out_dir=compared", "--no_samples")
    assert again.returncode == 0, again.stderr
    assert "learning_rate=0.01" in again.stdout


@pytest.mark.parametrize(
    ("words", "said"), [(["--learning_rate=1e-3"], "nothing to sweep"), (["--lr=1,2"], "lr: is not a parameter")]
)
def test_the_script_says_what_is_wrong(
    write_recipe: Callable[..., Path],
    run_script: Callable[..., subprocess.CompletedProcess[str]],
    words: list[str],
    said: str,
) -> None:
    answer = run_script("sweep.py", write_recipe(BASE), *words)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


# ------------------------------------------------------------------------------- seeds, isolation, edges and pruning

# Losses depend on rate and dropout, and slightly on the seed: the lowest is at the highest rate and at dropout 0.
SEEDED = """
import sys
from hfgpt import config
from hfgpt.runs.metrics import MetricsWriter

c = config.load(sys.argv[1])
c.run_dir.mkdir(parents=True, exist_ok=True)
(c.run_dir / "recipe.yaml").write_text(config.to_yaml(c))
writer = MetricsWriter(c.run_dir / "metrics.jsonl")
for step in range(0, c.max_iters + 1, 10):
    loss = 3 - 10 * c.learning_rate + c.dropout + (c.seed % 7) / 1000 + 1 / (1 + step)
    writer.write(step, train_loss=loss, val_loss=loss, seconds=step / 100)
"""


def seeded(tmp_path: Path) -> list[str]:
    script = tmp_path / "seeded.py"
    script.write_text(SEEDED)
    return [str(script)]


def test_every_setting_runs_with_every_seed_and_the_seeds_decide(define: Callable[..., Sweep], tmp_path: Path) -> None:
    made = define("--learning_rate=0.01,0.02", seeds="3")
    assert [(trial.values["learning_rate"], trial.seed) for trial in made.trials] == [
        (rate, seed) for seed in (1337, 1338, 1339) for rate in (0.01, 0.02)
    ]
    assert made.config(made.trials[3]).seed == 1338
    path = trials.run(made, seeded(tmp_path), lambda _: None)
    data = report(made)
    assert [(row["label"], row["seeds"]) for row in data["settings"]] == [
        ("learning_rate=0.02", 3),
        ("learning_rate=0.01", 3),
    ]
    assert data["settings"][1]["behind"]["mean"] == pytest.approx(0.1)
    assert data["settings"][1]["behind"]["distinct"]
    assert "learning_rate=0.02 is better than every other setting" in path.read_text()


def test_seeds_may_be_listed_and_added(define: Callable[..., Sweep]) -> None:
    listed = define("--learning_rate=0.01,0.02", "--seed=1,2")
    assert [trial.seed for trial in listed.trials] == [1, 1, 2, 2]
    assert names(define("--learning_rate=0.01,0.02", seeds="3"))[:4] == names(
        define("--learning_rate=0.01,0.02", seeds="2")
    )
    with pytest.raises(InputError, match="seeds: contradicts"):
        define("--learning_rate=0.01,0.02", "--seed=1,2", seeds="2")


@pytest.mark.parametrize(
    ("words", "options", "seeds"),
    [
        ((), {"seeds": "3"}, [1337, 1338, 1339]),
        (("--seed=1,2",), {}, [1, 2]),
        (("--dropout=0.1",), {"seeds": "2"}, [1337, 1338]),
    ],
)
def test_seeds_alone_measure_the_spread_of_the_recipe(
    define: Callable[..., Sweep], tmp_path: Path, words: tuple[str, ...], options: dict[str, str], seeds: list[int]
) -> None:
    made = define(*words, **options)
    assert [(trial.name, trial.label) for trial in made.trials] == [
        (f"small_seed-{seed}", f"small, seed={seed}") for seed in seeds
    ]
    text = trials.run(made, seeded(tmp_path), lambda _: None).read_text()
    [row] = report(made)["settings"]
    assert (row["label"], row["seeds"], row["behind"]) == ("small", len(seeds), None)
    assert f"- Over {len(seeds)} seeds the mean is {row['mean']:.4f}, with a 95% interval of {row['low']:.4f}" in text
    assert f"spread by {row['spread']:.4f} (standard deviation)" in text


def test_each_parameter_by_itself_and_what_to_try_beyond_the_edge(define: Callable[..., Sweep], tmp_path: Path) -> None:
    made = define("--learning_rate=0.01,0.02,0.04", "--dropout=0,0.1")
    text = trials.run(made, seeded(tmp_path), lambda _: None).read_text()
    data = report(made)
    by_value = {key: [(row["value"], round(row["loss"], 2)) for row in rows] for key, rows in data["isolation"].items()}
    assert by_value == {
        "learning_rate": [(0.01, 2.91), (0.02, 2.81), (0.04, 2.61)],
        "dropout": [(0, 2.61), (0.1, 2.71)],
    }
    assert data["try_next"] == {"learning_rate": [0.057, 0.08]}, "below a dropout of 0 there is nothing"
    assert "The best learning_rate, 0.04, lies at the edge of the values tried: try 0.057, 0.08 too." in text
    assert "| 0.02 | 2.8" in text
    assert "](isolation.png)" in text
    assert (made.folder / "isolation.png").stat().st_size > 10_000
    inside = define("--learning_rate=0.01,0.04,0.02", "--max_iters=50,100", out_dir=str(tmp_path / "other"))
    assert trials.run(inside, seeded(tmp_path), lambda _: None)
    assert "max_iters" in report(inside)["try_next"]


def test_hopeless_trials_are_pruned_when_asked(define: Callable[..., Sweep], tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(STAND_IN.replace("DELAY", "0.001 if c.learning_rate < 0.3 or step < 50 else 30"))
    words = "--learning_rate=" + ",".join(f"{0.1 + place / 100:g}" for place in range(5)) + ",0.4"
    made = define(words, prune="true")
    path = trials.run(made, [str(script)], lambda _: None)
    outcomes = [row["outcome"] for row in report(made)["runs"]]
    assert outcomes[:4] == ["finished"] * 4, "the first ones set the standard"
    assert outcomes[5].startswith("pruned at")
    assert "stopped early, which left out" in path.read_text()
    assert study(made).get_trials()[5].state.name == "PRUNED"
    without = define(words.replace("0.4", "0.25"), out_dir=str(tmp_path / "without"))
    trials.run(without, [str(script)], lambda _: None)
    assert {row["outcome"] for row in report(without)["runs"]} == {"finished"}


@pytest.mark.parametrize("count", [4, 5])
def test_a_sweep_that_is_too_small_to_prune_says_so(
    define: Callable[..., Sweep], stand_in: Callable[..., Path], count: int
) -> None:
    told: list[str] = []
    made = define("--learning_rate=" + ",".join(f"0.{place}1" for place in range(count)), prune="true")
    trials.run(made, [str(stand_in())], told.append)
    assert any("--prune stops nothing here" in line for line in told) is (count == 4)
