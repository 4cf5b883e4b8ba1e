"""Validate hfgpt on a card: one command, under ten minutes, a table and a file of figures.

    make gpu                                          the parts not measured yet, on this machine's card
    python benchmarks/gpu.py --only profile --again   one of them again
    python benchmarks/gpu.py --list                   list the parts

In:  NANOGPT, a checkout of nanoGPT to run beside it (optional); a card (`--device cpu` tries the command itself).
Out: the table, and benchmarks/results/<card>.json with the versions. A failed part reports what it saw, and the others
     continue. The file is written after each part, so an interrupted run resumes where it stopped.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peers
import watch
from peers import Shape, Tokens
from watch import ROOT, Failed

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "accelerate", "triton", "numpy")
GPT2 = Shape(n_layer=12, n_head=12, n_embd=768, block_size=1024, batch_size=12)
STANDARD = ROOT / "recipes" / "standard.yaml"
LOGGED = ["--log_interval=1", "--eval_interval=100000", "--eval_iters=1"]
QUIET = [*LOGGED, "--sample_prompt="]  # for a recipe; random tokens are not sampled anyway
# On a CPU, which only tries the command itself, a model that trains in a second.
TINY = ["--n_layer=2", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4"]


@dataclass
class Row:
    """One figure: its name, its value, its goal, and whether it meets it; None if there is no goal."""

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
    deadline: float  # time.monotonic() at which the last part is to end
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.env = watch.environment(None, self.scratch)

    @property
    def trial(self) -> bool:
        """Whether this is a CPU, on which the parts are cut to a minimum."""
        return self.device == "cpu"

    def train(self, name: str, *flags: str, launch: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """Run scripts/train.py with a recipe and these arguments in its own folder; return its records."""
        folder = self.scratch / name
        command = [sys.executable, *launch, str(ROOT / "scripts" / "train.py"), *flags]
        cut = TINY if self.trial else []
        watch.run([*command, f"--device={self.device}", f"--out_dir={folder}", *cut], self.env)
        return peers.records(folder / "metrics.jsonl")

    def gpt2(self) -> Tokens:
        """Random tokens of GPT-2's vocabulary, for both sides: arithmetic and memory do not depend on the text."""
        drawn = np.random.default_rng(0).integers(peers.GPT2_VOCABULARY, size=(2, 400_000)).astype(np.uint16)
        names = [f"<{i}>" for i in range(peers.GPT2_VOCABULARY)]
        return peers.write_tokens(self.scratch, "gpt2", drawn[0], drawn[1], names)


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


# ----------------------------------------------------------------------------------------------------------- the parts


def standard(bench: Bench) -> Iterator[Row]:
    """Standard recipe, 30 steps: finite in every precision, eager and compiled, and step 1 as on a CPU."""
    still = [str(STANDARD), "--dropout=0", "--warmup_iters=0", *QUIET]
    cpu = Bench(bench.scratch, "cpu", None, bench.deadline)
    cut = [] if not bench.trial else TINY
    folder = bench.scratch / "standard-cpu"
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *still, *cut]
    watch.run([*command, "--device=cpu", "--dtype=float32", "--max_iters=1", f"--out_dir={folder}"], cpu.env)
    [expected] = losses(peers.records(folder / "metrics.jsonl"))
    for dtype in ("float32", "bfloat16") if bench.trial else ("float32", "bfloat16", "float16"):
        for compiled in ("--no_compile", "--compile"):
            name = f"standard-{dtype}{compiled}"
            seen = losses(bench.train(name, *still, "--max_iters=30", f"--dtype={dtype}", compiled))
            bound = 1e-3 if dtype == "float32" else 2e-2
            what = f"standard, {dtype}, {compiled.strip('-')}"
            yield Row(f"{what}: finite", sum(map(math.isfinite, seen)), "steps", "30", all(map(math.isfinite, seen)))
            gap = abs(seen[0] - expected)
            yield Row(f"{what}: step 1 against the CPU", gap, "nats", f"≤ {bound:g}", gap <= bound)


