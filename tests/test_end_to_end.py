"""The commands of the README, as a user types them: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hfgpt.runs import metrics
from hfgpt.train import checkpoint

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent

Runner = Callable[..., "subprocess.CompletedProcess[str]"]
LAUNCH = ("-m", "accelerate.commands.launch", "--quiet")
TWO = (*LAUNCH, "--config_file", str(ROOT / "accelerate_configs" / "multi_cpu.yaml"))


def series(folder: Path, key: str) -> list[float]:
    return metrics.series(metrics.read(folder / "metrics.jsonl"), key)[1]


def test_accelerate_launch_trains_and_the_folder_is_used(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], run_script: Runner
) -> None:
    """Train, sample, evaluate, and load with Transformers in a process that never imports this project."""
    recipe, folder = write_recipe(tiny), tiny["out_dir"]
    done = run_script("train.py", recipe, launch=LAUNCH)
    assert done.returncode == 0, done.stderr
    assert "validation loss 5.6" in done.stdout
    assert f"next: python {ROOT / 'scripts' / 'sample.py'} {folder}" in done.stdout

    texts = [run_script("sample.py", folder, "--prompt", "A", "--max_new_tokens=50", "--seed=1").stdout for _ in "12"]
    assert texts[0] == texts[1]
    assert len(texts[0]) > 40

    table = run_script("evaluate.py", folder, "--json")
    assert table.returncode == 0, table.stderr
    assert 5.0 < json.loads(table.stdout)["loss"] < 5.7

    program = f"""
import sys
from transformers import pipeline
text = pipeline("text-generation", model={folder!r})("A")[0]["generated_text"]
assert text.startswith("A") and len(text) > 5, text
assert not any(name.startswith("hfgpt") for name in sys.modules)
"""
    plain = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tiny["out_dir"])
    assert plain.returncode == 0, plain.stderr


def test_the_plain_command_uses_every_core(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], run_script: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch` alone would use one thread."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    cores = len(os.sched_getaffinity(0))
    recipe = write_recipe(tiny | {"max_iters": 2, "eval_only": True})
    assert f"float32, {cores} thread" in run_script("train.py", recipe, launch=LAUNCH).stdout
    assert "float32, 1 thread)" in run_script("train.py", recipe, "--cpu_threads=1", launch=LAUNCH).stdout


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_are_one_process(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], run_script: Runner, tmp_path: Path, optimizer: str
) -> None:
    """Losses, gradient norms and evaluations agree within 1e-5 over 20 steps; the learning rates are equal."""
    values = tiny | {"batch_size": 8, "gradient_accumulation_steps": 4, "max_iters": 20, "eval_interval": 10}
    values["optimizer"] = optimizer
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, launch in ((one, ()), (two, TWO)):
        done = run_script("train.py", write_recipe(values), f"--out_dir={folder}", launch=launch)
        assert done.returncode == 0, done.stderr
    assert "on 2 x cpu" in done.stdout
    assert series(two, "learning_rate") == series(one, "learning_rate")
    for key in ("train_loss", "grad_norm", "val_loss", "train_eval_loss"):
        assert series(two, key) == pytest.approx(series(one, key), rel=1e-5), key
    assert len(series(two, "train_loss")) == 20

    # Another number of processes continues with the same batches.
    longer = run_script("train.py", two, "--max_iters=24", "--lr_decay_iters=20", "--resume", launch=())
    assert longer.returncode == 0, longer.stderr
    again = run_script("train.py", one, "--max_iters=24", "--lr_decay_iters=20", "--resume", launch=TWO)
    assert again.returncode == 0, again.stderr
    assert series(two, "train_loss") == pytest.approx(series(one, "train_loss"), rel=1e-5)
    assert len(series(two, "train_loss")) == 24


# Set up before the training script: it reports which of gloo's threads are left at the end.
LEFT_BEHIND = """
import os
from hfgpt.train import loop as train
leave = train.leave
def watched(run, failed):
    names = lambda: [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
    before = [name for name in names() if "gloo" in name]
    leave(run, failed)
    print("gloo:", len(before) > 0, [name for name in names() if "gloo" in name])
train.leave = watched
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_gloos_threads_end_before_the_process_does(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], run_script: Runner, tmp_path: Path
) -> None:
    """A remaining thread holds objects that need the interpreter, and the process may never end."""
    program = tmp_path / "watched.py"
    program.write_text(LEFT_BEHIND + (ROOT / "scripts" / "train.py").read_text(), encoding="utf-8")
    done = run_script(program, write_recipe(tiny), launch=TWO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("gloo: True []") == 2


def start_training(recipe: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), str(recipe), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=recipe.parent)


