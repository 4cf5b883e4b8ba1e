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
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import peers
import watch
from card_bench import GPT2, LOGGED, QUIET, STANDARD, Bench, Row, card_name, delays, gap, losses, speed, still
from peers import Shape
from watch import ROOT

from hfgpt.config import load

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
    passes, flash = 2 * GPT2.n_layer, seen["flash"]  # forward and backward
    yield Row("flash attention kernels a step", flash, "", f"≥ {passes}", bench.trial or flash >= passes)
    yield Row("the host waits for the card a step", seen["waits"], "times", "≤ 1", bench.trial or seen["waits"] <= 1)
    yield Row("the card is idle", seen["idle"], "of a step", "< 0.05", bench.trial or seen["idle"] < 0.05)
    yield Row("the head alone", seen["head_seconds"] * 1e3, "ms")
    yield Row("the head's share", seen["head_seconds"] / seen["seconds"], "of a step")
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
    """Standard recipe, 30 steps, eager and compiled: finite, step 1 as on a CPU, and it learns."""
    runs = []
    able = "float32" if bench.trial and dtype == "float16" else dtype  # a CPU, which tries the command, has no float16
    for compiled in (False, True):
        flags = [*still(), "--max_iters=30", f"--dtype={able}", COMPILED[compiled]]
        seen = losses(bench.train(f"standard-{dtype}-{compiled}", *flags))
        what = f"standard, {able}, {COMPILED[compiled].strip('-')}"
        yield Row(f"{what}: finite", sum(map(math.isfinite, seen)), "steps", "30", all(map(math.isfinite, seen)))
        off = abs(seen[0] - bench.first_loss)
        yield Row(f"{what}: step 1 against the CPU", off, "nats", "≤ 1e-3", off <= 1e-3)
        learnt = seen[0] - seen[-1]  # float16 could leave out every update, and all its losses would be finite
        yield Row(f"{what}: learnt", learnt, "nats", "≥ 1", bench.trial or learnt >= 1)
        runs.append(seen)
    off = gap(*runs)
    yield Row(f"standard, {able}: compiled against eager", off, "nats", "≤ 0.05", off <= 0.05)