def gpt2(bench: Bench) -> Iterator[Row]:
    """GPT-2 124M at micro-batches of 12 and 32, eager and compiled, nanoGPT's train.py beside it."""
    tokens = bench.gpt2()
    for size in (12, 32):
        shape = Shape(**{**asdict(GPT2), "batch_size": size})
        for compiled in (False, True):
            what = f"124M, micro-batch {size}, {'compiled' if compiled else 'eager'}"
            flag = "--compile" if compiled else "--no_compile"
            flags = [*tokens.flags, *shape.flags, "--warmup_iters=0", "--max_iters=25", *LOGGED, "--fit=never"]
            name = f"gpt2-{size}-{compiled}"
            ours = speed(bench.train(name, *flags, flag))
            yield Row(f"{what}: a step", shape.tokens / ours["tokens_per_second"] * 1e3, "ms")
            yield Row(f"{what}: tokens", ours["tokens_per_second"], "tokens/s")
            yield Row(f"{what}: MFU", ours.get("mfu", math.nan))
            yield Row(f"{what}: peak", ours["memory_bytes"] / 2**20, "MiB")
            if bench.nanogpt and not bench.trial:
                yield from beside(bench, shape, tokens, compiled, what, ours)


def beside(
    bench: Bench, shape: Shape, tokens: Tokens, compiled: bool, what: str, ours: dict[str, float]
) -> Iterator[Row]:
    """Run nanoGPT's own train.py on the same shape and tokens, at about the same time."""
    assert bench.nanogpt
    home = peers.home(bench.nanogpt, bench.scratch)
    command = peers.nanogpt_command(shape, tokens, 25, bench.device, compiled)
    done = watch.run(command, bench.env, home)
    steps = peers.nanogpt_steps(done.lines)
    theirs = shape.tokens / statistics.median(steps[len(steps) // 2 :])
    yield Row(f"{what}: nanoGPT", theirs, "tokens/s")
    yield Row(f"{what}: of nanoGPT's speed", ours["tokens_per_second"] / theirs, "x")


def profile(bench: Bench) -> Iterator[Row]:
    """A profile of a compiled step of 124M: flash attention, waits, idle time, the head's share."""
    seen = inside(bench, "profile")
    yield Row("flash attention kernels a step", seen["flash"], "", "> 0", bench.trial or seen["flash"] > 0)
    yield Row("the host waits for the card a step", seen["waits"], "times", "≤ 1", bench.trial or seen["waits"] <= 1)
    yield Row("the card is idle", seen["idle"], "of a step", "< 0.05", bench.trial or seen["idle"] < 0.05)
    yield Row("the head", seen["head"], "of the card's time")


def waits(bench: Bench) -> Iterator[Row]:
    """Run a step in which any wait for the card is an error (torch.cuda.set_sync_debug_mode)."""
    said = inside(bench, "waits")["error"]
    yield Row("a step without a wait", said or "none", "", "none", not said)


def documents(bench: Bench) -> Iterator[Row]:
    """document_mask: FlexAttention's block mask against the boolean mask of an eager step, and what it costs."""
    seen = inside(bench, "documents")
    gap = max(abs(a - b) for a, b in zip(seen["blocks"]["losses"], seen["boolean"]["losses"], strict=True))
    yield Row("documents: block mask against boolean mask", gap, "nats", "≤ 0.02", gap <= 0.02)
    for name, what in (("boolean", "boolean mask, eager"), ("blocks", "block mask, compiled"), ("none", "none")):
        yield Row(f"documents: a step of 124M with {what}", seen[name]["seconds"] * 1e3, "ms")


def fit(bench: Bench) -> Iterator[Row]:
    """`fit: auto` with memory capped: 20 steps without running out of memory, eager and compiled."""
    for compiled in ("--no_compile", "--compile"):
        said = inside(bench, "fit", compiled)
        yield Row(f"fit, {compiled.strip('-')}: steps in 6 GB", said["steps"], "", "20", said["steps"] == 20)
        yield Row(f"fit, {compiled.strip('-')}: peak", said["peak"] / 2**20, "MiB", "≤ 5722", said["peak"] <= 6e9)


def resume(bench: Bench) -> Iterator[Row]:
    """Stop at 20 and resume to 40, twice, with `deterministic`: the same bits as without a stop."""
    recipe = [str(STANDARD), "--max_iters=40", "--lr_decay_iters=40", *QUIET, "--deterministic", "--eval_interval=20"]
    recipe.remove("--eval_interval=100000")
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
    """Muon and activation checkpointing: compiled equals eager, and memory equals the plan's."""
    tokens = bench.gpt2()
    shape = Shape(n_layer=6, n_head=6, n_embd=384, block_size=256, batch_size=8)
    for more in ("--optimizer=muon", "--activation_checkpointing"):
        flags = [*tokens.flags, *shape.flags, "--warmup_iters=0", "--max_iters=10", *LOGGED, "--fit=never", more]
        runs = {flag: bench.train(f"variant{more}{flag}", *flags, flag) for flag in ("--no_compile", "--compile")}
        eager, compiled = (losses(runs[flag]) for flag in ("--no_compile", "--compile"))
        gap = max(abs(a - b) for a, b in zip(eager, compiled, strict=True))
        yield Row(f"{more.strip('-')}: compiled against eager", gap, "nats", "≤ 0.02", gap <= 0.02)
        if not bench.trial:
            yield planned(bench, [*tokens.flags, *shape.flags, more], speed(runs["--no_compile"])["memory_bytes"], more)


def planned(bench: Bench, flags: list[str], seen: float, more: str) -> Row:
    """Compare plan.py's prediction of a step's tensors with torch's allocation."""
    command = [sys.executable, str(ROOT / "scripts" / "plan.py"), *flags, "--vram=80GB", "--json"]
    said = json.loads("".join(watch.run(command, bench.env).lines))
    off = said["memory"]["peak_bytes"] / seen - 1
    return Row(f"{more.strip('-')}: memory planned", off * 100, "% off", "within 3", abs(off) <= 0.03)


def launched(bench: Bench) -> Iterator[Row]:
    """torchrun with one process: DDP and FSDP2, compiled, saved and resumed, against the plain run."""
    recipe = [str(STANDARD), "--dropout=0", "--max_iters=10", "--warmup_iters=0", "--compile", *QUIET]
    plain = losses(bench.train("plain", *recipe))
    for name, config in (("DDP", "multi_gpu"), ("FSDP2", "fsdp2")):
        if bench.trial and name == "FSDP2":
            continue
        file = ROOT / "accelerate_configs" / f"{config}.yaml"
        launch = ("-m", "accelerate.commands.launch", f"--config_file={file}", "--num_processes=1")
        seen = losses(bench.train(f"launched-{name}", *recipe, launch=launch))
        gap = max(abs(a - b) for a, b in zip(plain, seen, strict=True))
        yield Row(f"{name}, one process, compiled: against the plain run", gap, "nats", "≤ 0.01", gap <= 0.01)
        more = [word for word in recipe if word != "--max_iters=10"]
        again = losses(bench.train(f"launched-{name}", *more, "--max_iters=14", "--resume", launch=launch))
        yield Row(f"{name}: resumed", len(again), "steps", "14", len(again) == 14 and all(map(math.isfinite, again)))


def shared(bench: Bench) -> Iterator[Row]:
    """Two gloo processes on one card against one process."""
    recipe = [str(STANDARD), "--dropout=0", "--max_iters=6", "--warmup_iters=0", "--dtype=float32", *QUIET]
    one = losses(bench.train("one", *recipe))
    env = {"ACCELERATE_USE_CPU": "true"} if bench.trial else {"ACCELERATE_TORCH_DEVICE": "cuda:0"}
    bench.env |= env
    two = losses(bench.train("two", *recipe, launch=("-m", "torch.distributed.run", "--nproc_per_node=2")))
    for key in env:
        del bench.env[key]
    gap = max(abs(a - b) for a, b in zip(one, two, strict=True))
    yield Row("two processes on one card", gap, "nats", "≤ 1e-4", gap <= 1e-4)


def beyond(bench: Bench) -> Iterator[Row]:
    """Saving, exporting, evaluating and sampling 124M, in seconds and as a share of the time."""
    tokens = bench.gpt2()
    flags = [*tokens.flags, *GPT2.flags, "--warmup_iters=0", "--max_iters=40", "--eval_interval=20", "--eval_iters=2"]
    began = time.perf_counter()
    records = bench.train("beyond", *flags, "--log_interval=1", "--fit=never", "--no_compile")
    whole = time.perf_counter() - began
    steps = [line for line in records if "tokens_per_second" in line]
    training = sum((GPT2.tokens if not bench.trial else 64) / line["tokens_per_second"] for line in steps)
    seconds = max(line["seconds"] for line in records)
    yield Row("124M, three evaluations and two checkpoints in 40 steps", seconds - training, "s")
    yield Row("the whole command", whole, "s")
    folder = str(bench.scratch / "beyond")
    for name, words in (("sample.py", ["--max_new_tokens=200"]), ("evaluate.py", ["--json"])):
        began = time.perf_counter()
        watch.run([sys.executable, str(ROOT / "scripts" / name), folder, *words, f"--device={bench.device}"], bench.env)
        yield Row(f"{name} of 124M, the whole command", time.perf_counter() - began, "s")


def whole(bench: Bench) -> Iterator[Row]:
    """The standard recipe to its end: validation loss, seconds (nanoGPT: 1.4697, about 3 min on an A100)."""
    if bench.trial:
        bench.train("standard", str(STANDARD), "--max_iters=4", "--eval_iters=1")
        yield Row("standard to its end", "a trial on a CPU")
        return
    began = time.perf_counter()
    records = bench.train("standard", str(STANDARD))
    best = min(line["val_loss"] for line in records if "val_loss" in line)
    yield Row("standard: best validation loss", best, "nats", "≤ 1.4697", best <= 1.4697)
    yield Row("standard: the whole command", time.perf_counter() - began, "s")


Part = Callable[[Bench], Iterator[Row]]
PARTS: dict[str, tuple[Part, int]] = {  # with its approximate seconds on an H100
    "standard": (standard, 90),
    "gpt2": (gpt2, 120),
    "profile": (profile, 30),
    "waits": (waits, 20),
    "documents": (documents, 60),
    "fit": (fit, 50),
    "resume": (resume, 60),
    "variants": (variants, 70),
    "launched": (launched, 60),
    "shared": (shared, 25),
    "beyond": (beyond, 60),
    "whole": (whole, 150),
}

# ---------------------------------------------------------------------------- measurements within one process


def inside(bench: Bench, name: str, *words: str) -> dict[str, Any]:
    """Return the JSON that this file prints when it is started for one measurement."""
    command = [sys.executable, __file__, "--inside", name, "--device", bench.device, *words]
    seen: dict[str, Any] = json.loads(watch.run(command, bench.env).lines[-1])
    return seen


def measure_inside(name: str, device: str, compiled: bool) -> dict[str, Any]:
    """Run one of the measurements that need torch in this process."""
    import torch
    from inside import batch_of, prepared

    from hfgpt.train.step import StepResult, settle, train_step

    shape = Shape(n_layer=2, n_head=2, n_embd=32, block_size=32, batch_size=4) if device == "cpu" else GPT2
    vocabulary = 100 if device == "cpu" else peers.GPT2_VOCABULARY
    if name == "fit":
        return fits(shape, vocabulary, device, compiled)
    if name == "documents":
        return masks(shape, vocabulary, device)
    run = prepared(shape, vocabulary, device, compile=device != "cpu")

    running = list[StepResult]()

    def step(number: int) -> None:
        """Run a step as the loop does: the previous step is checked while this one runs."""
        running.append(train_step(run, batch_of(run, number), shape.tokens, 1e-4))
        settle(run, running, keep=1)

    for number in range(5):  # compiled, warm, the optimizer has its averages
        step(number)
    if name == "waits":
        return {"error": "" if device == "cpu" else first_wait(lambda: step(5))}
    with torch.profiler.profile() as profiler:
        for number in range(5, 10):
            step(number)
        if device != "cpu":
            torch.accelerator.synchronize()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        return read_trace(json.loads(Path(file.name).read_text(encoding="utf-8"))["traceEvents"], 5)


def masks(shape: Shape, vocabulary: int, device: str) -> dict[str, Any]:
    """Return three steps' losses and a later one's seconds, with each kind of document mask and without documents."""
    import torch
    from inside import batch_of, in_turn, prepared

    from hfgpt.train.step import train_step

    seen = {}
    for name, compiled, masked in (("boolean", False, True), ("blocks", True, True), ("none", True, False)):
        run = prepared(
            shape, vocabulary, device, compile=compiled and device != "cpu", document_mask=masked, tokenizer="bpe"
        )
        batch = batch_of(run, 0)
        for tokens in (tokens for part in batch for tokens in part.values()):
            tokens.masked_fill_(tokens % 200 == 0, 0)  # 0 ends a document here: they have 200 tokens
        steps = [train_step(run, batch, shape.tokens, 1e-4) for _ in range(3)]
        seconds = in_turn({name: lambda: train_step(run, batch, shape.tokens, 1e-4)}, 1, 10)  # noqa: B023
        values = [float(step.nll) / step.targets for step in steps]
        seen[name] = {"losses": values, "seconds": statistics.median(seconds[name])}
        run.accelerator.free_memory()
        torch._dynamo.reset()
    return seen


def first_wait(step: Callable[[], None]) -> str:
    """Return torch's message about the first wait for the card in a step, or ""."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def read_trace(events: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """Read a profiler's trace: flash kernels and waits per step, the card's idle share, the head's share."""
    kernels = [event for event in events if event.get("cat") == "kernel"]
    calls = [event["name"] for event in events if event.get("cat") == "cuda_runtime"]
    busy = sum(event["dur"] for event in kernels)
    span = max((e["ts"] + e["dur"] for e in kernels), default=0) - min((e["ts"] for e in kernels), default=0)
    head = sum(
        event["dur"] for event in kernels if re.search("cross_entropy|nll|softmax", event["name"], re.IGNORECASE)
    )
    return {
        "flash": sum("flash" in event["name"].lower() for event in kernels) / steps,
        "waits": sum(bool(re.search("StreamSynchronize|DeviceSynchronize", name)) for name in calls) / steps,
        "idle": 1 - busy / span if span else 0.0,
        "head": head / busy if busy else 0.0,
    }


def fits(shape: Shape, vocabulary: int, device: str, compiled: bool) -> dict[str, Any]:
    """Run 20 steps of scripts/train.py in 6 GB of the card's memory; return how many finished, and the peak."""
    import torch

    from hfgpt.config import load
    from hfgpt.train.loop import train

    if device != "cpu":
        card = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, 6e9 / card))
    with tempfile.TemporaryDirectory() as scratch:
        random = np.random.default_rng(0).integers(vocabulary, size=(2, 100_000)).astype(np.uint16)
        tokens = peers.write_tokens(Path(scratch), "t", random[0], random[1], [f"<{i}>" for i in range(vocabulary)])
        flags = [*tokens.flags, *shape.flags, "--gradient_accumulation_steps=2", "--max_iters=20", *LOGGED]
        flags += [f"--device={device}", f"--out_dir={scratch}/run", "--compile" if compiled else "--no_compile"]
        train(load(None, flags))
        records = peers.records(Path(scratch) / "run" / "metrics.jsonl")
        peak = 0 if device == "cpu" else torch.cuda.max_memory_allocated()
        return {"steps": len(losses(records)), "peak": peak}


