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
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import peers
import watch
from peers import Shape, Tokens
from watch import ROOT

GPT2 = Shape(n_layer=12, n_head=12, n_embd=768, block_size=1024, batch_size=12)
STANDARD = ROOT / "recipes" / "standard.yaml"
LOGGED = ["--eval_interval=100000", "--eval_iters=1"]
QUIET = [*LOGGED, "--log_interval=1", "--sample_prompt="]  # for a recipe; random tokens are not sampled anyway
# On a CPU, which only tries the command itself, a model that trains in a second.
TINY = {"--n_layer": 2, "--n_head": 2, "--n_embd": 16, "--block_size": 16, "--batch_size": 4}
COMPILED = {True: "--compile", False: "--no_compile"}
STEPS, WINDOW = 40, 5  # of a timed run, and between two of its records


@dataclass
class Row:
    """One figure: its name, its value, its goal, and whether it meets it; None without a goal."""

    what: str
    seen: float | str
    unit: str = ""
    wanted: str = ""
    holds: bool | None = None


@dataclass
class Bench:
    """Where the parts run, and on which device."""

    scratch: Path
    device: str
    nanogpt: Path | None
    deadline: float  # time.monotonic() at which everything is to end

    @property
    def trial(self) -> bool:
        """Whether this is a CPU, on which the parts are cut to a minimum."""
        return self.device == "cpu"

    def run(self, *command: str | Path, cwd: Path = ROOT) -> watch.Finished:
        """Run a Python program until it ends, or until all time is used up.

        A compilation that does not work is an error, and so are training's other warnings about `compile`.
        """
        env = watch.environment(None, self.scratch) | {"HFGPT_LANG": "en", "PYTHONWARNINGS": "error:compile"}
        return watch.run([sys.executable, *command], env, cwd, limit=self.deadline - time.monotonic())

    def train(self, name: str, *flags: str, launch: tuple[str | Path, ...] = ()) -> list[dict[str, Any]]:
        """Run scripts/train.py with these arguments in its own folder; return its records."""
        folder = self.scratch / name
        program = launch or (ROOT / "scripts" / "train.py",)
        self.run(*program, *self.cut(flags), f"--device={self.device}", f"--out_dir={folder}")
        return peers.records(folder / "metrics.jsonl")

    def cut(self, flags: Sequence[str]) -> list[str]:
        """Return the arguments; on a CPU with a tiny shape in place of theirs."""
        if not self.trial:
            return list(flags)
        return [flag for flag in flags if flag.partition("=")[0] not in TINY] + [f"{k}={v}" for k, v in TINY.items()]

    def inside(self, name: str, *words: str) -> dict[str, Any]:
        """Return what on_card.py measures in one process."""
        done = self.run(ROOT / "benchmarks" / "on_card.py", name, f"--device={self.device}", *words)
        seen: dict[str, Any] = watch.answer(done.lines)
        return seen

    @functools.cached_property
    def gpt2(self) -> Tokens:
        """Random tokens of GPT-2's vocabulary, for both sides: arithmetic and memory do not depend on the text.

        nanoGPT then takes its own vocabulary of 50,304, which is faster on a card.
        """
        drawn = np.random.default_rng(0).integers(peers.GPT2_VOCABULARY, size=(2, 400_000)).astype(np.uint16)
        names = [f"<{i}>" for i in range(peers.GPT2_VOCABULARY)]
        tokens = peers.write_tokens(
            self.scratch, "gpt2", drawn[0], drawn[1][: 40 * GPT2.block_size], names
        )  # few, since evaluate.py reads all
        (self.scratch / "nanoGPT" / "data" / tokens.nanogpt / "meta.pkl").unlink()
        return tokens

    @functools.cached_property
    def first_loss(self) -> float:
        """The standard recipe's first loss on a CPU, in float32."""
        folder = self.scratch / "standard-cpu"
        flags = [*self.cut(still()), "--device=cpu", "--dtype=float32", "--max_iters=1", f"--out_dir={folder}"]
        self.run(ROOT / "scripts" / "train.py", *flags)
        return losses(peers.records(folder / "metrics.jsonl"))[0]


