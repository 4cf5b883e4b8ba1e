"""Measurements on a card within one process, for benchmarks/gpu.py.

    python benchmarks/on_card.py loop --device=cuda

In:  the name of a measurement, the device, and arguments of the measurement.
Out: JSON on a line of its own.

On a CPU each one runs in the same way with a tiny model, to try the code itself.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from inside import batch_of, in_turn, prepared
from peers import Shape

GPT2 = Shape(n_layer=12, n_head=12, n_embd=768, block_size=1024, batch_size=12)
TINY = Shape(n_layer=2, n_head=2, n_embd=32, block_size=32, batch_size=4)
CAP = 6e9  # bytes of the card that `fit` may use
FEW = 4  # blocks of 124M where their number does not matter: all are alike, and each takes seconds to compile


def model_of(device: str) -> tuple[Shape, int]:
    """Return the shape and the vocabulary that are measured."""
    return (TINY, 100) if device == "cpu" else (GPT2, peers.GPT2_VOCABULARY)


def wait(device: str) -> None:
    """Wait until the card has finished its work."""
    if device != "cpu":
        torch.accelerator.synchronize()


# ------------------------------------------------------------------------------------------------------- the loop


def loop(device: str) -> dict[str, Any]:
    """Run compiled steps of 124M as the training loop does, without its records; profile some, and forbid waits in one.

    Returns: seconds of a step, its MFU, what :func:`read_trace` says, the head's seconds, and the first wait.
    """
    from hfgpt.train.meter import flops_per_token, peak_flops
    from hfgpt.train.step import StepResult, settle, train_step

    shape, vocabulary = model_of(device)
    run = prepared(shape, vocabulary, device, compile=True)
    running, count = list[StepResult](), iter(range(1_000_000))

    def step() -> None:
        """Run a step; the previous one is checked while this one runs."""
        running.append(train_step(run, batch_of(run, next(count)), shape.tokens, 1e-4))
        settle(run, running, keep=1)

    for _ in range(5):  # compiled, warm, the optimizer has its averages
        step()
    wait(device)
    steps, began = 3 if device == "cpu" else 20, time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    seconds = (time.perf_counter() - began) / steps
    peak = peak_flops(run)
    seen = {
        "seconds": seconds,
        "mfu": shape.tokens * flops_per_token(run) / seconds / peak if peak else math.nan,
        **profiled(step, device),
        "head_seconds": head_seconds(shape, vocabulary, device),
    }
    return seen | {"error": "" if device == "cpu" else first_wait(step)}


def profiled(step: Callable[[], None], device: str) -> dict[str, float]:
    """Profile five steps, after one whose profile is dropped: starting the profiler itself holds up the first step."""
    for steps in (1, 5):
        with torch.profiler.profile() as profiler:
            for _ in range(steps):
                step()
            wait(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return read_trace(json.loads(path.read_text(encoding="utf-8"))["traceEvents"], 5)


def read_trace(events: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """Read a profiler's trace: kernels, flash kernels and waits per step, and the card's idle share."""
    kernels = [event for event in events if event.get("cat") == "kernel"]
    calls = [event["name"] for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    span = max((e["ts"] + e["dur"] for e in kernels), default=0) - min((e["ts"] for e in kernels), default=0)
    return {
        "kernels": len(kernels) / steps,
        "flash": sum("flash" in event["name"].lower() for event in kernels) / steps,
        "waits": sum(bool(re.search("StreamSynchronize|DeviceSynchronize", name)) for name in calls) / steps,
        "idle": 1 - sum(event["dur"] for event in kernels) / span if span else 0.0,
    }


def head_seconds(shape: Shape, vocabulary: int, device: str) -> float:
    """Return the seconds of the head and its loss alone, compiled, forward and backward.

    In a compiled step its kernels have generated names, so that a profile does not show its share.
    """
    from hfgpt.model.head import linear_cross_entropy

    hidden = torch.randn(shape.tokens, shape.n_embd, device=device, requires_grad=True)
    weight = torch.randn(vocabulary, shape.n_embd, device=device).mul_(0.02).requires_grad_()
    targets = torch.randint(vocabulary, (shape.tokens,), device=device)
    head = torch.compile(linear_cross_entropy, dynamic=False, fullgraph=True)

    def once() -> None:
        hidden.grad = weight.grad = None
        with torch.autocast(device, torch.bfloat16):
            loss = head(hidden, weight, targets, -100)
        loss.backward()

    return statistics.median(in_turn({"head": once}, 1, 3 if device == "cpu" else 20, warm=2)["head"])


def first_wait(step: Callable[[], None]) -> str:
    """Return torch's message about the first wait for the card in a step, or ""."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