# ------------------------------------------------------------------------------------------------------- the command


def main() -> int:
    arguments = parse()
    if arguments.inside:
        print(json.dumps(measure_inside(arguments.inside, arguments.device, arguments.compile)))
        return 0
    if arguments.list:
        for name, (part, seconds) in PARTS.items():
            print(f"{name:10} {(part.__doc__ or '').strip()} [about {seconds} s on an H100]")
        return 0
    import torch

    if arguments.device != "cpu" and not torch.cuda.is_available():
        print(
            "there is no CUDA card here: nothing is measured (--device cpu tries the command itself)", file=sys.stderr
        )
        return 2
    card = "cpu" if arguments.device == "cpu" else torch.cuda.get_device_name(0)
    path = arguments.json or RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', card.lower()).strip('-')}.json"
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    parts: dict[str, Any] = {} if arguments.again and not arguments.only else saved.get("parts", {})
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if installed(name)}
    failed = False
    with tempfile.TemporaryDirectory(prefix="hfgpt-gpu-") as scratch:
        checkout = os.environ.get("NANOGPT")
        bench = Bench(
            Path(scratch), arguments.device, Path(checkout) if checkout else None, time.monotonic() + arguments.seconds
        )
        for name in arguments.only or PARTS:
            if name in parts and not arguments.again:
                print(f"{name}: measured already (--again repeats it)")
                continue
            if time.monotonic() + PARTS[name][1] > bench.deadline and not bench.trial:
                print(f"{name}: left for the next time, {arguments.seconds} s are nearly over")
                continue
            parts[name] = measure(name, bench)
            failed |= bool(parts[name]["error"]) or any(row["holds"] is False for row in parts[name]["rows"])
            path.write_text(json.dumps({"card": card, "versions": versions, "parts": parts}, indent=1) + "\n")
    print(table(card, parts))
    return int(failed)


