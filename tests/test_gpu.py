"""The command that checks hfgpt on a card: its arithmetic, and the command itself on a CPU. No card is needed here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import card_bench
import card_parts
import gpu
import on_card
import watch


def command(*words: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """Run benchmarks/gpu.py in its own process."""
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *words], capture_output=True, text=True, timeout=timeout
    )


def test_what_a_trace_says() -> None:
    """Two steps: a flash kernel in each, one wait in all, the card idle for 0.4 of the time."""
    kernels = [("flash_fwd_kernel", 0, 20), ("gemm", 20, 34), ("nll_loss", 70, 6)]
    events = [{"cat": "kernel", "name": name, "ts": ts, "dur": dur} for name, ts, dur in kernels]
    events += [{"cat": "kernel", "name": "flash_bwd_kernel", "ts": 100, "dur": 0}]
    events += [{"cat": "cuda_runtime", "name": name} for name in ("cudaLaunchKernel", "cudaStreamSynchronize")]
    seen = on_card.read_trace(events, 2)
    assert seen == {"kernels": 2.0, "flash": 1.0, "waits": 0.5, "idle": pytest.approx(0.4)}


def test_speed_is_that_of_the_second_half() -> None:
    """From one record to the next, without the time of an evaluation."""
    times = [(1, 10.0), (2, 15.0), (4, 25.0), (5, 26.0), (6, 27.5), (7, 29.0)]
    records = [
        {"step": step, "train_loss": 3.0, "seconds": seconds, "tokens_per_second": 1.0, "memory_bytes": 100 - step,
         "mfu": step / 100}
        for step, seconds in times
    ]  # fmt: skip
    records.insert(2, {"step": 2, "val_loss": 3.0, "seconds": 24.0})
    seen = card_bench.speed(records)
    assert seen == {"seconds": 1.5, "memory_bytes": 99, "mfu": 0.06}


def test_what_an_evaluation_and_a_checkpoint_take() -> None:
    """Steps of 1 s, evaluations of 3 s, and 2 s for export and checkpoint before the next step ends."""
    train = [(1, 2.0), (2, 3.0), (3, 9.0), (4, 10.0), (5, 16.0)]
    records = [{"step": step, "train_loss": 3.0, "seconds": seconds} for step, seconds in train]
    records.insert(0, {"step": 0, "val_loss": 4.0, "seconds": 1.0})
    records.insert(3, {"step": 2, "val_loss": 3.0, "seconds": 6.0})
    records.insert(6, {"step": 4, "val_loss": 2.0, "seconds": 13.0})
    assert card_bench.delays(records) == ([3.0, 3.0], [3.0, 3.0])


TRAIN = """
import sys, time
import model  # as it finds it when it is started itself
exec(open("configurator.py").read())
for step in range(0, 41, 5):
    print(f"iter {step}: loss 3.0, time 5.00ms, mfu 1.0%", flush=True)
    time.sleep(0.02)
"""


def test_nanogpts_speed_and_peak_are_read_beside_ours(tmp_path: Path) -> None:
    """Its train.py runs as it is, in its own folder and with its own arguments."""
    checkout = tmp_path / "checkout"
    (checkout / "config").mkdir(parents=True)
    (checkout / "train.py").write_text(TRAIN)
    (checkout / "model.py").write_text("")
    (checkout / "configurator.py").write_text("assert '--compile=True' in sys.argv[1:], sys.argv\n")
    bench = card_bench.Bench(tmp_path, "cpu", checkout, math.inf)
    ours = {"seconds": 0.01, "memory_bytes": 7 * 2**20}
    rows = {row.what: row for row in card_parts.beside(bench, card_bench.GPT2, True, "124M", ours)}
    assert rows["124M: nanoGPT"].seen == pytest.approx(4 * 16 * 5 / 0.02, rel=0.5)
    assert rows["124M: nanoGPT's peak memory"].seen == 0.0, "it ran on a CPU"
    assert rows["124M: of nanoGPT's peak"].wanted == "≤ 0.7"


def test_the_parts_are_listed() -> None:
    done = command("--list")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(gpu.PARTS)


def test_without_a_card_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    done = command("--json", str(tmp_path / "card.json"))
    assert done.returncode == 2
    assert "no CUDA card here" in done.stderr
    assert "torch 2." in done.stderr, "it may be a build without CUDA"
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_fails_is_told_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises; what its command printed is kept, since the card may be gone by then."""

    def broken(_bench: card_bench.Bench) -> Iterator[card_bench.Row]:
        yield card_bench.Row("so far", 1.0)
        raise AssertionError("no such kernel")

    def silent(bench: card_bench.Bench) -> Iterator[card_bench.Row]:
        yield card_bench.Row("its answer", bench.run("-c", "print('first'); raise SystemExit('second')").seconds)

    monkeypatch.setattr(gpu, "PARTS", {"broken": (broken, 1), "silent": (silent, 1)})
    bench = card_bench.Bench(tmp_path, "cpu", None, math.inf)
    first, second = (gpu.measure(name, bench) for name in gpu.PARTS)
    assert [row["what"] for row in first["rows"]] == ["so far"]
    assert first["error"] == "AssertionError: no such kernel"
    assert second["error"] == "Failed: exit code 1: second"
    assert [text.strip() for text in second["said"]] == ["first", "second"]