# --------------------------------------------------------------------------------------------------------- memory


CASES: dict[str, dict[str, Any]] = {
    "warm-up": {},  # afterwards the matrix libraries have their workspaces, which count for no case
    "plain": {},
    "accumulating": {"gradient_accumulation_steps": 2},
    "muon": {"optimizer": "muon"},
    "checkpointing": {"activation_checkpointing": True},
}
COMPILED: dict[str, dict[str, Any]] = {
    "warm-up": {},
    "compiled": {"compile": True},
    "compiled, accumulating": {"compile": True, "gradient_accumulation_steps": 2},
}


def memory(device: str, cases: str = "eager") -> dict[str, dict[str, int]]:
    """Return the peak bytes of a step of 124M: measured, by plan's formula, and an eager one's by plan's simulation."""
    from hfgpt.plan import probe, simulate
    from hfgpt.plan.memory import estimate

    shape, vocabulary = model_of(device)
    seen = {}
    for name, values in (CASES if cases == "eager" else COMPILED).items():
        compiled = values.get("compile", False)
        with a_run(shape, vocabulary, device, **{"compile": False, **values}) as run:
            kind, dtype = ("cpu", run.dtype) if device == "cpu" else ("accelerator", run.dtype)
            seen[name] = {
                "measured": probe.peak_bytes(run) - before(device),
                "planned": estimate(run.config, vocabulary, kind, dtype, compiled=compiled).peak,
            }
            if name == "plain":
                seen[name]["simulated"] = simulate.peak(run.config, vocabulary, kind, dtype).bytes
    del seen["warm-up"]
    return seen


_held = [0]  # bytes allocated before the present run


def before(device: str) -> int:
    """Return the bytes that were allocated before the present run."""
    return 0 if device == "cpu" else _held[0]


@contextmanager
def a_run(shape: Shape, vocabulary: int, device: str, **values: Any) -> Iterator[Any]:
    """Prepare a run, and free its memory afterwards, so that one process can measure several."""
    if device != "cpu":
        _held[0] = torch.cuda.memory_allocated()
    run = prepared(shape, vocabulary, device, **values)
    try:
        yield run
    finally:
        run.accelerator.free_memory()
        run.model = run.optimizer = None
        torch._dynamo.reset()
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()


# ------------------------------------------------------------------------------------------------ document masks


def masks(device: str) -> dict[str, Any]:
    """Return a step's seconds with each kind of document mask and without one, and how far its gradients are off.

    The loss of random tokens hardly depends on the mask, but the gradients of attention do: `off` is the norm of their
    difference from those of the boolean mask, as a share.
    """
    from hfgpt.train.step import train_step

    shape, vocabulary = model_of(device)
    shape, seen, boolean = replace(shape, n_layer=min(FEW, shape.n_layer)), {}, torch.empty(0)
    for name, compiled, masked in (("boolean", False, True), ("blocks", True, True), ("none", True, False)):
        more = {"compile": compiled, "document_mask": masked, "tokenizer": "bpe"}
        with a_run(shape, vocabulary, device, **more) as run:
            batch = batch_of(run, 0)
            for tokens in (tokens for part in batch for tokens in part.values()):
                tokens.masked_fill_(tokens % 200 == 0, 0)  # 0 ends a document here: they have 200 tokens

            def step(run: Any = run, batch: Any = batch) -> Any:
                return train_step(run, batch, shape.tokens, 1e-4)

            gradients = attention_gradients(run, batch)
            boolean = gradients if name == "boolean" else boolean
            off = float((gradients - boolean).norm() / boolean.norm())
            seconds = in_turn({name: step}, 1, 3 if device == "cpu" else 10, warm=2)[name]
            seen[name] = {"off": off, "seconds": statistics.median(seconds)}
    return seen


