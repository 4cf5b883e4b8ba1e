"""The benchmarks' arithmetic, what they read and what they write; no test asserts a time."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = ROOT / "benchmarks"
sys.path.append(str(BENCHMARKS))

import bench  # noqa: E402
import peers  # noqa: E402
import profile_step  # noqa: E402
import rows  # noqa: E402
import scaling  # noqa: E402
import table  # noqa: E402
import watch  # noqa: E402


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run bench.py in its own process, without peers."""
    env = {key: value for key, value in os.environ.items() if key not in ("NANOGPT", "TEXT", "GPT2_TOKENIZER")}
    command = [sys.executable, str(BENCHMARKS / "bench.py"), *arguments]
    return subprocess.run(command, env={**env, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)


def setting(folder: Path) -> rows.Setting:
    """Return a setting without peers."""
    return rows.Setting(folder, None, None, None, "cpu", 1)


# ------------------------------------------------------------------------------------------------------------- figures


@given(
    st.floats(0.01, 100), st.floats(-3, 3), st.lists(st.integers(1, 10_000), min_size=2, max_size=6, unique=True)
)  # fmt: skip
def test_the_exponent_of_a_power_law_is_found(factor: float, power: float, values: list[int]) -> None:
    assert scaling.exponent(values, [factor * value**power for value in values]) == pytest.approx(power, abs=1e-6)


def test_a_summary_is_median_and_quartiles() -> None:
    assert table.summary([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3, "low": 2, "high": 4, "samples": 5}
    assert table.summary([7.0]) == {"median": 7, "low": 7, "high": 7, "samples": 1}


def test_a_ratio_is_above_one_where_ours_is_better() -> None:
    assert table.ratio(20, 10, lower_is_better=False) == 2  # tokens a second
    assert table.ratio(20, 10, lower_is_better=True) == 0.5  # seconds
    found = table.entry([1, 2, 9], [8, 4, 3], lower_is_better=True, flops=3)
    assert found["ratio"] == 4 / 2
    known = {"title": "", "unit": "", "goal": 1.0, "peer_name": "", "note": "", "dtypes": ["bfloat16", "float32"]}
    assert table.cells({**known, **found}, ceiling={"float32": 12e-9, "bfloat16": 24e-9})[6] == "25% / 100%"


def test_shares_of_a_step_add_up_to_one() -> None:
    own = {"aten::addmm": 50.0, "aten::gelu": 10.0, "aten::_scaled_dot_product_flash_attention_for_cpu": 15.0}
    own |= {"aten::_fused_adamw_": 5.0, "aten::native_dropout": 2.0, "aten::mm": 3.0}
    shares = profile_step.shares(own, data=5.0, whole=100.0)
    assert math.fsum(shares.values()) == pytest.approx(1)
    assert {name: round(share, 6) for name, share in shares.items()} == {
        "matrix products": 0.53, "attention": 0.15, "elementwise": 0.12, "optimizer": 0.05, "data": 0.05, "Python": 0.1,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ what the sides leave


NANOGPT_OUTPUT = """\
tokens per iteration will be: 768
step 0: train loss 4.1, val loss 4.1
iter 0: loss 4.1000, time 900.00ms, mfu -100.00%
iter 1: loss 4.0000, time 100.50ms, mfu -100.00%
\x00\xff garbage ] iter 9
iter 2: loss nan, time 99ms
iter three: loss 1, time 1ms
iter 3: loss 3.9000, time
iter 4: loss 3.9
step 5: train loss nan, val loss nan
saving checkpoint to out
iter 5: loss 3.8000, time 700.00ms, mfu 0.01%
iter 6: loss 3.7000, time 101.00ms, mfu 0.01%
"""


def test_iterations_of_nanogpt_without_those_that_evaluated() -> None:
    seconds = peers.nanogpt_steps(NANOGPT_OUTPUT.splitlines())
    assert seconds == pytest.approx([0.1005, 0.099, 0.101])


@given(st.lists(st.text()))
def test_no_output_of_a_peer_is_too_strange(lines: list[str]) -> None:
    assert all(math.isfinite(each) for each in peers.nanogpt_steps(lines))


def test_steps_of_ours_without_those_that_an_evaluation_lies_between(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"step": 0, "val_loss": 4.0, "seconds": 1.0}]
    lines += [{"step": step, "train_loss": 3.0, "seconds": 1 + step} for step in (1, 2, 4)]
    lines += [{"step": 4, "val_loss": 3.0, "seconds": 50}, {"step": 5, "train_loss": 3.0, "seconds": 60}]
    path = tmp_path / "metrics.jsonl"
    assert peers.records(path) == []
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "tr')  # a line being written
    assert peers.our_steps(peers.records(path)) == [1, 1]
    assert rows.trained(path, 5)
    assert not rows.trained(path, 6)


def test_both_sides_read_the_same_tokens(tmp_path: Path) -> None:
    from hfgpt.data.prepare import prepare

    tokens = peers.character_tokens("to be or not to be, " * 50, tmp_path)
    theirs = tmp_path / "nanoGPT" / "data" / tokens.nanogpt
    config = peers.SMALL.config(dataset=str(tokens.ours), tokenizer=str(tokens.ours / "tokenizer"))
    corpus = prepare(config, tmp_path / "cache")
    assert tokens.vocabulary == 8
    assert corpus.tokenizer.vocab_size == tokens.vocabulary
    assert (theirs / "train.bin").read_bytes() == (tokens.ours / "train.bin").read_bytes()
    assert len(corpus.train) == 900


def test_a_checkout_of_nanogpt_stays_as_it_is(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "config").mkdir(parents=True)
    for name in ("train.py", "model.py", "config/some.py"):
        (checkout / name).write_text(name)
    before = sorted(checkout.rglob("*"))
    folder = peers.home(checkout, tmp_path / "scratch")
    assert (folder / "train.py").read_text() == "train.py"
    assert (folder / "config" / "some.py").is_file()
    assert sorted(checkout.rglob("*")) == before
    with pytest.raises(FileNotFoundError, match="give a checkout of nanoGPT"):
        peers.home(tmp_path, tmp_path / "scratch")


# ------------------------------------------------------------------------------------------------------------- watching


def test_the_peers_can_have_the_same_allocator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")  # a variable of the user that neither side must see
    with_it = rows.Setting(tmp_path, None, None, None, "cpu", 1, allocator=True)
    for env, plain in ((with_it.bound, setting(tmp_path).bound), (with_it.unbound, setting(tmp_path).unbound)):
        assert env == plain | watch.KEEP_FREED_MEMORY
        assert not [name for name in plain if name.startswith("MALLOC_")]


def test_packages_beside_the_interpreter_stay_reachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without a package index they lie in a folder of their own."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "only_here.py").touch()
    program = "import only_here, hfgpt; print(hfgpt.__file__)"
    done = watch.run([sys.executable, "-c", program], watch.environment(1, tmp_path), cwd=tmp_path)
    assert done.lines == [f"{BENCHMARKS.parent / 'hfgpt' / '__init__.py'}\n"]


def test_a_command_is_watched_until_it_has_said_enough(tmp_path: Path) -> None:
    env = watch.environment(1, tmp_path)
    program = "import time\nfor i in range(3): print('line', i)\ntime.sleep(3600)"
    done = watch.run([sys.executable, "-c", program], env, until=lambda lines: len(lines) == 3)
    assert [line.strip() for line in done.lines] == ["line 0", "line 1", "line 2"]
    if sys.platform == "linux":
        assert done.peak_bytes


@pytest.mark.parametrize(
    ("program", "until"), [("print('so far'); raise SystemExit('no more')", None), ("print('no more')", bool)]
)
def test_a_command_that_ends_too_early_has_failed(program: str, until: Any, tmp_path: Path) -> None:
    stop = None if until is None else (lambda _: False)
    with pytest.raises(watch.Failed, match="no more"):
        watch.run([sys.executable, "-c", program], watch.environment(1, tmp_path), until=stop)


def test_every_side_is_bound_but_where_nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_PLACES", "{7}")
    bound, unbound = watch.environment(2, tmp_path), watch.environment(None, tmp_path)
    omp = {key: value for key, value in bound.items() if key.startswith("OMP_")}
    assert omp == {"OMP_PROC_BIND": "true", "OMP_NUM_THREADS": "2"}
    assert not any(key.startswith("OMP_") for key in unbound)


# ------------------------------------------------------------------------------------------------------- bench and page


def test_the_rows_have_names_and_are_listed() -> None:
    done = run_bench("--list")
    listed = [line.split()[0] for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert listed == [*(row.name for row in rows.ROWS), "scaling", "profile"]
    assert len(set(listed)) == len(listed)


@pytest.mark.e2e
def test_a_row_is_measured_and_written(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    done = run_bench("--only", "run_clm", "--quick", "--iterations", "3", "--json", str(path))
    assert done.returncode == 0, done.stderr
    results = json.loads(path.read_text())
    [row] = results["rows"]
    assert set(results) == {"machine", "versions", "ceiling", "rows", "scaling", "profile"}
    assert row["ours"]["samples"] == row["peer"]["samples"] == 3
    assert row["ratio"] == row["ours"]["median"] / row["peer"]["median"]
    assert row["ours"]["low"] <= row["ours"]["median"] <= row["ours"]["high"]
    assert row["flops"] > 0
    assert set(results["ceiling"]["gflops"]) == {"float32", "bfloat16"}
    assert os.uname().nodename not in path.read_text()
    assert row["title"] in done.stdout


def test_a_row_that_fails_says_so_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: rows.Setting) -> rows.Result:
        raise watch.Failed("exit code 1: out of paper")

    def alone(_: rows.Setting) -> rows.Result:
        return rows.Result([3.0], None, rows.NANOGPT_MISSING)

    made = (rows.Row(broken, "one", "s", "nanoGPT", 1), rows.Row(alone, "other", "s", "nanoGPT", 1))
    monkeypatch.setattr(bench, "ROWS", made)
    monkeypatch.setattr(watch, "script", lambda *_: {"gflops": {"float32": 1.0}, "memory_gbps": 1.0})
    results = bench.measure(setting(tmp_path), ["broken", "alone"], False, tmp_path / "results.json")
    shown = table.report(results, table.plain)
    assert re.search(r"one .*failed.*out of paper", shown)
    assert re.search(r"other .*3\.00 +– +– .*no peer", shown)
    # Rows measured by the same versions on the same machine stay when another row is measured again.
    again = bench.measure(setting(tmp_path), ["alone"], False, tmp_path / "results.json")
    assert [row["name"] for row in again["rows"]] == ["broken", "alone"]


def test_an_interruption_keeps_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def done(_: rows.Setting) -> rows.Result:
        return rows.Result([3.0], [6.0])

    def stopped(_: rows.Setting) -> rows.Result:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "ROWS", (rows.Row(done, "a", "s", "b", 1), rows.Row(stopped, "c", "s", "d", 1)))
    monkeypatch.setattr(watch, "script", lambda *_: {"gflops": {"float32": 1.0}, "memory_gbps": 1.0})
    bench.measure(setting(tmp_path), ["done", "stopped"], False, tmp_path / "results.json")
    assert [row["name"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]] == ["done"]


def test_a_trial_does_not_touch_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def done(_: rows.Setting) -> rows.Result:
        return rows.Result([3.0])

    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "ROWS", (rows.Row(done, "a", "s", "b", 1),))
    monkeypatch.setattr(watch, "script", lambda *_: {"gflops": {"float32": 1.0}, "memory_gbps": 1.0})
    trial = setting(tmp_path / "scratch")
    trial.quick = True
    assert bench.measure(trial, ["done"], False, None)["rows"]
    assert list(tmp_path.iterdir()) == []


def test_the_page_shows_what_was_measured() -> None:
    """`bench.py --report` after a measurement; the page always agrees with the files."""
    text = bench.PAGE.read_text(encoding="utf-8")
    saved = bench.measured_tables()
    assert table.page(text, saved) == text
