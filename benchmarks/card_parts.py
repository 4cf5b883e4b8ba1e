"""The parts of benchmarks/gpu.py: what a card must show.

In:  a :class:`Bench`: the device, a checkout of nanoGPT, the time that is left.
Out: rows of figures and goals, each as soon as it is known.

A part runs hfgpt's own scripts, each in its own process, or benchmarks/on_card.py for what needs torch.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import peers
import watch
from card_bench import GPT2, LOGGED, QUIET, STANDARD, Bench, Row, besides, card_name, gap, losses, speed, still
from peers import Shape
from watch import ROOT

COMPILED = {True: "--compile", False: "--no_compile"}
STEPS, WINDOW = 40, 5  # of a timed run, and between two of its records


# ----------------------------------------------------------------------------------------------------------- the parts


def profile(bench: Bench) -> Iterator[Row]:
    """Compiled steps of 124M as in the loop: speed, flash attention, waits, idle time, the head."""
    seen = bench.inside("loop")
    rate = GPT2.tokens / seen["seconds"]
    yield Row("124M compiled, the loop alone", rate, "tokens/s", "≥ 500000", bench.trial or rate >= 5e5)
    yield Row("its MFU", seen["mfu"], "", "≥ 0.45", bench.trial or seen["mfu"] >= 0.45)
    yield Row("kernels that the profiler sees a step", seen["kernels"], "", "> 0", bench.trial or seen["kernels"] > 0)
    yield Row("flash attention kernels a step", seen["flash"], "", "> 0", bench.trial or seen["flash"] > 0)
    yield Row("the host waits for the card a step", seen["waits"], "times", "≤ 1", bench.trial or seen["waits"] <= 1)
    yield Row("the card is idle", seen["idle"], "of a step", "< 0.05", bench.trial or seen["idle"] < 0.05)
    yield Row("the head alone", seen["head_seconds"] * 1e3, "ms")
    yield Row("a step without a wait", seen["error"] or "none", "", "none", not seen["error"])


def memory(cases: str, bench: Bench) -> Iterator[Row]:
    """Peak memory of a step of 124M, eager or compiled, against plan's formula and simulation."""
    for name, seen in bench.inside("memory", cases).items():
        yield Row(f"{name}: measured", seen["measured"] / 2**20, "MiB")
        for forecast in ("planned", "simulated"):
            if forecast in seen:
                off = (seen[forecast] / seen["measured"] - 1) * 100
                yield Row(f"{name}: {forecast}", off, "% off", "within 3", bench.trial or abs(off) <= 3)


def precision(dtype: str, bench: Bench) -> Iterator[Row]:
    """Standard recipe, 30 steps, eager and compiled: finite, and step 1 as on a CPU."""
    able = "float32" if bench.trial and dtype == "float16" else dtype  # a CPU, which tries the command, has no float16
    for compiled in (False, True):
        flags = [*still(), "--max_iters=30", f"--dtype={able}", COMPILED[compiled]]
        seen = losses(bench.train(f"standard-{dtype}-{compiled}", *flags))
        what = f"standard, {able}, {COMPILED[compiled].strip('-')}"
        yield Row(f"{what}: finite", sum(map(math.isfinite, seen)), "steps", "30", all(map(math.isfinite, seen)))
        off = abs(seen[0] - bench.first_loss)
        yield Row(f"{what}: step 1 against the CPU", off, "nats", "≤ 1e-3", off <= 1e-3)


def gpt2(size: int, bench: Bench) -> Iterator[Row]:
    """GPT-2 124M, eager and compiled, nanoGPT's train.py beside it, and the time that plan expects."""
    shape = replace(GPT2, batch_size=size)
    for compiled in (False, True):
        what = f"124M, micro-batch {size}, {'compiled' if compiled else 'eager'}"
        flags = [*bench.gpt2.flags, *shape.flags, "--warmup_iters=0", f"--max_iters={STEPS}", COMPILED[compiled]]
        flags += LOGGED
        ours = speed(bench.train(f"gpt2-{size}-{compiled}", *flags, f"--log_interval={WINDOW}", "--fit=never"))
        seconds = shape.tokens / ours["tokens_per_second"]
        yield Row(f"{what}: a step", seconds * 1e3, "ms")
        yield Row(f"{what}: tokens", ours["tokens_per_second"], "tokens/s")
        yield Row(f"{what}: MFU", ours.get("mfu", math.nan))
        yield Row(f"{what}: peak", ours["memory_bytes"] / 2**20, "MiB")
        off = (planned_seconds(bench, flags) / seconds - 1) * 100
        yield Row(f"{what}: time planned", off, "% off", "within 15", bench.trial or abs(off) <= 15)
        if bench.nanogpt:
            yield from beside(bench, shape, compiled, what, ours)