def attention_gradients(run: Any, batch: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Return the gradients of all attention weights at this batch, and set them to zero again."""
    for part in batch:
        run.accelerator.backward(run.model(**part))
    named = [(name, each.grad) for name, each in run.model.named_parameters() if each.ndim == 2]
    gradients = torch.cat([each.float().flatten().cpu() for name, each in named if "attn" in name and each is not None])
    run.optimizer.zero_grad()
    return gradients


# ------------------------------------------------------------------------------------------------- capped memory


def fits(device: str, flag: str) -> dict[str, Any]:
    """Train 20 steps of 124M in capped memory; return how many finished, the micro-batch, and the peak.

    Micro-batches of 12 do not fit eagerly: `fit` must find a smaller one that does in every step.
    """
    from hfgpt.config import load
    from hfgpt.train import loop

    found, fit = list[int](), loop.fit

    def noted(run: Any) -> None:
        fit(run)
        found.append(run.micro_batch)

    loop.fit = noted
    shape, vocabulary = model_of(device)
    if device != "cpu":
        card = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / card))
    with tempfile.TemporaryDirectory() as scratch:
        random = np.random.default_rng(0).integers(vocabulary, size=(2, 100_000)).astype(np.uint16)
        tokens = peers.write_tokens(Path(scratch), "t", random[0], random[1], [f"<{i}>" for i in range(vocabulary)])
        flags = [*tokens.flags, *shape.flags, "--gradient_accumulation_steps=2", "--max_iters=20", "--log_interval=1"]
        flags += ["--eval_interval=100000", "--eval_iters=1", f"--device={device}", f"--out_dir={scratch}/run", flag]
        loop.train(load(None, [*flags, f"--fit={'always' if device == 'cpu' else 'auto'}"]))
        records = peers.records(Path(scratch) / "run" / "metrics.jsonl")
        peak = 0 if device == "cpu" else torch.cuda.max_memory_allocated()
        return {"steps": sum("train_loss" in line for line in records), "micro_batch": found[0], "peak": peak}


# ------------------------------------------------------------------------------------------------ several processes


def train(words: list[str], gloo: bool) -> None:
    """Run scripts/train.py with its model wrapped as for several processes, even if there is one; name the wrapper.

    With one process on a card, Accelerate would leave out DDP. Over gloo two processes may share a card, which NCCL
    refuses.
    """
    import torch.distributed as dist
    from accelerate import Accelerator

    if gloo:
        dist.init_process_group("gloo")
        if torch.cuda.is_available():
            os.environ["LOCAL_RANK"] = "0"  # by which Accelerate chooses the card for the model, DDP and barriers
    prepare = Accelerator.prepare

    def named(self: Any, *arguments: Any, **options: Any) -> Any:
        done = prepare(self, *arguments, **options)
        kinds = {kind.__name__ for module in done[0].modules() for kind in type(module).__mro__}  # the model is first
        if self.is_main_process:
            print(json.dumps({"wrapper": next((kind for kind in WRAPPERS if kind in kinds), "none")}), flush=True)
        return done

    Accelerator.prepare = named
    if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_FSDP") != "true":
        Accelerator.multi_device = property(lambda self: True)
    from hfgpt.commands import run

    sys.argv = ["train.py", *words]
    run("train")


WRAPPERS = ("DistributedDataParallel", "FSDPModule")


MEASUREMENTS: dict[str, Callable[..., Any]] = {"loop": loop, "memory": memory, "masks": masks, "fits": fits}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("measurement", choices=[*MEASUREMENTS, "train"])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--gloo", action="store_true", help="for train: the processes share a card")
    known, rest = parser.parse_known_args()
    if known.measurement == "train":
        train([*rest, f"--device={known.device}"], known.gloo)
        return
    print(json.dumps(MEASUREMENTS[known.measurement](known.device, *rest)))


if __name__ == "__main__":
    main()