def gpt2(size: int, bench: Bench) -> Iterator[Row]:
    """GPT-2 124M, eager and compiled, nanoGPT's train.py beside it, and the time that plan expects."""
    shape = replace(GPT2, batch_size=size)
    for compiled in (False, True):
        what = f"124M, micro-batch {size}, {'compiled' if compiled else 'eager'}"
        flags = [*bench.gpt2.flags, *shape.flags, "--warmup_iters=0", f"--max_iters={STEPS}", COMPILED[compiled]]
        flags += LOGGED
        ours = speed(bench.train(f"gpt2-{size}-{compiled}", *flags, f"--log_interval={WINDOW}", "--fit=never"))
        seconds = ours["seconds"]
        yield Row(f"{what}: a step", seconds * 1e3, "ms")
        yield Row(f"{what}: tokens", shape.tokens / seconds, "tokens/s")
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
    theirs = statistics.median(seconds[len(seconds) // 2 :])
    yield Row(f"{what}: nanoGPT", small.tokens / theirs, "tokens/s")
    ratio = theirs / ours["seconds"]
    yield Row(f"{what}: of nanoGPT's speed", ratio, "x", "≥ 1.2", bench.trial or ratio >= 1.2)
    peak = watch.answer(done.lines)["peak_bytes"]
    yield Row(f"{what}: nanoGPT's peak memory", peak / 2**20, "MiB")
    share = ours["memory_bytes"] / max(peak, 1)
    yield Row(f"{what}: of nanoGPT's peak", share, "x", "≤ 0.7", bench.trial or share <= 0.7)


def documents(bench: Bench) -> Iterator[Row]:
    """document_mask: FlexAttention's block mask against the boolean mask of an eager step, and what it costs."""
    seen = bench.inside("masks")
    off, without = seen["blocks"]["off"], seen["none"]["off"]
    what = "documents: gradients of attention, against a boolean mask"
    yield Row(f"{what}, with a block mask", off, "of their norm", "≤ 0.1", off <= 0.1)
    wanted = bench.trial or without >= 3 * off  # otherwise the row above shows nothing
    yield Row(f"{what}, with none", without, "of their norm", f"≥ {3 * off:.2g}", wanted)
    for name, mask in (("boolean", "boolean mask, eager"), ("blocks", "block mask, compiled"), ("none", "none")):
        yield Row(f"documents: a step of 4 blocks with {mask}", seen[name]["seconds"] * 1e3, "ms")


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
    """Muon, activation checkpointing and `deterministic`: compiled equals eager on a text that is learnt."""
    for more in ("--optimizer=muon", "--activation_checkpointing", "--deterministic"):
        flags = [*still(), "--max_iters=10", more]
        runs = [losses(bench.train(f"variant{more}{on}", *flags, COMPILED[on])) for on in (False, True)]
        off = gap(*runs)
        yield Row(f"{more.strip('-')}: compiled against eager", off, "nats", "≤ 0.02", off <= 0.02)


def launched(bench: Bench) -> Iterator[Row]:
    """The launcher with one process: DDP and FSDP2, compiled, saved and resumed, against the plain run."""
    recipe = [*still(), "--compile", "--lr_decay_iters=14"]
    plain = losses(bench.train("plain", *recipe, "--max_iters=14"))
    for name, config in (("DistributedDataParallel", "multi_gpu"), ("FSDPModule", "fsdp2")):
        if bench.trial and name == "FSDPModule":  # which is DDP on a CPU
            continue
        file = ROOT / "accelerate_configs" / f"{config}.yaml"
        launch = ("-m", "accelerate.commands.launch", f"--config_file={file}", "--num_processes=1", *ON_CARD)
        records, said = bench.launch(f"launched-{name}", launch, *recipe, "--max_iters=10")
        yield wrapped(said, name)
        off = gap(plain[:10], losses(records))
        yield Row(f"{name}, one process, compiled: against the plain run", off, "nats", "≤ 0.01", off <= 0.01)
        again, _ = bench.launch(f"launched-{name}", launch, *recipe, "--max_iters=14", "--resume")
        off = gap(plain, losses(again))
        yield Row(f"{name}: resumed after step 10, to step 14", off, "nats", "≤ 0.01", off <= 0.01)


ON_CARD = (ROOT / "benchmarks" / "on_card.py", "train")  # scripts/train.py, wrapped even with one process


def wrapped(said: list[str], name: str) -> Row:
    """Return the wrapper that the run's output names."""
    seen = next((json.loads(line)["wrapper"] for line in said if line.startswith('{"wrapper"')), "none")
    return Row("the model is wrapped by", seen, "", name, seen == name)


def shared(bench: Bench) -> Iterator[Row]:
    """Two gloo processes on one card against one process, eager and compiled."""
    recipe = [*still(), "--max_iters=6", "--dtype=float32"]
    launch = ("-m", "torch.distributed.run", "--nproc_per_node=2", *ON_CARD, "--gloo")
    one = losses(bench.train("one", *recipe, "--no_compile"))
    for compiled in (False,) if bench.trial else (False, True):
        records, said = bench.launch(f"two{compiled}", launch, *recipe, COMPILED[compiled])
        yield wrapped(said, "DistributedDataParallel")
        off = gap(one, losses(records))
        what = f"two processes on one card, {COMPILED[compiled].strip('-')}"
        yield Row(what, off, "nats", "≤ 1e-3", off <= 1e-3)


def beyond(bench: Bench) -> Iterator[Row]:
    """Saving, exporting, evaluating and sampling 124M: seconds, and the share that production would lose to them."""
    flags = [*bench.gpt2.flags, *GPT2.flags, "--warmup_iters=0", "--max_iters=41", "--eval_interval=20"]
    began = time.perf_counter()
    records = bench.train("beyond", *flags, f"--eval_iters={EVALUATED}", "--log_interval=1", "--fit=never", *EAGER)
    whole = time.perf_counter() - began
    evaluations, afterwards = delays(records)
    evaluation, saving = statistics.median(evaluations), max(afterwards) - speed(records)["seconds"]
    yield Row(f"124M, an evaluation of {EVALUATED} batches of each split", evaluation, "s")
    yield Row("124M, the loop's delay by an export and a checkpoint", saving, "s", "< 0.3", bench.trial or saving < 0.3)
    recipe = load(str(ROOT / "recipes" / "production.yaml"), [])
    interval = recipe.eval_interval * recipe.tokens_per_iter / GOAL
    share = (evaluation * recipe.eval_iters / EVALUATED + saving) / interval
    what = f"production: evaluations and checkpoints, beside steps at {GOAL:,.0f} tokens/s"
    yield Row(what, share, "of the time", "< 0.01", bench.trial or share < 0.01)
    yield Row("the whole command", whole, "s")
    folder = bench.scratch / "beyond"
    for name, words in (("sample.py", ["--max_new_tokens=200"]), ("evaluate.py", ["--json"])):
        began = time.perf_counter()
        bench.run(ROOT / "scripts" / name, folder, *words, f"--device={bench.device}")
        yield Row(f"{name} of 124M, the whole command", time.perf_counter() - began, "s")


EVALUATED = 3  # batches of each split: as many blocks as the validation split has
EAGER = ("--no_compile",)
GOAL = 5e5  # tokens/s


def whole(bench: Bench) -> Iterator[Row]:
    """The standard recipe to its end, and nanoGPT's train.py at the same work: validation losses and seconds."""
    few = ["--max_iters=4", "--warmup_iters=0", "--eval_iters=1", "--log_interval=1"] if bench.trial else []
    began = time.perf_counter()
    records = bench.train("standard", str(STANDARD), *few)
    ours = time.perf_counter() - began
    best = min(line["val_loss"] for line in records if "val_loss" in line)
    yield Row("standard: best validation loss", best, "nats", "≤ 1.4697", bench.trial or best <= 1.4697)
    yield Row("standard: the whole command", ours, "s")
    if bench.nanogpt:
        theirs = nanogpt_standard(bench)
        yield Row("standard's shape and steps: nanoGPT, the whole command", theirs, "s")
        yield Row("standard: of nanoGPT's time", ours / theirs, "x", "< 1", bench.trial or ours < theirs)


def nanogpt_standard(bench: Bench) -> float:
    """Train nanoGPT as its config/train_shakespeare_char.py does, on the same text; return the command's seconds."""
    assert bench.nanogpt
    tokens = peers.character_tokens(peers.read_text(None), bench.scratch)
    config = load(str(STANDARD), [])
    shape = Shape(*(getattr(config, field.name) for field in fields(Shape)))
    more = [f"--eval_interval={config.eval_interval}", f"--eval_iters={config.eval_iters}", "--log_interval=10"]
    more += ["--learning_rate=1e-3", "--min_lr=1e-4", "--beta2=0.99", "--warmup_iters=100", "--lr_decay_iters=5000"]
    more += ["--always_save_checkpoint=False"]
    steps = 4 if bench.trial else config.max_iters + 1
    command = peers.nanogpt_command(shape, tokens, steps, bench.device, not bench.trial, *more)
    began = time.perf_counter()
    bench.run(*command[1:], cwd=peers.home(bench.nanogpt, bench.scratch))
    return time.perf_counter() - began


Part = Callable[[Bench], Iterator[Row]]
# With the seconds that it should take on an H100, compilation included: assumed, since no card has run it yet. The most
# telling ones come first.
PARTS: dict[str, tuple[Part, int]] = {
    "profile": (profile, 110),
    "memory": (functools.partial(memory, "eager"), 60),
    "resume": (resume, 80),
    "gpt2-12": (functools.partial(gpt2, 12), 240),
    "shared": (shared, 80),
    "bfloat16": (functools.partial(precision, "bfloat16"), 100),
    "float16": (functools.partial(precision, "float16"), 80),
    "launched": (launched, 200),
    "documents": (documents, 90),
    "fit": (fit, 220),
    "whole": (whole, 270),
    "beyond": (beyond, 80),
    "float32": (functools.partial(precision, "float32"), 80),
    "memory-compiled": (functools.partial(memory, "compiled"), 150),
    "variants": (variants, 200),
    "gpt2-32": (functools.partial(gpt2, 32), 240),
}
BESIDE = ("gpt2-12", "gpt2-32", "whole")  # they run nanoGPT too, if there is a checkout of it