def test_no_program_takes_more_than_what_is_left_of_the_time(tmp_path: Path) -> None:
    """A program that hangs ends in time, and so do the processes that it has started in sessions of their own."""
    worker = "import time; print('here', flush=True); time.sleep(3600)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}], start_new_session=True)"
    bench = card_bench.Bench(tmp_path, "cpu", None, time.monotonic() + 3)
    with pytest.raises(watch.Failed, match=r"killed after [23] s: here"):
        bench.run("-c", program)
    assert not [each for each in psutil.process_iter(["cmdline"]) if worker in (each.info["cmdline"] or [])]


def test_a_trial_on_a_cpu_has_each_flag_once(tmp_path: Path) -> None:
    """Given twice, an argument is refused, and the trial would end before the parts that it is to try."""
    flags = ["--dataset=text", *card_bench.GPT2.flags]
    tiny = card_bench.Bench(tmp_path, "cpu", None, math.inf).cut(flags)
    assert {"--dataset=text", "--n_embd=16", "--dropout=0.0"} < set(tiny)
    names = [flag.partition("=")[0] for flag in tiny]
    assert len(names) == len(set(names)) == len(flags)
    assert card_bench.Bench(tmp_path, "cuda", None, math.inf).cut(flags) == flags


def test_parts_that_failed_are_tried_again_after_the_new_ones() -> None:
    parts = {
        "memory": {"error": "Failed", "again": False},
        "resume": {"error": "", "again": False},
        "fit": {"error": "", "again": True},
    }
    assert gpu.due(["memory", "resume", "fit", "profile"], parts) == ["fit", "profile", "memory"]


def test_what_is_measured_again_keeps_its_figures_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--again marks the parts; a missed goal is told at each call; nanoGPT, once it is there, runs beside."""
    values = iter([1.0, 2.0, 3.0, 4.0])

    def part(bench: card_bench.Bench) -> Iterator[card_bench.Row]:
        yield card_bench.Row("value", next(values), "", "≤ 0", False)

    monkeypatch.setattr(gpu, "PARTS", {"gpt2-12": (part, 1), "other": (part, 1)})
    monkeypatch.delenv("NANOGPT", raising=False)
    path = tmp_path / "card.json"

    def call(*words: str) -> list[float]:
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--device=cpu", f"--json={path}", *words])
        assert gpu.main() == 1, "a goal is missed"
        return [each["rows"][0]["seen"] for each in json.loads(path.read_text())["parts"].values()]

    assert call() == [1.0, 2.0]
    assert call() == [1.0, 2.0]
    assert call("--again", "--only", "other") == [1.0, 3.0]
    monkeypatch.setenv("NANOGPT", str(tmp_path))
    assert call() == [4.0, 3.0]
    capsys.readouterr()


@pytest.mark.parametrize(
    "lines",
    [
        ['{"a": 1}\n', "a warning at the end\n"],
        ["a warning {at the beginning}\n", "{\n", ' "a": 1\n', "}\n", "and one at the end\n"],
    ],
)
def test_json_among_warnings(lines: list[str]) -> None:
    """A card's machine prints more of them than this one."""
    assert watch.answer(lines) == {"a": 1}


def test_a_compilation_that_does_not_work_is_an_error(tmp_path: Path) -> None:
    """Otherwise an eager step would be measured as a compiled one."""
    program = "import warnings; warnings.warn('compile: true is left out, since ...'); print('went on')"
    with pytest.raises(watch.Failed, match="compile: true is left out"):
        card_bench.Bench(tmp_path, "cpu", None, math.inf).run("-c", program)


@pytest.mark.e2e
def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """On a CPU, as short as possible: a finished part is not measured again."""
    path = tmp_path / "cpu.json"
    done = command("--device=cpu", "--json", str(path), "--only", "memory")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["what"]: row for row in json.loads(path.read_text())["parts"]["memory"]["rows"]}
    assert {"plain: planned", "plain: simulated", "muon: planned", "checkpointing: planned"} < rows.keys()
    again = command("--device=cpu", "--json", str(path), "--only", "memory", "shared")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "memory: measured already" in again.stdout
    assert "✓ two processes on one card, no_compile: " in again.stdout


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_every_part_on_a_cpu(tmp_path: Path) -> None:
    """As short as possible, without nanoGPT: what is run and read is right, and no part raises."""
    path = tmp_path / "cpu.json"
    done = command("--device=cpu", "--json", str(path), timeout=1400)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads(path.read_text())["parts"]
    assert list(parts) == list(gpu.PARTS)
    assert all(part["rows"] for part in parts.values())