def still() -> list[str]:
    """Return the standard recipe without what would make two runs of it differ."""
    return [str(STANDARD), "--dropout=0", "--warmup_iters=0", *QUIET]


def losses(records: list[dict[str, Any]]) -> list[float]:
    """Return the training losses, in order."""
    return [line["train_loss"] for line in records if "train_loss" in line]


def speed(records: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median speed of the second half, when the model is compiled and warm, and the peak memory."""
    steps = [line for line in records if "tokens_per_second" in line]
    late = steps[len(steps) // 2 :]
    rate = statistics.median(line["tokens_per_second"] for line in late)
    out = {"tokens_per_second": rate, "memory_bytes": max(line["memory_bytes"] for line in steps)}
    if mfu := [line["mfu"] for line in late if "mfu" in line]:
        out["mfu"] = statistics.median(mfu)
    return out


def gap(a: list[float], b: list[float]) -> float:
    """Return the largest difference of two runs' losses."""
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


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


def memory(bench: Bench) -> Iterator[Row]:
    """Peak memory of an eager step of 124M against plan's formula and simulation."""
    for name, seen in bench.inside("memory").items():
        yield Row(f"{name}: measured", seen["measured"] / 2**20, "MiB")
        for forecast in ("planned", "simulated"):
            if forecast in seen:
                off = (seen[forecast] / seen["measured"] - 1) * 100
                yield Row(f"{name}: {forecast}", off, "% off", "within 3", bench.trial or abs(off) <= 3)


def precision(dtype: str, bench: Bench) -> Iterator[Row]:
    """Standard recipe, 30 steps, eager and compiled: finite, and step 1 as on a CPU."""
    for compiled in (False, True):
        flags = [*still(), "--max_iters=30", f"--dtype={dtype}", COMPILED[compiled]]
        seen = losses(bench.train(f"standard-{dtype}-{compiled}", *flags))
        bound = 1e-3 if dtype == "float32" else 2e-2
        what = f"standard, {dtype}, {COMPILED[compiled].strip('-')}"
        yield Row(f"{what}: finite", sum(map(math.isfinite, seen)), "steps", "30", all(map(math.isfinite, seen)))
        off = abs(seen[0] - bench.first_loss)
        yield Row(f"{what}: step 1 against the CPU", off, "nats", f"≤ {bound:g}", off <= bound)


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


@functools.cache
def card_name() -> str:
    """Return the card's name by torch; "" without one."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def planned_seconds(bench: Bench, flags: list[str]) -> float:
    """Return the seconds of a step that plan.py expects on this card."""
    said = bench.run(ROOT / "scripts" / "plan.py", *flags, "--gpu", "H100" if bench.trial else card_name(), "--json")
    return float(watch.answer(said.lines)["time"]["seconds_per_step"])


def beside(bench: Bench, shape: Shape, compiled: bool, what: str, ours: dict[str, float]) -> Iterator[Row]:
    """Run nanoGPT's own train.py on the same shape and tokens, at about the same time."""
    assert bench.nanogpt
    small = Shape(n_layer=2, n_head=2, n_embd=16, block_size=16, batch_size=4) if bench.trial else shape
    command = peers.nanogpt_command(small, bench.gpt2, STEPS + 1, bench.device, compiled, f"--log_interval={WINDOW}")
    done = bench.run(*command[1:], cwd=peers.home(bench.nanogpt, bench.scratch))
    at = [arrived for line, arrived in zip(done.lines, done.times, strict=True) if peers.ITERATION.match(line)]
    seconds = [(b - a) / WINDOW for a, b in itertools.pairwise(at)]
    theirs = small.tokens / statistics.median(seconds[len(seconds) // 2 :])
    yield Row(f"{what}: nanoGPT", theirs, "tokens/s")
    ratio = ours["tokens_per_second"] / theirs
    yield Row(f"{what}: of nanoGPT's speed", ratio, "x", "≥ 1.2", bench.trial or ratio >= 1.2)


def documents(bench: Bench) -> Iterator[Row]:
    """document_mask: FlexAttention's block mask against the boolean mask of an eager step, and what it costs."""
    seen = bench.inside("masks")
    off = gap(seen["blocks"]["losses"], seen["boolean"]["losses"])
    yield Row("documents: block mask against boolean mask", off, "nats", "≤ 0.02", off <= 0.02)
    for name, what in (("boolean", "boolean mask, eager"), ("blocks", "block mask, compiled"), ("none", "none")):
        yield Row(f"documents: a step of 4 blocks with {what}", seen[name]["seconds"] * 1e3, "ms")


def fit(bench: Bench) -> Iterator[Row]:
    """`fit` with memory capped: 20 steps without running out of memory, eager and compiled."""
    for flag in ("--no_compile", "--compile"):
        said = bench.inside("fits", flag)
        yield Row(f"fit, {flag.strip('-')}: steps in 3 GB", said["steps"], "", "20", said["steps"] == 20)
        yield Row(f"fit, {flag.strip('-')}: peak", said["peak"] / 2**20, "MiB", "≤ 2861", said["peak"] <= 3e9)


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
    recipe = [*still(), "--compile"]
    plain = losses(bench.train("plain", *recipe, "--max_iters=10"))
    for name, config in (("DDP", "multi_gpu"), ("FSDP2", "fsdp2")):
        if bench.trial and name == "FSDP2":  # which is DDP on a CPU
            continue
        file = ROOT / "accelerate_configs" / f"{config}.yaml"
        launch = ("-m", "accelerate.commands.launch", f"--config_file={file}", "--num_processes=1")
        launch += (str(ROOT / "scripts" / "train.py"),)
        seen = losses(bench.train(f"launched-{name}", *recipe, "--max_iters=10", launch=launch))
        off = gap(plain, seen)
        yield Row(f"{name}, one process, compiled: against the plain run", off, "nats", "≤ 0.01", off <= 0.01)
        again = losses(bench.train(f"launched-{name}", *recipe, "--max_iters=14", "--resume", launch=launch))
        yield Row(f"{name}: resumed", len(again), "steps", "14", len(again) == 14 and all(map(math.isfinite, again)))


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
    steps = [line for line in records if "tokens_per_second" in line]
    training = sum((GPT2.tokens if not bench.trial else 64) / line["tokens_per_second"] for line in steps)
    seconds = max(line["seconds"] for line in records)
    yield Row("124M, three evaluations and two checkpoints in 40 steps", seconds - training, "s")
    yield Row("the whole command", whole, "s")
    folder = bench.scratch / "beyond"
    for name, words in (("sample.py", ["--max_new_tokens=200"]), ("evaluate.py", ["--json"])):
        began = time.perf_counter()
        bench.run(ROOT / "scripts" / name, folder, *words, f"--device={bench.device}")
        yield Row(f"{name} of 124M, the whole command", time.perf_counter() - began, "s")


def whole(bench: Bench) -> Iterator[Row]:
    """The standard recipe to its end: validation loss, seconds (nanoGPT: 1.4697, about 3 min on an A100)."""
    if bench.trial:
        bench.train("standard", str(STANDARD), "--max_iters=4", "--warmup_iters=0", "--eval_iters=1")
        yield Row("standard to its end", "a trial on a CPU")
        return
    began = time.perf_counter()
    records = bench.train("standard", str(STANDARD))
    best = min(line["val_loss"] for line in records if "val_loss" in line)
    yield Row("standard: best validation loss", best, "nats", "≤ 1.4697", best <= 1.4697)
    yield Row("standard: the whole command", time.perf_counter() - began, "s")


Part = Callable[[Bench], Iterator[Row]]
# With the seconds that it should take on an H100, compilation included: assumed, since no card has run it yet. The most
# telling ones come first.
PARTS: dict[str, tuple[Part, int]] = {
    "profile": (profile, 110),
    "memory": (memory, 60),
    "resume": (resume, 80),
    "gpt2-12": (functools.partial(gpt2, 12), 240),
    "shared": (shared, 45),
    "bfloat16": (functools.partial(precision, "bfloat16"), 100),
    "launched": (launched, 200),
    "documents": (documents, 90),
    "fit": (fit, 110),
    "whole": (whole, 150),
    "float16": (functools.partial(precision, "float16"), 80),
    "float32": (functools.partial(precision, "float32"), 80),
    "beyond": (beyond, 80),
    "variants": (variants, 140),
    "gpt2-32": (functools.partial(gpt2, 32), 240),
}