def measure(name: str, bench: Bench) -> dict[str, Any]:
    """Return the rows of a part, as far as it got, and its error."""
    rows, error, began = [], "", time.monotonic()
    try:
        for row in PARTS[name][0](bench):
            rows.append(asdict(row))
            print(line(rows[-1]), flush=True)
    except (Failed, OSError, ValueError, KeyError, IndexError) as problem:
        error = f"{type(problem).__name__}: {problem}"
        print(f"✗ {name}: {error}", flush=True)
    return {"rows": rows, "error": error, "seconds": round(time.monotonic() - began, 1)}


def installed(name: str) -> bool:
    """Whether a package is installed."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def line(row: dict[str, Any]) -> str:
    """Format a row of the table."""
    mark = {True: "✓", False: "✗", None: " "}[row["holds"]]
    seen = f"{row['seen']:.4g}" if isinstance(row["seen"], float) else str(row["seen"])
    wanted = f"  (wanted: {row['wanted']})" if row["wanted"] else ""
    return f"{mark} {row['what']}: {seen} {row['unit']}{wanted}"


def table(card: str, parts: dict[str, Any]) -> str:
    """Return everything measured on this card, now or earlier."""
    lines = [f"\n{card}"]
    for name, part in parts.items():
        lines += [f"{name} ({part['seconds']:.0f} s)", *(f"  {line(row)}" for row in part["rows"])]
        lines += [f"  ✗ {part['error']}"] if part["error"] else []
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the parts, and stop")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART", help="these parts")
    parser.add_argument("--again", action="store_true", help="also what was measured already")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=int, default=600, help="begin no part that would end later (600)")
    parser.add_argument("--json", type=Path, help="where the figures go (benchmarks/results/gpu-<card>.json)")
    parser.add_argument("--inside", choices=("profile", "waits", "documents", "fit"), help=argparse.SUPPRESS)
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--no_compile", dest="compile", action="store_false", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