def planned_seconds(bench: Bench, flags: list[str]) -> float:
    """Return the seconds of a step that plan.py expects on this card."""
    said = bench.run(ROOT / "scripts" / "plan.py", *flags, "--gpu", "H100" if bench.trial else card_name(), "--json")
    return float(watch.answer(said.lines)["time"]["seconds_per_step"])


def beside(bench: Bench, shape: Shape, compiled: bool, what: str, ours: dict[str, float]) -> Iterator[Row]:
    """Run nanoGPT's own train.py on the same shape and tokens, at about the same time."""
    assert bench.nanogpt
    small = Shape(n_layer=2, n_head=2, n_embd=16, block_size=16, batch_size=4) if bench.trial else shape
    command = peers.nanogpt_command(small, bench.gpt2, STEPS + 1, bench.device, compiled, f"--log_interval={WINDOW}")
    # through a script that says the peak at the end; train.py itself is unmodified
    done = bench.run(ROOT / "benchmarks" / "peak.py", *command[1:], cwd=peers.home(bench.nanogpt, bench.scratch))
    at = [arrived for line, arrived in zip(done.lines, done.times, strict=True) if peers.ITERATION.match(line)]
    seconds = [(b - a) / WINDOW for a, b in itertools.pairwise(at)]
    theirs = small.tokens / statistics.median(seconds[len(seconds) // 2 :])
    yield Row(f"{what}: nanoGPT", theirs, "tokens/s")
    ratio = ours["tokens_per_second"] / theirs
    yield Row(f"{what}: of nanoGPT's speed", ratio, "x", "≥ 1.2", bench.trial or ratio >= 1.2)
    peak = watch.answer(done.lines)["peak_bytes"]
    yield Row(f"{what}: nanoGPT's peak memory", peak / 2**20, "MiB")
    share = ours["memory_bytes"] / max(peak, 1)
    yield Row(f"{what}: of nanoGPT's peak", share, "x", "≤ 0.7", bench.trial or share <= 0.7)


def documents(bench: Bench) -> Iterator[Row]:
    """document_mask: FlexAttention's block mask against the boolean mask of an eager step, and what it costs."""
    seen = bench.inside("masks")
    off = gap(seen["blocks"]["losses"], seen["boolean"]["losses"])
    yield Row("documents: block mask against boolean mask", off, "nats", "≤ 0.02", off <= 0.02)
    for name, what in (("boolean", "boolean mask, eager"), ("blocks", "block mask, compiled"), ("none", "none")):
        yield Row(f"documents: a step of 4 blocks with {what}", seen[name]["seconds"] * 1e3, "ms")


def fit(bench: Bench) -> Iterator[Row]:
    """`fit: auto` of 124M with memory capped at 6 GB: 20 steps without running out of memory, eager and compiled."""
    for flag in ("--no_compile", "--compile"):
        said, what = bench.inside("fits", flag), f"124M in 6 GB, {flag.strip('-')}"
        yield Row(f"{what}: steps", said["steps"], "", "20", said["steps"] == 20)
        yield Row(f"{what}: micro-batch", said["micro_batch"], "of 12")
        yield Row(f"{what}: peak", said["peak"] / 2**20, "MiB", "≤ 5722", said["peak"] <= 6e9)


def resume(bench: Bench) -> Iterator[Row]:
    """Stop at 20 and resume to 40, twice, with `deterministic`: the same bits as without a stop."""
    recipe = [str(STANDARD), "--max_iters=40", "--lr_decay_iters=40", "--warmup_iters=10", *QUIET, "--deterministic"]
    recipe = [word for word in recipe if not word.startswith("--eval_interval")] + ["--eval_interval=20"]
    bench.train("whole", *recipe)
    sums = [weights(bench.scratch / "whole" / "checkpoint-40")]
    for name in ("stopped-1", "stopped-2"):
        bench.train(name, *recipe)
        shutil.rmtree(bench.scratch / name / "checkpoint-40")  # as if it had been stopped after step 20
        bench.train(name, *recipe, "--resume")
        sums.append(weights(bench.scratch / name / "checkpoint-40"))
    yield Row("stopped at 20, resumed to 40: weights", len(set(sums)), "different", "1", len(set(sums)) == 1)


def weights(folder: Path) -> str:
    """Return a checksum of a checkpoint's weights."""
    state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return str(state["files"]["model.safetensors"]["sha256"])


def variants(bench: Bench) -> Iterator[Row]:
    """Muon and activation checkpointing: compiled equals eager."""
    shape = Shape(n_layer=6, n_head=6, n_embd=384, block_size=256, batch_size=8)
    for more in ("--optimizer=muon", "--activation_checkpointing"):
        flags = [*bench.gpt2.flags, *shape.flags, "--warmup_iters=0", "--max_iters=10", *LOGGED, "--log_interval=1"]
        runs = [losses(bench.train(f"variant{more}{on}", *flags, more, COMPILED[on])) for on in (False, True)]
        off = gap(*runs)
        yield Row(f"{more.strip('-')}: compiled against eager", off, "nats", "≤ 0.02", off <= 0.02)


def launched(bench: Bench) -> Iterator[Row]:
    """The launcher with one process: DDP and FSDP2, compiled, saved and resumed, against the plain run."""
    recipe = [*still(), "--compile", "--lr_decay_iters=14"]
    plain = losses(bench.train("plain", *recipe, "--max_iters=14"))
    for name, config in (("DDP", "multi_gpu"), ("FSDP2", "fsdp2")):
        if bench.trial and name == "FSDP2":  # which is DDP on a CPU
            continue
        file = ROOT / "accelerate_configs" / f"{config}.yaml"
        launch = ("-m", "accelerate.commands.launch", f"--config_file={file}", "--num_processes=1")
        launch += (str(ROOT / "scripts" / "train.py"),)
        seen = losses(bench.train(f"launched-{name}", *recipe, "--max_iters=10", launch=launch))
        off = gap(plain[:10], seen)
        yield Row(f"{name}, one process, compiled: against the plain run", off, "nats", "≤ 0.01", off <= 0.01)
        again = losses(bench.train(f"launched-{name}", *recipe, "--max_iters=14", "--resume", launch=launch))
        off = gap(plain, again)
        yield Row(f"{name}: resumed after step 10, to step 14", off, "nats", "≤ 0.01", off <= 0.01)


def shared(bench: Bench) -> Iterator[Row]:
    """Two gloo processes on one card against one process."""
    recipe = [*still(), "--max_iters=6", "--dtype=float32", "--no_compile"]
    one = losses(bench.train("one", *recipe))
    launch = ("-m", "torch.distributed.run", "--nproc_per_node=2", ROOT / "benchmarks" / "on_card.py", "train")
    off = gap(one, losses(bench.train("two", *recipe, launch=launch)))
    yield Row("two processes on one card", off, "nats", "≤ 1e-3", off <= 1e-3)


def beyond(bench: Bench) -> Iterator[Row]:
    """Saving, exporting, evaluating and sampling 124M, in seconds and as a share of the time."""
    flags = [*bench.gpt2.flags, *GPT2.flags, "--warmup_iters=0", "--max_iters=40", "--eval_interval=20"]
    began = time.perf_counter()
    records = bench.train("beyond", *flags, "--eval_iters=2", "--log_interval=1", "--fit=never", "--no_compile")
    whole = time.perf_counter() - began
    seconds = besides(records, 64 if bench.trial else GPT2.tokens)
    yield Row("124M, three evaluations and two checkpoints in 40 steps", seconds, "s")
    yield Row("the whole command", whole, "s")
    folder = bench.scratch / "beyond"
    for name, words in (("sample.py", ["--max_new_tokens=200"]), ("evaluate.py", ["--json"])):
        began = time.perf_counter()
        bench.run(ROOT / "scripts" / name, folder, *words, f"--device={bench.device}")
        yield Row(f"{name} of 124M, the whole command", time.perf_counter() - began, "s")


def whole(bench: Bench) -> Iterator[Row]:
    """The standard recipe to its end: validation loss, seconds (nanoGPT: 1.4697, about 3 min on an A100)."""
    few = ["--max_iters=4", "--warmup_iters=0", "--eval_iters=1", "--log_interval=1"] if bench.trial else []
    began = time.perf_counter()
    records = bench.train("standard", str(STANDARD), *few)
    best = min(line["val_loss"] for line in records if "val_loss" in line)
    yield Row("standard: best validation loss", best, "nats", "≤ 1.4697", bench.trial or best <= 1.4697)
    yield Row("standard: the whole command", time.perf_counter() - began, "s")
    share = besides(records, 64 if bench.trial else 64 * 256) / max(line["seconds"] for line in records)
    yield Row("standard: evaluations and checkpoints", share, "of the time", "< 0.01", bench.trial or share < 0.01)


Part = Callable[[Bench], Iterator[Row]]
# With the seconds that it should take on an H100, compilation included: assumed, since no card has run it yet. The most
# telling ones come first.
PARTS: dict[str, tuple[Part, int]] = {
    "profile": (profile, 110),
    "memory": (functools.partial(memory, "eager"), 60),
    "resume": (resume, 80),
    "gpt2-12": (functools.partial(gpt2, 12), 240),
    "shared": (shared, 45),
    "bfloat16": (functools.partial(precision, "bfloat16"), 100),
    "launched": (launched, 200),
    "documents": (documents, 90),
    "fit": (fit, 220),
    "whole": (whole, 150),
    "float16": (functools.partial(precision, "float16"), 80),
    "float32": (functools.partial(precision, "float32"), 80),
    "memory-compiled": (functools.partial(memory, "compiled"), 150),
    "beyond": (beyond, 80),
    "variants": (variants, 140),
    "gpt2-32": (functools.partial(gpt2, 32), 240),
}
