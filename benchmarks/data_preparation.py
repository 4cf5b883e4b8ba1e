"""The speed and memory of turning text into batches.

In:  the size of a generated text (the embedded corpus repeated, its speeches shuffled, with made-up words inserted),
     and a tokenizer.
Out: one line of figures as JSON, and as text: MB/s of a first start, the peak memory of all its processes, the seconds
     of a second start, the microseconds to feed a batch of the CPU recipe, and their share of a step.

    python benchmarks/data_preparation.py --megabytes 1000 --tokenizer char
    python benchmarks/data_preparation.py --megabytes 200 --tokenizer bpe
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from hfgpt import config
from hfgpt.data import sources

RECIPE = Path(__file__).parent.parent / "recipes" / "shakespeare_char_cpu.yaml"


def write_text(path: Path, megabytes: int) -> None:
    """Write a text of this size with Shakespeare's words, and new words at a steady rate, as in real text."""
    draw = random.Random(0)
    speeches = gzip.decompress(sources.EMBEDDED.read_bytes()).decode().split("\n\n")
    with open(path, "w", encoding="utf-8", newline="") as file:
        while file.tell() < megabytes * 1_000_000:
            draw.shuffle(speeches)
            for speech in speeches:
                word = "".join(draw.choices("aeioulnrst", k=draw.randint(4, 9)))
                file.write(f"{speech} {word}.\n\n")
        file.truncate(megabytes * 1_000_000)  # plain ASCII: a byte is a character


def memory(process: psutil.Process) -> int:
    """Return the bytes of a process and its children, with shared memory counted once (PSS)."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except psutil.Error:
            continue  # the process has just ended
    return total


def watched(command: list[str]) -> tuple[float, int, dict[str, float]]:
    """Return a command's seconds, its peak memory in bytes, and the figures it printed, with its CPU time."""
    began, used, peak = time.perf_counter(), os.times(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        output: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda stream=process.stdout: output.append(stream.read()))
        reader.start()
        while reader.is_alive():
            peak = max(peak, memory(psutil.Process(process.pid)))
            reader.join(0.2)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    now = os.times()
    figures = json.loads(output[0].splitlines()[-1])
    figures["cpu"] = now.children_user + now.children_system - used.children_user - used.children_system
    return time.perf_counter() - began, peak, figures


def prepare_once(text: Path, tokenizer: str, cache: Path) -> None:
    """Prepare data as a start does; print the seconds of `prepare` alone, and the number of tokens."""
    import datasets  # noqa: F401 — what is measured is the work, and not the import of libraries
    from transformers import AutoTokenizer  # noqa: F401

    from hfgpt.data.prepare import prepare

    values = {"dataset": str(text), "tokenizer": tokenizer, "block_size": 64}
    began = time.perf_counter()
    corpus = prepare(config.build(values, "benchmark"), cache)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "tokens": len(corpus.train) + len(corpus.val)}))


def median_seconds(action: Callable[[int], object], times: int) -> float:
    """Return the median of many times."""
    taken = []
    for number in range(times):
        began = time.perf_counter()
        action(number)
        taken.append(time.perf_counter() - began)
    return sorted(taken)[times // 2]


def feeding(text: Path, cache: Path) -> dict[str, float]:
    """Return the seconds of the CPU recipe's batch and step, each the median of many."""
    import torch

    from hfgpt.data import tokenizer
    from hfgpt.data.prepare import prepare
    from hfgpt.model import gpt2 as model
    from hfgpt.model import optim
    from hfgpt.train.step import to_device

    made = config.load(RECIPE, [f"--dataset={text}", "--device=cpu"])
    corpus = prepare(made, cache)
    vocabulary = tokenizer.vocabulary_size(corpus.tokenizer)
    gpt = model.build(made, vocabulary, corpus.tokenizer.eos_token_id)
    optimizer = optim.build(gpt, made, torch.device("cpu"))

    def feed(number: int) -> list[dict[str, torch.Tensor]]:
        blocks = corpus.batches.micro_batches(number, 0, 1, made.batch_size)
        return to_device(blocks, torch.device("cpu"))

    def step(number: int) -> None:
        for batch in feed(number):
            (gpt(**batch) / made.tokens_per_iter).backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"feeding": median_seconds(feed, 2000), "step": median_seconds(step, 100)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--tokenizer", default="char")
    parser.add_argument(
        "--only", type=Path, help=argparse.SUPPRESS
    )  # the child: prepare this text in the folder's cache
    arguments = parser.parse_args()
    if arguments.only:
        prepare_once(arguments.only, arguments.tokenizer, arguments.only.parent / "cache")
        return
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        write_text(text, arguments.megabytes)
        command = [sys.executable, __file__, "--only", str(text), "--tokenizer", arguments.tokenizer]
        _, peak, first = watched(command)
        whole, _, second = watched(command)
        fed = feeding(text, Path(folder) / "cache")
    figures = {
        "megabytes": arguments.megabytes,
        "tokenizer": arguments.tokenizer,
        "cores": len(os.sched_getaffinity(0)),
        "megabytes_per_second": round(arguments.megabytes / first["seconds"], 1),
        "core_seconds": round(first["cpu"], 1),
        "tokens": first["tokens"],
        "peak_memory_megabytes": round(peak / 1e6),
        "second_start_seconds": round(second["seconds"], 3),
        "second_start_with_imports_seconds": round(whole, 2),
        "feeding_microseconds": round(fed["feeding"] * 1e6),
        "step_microseconds": round(fed["step"] * 1e6),
        "feeding_share_of_step": round(fed["feeding"] / fed["step"], 4),
    }
    print(json.dumps(figures))
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):36}{value:>16}")


if __name__ == "__main__":
    main()