def wait_for_step(folder: Path, step: int) -> None:
    """Wait until the run's record has this step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (folder / "metrics.jsonl").exists() and any(
            r["step"] >= step for r in metrics.read(folder / "metrics.jsonl")
        ):
            return
        time.sleep(0.02)
    raise AssertionError(f"{folder} never came to step {step}")


def test_kill_and_resume_is_exact(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], run_script: Runner, tmp_path: Path
) -> None:
    """SIGKILL in the middle, with dropout: the resumed run ends with the same bits."""
    recipe = write_recipe(tiny | {"dropout": 0.2, "max_iters": 300, "eval_interval": 20, "n_embd": 64})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_script("train.py", recipe, f"--out_dir={whole}").returncode == 0
    process = start_training(recipe, f"--out_dir={killed}")
    wait_for_step(killed, 50)
    process.kill()
    process.communicate()
    reached = max(record["step"] for record in metrics.read(killed / "metrics.jsonl"))
    assert 50 <= reached < 300, "it was to be killed on its way"
    done = run_script("train.py", recipe, f"--out_dir={killed}", "--resume")
    assert done.returncode == 0, done.stderr
    assert series(killed, "train_loss") == series(whole, "train_loss")
    theirs = load_file(whole / "model.safetensors")
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in load_file(killed / "model.safetensors").items())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_politely(tiny: dict[str, Any], write_recipe: Callable[..., Path], number: int) -> None:
    recipe = write_recipe(tiny | {"max_iters": 100_000, "eval_interval": 100_000})
    folder = Path(tiny["out_dir"])
    process = start_training(recipe)
    wait_for_step(folder, 5)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    [step] = checkpoint.steps(folder)
    assert f"stopping after step {step}" in output
    assert f"scripts/train.py {folder / 'recipe.yaml'} --resume" in output
    assert "Traceback" not in output


def test_finetuning_a_model_of_ones_own(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], run_script: Runner, tmp_path: Path
) -> None:
    """recipes/finetune.yaml, from a model that was trained here: its first loss is that model's last."""
    first = tiny | {"max_iters": 40, "block_size": 32, "learning_rate": 3e-3}
    assert run_script("train.py", write_recipe(first)).returncode == 0
    tuned = tmp_path / "tuned"
    done = run_script(
        "train.py", ROOT / "recipes" / "finetune.yaml", f"--init_from={tiny['out_dir']}", f"--out_dir={tuned}",
        f"--dataset={tiny['dataset']}", "--block_size=16", "--max_iters=4", "--eval_interval=2", "--warmup_iters=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = series(Path(tiny["out_dir"]), "val_loss"), series(tuned, "val_loss")
    assert after[0] < before[0] - 0.5
    assert after[-1] < after[0]
    assert json.loads((tuned / "config.json").read_text())["n_positions"] == 16


def test_production_cut_to_a_few_steps(
    tiny: dict[str, Any], write_recipe: Callable[..., Path], run_script: Runner, tmp_path: Path
) -> None:
    """recipes/production.yaml streams a local text with a byte-level BPE tokenizer, in a smaller shape."""
    learned = run_script("train.py", write_recipe(tiny | {"tokenizer": "bpe", "vocab_size": 300, "max_iters": 2}))
    assert learned.returncode == 0, learned.stderr
    folder = tmp_path / "production"
    done = run_script(
        "train.py", ROOT / "recipes" / "production.yaml", f"--dataset={tiny['dataset']}", "--dataset_config=none",
        f"--tokenizer={tiny['out_dir']}", f"--out_dir={folder}", "--n_layer=1", "--n_head=2", "--n_embd=16",
        "--block_size=32", "--batch_size=2", "--max_iters=4", "--warmup_iters=1", "--lr_decay_iters=4",
        "--eval_iters=1", "--no_compile", "--log_interval=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(series(folder, "train_loss")) == 4
